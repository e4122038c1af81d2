"""Common random numbers: Gumbel noise that depends on seed, prompt, trial and step alone.

A token drawn from a softmax is the argmax of logits plus independent Gumbel noise (Gumbel 1954).
The noise of a step is the same in every arm, so that arms differ only through what was done to
them, and the same whatever else is in the batch.

It comes from Philox4x64-10 (Salmon et al. 2011), a counter-based generator: the key is a digest of
(seed, prompt, trial), the counter begins at the step, and the i-th number belongs to token i. Raw
bits are made for the whole vocabulary, which is quick; logarithms only for the tokens that can be
drawn, and the numbers are the same whichever these are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

_ONE = np.uint64(0x3FF) << np.uint64(52)  # the bits of 1.0 in float64


class Key(NamedTuple):
    """What tells the noise of one row: a prompt, by its digest, and a trial of it."""

    prompt: str
    trial: int


def prompt_digest(tokens: Sequence[int]) -> str:
    """A prompt's digest: of its token ids."""
    return hashlib.sha256(np.asarray(list(tokens), dtype="<i8").tobytes()).hexdigest()[:32]


def keys_of(tokens: Int[Tensor, "row position"], trials: Sequence[int]) -> list[Key]:
    """The keys of rows of prompts; trials: one number a row."""
    return [Key(prompt_digest(r), t) for r, t in zip(tokens.tolist(), trials, strict=True)]


class Noise:
    """The noise of some rows. seed: of the run; two seeds give independent noise."""

    def __init__(self, seed: int, keys: Sequence[Key]) -> None:
        self._keys: list[NDArray[np.uint64]] = []
        for key in keys:
            text = f"{seed}/{key.prompt}/{key.trial}".encode()
            digest = hashlib.sha256(text).digest()[:16]
            self._keys.append(np.frombuffer(digest, dtype="<u8").astype(np.uint64))

    def raw(self, row: int, step: int, vocab: int) -> NDArray[np.uint64]:
        """64 random bits a token."""
        # Every step has 2^64 blocks of four numbers to itself.
        generator = np.random.Philox(counter=[0, step, 0, 0], key=self._keys[row])
        return np.asarray(generator.random_raw(vocab))

    def gumbel(
        self, row: int, step: int, vocab: int, tokens: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, " some"]:
        """Noise of some tokens (of all of them by default), float64, on the CPU."""
        bits = self.raw(row, step, vocab)
        if tokens is not None:
            bits = bits[tokens.cpu().numpy()]
        return gumbel_of(bits)


def gumbel_of(bits: NDArray[np.uint64]) -> Float[Tensor, " some"]:
    """Gumbel noise of 64 random bits each, float64 and finite: the first 52 bits choose one of 2^52
    intervals between 0 and 1, whose middle is exact in float64 and never 0 or 1 (with one bit more
    the last one would be rounded to 1)."""
    # As the fraction of a number between 1 and 2: quicker than a conversion, and as exact.
    inside = bits >> np.uint64(12)
    np.bitwise_or(inside, _ONE, out=inside)
    uniform = torch.from_numpy(inside.view(np.float64))
    uniform.sub_(1.0).add_(2.0**-53)
    return uniform.log_().neg_().log_().neg_()
