"""Sparse encoding: the active latents of some vectors, without what is 0.

For the architectures that most SAEs have (standard, JumpReLU, TopK) the pre-activations are made by
one product and the active ones read from them directly; SAELens' own `encode` makes several dense
arrays more. For all others its `encode` is used. The results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# From vectors to (vector, latent, activation) of every active latent, in the order of vectors.
Found = tuple[Int[Tensor, " active"], Int[Tensor, " active"], Float[Tensor, " active"]]
SparseEncoder = Callable[[Float[Tensor, "vector width"]], Found]


def sparse_encoder(sae: Any) -> SparseEncoder:
    """The encoder of a SAELens SAE."""
    architecture, activation = sae.cfg.architecture(), getattr(sae, "activation_fn", None)
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return lambda x: _of_dense(sae.encode(x[None])[0])
    if architecture == "jumprelu" and isinstance(activation, nn.ReLU):
        return lambda x: _above(_before(sae, x), sae.threshold.clamp(min=0))
    if architecture == "standard" and isinstance(activation, nn.ReLU):
        return lambda x: _above(_before(sae, x), 0.0)
    k: Any = getattr(activation, "k", None)
    if architecture == "topk" and k is not None:
        return lambda x: _largest(_before(sae, x), int(k))
    return lambda x: _of_dense(sae.encode(x[None])[0])


def narrow_encoder(
    sae: Any, latents: Sequence[int]
) -> Callable[[Float[Tensor, "vector width"]], Float[Tensor, "vector some"]] | None:
    """An encoder of these latents alone, which reads only their columns; None for architectures
    whose gate needs more than a latent's own pre-activation (TopK, gated) or whose form is unknown.
    """
    activation = getattr(sae, "activation_fn", None)
    kind = sae.cfg.architecture()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return None
    if kind not in ("standard", "jumprelu") or not isinstance(activation, nn.ReLU):
        return None
    which = torch.tensor(list(latents), dtype=torch.long, device=sae.W_enc.device)
    weights, bias = sae.W_enc[:, which], sae.b_enc[which]
    threshold = sae.threshold[which].clamp(min=0) if kind == "jumprelu" else torch.zeros_like(bias)

    def encode(x: Tensor) -> Tensor:
        before = sae.process_sae_in(x[None])[0] @ weights + bias
        return torch.where(before > threshold, before, 0.0)

    return encode


def _before(sae: Any, x: Tensor) -> Tensor:
    """Pre-activations. The bias is added in place: another array of this size costs a tenth of the
    product."""
    return (sae.process_sae_in(x[None])[0] @ sae.W_enc).add_(sae.b_enc)


def _above(before: Tensor, threshold: Tensor | float) -> Found:
    flat = (before > threshold).flatten().nonzero().squeeze(1)
    vector = flat.div(before.shape[1], rounding_mode="floor")
    return vector, flat - vector * before.shape[1], before.flatten()[flat]


def _largest(before: Tensor, k: int) -> Found:
    values, latents = before.topk(k, dim=-1, sorted=False)
    vectors = torch.arange(len(before), device=before.device).repeat_interleave(k)
    active = values.flatten() > 0
    return vectors[active], latents.flatten()[active], values.flatten()[active]


def _of_dense(dense: Tensor) -> Found:
    vector, latent = dense.nonzero(as_tuple=True)
    return vector, latent, dense[vector, latent]
