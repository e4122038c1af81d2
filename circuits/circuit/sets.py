"""The pairs a circuit is found on, and those it is judged on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from circuits.circuit.references import CircuitError
from circuits.models.hooked import HookedModel
from circuits.patch.draw import Drawn
from circuits.prompts import PromptPairs
from circuits.task import TaskError

FOUND, UNSEEN, HELD_OUT = "found", "unseen", "held_out"
SETS = {
    FOUND: "the pairs it was found on",
    UNSEEN: "unseen pairs",
    HELD_OUT: "held-out pairs",
}
_FEWEST = 4  # pairs of one's own that are split into two halves


@dataclass(frozen=True)
class Sets:
    """found: what circuits are looked for on. judged: by name, what they are judged on. missing:
    why there are no others."""

    found: PromptPairs
    judged: dict[str, PromptPairs]
    missing: dict[str, str]


def select(pairs: PromptPairs, which: Sequence[int]) -> PromptPairs:
    """Some of the pairs."""
    fields = {name: getattr(pairs, name) for name in pairs.__dataclass_fields__}
    some = {n: tuple(v[i] for i in which) for n, v in fields.items() if isinstance(v, tuple)}
    return replace(pairs, **some)


def make_sets(
    model: HookedModel,
    given: Drawn,
    *,
    n_eval: int,
    seed: int,
    evaluate_on: PromptPairs | None,
    prepend_bos: bool | None,
) -> Sets:
    """Pairs to find circuits on and pairs to judge them on, none of them in both.

    Of a task: as many further explored pairs, and held-out ones (where it has several templates, of
    those that are not explored). Pairs of one's own are split into two halves, or judged on
    `evaluate_on`.
    Raises `CircuitError` when there are too few.
    """
    found = given.pairs
    if evaluate_on is not None:
        shared = _known(found) & _known(evaluate_on)
        if shared:
            raise CircuitError(
                f"{len(shared)} of the pairs to judge on are also pairs to find the circuit on: "
                "give others."
            )
        return Sets(found, {UNSEEN: evaluate_on}, {HELD_OUT: "pairs were given"})
    if given.task is None:
        return _halves(found, seed)
    task: Any = given.task
    options = {"contrast": given.contrast, "seed": seed, "prepend_bos": prepend_bos}
    judged: dict[str, PromptPairs] = {}
    missing: dict[str, str] = {}
    try:
        more = task.pairs(model, n=len(found) + n_eval, split="explored", **options)
    except TaskError as error:
        raise CircuitError(
            f"{task.name} has too few pairs to find a circuit on {len(found)} and judge it on "
            f"{n_eval} others ({error}): ask for fewer with n_pairs or n_eval."
        ) from error
    known = _known(found)
    fresh = [i for i in range(len(more)) if _key(more, i) not in known]
    judged[UNSEEN] = select(more, fresh[:n_eval])
    try:
        held_out = task.pairs(model, n=n_eval, split="held_out", **options)
        fresh = [i for i in range(len(held_out)) if _key(held_out, i) not in known]
        judged[HELD_OUT] = select(held_out, fresh)
    except TaskError as error:
        missing[HELD_OUT] = str(error)
    return Sets(found, judged, missing)


def _halves(pairs: PromptPairs, seed: int) -> Sets:
    if len(pairs) < _FEWEST:
        raise CircuitError(
            f"{len(pairs)} pairs: a circuit is found on one half and judged on the other, so at "
            f"least {_FEWEST} are needed."
        )
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    middle = (len(pairs) + 1) // 2
    halves = [select(pairs, sorted(part)) for part in (order[:middle], order[middle:])]
    return Sets(halves[0], {UNSEEN: halves[1]}, {HELD_OUT: "the pairs are not of a task"})


def _key(pairs: PromptPairs, i: int) -> tuple[Any, Any]:
    return pairs.clean_tokens[i], pairs.corrupted_tokens[i]


def _known(pairs: PromptPairs) -> set[tuple[Any, Any]]:
    return {_key(pairs, i) for i in range(len(pairs))}
