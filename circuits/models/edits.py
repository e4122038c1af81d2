"""Changing the activations at a site by a function of them, during a pass.

An edit is given the activations [row, position, width] and the position of the first of them: a
pass may begin behind a prefix that is known, or make its own embeddings slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from circuits.models.adapters import Adapter
from circuits.models.hooks import HookSet
from circuits.sites import Site

Edit = Callable[[Tensor, int], Tensor]
FLAT = "row position ... -> row position (...)"  # heads, where a site has them, side by side


def hook_edit(hooks: HookSet, adapter: Adapter, site: Site, edit: Edit, start: int) -> None:
    """Register hooks that put `edit(x, start)` in place of the activations x at `site`."""
    if site.kind == "resid_mid":
        _hook_middle(hooks, adapter, site, edit, start)
        return

    def apply(x: Tensor) -> Tensor:
        return edit(rearrange(x, FLAT), start).to(x.dtype).reshape(x.shape)

    hooks.on_output(adapter.hook_point(site), str(site), apply)


def _hook_middle(hooks: HookSet, adapter: Adapter, site: Site, edit: Edit, start: int) -> None:
    """The middle of the stream is resid_pre + attn_out and is changed through attn_out, as patches
    of it are."""
    before: list[Tensor] = []
    resid_pre, attn_out = Site(site.layer, "resid_pre"), Site(site.layer, "attn_out")

    def remember(x: Tensor) -> None:
        before.append(x)

    def apply(x: Tensor) -> Tensor:
        stream = before.pop()
        given = stream + x
        made = edit(given, start)
        new = (made - stream).to(x.dtype)  # its gradients: none past an edit that lets none through
        with torch.no_grad():  # its value by the change alone: what is left as it is, bit for bit
            new.copy_(x + (made - given))
        return new

    hooks.on_output(adapter.hook_point(resid_pre), str(resid_pre), remember)
    hooks.on_output(adapter.hook_point(attn_out), str(attn_out), apply)
