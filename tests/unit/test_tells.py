"""What metrics add to the answer's own probability, where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from circuits.labelled import Labelled
from circuits.predict.folds import deal
from circuits.predict.headline import paired_gain
from circuits.predict.scores import PredictError, Truth, exchange_p
from circuits.predict.vectors import JoinError, Vectors
from circuits.tracks.tells import Tells, tells

QUICK: dict[str, Any] = {"estimators": ("logistic_l2",), "folds": 3, "progress": False}
N = 160


def answers(seed: int, *, shuffled: bool = False) -> tuple[np.ndarray, np.ndarray, list[Labelled]]:
    """(what only the inside knows, what the output shows, answers wrong by both, in pairs)."""
    rng = np.random.default_rng(seed)
    hidden, shown = rng.normal(size=(2, N))
    wrong = rng.random(N) < 1 / (1 + np.exp(-2.5 * hidden - 1.5 * shown))
    if shuffled:
        wrong = rng.permutation(wrong)
    found = [
        Labelled(
            id=f"a{i}",
            group=f"g{i // 2}",
            prompt=f"question {rng.integers(10**9)} of {i}",
            completion="",
            correct=not bool(wrong[i]),
            surface={
                "answer_probability": float(1 / (1 + np.exp(shown[i]))),
                "output_entropy": float(shown[i] + 0.5 * rng.normal()),
            },
        )
        for i in range(N)
    ]
    return hidden, shown, found


def table(values: np.ndarray, records: list[Labelled], seed: int = 9) -> pd.DataFrame:
    """Two noisy readings of the values, in another order than the records."""
    rng = np.random.default_rng(seed)
    noisy = values[:, None] + 0.5 * rng.normal(size=(N, 2))
    made = pd.DataFrame({"answer": [r.id for r in records], "a": noisy[:, 0], "b": noisy[:, 1]})
    return made.sample(frac=1, random_state=0)


@pytest.fixture(scope="module")
def signal() -> Tells:
    hidden, _, records = answers(1)
    return tells(table(hidden, records), records, **QUICK)


def test_a_signal_beyond_the_probability_is_found(signal: Tells) -> None:
    assert signal.verdict() == "found" and "gain +0." in signal.headline()
    gains = signal.gains.set_index(["features", "over"])
    added = gains.loc[("metrics and output", "output")]
    assert added["low"] > 0.02 and added["p"] < 0.05 and added["found"]
    assert gains.loc[("metrics and known", "known"), "found"]
    assert (signal.single["d"] > 0.5).all() and (signal.single["auc"] > 0.6).all()
    assert signal.sets["features"].tolist()[:2] == ["metrics", "output"]
    assert signal.record["output"] == ["answer_probability", "output_entropy"]


def test_gains_are_differences_of_the_sets(signal: Tells) -> None:
    areas = dict(zip(signal.sets["features"], signal.sets["auc"], strict=True))
    for row in signal.gains.to_dict("records"):
        assert row["gain"] == pytest.approx(areas[row["features"]] - areas[row["over"]], abs=1e-12)
        assert row["low"] < row["gain"] < row["high"]
    chosen = signal.predicted.table().iloc[0]
    assert chosen["name"] == "chosen" and chosen["auc"] == pytest.approx(areas["metrics"])
    baselines = set(signal.predicted.table()["name"])
    assert {"output", "question", "majority", "nearest_prompt", "all"} <= baselines


def test_metrics_that_echo_the_probability_add_nothing() -> None:
    _, shown, records = answers(2)
    found = tells(table(shown, records), records, **QUICK)
    areas = dict(zip(found.sets["features"], found.sets["auc"], strict=True))
    assert areas["metrics"] > 0.58  # they tell right from wrong, but no more than the output does
    assert found.verdict() == "nothing" and found.headline().startswith("Nothing was found")
    assert abs(found.gains["gain"].iloc[0]) < 0.03


def test_noise_and_shuffled_labels_give_nothing() -> None:
    rng = np.random.default_rng(5)
    _, _, records = answers(3)
    found = tells(table(rng.normal(size=N), records), records, **QUICK)
    assert found.verdict() == "nothing" and not found.gains["found"].any()
    hidden, _, records = answers(4, shuffled=True)
    found = tells(table(hidden, records), records, **QUICK)
    assert found.verdict() == "nothing" and found.sets["p"].min() > 0.01


def test_p_of_gains_is_uniform_where_there_is_none() -> None:
    """Two predictors that know equally much; with independent scores in the folds no refit is
    needed, and widening makes large p rarer and small ones rarer too."""
    found, lows = [], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, 2, 120)
        groups = np.arange(120) // 2
        truth = Truth(classes, groups, deal(classes, groups, 5, seed), 2)
        both = [classes + 1.5 * rng.normal(size=120) for _ in range(2)]
        ours, other = (np.stack([-x, x], 1) for x in both)
        found.append(exchange_p(truth, ours, 10 * other, count=99, seed=seed))
        lows += paired_gain(truth, ours, other, seed=seed).found
    assert lows <= 4 and (np.array(found) <= 0.05).sum() <= 6
    assert 0.35 < np.mean(found) < 0.65


def test_exchanges_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    classes, groups = rng.integers(0, 2, 24), np.arange(24) // 2
    truth = Truth(classes, groups, np.arange(24) // 12, 2)
    ours, other = (np.stack([-x, x], 1) for x in rng.normal(size=(2, 24)).round(1))

    def area(values: np.ndarray) -> float:
        wins, pairs = 0.0, 0
        for fold in (0, 1):
            rows = np.flatnonzero(truth.folds == fold)
            for i in rows[classes[rows] == 1]:
                for j in rows[classes[rows] == 0]:
                    wins += (values[i] > values[j]) + 0.5 * (values[i] == values[j])
                    pairs += 1
        return wins / pairs

    a, b = (np.empty(24), np.empty(24))
    for fold in (0, 1):
        rows = truth.folds == fold
        a[rows], b[rows] = rankdata(ours[rows, 1]), rankdata(other[rows, 1])
    seen, reached = area(a) - area(b), 0
    swaps = np.random.default_rng(3).random((50, 12)) < 0.5
    for swap in swaps[:, groups]:
        null = area(np.where(swap, b, a)) - area(np.where(swap, a, b))
        reached += truth.widening * null >= seen - 1e-12
    assert exchange_p(truth, ours, other, count=50, seed=3) == (1 + reached) / 51


def test_a_real_gain_has_a_small_p_and_the_reverse_a_large_one() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 200)
    truth = Truth(classes, np.arange(200), deal(classes, np.arange(200), 5, 0), 2)
    good, bad = (classes + s * rng.normal(size=200) for s in (0.7, 4.0))
    good, bad = (np.stack([-x, x], 1) for x in (good, bad))
    gain = paired_gain(truth, good, bad)
    assert gain.found and gain.low > 0.05 and gain.p <= 0.002
    assert paired_gain(truth, bad, good).p > 0.99
    assert paired_gain(truth, good, good).value == 0 and not paired_gain(truth, good, good).found


def test_a_run_read_back_is_the_same(signal: Tells, tmp_path: Path) -> None:
    back = Tells.load(signal.save(tmp_path / "run"))
    for name in ("sets", "gains", "single"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(signal, name))
    assert back.headline() == signal.headline() and back.verdict() == signal.verdict()
    pd.testing.assert_frame_equal(back.predicted.scores, signal.predicted.scores)


def test_what_cannot_be_compared_is_refused_before_any_work() -> None:
    hidden, _, records = answers(6)
    good = table(hidden, records)
    with pytest.raises(JoinError, match="constant: a"):
        tells(good.assign(a=1.0), records)
    with pytest.raises(JoinError, match="records without vectors"):
        tells(good.iloc[1:], records)
    with pytest.raises(JoinError, match="not finite"):
        tells(good.assign(a=np.where(good.index == 0, np.nan, good["a"])), records)
    bare = [Labelled(r.id, r.group, r.prompt, "", r.correct) for r in records]
    with pytest.raises(PredictError, match="no output entropy or probability"):
        tells(good, bare)
    some = [*records[1:], Labelled("a0", "g0", "a question of 0", "", True)]
    with pytest.raises(PredictError, match="1 of 160 answers lack some of the numbers"):
        tells(good, some)
    with pytest.raises(JoinError, match="needs a column id"):
        Vectors.of_table(good.drop(columns="answer"))
    with pytest.raises(JoinError, match="no number"):
        Vectors.of_table(good.rename(columns={"answer": "id"}).assign(a="x"))
