"""Reading a norm: its gain, bias and epsilon, and its scale at a vector.

LayerNorm, RMSNorm and their folded kinds are all gain * centre(x) / s(x) + bias with
s(x) = sqrt(mean(centre(x)^2) + epsilon), where centre subtracts the mean or does nothing. The four
are found by probing the module, so that it does not matter which kind it is or whose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.hooked import HookedModel

_LARGE, _SMALL = 1e2, 3e-3  # sizes at which epsilon does not matter, and at which it does


@dataclass(frozen=True)
class Norm:
    """A norm as numbers, in float64."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    epsilon: float
    centred: bool

    def linear(self, x: Float[Tensor, "*some d_model"]) -> Float[Tensor, "*some d_model"]:
        """gain * centre(x): what the norm does but for its scale and bias."""
        return self.centre(x) * self.gain.to(x)

    def centre(self, x: Float[Tensor, "*some d_model"]) -> Float[Tensor, "*some d_model"]:
        """x less its mean, for norms that subtract it."""
        return x - x.mean(dim=-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*some d_model"]) -> Float[Tensor, "*some"]:
        """s(x), what the norm divides by."""
        return (self.centre(x).square().mean(dim=-1) + self.epsilon).sqrt()

    def __call__(self, x: Float[Tensor, "*some d_model"]) -> Float[Tensor, "*some d_model"]:
        """The norm itself."""
        return self.linear(x) / self.scale(x)[..., None] + self.bias.to(x)


@torch.no_grad()
def read_norm(module: Any, model: HookedModel) -> Norm:
    """Probe a norm of `model` with vectors of ones and minus ones, whose mean is 0.

    Raises `ModelError` for a module that is not of the form above.
    """
    if model.d_model % 2:
        raise ModelError("the norm of a stream of odd width cannot be probed.")
    signs = torch.ones(model.d_model, device=model.device, dtype=model.dtype)
    signs[1::2] = -1
    wide = signs.double()

    def probe(x: Tensor) -> Tensor:
        return module(x[None, None])[0, 0].double()

    there, back = probe(_LARGE * signs), probe(-_LARGE * signs)
    gain, bias = (there - back) / 2 * wide, (there + back) / 2
    shifted = probe(_LARGE * (signs + 1)) - bias
    near = 1e-2 * float(gain.abs().max())
    centred = bool(torch.allclose(shifted, gain * wide, rtol=1e-2, atol=near))
    most = gain.abs().argmax()
    small = (probe(_SMALL * signs) - probe(-_SMALL * signs))[most] / 2 * wide[most]
    ratio = float(small / gain[most])
    norm = Norm(gain, bias, max(0.0, _SMALL**2 * (1 / ratio**2 - 1)), centred)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(model.d_model, generator=draw).to(signs) * 3 + 1
    found, wanted = norm(x.double()), probe(x)
    rounding = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    if float((found - wanted).norm()) > rounding * float(wanted.norm()):
        raise ModelError(
            f"{type(module).__name__} is not a LayerNorm or RMSNorm: what it adds to the logits "
            "cannot be told apart by parts."
        )
    return norm
