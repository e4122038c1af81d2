"""Reading a checkpoint's tensors from disk, and nothing but tensors.

Read are, in this order of preference (that of the published test program): `model.safetensors`,
`model.safetensors.index.json` with its shards, `pytorch_model.bin`, and
`pytorch_model.bin.index.json` with its shards. A `.bin` is a pickle: it is read with PyTorch's
restricted unpickler, and refused when it holds anything but tensors by name. Other files of the
folder (optimizer, scheduler, training arguments) are never opened.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from circuits.errors import CircuitsError

READ = ("model.safetensors", "pytorch_model.bin")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class CheckpointError(CircuitsError):
    """A CODI checkpoint that is not there, is not safe to read, or is not laid out as published."""


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the checkpoint in `folder`, on the CPU, by the names they have there.

    Raises `CheckpointError` when there is no checkpoint, a file holds other objects than
    floating-point tensors, a tensor is not finite, or an index and its shards do not agree.
    """
    for name in READ:
        if (folder / name).is_file():
            return _read(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder, folder / f"{name}.index.json")
    others = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    found = f" It has {', '.join(others)}: other pickles are not read." if others else ""
    raise CheckpointError(
        f"{folder} holds no checkpoint: {' or '.join(READ)} (or one of them in shards, with its "
        f".index.json) was expected.{found}"
    )


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    try:
        places: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(places.values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of shards: a JSON object with `weight_map`, from names of "
            "tensors to names of files, was expected."
        ) from error
    kind = Path(index.name.removesuffix(".index.json")).suffix
    found: dict[str, Tensor] = {}
    for shard in shards:
        # A name with a path in it could lead out of the folder.
        if Path(shard).name != shard or Path(shard).suffix != kind:
            raise CheckpointError(f"{index} names the shard {shard!r}: a {kind} file beside it.")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{index} names the shard {shard}, which is not there.")
        tensors = _read(folder / shard)
        misplaced = [key for key in tensors if places.get(key) != shard]
        if misplaced:
            raise CheckpointError(
                f"{shard} holds {some(misplaced)}, which {index.name} does not place there: "
                "a tensor is doubled, or the index is of another checkpoint."
            )
        found.update(tensors)
    if absent := [key for key in places if key not in found]:
        raise CheckpointError(f"{index.name} promises {some(absent)}, which no shard holds.")
    return found


def _read(path: Path) -> dict[str, Tensor]:
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
    for key, value in tensors.items():
        if not value.is_floating_point():
            raise CheckpointError(
                f"{path}: {key} is of type {value.dtype}; weights are floating-point numbers "
                "(quantised checkpoints are not read)."
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: {key} has values that are infinite or not numbers.")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}): download it again."
        ) from error


def _read_bin(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is refused: it is damaged, or a pickle that holds more than tensors and "
            "would run code when read. Convert it to model.safetensors where you trust it."
        ) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f"{path} is refused: tensors by name were expected, it holds a {type(loaded).__name__}."
        )
    others = [
        f"{key} ({type(value).__name__})"
        for key, value in loaded.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if others:
        raise CheckpointError(
            f"{path} is refused: besides tensors by name it holds {some(others)}. Save the "
            "model's state_dict alone."
        )
    return {str(key): value.detach() for key, value in loaded.items()}


def some(names: list[str], shown: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
