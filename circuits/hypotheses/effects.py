"""Does adding a latent raise an output? Interventions on held-out places, and what to beat.

1. A latent is added as dose times the standard deviation of its coefficient (over all held-out
   examples, zeros included) times its decoder row. The effect is the change of the target's logit
   less the mean change of all logits, which a softmax takes out.
2. Anything that is added moves logits. The threshold is what other latents do: `controls` random
   other latents of the site that are active somewhere, scaled to the same norm of change, on the
   same target; of the sizes of their mean effects the `quantile`, taken as the
   ceil(quantile (controls + 1))-th smallest, so that a latent like any other passes it at most 1 -
   quantile of the time (Vovk et al. 2005). Where a site has fewer latents, random directions of
   that norm stand in. The threshold is measured on places of other groups than the effect.
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
    """A condition whose outputs are read, the sign that is claimed (1 raises, -1 lowers), and a
    threshold of one's own (logits)."""

    about: Condition
    sign: int
    threshold: float | None


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

    Raises `HypothesisError` where the latent is never active on these data (it has no standard
    deviation), and for too few places.
    """
    rows = evidence.rows(site)
    spread = float(evidence.active(site, [latent])[:, 0].astype(np.float64).std())
    change = dose * spread * rows[latent].astype(np.float64)
    norm = float(np.linalg.norm(change))
    if norm == 0:
        raise HypothesisError(f"latent {latent} at {site} is never active here: it has no dose.")
    reference, tested = split_places(evidence.places, seed)
    outputs = [evidence.outputs(t.about) for t in targets]
    found = evidence.effect(site, change[None], outputs, tested)[:, 0]
    bounds = [t.threshold for t in targets]
    if any(bound is None for bound in bounds):
        key = np.random.default_rng([seed, latent, zlib.crc32(site.encode())])
        others = control_directions(rows, evidence.alive(site), latent, controls, key) * norm
        moved = evidence.effect(site, others, outputs, reference)
        sizes = np.abs(over_groups(moved, evidence.places[reference]).mean(0))
        usual = [conformal(sizes[:, i], quantile) for i in range(len(targets))]
        bounds = [u if b is None else b for u, b in zip(usual, bounds, strict=True)]
    by_group = over_groups(found, evidence.places[tested])
    return [
        _effect(by_group[:, i], target.sign, float(bound or 0.0), len(tested), norm)
        for i, (target, bound) in enumerate(zip(targets, bounds, strict=True))
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
    if len(groups) < 3:
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
    """Unit vectors along the decoder rows of random other latents that are active somewhere; random
    ones where there are too few."""
    norms = np.linalg.norm(rows, axis=1)
    others = [int(k) for k in alive if k != latent and norms[k] > 0]
    few = draw.permutation(others)[:count].astype(int)
    made = rows[few].astype(np.float64)
    more = draw.standard_normal((count - len(few), rows.shape[1]))
    found = np.concatenate([made, more])
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
