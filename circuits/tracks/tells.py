"""Do the metrics of tracks tell right answers from wrong ones, beyond what the output says?

Everything is `circuits.predict`: groups dealt into folds, settings chosen inside training folds,
the leak audit, permutation p. The same estimators are given, in the same folds,

    metrics             the metrics of the tracks alone
    output              the answer's probability and the entropy of the output, from `surface`
    metrics and output  both side by side
    known               all that is known without looking inside: output, question, type, ...
    metrics and known   both side by side

and gains are paired, groups resampled for both. The headline is the gain of "metrics and output"
over "output": what the metrics add to the answer's own probability. "metrics" over "output" asks
for more, that they replace it; "metrics and known" over "known" that they add to all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from circuits.labelled import ERROR, Labelled, check_labels
from circuits.predict.estimators import DEFAULT, Shape, check_estimators, recipe
from circuits.predict.folds import Side, chosen, cross_predict
from circuits.predict.headline import paired_gain
from circuits.predict.result import PredictResult
from circuits.predict.run import predict
from circuits.predict.scores import (
    PERMUTATIONS,
    RESAMPLES,
    PredictError,
    Proba,
    Truth,
    auc,
    interval,
    null_auc,
    permutation_p,
)
from circuits.predict.surface import is_output, surface_groups
from circuits.predict.vectors import Vectors
from circuits.runs import (
    RunError,
    default_folder,
    new_run,
    read_record,
    read_tables,
    write_record,
)

METRICS, OUTPUT, KNOWN = "metrics", "output", "known"
ADDED, ADDED_TO_ALL = f"{METRICS} and {OUTPUT}", f"{METRICS} and {KNOWN}"
# What is compared with what; the first is the headline.
COMPARED = ((ADDED, OUTPUT), (METRICS, OUTPUT), (ADDED_TO_ALL, KNOWN))


@dataclass(frozen=True, eq=False)
class Tells:
    """How well metrics tell wrong answers from right ones.

    sets: one row a set of features: `features, numbers, auc, low, high` (95%, groups resampled),
        `p` (permutation, labels against predictions).
    gains: one row a comparison: `features, over, gain, low, high` (95%, paired, widened as in
        circuits.predict.scores), `p` (predictions of whole groups exchanged), `found`.
    single: one row a metric: Cohen's `d` (positive: larger for wrong answers) with `low, high, p,
        q`, and `auc` of the metric itself toward wrong answers.
    predicted: the whole of `circuits.predict` on the metrics alone, with baselines and audit.
    record: headline, verdict, options.
    """

    sets: pd.DataFrame
    gains: pd.DataFrame
    single: pd.DataFrame
    predicted: PredictResult
    record: dict[str, Any]

    def headline(self) -> str:
        """What the metrics add to the answer's own probability, or that nothing was found."""
        return self.record["headline"]

    def verdict(self) -> str:
        """ "found", "nothing" or "refused" (the audit found a leak)."""
        return self.record["verdict"]

    def save(self, folder: str | Path | None = None) -> Path:
        """Write a run's folder (default `runs/<task>/tells-<time>`), with that of `predicted`
        inside as `predict`."""
        task = str(self.record.get("task", "custom"))
        target = Path(folder) if folder else default_folder(task, "tells")
        with new_run(target) as work:
            write_record(work, self.record)
            for name in ("sets", "gains", "single"):
                getattr(self, name).to_parquet(work / f"{name}.parquet", index=False)
            self.predicted.save(work / "predict")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Tells:
        """Read a run back; the same object as the one that was saved."""
        record = read_record(folder)
        record.pop("format")
        if record.get("method") != "tells":
            raise RunError(f"{folder} holds a run of {record.get('method')!r}.")
        sets, gains, single = read_tables(folder, ("sets", "gains", "single"))
        return cls(sets, gains, single, PredictResult.load(Path(folder) / "predict"), record)


def tells(
    metrics: pd.DataFrame,
    answers: Sequence[Labelled],
    *,
    estimators: Sequence[str] = DEFAULT,
    folds: int = 5,
    seed: int = 0,
    source: dict[str, Any] | None = None,
    progress: bool = True,
) -> Tells:
    """Predict whether answers are wrong from `metrics`, and compare with their own probability.

    metrics: one row an answer: its `id` (or `answer`), one column a metric. answers: labelled, with
        the output's probability and entropy among their `surface` numbers.
    source: what the record says of the metrics' origin, such as task and model.

    Raises `JoinError` for metrics of other answers and for constant ones, `LabelError` for too few
    answers, and `PredictError` where an answer lacks the output's numbers.
    """
    check_estimators(estimators)
    check_labels(answers, ERROR, folds)
    table = metrics.rename(columns={"answer": "id"})
    vectors = Vectors.of_table(table, name="tracks", source=source or {}).join(answers)
    known = _known(answers)
    found = predict(
        answers, vectors, estimators=estimators, folds=folds, seed=seed, progress=progress
    )
    truth, ours = found.held()
    inside = vectors.flat()
    features = {
        OUTPUT: known[OUTPUT],
        ADDED: np.concatenate([inside, known[OUTPUT]], axis=1),
        KNOWN: known[KNOWN],
        ADDED_TO_ALL: np.concatenate([inside, known[KNOWN]], axis=1),
    }
    held = {METRICS: ours}
    for name in tqdm(features, desc="with and without metrics", disable=not progress):
        held[name] = _held(features[name], vectors.ids, truth, estimators, seed)
    sizes = {METRICS: inside.shape[1], **{n: x.shape[1] for n, x in features.items()}}
    rows = []
    for a, b in COMPARED:
        gain = paired_gain(truth, held[a], held[b], seed=seed)
        numbers = {"gain": gain.value, "low": gain.low, "high": gain.high, "p": gain.p}
        rows.append({"features": a, "over": b, **numbers, "found": gain.found})
    sets = pd.DataFrame([_score(n, sizes[n], truth, p, seed) for n, p in held.items()])
    gains = pd.DataFrame(rows)
    verdict, text = _headline(sets, gains, found)
    record = {
        "method": "tells",
        **(source or {}),
        "headline": text,
        "verdict": verdict,
        "answers": len(answers),
        "wrong": int(sum(not a.correct for a in answers)),
        "groups": len({a.group for a in answers}),
        "metrics": list(vectors.positions),
        "output": _names(answers),
        "estimators": list(estimators),
        "folds": folds,
        "seed": seed,
        "resamples": RESAMPLES,
        "permutations": PERMUTATIONS,
        "widening": truth.widening,
        "sign_convention": "positive gains and effects are toward wrong answers being told",
        "versions": found.record["versions"],
    }
    return Tells(sets, gains, _single(found, vectors, answers), found, record)


def _names(answers: Sequence[Labelled]) -> list[str]:
    """The surface numbers of the output."""
    return sorted({name for a in answers for name in a.surface if is_output(name)})


def _known(answers: Sequence[Labelled]) -> dict[str, np.ndarray]:
    """Numbers of the output, and all that is known from outside."""
    groups = surface_groups(answers)
    if OUTPUT not in groups:
        raise PredictError(
            "the answers have no output entropy or probability among their surface numbers: there "
            "is nothing to compare the metrics with. tasks.facts writes them with its answers."
        )
    found = {OUTPUT: groups[OUTPUT], KNOWN: groups["all"]}
    for name, table in found.items():
        whole: Any = np.isfinite(table).all(1)
        lacking = [a.id for a, fine in zip(answers, whole, strict=True) if not fine]
        if lacking:
            raise PredictError(
                f"{len(lacking)} of {len(answers)} answers lack some of the numbers that others "
                f"have ({name}; first: {lacking[0]!r}): give them to all."
            )
    return found


def _held(
    x: np.ndarray, ids: tuple[str, ...], truth: Truth, estimators: Sequence[str], seed: int
) -> Proba:
    """Held-out probabilities of the estimator that was best inside the training folds."""
    side = Side(ids, np.ascontiguousarray(x, dtype=np.float32), truth)
    shape = Shape(1, 1, x.shape[1])
    made = [recipe(name, shape, seed, truth.n_classes) for name in estimators]
    return chosen([cross_predict(one, side, seed=seed) for one in made], truth.folds).proba


def _score(name: str, numbers: int, truth: Truth, proba: Proba, seed: int) -> dict[str, Any]:
    one = np.ones((1, len(truth.classes)), dtype=np.float32)
    value = float(auc(truth, proba, one)[0])
    ends = interval(value, auc(truth, proba, truth.weights(RESAMPLES, seed)))
    p = permutation_p(value, null_auc(truth, proba, seed=seed), truth.widening)
    row = {"features": name, "numbers": numbers, "auc": value}
    return {**row, "low": ends.low, "high": ends.high, "p": p}


def _single(found: PredictResult, vectors: Vectors, answers: Sequence[Labelled]) -> pd.DataFrame:
    """Each metric by itself."""
    effects: Any = found.localisation().features
    wrong = np.array([not a.correct for a in answers])
    proba = vectors.flat().astype(float)
    truth = Truth(wrong.astype(int), np.arange(len(wrong)), np.zeros(len(wrong), dtype=int), 2)
    one = np.ones((1, len(wrong)), dtype=np.float32)
    areas = {
        name: float(auc(truth, np.stack([-column, column], 1), one)[0])
        for name, column in zip(vectors.positions, proba.T, strict=True)
    }
    table = effects[["position", "d", "low", "high", "p", "q"]]
    table = table.rename(columns={"position": "metric"})
    return table.assign(auc=table["metric"].map(areas)).reset_index(drop=True)


def _headline(sets: pd.DataFrame, gains: pd.DataFrame, found: PredictResult) -> tuple[str, str]:
    leaks = [check for check in found.audit() if check["verdict"] == "leak"]
    if leaks:
        names = "; ".join(f"{check['name']}: {check['text']}" for check in leaks)
        return "refused", f"No headline: the audit found a leak ({names})"
    areas = {
        row["features"]: f"{row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        for row in sets.to_dict("records")
    }
    first = gains.iloc[0]
    ends = f"[{first['low']:+.3f}, {first['high']:+.3f}]"
    says = (
        f"with the metrics AUC {areas[ADDED]}, from the answer's own probability and entropy "
        f"alone {areas[OUTPUT]}: gain {first['gain']:+.3f} {ends}, p = {first['p']:.3f}; from the "
        f"metrics alone {areas[METRICS]}"
    )
    if first["found"]:
        return "found", f"{says[0].upper()}{says[1:]}."
    return "nothing", f"Nothing was found beyond the answer's own probability: {says}."
