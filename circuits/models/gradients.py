"""Values and gradients at sites, in one forward and one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.edits import FLAT
from circuits.models.hooks import HookSet
from circuits.models.stepped import run_stepped
from circuits.sites import Site
from circuits.task import Inputs

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel


@dataclass(frozen=True)
class Gradients:
    """Values and gradients at sites.

    metric: one value a row. values, gradients: per site [row, position, width]; the gradient is of
    the sum of the metric over rows, so each row's is its own.
    """

    metric: Float[Tensor, " row"]
    values: dict[Site, Tensor]
    gradients: dict[Site, Tensor]


def differentiate(
    model: HookedModel,
    given: Inputs,
    sites: Sequence[Site],
    metric: Callable[[Tensor], Tensor],
) -> Gradients:
    """See `HookedModel.gradients`."""
    wanted = list(dict.fromkeys(sites))
    # Per site, the tensors of the pieces of the run, in order; one piece without slots to fill.
    leaves: dict[Site, list[Tensor]] = {site: [] for site in wanted}
    shown: dict[Site, list[Tensor]] = {site: [] for site in wanted}

    def start(x: Tensor) -> Tensor:
        embedded = x.clone()
        if given.embeddings is not None:
            embedded[:, list(given.slots)] = given.embeddings.to(x.dtype)
        # The graph begins here: nothing below has parameters with gradients.
        return embedded.detach().requires_grad_()

    def keep(hooks: HookSet, begin: int, stop: int) -> None:
        for site in wanted:
            _hook_leaf(model, hooks, site, leaves[site], shown[site])

    change = model.change(keep)
    with torch.enable_grad():
        if given.rolled:
            made = run_stepped(model.adapter, given, change, embed=start)
            logits = made.logits[:, -1]
        else:
            with HookSet() as hooks:
                hooks.on_output(model.adapter.embedding(), "embedding", start)
                change(hooks, 0, given.tokens.shape[1])
                logits = model.adapter.forward(given.tokens)
        values = metric(logits)
        if values.shape != logits.shape[:1]:
            raise ModelError(
                f"the metric gave the shape {tuple(values.shape)} for {logits.shape[0]} rows: "
                "expected one value a row."
            )
        flat = [piece for site in wanted for piece in leaves[site]]
        # Of a piece that nothing is made of, such as the top of one that no slot reads: 0.
        found = iter(torch.autograd.grad(values.sum(), flat, materialize_grads=True))
    grads = {s: torch.cat([rearrange(next(found), FLAT) for _ in leaves[s]], 1) for s in wanted}
    return Gradients(
        values.detach(), {s: torch.cat(v, 1).detach() for s, v in shown.items()}, grads
    )


def _hook_leaf(
    model: HookedModel, hooks: HookSet, site: Site, leaves: list[Tensor], shown: list[Tensor]
) -> None:
    def keep(x: Tensor) -> None:
        leaves.append(x)
        if site.kind != "resid_mid":
            shown.append(rearrange(x, FLAT))

    if site.kind != "resid_mid":
        hooks.on_output(model.adapter.hook_point(site), str(site), keep)
        return
    attn_out = Site(site.layer, "attn_out")
    hooks.on_output(model.adapter.hook_point(attn_out), str(attn_out), keep)

    def show(x: Tensor) -> None:
        shown.append(rearrange(x, FLAT))

    hooks.on_output(model.adapter.hook_point(site), str(site), show)
