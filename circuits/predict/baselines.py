"""What a prediction from inside the model has to beat.

majority: the training rows' shares of classes. question, completion, steps, output, given, all:
surface numbers (surface.py), each by logistic regression or boosting. nearest_prompt: the label of
the training prompt most like it, or its opposite where that scores better, which is generous to the
baseline. When features are SAE latents, also raw: the activations themselves; pca: their first
principal components; random_sae: a random dictionary of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from circuits.labelled import Labelled
from circuits.predict.encode import RandomSae
from circuits.predict.estimators import (
    Recipe,
    Shape,
    pca_recipe,
    recipe,
    surface_recipe,
    with_front,
)
from circuits.predict.folds import Held, Side, cross_predict
from circuits.predict.scores import Truth, auc
from circuits.predict.surface import surface_groups


@dataclass(frozen=True)
class Dictionary:
    """Shape of an SAE: latents, and how many of them are active at a vector."""

    latents: int
    active: int


# Every name a baseline can have; estimators of one's own need others.
BASELINES = ("majority", "nearest_prompt", "question", "completion", "steps", "output", "given")
BASELINES += ("all", "raw", "pca", "random_sae")


def question_baselines(
    records: Sequence[Labelled], train: Sequence[Labelled] | None = None
) -> Iterator[tuple[Recipe, np.ndarray, np.ndarray]]:
    """(recipe, features of the training side, features of the rows that are predicted)."""
    every = [*(train or []), *records]
    first = len(train or [])
    for name, table in surface_groups(every).items():
        mine = table[first:]
        yield surface_recipe(name), (table[:first] if train else mine), mine


def activation_baselines(
    shape: Shape, dictionary: Dictionary, rows: int, classes: int, seed: int
) -> list[Recipe]:
    """Recipes on the activations that latents were made from."""
    plain = recipe("logistic_l2", shape, seed, classes)
    random = RandomSae(
        shape.sites, shape.positions, dictionary.latents, dictionary.active, seed=seed
    )
    return [
        Recipe("raw", plain.front, plain.finals),
        pca_recipe(shape, rows, seed),
        with_front(Recipe("random_sae", plain.front, plain.finals), ("random", random)),
    ]


def majority(train: Side, truth: Truth) -> Held:
    """Shares of classes in the training rows, for every row: AUC one half."""
    proba = np.zeros((len(truth.classes), truth.n_classes))
    seen = []
    for fold in np.unique(truth.folds):
        rows = train.truth.folds != fold
        share = np.bincount(train.truth.classes[rows], minlength=truth.n_classes) / rows.sum()
        proba[truth.folds == fold] = share
        seen.append(frozenset(i for i, r in zip(train.ids, rows, strict=True) if r))
    none = ("",) * len(seen)
    return Held("majority", proba, (0.5,) * len(seen), none, tuple(seen))


def nearest_prompt(side: Side, copied: Int[np.ndarray, " record"]) -> Held:
    """The class of the nearest training prompt (`audit.check_split`)."""
    truth = side.truth
    proba = np.eye(truth.n_classes)[copied]
    one = np.ones((1, len(copied)), dtype=np.float32)
    if truth.n_classes == 2 and auc(truth, proba, one)[0] < 0.5:
        proba = proba[:, ::-1].copy()
    folds = np.unique(truth.folds)
    seen = tuple(
        frozenset(i for i, f in zip(side.ids, truth.folds, strict=True) if f != fold)
        for fold in folds
    )
    nothing = (float("nan"),) * len(folds)
    return Held("nearest_prompt", proba, nothing, ("",) * len(folds), seen)


def surface_held(
    given: tuple[Recipe, np.ndarray, np.ndarray], train: Side, test: Side | None, seed: int
) -> Held:
    """Held-out predictions of one of `question_baselines`."""
    made, x, z = given
    first = Side(train.ids, x, train.truth)
    second = None if test is None else Side(test.ids, z, test.truth)
    return cross_predict(made, first, second, seed=seed)
