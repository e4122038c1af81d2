"""Links between the latents of sites: one to one, then over a gap, then splits and merges.

1. At every cell (a token of an answer) the latents of a site are assigned to those of the next one,
   one to one, so that the sum of scores is largest (the Hungarian method); only pairs whose score
   is at least `least` count. With a reach, what is left over is then assigned to what is left over
   one position later, and so on: the nearest position first.
2. A latent that goes on nowhere is assigned in the same way to one of the next site but one that
   comes from nowhere: the gap of one site is bridged (hysteresis).
3. A latent that comes from nowhere still is a split of the latent with the best score, if that is
   at least `branch` and it goes on elsewhere; one that goes on nowhere is merged into the best one
   that comes from elsewhere. Both stay within the reach.

Every assignment is between two sets of at most k, and there are cells x sites x (reach + 2) of them
at most: time is linear in positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment

from circuits.saes import SaeSet
from circuits.tracks.plan import TrackPlan
from circuits.tracks.read import Nodes

KINDS = ("link", "gap", "split", "merge")
LINK, GAP, SPLIT, MERGE = range(4)


@dataclass(frozen=True, eq=False)
class Links:
    """site, cell and slot of the earlier and of the later latent; kind: place in `KINDS`;
    similarity: cosine of the decoder rows."""

    site: Int[np.ndarray, " link"]
    cell: Int[np.ndarray, " link"]
    slot: Int[np.ndarray, " link"]
    to_site: Int[np.ndarray, " link"]
    to_cell: Int[np.ndarray, " link"]
    to_slot: Int[np.ndarray, " link"]
    kind: Int[np.ndarray, " link"]
    score: Float[np.ndarray, " link"]
    similarity: Float[np.ndarray, " link"]

    def __len__(self) -> int:
        return len(self.site)

    def part(self, which: Bool[np.ndarray, " link"]) -> Links:
        """Some of them."""
        return Links(*(getattr(self, f.name)[which] for f in fields(self)))


@dataclass(frozen=True, eq=False)
class Similar:
    """Cosines between the decoder rows of the latents that occur, at sites up to two apart.

    known: latents that occur at each site, ascending. cosine: by (site, later site).
    """

    known: tuple[Int[np.ndarray, " _"], ...]
    cosine: dict[tuple[int, int], Float[np.ndarray, "_ _"]]

    @classmethod
    def of(cls, nodes: Nodes, saes: SaeSet) -> Similar:
        """Of the nodes' latents."""
        known, rows = [], []
        for site, latent in zip(nodes.sites, nodes.latent, strict=True):
            there = np.unique(latent[latent >= 0])
            found = saes[site].rows[there.tolist()].double().cpu().numpy()
            size = np.linalg.norm(found, axis=1, keepdims=True)
            known.append(there)
            rows.append(found / np.where(size > 0, size, 1))
        last = len(rows)
        pairs = [(s, t) for s in range(last) for t in (s + 1, s + 2) if t < last]
        return cls(tuple(known), {(s, t): rows[s] @ rows[t].T for s, t in pairs})

    def numbers(self, nodes: Nodes) -> Int[np.ndarray, "site cell slot"]:
        """The place of every node's latent in `known`, -1 where there is none."""
        found = [np.searchsorted(k, lat) for k, lat in zip(self.known, nodes.latent, strict=True)]
        return np.where(nodes.present, np.stack(found), -1)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of latents that may be linked. One row each."""

    cell: np.ndarray
    slot: np.ndarray
    to_cell: np.ndarray
    to_slot: np.ndarray
    score: np.ndarray
    similarity: np.ndarray

    def part(self, which: np.ndarray) -> _Pairs:
        return _Pairs(*(getattr(self, f.name)[which] for f in fields(self)))


class Linker:
    """Links nodes under a plan. similar: of these nodes' latents, or of more."""

    def __init__(self, nodes: Nodes, similar: Similar, plan: TrackPlan) -> None:
        self._nodes, self._similar, self._plan = nodes, similar, plan
        self._number = similar.numbers(nodes)
        self._size = nodes.latent.shape[2]

    def links(self) -> Links:
        """All of them, in the order of the module's steps."""
        last = len(self._nodes.sites) - 1
        out, inn = (np.zeros(self._nodes.latent.shape, dtype=bool) for _ in range(2))
        near = {
            (s, d): self.pairs(s, s + 1, d)
            for s in range(last)
            for d in range(self._plan.reach + 1)
        }
        made: list[tuple[int, int, int, _Pairs]] = []
        for (s, _), pairs in near.items():
            made.append((LINK, s, s + 1, self._assigned(pairs, out[s], inn[s + 1])))
        for s in range(last - 1):
            pairs = self.pairs(s, s + 2, 0)
            made.append((GAP, s, s + 2, self._assigned(pairs, out[s], inn[s + 2])))
        going, coming = out.copy(), inn.copy()
        for (s, _), pairs in near.items():
            strong = pairs.part(pairs.score >= self._plan.branch)
            fresh = going[s][strong.cell, strong.slot] & ~inn[s + 1][strong.to_cell, strong.to_slot]
            made.append((SPLIT, s, s + 1, self._best(strong.part(fresh), inn[s + 1], True)))
            ends = ~out[s][strong.cell, strong.slot] & coming[s + 1][strong.to_cell, strong.to_slot]
            made.append((MERGE, s, s + 1, self._best(strong.part(ends), out[s], False)))
        return _together(made)

    def pairs(self, s: int, t: int, distance: int) -> _Pairs:
        """All pairs of site s and, so many positions later, site t that score `least` or more."""
        nodes, plan = self._nodes, self._plan
        later = nodes.later[distance]
        rows = np.flatnonzero(later >= 0)
        a, b = self._number[s][rows], self._number[t][later[rows]]
        cosine = self._similar.cosine[s, t][a[:, :, None], b[:, None, :]]
        # Most pairs cannot reach the least score, whatever their activations.
        near = cosine >= plan.least_cosine - 1e-12
        near &= (a >= 0)[:, :, None] & (b >= 0)[:, None, :]
        i, slot, to_slot = near.nonzero()
        cell, to_cell = rows[i], later[rows[i]]
        one, two = nodes.share[s][cell, slot], nodes.share[t][to_cell, to_slot]
        similarity = cosine[i, slot, to_slot]
        closeness = np.minimum(one, two) / np.maximum(one, two)
        score = plan.score(similarity, closeness) - plan.distance * distance
        found = _Pairs(cell, slot, to_cell, to_slot, score, similarity)
        return found.part(score >= plan.least)

    def _assigned(self, pairs: _Pairs, out: np.ndarray, inn: np.ndarray) -> _Pairs:
        """One to one among those that are free; marks them as taken."""
        free = ~out[pairs.cell, pairs.slot] & ~inn[pairs.to_cell, pairs.to_slot]
        pairs = pairs.part(free)
        chosen, rest = _stars(pairs, len(out) * self._size, self._size)
        worth = np.zeros((self._size, self._size))
        place = np.zeros((self._size, self._size), dtype=np.int64)
        for part in _by_cell(rest, pairs.cell):
            at = pairs.slot[part], pairs.to_slot[part]
            worth[at], place[at] = pairs.score[part], part
            taken = linear_sum_assignment(worth, maximize=True)
            chosen[place[taken][worth[taken] > 0]] = True
            worth[at] = 0
        found = pairs.part(chosen)
        out[found.cell, found.slot] = True
        inn[found.to_cell, found.to_slot] = True
        return found

    def _best(self, pairs: _Pairs, taken: np.ndarray, later: bool) -> _Pairs:
        """Of each later (or earlier) latent the best pair; marks it as taken."""
        cell, slot = (pairs.to_cell, pairs.to_slot) if later else (pairs.cell, pairs.slot)
        found = pairs.part(_first_best(cell * self._size + slot, pairs.score))
        if later:
            taken[found.to_cell, found.to_slot] = True
        else:
            taken[found.cell, found.slot] = True
        return found


def _first_best(key: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Where the largest score of every key stands, the first one among equals; ascending."""
    order = np.lexsort((-score, key))
    _, first = np.unique(key[order], return_index=True)
    return np.sort(order[first])


def _stars(pairs: _Pairs, count: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(mask of pairs that are taken at once, numbers of those that have to be assigned).

    Where all pairs of a later latent are with earlier ones that have no other pair, the best of
    them is what an assignment would take; and the reverse. count: of earlier latents in all cells.
    """
    left, right = pairs.cell * k + pairs.slot, pairs.to_cell * k + pairs.to_slot
    single = [np.bincount(side, minlength=count)[side] == 1 for side in (left, right)]
    chosen = np.zeros(len(left), dtype=bool)
    simple = chosen.copy()
    for side, other in ((left, single[1]), (right, single[0])):
        busy = np.bincount(side[~other], minlength=count) > 0
        star = np.flatnonzero(~busy[side])
        chosen[star[_first_best(side[star], pairs.score[star])]] = True
        simple[star] = True
    return chosen, np.flatnonzero(~simple)


def _by_cell(which: np.ndarray, cell: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of `which` that are of one cell."""
    if not len(which):
        return
    order = which[np.argsort(cell[which], kind="stable")]
    yield from np.split(order, np.flatnonzero(np.diff(cell[order])) + 1)


def _together(made: list[tuple[int, int, int, _Pairs]]) -> Links:
    columns = []
    for kind, s, t, pairs in made:
        n = len(pairs.cell)
        numbers = [np.full(n, x) for x in (s, t, kind)]
        columns.append(
            (
                *(numbers[0], pairs.cell, pairs.slot, numbers[1], pairs.to_cell, pairs.to_slot),
                *(numbers[2], pairs.score, pairs.similarity),
            )
        )
    return Links(*(np.concatenate(part) for part in zip(*columns, strict=True)))
