"""What predicts: scikit-learn pipelines in two parts, each with a few settings to choose from.

`front` is fitted on features (standardising, rotating, selecting) and shared by the settings of
`finals`, the classifiers. Both are fitted inside training folds only (folds.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest, VarianceThreshold, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from circuits.predict.scores import PredictError
from circuits.predict.sequence import SequenceClassifier

SELECTED = 256  # features that L1 and boosting are given where there are more
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of logistic regressions


@dataclass(frozen=True)
class Recipe:
    """A pipeline and the settings of its last step to choose from.

    front: steps; finals: settings by name.
    """

    name: str
    front: tuple[tuple[str, Any], ...]
    finals: dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """How a row of features is laid out: sites, positions, width, in this order."""

    sites: int
    positions: int
    width: int

    @property
    def features(self) -> int:
        """Numbers a row."""
        return self.sites * self.positions * self.width


class Rotate(TransformerMixin, BaseEstimator):
    """An exact change of coordinates where there are more features than rows.

    Weights of an L2-penalised linear model lie in the span of the training rows, so the model in
    these at most n coordinates is the same one, and much cheaper. Nothing is done otherwise.
    """

    def fit(self, X: np.ndarray, y: Any = None) -> Rotate:
        """Find an orthonormal basis of the rows' span."""
        self.basis_ = None
        if X.shape[1] > X.shape[0]:
            values, vectors = np.linalg.eigh((X @ X.T).astype(np.float64))
            keep = values > values.max() * 1e-10
            self.basis_ = X.T @ (vectors[:, keep] / np.sqrt(values[keep])).astype(X.dtype)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Coordinates in that basis."""
        return X if self.basis_ is None else X @ self.basis_


class Best(TransformerMixin, BaseEstimator):
    """The features that differ most between classes of the training rows (F test); all of them
    where there are no more than `k`."""

    def __init__(self, k: int = SELECTED) -> None:
        self.k = k

    def fit(self, X: np.ndarray, y: np.ndarray) -> Best:
        """Choose by the rows given, which are a training fold's."""
        self.chosen_ = SelectKBest(f_classif, k=min(self.k, X.shape[1])).fit(X, y)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """The chosen columns."""
        return np.asarray(self.chosen_.transform(X))


def _scaled(*more: tuple[str, Any]) -> tuple[tuple[str, Any], ...]:
    return (("varies", VarianceThreshold()), ("scale", StandardScaler()), *more)


def _l2(shape: Shape, seed: int, classes: int) -> Recipe:
    finals = {f"C={c:g}": LogisticRegression(C=c, max_iter=500) for c in STRENGTHS}
    return Recipe("logistic_l2", _scaled(("rotate", Rotate())), finals)


def _sparse(c: float, classes: int, seed: int) -> Any:
    one = LogisticRegression(C=c, l1_ratio=1, solver="liblinear", max_iter=200, random_state=seed)
    return one if classes == 2 else OneVsRestClassifier(one)


def _l1(shape: Shape, seed: int, classes: int) -> Recipe:
    finals = {f"C={c:g}": _sparse(c, classes, seed) for c in (0.01, 0.03, 0.1, 0.3)}
    return Recipe("logistic_l1", _scaled(("select", Best())), finals)


def _forest_of(seed: int, leaf: int) -> RandomForestClassifier:
    return RandomForestClassifier(200, min_samples_leaf=leaf, random_state=seed)


def _forest(shape: Shape, seed: int, classes: int) -> Recipe:
    finals = {f"leaf={leaf}": _forest_of(seed, leaf) for leaf in (3, 15)}
    return Recipe("forest", (("varies", VarianceThreshold()),), finals)


def _boosting_of(seed: int, rate: float = 0.1) -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(
        max_iter=60, max_leaf_nodes=8, learning_rate=rate, l2_regularization=1.0, random_state=seed
    )


def _boosting(shape: Shape, seed: int, classes: int) -> Recipe:
    finals = {f"rate={rate:g}": _boosting_of(seed, rate) for rate in (0.03, 0.1)}
    return Recipe("boosting", (("varies", VarianceThreshold()), ("select", Best())), finals)


def _ensemble(shape: Shape, seed: int, classes: int) -> Recipe:
    parts = [
        ("linear", LogisticRegression(C=1e-2, max_iter=500)),
        ("forest", _forest_of(seed, 5)),
        ("boosting", _boosting_of(seed)),
    ]
    vote = VotingClassifier(parts, voting="soft")
    return Recipe("ensemble", _scaled(("select", Best())), {"soft vote": vote})


def _sequence(shape: Shape, seed: int, classes: int) -> Recipe:
    finals = {
        f"width={size}": SequenceClassifier(shape.sites, shape.positions, size, seed=seed)
        for size in (8, 32)
    }
    return Recipe("sequence", (("scale", StandardScaler()),), finals)


_MAKERS: dict[str, Callable[[Shape, int, int], Recipe]] = {
    "logistic_l2": _l2,
    "logistic_l1": _l1,
    "forest": _forest,
    "boosting": _boosting,
    "ensemble": _ensemble,
    "sequence": _sequence,
}
ESTIMATORS = tuple(_MAKERS)
DEFAULT = ("logistic_l2", "logistic_l1", "forest", "boosting", "ensemble")


def recipe(name: str, shape: Shape, seed: int, classes: int) -> Recipe:
    """The recipe of a name; raises `PredictError` for an unknown one."""
    check_estimators([name])
    return _MAKERS[name](shape, seed, classes)


def check_estimators(names: Sequence[str]) -> None:
    """Raise `PredictError` for no estimator, an unknown one, or one that is named twice."""
    unknown = [name for name in names if name not in ESTIMATORS]
    if unknown or not names:
        raise PredictError(
            f"unknown estimator {', '.join(map(repr, unknown)) or '(none)'}: expected some of "
            f"{', '.join(ESTIMATORS)}."
        )
    if len(set(names)) < len(names):
        raise PredictError(f"estimators {', '.join(names)}: one is named twice.")


def own_recipe(name: str, estimator: Any) -> Recipe:
    """A recipe of an estimator of one's own: cloned and fitted in every training fold."""
    if not hasattr(estimator, "fit") or not hasattr(estimator, "predict_proba"):
        raise PredictError(
            f"estimator {name!r} needs fit and predict_proba, as scikit-learn's classifiers have."
        )
    return Recipe(name, (), {"as given": estimator})


def surface_recipe(name: str) -> Recipe:
    """Logistic regression or boosting on surface numbers, whichever the inner folds prefer: a
    baseline must not lose because it was kept linear."""
    steps: tuple[tuple[str, Any], ...] = (
        ("fill", SimpleImputer(add_indicator=True, keep_empty_features=True)),
        ("scale", StandardScaler()),
    )
    finals: dict[str, Any] = {
        f"C={c:g}": LogisticRegression(C=c, max_iter=500) for c in (1e-2, 1e-1, 1.0)
    }
    finals["boosting"] = _boosting_of(0)
    return Recipe(name, steps, finals)


def pca_recipe(shape: Shape, rows: int, seed: int, most: int = 32) -> Recipe:
    """Logistic regression on the first principal components of the activations."""
    size = min(most, shape.features, rows // 3)
    steps = _scaled(("pca", PCA(size, random_state=seed)), ("unit", StandardScaler()))
    finals = {f"C={c:g}": LogisticRegression(C=c, max_iter=500) for c in (1e-3, 1e-2, 1e-1, 1.0)}
    return Recipe("pca", steps, finals)


def with_front(given: Recipe, *steps: tuple[str, Any]) -> Recipe:
    """A recipe with steps before its own."""
    return Recipe(given.name, (*steps, *given.front), given.finals)


def pipeline(given: Recipe, final: Any) -> Pipeline:
    """All of a recipe as one scikit-learn pipeline."""
    return Pipeline([*given.front, ("classifier", final)])
