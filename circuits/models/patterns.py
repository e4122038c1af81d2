"""Attention patterns: how much each head looks from one position to another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.hooked import HookedModel
from circuits.models.hooks import HookSet
from circuits.sites import SiteError

_ROWS_ADD_UP = 1e-3


@torch.no_grad()
def attention_patterns(
    model: HookedModel, tokens: Int[Tensor, "row position"], layers: Sequence[int]
) -> dict[int, Float[Tensor, "row head from to"]]:
    """The attention weights of every head of some layers; each row over `to` adds up to 1.
    Prompts mean what `HookedModel.inputs` makes of them, thoughts included.

    Raises `SiteError` for layers the model lacks and models without a hook on their patterns, and
    `ModelError` where what the hook shows is no pattern.
    """
    found: dict[int, Tensor] = {}
    given = model.inputs(tokens)
    if given.rolled:  # in one pass: the same thoughts, written in
        given = model.roll(given)
    with HookSet() as hooks:
        model.hook_inputs(hooks, given)
        for layer in dict.fromkeys(layers):
            _hook(hooks, model, layer, found)
        model.adapter.forward(given.tokens)
    shape = (tokens.shape[0], model.n_heads, tokens.shape[1], tokens.shape[1])
    for layer, pattern in found.items():
        if tuple(pattern.shape) != shape:
            raise ModelError(
                f"the attention pattern of layer {layer} has the shape {tuple(pattern.shape)}, "
                f"expected {shape}: this model's patterns cannot be read."
            )
        if (pattern.float().sum(-1) - 1).abs().max() > _ROWS_ADD_UP:
            raise ModelError(
                f"attention weights of layer {layer} do not add up to 1 (sinks, or another "
                "normalisation): they are no features that could be compared."
            )
    return found


def _hook(hooks: HookSet, model: HookedModel, layer: int, found: dict[int, Tensor]) -> None:
    if not 0 <= layer < model.n_layers:
        raise SiteError(f"layer {layer}: the model has layers 0 to {model.n_layers - 1}.")

    def store(x: Tensor) -> None:
        found[layer] = x

    point = model.adapter.pattern_point(layer)
    hooks.on_output(point, f"attention pattern {layer}", store)
