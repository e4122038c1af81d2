"""Grouped, nested cross-validation.

1. Groups are dealt into outer folds, classes as evenly as groups allow.
2. For each outer fold, the other folds' rows are dealt into inner folds, by groups again. Every
   setting of every recipe is fitted on inner training rows and scored (AUC) on the inner held-out
   ones; the best setting is fitted on all of the outer training rows and predicts the outer fold.
3. `chosen` takes, for each outer fold, the predictions of the recipe that was best *inside*.

Everything that is fitted is fitted within one of these calls, and the ids of the rows it saw are
kept: the audit compares them with those of the rows that were predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline

from circuits.predict.estimators import Recipe
from circuits.predict.scores import PredictError, Truth

INNER = 3
_TRIES = 20  # shuffles, until every fold has every class


@dataclass(frozen=True, eq=False)
class Side:
    """Rows that are trained on, or predicted: ids, features, and what is true of them."""

    ids: tuple[str, ...]
    features: Float[np.ndarray, "record feature"]
    truth: Truth


@dataclass(frozen=True, eq=False)
class Held:
    """Held-out predictions of one recipe.

    proba: [record, class]. inner: AUC in the inner folds, one an outer fold. settings: chosen ones.
    fitted_on: ids of the rows everything was fitted on, one set an outer fold.
    """

    name: str
    proba: Float[np.ndarray, "record class"]
    inner: tuple[float, ...]
    settings: tuple[str, ...]
    fitted_on: tuple[frozenset[str], ...]


# From (rows to train on, rows to predict, fold) to the features of both in one space.
Bridge = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def deal(
    classes: Int[np.ndarray, " record"],
    groups: Int[np.ndarray, " record"],
    folds: int,
    seed: int,
    level: str = "outer",
) -> Int[np.ndarray, " record"]:
    """The fold of every record. Raises `PredictError` where no deal gives folds all classes."""
    wanted = len(np.unique(classes))
    for attempt in range(_TRIES):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + 1000 * attempt)
        found = np.zeros(len(classes), dtype=int)
        for fold, (_, test) in enumerate(splitter.split(classes, classes, groups)):
            found[test] = fold
        if all(len(np.unique(classes[found == fold])) == wanted for fold in range(folds)):
            return found
    raise PredictError(
        f"{len(np.unique(groups))} groups cannot be dealt into {folds} {level} folds that have all "
        f"{wanted} classes: take {'fewer folds or ' if level == 'outer' else ''}more records."
    )


def cross_predict(
    recipe: Recipe,
    train: Side,
    test: Side | None = None,
    *,
    seed: int = 0,
    bridge: Bridge | None = None,
) -> Held:
    """Predict every row of `test` (by default of `train`) from models that never saw its group.

    test: rows of another model or data set, dealt into the same folds by group.
    bridge: brings features of both sides into one space; fitted on training folds only.
    """
    aim = test or train
    proba = np.zeros((len(aim.ids), train.truth.n_classes))
    inner, settings, fitted_on = [], [], []
    for fold in np.unique(aim.truth.folds):
        rows = np.flatnonzero(train.truth.folds != fold)
        here = np.flatnonzero(aim.truth.folds == fold)
        x, z = train.features[rows], aim.features[here]
        if bridge is not None:
            x, z = bridge(rows, here, int(fold))
        y, groups = train.truth.classes[rows], train.truth.groups[rows]
        setting, score = choose(recipe, x, y, groups, seed)
        fitted = _fit(recipe.front, recipe.finals[setting], x, y)
        proba[here] = _proba(fitted, z, train.truth.n_classes)
        inner.append(score)
        settings.append(setting)
        fitted_on.append(frozenset(train.ids[i] for i in rows))
    return Held(recipe.name, proba, tuple(inner), tuple(settings), tuple(fitted_on))


def choose(
    recipe: Recipe, x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[str, float]:
    """The setting with the best AUC over inner folds of the rows given, and that AUC."""
    found = np.zeros((INNER, len(recipe.finals)))
    parts = deal(y, np.unique(groups, return_inverse=True)[1], INNER, seed + 1, "inner")
    for part in range(INNER):
        fit, look = parts != part, parts == part
        front = Pipeline([*clone_steps(recipe.front), ("last", "passthrough")])
        inside = front.fit(x[fit], y[fit]).transform(x[fit])
        outside = front.transform(x[look])
        for number, final in enumerate(recipe.finals.values()):
            copy: Any = clone(final)
            said = _proba(copy.fit(inside, y[fit]), outside, int(y.max()) + 1)
            found[part, number] = _auc(y[look], said)
    best = int(found.mean(0).argmax())
    return list(recipe.finals)[best], float(found.mean(0)[best])


def clone_steps(steps: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Unfitted copies."""
    return [(name, clone(step)) for name, step in steps]


def _fit(front: Sequence[tuple[str, Any]], final: Any, x: np.ndarray, y: np.ndarray) -> Pipeline:
    return Pipeline([*clone_steps(front), ("classifier", clone(final))]).fit(x, y)


def _proba(fitted: Any, x: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities of all classes; 0 for those the training rows did not have."""
    found = np.zeros((len(x), classes))
    found[:, np.asarray(fitted.classes_, dtype=int)] = fitted.predict_proba(x)
    return found


def _auc(y: np.ndarray, proba: np.ndarray) -> float:
    """Macro one-against-rest; by ranks, for scikit-learn's takes longer than a small fit."""
    found = []
    for which in (1,) if proba.shape[1] == 2 else range(proba.shape[1]):
        positive = y == which
        n, ranks = positive.sum(), rankdata(proba[:, which])
        found.append((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(y) - n)))
    return float(np.mean(found))


def chosen(held: Sequence[Held], folds: Int[np.ndarray, " record"]) -> Held:
    """For each outer fold the predictions of the recipe with the best AUC in its inner folds: no
    held-out label takes part in the choice."""
    numbers = np.unique(folds)
    proba = np.zeros_like(held[0].proba)
    names, inner, seen = [], [], []
    for place, fold in enumerate(numbers):
        best = max(held, key=lambda h: h.inner[place])
        proba[folds == fold] = best.proba[folds == fold]
        names.append(f"{best.name} {best.settings[place]}")
        inner.append(best.inner[place])
        seen.append(best.fitted_on[place])
    return Held("chosen", proba, tuple(inner), tuple(names), tuple(seen))


def permuted_auc(
    make: Callable[[np.ndarray], np.ndarray], recipe: Recipe, side: Side, moved: np.ndarray
) -> Float[np.ndarray, " permutation"]:
    """AUC of the whole pipeline, everything refitted, when labels are permuted over groups.

    make: the features for given labels, which anything done before the folds may look at.
    moved: permutations (scores.permutations). One setting, the middle one, is fitted: chance is
    chance for any of them.
    """
    from circuits.predict.scores import auc

    final = list(recipe.finals.values())[len(recipe.finals) // 2]
    found = []
    weights = np.ones((1, len(side.ids)), dtype=np.float32)
    for order in moved:
        classes = side.truth.classes[order]
        x = make(classes)
        truth = Truth(classes, side.truth.groups, side.truth.folds, side.truth.n_classes)
        proba = np.zeros((len(side.ids), truth.n_classes))
        for fold in np.unique(truth.folds):
            fit, here = truth.folds != fold, truth.folds == fold
            fitted = _fit(recipe.front, final, x[fit], classes[fit])
            proba[here] = _proba(fitted, x[here], truth.n_classes)
        found.append(float(auc(truth, proba, weights)[0]))
    return np.array(found)
