"""The null of links: layers shuffled between answers, and everything done again.

What is tested is a pair: a latent of one site and one of a later site. Its statistic is the sum of
the scores of all its links, of whatever kind, over all answers and tokens.

What is exchanged: the sets of a site, at all tokens of an answer together, between answers with as
many tokens (and with the same label, under `within`), each site by itself. So in a shuffled world a
site has the same sets as before, of the same sizes, at the same place from the end of the prompt
on, but of other answers than the sites before it; and every step of link.py, with its choice of the
best of k, is done again. Whole groups are exchanged, because answers of a group resemble each
other: exactly where groups are of one size, else answers of the other group are repeated or left
out.

p = (1 + worlds with a sum at least as large) / (1 + worlds). It is exact for the hypothesis that
which set the later site has does not depend on which set the earlier one has. Two latents that are
active everywhere are linked as often in shuffled worlds: p is about 1, the link is not specific. A
pair of latents that occur together in a third of the answers is found, though a single link of it
would be no surprise.

Which pairs are tested depends on nothing that is shuffled: those whose decoder rows are similar
enough for the least score, and each of which occurs in `rare` groups. All of them count in q,
linked or not: only to count linked ones would choose by what is tested, and the rate would not
hold. Links of rarer pairs cannot be tested, have no p, and are not kept.

The rate (Benjamini and Hochberg 1995): of the pairs kept, a share of at most `level` is expected to
be false. Where all layers are shuffled every pair is false; then a run keeps any link at all with a
probability of at most `level`, and the expected share of links kept is at most `level` too. For
gaps the p is cautious: shuffled worlds have more latents without a link at the site between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control
from tqdm import tqdm

from circuits.labelled import Labelled
from circuits.tracks.link import KINDS, Linker, Links, Similar
from circuits.tracks.plan import TrackError, TrackPlan
from circuits.tracks.read import Nodes

_LOOKED = 20  # worlds whose similarities are kept
_TIE = 1e-9  # sums whose order differs are equal up to rounding


class Exchange:
    """Draws which answer's sets stand in for which. counts: tokens of every answer.

    Raises `TrackError` where a label of `within` is missing, or nothing can be exchanged.
    """

    def __init__(
        self, counts: Sequence[int], answers: Sequence[Labelled], within: str | None
    ) -> None:
        self._first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
        self._answer = np.repeat(np.arange(len(answers)), counts)
        self._place = np.arange(len(self._answer)) - self._first[self._answer]
        labels = ["" if within is None else str(a.target(within)) for a in answers]
        strata: dict[tuple[int, str], list[int]] = {}
        for i, label in enumerate(labels):
            strata.setdefault((int(counts[i]), label), []).append(i)
        self._strata = [_Stratum.of(np.array(s), answers) for s in strata.values()]
        self.fixed = sum(len(s.answer) for s in self._strata if len(s.size) == 1)
        self.uneven = sum(len(s.answer) for s in self._strata if len(set(s.size)) > 1)
        if self.fixed == len(answers):
            raise TrackError(
                "no two groups of answers have equally many tokens"
                + (f" and the same {within}" if within else "")
                + ": layers cannot be shuffled. Take more answers, or positions of which every "
                "answer has as many, such as last:1."
            )

    def cells(self, rng: np.random.Generator) -> Int[np.ndarray, " cell"]:
        """For each cell, the one whose sets it gets."""
        donor = np.arange(len(self._first))
        for stratum in self._strata:
            donor[stratum.answer] = stratum.drawn(rng)
        return self._first[donor[self._answer]] + self._place


@dataclass(frozen=True)
class _Stratum:
    """Answers that may be exchanged, group by group. group: number of each one's; within: its
    number in it; start, size: of the groups."""

    answer: np.ndarray
    group: np.ndarray
    within: np.ndarray
    start: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray, answers: Sequence[Labelled]) -> _Stratum:
        _, codes = np.unique([answers[i].group for i in numbers], return_inverse=True)
        order = np.argsort(codes, kind="stable")
        codes, size = codes[order], np.bincount(codes)
        start = np.concatenate([[0], np.cumsum(size)[:-1]])
        return cls(numbers[order], codes, np.arange(len(codes)) - start[codes], start, size)

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        other = rng.permutation(len(self.size))[self.group]
        shift = rng.integers(0, self.size.max(), len(self.size))[self.group]
        shift = np.where(self.size[other] > 1, shift, 0)
        return self.answer[self.start[other] + (self.within + shift) % self.size[other]]


@dataclass(frozen=True, eq=False)
class Null:
    """What the null says.

    pairs: `site, latent, to_site, to_latent` (numbers of sites), `similarity, links, sum,
        shuffled` (mean sum of shuffled worlds), `p, q, kept`; all that were tested, linked or not.
    pair: of every link its row there, -1 where it is too rare.
    layers: `site, to_site, similarity, similarity_shuffled` (median over earlier nodes of the
        largest cosine with what stands at the later site), `links, links_shuffled, kept, pairs,
        pairs_kept`.
    """

    pairs: pd.DataFrame
    pair: Int[np.ndarray, " link"]
    layers: pd.DataFrame
    facts: dict[str, Any]

    @property
    def kept(self) -> Bool[np.ndarray, " link"]:
        """Which links are kept."""
        return self.of("kept", False).astype(bool)

    def of(self, column: str, missing: Any) -> np.ndarray:
        """A column of `pairs` for each link."""
        if self.pairs.empty:
            return np.full(len(self.pair), missing)
        return np.where(self.pair >= 0, self.pairs[column].to_numpy()[self.pair], missing)


def shuffle_test(
    nodes: Nodes,
    links: Links,
    similar: Similar,
    answers: Sequence[Labelled],
    plan: TrackPlan,
    *,
    progress: bool = True,
) -> Null:
    """p, q and what is kept, of links that `Linker` made of these nodes."""
    counts = np.bincount(nodes.answer, minlength=len(answers)).tolist()
    exchange = Exchange(counts, answers, plan.within)
    number = similar.numbers(nodes)
    base = max(len(k) for k in similar.known)
    pairs, keys = _candidates(nodes, similar, number, answers, plan, base)
    order = np.argsort(keys)
    pairs, keys = pairs.iloc[order].reset_index(drop=True), keys[order]
    pair = _places(keys, _keys(links, number, base))
    seen = _sums(links, pair, len(keys))
    least = seen - _TIE * np.maximum(1, seen)
    above, mean = np.zeros(len(keys)), np.zeros(len(keys))
    rng = np.random.default_rng(plan.seed)
    made, near = np.zeros((len(nodes.sites),) * 2), {}
    worlds = range(plan.permutations)
    for world in tqdm(worlds, desc="shuffling layers", unit="world", disable=not progress):
        donors = np.stack([exchange.cells(rng) for _ in nodes.sites])
        mixed = nodes.shuffled(donors)
        found = Linker(mixed, similar, plan).links()
        numbers = number[np.arange(len(nodes.sites))[:, None], donors]
        sums = _sums(found, _places(keys, _keys(found, numbers, base)), len(keys))
        above += sums >= least
        mean += sums / plan.permutations
        np.add.at(made, (found.site, found.to_site), 1 / plan.permutations)
        if world < _LOOKED:
            for (s, t), values in _nearest(numbers, similar).items():
                near.setdefault((s, t), []).append(values)
    p = (1 + above) / (1 + plan.permutations)
    q = np.asarray(false_discovery_control(p)) if len(p) else p
    counts = np.bincount(pair[pair >= 0], minlength=len(keys))
    # A pair without a link has p = 1; q may be at most the level only where nearly all are kept.
    kept = (q <= plan.level) & (counts > 0)
    pairs = pairs.assign(links=counts, sum=seen, shuffled=mean, p=p, q=q, kept=kept)
    facts = {
        "pairs_tested": len(pairs),
        "pairs_linked": int((counts > 0).sum()),
        "pairs_kept": int(kept.sum()),
        "links": len(links),
        "links_rare": int((pair < 0).sum()),
        "links_kept": int(kept[pair[pair >= 0]].sum()),
        "links_shuffled": float(made.sum()),
        "kinds": {k: int((links.kind == i).sum()) for i, k in enumerate(KINDS)},
        "smallest_p": 1 / (1 + plan.permutations),
        "answers_not_exchanged": exchange.fixed,
        "answers_of_uneven_groups": exchange.uneven,
    }
    layers = _layers(nodes, links, pairs, pair, made, _nearest(number, similar), near)
    return Null(pairs, pair, layers, facts)


def _candidates(
    nodes: Nodes,
    similar: Similar,
    number: np.ndarray,
    answers: Sequence[Labelled],
    plan: TrackPlan,
    base: int,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Pairs that are tested, with their keys."""
    _, groups = np.unique([a.group for a in answers], return_inverse=True)
    group = groups[nodes.answer]
    often = []
    for known, mine in zip(similar.known, number, strict=True):
        cell, slot = (mine >= 0).nonzero()
        both = np.unique(np.stack([mine[cell, slot], group[cell]]), axis=1)
        often.append(np.bincount(both[0], minlength=len(known)) >= plan.rare)
    parts, keys = [], []
    for (s, t), cosine in similar.cosine.items():
        fine = (cosine >= plan.least_cosine - 1e-12) & often[s][:, None] & often[t][None]
        e, later = fine.nonzero()
        parts.append(
            pd.DataFrame(
                {
                    "site": s,
                    "latent": similar.known[s][e],
                    "to_site": t,
                    "to_latent": similar.known[t][later],
                    "similarity": cosine[e, later],
                }
            )
        )
        keys.append(_key(s, t, e, later, base))
    return pd.concat(parts, ignore_index=True), np.concatenate(keys)


def _key(s: Any, t: Any, e: Any, later: Any, base: int) -> Any:
    """A pair as one number; t is s + 1 or s + 2."""
    return ((s * 2 + (t - s - 1)) * base + e) * base + later


def _keys(links: Links, number: np.ndarray, base: int) -> np.ndarray:
    e = number[links.site, links.cell, links.slot]
    later = number[links.to_site, links.to_cell, links.to_slot]
    return _key(links.site, links.to_site, e, later, base)


def _places(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted key stands, -1 where it does not."""
    if not len(keys):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _sums(links: Links, pair: np.ndarray, count: int) -> Float[np.ndarray, " pair"]:
    known = pair >= 0
    return np.bincount(pair[known], weights=links.score[known], minlength=count)


def _nearest(number: np.ndarray, similar: Similar) -> dict[tuple[int, int], np.ndarray]:
    """Of every node the largest cosine with a node of the next site at its cell."""
    found = {}
    for (s, t), cosine in similar.cosine.items():
        if t == s + 1:
            values = cosine[number[s][:, :, None], number[t][:, None, :]]
            values = np.where((number[t] >= 0)[:, None, :], values, -np.inf).max(2)
            found[s, t] = values[(number[s] >= 0) & np.isfinite(values)]
    return found


def _layers(
    nodes: Nodes,
    links: Links,
    pairs: Any,
    pair: np.ndarray,
    made: np.ndarray,
    near: dict[tuple[int, int], np.ndarray],
    shuffled: dict[tuple[int, int], list[np.ndarray]],
) -> pd.DataFrame:
    kept = np.zeros(len(links), dtype=bool)
    kept[pair >= 0] = pairs["kept"].to_numpy()[pair[pair >= 0]]
    rows = []
    for s in range(len(nodes.sites)):
        for t in (s + 1, s + 2):
            if t >= len(nodes.sites):
                continue
            mine = (links.site == s) & (links.to_site == t)
            ours = (pairs["site"] == s) & (pairs["to_site"] == t)
            ends = near.get((s, t)), np.concatenate(shuffled.get((s, t), [np.empty(0)]))
            medians = [float(np.median(x)) if x is not None and len(x) else np.nan for x in ends]
            rows.append(
                {
                    "site": str(nodes.sites[s]),
                    "to_site": str(nodes.sites[t]),
                    "similarity": medians[0],
                    "similarity_shuffled": medians[1],
                    "links": int(mine.sum()),
                    "links_shuffled": float(made[s, t]),
                    "kept": int(kept[mine].sum()),
                    "pairs": int(ours.sum()),
                    "pairs_kept": int((ours & pairs["kept"]).sum()),
                }
            )
    return pd.DataFrame(rows)
