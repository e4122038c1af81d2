"""What a vector written at a site does to the logits directly, the norms' scales frozen."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.hooked import HookedModel
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
    rows = _through(getattr(model.module, "ln_final", None), model, rows)
    return rows @ unembedding(model).to(rows)


def unembedding(model: HookedModel) -> Float[Tensor, "d_model vocab"]:
    """From the final norm's output to logits."""
    module: Any = model.module
    return module.W_U


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
    if norm is None:
        return rows
    gain, centred = linear_part(norm, model)
    if centred:
        rows = rows - rows.mean(dim=-1, keepdim=True)
    return rows * gain.to(rows)


@torch.no_grad()
def linear_part(norm: Any, model: HookedModel) -> tuple[Float[Tensor, " d_model"], bool]:
    """The gain of a norm, and whether it subtracts the mean.

    Found by probing: on a vector of ones and minus ones with mean 0, whose scale is 1, a norm gives
    gain and bias alone; which of the norms it is does not matter.
    """
    if model.d_model % 2:
        raise ModelError("the norm of a stream of odd width cannot be probed.")
    signs = torch.ones(model.d_model, device=model.device, dtype=model.dtype)
    signs[1::2] = -1
    there, back = (norm(x[None, None])[0, 0] for x in (signs, -signs))
    gain, bias = (there - back) / 2 * signs, (there + back) / 2
    shifted = norm((signs + 1)[None, None])[0, 0] - bias
    centred = bool(torch.allclose(shifted, gain * signs, atol=1e-2))
    return gain.float(), centred
