"""Predict from inside a model whether its answers are wrong, and look for leaks.

1. Vectors are joined to records by id; groups are dealt into folds.
2. Every estimator and every baseline predicts every fold from the others (folds.py).
3. `chosen` is, for each fold, the estimator that was best inside the training folds. The headline
   is its AUC less that of the best baseline. The best baseline is taken by its score on the
   predicted rows themselves, which favours the baseline and so is conservative.
4. Effects of single features are described (localise.py), and the audit is made (audit.py). Where
   it finds a leak there is no headline.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from circuits.labelled import ERROR, Labelled, check_labels
from circuits.predict.baselines import BASELINES
from circuits.predict.estimators import DEFAULT, check_estimators
from circuits.predict.inputs import SaeFit
from circuits.predict.result import PredictResult
from circuits.predict.scores import RESAMPLES, PredictError
from circuits.predict.target import Data, Prepare, Target
from circuits.predict.vectors import Fitted, Over, Pool, Vectors
from circuits.runs import versions
from circuits.saes import SaeSet

SIGN = "positive effects and probabilities are toward wrong answers (or the class that is named)"


def predict(
    records: Sequence[Labelled],
    vectors: Vectors,
    *,
    targets: Sequence[str] = (ERROR,),
    estimators: Sequence[str] = DEFAULT,
    own: Mapping[str, Any] | None = None,
    saes: SaeSet | SaeFit | None = None,
    pool: Pool = "concat",
    pool_over: Over = "positions",
    folds: int = 5,
    train: tuple[Sequence[Labelled], Vectors] | None = None,
    align: bool = False,
    prepare: Prepare | None = None,
    fitted: Sequence[Fitted] = (),
    merge_twins: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> PredictResult:
    """Predict `targets` of records from their vectors, with baselines and the leak audit.

    targets: `wrong`, and any labels of the records; each is predicted by itself, and intervals of
        headlines are Bonferroni-adjusted for their number.
    estimators: names (estimators.ESTIMATORS). own: more, scikit-learn classifiers by name.
    saes: SAEs that exist and are used as they are, `SaeFit` for SAEs trained inside the training
        folds, or None for the vectors themselves.
    pool: positions (or sites, or both) side by side, or their mean or maximum.
    train: records and vectors to train on instead, such as another model's. Groups that are on
        both sides are dealt into the same fold, so that none is trained on and predicted.
    align: bring both sides' features into one space (align.py); needed for different widths.
    prepare: done to the vectors before the folds, given the target's class codes. Anything it
        learns from them is a leak, which the audit looks for.
    fitted: what was fitted elsewhere on the way to these vectors or estimators, and on which ids.
    merge_twins: put prompts that differ in one word or number at most into one group first.

    Raises `PredictError`, `LabelError` and `JoinError` before any long work.
    """
    started = time.perf_counter()
    check_estimators(estimators)
    _check(vectors, folds, saes, train, align, prepare, own, estimators, targets)
    data = Data.of(records, vectors, train, merge_twins)
    for target in targets:
        check_labels(data.records, target, folds)
    found = [
        Target(data, target, folds, seed, len(targets)).run(
            estimators=estimators,
            own=dict(own or {}),
            saes=saes,
            pool=(pool, pool_over),
            align=align,
            prepare=prepare,
            fitted=fitted,
            progress=progress,
        )
        for target in targets
    ]
    scores, predictions, features, cells = (
        pd.concat([tables[i] for tables, _ in found], ignore_index=True) for i in range(4)
    )
    record: dict[str, Any] = {
        "method": "predict",
        "task": vectors.source.get("task", "custom"),
        "model": vectors.source.get("model"),
        "model_sha256": vectors.source.get("model_sha256"),
        "targets": {target: about for target, (_, about) in zip(targets, found, strict=True)},
        "records": len(records),
        "groups": len(set(data.groups)),
        "trained_on": None if train is None else len(train[0]),
        "aligned": align,
        "folds": folds,
        "estimators": [*estimators, *(own or {})],
        "features": _described(saes, vectors),
        "pool": pool,
        "pool_over": pool_over if pool != "concat" else None,
        "sites": list(vectors.sites),
        "positions": list(vectors.positions),
        "source": dict(vectors.source),
        "merged_twins": merge_twins,
        "seed": seed,
        "resamples": RESAMPLES,
        "sign_convention": SIGN,
        "versions": versions(),
        "seconds": round(time.perf_counter() - started, 2),
    }
    return PredictResult(scores, predictions, features, cells, record)


def _check(
    vectors: Vectors,
    folds: int,
    saes: Any,
    train: Any,
    align: bool,
    prepare: Any,
    own: Any,
    estimators: Sequence[str],
    targets: Sequence[str],
) -> None:
    if folds < 2:
        raise PredictError(f"{folds} folds: two at least are needed.")
    if not targets or len(set(targets)) < len(targets):
        raise PredictError("name each target once.")
    if align and train is None:
        raise PredictError("align is for training on one model and testing on another: give train.")
    if train is not None and (isinstance(saes, SaeFit) or prepare is not None):
        raise PredictError("SAEs fitted in folds, and prepare, are for one model's vectors only.")
    if train is not None and isinstance(saes, SaeSet):
        models = [v.source.get("model_sha256") for v in (vectors, train[1])]
        if models[0] != models[1]:
            raise PredictError("SAEs belong to one model, but the training vectors are another's.")
    if align and "sequence" in estimators:
        raise PredictError("aligned features have no positions: leave out the sequence model.")
    clash = set(own or {}) & {*estimators, "chosen", *BASELINES}
    if clash:
        raise PredictError(f"{', '.join(sorted(clash))}: two estimators of one name.")


def _described(saes: SaeSet | SaeFit | None, vectors: Vectors) -> dict[str, Any]:
    if isinstance(saes, SaeFit):
        return {"kind": "latents", "sae": "fitted in training folds", **asdict(saes)}
    if isinstance(saes, SaeSet):
        described = [saes.describe(site) for site in saes]
        return {"kind": "latents", "sae": "pretrained", "saes": described}
    return {"kind": vectors.kind}
