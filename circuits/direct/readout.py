"""How the last position's stream is read: a direction, a scale and a constant for each prompt.

LD = <centre(x), u> / s(x) + c, with x the stream after the last block, u the difference of two
columns of the unembedding times the final norm's gain, s the norm's scale, c what the norm's and
the unembedding's biases add. Logits are those before a soft cap, which is not a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.hooked import HookedModel
from circuits.models.norms import Norm, read_norm
from circuits.models.unembed import final_norm, unembedding

Vectors = Float[Tensor, "node d_model"]
Numbers = Float[Tensor, " node"]


@dataclass(frozen=True)
class Readout:
    """u, s and c of each prompt of a run, in float64.

    stream: x, the stream after the last block at the last position.
    """

    stream: Float[Tensor, "pair d_model"]
    direction: Float[Tensor, "pair d_model"]
    constant: Float[Tensor, " pair"]
    norm: Norm | None

    @property
    def scale(self) -> Float[Tensor, " pair"]:
        """s(x); 1 in a model without a final norm."""
        return torch.ones_like(self.constant) if self.norm is None else self.norm.scale(self.stream)

    def frozen(self, vectors: Vectors, pair: Int[Tensor, " node"]) -> Numbers:
        """What vectors that are parts of the stream add to LD, with the scale as it is. The parts
        of a stream add up to LD - c."""
        return torch.linalg.vecdot(vectors, self.direction[pair]) / self.scale[pair]

    def exact(self, vectors: Vectors, pair: Int[Tensor, " node"]) -> Numbers:
        """Change of LD when the vectors are added to the stream, which is normalised again."""
        there = self.stream[pair]
        if self.norm is None:
            return self.frozen(vectors, pair)
        before, after = self.norm.scale(there), self.norm.scale(there + vectors)
        direction = self.direction[pair]
        moved = torch.linalg.vecdot(vectors, direction) / after
        # The old stream divided by the new scale, less by the old: without cancellation.
        square = self.norm.centre(vectors)
        grown = (square * (2 * self.norm.centre(there) + square)).mean(-1)
        shrunk = -grown / (after * before * (after + before))
        return moved + torch.linalg.vecdot(there, direction) * shrunk


@torch.no_grad()
def readout(
    model: HookedModel,
    stream: Float[Tensor, "pair d_model"],
    answer: Int[Tensor, " pair"],
    foil: Int[Tensor, " pair"],
) -> Readout:
    """The readout of prompts whose last position ends with `stream`."""
    stream = stream.double()
    answer, foil = answer.to(stream.device), foil.to(stream.device)
    weights = unembedding(model)
    direction = (weights[:, answer].double() - weights[:, foil].double()).T.to(stream)
    constant = stream.new_zeros(len(stream))
    module: Any = model.module
    bias = getattr(module, "b_U", None)
    if bias is not None:
        constant = constant + (bias[answer].double() - bias[foil].double())
    found = final_norm(model)
    if found is None:
        return Readout(stream, direction, constant, None)
    norm = read_norm(found, model)
    constant = constant + direction @ norm.bias
    # Centring is its own transpose, so that it can be done to the direction once.
    return Readout(stream, norm.centre(direction * norm.gain), constant, norm)
