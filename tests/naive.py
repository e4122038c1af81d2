"""Activation patching written a second time, as plainly as possible, on plain Hugging Face models.

No TransformerLens, no cache, no batching: one full forward a cell, with one PyTorch hook. What the
package computes cleverly is compared with this.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def layers(model: Any) -> nn.ModuleList:
    for path in ("model.layers", "transformer.h", "gpt_neox.layers"):
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        assert isinstance(found, nn.ModuleList)
        return found
    raise AssertionError(type(model))


def _parts(layer: nn.Module) -> dict[str, nn.Module]:
    """The modules whose outputs (inputs, for the projection) are the sites inside of a layer."""
    sub = dict(layer.named_children())
    attention = sub.get("self_attn") or sub.get("attn") or sub["attention"]
    inside = dict(attention.named_children())
    found = {
        "attn_out": attention,
        "mlp_out": sub["mlp"],
        "projection": inside.get("o_proj") or inside.get("c_proj") or inside["dense"],
    }
    if "post_feedforward_layernorm" in sub:  # Gemma-2 norms what is added to the stream
        found["attn_out"] = sub["post_attention_layernorm"]
        found["mlp_out"] = sub["post_feedforward_layernorm"]
    return found


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


class _Tap:
    """Reads or overwrites one site of one layer."""

    def __init__(self, model: Any, layer: int, site: str) -> None:
        self.layer = layers(model)[layer]
        self.site = site
        self.seen: Tensor | None = None
        self.change: Any = None

    def _use(self, x: Tensor) -> Tensor:
        x = x.clone()
        if self.change is not None:
            self.change(x)
        self.seen = x.detach().clone()
        return x

    def __enter__(self) -> _Tap:
        parts = _parts(self.layer)
        if self.site == "resid_pre":
            self.handle = self.layer.register_forward_pre_hook(self._on_input, with_kwargs=True)
        elif self.site == "resid_post":
            self.handle = self.layer.register_forward_hook(self._on_output)
        elif self.site == "z":
            self.handle = parts["projection"].register_forward_pre_hook(
                self._on_input, with_kwargs=True
            )
        else:
            self.handle = parts[self.site].register_forward_hook(self._on_output)
        return self

    def __exit__(self, *error: Any) -> None:
        self.handle.remove()

    def _on_input(self, module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (self._use(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._use(kwargs["hidden_states"])}

    def _on_output(self, module: Any, args: Any, output: Any) -> Any:
        return _with_first(output, self._use(_first(output)))


@torch.no_grad()
def activation(model: Any, tokens: Tensor, layer: int, site: str) -> Tensor:
    """[row, position, width] at a site of a plain Hugging Face model."""
    if site == "resid_mid":
        before = activation(model, tokens, layer, "resid_pre")
        return before + activation(model, tokens, layer, "attn_out")
    with _Tap(model, layer, site) as tap:
        model(tokens)
    assert tap.seen is not None
    return tap.seen


@torch.no_grad()
def patched_logits(
    model: Any,
    tokens: Tensor,
    layer: int,
    site: str,
    position: int | slice,
    value: Tensor,
    heads: slice | None = None,
) -> Tensor:
    """Last-position logits of `tokens` [1, position] with `value` put in."""
    if site == "resid_mid":
        return _patched_resid_mid(model, tokens, layer, position, value)
    tap = _Tap(model, layer, site)

    def change(x: Tensor) -> None:
        x[0, position, heads or slice(None)] = value

    tap.change = change
    with tap:
        return model(tokens).logits[0, -1]


def _patched_resid_mid(
    model: Any, tokens: Tensor, layer: int, position: int | slice, value: Tensor
) -> Tensor:
    """The rest of the layer computed by hand from the new middle of the stream."""
    block = layers(model)[layer]
    children = dict(block.named_children())
    middle = activation(model, tokens, layer, "resid_mid")
    middle[0, position] = value
    if "post_feedforward_layernorm" in children:
        inner = children["mlp"](children["pre_feedforward_layernorm"](middle))
        after = middle + children["post_feedforward_layernorm"](inner)
    else:
        norm = children.get("post_attention_layernorm") or children["ln_2"]
        after = middle + children["mlp"](norm(middle))

    def replace(module: Any, args: Any, output: Any) -> Any:
        return _with_first(output, after)

    handle = block.register_forward_hook(replace)
    try:
        return model(tokens).logits[0, -1]
    finally:
        handle.remove()
