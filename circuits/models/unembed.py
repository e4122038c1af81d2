"""What a vector written at a site does to the logits directly, the final norm's scale frozen."""

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
    """Change of every logit for each vector added to the final residual stream, times the final
    norm's (frozen) scale, which is the same for all of them.

    Vectors at `z` first go through the attention's output projection. Only the direct path: what
    later layers make of the vector is left out.
    """
    if site.kind == "z":
        rows = rows @ output_projection(model, site.layer).to(rows)
    gain, centred = final_norm(model)
    if centred:
        rows = rows - rows.mean(dim=-1, keepdim=True)
    return (rows * gain.to(rows)) @ unembedding(model).to(rows)


def unembedding(model: HookedModel) -> Float[Tensor, "d_model vocab"]:
    """From the final norm's output to logits."""
    module: Any = model.module
    return module.W_U


def output_projection(model: HookedModel, layer: int) -> Float[Tensor, "width d_model"]:
    """From heads side by side to the residual stream."""
    module: Any = model.module
    return rearrange(module.blocks[layer].attn.W_O, "head d_head d_model -> (head d_head) d_model")


@torch.no_grad()
def final_norm(model: HookedModel) -> tuple[Float[Tensor, " d_model"], bool]:
    """The gain of the final norm, and whether it subtracts the mean.

    Found by probing: on a vector of ones and minus ones with mean 0, whose scale is 1, the norm
    gives gain and bias alone; which of the norms it is does not matter.
    """
    norm = getattr(model.module, "ln_final", None)
    if norm is None:
        return torch.ones(model.d_model, device=model.device), False
    if model.d_model % 2:
        raise ModelError("the final norm of a stream of odd width cannot be probed.")
    signs = torch.ones(model.d_model, device=model.device, dtype=model.dtype)
    signs[1::2] = -1
    there, back = (norm(x[None, None])[0, 0] for x in (signs, -signs))
    gain = (there - back) / 2 * signs
    constant = torch.ones_like(signs)
    shifted = norm((signs + constant)[None, None])[0, 0]
    bias = (there + back) / 2
    centred = bool(torch.allclose(shifted - bias, gain * signs, atol=1e-2))
    return gain.float(), centred
