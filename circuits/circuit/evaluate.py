"""The metric of many circuits on many pairs, and what becomes of it: faithfulness and its kin.

m(C) is the metric on clean prompts with everything outside of the circuit C set to a reference;
m(M) that of the whole model, m(0) that with everything set.

    faithfulness = (m(C) - m(0)) / (m(M) - m(0))      completeness: the same with C's complement

Ratios are of means over pairs, with bootstrap intervals; there is none where |m(M) - m(0)| is under
a fifth of the gap between clean and corrupted prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from circuits.circuit.references import CircuitError, Means, ReferenceName
from circuits.circuit.runs import GroupRuns
from circuits.circuit.selections import Selections
from circuits.circuit.wired import WiredRuns, Wiring
from circuits.graph import Circuit
from circuits.metrics import (
    SMALLEST_GAP,
    Metric,
    Summary,
    bootstrap_weights,
    logit_difference,
    summarise_ratio,
)
from circuits.models.hooked import HookedModel
from circuits.patch.ability import in_halves
from circuits.prompts import PairGroup, PromptPairs
from circuits.saes import SaeSet
from circuits.sites import Site

SMALLEST_DENOMINATOR = 0.2  # of the gap between clean and corrupted prompts
PAIRS_AT_ONCE = 8


@dataclass(frozen=True)
class Places:
    """What a token of any prompt is in a circuit's table.

    summed: every token stands for all. Otherwise pairs of `template` and `length` are taken
    position by position, and in others only the tokens at positions of the same name (`names`, of
    the circuit's template) stand for one of the table.
    """

    summed: bool
    template: str = ""
    length: int = 0
    names: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, circuit: Circuit) -> Places:
        """Those of a circuit."""
        names = tuple((name, position) for position, name in circuit.names.items())
        return cls(circuit.summed, circuit.template, len(circuit.tokens), names)

    def same(self, pairs: PromptPairs, i: int) -> bool:
        """Whether a pair is of the template."""
        return pairs.templates[i] == self.template and len(pairs.clean_tokens[i]) == self.length

    def carried(self, positions: Int[np.ndarray, " node"], pairs: PromptPairs) -> float:
        """The share of nodes at these positions of a table that have a place in the prompts, mean
        over pairs."""
        if self.summed:
            return 1.0
        labels = [row for group in pairs.groups() for row in self.labels(pairs, group).numpy()]
        return float(np.mean([np.isin(positions, row).mean() for row in labels]))

    def labels(self, pairs: PromptPairs, group: PairGroup) -> Int[Tensor, "pair position"]:
        """For every token the position it stands for, -1 for none."""
        length = group.clean.shape[1]
        if self.summed:
            return torch.zeros(len(group.indices), length, dtype=torch.long)
        found = torch.full((len(group.indices), length), -1)
        for row, i in enumerate(group.indices):
            if self.same(pairs, i):
                found[row] = torch.arange(length)
                continue
            marks = pairs.positions[i]
            for names, place in self.names:
                for name in names.split("/"):  # several names of one position
                    if name not in marks:
                        continue
                    if int(found[row, marks[name]]) not in (-1, place):
                        raise CircuitError(
                            f"in pair {i} one token has the names of two positions of the circuit "
                            f"({name} is one of them): it cannot stand for both."
                        )
                    found[row, marks[name]] = place
        return found


def metrics_of(
    model: HookedModel,
    saes: SaeSet,
    pairs: PromptPairs,
    chosen: Selections,
    places: Places,
    references: Sequence[ReferenceName],
    *,
    metric: Metric = logit_difference,
    removed: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: str | None = None,
) -> tuple[Float[np.ndarray, "circuit reference pair"], Float[np.ndarray, " pair"]]:
    """(metric of every circuit with every reference, metric of the whole model), for every pair.

    chosen: circuits over a table whose sites are all those that are ablated. places: see `Places`.
    removed: then `chosen` is one circuit, and the first axis is that circuit without each of these
        nodes. progress: the name of a progress bar.
    """
    count = len(chosen) if removed is None else len(removed)

    def run(runs: GroupRuns) -> NDArray[np.floating]:
        if removed is None:
            return runs.run(chosen, batch_size)
        return runs.without(chosen, removed, batch_size)

    given = (model, saes, chosen.table.sites, pairs, places, references, metric, progress)
    return _over_groups(*given, count, run)


def wired_metrics_of(
    model: HookedModel,
    saes: SaeSet,
    pairs: PromptPairs,
    wiring: Wiring,
    places: Places,
    references: Sequence[ReferenceName],
    *,
    metric: Metric = logit_difference,
    batch_size: int | None = None,
    progress: str | None = None,
) -> tuple[Float[np.ndarray, "circuit reference pair"], Float[np.ndarray, " pair"]]:
    """As `metrics_of`, for circuits with edges."""

    def run(runs: GroupRuns) -> NDArray[np.floating]:
        return WiredRuns(runs, wiring).metrics(batch_size)

    given = (model, saes, wiring.table.sites, pairs, places, references, metric, progress)
    return _over_groups(*given, wiring.circuits, run)


def _over_groups(
    model: HookedModel,
    saes: SaeSet,
    sites: Sequence[Site],
    pairs: PromptPairs,
    places: Places,
    references: Sequence[ReferenceName],
    metric: Metric,
    progress: str | None,
    count: int,
    work: Callable[[GroupRuns], NDArray[np.floating]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    means = Means(model, saes.at(sites), pairs) if "mean" in references else None
    found = np.full((count, len(references), len(pairs)), np.nan)
    whole = np.full(len(pairs), np.nan)
    bar = tqdm(total=len(pairs), desc=progress, unit="pair", disable=progress is None)

    def run(group: PairGroup) -> None:
        labels = places.labels(pairs, group).to(model.device)
        runs = GroupRuns(model, saes, sites, group, labels, references, means, metric)
        where = list(group.indices)
        whole[where] = runs.whole
        found[:, :, where] = work(runs)
        bar.update(len(where))

    with bar:
        for group in pairs.groups(PAIRS_AT_ONCE):
            in_halves(group, run)
    return found, whole


@dataclass(frozen=True)
class Shares:
    """(m(C) - m(0)) / (m(M) - m(0)), for one reference.

    m: [circuit, pair]; nothing, whole: [pair]; gap: clean less corrupted metric, [pair].
    """

    m: Float[np.ndarray, "circuit pair"]
    nothing: Float[np.ndarray, " pair"]
    whole: Float[np.ndarray, " pair"]
    gap: Float[np.ndarray, " pair"]

    @property
    def problem(self) -> str | None:
        """Why there is no ratio; None when there is one."""
        denominator = float((self.whole - self.nothing).mean())
        gap = abs(float(self.gap.mean()))
        if abs(denominator) < SMALLEST_DENOMINATOR * gap:
            return (
                f"m(M) - m(0) is {denominator:+.3f}, under a fifth of the gap between clean and "
                f"corrupted prompts ({gap:.3f}): a share of it would mean nothing"
            )
        if abs(denominator) < SMALLEST_GAP:
            return f"m(M) - m(0) is {denominator:+.3f}: shares of it would be shares of rounding"
        return None

    def summary(self) -> Summary:
        """One share a circuit with its interval; NaN where there is none."""
        nan = np.full(len(self.m), np.nan)
        if self.problem:
            return Summary(nan, nan.copy(), nan.copy())
        return summarise_ratio((self.m - self.nothing).T, self.whole - self.nothing)

    def drawn(self, resamples: int = 2000, seed: int = 0) -> NDArray[np.float64] | None:
        """Shares over resampled pairs, [resample, circuit]; None where there is no ratio or one
        pair alone."""
        if self.problem or self.m.shape[1] < 2:
            return None
        weights = bootstrap_weights(self.m.shape[1], resamples, seed)
        below = weights @ (self.whole - self.nothing)
        return (weights @ (self.m - self.nothing).T) / below[:, None]


def area(
    sizes: Sequence[float], values: Float[np.ndarray, "*draw size"]
) -> Float[np.ndarray, "*draw"]:
    """The area under values over sizes (shares of all nodes, rising), by trapezoids, from the
    smallest size on: CPR of faithfulnesses, CMD of |1 - faithfulness| (Mueller et al. 2025)."""
    if list(sizes) != sorted(sizes) or len(sizes) < 2:
        raise CircuitError("an area needs at least two sizes, rising.")
    return np.asarray(np.trapezoid(values, np.asarray(sizes, dtype=np.float64), axis=-1))
