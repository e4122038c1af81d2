"""Rows of patched prompts in batches that fit into memory, and gradients at what is patched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.hooks import HookSet
from circuits.models.memory import out_of_memory, rows_that_fit
from circuits.models.patches import Patches, between, check_patches, hook_patches
from circuits.models.resume import Baseline, Pass, beginnings, normalise, plan, run_pass, split
from circuits.models.stepped import Change, Known, run_stepped
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel

_GRAPH = 6  # how many times more memory a pass takes when it is differentiated


@torch.no_grad()
def resume_rows(
    model: HookedModel,
    baseline: Baseline,
    pairs: Int[Tensor, " row"],
    patches: Sequence[Patches],
    batch_size: int | None,
    read: Callable[[Tensor, Tensor], Any],
) -> Iterator[tuple[Int[Tensor, " part"], Any]]:
    """See `HookedModel.resume`."""
    check_patches(model.adapter, patches, len(pairs), baseline.length)
    if any(len(p.rows) and int(p.positions.min()) < baseline.first for p in patches):
        raise ModelError(f"patches before position {baseline.first}, the baseline's first.")
    patches = [
        Patches(
            p.site,
            p.rows.to(model.device),
            p.positions.to(model.device),
            p.values.to(model.device),
            None if p.heads is None else p.heads.to(model.device),
            p.add,
        )
        for p in normalise(patches, model.n_layers)
    ]
    begins = beginnings(patches, len(pairs), baseline.length, model.n_layers)
    rest = (begins[1] == baseline.length).nonzero().squeeze(1)
    if len(rest):
        yield rest, read(rest, baseline.logits[pairs[rest].to(model.device)])

    def run(part: Pass) -> Any:
        return read(part.rows, _run_part(model, baseline, pairs, patches, part))

    yield from in_parts(model, baseline, begins, batch_size, run)


def in_parts(
    model: HookedModel,
    baseline: Baseline,
    begins: tuple[Int[Tensor, " row"], Int[Tensor, " row"]],
    batch_size: int | None,
    run: Callable[[Pass], Any],
) -> Iterator[tuple[Int[Tensor, " part"], Any]]:
    """(rows, what `run` gives) of passes that fit into memory, smaller ones where it ran out.

    begins: (layer, position) at which every row begins to differ from the baseline.
    """
    pieces = 1 + len(baseline.inputs.slots) if baseline.inputs.rolled else 1
    passes = plan(*begins, baseline.length, model.n_layers, pieces)
    limit = batch_size
    for one in passes:
        size = limit or rows_at_once(model, one, baseline)
        waiting = list(split(one, size))
        while waiting:
            part = waiting.pop(0)
            try:
                found = run(part)
                done = True
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or len(part.rows) == 1:
                    raise
                found, done = None, False
            if not done:  # outside of the except block, which holds on to the tensors
                if model.device.type == "cuda":
                    torch.cuda.empty_cache()
                limit = max(1, len(part.rows) // 2)
                waiting = [s for p in [part, *waiting] for s in split(p, limit)]
                continue
            yield part.rows, found


def differentiate_rows(
    model: HookedModel,
    baseline: Baseline,
    pairs: Int[Tensor, " row"],
    site: Site,
    values: Callable[[Tensor], Tensor],
    metric: Callable[[Tensor, Tensor], Tensor],
    batch_size: int | None,
) -> Iterator[tuple[Int[Tensor, " part"], Tensor, Tensor]]:
    """See `HookedModel.resume_gradients`."""
    count = baseline.length - baseline.first
    one = Pass(baseline.first, torch.arange(len(pairs)), torch.zeros(len(pairs), dtype=torch.long))
    size = batch_size or max(1, rows_at_once(model, one, baseline) // _GRAPH)
    waiting = list(torch.arange(len(pairs)).split(size))
    while waiting:
        rows = waiting.pop(0)
        try:
            leaf = values(rows).detach().requires_grad_()
            places = torch.arange(len(rows)).repeat_interleave(count)
            positions = baseline.first + torch.arange(count).repeat(len(rows))
            flat = (places.to(model.device), positions.to(model.device), leaf.flatten(0, 1))
            patches = normalise([Patches(site, *flat)], model.n_layers)
            layer = torch.full((len(rows),), patches[0].site.layer)
            part = Pass(baseline.first, torch.arange(len(rows)), layer)
            with torch.enable_grad():
                logits = _run_part(model, baseline, pairs[rows], patches, part)
                found = metric(pairs[rows], logits)
                [gradient] = torch.autograd.grad(found.sum(), leaf)
            done = (rows, found.detach(), gradient)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or len(rows) == 1:
                raise
            done = None
        if done is None:  # outside of the except block, which holds on to the tensors
            waiting = [s for r in [rows, *waiting] for s in r.split(max(1, len(rows) // 2))]
            continue
        yield done


def _run_part(
    model: HookedModel,
    baseline: Baseline,
    pairs: Int[Tensor, " row"],
    patches: Sequence[Patches],
    part: Pass,
) -> Float[Tensor, "part vocab"]:
    place = torch.full((len(pairs),), -1)
    place[part.rows] = torch.arange(len(part.rows))
    place = place.to(model.device)
    if baseline.inputs.rolled:
        rows = [p for q in patches if (p := q.of_rows(place, 0)) is not None]

        def patch(hooks: HookSet, start: int, stop: int) -> None:
            hook_patches(hooks, model.adapter, between(rows, start, stop))

        return resume_stepped(model, baseline, pairs, part, patch)
    if model.can_resume:
        local = [p for q in patches if (p := q.of_rows(place, part.start)) is not None]

        def change(hooks: HookSet) -> None:
            hook_patches(hooks, model.adapter, local)

        return run_pass(model.adapter, baseline, pairs, part, change)
    given = baseline.inputs.of(pairs[part.rows].to(model.device))
    local = [p for q in patches if (p := q.of_rows(place, 0)) is not None]
    return model.forward(given, local)


def resume_stepped(
    model: HookedModel,
    baseline: Baseline,
    pairs: Int[Tensor, " row"],
    part: Pass,
    change: Change,
) -> Float[Tensor, "part vocab"]:
    """Logits at the last position of rows that make their own embeddings. Positions before the
    pass's are the baseline's; all layers are computed, as every slot needs the last one."""
    mine = pairs[part.rows.to(pairs.device)].to(model.device)
    known = None
    if model.can_resume and part.start > 0 and baseline.thoughts is not None:
        before = model.adapter.cut(baseline.keys_values, part.start, mine)
        known = Known(part.start, before, baseline.thoughts[mine])
    given = baseline.inputs.of(mine)
    return run_stepped(model.adapter, given, model.change(change), known=known).logits[:, -1]


def rows_at_once(model: HookedModel, one: Pass, baseline: Baseline) -> int:
    """Most rows of a pass that fit into memory."""
    start = one.start if model.can_resume else 0
    return rows_that_fit(
        model.adapter,
        baseline.length - start,
        baseline.length,
        baseline.logits.shape[1],
        model.device,
        model.dtype,
    )
