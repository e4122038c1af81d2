"""Runs whose embeddings at slots are made on the way: continuous thoughts.

The prompt is cut at its slots. Each piece is run behind the keys and values of the pieces before
it, and the embedding at the slot that begins a piece is `step` of the final norm's output at its
source, which some piece before has computed. So the recurrence is a part of the graph: what is
changed before a slot changes what stands there, and gradients go through it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuits.models.adapters import Adapter, KeysValues, ModelError
from circuits.models.edits import FLAT, Edit
from circuits.models.hooks import HookSet
from circuits.sites import Site
from circuits.task import Inputs

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel

# Registers what is done to the positions [start, stop) of a pass.
Change = Callable[[HookSet, int, int], None]


@dataclass(frozen=True)
class Known:
    """What need not be computed: positions before `start`.

    keys_values: of those positions. thoughts: what stands at every slot; used at `start`, if that
    is one, and wherever a slot's source lies before `start`.
    """

    start: int
    keys_values: KeysValues
    thoughts: Float[Tensor, "row slot d_model"]


@dataclass(frozen=True)
class Stepped:
    """A run: logits at the last position (or at each), thoughts at every slot, and the cache."""

    logits: Float[Tensor, "row some vocab"]
    thoughts: Float[Tensor, "row slot d_model"]
    cache: Any


def pieces(inputs: Inputs, start: int) -> list[tuple[int, int]]:
    """The prompt from `start` on, cut before every slot."""
    cuts = [slot for slot in inputs.slots if slot > start]
    bounds = [start, *cuts, inputs.tokens.shape[1]]
    return list(itertools.pairwise(bounds))


def run_stepped(
    adapter: Adapter,
    inputs: Inputs,
    change: Change,
    *,
    known: Known | None = None,
    embed: Callable[[Tensor], Tensor] = lambda x: x,
    every: bool = False,
) -> Stepped:
    """Run `inputs`, whose slots are filled on the way.

    embed: what is done to the embeddings of tokens before slots are filled.
    every: logits at every position that is run, and not only at the last.
    """
    recurrence = inputs.recurrence
    if recurrence is None:
        raise ModelError("inputs without a recurrence cannot fill their slots.")
    start = 0 if known is None else known.start
    rows = len(inputs.tokens)
    cache = adapter.new_cache(rows, None if known is None else known.keys_values)
    hidden: dict[int, Tensor] = {}
    thoughts: dict[int, Tensor] = {}
    logits: list[Tensor] = []
    for i, slot in enumerate(inputs.slots):
        if known is not None and recurrence.sources[i] < start:
            thoughts[slot] = known.thoughts[:, i]
    for begin, end in pieces(inputs, start):
        if begin in inputs.slots and begin not in thoughts:
            source = recurrence.sources[inputs.slots.index(begin)]
            thoughts[begin] = recurrence.step(hidden[source])
        filled = thoughts.get(begin) if begin in inputs.slots else None

        def fill(x: Tensor, thought: Tensor | None = filled) -> Tensor:
            x = embed(x)
            return x if thought is None else torch.cat([thought[:, None].to(x), x[:, 1:]], 1)

        with HookSet() as hooks:
            hooks.on_output(adapter.embedding(), "embedding", fill)
            change(hooks, begin, end)
            normed, found = adapter.step(inputs.tokens[:, begin:end], cache, every)
        hidden |= {p: normed[:, p - begin] for p in recurrence.sources if begin <= p < end}
        logits.append(found)
    made = torch.stack([thoughts[slot] for slot in inputs.slots], 1)
    return Stepped(torch.cat(logits, 1) if every else logits[-1], made, cache)


def cache_stepped(
    model: HookedModel,
    given: Inputs,
    sites: Sequence[Site],
    unedited: bool,
    edits: Mapping[Site, Edit] | None = None,
    first: int = 0,
) -> tuple[Stepped, dict[Site, list[Tensor]]]:
    """A run, and the activations [row, position, width] at sites from `first` on, piece by piece.

    unedited: what arrives at a site, before the model's own edit of it. edits: further ones; what
    is kept is what arrives at them.
    """
    pieces: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def store(hooks: HookSet, start: int, stop: int) -> None:
        if not unedited:
            model.hook_edits(hooks, model.edits, start)
        for site, into in pieces.items():

            def keep(x: Tensor, into: list[Tensor] = into) -> None:
                if stop > first:
                    into.append(rearrange(x, FLAT)[:, max(0, first - start) :])

            hooks.on_output(model.adapter.hook_point(site), str(site), keep)
        if unedited:  # hooks fire in the order in which they were put there
            model.hook_edits(hooks, model.edits, start)
        model.hook_edits(hooks, edits or {}, start)

    return run_stepped(model.adapter, given, store), pieces
