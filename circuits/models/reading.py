"""Activations at sites, kept in one pass: with logits, without what comes after, or to resume from.

The functions behind `HookedModel.cache`, `activations` and `baseline`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.adapters import Adapter
from circuits.models.edits import FLAT, Edit
from circuits.models.hooks import HookSet
from circuits.models.resume import Baseline, earliest
from circuits.models.stepped import cache_stepped
from circuits.sites import Site
from circuits.task import Inputs

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel


class _Enough(Exception):
    """Everything that was asked for has been computed."""


def read_sites(
    model: HookedModel, given: Inputs, sites: Sequence[Site], first: int, unedited: bool
) -> tuple[Float[Tensor, "row vocab"], dict[Site, Float[Tensor, "row position width"]]]:
    """See `HookedModel.cache`."""
    if given.rolled:
        made, pieces = cache_stepped(model, given, sites, unedited, first=first)
        return made.logits[:, -1], {s: torch.cat(p, 1) for s, p in pieces.items()}
    values: dict[Site, Tensor] = {}
    with HookSet() as hooks:
        if not unedited:
            model.hook_inputs(hooks, given)
        for site in dict.fromkeys(sites):
            _hook_store(hooks, model.adapter, site, values, first)
        if unedited:  # hooks fire in the order in which they were put there
            model.hook_inputs(hooks, given)
        logits = model.adapter.forward(given.tokens)
    return logits, values


def read_activations(
    model: HookedModel, inputs: Inputs | Tensor, sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "row position width"]]:
    """See `HookedModel.activations`."""
    wanted = list(dict.fromkeys(sites))
    if isinstance(inputs, Tensor) and model.thoughts is not None:
        return _by_pattern(model, inputs, wanted)
    given = model.inputs(inputs)
    if given.rolled:
        _, pieces = cache_stepped(model, given, wanted, False)
        return {site: torch.cat(found, 1) for site, found in pieces.items()}
    values: dict[Site, Tensor] = {}

    def stop(x: Tensor) -> None:
        if len(values) == len(wanted):
            raise _Enough

    with HookSet() as hooks:
        model.hook_inputs(hooks, given)
        for site in wanted:
            _hook_store(hooks, model.adapter, site, values, 0, stop)
        with contextlib.suppress(_Enough):
            model.adapter.forward(given.tokens)
    return {site: values[site] for site in wanted}


def _by_pattern(
    model: HookedModel, tokens: Int[Tensor, "row position"], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "row position width"]]:
    """Activations of prompts whose thoughts may stand at different positions."""
    assert model.thoughts is not None
    parts = model.thoughts.patterns(tokens)
    found = [model.activations(model.inputs(tokens[rows]), sites) for rows in parts]
    order = torch.cat(parts).argsort()
    return {s: torch.cat([f[s] for f in found])[order.to(model.device)] for s in sites}


def read_baseline(
    model: HookedModel, given: Inputs, first: int, edits: Mapping[Site, Edit]
) -> Baseline:
    """See `HookedModel.baseline`."""
    sites = [Site(layer, "resid_pre") for layer in range(model.n_layers)]
    values: dict[Site, Tensor] = {}
    named = {earliest(site, model.n_layers): edit for site, edit in edits.items()}
    if given.rolled:
        made, pieces = cache_stepped(model, given, sites, False, named, first)
        streams = [torch.cat(pieces[site], 1) for site in sites]
        kept = model.adapter.kept(made.cache)
        return Baseline(given, first, streams, kept, made.logits[:, -1], made.thoughts)
    with HookSet() as hooks:
        model.hook_inputs(hooks, given)
        for site in sites:
            _hook_store(hooks, model.adapter, site, values, first)
        model.hook_edits(hooks, named)
        logits, keys_values = model.adapter.forward_keeping(given.tokens)
    return Baseline(given, first, [values[s] for s in sites], keys_values, logits)


def _hook_store(
    hooks: HookSet,
    adapter: Adapter,
    site: Site,
    values: dict[Site, Tensor],
    first: int,
    then: Callable[[Tensor], None] = lambda x: None,
) -> None:
    def store(x: Tensor) -> None:
        part = rearrange(x, FLAT)[:, first:]
        # A slice would keep the whole tensor alive.
        values[site] = part.clone() if first else part
        then(x)

    hooks.on_output(adapter.hook_point(site), str(site), store)
