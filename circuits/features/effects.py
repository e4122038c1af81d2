"""What latents do to the outputs of a model, by intervention: written in, and taken out.

With x a vector that an SAE reads, a_j latent j's coefficient in it and d_j its decoder row, in the
units of x, a dose of k changes x to x + k s_j d_j, with s_j the standard deviation of a_j over the
vectors; taking the latent out changes it to x - a_j d_j. The effect is what that changes in what
the rest of the model makes of x. Everything else in x, the SAE's error too, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from circuits.errors import CircuitsError
from circuits.metrics import bootstrap_weights
from circuits.saes.sae import Sae

# What the rest of a model makes of vectors.
Readout = Callable[[Float[Tensor, "vector width"]], Float[Tensor, "vector output"]]
DOSES = (-2.0, -1.0, 1.0, 2.0)
_VECTORS_AT_ONCE = 1 << 15
FEWEST = 5  # active examples from which on a mean over them is told


class EffectError(CircuitsError):
    """Interventions that cannot be made."""


@dataclass(frozen=True, eq=False)
class Interval:
    """A mean over examples with its 95% bootstrap interval; NaN where there is no mean."""

    mean: NDArray[np.floating]
    low: NDArray[np.floating]
    high: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Effects:
    """Changes of outputs, averaged over examples, in the units of the outputs.

    latents: which. doses: in standard deviations of each. scale: those standard deviations, in
        units of the latent, [latent]. examples: how many were changed.
    written: [latent, dose, output], on all of them. removed: [latent, output], on those in which
        the latent is active; `active` is how many those are, and under `FEWEST` of them there is no
        effect (NaN). Positive: the output is higher with the latent written in, or taken out.
    """

    latents: tuple[int, ...]
    doses: tuple[float, ...]
    scale: NDArray[np.floating]
    written: Interval
    removed: Interval
    active: NDArray[np.integer]
    examples: int

    def at(self, dose: float) -> Interval:
        """Of one dose, [latent, output]; raises `EffectError` for one that was not given."""
        if dose not in self.doses:
            raise EffectError(f"dose {dose}: there are {', '.join(map(str, self.doses))}.")
        i = self.doses.index(dose)
        return Interval(*(getattr(self.written, name)[:, i] for name in ("mean", "low", "high")))


def spread(sae: Sae, vectors: Float[Tensor, "vector width"]) -> Float[Tensor, " latent"]:
    """The standard deviation of every latent's coefficient, 0 where it is not active included."""
    total = torch.zeros(sae.d_sae, dtype=torch.float64)
    square = torch.zeros(sae.d_sae, dtype=torch.float64)
    for part in vectors.split(_VECTORS_AT_ONCE):
        found = sae.coefficients(part.to(sae.dtype)).double().cpu()
        total += found.sum(0)
        square += found.square().sum(0)
    mean = total / len(vectors)
    return (square / len(vectors) - mean.square()).clamp(min=0).sqrt()


@torch.no_grad()
def latent_effects(
    readout: Readout,
    sae: Sae,
    vectors: Float[Tensor, "vector width"],
    latents: Sequence[int] | None = None,
    *,
    doses: Sequence[float] = DOSES,
    scale: Float[Tensor, " latent"] | None = None,
    most: int = 4096,
    resamples: int = 1000,
    seed: int = 0,
) -> Effects:
    """Write latents in, in several doses, and take them out, on examples that were not used to
    find out what they are.

    readout: the rest of the model. latents: by default all. scale: standard deviations of all
        latents (`spread`), by default over `vectors`; a latent without any gets no dose (0).
    most: examples that are changed, at most; drawn with `seed`. resamples: of the intervals; 0 for
        none (NaN).

    Raises `EffectError` for no vectors, no doses or a dose of 0, and latents that there are not.
    """
    chosen = tuple(range(sae.d_sae)) if latents is None else tuple(latents)
    given = tuple(float(d) for d in doses)
    _check(sae, vectors, chosen, given)
    wide = spread(sae, vectors) if scale is None else scale.double().cpu()
    if len(vectors) > most:
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
        vectors = vectors[order[:most].sort().values.to(vectors.device)]
    device = vectors.device
    plain = readout(vectors)
    coefficients = sae.coefficients(vectors.to(sae.dtype))[:, list(chosen)].to(vectors)
    rows = sae.rows[list(chosen)].to(vectors)
    kinds, outputs, n = len(given), plain.shape[1], len(vectors)
    weights = torch.from_numpy(bootstrap_weights(n, resamples, seed))
    means = np.full((3, len(chosen), kinds, outputs), np.nan)
    taken = np.full((3, len(chosen), outputs), np.nan)
    active = (coefficients != 0).sum(0).cpu().numpy()
    steps = torch.tensor(given, device=device, dtype=vectors.dtype)
    step = max(1, _VECTORS_AT_ONCE // (n * (kinds + 1)))
    for first in range(0, len(chosen), step):
        some = range(first, min(len(chosen), first + step))
        amount = steps[None] * wide[[chosen[i] for i in some]].to(steps)[:, None]
        amounts = amount[:, :, None].expand(len(some), kinds, n)
        amounts = torch.cat([amounts, -coefficients[:, some].T[:, None]], 1)
        x = vectors + amounts[..., None] * rows[some][:, None, None]
        changed = readout(x.reshape(-1, x.shape[-1])).reshape(len(some), kinds + 1, n, outputs)
        change = (changed - plain).double().cpu()
        place = slice(some.start, some.stop)
        means[:, place] = _interval(change[:, :-1], weights)
        present = (coefficients[:, some] != 0).T.cpu()
        taken[:, place] = _interval_where(change[:, -1], present, weights)
    return Effects(
        chosen,
        given,
        wide[list(chosen)].numpy(),
        Interval(*means),
        Interval(*taken),
        active,
        n,
    )


def _check(sae: Sae, vectors: Tensor, latents: Sequence[int], doses: Sequence[float]) -> None:
    if len(vectors) < 2:
        raise EffectError(f"{len(vectors)} vectors: effects are averaged over two at least.")
    if not doses or 0.0 in doses or len(set(doses)) < len(doses):
        raise EffectError(f"doses {doses}: some different ones that are not 0 are needed.")
    wrong = [j for j in latents if not 0 <= j < sae.d_sae]
    if wrong or not latents:
        raise EffectError(f"latents {wrong or latents}: there are 0 to {sae.d_sae - 1}.")


def _interval(change: Float[Tensor, "latent dose example output"], weights: Tensor) -> np.ndarray:
    if not len(weights):
        none = torch.full_like(change[:, :, 0], torch.nan)
        return torch.stack([change.mean(2), none, none]).numpy()
    drawn = torch.einsum("re,ldeo->ldro", weights, change)
    bounds = torch.tensor([0.025, 0.975], dtype=drawn.dtype)
    low, high = drawn.quantile(bounds, dim=2)
    return torch.stack([change.mean(2), low, high]).numpy()


def _interval_where(
    change: Float[Tensor, "latent example output"], present: Tensor, weights: Tensor
) -> np.ndarray:
    """The same over the examples in which a latent is active; NaN under `FEWEST` of them. Draws
    that have none of them say nothing and are left out."""
    number = present.sum(1)
    masked = change * present[..., None]
    mean = masked.sum(1) / number[:, None]
    low = high = torch.full_like(mean, torch.nan)
    if len(weights):
        count = present.to(change.dtype) @ weights.T
        drawn = torch.einsum("re,leo->lro", weights, masked) / count[..., None]
        bounds = torch.tensor([0.025, 0.975], dtype=drawn.dtype)
        low, high = drawn.nanquantile(bounds, dim=1)
    found = torch.stack([mean, low, high]).numpy()
    found[:, (number < FEWEST).numpy()] = np.nan
    return found
