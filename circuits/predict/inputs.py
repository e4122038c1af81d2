"""What estimators are given: vectors encoded and pooled, and the steps before their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuits.labelled import Labelled
from circuits.predict.align import Align
from circuits.predict.baselines import (
    Dictionary,
)
from circuits.predict.encode import FoldSae, Kept, PoolSteps, encoded
from circuits.predict.estimators import (
    Shape,
)
from circuits.predict.folds import Side
from circuits.predict.scores import (
    PredictError,
)
from circuits.predict.vectors import Fitted, Over, Pool, Vectors
from circuits.saes import SaeSet


@dataclass(frozen=True)
class SaeFit:
    """An SAE to be trained inside the training folds, one a site.

    latents: of its dictionary; active: at a vector; steps: of training.
    """

    latents: int = 512
    active: int = 16
    steps: int = 400

    def __post_init__(self) -> None:
        if not 0 < self.active <= self.latents or self.steps < 3:
            raise PredictError(
                f"an SAE with {self.active} of {self.latents} latents active, {self.steps} steps:"
                " expected 0 < active <= latents, and at least three steps."
            )


def encode(vectors: Vectors, saes: Any) -> tuple[Vectors, Dictionary | None]:
    """Latents of SAEs that exist, and the dictionary's shape; vectors as they are otherwise."""
    if isinstance(saes, SaeSet):
        latents, active = encoded(vectors, saes)
        return latents, Dictionary(latents.width, max(1, min(round(active), latents.width)))
    if isinstance(saes, SaeFit):
        return vectors, Dictionary(saes.latents, saes.active)
    return vectors, None


def front(
    main: Vectors, saes: Any, pool: tuple[Pool, Over], seed: int
) -> tuple[list[tuple[str, Any]], Shape]:
    """Steps before every estimator's own, and the layout of what they give."""
    sites, positions = len(main.sites), len(main.positions)
    if not isinstance(saes, SaeFit):
        return [], Shape(sites, positions, main.width)
    steps: list[tuple[str, Any]] = [
        ("sae", FoldSae(sites, positions, saes.latents, saes.active, saes.steps, seed, Kept()))
    ]
    how, over = pool
    if how == "concat":
        return steps, Shape(sites, positions, saes.latents)
    steps.append(("pool", PoolSteps(sites, positions, how, over)))
    left = (1 if over in ("sites", "both") else sites, 1 if over != "sites" else positions)
    return steps, Shape(*left, saes.latents)


def bridge(
    source: Side,
    side: Side,
    train: Sequence[Labelled],
    records: Sequence[Labelled],
    align: bool,
) -> Align | None:
    """From the side that is predicted to the one trained on; None where nothing is to be done.

    Raises `PredictError` for different widths without `align`.
    """
    if align:
        return Align(source, side, [r.prompt for r in train], [r.prompt for r in records])
    if source.features.shape[1] != side.features.shape[1]:
        raise PredictError(
            f"trained on {source.features.shape[1]} features a record, but there are "
            f"{side.features.shape[1]} to predict from: use align for models of different widths."
        )
    return None


def frozen(own: Mapping[str, Any]) -> list[Fitted]:
    """Steps of estimators of one's own that arrive fitted: what they say of it, or nothing."""
    from sklearn.frozen import FrozenEstimator
    from sklearn.pipeline import Pipeline

    found = []
    for name, estimator in own.items():
        steps = estimator.steps if isinstance(estimator, Pipeline) else [(name, estimator)]
        for step, one in steps:
            inner = one.estimator if isinstance(one, FrozenEstimator) else one
            said = getattr(inner, "fitted_on", None)
            if said is not None or isinstance(one, FrozenEstimator):
                ids = None if said is None else frozenset(said)
                found.append(Fitted(f"step {step} of {name}", ids, labels=True))
    return found
