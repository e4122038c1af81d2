"""How well SAEs reconstruct: explained variance, L0, shrinkage, and cross-entropy recovered.

The first position is left as it is and out of every sum: its norm is that of a beginning-of-text
token, a hundred times the others', on which SAEs are not trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.models.edits import Edit
from circuits.models.hooked import HookedModel
from circuits.saes.collection import SaeSet
from circuits.saes.sae import Sae
from circuits.sites import Site


class Moments:
    """Sums over vectors, added batch by batch, of what an SAE makes of them.

    explained_variance: 1 - sum |x - x'|^2 / sum |x - mean x|^2. l0: mean active latents.
    shrinkage: sum |x' - m|^2 / sum <x' - m, x - m> with m the mean of x; 1 when reconstructions
    are as long as they should be, under 1 when they are shrunk (Rajamanoharan et al. 2024).
    """

    def __init__(self, d_sae: int) -> None:
        self.rows, self.active, self.error, self.square = 0, 0, 0.0, 0.0
        self.sum: Any = 0.0
        self.made: Any = 0.0
        self.made_square, self.product = 0.0, 0.0
        self.fired = torch.zeros(d_sae, dtype=torch.long)

    def add(self, sae: Sae, x: Float[Tensor, "vector width"]) -> None:
        """Take in a batch of vectors."""
        parts = sae.decompose(x[None])
        error = parts.error[0].double()
        wide = x.double()
        made = wide - error
        self.rows += len(x)
        self.active += len(parts.latents.value)
        self.error += float(error.square().sum())
        self.sum, self.square = self.sum + wide.sum(0), self.square + float(wide.square().sum())
        self.made = self.made + made.sum(0)
        self.made_square += float(made.square().sum())
        self.product += float((made * wide).sum())
        self.fired += torch.bincount(parts.latents.latent, minlength=len(self.fired)).cpu()

    def with_(self, other: Moments) -> Moments:
        """Those of both together."""
        both = Moments(len(self.fired))
        for name in vars(both):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    @property
    def l0(self) -> float:
        """Mean number of active latents."""
        return self.active / self.rows

    @property
    def explained_variance(self) -> float:
        """Share of the variance that is reconstructed."""
        variance = self.square - float(self.sum.square().sum()) / self.rows
        return 1 - self.error / variance

    @property
    def shrinkage(self) -> float:
        """Length of reconstructions along the activations, 1 for neither shrunk nor stretched."""
        mean = self.sum / self.rows
        cross = float(mean @ self.made)
        squares = self.made_square - 2 * cross + self.rows * float(mean.square().sum())
        return squares / (self.product - cross)

    @property
    def dead(self) -> float:
        """Share of latents that were never active."""
        return float((self.fired == 0).float().mean())


def reconstruct(saes: SaeSet, site: Site) -> Edit:
    """An edit that puts the reconstruction in place of the activation, except at the first
    position. Sparse; dense where it is differentiated."""

    def edit(x: Tensor, start: int) -> Tensor:
        wide = x.to(saes[site].dtype)
        skip = 1 if start == 0 else 0
        if torch.is_grad_enabled():
            return torch.cat([wide[:, :skip], saes[site].reconstruct(wide[:, skip:])], dim=1)
        changed = wide - saes[site].decompose(wide).error
        changed[:, :skip] = wide[:, :skip]
        return changed

    return edit


def zero(x: Float[Tensor, "row position width"], start: int) -> Float[Tensor, "row position width"]:
    """An edit that removes the activation, except at the first position."""
    changed = torch.zeros_like(x)
    if start == 0:
        changed[:, 0] = x[:, 0]
    return changed


class Quality:
    """Quality of every SAE of a set on batches of tokens.

    ce_recovered is (CE_zero - CE_sae) / (CE_zero - CE_plain) of next-token cross-entropy, with the
    site's activations replaced by zero and by the reconstruction; NaN where zero changes nothing.
    """

    def __init__(self, model: HookedModel, saes: SaeSet) -> None:
        self._model, self._saes = model, saes
        self._moments = {site: Moments(saes.sources[site].d_sae) for site in saes}
        self._loss = {site: {"plain": 0.0, "sae": 0.0, "zero": 0.0} for site in saes}

    def add(
        self,
        tokens: Int[Tensor, "row position"],
        lengths: Int[Tensor, " row"] | None = None,
        progress: Callable[[], object] = lambda: None,
    ) -> None:
        """Take in a batch; lengths: of the rows, where they are padded at their end."""
        if lengths is None:
            lengths = torch.full((len(tokens),), tokens.shape[1])
        real = torch.arange(tokens.shape[1])[None] < lengths[:, None]
        plain = self._cross_entropy(tokens, real, {})
        values = self._model.activations(tokens, list(self._saes))
        for site, losses in self._loss.items():
            x = values[site].float()[:, 1:]
            self._moments[site].add(self._saes[site], x[real[:, 1:].to(x.device)])
            losses["plain"] += plain
            edit = reconstruct(self._saes, site)
            losses["sae"] += self._cross_entropy(tokens, real, {site: edit})
            losses["zero"] += self._cross_entropy(tokens, real, {site: zero})
            progress()

    def _cross_entropy(
        self,
        tokens: Int[Tensor, "row position"],
        real: Bool[Tensor, "row position"],
        edits: dict[Site, Edit],
    ) -> float:
        """Sum over predicted tokens, the one after the untouched first position left out."""
        counted = real[:, 2:].to(self._model.device)
        if self._model.thoughts is not None:  # what marks a thought is not foretold
            counted = counted & (tokens[:, 2:].to(counted.device) != self._model.thoughts.slot)
        logits = self._model.run_all_positions(tokens, edits)[:, 1:-1][counted].float()
        targets = tokens[:, 2:].to(logits.device)[counted]
        return float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))

    def table(self) -> pd.DataFrame:
        """One row a site: `site, explained_variance, l0, ce_recovered`."""
        rows = []
        for site, moments in self._moments.items():
            loss = self._loss[site]
            gap = loss["zero"] - loss["plain"]
            recovered = (loss["zero"] - loss["sae"]) / gap if gap else float("nan")
            rows.append(
                {
                    "site": str(site),
                    "explained_variance": moments.explained_variance,
                    "l0": moments.l0,
                    "ce_recovered": recovered,
                }
            )
        return pd.DataFrame(rows)
