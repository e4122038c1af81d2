"""What token ids given alone mean to a model: positions whose embeddings are continuous thoughts.

Two modes. *Rerolled*: thoughts are made while the model runs, so that a change before one changes
it (total effects). *Frozen*: they are made once, without the change, and held (direct effects).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from circuits.models.adapters import ModelError
from circuits.task import Inputs, Recurrence

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel

Mode = Literal["rerolled", "frozen"]


def check_mode(mode: str | None) -> None:
    """Raise `ModelError` for a mode that does not exist."""
    if mode is not None and mode not in get_args(Mode):
        raise ModelError(f"unknown thoughts {mode!r}: expected {' or '.join(get_args(Mode))}.")


@dataclass(frozen=True, eq=False)
class Thoughts:
    """How a model thinks. slot: the token id that marks a thought's place. step: from the final
    norm's output at the position before [row, d_model] to the thought that stands there."""

    slot: int
    step: nn.Module

    def inputs(self, tokens: Int[Tensor, "row position"]) -> Inputs:
        """The prompts with their thoughts to be made; raises `ModelError` where the prompts of a
        batch have them at different positions, or at the first one."""
        marked = tokens == self.slot
        if not bool((marked == marked[:1]).all()):
            raise ModelError("prompts of one batch have their thoughts at different positions.")
        slots = tuple(marked[0].nonzero().squeeze(1).tolist())
        if not slots:
            return Inputs(tokens)
        if slots[0] == 0:
            raise ModelError("a prompt begins with a thought: there is nothing to make it from.")
        return Inputs(tokens, slots, None, Recurrence(tuple(s - 1 for s in slots), self.step))

    def patterns(self, tokens: Int[Tensor, "row position"]) -> list[Int[Tensor, " some"]]:
        """The rows of a batch by where their thoughts stand."""
        _, of_row = torch.unique(tokens == self.slot, dim=0, return_inverse=True)
        return [(of_row == i).nonzero().squeeze(1) for i in range(int(of_row.max()) + 1)]


@dataclass(eq=False)
class Filling:
    """From token ids to inputs. fill: the task's or the model's own. mode: None as `fill` has it.

    Frozen thoughts are remembered, so that a sweep makes those of a prompt once.
    """

    fill: Callable[[Tensor], Inputs] = Inputs
    mode: Mode | None = None
    _made: dict[bytes, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, model: HookedModel, tokens: Tensor) -> Inputs:
        given = self.fill(tokens)
        if self.mode is None or not given.slots:
            return given
        if self.mode == "rerolled":
            if given.recurrence is None:
                raise ModelError("these embeddings have no recurrence: they cannot be rerolled.")
            return replace(given, embeddings=None)
        return self._frozen(model, given) if given.rolled else given

    def _frozen(self, model: HookedModel, given: Inputs) -> Inputs:
        keys = [row.tobytes() for row in given.tokens.cpu().numpy()]
        new = [i for i, key in enumerate(keys) if key not in self._made]
        if new:
            made = model.roll(given.of(torch.tensor(new, device=given.tokens.device))).embeddings
            assert made is not None
            self._made |= dict(zip([keys[i] for i in new], made, strict=True))
        return replace(given, embeddings=torch.stack([self._made[key] for key in keys]))
