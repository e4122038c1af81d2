"""The input pattern of a latent: the direction in input space that raises it fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.features.effects import EffectError
from circuits.saes.sae import Sae

# From inputs of a model, in a batch, to the vectors that the SAE reads; differentiable.
Front = Callable[[Tensor], Float[Tensor, "input width"]]
_LATENTS_AT_ONCE = 64


def input_patterns(
    front: Front, sae: Sae, at: Tensor, latents: Sequence[int] | None = None
) -> Tensor:
    """Gradients of latents' pre-activations with respect to the input, [latent, *input].

    front: everything before the SAE, standardisation included where that is not in its weights.
    at: one input. Where `front` is linear the pattern is the same at every input; where it is not,
        it is the one at this input. latents: by default all. Gates do not matter: a latent that is
        closed has the pattern of what would open it.

    Raises `EffectError` for inputs that make no vector of the SAE's width.
    """
    chosen = list(range(sae.d_sae)) if latents is None else list(latents)
    leaf = at.detach().clone().requires_grad_()
    with torch.enable_grad():
        vector = front(leaf[None])
        if vector.shape != (1, sae.width):
            raise EffectError(
                f"one input gave vectors {tuple(vector.shape)}: (1, {sae.width}) is what the SAE "
                "reads."
            )
        before = sae.preactivations(vector.to(sae.dtype))[0, chosen]
        found = []
        for part in torch.arange(len(chosen)).split(_LATENTS_AT_ONCE):
            one = torch.zeros(len(part), len(chosen), dtype=before.dtype, device=before.device)
            one[torch.arange(len(part)), part] = 1
            [gradient] = torch.autograd.grad(
                before, leaf, one, is_grads_batched=True, retain_graph=True
            )
            found.append(gradient)
    return torch.cat(found)
