"""Scores against scikit-learn and by hand, permutations, effects, and the parts of pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from circuits.predict.encode import FoldSae, Kept, PoolSteps, RandomSae
from circuits.predict.estimators import ESTIMATORS, Best, Rotate, Shape, pipeline, recipe
from circuits.predict.folds import Side, chosen, cross_predict, deal
from circuits.predict.localise import effects, localise, null_effects
from circuits.predict.scores import (
    PredictError,
    Truth,
    accuracy,
    auc,
    brier,
    calibration,
    confusion,
    interval,
    null_auc,
    permutation_p,
    permutations,
)
from circuits.predict.sequence import SequenceClassifier

ONE = np.ones((1, 60), dtype=np.float32)


def drawn(classes: int, folds: int = 1, seed: int = 0, n: int = 60) -> tuple[Truth, np.ndarray]:
    """Random labels in groups of two, and random probabilities that know something."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    proba = rng.dirichlet(np.ones(classes), size=n) + 0.5 * np.eye(classes)[labels]
    proba = np.round(proba / proba.sum(1, keepdims=True), 2)  # with ties
    groups = np.arange(n) // 2
    return Truth(labels, groups, groups % folds, classes), proba


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    truth, proba = drawn(classes)
    y = truth.classes
    if classes == 2:
        expected = [roc_auc_score(y, proba[:, 1]), brier_score_loss(y, proba[:, 1])]
    else:
        proba = proba / proba.sum(1, keepdims=True)
        expected = [roc_auc_score(y, proba, multi_class="ovr"), brier_score_loss(y, proba)]
    expected.append(float((proba.argmax(1) == y).mean()))
    found = [float(score(truth, proba, ONE)[0]) for score in (auc, brier, accuracy)]
    assert found == pytest.approx(expected, abs=1e-9)


def test_auc_compares_within_folds_only() -> None:
    truth, proba = drawn(2, folds=3)
    weights, above, pairs = truth.weights(50, 0), np.zeros(50), np.zeros(50)
    for i in range(60):
        for j in range(60):
            if truth.folds[i] == truth.folds[j] and truth.classes[i] > truth.classes[j]:
                w = weights[:, i].astype(float) * weights[:, j]
                a, b = proba[i, 1], proba[j, 1]
                above, pairs = above + w * ((a > b) + 0.5 * (a == b)), pairs + w
    assert np.allclose(auc(truth, proba, weights), above / pairs)
    # A constant added to one fold's predictions changes nothing.
    other = proba.copy()
    other[truth.folds == 1, 1] += 5
    assert np.allclose(auc(truth, other, weights), above / pairs)


def test_the_bootstrap_draws_groups() -> None:
    truth, _ = drawn(2)
    weights = truth.weights(400, 1)
    assert (weights[:, ::2] == weights[:, 1::2]).all() and (weights.sum(1) == 60).all()
    assert not (weights == truth.weights(400, 2)).all()
    found = interval(0.6, np.linspace(0.5, 0.8, 1001), widening=2.0)
    assert (found.low, found.high) == pytest.approx((0.415, 0.985), abs=1e-9)
    assert Truth(truth.classes, truth.groups, truth.groups % 5, 2).widening == 1.5


def test_permutations_move_whole_groups_within_folds() -> None:
    groups = np.repeat([0, 1, 2, 3, 4, 5], [2, 2, 2, 3, 3, 1])
    folds = np.repeat([0, 0, 1, 1, 1, 1], [2, 2, 2, 3, 3, 1])
    moved = permutations(groups, folds, 200, 0)
    assert (np.sort(moved, axis=1) == np.arange(13)).all()
    assert (folds[moved] == folds).all()
    for group in range(6):  # rows of a group come from one group, in order
        rows = moved[:, groups == group]
        assert (np.diff(rows, axis=1) == 1).all() and (groups[rows].std(1) == 0).all()
    assert (moved[:, 12] == 12).all()  # the only one of its size
    assert 60 < (moved[:, 0] == 2).sum() < 140


def test_the_null_of_the_auc_is_that_of_permuted_labels() -> None:
    truth, proba = drawn(2, folds=3)
    null = null_auc(truth, proba, 50, seed=3)
    moved = permutations(truth.groups, truth.folds, 50, 3)
    by_hand = [
        auc(Truth(truth.classes[rows], truth.groups, truth.folds, 2), proba, ONE)[0]
        for rows in moved
    ]
    assert np.allclose(null, by_hand)
    assert permutation_p(2.0, null, 1.0) == pytest.approx(1 / 51)
    assert permutation_p(0.0, null, 1.0) == 1.0
    assert permutation_p(0.62, null, 1.5) >= permutation_p(0.62, null, 1.0)


def test_calibration_and_confusion_by_hand() -> None:
    truth = Truth(np.array([0, 1, 1, 1]), np.arange(4), np.zeros(4, int), 2)
    proba = np.array([[0.95, 0.05], [0.92, 0.08], [0.3, 0.7], [0.0, 1.0]])
    curve, error = calibration(truth, proba)
    assert curve[0].tolist() == pytest.approx([0.065, 0.5, 2]) and curve[9].tolist() == [1, 1, 1]
    assert np.isnan(curve[1, 0]) and error == pytest.approx((2 * 0.435 + 0.3 + 0) / 4)
    assert confusion(truth, proba).tolist() == [[1, 0], [1, 2]]


def test_effects_of_single_rows_are_those_of_a_t_test() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 3)), rng.random(400) < 0.4
    x[y, 0] += 0.8
    found = effects(x, y, np.arange(400))
    sd = np.sqrt(
        (((x[y] - x[y].mean(0)) ** 2).sum(0) + ((x[~y] - x[~y].mean(0)) ** 2).sum(0)) / 398
    )
    assert np.allclose(found["d"], (x[y].mean(0) - x[~y].mean(0)) / sd)
    test: Any = ttest_ind(x[y], x[~y], equal_var=False)
    assert np.allclose(found["p"], test.pvalue, rtol=0.3) and found["p"][0] < 1e-8
    # Each row twice in one group: the interval stays, counted by rows it would shrink by sqrt(2).
    twice = effects(np.repeat(x, 2, axis=0), np.repeat(y, 2), np.repeat(np.arange(400), 2))
    for column in ("low", "high"):
        assert np.allclose(twice[column], found[column], atol=5e-3)


def test_the_interval_of_an_effect_is_that_of_a_group_bootstrap() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(150), 2)
    shared = rng.normal(size=150)[groups]
    y = rng.random(300) < 1 / (1 + np.exp(-shared))
    x = (shared + rng.normal(size=300))[:, None]
    found = effects(x, y, groups).iloc[0]
    again = []
    for _ in range(1500):
        rows = (2 * rng.integers(150, size=150)[:, None] + [0, 1]).ravel()
        a, b = x[rows][y[rows], 0], x[rows][~y[rows], 0]
        n = len(rows) - 2
        sd = np.sqrt((a.var() * len(a) + b.var() * len(b)) / n)
        again.append((a.mean() - b.mean()) / sd)
    low, high = np.quantile(again, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.04)


def test_localisation_finds_the_place_and_nothing_by_chance() -> None:
    rng = np.random.default_rng(0)
    groups, y = np.repeat(np.arange(100), 2), rng.integers(2, size=200)
    x = rng.normal(size=(200, 2 * 3 * 10)).astype("f")
    x[:, 7] = 3.0  # constant
    places = {"sites": ("a", "b"), "positions": ("t1", "t2", "t3")}
    nothing = localise(x, y, groups, **places)
    assert not nothing.found and nothing.features["stands_out"].sum() == 0
    assert len(nothing.features) == 59 and nothing.cells["features"].tolist() == [9, *[10] * 5]
    x[:, 45] += 1.2 * y  # b, t2, index 5
    found = localise(x, y, groups, **places)
    best = found.features.loc[found.features["d"].abs().idxmax()]
    assert (best["site"], best["position"], best["index"]) == ("b", "t2", 5)
    assert best["d"] > 0.8 and best["stands_out"] and found.found
    assert found.counts("site")["discoveries"].tolist() == [0, 1]
    assert found.counts("position")["stand_out"].tolist() == [0, 1, 0]
    # Permuted effects are the effects of permuted labels.
    moved = permutations(groups, np.zeros(200, int), 3, 0)
    null = null_effects(x, (y == 1)[moved])
    for row, labels in zip(null, (y == 1)[moved], strict=True):
        expected = effects(x, labels, groups)["d"].fillna(0)
        assert np.allclose(row, expected, atol=1e-6)


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg() -> None:
    rng = np.random.default_rng(2)
    groups, y = np.arange(120), rng.integers(2, size=120)
    x = rng.normal(size=(120, 40))
    x[:, :6] += 0.9 * y[:, None]
    table = localise(x.astype("f"), y, groups, ("a",), ("t1",)).features
    p = table["p"].to_numpy()
    order = np.argsort(p)
    by_hand = np.minimum.accumulate((p[order] * 40 / np.arange(1, 41))[::-1])[::-1]
    assert np.allclose(table["q"].to_numpy()[order], np.minimum(by_hand, 1))


def test_the_largest_effect_by_chance_holds_its_level() -> None:
    # 300 null data sets: p < .05 in more than 29 of them has a chance below 1 in 1000.
    rng = np.random.default_rng(0)
    below = 0
    for seed in range(300):
        y = np.repeat(rng.integers(2, size=40), 2)  # twins with one label
        x = np.repeat(rng.normal(size=(40, 30)), 2, axis=0) + 0.1 * rng.normal(size=(80, 30))
        groups = np.repeat(np.arange(40), 2)
        moved = permutations(groups, np.zeros(80, int), 99, seed)
        null = np.abs(null_effects(x, (y == 1)[moved])).max(1)
        top = np.abs(null_effects(x, (y == 1)[None])).max()
        below += (1 + (null >= top).sum()) / 100 <= 0.05
    assert 2 <= below <= 29


def test_rotation_changes_no_prediction() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 200)), rng.integers(2, size=40)
    plain = LogisticRegression(C=0.1, max_iter=5000, tol=1e-10).fit(x[:30], y[:30])
    turn = Rotate().fit(x[:30])
    turned = LogisticRegression(C=0.1, max_iter=5000, tol=1e-10).fit(turn.transform(x[:30]), y[:30])
    a, b = plain.predict_proba(x[30:]), turned.predict_proba(turn.transform(x[30:]))
    assert turn.transform(x).shape[1] == 30 and np.allclose(a, b, atol=1e-4)
    assert Best(5).fit(x, y).transform(x).shape == (40, 5)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_estimator_learns_and_is_seeded(name: str, classes: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=120)
    x = rng.normal(size=(120, 12)).astype("f")
    x[:, :classes] += 3 * np.eye(classes)[y]
    made = recipe(name, Shape(2, 3, 2), 0, classes)
    final = list(made.finals.values())[-1]
    proba = [clone(pipeline(made, final)).fit(x[:80], y[:80]).predict_proba(x[80:]) for _ in (0, 1)]
    assert np.array_equal(*proba) and np.allclose(proba[0].sum(1), 1)
    assert (proba[0].argmax(1) == y[80:]).mean() > 0.75


def test_unknown_estimators_are_named() -> None:
    with pytest.raises(PredictError, match="unknown estimator 'svm': expected some of logistic_l2"):
        recipe("svm", Shape(1, 1, 1), 0, 2)


def test_the_sequence_model_reads_the_order_of_positions() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1, 4, 2)).astype("f")
    y = rng.integers(2, size=200)
    x[np.arange(200), 0, np.where(y, 3, 0), 0] += 4  # first or last, mean over positions the same
    before = torch.get_rng_state()
    model = SequenceClassifier(1, 4, 16, epochs=30).fit(x[:150].reshape(150, -1), y[:150])
    assert torch.equal(before, torch.get_rng_state())
    assert (model.predict(x[150:].reshape(50, -1)) == y[150:]).mean() > 0.8


def test_saes_of_folds_reconstruct_and_are_trained_once() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(24, 10))
    codes = np.where(rng.random((400, 2, 24)) < 0.1, rng.random((400, 2, 24)) + 0.5, 0)
    x = (codes @ rows).reshape(400, -1).astype("f")
    kept = Kept()
    sae = FoldSae(1, 2, 32, 4, steps=400, kept=kept)
    z = clone(sae).fit(x).transform(x)
    assert z.shape == (400, 64) and 2 < (z > 0).mean() * 32 < 6
    fitted = clone(sae).fit(x)
    assert len(kept._found) == 1 and np.array_equal(fitted.transform(x), z)
    back = fitted.saes_[0].reconstruct(torch.as_tensor(x).view(400, 2, 10)).numpy()
    left = ((back - x.reshape(400, 2, 10)) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert left < 0.35
    other = clone(sae).fit(x[:300])
    assert len(kept._found) == 2 and not np.allclose(other.transform(x), z)
    random = RandomSae(1, 2, 32, 4).fit(x).transform(x)
    assert random.shape == z.shape and ((random.reshape(800, 32) > 0).sum(1) <= 4).all()
    assert PoolSteps(1, 2, "mean", "positions").fit(x).transform(x).shape == (400, 10)


def test_held_out_rows_are_never_fitted_on_and_the_choice_is_made_inside() -> None:
    rng = np.random.default_rng(0)
    groups, y = np.repeat(np.arange(60), 2), rng.integers(2, size=120)
    folds = deal(y, groups, 4, 0)
    assert all(len(set(folds[groups == g])) == 1 for g in range(60))
    ids = tuple(f"r{i}" for i in range(120))
    x = rng.normal(size=(120, 6)).astype("f")
    side = Side(ids, x, Truth(y, groups, folds, 2))
    held = [
        cross_predict(recipe(n, Shape(1, 1, 6), 0, 2), side) for n in ("logistic_l2", "logistic_l1")
    ]
    for one in held:
        for place, fold in enumerate(np.unique(folds)):
            assert one.fitted_on[place] == {i for i, f in zip(ids, folds, strict=True) if f != fold}
    # What is predicted in a fold does not depend on that fold's labels.
    other = y.copy()
    other[folds == 0] = 1 - other[folds == 0]
    changed = cross_predict(
        recipe("logistic_l2", Shape(1, 1, 6), 0, 2), Side(ids, x, Truth(other, groups, folds, 2))
    )
    assert np.array_equal(changed.proba[folds == 0], held[0].proba[folds == 0])
    assert not np.array_equal(changed.proba[folds == 1], held[0].proba[folds == 1])
    best = chosen(held, folds)
    for place, fold in enumerate(np.unique(folds)):
        winner = max(held, key=lambda h: h.inner[place])
        assert np.array_equal(best.proba[folds == fold], winner.proba[folds == fold])
    with pytest.raises(PredictError, match="cannot be dealt"):
        deal(np.array([0, 0, 0, 1]), np.arange(4), 2, 0)
