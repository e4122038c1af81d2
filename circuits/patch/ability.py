"""Can the model do the task at all? Patching what it cannot do only shows noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from circuits.errors import CircuitsError
from circuits.metrics import Summary, summarise_mean
from circuits.models.hooked import HookedModel
from circuits.prompts import PromptPairs

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
        if self.ordered < SMALLEST_SHARE:
            return (
                f"only {self.ordered:.0%} of the pairs have a higher logit difference when clean "
                f"(at least {SMALLEST_SHARE:.0%} are needed)"
            )
        return None


def assess(clean: NDArray[np.floating], corrupted: NDArray[np.floating]) -> Ability:
    """Ability from one clean and one corrupted logit difference a pair."""
    return Ability(
        n_pairs=len(clean),
        clean=summarise_mean(clean),
        corrupted=summarise_mean(corrupted),
        gap=summarise_mean(clean - corrupted),
        ordered=float((clean > corrupted).mean()),
        flipped=float(((clean > 0) & (corrupted < 0)).mean()),
    )


def logit_differences(
    model: HookedModel, pairs: PromptPairs, batch_size: int = 16
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """logit(answer) - logit(foil) of every pair's clean and corrupted prompt."""
    clean, corrupted = np.zeros(len(pairs)), np.zeros(len(pairs))
    for group in pairs.groups(batch_size):
        rows = torch.arange(len(group.indices))
        for values, tokens in ((clean, group.clean), (corrupted, group.corrupted)):
            logits = model.run(tokens).double().cpu()
            values[list(group.indices)] = logits[rows, group.answer] - logits[rows, group.foil]
    return clean, corrupted
