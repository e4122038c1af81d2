"""Patches: what is put where, in which row of a batch. One structure serves every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.errors import CircuitsError
from circuits.models.adapters import Adapter
from circuits.models.hooks import HookSet
from circuits.sites import Site


class PatchError(CircuitsError):
    """Patches that do not fit the batch or the model."""


@dataclass(frozen=True)
class Patches:
    """Overwrites (or additions) at one site, one entry a place.

    rows: which row of the batch each belongs to. One row may have several patches, at this and
        other sites: then they act together.
    positions: token positions, counted from the first token of the prompt.
    values: what is put there, [patch, d_model]; at `z` without heads [patch, n_heads x d_head],
        with heads [patch, d_head].
    heads: at `z` only, the head each value belongs to.
    add: add the values to what is there instead of replacing it.
    """

    site: Site
    rows: Int[Tensor, " patch"]
    positions: Int[Tensor, " patch"]
    values: Float[Tensor, "patch width"]
    heads: Int[Tensor, " patch"] | None = None
    add: bool = False

    def __post_init__(self) -> None:
        count = self.rows.shape[0]
        lengths = {self.positions.shape[0], self.values.shape[0]}
        if self.heads is not None:
            lengths.add(self.heads.shape[0])
            if self.site.kind != "z":
                raise PatchError(f"heads are patched at z, not at {self.site.kind}.")
        if lengths != {count}:
            raise PatchError(f"rows, positions, values and heads differ in length at {self.site}.")

    def of_rows(self, place: Int[Tensor, " row"], first: int) -> Patches | None:
        """The patches of some rows: `place[row]` is a row's new number, or -1 to leave it out;
        positions are counted from `first` on. None when nothing is left."""
        new_rows = place[self.rows]
        keep = (new_rows >= 0).nonzero().squeeze(1)
        if len(keep) == 0:
            return None
        return Patches(
            self.site,
            new_rows[keep],
            self.positions[keep] - first,
            self.values[keep],
            None if self.heads is None else self.heads[keep],
            self.add,
        )


def between(patches: Sequence[Patches], start: int, stop: int) -> list[Patches]:
    """The patches of the positions [start, stop), counted from `start` on."""
    found = []
    for p in patches:
        keep = ((p.positions >= start) & (p.positions < stop)).nonzero().squeeze(1)
        if len(keep):
            heads = None if p.heads is None else p.heads[keep]
            positions = p.positions[keep] - start
            found.append(
                replace(
                    p, rows=p.rows[keep], positions=positions, values=p.values[keep], heads=heads
                )
            )
    return found


def check_patches(adapter: Adapter, patches: Sequence[Patches], n_rows: int, length: int) -> None:
    """Raise `PatchError` or `SiteError` for patches that do not fit; run before any pass."""
    for patch in patches:
        adapter.hook_point(patch.site)
        whole = adapter.n_heads * adapter.d_head if patch.site.kind == "z" else adapter.d_model
        width = whole if patch.heads is None else adapter.d_head
        if patch.values.shape[1] != width:
            raise PatchError(
                f"values at {patch.site} have width {patch.values.shape[1]}, the model has {width}."
            )
        if len(patch.rows) == 0:
            continue
        bounds = [("rows", patch.rows, n_rows), ("positions", patch.positions, length)]
        if patch.heads is not None:
            bounds.append(("heads", patch.heads, adapter.n_heads))
        for name, index, stop in bounds:
            if int(index.min()) < 0 or int(index.max()) >= stop:
                raise PatchError(f"{name} at {patch.site} must lie between 0 and {stop - 1}.")


def hook_patches(hooks: HookSet, adapter: Adapter, patches: Sequence[Patches]) -> None:
    """Register hooks that apply `patches` to a pass."""
    for patch in patches:
        if patch.site.kind == "resid_mid":
            _hook_resid_mid(hooks, adapter, patch)
        else:
            point = adapter.hook_point(patch.site)
            hooks.on_output(point, str(patch.site), _overwrite(patch, adapter.n_heads))


def _hook_resid_mid(hooks: HookSet, adapter: Adapter, patch: Patches) -> None:
    """The middle of the stream is resid_pre + attn_out, so it is set through attn_out.

    A new tensor returned at hook_resid_mid of a Bridge changes only what the MLP reads and leaves
    the skip path as it was. (Writing into the tensor in place, as TransformerLens' own sweeps do,
    reaches both, but only as long as the model happens to pass the same tensor on.)
    """
    attn_out = Site(patch.site.layer, "attn_out")
    if patch.add:
        point = adapter.hook_point(attn_out)
        hooks.on_output(point, str(attn_out), _overwrite(patch, adapter.n_heads))
        return
    resid_pre = Site(patch.site.layer, "resid_pre")
    stream: list[Tensor] = []

    def remember(x: Tensor) -> None:
        stream.append(x)

    def set_attn_out(x: Tensor) -> Tensor:
        changed = x.clone()
        before = stream.pop()[patch.rows, patch.positions]
        changed[patch.rows, patch.positions] = patch.values.to(x.dtype) - before
        return changed

    hooks.on_output(adapter.hook_point(resid_pre), str(resid_pre), remember)
    hooks.on_output(adapter.hook_point(attn_out), str(attn_out), set_attn_out)


def _overwrite(patch: Patches, n_heads: int) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        changed = x.clone(memory_format=torch.contiguous_format)
        values = patch.values.to(x.dtype)
        if patch.heads is None:
            view, index = changed.view(*x.shape[:2], -1), (patch.rows, patch.positions)
        else:
            view = changed.view(*x.shape[:2], n_heads, -1)
            index = (patch.rows, patch.positions, patch.heads)
        view.index_put_(index, values, accumulate=patch.add)
        return changed

    return apply
