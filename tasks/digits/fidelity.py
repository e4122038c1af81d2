"""What is left of the classifier when its pre-activations are replaced by what the SAE has of them.

jumprelu: by their reconstruction. boolean: only which latents are active is kept; each active one
takes the mean of its activation where it was active in training data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.saes.quality import Moments
from circuits.saes.sae import Sae
from tasks.digits.network import DigitClassifier, DigitsError

Mode = Literal["jumprelu", "boolean"]
_AT_ONCE = 4096
_Z = 1.959963984540054  # 95%


@dataclass(frozen=True)
class Kept:
    """One mode against the classifier itself, on the same images.

    accuracy, baseline: shares of images. change: accuracy - baseline, with its 95% interval from
    the images that are right under one of the two alone (a paired difference).
    agreement: share of images given the same digit by both.
    explained_variance: of raw pre-activations, 1 - sum |x - x'|^2 / sum |x - mean x|^2.
    l0: mean active latents. images: how many.
    """

    mode: Mode
    accuracy: float
    baseline: float
    change: float
    low: float
    high: float
    agreement: float
    explained_variance: float
    l0: float
    images: int


@torch.no_grad()
def active_means(sae: Sae, x: Float[Tensor, "row width"]) -> Float[Tensor, " latent"]:
    """Each latent's mean activation over the vectors in which it is active; 0 if it never is."""
    total = torch.zeros(sae.d_sae, dtype=torch.float64)
    count = torch.zeros(sae.d_sae, dtype=torch.float64)
    for part in x.split(_AT_ONCE):
        found = sae.encode(part[None])[0]
        total += found.double().sum(0).cpu()
        count += (found > 0).double().sum(0).cpu()
    return (total / count.clamp(min=1)).to(x)


@torch.no_grad()
def replaced(
    sae: Sae,
    x: Float[Tensor, "row width"],
    mode: Mode,
    means: Float[Tensor, " latent"] | None = None,
) -> Float[Tensor, "row width"]:
    """Vectors as the SAE has them. means: of `active_means`, needed for boolean."""
    if mode == "jumprelu":
        return sae.reconstruct(x[None])[0]
    if means is None:
        raise DigitsError("boolean mode needs the latents' means: see `active_means`.")
    active = sae.encode(x[None])[0] > 0
    return (active * means) @ sae.rows + sae.constant_offset


def _paired(gained: int, lost: int, n: int) -> tuple[float, float]:
    """Middle and half width of the 95% interval of a paired difference of proportions (Agresti and
    Min 2005: half a pair is added to each of the four cells, so that it is never of width 0)."""
    gained_, lost_, n_ = gained + 0.5, lost + 0.5, n + 2
    middle = (gained_ - lost_) / n_
    return middle, _Z * math.sqrt((gained_ + lost_) / n_ - middle**2) / math.sqrt(n_)


@torch.no_grad()
def fidelity(
    network: DigitClassifier,
    sae: Sae,
    fitted: Float[Tensor, "row width"],
    x: Float[Tensor, "image width"],
    labels: Int[Tensor, " image"],
) -> dict[Mode, Kept]:
    """Both modes on held-out images.

    fitted: training images' pre-activations, for the means of boolean mode. x: those of the images
    that are measured.
    """
    own = network.readout(x).argmax(-1)
    right = own == labels
    means = active_means(sae, fitted)
    moments = Moments(sae.d_sae)
    for part in x.split(_AT_ONCE):
        moments.add(sae, part)
    square = float((x.double() - x.double().mean(0)).square().sum())
    found: dict[Mode, Kept] = {}
    for mode in ("jumprelu", "boolean"):
        made = replaced(sae, x, mode, means)
        said = network.readout(made).argmax(-1)
        now = said == labels
        gained, lost = int((now & ~right).sum()), int((right & ~now).sum())
        middle, error = _paired(gained, lost, len(x))
        missed = float((x.double() - made.double()).square().sum())
        found[mode] = Kept(
            mode=mode,
            accuracy=float(now.double().mean()),
            baseline=float(right.double().mean()),
            change=(gained - lost) / len(x),
            low=middle - error,
            high=middle + error,
            agreement=float((said == own).double().mean()),
            explained_variance=1 - missed / square if square else math.nan,
            l0=moments.l0,
            images=len(x),
        )
    return found
