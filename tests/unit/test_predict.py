"""Predicting errors: each planted flaw is caught, clean signal is found, null data is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from circuits.labelled import LabelError, Labelled
from circuits.predict import (
    Fitted,
    PredictError,
    PredictResult,
    SaeFit,
    Vectors,
    predict,
)
from circuits.predict.audit import check_truths
from circuits.predict.encode import FoldSae
from circuits.runs import RunError
from tests.answers import apart, made

QUICK: dict[str, Any] = {"estimators": ("logistic_l2",), "folds": 3, "progress": False}


def leaks(result: PredictResult, target: str | None = None) -> list[str]:
    return [c["name"] for c in result.audit(target) if c["verdict"] == "leak"]


def verdicts(result: PredictResult) -> dict[str, str]:
    return {c["name"]: c["verdict"] for c in result.audit()}


@pytest.fixture(scope="module")
def clean() -> tuple[list[Labelled], Vectors, PredictResult]:
    """A data set whose vectors know more than its prompts."""
    records, vectors = made(300, signal=3.0, seed=1, width=6)
    return records, vectors, predict(records, vectors, **QUICK)


def test_signal_is_found_and_nothing_is_wrong(clean: Any) -> None:
    _, _, result = clean
    assert leaks(result) == [] and result.verdict() == "found"
    head = result.record["targets"]["wrong"]["headline"]
    assert head["gain_low"] > 0 and head["p"] < 0.01 and head["auc"] > 0.7
    assert "against" in result.headline() and head["baseline"] in result.headline()
    table = result.table()
    assert table["name"][0] == "chosen" and set(table["role"]) == {"features", "baseline"}
    baselines = set(table.loc[table["role"] == "baseline", "name"])
    assert baselines == {"majority", "question", "completion", "steps", "all", "nearest_prompt"}
    assert (table["auc_low"] <= table["auc"]).all() and (table["auc"] <= table["auc_high"]).all()
    majority = table[table["name"] == "majority"].iloc[0]
    assert majority["auc"] == 0.5 and majority["p"] == 1.0
    assert result.localisation().found


def test_the_same_seed_gives_the_same_numbers(clean: Any) -> None:
    records, vectors, result = clean
    # The order of records does not matter to the join, and is the only thing that is changed.
    again = predict(records, vectors.join(records[::-1]), **QUICK)
    for name in ("auc", "gain_low", "p"):
        assert np.array_equal(again.scores[name], result.scores[name])


def test_a_wrong_join_is_caught_where_digests_cannot(clean: Any) -> None:
    records, vectors, _ = clean
    order = np.random.default_rng(0).permutation(len(records))
    wrong = replace(vectors, values=vectors.values[order])
    result = predict(records, wrong, **QUICK)
    assert leaks(result) == ["alignment"] and result.verdict() == "refused"
    assert "No headline" in result.headline() and "belong to other records" in result.headline()


def test_swapped_twins_are_caught() -> None:
    records, vectors = made(120, twins=True, seed=3, bare=True)
    assert leaks(predict(records, vectors, **QUICK)) == []
    swapped = np.arange(120).reshape(-1, 2)[:, ::-1].ravel()
    result = predict(records, replace(vectors, values=vectors.values[swapped]), **QUICK)
    assert leaks(result) == ["alignment"] and "swapped" in result.headline()


def test_twins_across_the_split_are_caught() -> None:
    records, vectors = made(140, twins=True, seed=2, bare=True)
    alone = apart(records)
    result = predict(alone, vectors, **QUICK)
    assert leaks(result) == ["twins"] and result.verdict() == "refused"
    numbers = next(c for c in result.audit() if c["name"] == "twins")["numbers"]
    assert numbers["agree"] < 0.1 and numbers["twins"] > 25
    merged = predict(alone, vectors, merge_twins=True, **QUICK)
    assert leaks(merged) == [] and merged.record["groups"] == 70
    copies = [*alone[:-9], *(replace(r, prompt=alone[0].prompt) for r in alone[-9:])]
    joined = replace(vectors, digests=tuple(r.digest for r in copies))
    assert "duplicates" in leaks(predict(copies, joined, seed=1, **QUICK))


def test_an_sae_fitted_on_rows_that_are_predicted_is_caught() -> None:
    records, vectors = made(90, signal=2.0, width=6, bare=True)
    sae = FoldSae(2, 3, 16, 3, steps=30).fit(vectors.flat())
    values = sae.transform(vectors.flat()).reshape(90, 2, 3, 16)
    everything = Fitted("SAE", frozenset(vectors.ids))
    latents = replace(vectors, values=values, kind="latents", fitted=(everything,))
    result = predict(records, latents, **QUICK)
    assert "fitted" in leaks(result) and "SAE, fitted before the folds on 90" in result.headline()
    # One that was fitted on others is none.
    other = replace(latents, fitted=(Fitted("SAE", frozenset({"elsewhere"})),))
    assert verdicts(predict(records, other, **QUICK))["fitted"] == "ok"


def test_a_selection_of_features_on_all_rows_is_caught() -> None:
    records, vectors = made(100, width=500, bare=True)

    def select(given: Vectors, classes: np.ndarray) -> Vectors:
        best = SelectKBest(f_classif, k=20).fit(given.flat(), classes)
        values = best.transform(given.flat())[:, None, None]
        return replace(given, values=values, sites=("best",), positions=("all",))

    result = predict(records, vectors, prepare=select, **QUICK)
    assert "permuted labels" in leaks(result)
    assert result.table()["auc"][0] > 0.6  # what it would have claimed on data without signal
    # The same selection inside the folds is no leak.
    inside = Pipeline(
        [("select", SelectKBest(f_classif, k=20)), ("fit", LogisticRegression(max_iter=500))]
    )
    fine = predict(records, vectors, own={"mine": inside}, **QUICK)
    assert leaks(fine) == [] and fine.verdict() == "nothing"
    # Fitted on all rows and frozen: said to be unknown, and a leak once it says what it saw.
    y = np.array([not r.correct for r in records])
    fitted = SelectKBest(f_classif, k=20).fit(vectors.flat(), y)
    frozen = Pipeline([("select", FrozenEstimator(fitted)), ("fit", LogisticRegression())])
    assert (
        verdicts(predict(records, vectors, own={"mine": frozen}, **QUICK))["fitted"] == "not known"
    )
    fitted.fitted_on = vectors.ids
    assert "fitted" in leaks(predict(records, vectors, own={"mine": frozen}, **QUICK))


def test_null_features_are_nothing() -> None:
    # The prompt's step count decides, and vectors know the prompt: no gain over the baseline.
    records, vectors = made(200, surface=1.5, seed=4, width=6)
    known = predict(records, vectors, **QUICK)
    assert leaks(known) == [] and known.verdict() == "nothing"
    assert known.headline().startswith("Nothing was found")
    assert verdicts(known)["null features"] == "ok"
    # Vectors that know nothing of the label at all.
    records, vectors = made(150, seed=5, width=6, bare=True)
    null = predict(records, vectors, **QUICK)
    assert leaks(null) == [] and null.verdict() == "nothing"
    assert verdicts(null)["null features"] == "nothing"
    # And ones that are noise: they may as well belong to other records.
    noise = np.random.default_rng(0).normal(size=vectors.values.shape).astype("f")
    assert "alignment" in leaks(predict(records, replace(vectors, values=noise), **QUICK))


def test_figures_say_that_no_feature_differs_and_leave_the_buttons_room() -> None:
    records, vectors = made(150, seed=5, width=4, bare=True)
    result = predict(records, vectors, **QUICK)
    figures = dict(result.sections())
    counts = figures["By site and by position"]
    assert not result.localisation().counts("site")["discoveries"].any()
    assert counts.layout.yaxis.range[0] == counts.layout.yaxis2.range[0] == 0
    assert "No feature differs" in counts.layout.title.text
    assert figures["Confidence"].layout.legend.orientation == "h"
    assert figures["Confusion"].data[0].showscale is False


def test_false_alarms_are_rare_on_null_data() -> None:
    # At 5% more than 4 of 12 have a chance below 2 in 10,000.
    alarms = 0
    for seed in range(12):
        records, vectors = made(60, seed=100 + seed, width=4, bare=True, twins=seed % 2 == 1)
        alarms += predict(records, vectors, seed=seed, **QUICK).verdict() != "nothing"
    assert alarms <= 4


def test_labels_are_compared_with_true_answers() -> None:
    records, _ = made(40)
    said = [r.completion.split()[-1].rstrip(".") for r in records]
    right = [
        replace(r, labels={"truth": s if r.correct else "7"})
        for r, s in zip(records, said, strict=True)
    ]
    assert check_truths(right).verdict == "ok" and check_truths(records).verdict == "not known"
    turned = [replace(r, correct=not r.correct) for r in right]
    assert check_truths(turned).verdict == "leak"
    twice = [records[0], replace(records[0], id="again", correct=not records[0].correct)]
    assert check_truths(twice).numbers["contradictions"] == 1


def test_saes_of_folds_have_baselines_of_activations() -> None:
    records, vectors = made(90, signal=3.0, width=6, sites=("resid_post.1",), bare=True)
    result = predict(records, vectors, saes=SaeFit(16, 4, steps=20), pool="mean", **QUICK)
    names = set(result.table()["name"])
    assert {"raw", "pca", "random_sae"} <= names and leaks(result) == []
    assert result.record["features"]["sae"] == "fitted in training folds"
    assert result.localisation().cells["position"].tolist() == ["mean"]
    with pytest.raises(PredictError, match="expected 0 < active <= latents"):
        SaeFit(4, 8)


def test_several_targets_and_several_classes(tmp_path: Path) -> None:
    records, vectors = made(240, signal=3.0, seed=1, width=6, bare=True)
    hidden = vectors.values[:, 0, 0, 0]
    kinds = np.digitize(hidden, np.quantile(hidden, [1 / 3, 2 / 3]))
    records = [
        replace(r, labels={"kind": "abc"[k], "large": bool(k == 2)})
        for r, k in zip(records, kinds, strict=True)
    ]
    result = predict(records, vectors, targets=("wrong", "kind", "large"), **QUICK)
    assert result.targets == ("wrong", "kind", "large") and result.classes("kind") == list("abc")
    assert result.table("kind")["auc"][0] > 0.8 and result.verdict("large") == "found"
    assert result.confusion(target="kind").to_numpy().sum() == 240
    assert set(result.localisation("kind").features["class"]) == set("abc")
    one = predict(records, vectors, **QUICK)
    wider, narrow = (r.record["targets"]["wrong"]["headline"]["gain_low"] for r in (result, one))
    assert wider < narrow  # Bonferroni over three
    assert len(result.page()) > 1_000_000
    with pytest.raises(PredictError, match="no target 'x': there are wrong, kind"):
        result.headline("x")


def test_a_run_is_written_and_read(clean: Any, tmp_path: Path) -> None:
    _, _, result = clean
    folder = result.save(tmp_path / "run")
    assert {p.name for p in folder.iterdir()} == {
        "run.json",
        "scores.parquet",
        "predictions.parquet",
        "features.parquet",
        "cells.parquet",
        "predict.html",
    }
    again = PredictResult.load(folder)
    assert again.headline() == result.headline() and again.audit() == result.audit()
    for name in ("scores", "predictions", "features", "cells"):
        assert getattr(again, name).equals(getattr(result, name))
    assert again.calibration()[1] == result.calibration()[1]
    (folder / "cells.parquet").unlink()
    with pytest.raises(RunError, match=r"cells\.parquet cannot be read"):
        PredictResult.load(folder)


def test_one_model_trains_and_another_is_tested() -> None:
    records, vectors = made(240, signal=3.0, seed=1, width=6, bare=True)
    # The other model has other axes and another width, and answers the same problems.
    turn = np.random.default_rng(9).normal(size=(6, 9)).astype("f")
    other = replace(vectors, values=vectors.values @ turn)
    quick = {**QUICK, "train": (records, other)}
    with pytest.raises(PredictError, match=r"trained on 54 features.*use align"):
        predict(records, vectors, **quick)
    found = predict(records, vectors, align=True, **quick)
    assert found.verdict() == "found" and found.record["trained_on"] == 240
    # Unaligned, of one width, with axes that mean other things.
    mixed = replace(vectors, values=np.roll(vectors.values, 1, axis=3)[:, ::-1])
    same = predict(records, vectors, **{**quick, "train": (records, mixed)})
    assert same.table()["auc"][0] < found.table()["auc"][0]
    few = [replace(r, prompt=r.prompt + " now") for r in records]
    moved = replace(other, digests=tuple(r.digest for r in few))
    with pytest.raises(PredictError, match="0 problems are in both"):
        predict(records, vectors, align=True, **{**quick, "train": (few, moved)})


def test_a_group_on_both_sides_of_a_transfer_is_never_trained_on_and_predicted() -> None:
    # Vectors that are nothing but the group's label: found only where groups leak.
    records, vectors = made(120, seed=8, width=4, bare=True)
    rng = np.random.default_rng(0)
    own = rng.normal(size=(120, 40)).astype("f")
    values = np.concatenate([vectors.values[:, :1, :1], own[:, None, None]], axis=3)
    one = replace(vectors, values=values, sites=("a",), positions=("b",))
    result = predict(records, one, train=(records, one), **QUICK)
    assert result.verdict() == "nothing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": ("svm",)}, "unknown estimator 'svm'"),
        ({"estimators": ()}, "unknown estimator"),
        ({"estimators": ("forest", "forest")}, "named twice"),
        ({"folds": 1}, "two at least"),
        ({"folds": 40}, "too few groups"),
        ({"targets": ()}, "name each target once"),
        ({"targets": ("kind",)}, "has no label 'kind'"),
        ({"align": True}, "give train"),
        ({"own": {"x": object()}}, "needs fit and predict_proba"),
        ({"own": {"chosen": LogisticRegression()}}, "two estimators of one name"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    records, vectors = made(60)
    with pytest.raises((PredictError, LabelError), match=message):
        predict(records, vectors, **{**QUICK, **options})
