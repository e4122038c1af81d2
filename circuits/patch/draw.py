"""Which pairs a method works on: drawn from a task, taken from it before, or one's own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from circuits.errors import CircuitsError
from circuits.models.hooked import HookedModel
from circuits.patch.ability import Ability, CannotDo
from circuits.prompts import PromptPairs
from circuits.task import InputsTask, PairsTask, Task, check_contrast, require


@dataclass(frozen=True)
class Drawn:
    """Pairs and where they are from. task: None for pairs of one's own. split, seed: how they were
    drawn; None for pairs that were there before."""

    pairs: PromptPairs
    task: PairsTask | None
    contrast: str | None
    split: Literal["explored", "held_out"] | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name if self.task else "custom"

    def on(self, model: HookedModel) -> AbstractContextManager[None]:
        """`reading` of these pairs."""
        return reading(model, self.task)

    def comparable(self, model: HookedModel) -> bool:
        """Whether what is computed depends only on model and tokens, so that parts of it that were
        kept may be used: not so with embeddings that a task makes as it likes."""
        return not isinstance(self.task, InputsTask) or model.thoughts is not None

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
        return Drawn(prompts, None, None)
    task = require(prompts, PairsTask, what)
    if pairs is not None:
        return Drawn(pairs, task, contrast)
    contrast = check_contrast(task, contrast)
    found = task.pairs(
        model, contrast=contrast, n=n_pairs, seed=seed, split=split, prepend_bos=prepend_bos
    )
    return Drawn(found, task, contrast, split, seed)


def reading(model: HookedModel, task: Task | None) -> AbstractContextManager[None]:
    """For the time of a block, token ids mean what the task says: it may make embeddings."""
    if isinstance(task, InputsTask):
        return model.filled(partial(task.inputs, model))
    return nullcontext()


def thinks(model: HookedModel, pairs: PromptPairs) -> str | None:
    """How thoughts are treated now, for records: rerolled, frozen, or None without any."""
    return model.thinks(torch.tensor([pairs.clean_tokens[0]]))
