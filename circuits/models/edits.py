"""Changing the activations at a site by a function of them, during a pass."""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor

from circuits.models.adapters import Adapter
from circuits.models.hooks import HookSet
from circuits.sites import Site

Edit = Callable[[Tensor], Tensor]
FLAT = "row position ... -> row position (...)"  # heads, where a site has them, side by side


def hook_edit(hooks: HookSet, adapter: Adapter, site: Site, edit: Edit) -> None:
    """Register hooks that put `edit(x)` in place of the activations x at `site`."""
    if site.kind == "resid_mid":
        _hook_middle(hooks, adapter, site, edit)
        return

    def apply(x: Tensor) -> Tensor:
        return edit(rearrange(x, FLAT)).to(x.dtype).reshape(x.shape)

    hooks.on_output(adapter.hook_point(site), str(site), apply)


def _hook_middle(hooks: HookSet, adapter: Adapter, site: Site, edit: Edit) -> None:
    """The middle of the stream is resid_pre + attn_out and is changed through attn_out, as patches
    of it are."""
    before: list[Tensor] = []
    resid_pre, attn_out = Site(site.layer, "resid_pre"), Site(site.layer, "attn_out")

    def remember(x: Tensor) -> None:
        before.append(x)

    def apply(x: Tensor) -> Tensor:
        stream = before.pop()
        return (edit(stream + x) - stream).to(x.dtype)

    hooks.on_output(adapter.hook_point(resid_pre), str(resid_pre), remember)
    hooks.on_output(adapter.hook_point(attn_out), str(attn_out), apply)
