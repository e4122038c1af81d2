"""Images in three parts: one to learn from, one to choose by, one to report on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from tasks.digits.data.checks import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Digits:
    """Labelled images, split.

    name: the source. side: images are side x side pixels, given as rows of side^2 numbers from 0
        (paper) to 1 (ink).
    parts: images and labels of each split; no image is in two of them.
    """

    name: str
    side: int
    parts: dict[Split, tuple[Float[Tensor, "image pixel"], Int[Tensor, " image"]]]

    def __post_init__(self) -> None:
        for split in SPLITS:
            images, labels = self.parts[split]
            if len(images) != len(labels) or images.shape[1] != self.side**2 or not len(images):
                raise DataError(
                    f"{split} of {self.name}: {tuple(images.shape)} pixels and {len(labels)} "
                    f"labels, where [image, {self.side**2}] and one label an image are expected."
                )

    def __getitem__(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.parts[split]

    @property
    def pixels(self) -> int:
        """Numbers an image."""
        return self.side**2

    @cached_property
    def sha256(self) -> str:
        """Of all images and labels with their split: what a training depends on."""
        digest = hashlib.sha256()
        for split in SPLITS:
            for tensor in self.parts[split]:
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return {split: len(self.parts[split][1]) for split in SPLITS}


def stratified(
    labels: Integer[np.ndarray, " image"], shares: Sequence[float], seed: int
) -> list[Integer[np.ndarray, " some"]]:
    """Numbers of images in parts of these shares (the first part gets what is left over), each
    class in each part as in the whole; the same for the same seed."""
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(shares) * len(own)).astype(int)
        pieces = np.split(own, ends)
        for part, piece in zip(parts, [pieces[-1], *pieces[:-1]], strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def as_tensors(
    pixels: Float[np.ndarray, "image pixel"], labels: Integer[np.ndarray, " image"]
) -> tuple[Float[Tensor, "image pixel"], Int[Tensor, " image"]]:
    """float32 images and int64 labels."""
    return torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
