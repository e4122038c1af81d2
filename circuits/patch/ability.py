"""Can the model do the task at all? Patching what it cannot do only shows noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.errors import CircuitsError
from circuits.metrics import (
    SMALLEST_GAP,
    Metric,
    Summary,
    Targets,
    evaluate,
    logit_difference,
    summarise_mean,
)
from circuits.models.hooked import HookedModel
from circuits.models.memory import out_of_memory
from circuits.prompts import PairGroup, PromptPairs

_T = TypeVar("_T")

SMALLEST_SHARE = 0.6  # of pairs that must be ordered right


class CannotDo(CircuitsError):
    """The model does not tell the clean from the corrupted prompts."""


@dataclass(frozen=True)
class Ability:
    """How well a model separates the prompts of a contrast.

    clean, corrupted, gap: mean logit differences (and of their difference) with 95% intervals.
    ordered: share of pairs whose clean logit difference is above the corrupted one.
    flipped: share of pairs whose logit difference is positive when clean and negative when
        corrupted.
    """

    n_pairs: int
    clean: Summary
    corrupted: Summary
    gap: Summary
    ordered: float
    flipped: float

    @property
    def problem(self) -> str | None:
        """Why the contrast is not one that the model can do; None when it can."""
        touches = self.n_pairs > 1 and float(self.gap.low) <= 0
        wrong_way = float(self.gap.value) <= 0
        if touches or wrong_way:
            return (
                f"the gap between clean and corrupted logit differences is {self.gap.value:+.2f} "
                f"[{self.gap.low:+.2f}, {self.gap.high:+.2f}]: it must lie above 0"
            )
        if float(self.gap.value) < SMALLEST_GAP:
            return (
                f"the gap between clean and corrupted logit differences is {self.gap.value:+.2f}, "
                f"and shares of less than {SMALLEST_GAP} logits would be shares of rounding"
            )
        if self.ordered < SMALLEST_SHARE:
            return (
                f"only {self.ordered:.0%} of the pairs have a higher logit difference when clean "
                f"(at least {SMALLEST_SHARE:.0%} are needed)"
            )
        return None


def forced_line(record: Mapping[str, Any]) -> str | None:
    """The loud line of a result that was made although the model cannot do the contrast."""
    if not record["forced"]:
        return None
    return (
        f"FORCED: the model cannot do this contrast ({record['ability']}). What follows may be "
        "noise."
    )


def assess(clean: NDArray[np.floating], corrupted: NDArray[np.floating]) -> Ability:
    """Ability from one clean and one corrupted logit difference a pair.

    Raises `CannotDo` when one is not finite, naming the pair.
    """
    wrong = np.flatnonzero(~np.isfinite(clean) | ~np.isfinite(corrupted))
    if len(wrong):
        raise CannotDo(
            f"the logit differences of pairs {wrong[:5].tolist()} are not finite: the model "
            "overflows. Use dtype float32 or bfloat16."
        )
    return Ability(
        n_pairs=len(clean),
        clean=summarise_mean(clean),
        corrupted=summarise_mean(corrupted),
        gap=summarise_mean(clean - corrupted),
        ordered=float((clean > corrupted).mean()),
        flipped=float(((clean > 0) & (corrupted < 0)).mean()),
    )


@dataclass(frozen=True)
class Baselines:
    """The unpatched runs, one value a pair."""

    clean_ld: NDArray[np.floating]
    corrupted_ld: NDArray[np.floating]
    clean_metric: NDArray[np.floating]
    corrupted_metric: NDArray[np.floating]


def baselines(
    model: HookedModel,
    pairs: PromptPairs,
    metric: Metric = logit_difference,
    batch_size: int = 16,
) -> Baselines:
    """Logit difference and metric of every pair's clean and corrupted prompt."""
    found = Baselines(*(np.zeros(len(pairs)) for _ in range(4)))

    def run(group: PairGroup) -> None:
        where = list(group.indices)
        clean, corrupted = model.run(group.clean), model.run(group.corrupted)
        targets = Targets.of(group.answer, group.foil, clean)
        for logits, difference, value in (
            (clean, found.clean_ld, found.clean_metric),
            (corrupted, found.corrupted_ld, found.corrupted_metric),
        ):
            value[where], difference[where] = score(metric, logits, targets)

    for group in pairs.groups(batch_size):
        in_halves(group, run)
    return found


def score(
    metric: Metric, logits: Float[Tensor, "row vocab"], targets: Targets
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(metric, logit difference) of each row, in float64."""
    values = evaluate(metric, logits.float(), targets)
    difference = logit_difference(logits.float(), targets)
    return values.double().cpu().numpy(), difference.double().cpu().numpy()


def in_halves(group: PairGroup, work: Callable[[PairGroup], _T]) -> list[_T]:
    """`work` on a group of pairs, or on its halves where memory does not suffice for it whole."""
    try:
        return [work(group)]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or len(group.indices) == 1:
            raise
    middle = len(group.indices) // 2
    halves = (group.part(slice(None, middle)), group.part(slice(middle, None)))
    return [done for half in halves for done in in_halves(half, work)]


def logit_differences(
    model: HookedModel, pairs: PromptPairs
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """logit(answer) - logit(foil) of every pair's clean and corrupted prompt."""
    found = baselines(model, pairs)
    return found.clean_ld, found.corrupted_ld
