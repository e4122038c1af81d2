"""The options of `circuit`, checked before any pass; and the size of the circuit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from circuits.circuit.candidates import SIZES
from circuits.circuit.judge import Judge
from circuits.circuit.references import REFERENCES, CircuitError, ReferenceName, check_references
from circuits.circuit.result import DRAWN
from circuits.prompts import PromptPairs

REACH = 0.8  # the faithfulness that a circuit is made large enough for
_REFINED = 6  # sizes that are tried between two of the ladder


@dataclass(frozen=True)
class Plan:
    """Checked options. by: the reference that sizes are chosen with."""

    sizes: tuple[float, ...]
    references: tuple[ReferenceName, ...]
    by: ReferenceName
    size: int | None
    threshold: float | None
    reach: float
    drawn: int


def make_plan(
    *,
    sizes: Sequence[float] = SIZES,
    references: Sequence[str] = REFERENCES,
    by: str = "corrupted",
    size: int | None = None,
    threshold: float | None = None,
    reach: float | None = None,
    drawn: int = DRAWN,
    n_eval: int = 32,
) -> Plan:
    """Check the options of `circuit`; raises `CircuitError`."""
    named = check_references(references)
    [chosen] = check_references([by])
    if chosen not in named:
        raise CircuitError(f"sizes are chosen by {by!r}, which is not one of the references.")
    if sum(option is not None for option in (size, threshold, reach)) > 1:
        raise CircuitError("size, threshold and reach are three ways to choose: give one of them.")
    if size is not None and size < 1:
        raise CircuitError(f"a circuit of {size} nodes: at least 1 is needed.")
    if threshold is not None and threshold <= 0:
        raise CircuitError(f"threshold {threshold}: expected a size of effect above 0.")
    if reach is not None and not 0 < reach <= 1:
        raise CircuitError(f"reach {reach}: expected a faithfulness above 0, at most 1.")
    rising = tuple(sorted(set(sizes)))
    if len(rising) < 2 or not 0 < rising[0] < rising[-1] <= 1:
        raise CircuitError(
            f"sizes {tuple(sizes)}: expected at least two shares of all nodes, above 0, at most 1."
        )
    if drawn < 0 or n_eval < 2:
        raise CircuitError("drawn must be 0 or more, and n_eval at least 2.")
    return Plan(rising, named, chosen, size, threshold, REACH if reach is None else reach, drawn)


def choose_size(plan: Plan, judge: Judge, pairs: PromptPairs) -> tuple[int, str]:
    """How many nodes the circuit has, and why."""
    candidates = judge.candidates
    if plan.size is not None:
        return min(plan.size, len(candidates)), f"{plan.size} nodes were asked for"
    if plan.threshold is not None:
        count = candidates.count(plan.threshold)
        return count, f"effects of {plan.threshold:g} and more"
    below = [size for size in plan.sizes if size < 1]
    counts = sorted(set(candidates.ladder(below)[0]))
    at = _reaching(judge, pairs, counts, plan)
    if at is None:
        return counts[-1], (
            f"no smaller circuit reaches a faithfulness of {plan.reach:g} ({plan.by}) on the pairs "
            "it was found on"
        )
    low = counts[at - 1] if at else 1
    between = np.geomspace(low, counts[at], _REFINED + 2)[1:].round().astype(int)
    finer = sorted(set(between.tolist()))
    place = _reaching(judge, pairs, finer, plan)
    count = finer[place] if place is not None else counts[at]
    return count, (
        f"the smallest of the sizes tried that reaches a faithfulness of {plan.reach:g} "
        f"({plan.by}) on the pairs it was found on"
    )


def _reaching(judge: Judge, pairs: PromptPairs, counts: Sequence[int], plan: Plan) -> int | None:
    """Which of the counts is the first to reach the faithfulness."""
    *values, nothing, whole = judge.faithfulness(pairs, counts, plan.by)
    shares = (np.array(values) - nothing) / (whole - nothing)
    reached = np.flatnonzero(shares >= plan.reach)
    return int(reached[0]) if len(reached) else None
