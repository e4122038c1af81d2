"""Gradients of the metric at sites, of the model as it is: no SAE is in the graph.

The pass-through gradient (Marks et al. 2024): with latents and error as leaves and their sum passed
straight on, d metric / d latent_i = <d_i, g> and d metric / d error = g, where g is the plain
gradient at the site. So g is all that is needed, whatever the number of SAEs.

`path_gradients` averages g along the straight line between the corrupted and the clean activation
of one site, all positions together, on a Gauss-Legendre rule (integrated gradients, Sundararajan
et al. 2017). What comes after the site is recomputed at every point; what comes before does not
matter, except for sites whose write is only a part of the stream, beside which the stream stays
that of the run that is patched.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.models.hooked import HookedModel
from circuits.models.resume import Baseline
from circuits.sites import Site

# From (pair of each row, logits at the last position) to one value a row.
RowMetric = Callable[[Tensor, Tensor], Tensor]


def gauss_legendre(steps: int) -> tuple[Float[Tensor, " step"], Float[Tensor, " step"]]:
    """Points in (0, 1) and weights that add up to 1."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)


def path_gradients(
    model: HookedModel,
    baseline: Baseline,
    site: Site,
    corrupted: Float[Tensor, "pair suffix width"],
    clean: Float[Tensor, "pair suffix width"],
    metric: RowMetric,
    steps: int,
    batch_size: int | None = None,
) -> Float[Tensor, "pair suffix width"]:
    """The mean gradient between the two activations of `site`.

    baseline: the run that is patched. corrupted, clean: the site's activations from
        `baseline.first` on, for every pair of the baseline.
    """
    points, weights = gauss_legendre(steps)
    n_pairs = clean.shape[0]
    pair = torch.arange(n_pairs).repeat(steps)
    weight = weights.repeat_interleave(n_pairs)
    point = points.repeat_interleave(n_pairs)
    total = torch.zeros_like(clean)

    def values(rows: Int[Tensor, " part"]) -> Tensor:
        mine = pair[rows].to(clean.device)
        at = point[rows].to(clean)[:, None, None]
        return corrupted[mine] + at * (clean - corrupted)[mine]

    for rows, _, gradient in model.resume_gradients(
        baseline, pair, site, values, metric, batch_size
    ):
        mine = pair[rows].to(total.device)
        total.index_add_(0, mine, gradient.to(total) * weight[rows].to(total)[:, None, None])
    return total
