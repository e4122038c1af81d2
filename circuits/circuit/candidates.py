"""From an attribution to circuits: nodes by the size of their mean effect, and ladders of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from circuits.attribute import Attribution
from circuits.circuit.evaluate import Places
from circuits.circuit.references import CircuitError
from circuits.circuit.selections import ROLES, NodeTable, Selections
from circuits.metrics import Summary, bootstrap_weights, summarise_mean
from circuits.prompts import Alignment, PromptPairs
from circuits.sites import Site, forward_order

# Shares of all nodes that were seen, as in the MIB benchmark (Mueller et al. 2025). The last one is
# everything there is, seen or not.
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_RESAMPLES = 200


@dataclass(frozen=True)
class Candidates:
    """All nodes with an effect, the strongest first.

    table: the nodes. effect, clean, corrupted: means over the pairs, in the table's order; of
        coefficients over those pairs that have begun to differ at the position.
    pair, node, value: effects of each pair, sparse: positions in `pairs` and in the table.
    pairs: the pairs of the attribution that were used. places: what their tokens stand for.
    """

    table: NodeTable
    effect: Float[np.ndarray, " node"]
    clean: Float[np.ndarray, " node"]
    corrupted: Float[np.ndarray, " node"]
    pair: NDArray[np.int64]
    node: NDArray[np.int64]
    value: NDArray[np.float64]
    pairs: tuple[int, ...]
    places: Places

    def __len__(self) -> int:
        return len(self.table)

    @classmethod
    def of(
        cls, found: Attribution, *, summed: bool = False, alignment: Alignment | None = None
    ) -> Candidates:
        """The nodes of an attribution.

        summed: effects are added up over positions, and all pairs are used. Otherwise positions are
            kept, of the largest group of pairs that line up, or of `alignment`. Nodes at position 0
            are left out: it is never ablated.
        Raises `CircuitError` where there are no latents or errors.
        """
        prompts = found.prompts
        chosen = alignment or prompts.alignments()[0]
        used = tuple(range(len(prompts))) if summed else chosen.pairs
        scores: Any = found.scores
        scores = scores[scores["role"].isin(ROLES) & (scores["position"] > 0)]
        scores = scores[scores["pair"].isin(used)]
        if not len(scores):
            raise CircuitError(
                "the attribution has no effects of latents or errors: make it with SAEs."
            )
        places = Places(True)
        if not summed:
            names = prompts.names_at(chosen)
            marks = tuple((name, position) for position, name in names.items())
            places = Places(False, chosen.template, chosen.length, marks)
        sites = forward_order(Site.parse(str(name)) for name in found.record["sites"])
        return _ranked(scores, sites, used, summed, places, _counts(prompts, used))

    def top(self, counts: Sequence[int]) -> Bool[np.ndarray, "circuit node"]:
        """The strongest so many, for each count."""
        return np.arange(len(self))[None] < np.asarray(counts)[:, None]

    def ladder(self, sizes: Sequence[float] = SIZES) -> tuple[list[int], Selections]:
        """Circuits of these shares of all nodes and their sizes; 1 is everything there is."""
        counts = [max(1, round(size * len(self))) for size in sizes]
        rest = np.array([size >= 1 for size in sizes])
        return counts, Selections(self.table, self.top(counts), rest, ("chosen",) * len(sizes))

    def count(self, threshold: float) -> int:
        """How many have an effect of at least this size."""
        found = int((np.abs(self.effect) >= threshold).sum())
        if not found:
            raise CircuitError(
                f"no node has an effect of {threshold:g} or more: the largest is "
                f"{float(np.abs(self.effect).max()):.3g}. Give a lower threshold."
            )
        return found

    def intervals(self, count: int) -> Summary:
        """Mean effects of the strongest `count` with their bootstrap intervals over pairs."""
        values = np.zeros((len(self.pairs), count))
        here = self.node < count
        values[self.pair[here], self.node[here]] = self.value[here]
        return summarise_mean(values)

    def random(self, counts: Sequence[int], seed: int) -> Bool[np.ndarray, "circuit node"]:
        """Nodes drawn at random, as many of each role as the strongest so many have."""
        generator = np.random.default_rng(seed)
        inside = np.zeros((len(counts), len(self)), dtype=bool)
        for role in range(len(ROLES)):
            members = np.flatnonzero(self.table.role == role)
            order = generator.permutation(members)
            for row, count in enumerate(counts):
                inside[row, order[: int((members < count).sum())]] = True
        return inside

    def stability(self, count: int, seed: int = 0) -> dict[str, float]:
        """How much of the circuit is found again on other pairs: the Jaccard index of the `count`
        strongest nodes and those of resampled pairs; mean, and from 2.5% to 97.5% of resamples."""
        if len(self.pairs) < 2:
            return {"mean": math.nan, "low": math.nan, "high": math.nan}
        overlaps = []
        for weights in bootstrap_weights(len(self.pairs), _RESAMPLES, seed):
            drawn = weights[self.pair] * self.value
            means = np.abs(np.bincount(self.node, weights=drawn, minlength=len(self)))
            again = np.argpartition(-means, min(count, len(self) - 1))[:count]
            shared = int((again < count).sum())
            overlaps.append(shared / (2 * count - shared))
        low, high = np.quantile(overlaps, [0.025, 0.975])
        return {"mean": float(np.mean(overlaps)), "low": float(low), "high": float(high)}


def _counts(prompts: PromptPairs, used: Sequence[int]) -> NDArray[np.int64]:
    """By position, how many of the pairs have begun to differ there: before that the values of
    their nodes are not in the scores."""
    length = max(len(prompts.clean_tokens[i]) for i in used)
    counts = np.zeros(length, dtype=np.int64)
    for i in used:
        both = zip(prompts.clean_tokens[i], prompts.corrupted_tokens[i], strict=True)
        counts[next(p for p, (clean, corrupted) in enumerate(both) if clean != corrupted) :] += 1
    return counts


def _ranked(
    scores: Any,
    sites: tuple[Site, ...],
    used: Sequence[int],
    summed: bool,
    places: Places,
    counts: NDArray[np.int64],
) -> Candidates:
    """Effects per pair and node, the nodes ranked by the size of their mean."""
    place = {str(site): i for i, site in enumerate(sites)}
    row = {pair: i for i, pair in enumerate(used)}
    flat: Any = pd.DataFrame(
        {
            "site": scores["site"].astype(str).map(place).to_numpy(),
            "role": scores["role"].astype(str).map(ROLES.index).to_numpy(),
            "latent": scores["latent"].to_numpy(),
            "position": -1 if summed else scores["position"].to_numpy(),
            "pair": scores["pair"].map(row).to_numpy(),
            "effect": scores["effect"].to_numpy(),
            "clean": scores["clean"].to_numpy(),
            "corrupted": scores["corrupted"].to_numpy(),
        }
    )
    keys = ["site", "role", "latent", "position"]
    means: Any = flat.groupby(keys)[["effect", "clean", "corrupted"]].sum() / len(used)
    order = np.argsort(-means["effect"].abs().to_numpy(), kind="stable")
    means = means.iloc[order]
    where = means.index.to_frame(index=False)
    table = NodeTable(sites, *[where[key].to_numpy(np.int64) for key in keys])
    # Coefficients are means over the pairs in which they are known.
    known = 1.0 if summed else len(used) / np.maximum(counts[table.position], 1)
    per_pair: Any = flat.groupby([*keys, "pair"])["effect"].sum().reset_index()
    at = means.index.get_indexer(pd.MultiIndex.from_frame(per_pair[keys]))
    return Candidates(
        table,
        means["effect"].to_numpy(np.float64),
        means["clean"].to_numpy(np.float64) * known,
        means["corrupted"].to_numpy(np.float64) * known,
        per_pair["pair"].to_numpy(np.int64),
        np.asarray(at, dtype=np.int64),
        per_pair["effect"].to_numpy(np.float64),
        tuple(used),
        places,
    )
