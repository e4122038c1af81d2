"""Numbers of an answer's tracks.

At a token, w is a node's share of the strengths of the nodes of its site, and m a track's share of
all: the sum of w over the track's nodes there, divided by the number of sites; the m of a token
sum to 1. Each metric is computed at every token of the answer that has a node and averaged over
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from circuits.tracks.chains import Chains
from circuits.tracks.link import GAP
from circuits.tracks.plan import TrackError
from circuits.tracks.read import Nodes

_CONSTANT = 1e-9


class ConstantMetric(TrackError):
    """A metric that is the same for all answers."""


@dataclass(frozen=True, eq=False)
class Token:
    """The nodes of one token.

    weight: w, 0 where there is no node. track: -1 there. length: of every node's track, in nodes
    (at all tokens). going, coming: whether its track goes on after it, and was there before. links:
    of any kind but gaps that lead on from here; pairs: of nodes that one could join.
    """

    weight: Float[np.ndarray, "site slot"]
    track: Int[np.ndarray, "site slot"]
    length: Int[np.ndarray, "site slot"]
    going: Bool[np.ndarray, "site slot"]
    coming: Bool[np.ndarray, "site slot"]
    links: int
    pairs: int

    @property
    def masses(self) -> Float[np.ndarray, " track"]:
        """m of every track, the largest first."""
        there = self.track >= 0
        _, codes = np.unique(self.track[there], return_inverse=True)
        found = np.bincount(codes, weights=self.weight[there]) / len(self.weight)
        return np.sort(found)[::-1]


def entropy(token: Token) -> float:
    """-sum m ln m / ln(nodes): 0, one track has all; 1, no two nodes are of one track, and all are
    equally strong. 0 with one node."""
    m, nodes = token.masses, int((token.track >= 0).sum())
    m = m[m > 0]
    return float(-(m * np.log(m)).sum() / np.log(nodes)) if nodes > 1 else 0.0


def churn(token: Token) -> float:
    """Mean over neighbouring sites of half the w of tracks that end at the earlier one plus half
    the w of those that begin at the later one: 0, all tracks go on; 1, none does."""
    ends = (token.weight * ~token.going).sum(1)[:-1]
    begins = (token.weight * ~token.coming).sum(1)[1:]
    return float((ends + begins).mean() / 2)


def competition(token: Token) -> float:
    """The second largest m over the largest: 0, there is one track; 1, two are equally strong."""
    m = token.masses
    return float(m[1] / m[0]) if len(m) > 1 else 0.0


def stability(token: Token) -> float:
    """Mean over sites of the sum of w times the length of the node's track over the number of
    sites: 1 / sites, no node is linked; 1, all tracks are at all sites."""
    sites = len(token.weight)
    return float((token.weight * token.length).sum() / sites**2)


def dominance(token: Token) -> float:
    """The largest m: near 0, all tracks are weak; 1, one has all."""
    return float(token.masses[0])


def density(token: Token) -> float:
    """Links, splits and merges over the pairs of nodes of neighbouring sites that they could join:
    0, there are none; 1, everything is joined."""
    return token.links / token.pairs if token.pairs else 0.0


@dataclass(frozen=True)
class Metric:
    """function: of a token. range: smallest and largest value. what: one line."""

    function: Callable[[Token], float]
    range: str
    what: str


METRICS: Mapping[str, Metric] = {
    "entropy": Metric(
        entropy, "0 to 1", "entropy of the strengths of tracks over the logarithm of nodes"
    ),
    "churn": Metric(churn, "0 to 1", "strength of tracks that end or begin between two sites"),
    "competition": Metric(competition, "0 to 1", "second strongest track over the strongest"),
    "stability": Metric(
        stability, "1 / sites to 1", "length of tracks over sites, weighted by strength"
    ),
    "dominance": Metric(dominance, "above 0 to 1", "share of the strongest track"),
    "density": Metric(density, "0 to 1", "links over pairs of nodes that could be linked"),
}


def metric_table(nodes: Nodes, made: Chains, ids: list[str]) -> pd.DataFrame:
    """`answer` and one column a metric, those that are constant among them. Every answer must have
    a node."""
    some = np.asarray(nodes.present.any((0, 2)))
    every = tokens_of(nodes, made)
    tokens = [every[c] for c in np.flatnonzero(some)]
    table = pd.DataFrame({n: [m.function(t) for t in tokens] for n, m in METRICS.items()})
    means: Any = table.groupby(nodes.answer[some], sort=True).mean()
    means.insert(0, "answer", ids)
    return means.reset_index(drop=True)


def constants(table: pd.DataFrame) -> dict[str, float]:
    """Metrics that are the same for all answers, with their value."""
    values = {n: table[n].to_numpy(dtype=float) for n in METRICS if n in table}
    return {n: float(v[0]) for n, v in values.items() if len(v) and np.ptp(v) <= _CONSTANT}


def refuse(constant: Mapping[str, float], answers: int) -> None:
    """Raise `ConstantMetric` that names metrics which say nothing."""
    if constant:
        told = ", ".join(f"{name} (always {value:.4g})" for name, value in constant.items())
        raise ConstantMetric(
            f"constant over all {answers} answers: {told}. Such a number says nothing of an "
            "answer. Take more latents (--k), a lower --least, or --links all, or leave it out."
        )


def tokens_of(nodes: Nodes, made: Chains) -> list[Token]:
    """The nodes of every cell."""
    length = np.bincount(made.track[made.track >= 0], minlength=made.count)
    lengths = np.where(made.track >= 0, length[made.track], 0)
    whole = nodes.strength.sum(2, keepdims=True)
    weight = np.divide(nodes.strength, whole, out=np.zeros_like(nodes.strength), where=whole > 0)
    near = made.links.kind != GAP
    links = np.bincount(made.links.cell[near], minlength=len(nodes.cells))
    counts = nodes.present.sum(2)
    pairs = np.zeros(len(nodes.cells), dtype=np.int64)
    for later in nodes.later:
        there = later >= 0
        pairs[there] += (counts[:-1, there] * counts[1:, later[there]]).sum(0)
    return [
        Token(
            weight[:, c],
            made.track[:, c],
            lengths[:, c],
            made.going[:, c],
            made.coming[:, c],
            int(links[c]),
            int(pairs[c]),
        )
        for c in range(len(nodes.cells))
    ]
