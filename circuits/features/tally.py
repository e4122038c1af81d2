"""Sums over a corpus for all latents of one SAE, in memory that does not grow with the corpus.

Per latent: how often and how strongly it is active, a histogram, its strongest examples with what
it did around them, and which tokens stood where it was active and just before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

# Six bins a factor of ten; activations outside are counted in the outermost ones.
EDGES: NDArray[np.floating] = np.logspace(-3, 4, 43)
BINS = len(EDGES) - 1


class TokenCounts:
    """How often each token goes with each latent, with at most about `limit` entries.

    When there are more, the rarest entries are dropped (lossy counting, Manku and Motwani 2002):
    every count is then too low by at most `error`, and every pair seen more often than that is
    still there.
    """

    def __init__(self, n_tokens: int, limit: int) -> None:
        self._n_tokens, self._limit = n_tokens, limit
        self._keys = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)
        self._waiting: list[NDArray[np.int64]] = []
        self._n_waiting = 0
        self.error = 0

    def add(self, latents: Int[Tensor, " active"], tokens: Int[Tensor, " active"]) -> None:
        """Count one token for each latent."""
        self._waiting.append((latents * self._n_tokens + tokens).cpu().numpy())
        self._n_waiting += len(latents)
        if self._n_waiting > self._limit:
            self._merge()

    def _merge(self) -> None:
        found, counts = np.unique(np.concatenate(self._waiting), return_counts=True)
        self._waiting, self._n_waiting = [], 0
        keys = np.concatenate([self._keys, found])
        counts = np.concatenate([self._counts, counts])
        self._keys, place = np.unique(keys, return_inverse=True)
        # Counts are far below 2**53, which floats hold exactly.
        self._counts = np.bincount(place, weights=counts).astype(np.int64)
        while len(self._keys) > self._limit:
            least = int(self._counts.min())
            # What was dropped before can have come again: bounds add up.
            self.error += least
            kept = self._counts > least
            self._keys, self._counts = self._keys[kept], self._counts[kept]

    def most(self, number: int) -> list[list[tuple[int, int]]]:
        """Per latent, as far as there are counts, the most frequent (token, count)."""
        if self._waiting:
            self._merge()
        latents, tokens = np.divmod(self._keys, self._n_tokens)
        order = np.lexsort((tokens, -self._counts, latents))
        latents, tokens, counts = latents[order], tokens[order], self._counts[order]
        size = int(latents.max()) + 1 if len(latents) else 0
        starts = np.searchsorted(latents, np.arange(size + 1))
        return [
            [
                (int(tokens[i]), int(counts[i]))
                for i in range(starts[k], min(starts[k] + number, starts[k + 1]))
            ]
            for k in range(size)
        ]


@dataclass(frozen=True)
class Batch:
    """Whole contexts. tokens: [context, position], padded at the end; lengths; context, document:
    numbers of them in the corpus."""

    tokens: Int[Tensor, "context position"]
    lengths: Int[Tensor, " context"]
    number: Int[Tensor, " context"]
    document: Int[Tensor, " context"]


@dataclass
class Examples:
    """The strongest examples of every latent: at most one a context.

    value: [latent, rank], 0 where there are fewer. number, document: of the context. position: of
    the strongest token. tokens, activations: [latent, rank, window], around it; token -1 where the
    context ends.
    """

    value: Float[Tensor, "latent rank"]
    number: Int[Tensor, "latent rank"]
    document: Int[Tensor, "latent rank"]
    position: Int[Tensor, "latent rank"]
    tokens: Int[Tensor, "latent rank window"]
    activations: Float[Tensor, "latent rank window"]

    @classmethod
    def empty(cls, latents: int, ranks: int, window: int) -> Examples:
        """No examples yet."""
        whole = torch.zeros(latents, ranks, dtype=torch.long)
        shape = (latents, ranks, window)
        return cls(
            torch.zeros(latents, ranks),
            whole.clone(),
            whole.clone(),
            whole.clone(),
            torch.full(shape, -1, dtype=torch.int32),
            torch.zeros(shape),
        )


@dataclass
class Tally:
    """What is known of one SAE's latents so far.

    before, after: tokens of context kept on each side of an example.
    skip: positions at the beginning of each context that are left out. With 0, examples are single
        ones, and no tokens before them are counted.
    """

    d_sae: int
    n_tokens: int
    ranks: int = 10
    before: int = 16
    after: int = 7
    limit: int = 4_000_000
    skip: int = 1
    positions: int = 0
    active: NDArray[np.int64] = field(init=False)
    total: NDArray[np.floating] = field(init=False)
    largest: NDArray[np.floating] = field(init=False)
    histogram: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.active = np.zeros(self.d_sae, dtype=np.int64)
        self.total, self.largest = np.zeros(self.d_sae), np.zeros(self.d_sae)
        self.histogram = np.zeros((self.d_sae, BINS), dtype=np.int64)
        self.examples = Examples.empty(self.d_sae, self.ranks, self.before + 1 + self.after)
        self.at = TokenCounts(self.n_tokens, self.limit)
        self.ahead = TokenCounts(self.n_tokens, self.limit)

    def add(self, batch: Batch, dense: Float[Tensor, "context position latent"]) -> None:
        """Take in all latents of a batch; the first `skip` positions and the padding are left
        out."""
        length = batch.tokens.shape[1]
        real = torch.arange(length)[None] < batch.lengths[:, None]
        real[:, : self.skip] = False
        self.positions += int(real.sum())
        # Masked, not multiplied: what an SAE makes of padding may not even be a number.
        masked = dense.masked_fill(~real[:, :, None].to(dense.device), 0.0)
        context, position, latent = masked.nonzero(as_tuple=True)
        value = dense[context, position, latent]
        context, position, latent, value = (x.cpu() for x in (context, position, latent, value))
        wide = value.double().numpy()
        self.active += np.bincount(latent.numpy(), minlength=self.d_sae)
        self.total += np.bincount(latent.numpy(), weights=wide, minlength=self.d_sae)
        np.maximum.at(self.largest, latent.numpy(), wide)
        bins = np.clip(np.searchsorted(EDGES, wide, side="right") - 1, 0, BINS - 1)
        flat = np.bincount(latent.numpy() * BINS + bins, minlength=self.d_sae * BINS)
        self.histogram += flat.reshape(self.d_sae, BINS)
        self.at.add(latent, batch.tokens[context, position])
        if self.skip:
            self.ahead.add(latent, batch.tokens[context, position - 1])
        self._keep_strongest(batch, dense, context, position, latent, value)

    def _keep_strongest(
        self,
        batch: Batch,
        dense: Tensor,
        context: Tensor,
        position: Tensor,
        latent: Tensor,
        value: Tensor,
    ) -> None:
        old = self.examples
        close = value > old.value[latent, -1]
        context, position, latent, value = (x[close] for x in (context, position, latent, value))
        # Of each latent in each context the strongest, the first of equals.
        order = _sorted(position, -value, context, latent)
        context, position, latent, value = (x[order] for x in (context, position, latent, value))
        first = torch.ones(len(latent), dtype=torch.bool)
        first[1:] = (latent[1:] != latent[:-1]) | (context[1:] != context[:-1])
        context, position, latent, value = (x[first] for x in (context, position, latent, value))
        # The new ones against those held; of equals the earlier context, so older ones first.
        touched = latent.unique()
        held = touched.repeat_interleave(self.ranks)
        rank = torch.arange(self.ranks).repeat(len(touched))
        everyone = torch.cat([held, latent])
        values = torch.cat([old.value[held, rank], value])
        numbers = torch.cat([old.number[held, rank], batch.number[context]])
        order = _sorted(numbers, -values, everyone)
        starts = torch.searchsorted(everyone[order].contiguous(), touched)
        taken = order[starts[:, None] + torch.arange(self.ranks)]
        fresh = taken >= len(held)
        source = (taken - len(held)).clamp(min=0)
        kept = rank[taken.clamp(max=len(held) - 1)]

        def merge(before: Tensor, new: Tensor) -> Tensor:
            was = before[touched[:, None], kept]
            shape = fresh if was.dim() == 2 else fresh[..., None]
            return torch.where(shape, new.to(was.dtype), was)

        if not len(touched):
            return
        c, p = context[source], position[source]
        window = p[..., None] + torch.arange(-self.before, self.after + 1)
        inside = (window >= 0) & (window < batch.lengths[c][..., None])
        where = window.clamp(0, batch.tokens.shape[1] - 1)
        tokens = torch.where(inside, batch.tokens[c[..., None], where], -1)
        spread = dense.cpu()[c[..., None], where, touched[:, None, None]]
        spread = torch.where(inside & (window >= self.skip), spread, 0.0)
        old.tokens[touched] = merge(old.tokens, tokens)
        old.activations[touched] = merge(old.activations, spread)
        old.number[touched] = merge(old.number, batch.number[c])
        old.document[touched] = merge(old.document, batch.document[c])
        old.position[touched] = merge(old.position, p)
        old.value[touched] = merge(old.value, value[source])


def _sorted(*keys: Tensor) -> Tensor:
    """The order by the last key, then the one before it, ..., as numpy's lexsort."""
    return torch.from_numpy(np.lexsort([k.numpy() for k in keys]))
