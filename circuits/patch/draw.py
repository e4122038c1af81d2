"""Which pairs a method works on: drawn from a task, taken from it before, or one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from circuits.errors import CircuitsError
from circuits.models.hooked import HookedModel
from circuits.patch.ability import Ability, CannotDo
from circuits.prompts import PromptPairs
from circuits.task import PairsTask, Task, check_contrast, require


@dataclass(frozen=True)
class Drawn:
    """Pairs and where they are from. task: None for pairs of one's own. drawn: whether contrast,
    split and seed say how."""

    pairs: PromptPairs
    task: PairsTask | None
    contrast: str | None
    drawn: bool

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name if self.task else "custom"

    def require_ability(self, model: HookedModel, ability: Ability, what: str) -> None:
        """Raise `CannotDo` when the model does not separate clean from corrupted prompts.

        what: would show noise, such as "Patching it".
        """
        if ability.problem:
            contrast = f" ({self.contrast})" if self.contrast else ""
            raise CannotDo(
                f"{model.name} cannot do {self.name}{contrast}: {ability.problem}. {what} would "
                "show noise; choose another contrast or model, or force it."
            )


def draw(
    model: HookedModel,
    prompts: Task | PromptPairs,
    pairs: PromptPairs | None,
    what: str,
    *,
    contrast: str | None,
    n_pairs: int,
    split: Literal["explored", "held_out"],
    seed: int,
    prepend_bos: bool | None,
) -> Drawn:
    """The pairs to work on.

    prompts: a task, or pairs of one's own, for which the keywords are not used. pairs: with a task,
    pairs drawn from it before. what: the method, for the message when the task has no pairs.
    """
    if isinstance(prompts, PromptPairs):
        if pairs is not None:
            raise CircuitsError(
                "pairs belong to a task: give the task and its pairs, or pairs alone."
            )
        return Drawn(prompts, None, None, False)
    task = require(prompts, PairsTask, what)
    if pairs is not None:
        return Drawn(pairs, task, contrast, False)
    contrast = check_contrast(task, contrast)
    found = task.pairs(
        model, contrast=contrast, n=n_pairs, seed=seed, split=split, prepend_bos=prepend_bos
    )
    return Drawn(found, task, contrast, True)
