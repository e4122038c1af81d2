"""The table of scores, and what may be said of them in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuits.predict import audit as look
from circuits.predict.folds import Held
from circuits.predict.scores import (
    RESAMPLES,
    SCORES,
    Proba,
    Truth,
    auc,
    exchange_p,
    interval,
    null_auc,
    permutation_p,
)


def score_table(
    truth: Truth, ours: Sequence[Held], baselines: Sequence[Held], level: float, seed: int
) -> pd.DataFrame:
    """One row a predictor: its scores, and its gain over the best baseline.

    level: of the interval of the gain.
    """
    one = np.ones((1, len(truth.classes)), dtype=np.float32)
    weights = truth.weights(RESAMPLES, seed)
    drawn: dict[str, np.ndarray] = {}
    rows = []
    for held, role in [(h, "features") for h in ours] + [(h, "baseline") for h in baselines]:
        row: dict[str, Any] = {"name": held.name, "role": role}
        for name, score in SCORES.items():
            value = float(score(truth, held.proba, one)[0])
            found = score(truth, held.proba, weights)
            ends = interval(value, found)
            row |= {name: value, f"{name}_low": ends.low, f"{name}_high": ends.high}
            if name == "auc":
                drawn[held.name] = found
        null = null_auc(truth, held.proba, seed=seed)
        row["p"] = permutation_p(row["auc"], null, truth.widening)
        row["inner_auc"] = float(np.mean(held.inner))
        rows.append(row)
    table = pd.DataFrame(rows)
    base: Any = table[table["role"] == "baseline"]
    best = base.loc[base["auc"].idxmax()]
    for i, own in enumerate(rows):
        gain = float(own["auc"] - best["auc"])
        ends = interval(gain, drawn[own["name"]] - drawn[best["name"]], truth.widening, level)
        table.loc[i, ["gain", "gain_low", "gain_high"]] = [gain, ends.low, ends.high]  # pyright: ignore
    return table


@dataclass(frozen=True)
class Gain:
    """By how much one predictor's AUC exceeds another's on the same rows; 0 is no gain.

    low, high: groups resampled for both together, widened. p: `scores.exchange_p`.
    """

    value: float
    low: float
    high: float
    p: float

    @property
    def found(self) -> bool:
        """Whether there is one: the interval lies above 0, and p is below 0.05."""
        return self.low > 0 and self.p < 0.05

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p = {self.p:.3f}"


def paired_gain(
    truth: Truth, ours: Proba, other: Proba, level: float = 0.95, seed: int = 0
) -> Gain:
    """The gain of one predictor over another, both held out in the same folds."""
    one = np.ones((1, len(truth.classes)), dtype=np.float32)
    weights = truth.weights(RESAMPLES, seed)
    value = float(auc(truth, ours, one)[0] - auc(truth, other, one)[0])
    drawn = auc(truth, ours, weights) - auc(truth, other, weights)
    ends = interval(value, drawn, truth.widening, level)
    return Gain(value, ends.low, ends.high, exchange_p(truth, ours, other, seed=seed))


def headline(scores: pd.DataFrame, audit: look.Audit) -> dict[str, Any]:
    """The gain over the best baseline in numbers and words; refused where there is a leak."""
    row: Any = scores[scores["name"] == "chosen"].iloc[0]
    base: Any = scores[scores["role"] == "baseline"]
    best = base.loc[base["auc"].idxmax()]
    ends = f"[{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
    numbers = {k: float(row[k]) for k in ("auc", "gain", "gain_low", "gain_high", "p")}
    numbers |= {"baseline": best["name"], "baseline_auc": float(best["auc"])}
    if audit.leaks:
        names = ", ".join(check.name for check in audit.leaks)
        text = f"No headline: the audit found a leak ({names}). " + " ".join(
            f"{check.name}: {check.text}" for check in audit.leaks
        )
        return {"verdict": "refused", "text": text, **numbers}
    says = (
        f"AUC {row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}] against "
        f"{best['auc']:.3f} of the best baseline ({best['name']}): gain {row['gain']:+.3f} {ends}, "
        f"permutation p = {row['p']:.3f}"
    )
    if row["gain_low"] > 0 and row["p"] < 0.05:
        return {"verdict": "found", "text": f"{says}.", **numbers}
    return {"verdict": "nothing", "text": f"Nothing was found: {says}.", **numbers}
