"""Many edits of one run at once: each row is one of the baseline's prompts in a model of its own.

Where `resume_rows` puts fixed values into places, here the activations at sites are put through a
function of them and of the row. What a row computes begins where it first differs from the
baseline, and ends at the site that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.edits import FLAT, Edit, hook_edit
from circuits.models.hooks import HookSet
from circuits.models.resume import Baseline, Pass, earliest, run_pass
from circuits.models.rows import in_parts, resume_stepped
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel

# From activations [row, position, width], the numbers of their rows and the position of the first
# of them to what is put in their place.
RowEdit = Callable[[Tensor, Tensor, int], Tensor]
# From row numbers, logits at the last position (or, with `until`, activations [row, position,
# width]) and the position of the first activation to what is yielded.
Read = Callable[[Tensor, Tensor, int], Any]


class _Reached(Exception):
    """The site that was asked for has been computed."""


@torch.no_grad()
def resume_edited(
    model: HookedModel,
    baseline: Baseline,
    pairs: Int[Tensor, " row"],
    begins: tuple[Int[Tensor, " row"], Int[Tensor, " row"]],
    edits: Mapping[Site, RowEdit],
    read: Read,
    batch_size: int | None = None,
    until: Site | None = None,
    end: int | None = None,
) -> Iterator[tuple[Int[Tensor, " part"], Any]]:
    """Run every row's edits; yield (row numbers, what is read) in parts.

    pairs: for each row, the entry of the baseline it changes.
    begins: (layer, position) at which each row may begin to differ from the baseline: before them
        its edits must give what the baseline has. `baseline.first` is the first position allowed.
        Rows that begin at the prompt's length are not computed and not yielded.
    edits: functions of the activations at sites. They must leave position 0 as it is.
    until: a site; then the pass ends there, and what arrives at it, before its edit, is read.
    end: where the piece ends in which that is read, of prompts whose thoughts are made on the way
        (`circuits.models.stepped.pieces`); what is read is then this piece's alone.

    Edits at resid_post of a layer are made at resid_pre of the next one, where rows that begin
    there have just joined.
    """
    begins = (begins[0].cpu(), begins[1].cpu())
    named = {earliest(site, model.n_layers): edit for site, edit in edits.items()}
    stop = None if until is None else earliest(until, model.n_layers)

    def run(part: Pass) -> Any:
        if baseline.inputs.rolled:
            return read(part.rows, *_run_stepped(model, baseline, pairs, named, stop, end, part))
        start = part.start if model.can_resume else 0
        return read(part.rows, _run(model, baseline, pairs, named, stop, part), start)

    yield from in_parts(model, baseline, begins, batch_size, run)


def _run(
    model: HookedModel,
    baseline: Baseline,
    pairs: Int[Tensor, " row"],
    edits: Mapping[Site, RowEdit],
    until: Site | None,
    part: Pass,
) -> Tensor:
    """Logits at the last position, or the activations at `until`."""
    reached: list[Tensor] = []
    start = part.start if model.can_resume else 0
    lowest = int(part.layers[0]) if model.can_resume else 0

    def stop(x: Tensor) -> None:
        reached.append(rearrange(x, FLAT))
        raise _Reached

    def change(hooks: HookSet) -> None:
        if until is not None:  # before its own edit
            hooks.on_output(model.adapter.hook_point(until), str(until), stop)
        for site, edit in edits.items():
            if site.layer >= lowest:
                hook_edit(hooks, model.adapter, site, _bound(edit, part.rows), start)

    try:
        if model.can_resume:
            logits = run_pass(model.adapter, baseline, pairs, part, change)
        else:
            given = baseline.inputs
            inputs = given.of(pairs[part.rows].to(given.tokens.device))
            with HookSet() as hooks:
                model.hook_inputs(hooks, inputs)
                change(hooks)
                logits = model.adapter.forward(inputs.tokens)
    except _Reached:
        return reached[0]
    return logits


def _run_stepped(
    model: HookedModel,
    baseline: Baseline,
    pairs: Int[Tensor, " row"],
    edits: Mapping[Site, RowEdit],
    until: Site | None,
    end: int | None,
    part: Pass,
) -> tuple[Tensor, int]:
    """As `_run`, of prompts whose thoughts are made on the way; and the position of the first
    activation."""
    if until is not None and end is None:
        raise ModelError(
            "thoughts that are made while the model runs cannot be stopped at a site alone: say "
            "where its piece ends, or hold them fixed."
        )
    reached: list[tuple[Tensor, int]] = []

    def edit_piece(hooks: HookSet, begin: int, stop: int) -> None:
        def take(x: Tensor) -> None:
            reached.append((rearrange(x, FLAT), begin))
            raise _Reached

        if until is not None and stop == end:  # before its own edit
            hooks.on_output(model.adapter.hook_point(until), str(until), take)
        for site, edit in edits.items():
            hook_edit(hooks, model.adapter, site, _bound(edit, part.rows), begin)

    try:
        logits = resume_stepped(model, baseline, pairs, part, edit_piece)
    except _Reached:
        return reached[0]
    return logits, part.start if model.can_resume else 0


def _bound(edit: RowEdit, rows: Tensor) -> Edit:
    """The edit of those rows that have entered: the first ones of the pass."""

    def apply(x: Float[Tensor, "row position width"], start: int) -> Tensor:
        return edit(x, rows[: len(x)], start)

    return apply
