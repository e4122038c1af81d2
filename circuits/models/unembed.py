"""What a vector written at a site does to the logits directly, the norms' scales frozen."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuits.models.hooked import HookedModel
from circuits.models.norms import read_norm
from circuits.sites import Site


@torch.no_grad()
def direct_logits(
    model: HookedModel, rows: Float[Tensor, "vector width"], site: Site
) -> Float[Tensor, "vector vocab"]:
    """Change of every logit, before any soft cap, for each vector added to the final residual
    stream, times the final norm's (frozen) scale, which is the same for all of them.

    Vectors at `z` first go through the attention's output projection and, where the model has one,
    the norm behind it, whose scale is left out in the same way. Only the direct path: what later
    layers make of the vector is not in it.
    """
    if site.kind == "z":
        rows = rows @ output_projection(model, site.layer).to(rows)
        rows = _through(norm_after_attention(model, site.layer), model, rows)
    rows = _through(final_norm(model), model, rows)
    return rows @ unembedding(model).to(rows)


def unembedding(model: HookedModel) -> Float[Tensor, "d_model vocab"]:
    """From the final norm's output to logits."""
    module: Any = model.module
    return module.W_U


def final_norm(model: HookedModel) -> Any:
    """The norm before the unembedding, None without."""
    return getattr(model.module, "ln_final", None)


def output_projection(model: HookedModel, layer: int) -> Float[Tensor, "width d_model"]:
    """From heads side by side to the residual stream."""
    module: Any = model.module
    return rearrange(module.blocks[layer].attn.W_O, "head d_head d_model -> (head d_head) d_model")


def norm_after_attention(model: HookedModel, layer: int) -> Any:
    """The norm between the output projection and the stream (Gemma-2, OLMo-2), None without."""
    module: Any = model.module
    block = module.blocks[layer]
    # A Bridge names what it calls the attention's output; a HookedTransformer has ln1_post or not.
    alias = getattr(block, "hook_aliases", {}).get("hook_attn_out", "")
    name = str(alias).split(".")[0]
    return getattr(block, "ln1_post" if name in ("", "attn") else name, None)


def _through(norm: Any, model: HookedModel, rows: Tensor) -> Tensor:
    return rows if norm is None else read_norm(norm, model).linear(rows)


def soft_cap(model: HookedModel) -> float | None:
    """What caps the logits, cap * tanh(logit / cap) (Gemma-2); None where nothing does."""
    module: Any = model.module
    cap = float(getattr(module.cfg, "output_logits_soft_cap", None) or 0)
    return cap if cap > 0 else None


def before_cap(logits: Float[Tensor, "*some"], cap: float | None) -> Float[Tensor, "*some"]:
    """Logits as they were before the soft cap, in float64."""
    wide = logits.double()
    return wide if cap is None else cap * torch.atanh(wide / cap)
