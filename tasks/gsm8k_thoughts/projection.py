"""`prj` of CODI: from the final-norm hidden state at one position to the next input embedding."""

from __future__ import annotations

from torch import nn


class Projection(nn.Sequential):
    """Linear, GELU, Linear, LayerNorm, under the names that published checkpoints give them.

    Hidden states [..., d_model] -> embeddings [..., d_model]. The dropout has no weights and does
    nothing outside of training; it is there because the layers' names count it (`1`, `3`, `ln`).
    Source: Shen et al. 2025, CODI, arXiv:2502.21074.
    """

    def __init__(self, d_model: int, width: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Dropout(dropout), nn.Linear(d_model, width), nn.GELU(), nn.Linear(width, d_model)
        )
        self.add_module("ln", nn.LayerNorm(d_model))
