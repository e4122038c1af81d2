"""Does adding a latent raise an output? Interventions on held-out places, and what to beat.

1. A latent is added as dose times the standard deviation of its coefficient (over all held-out
   examples, zeros included) times its decoder row. The effect is the change of the target's logit
   less the mean change of all logits, which a softmax takes out.
2. Anything that is added moves logits. The threshold is what directions without a meaning do:
   `controls` random mixtures of the other active latents' decoder rows (Gaussian weights), at the
   same norm of change. For a target that somebody named it is the size of their mean effects on
   that target. A target that was chosen among all outputs as the one that is raised most is
   compared with what each control does to the output that *it* raises most. Of these the `quantile`
   is taken as the ceil(quantile (controls + 1))-th smallest, so that such a mixture itself passes
   at most 1 - quantile of the time (Vovk et al. 2005). Where a site has fewer than two other active
   latents, random directions stand in. The threshold is measured on places of other groups than the
   effect.
3. The effect is averaged over the places of a group, then over groups, with Student's interval.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from circuits.hypotheses.claims import Condition, HypothesisError
from circuits.hypotheses.enrichment import mean_above, mean_interval
from circuits.hypotheses.evidence import Evidence

FEWEST_GROUPS = 3  # one for the threshold, two for the effect


@dataclass(frozen=True)
class Effect:
    """What adding a latent does to one target.

    value, low, high: mean effect over groups, logits, positive where the target is raised.
    threshold: what the size has to pass, logits. p: one-sided, against an effect of at most the
    threshold; NaN for fewer than two groups. change: norm of what was added.
    """

    value: float
    low: float
    high: float
    threshold: float
    p: float
    groups: int
    places: int
    change: float


@dataclass(frozen=True)
class Target:
    """A condition whose outputs are read, the sign that is claimed (1 raises, -1 lowers), a
    threshold of one's own (logits), and whether it was chosen among all outputs."""

    about: Condition
    sign: int
    threshold: float | None
    chosen: bool = False


def effects(
    evidence: Evidence,
    site: str,
    latent: int,
    targets: Sequence[Target],
    *,
    dose: float = 4.0,
    controls: int = 39,
    quantile: float = 0.95,
    seed: int = 0,
) -> list[Effect]:
    """Effects of adding one latent, one entry a target.

    Raises `HypothesisError` where the latent has no `change_of`, and for too few places.
    """
    rows = evidence.rows(site)
    change = change_of(evidence, site, latent, dose)
    norm = float(np.linalg.norm(change))
    if norm == 0:
        raise HypothesisError(f"latent {latent} at {site} changes nothing here: it has no dose.")
    reference, tested = split_places(evidence.places, seed)
    outputs = [evidence.outputs(t.about) for t in targets]
    found = evidence.effect(site, change[None], outputs, tested)[:, 0]
    bounds = [t.threshold for t in targets]
    if any(bound is None for bound in bounds):
        key = np.random.default_rng([seed, latent, zlib.crc32(site.encode())])
        others = control_directions(rows, evidence.alive(site), latent, controls, key) * norm
        usual = _usual(evidence, site, others, targets, outputs, reference, quantile)
        bounds = [u if b is None else b for u, b in zip(usual, bounds, strict=True)]
    by_group = over_groups(found, evidence.places[tested])
    return [
        _effect(by_group[:, i], target.sign, float(bound or 0.0), len(tested), norm)
        for i, (target, bound) in enumerate(zip(targets, bounds, strict=True))
    ]


def change_of(
    evidence: Evidence, site: str, latent: int, dose: float
) -> Float[np.ndarray, " width"]:
    """What is added: 0 for a latent that is never active, always equally active, or whose decoder
    row is 0."""
    spread = float(evidence.active(site, [latent])[:, 0].astype(np.float64).std())
    return dose * spread * evidence.rows(site)[latent].astype(np.float64)


def _usual(
    evidence: Evidence,
    site: str,
    controls: Float[np.ndarray, "control width"],
    targets: Sequence[Target],
    outputs: Sequence[Int[np.ndarray, " _"]],
    reference: Int[np.ndarray, " some"],
    quantile: float,
) -> list[float]:
    """Each target's threshold."""
    groups = evidence.places[reference]
    moved = evidence.effect(site, controls, outputs, reference)
    named = np.abs(over_groups(moved, groups).mean(0))
    peaks: dict[int, Float[np.ndarray, " control"]] = {}
    if any(t.chosen for t in targets):
        _, code, count = np.unique(groups, return_inverse=True, return_counts=True)
        weights = 1 / (count[code] * len(count))  # groups count alike
        every = evidence.mean_effects(site, controls, reference, weights)
        peaks = {1: every.max(1), -1: -every.min(1)}
    return [
        conformal(peaks[t.sign] if t.chosen else named[:, i], quantile)
        for i, t in enumerate(targets)
    ]


def _effect(
    values: Float[np.ndarray, " group"], sign: int, bound: float, places: int, norm: float
) -> Effect:
    low, high = mean_interval(values)
    p = mean_above(sign * values, bound)
    return Effect(float(values.mean()), low, high, bound, p, len(values), places, norm)


def split_places(
    places: Int[np.ndarray, " place"], seed: int
) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " others"]]:
    """Numbers of places of a third of the groups, for thresholds, and of the others, for
    effects."""
    groups = np.unique(places)
    if len(groups) < FEWEST_GROUPS:
        raise HypothesisError(
            f"latents can be added in {len(groups)} documents or images: three at least are needed."
        )
    order = np.random.default_rng(seed).permutation(groups)
    mine = np.isin(places, order[: max(1, len(groups) // 3)])
    return np.flatnonzero(mine), np.flatnonzero(~mine)


def control_directions(
    rows: Float[np.ndarray, "latent width"],
    alive: Int[np.ndarray, " some"],
    latent: int,
    count: int,
    draw: np.random.Generator,
) -> Float[np.ndarray, "control width"]:
    """Random unit vectors in the span of the decoder rows of the other active latents: mixtures
    with Gaussian weights, each row at norm 1. Where there are fewer than two, any directions."""
    norms = np.linalg.norm(rows, axis=1)
    others = np.array([int(k) for k in alive if k != latent and norms[k] > 0], dtype=int)
    if len(others) < 2:
        found = draw.standard_normal((count, rows.shape[1]))
    else:
        unit = rows[others].astype(np.float64) / norms[others, None]
        found = draw.standard_normal((count, len(others))) @ unit
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def conformal(sizes: Float[np.ndarray, " control"], quantile: float) -> float:
    """The ceil(quantile (n + 1))-th smallest; infinite where n is too small to say."""
    rank = math.ceil(quantile * (len(sizes) + 1) - 1e-9)
    return float(np.sort(sizes)[rank - 1]) if rank <= len(sizes) else float("inf")


def over_groups(
    values: Float[np.ndarray, "place ..."], groups: Int[np.ndarray, " place"]
) -> Float[np.ndarray, "group ..."]:
    """Means over the places of each group."""
    return np.stack([values[groups == g].mean(0) for g in np.unique(groups)])
