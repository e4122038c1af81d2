"""`PredictResult`: scores, predictions, effects, the audit; their figures and place on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.predict.localise import Localisation
from circuits.predict.scores import PredictError, Truth, calibration, confusion
from circuits.runs import (
    RunError,
    default_folder,
    new_run,
    read_method,
    read_scores,
    read_tables,
    write_record,
    write_scores,
)

_TABLES = ("predictions", "features", "cells")


@dataclass(frozen=True, eq=False)
class PredictResult:
    """How well errors (and other targets) are predicted, and by what.

    scores: one row a target and predictor: `target, name, role` (features or baseline), `auc,
        brier, accuracy` with `_low, _high` (95%, groups resampled), `p` (permutation), `inner_auc`,
        and `gain` over the best baseline with `_low, _high` (widened, see scores.py). `chosen` is
        the estimator that was best inside the training folds.
    predictions: one row a target, record and predictor: `target, id, group, fold, name, class,
        p_0, p_1, ...`, held out.
    features, cells: `Localisation` with a column `target`.
    record: what run.json holds; `record["targets"][target]` has headline and audit.
    """

    scores: pd.DataFrame
    predictions: pd.DataFrame
    features: pd.DataFrame
    cells: pd.DataFrame
    record: dict[str, Any]

    @property
    def targets(self) -> tuple[str, ...]:
        """What was predicted."""
        return tuple(self.record["targets"])

    def _target(self, target: str | None) -> str:
        name = target or self.targets[0]
        if name not in self.targets:
            raise PredictError(f"no target {name!r}: there are {', '.join(self.targets)}.")
        return name

    def headline(self, target: str | None = None) -> str:
        """The gain over the best baseline in words, or why there is none to report."""
        return self.record["targets"][self._target(target)]["headline"]["text"]

    def verdict(self, target: str | None = None) -> str:
        """ "found", "nothing" or "refused"."""
        return self.record["targets"][self._target(target)]["headline"]["verdict"]

    def audit(self, target: str | None = None) -> list[dict[str, Any]]:
        """The checks of the leak audit: `name, verdict, text, numbers`."""
        return self.record["targets"][self._target(target)]["audit"]

    def table(self, target: str | None = None) -> pd.DataFrame:
        """Scores of one target, chosen first, then estimators and baselines by AUC."""
        table: Any = self.scores[self.scores["target"] == self._target(target)]
        order = table.assign(
            first=table["name"] != "chosen", second=table["role"] != "features", third=-table["auc"]
        ).sort_values(["first", "second", "third"], kind="stable")
        return table.loc[order.index].reset_index(drop=True)

    def classes(self, target: str | None = None) -> list[str]:
        """Names of a target's classes, in the order of `p_0, p_1, ...`."""
        return list(self.record["targets"][self._target(target)]["classes"])

    def held(self, name: str = "chosen", target: str | None = None) -> tuple[Truth, np.ndarray]:
        """What is true of the records, and a predictor's held-out probabilities [record, class]."""
        which, classes = self._target(target), self.classes(target)
        table: Any = self.predictions
        table = table[(table["target"] == which) & (table["name"] == name)]
        if table.empty:
            raise PredictError(f"no predictor {name!r}.")
        codes = np.array([classes.index(c) for c in table["class"]])
        groups = np.unique(table["group"].to_numpy(str), return_inverse=True)[1]
        truth = Truth(codes, groups, table["fold"].to_numpy(int), len(classes))
        return truth, table[[f"p_{i}" for i in range(len(classes))]].to_numpy(float)

    def calibration(
        self, name: str = "chosen", target: str | None = None
    ) -> tuple[np.ndarray, float]:
        """Calibration curve and expected calibration error (scores.calibration)."""
        return calibration(*self.held(name, target))

    def confusion(self, name: str = "chosen", target: str | None = None) -> pd.DataFrame:
        """Records by true class (rows) and most probable class (columns)."""
        names = self.classes(target)
        found = confusion(*self.held(name, target))
        return pd.DataFrame(found, index=pd.Index(names), columns=pd.Index(names))

    def localisation(self, target: str | None = None) -> Localisation:
        """Effects of single features by site and position."""
        which = self._target(target)
        about = self.record["targets"][which]
        parts: list[Any] = [t[t["target"] == which] for t in (self.features, self.cells)]
        tables = [t.drop(columns="target").reset_index(drop=True) for t in parts]
        numbers = (about["largest_effect"], about["largest_by_chance"], about["p_largest"])
        return Localisation(tables[0], tables[1], *numbers)

    def sections(self, target: str | None = None) -> list[tuple[str, Any]]:
        """Headings with figures below them, of one target."""
        from circuits.plots import predict as draw

        name = self._target(target)
        found = [
            ("How well errors are predicted", draw.scores_figure(self, name)),
            ("Calibration", draw.calibration_figure(self, name)),
            ("Confusion", draw.confusion_figure(self, name)),
            ("Confidence", draw.confidence_figure(self, name)),
            ("Where features differ", draw.effects_heatmap(self, name)),
            ("By site and by position", draw.counts_figure(self, name)),
        ]
        return [(f"{title}: {name}" if len(self.targets) > 1 else title, f) for title, f in found]

    def page(self) -> str:
        """Headline, audit and all figures as one HTML page that opens without a network."""
        from circuits.report import page
        from circuits.report.tables import bullets, paragraph

        sections: list[tuple[str, Any]] = []
        for target in self.targets:
            loud = "loud" if self.verdict(target) == "refused" else ""
            lines = [f"{c['name']}: {c['verdict']}. {c['text']}" for c in self.audit(target)]
            sections.append((f"Target {target}", paragraph(self.headline(target), loud)))
            sections.append(("Leak audit", bullets(lines)))
            sections += self.sections(target)
        title = f"Predicting errors: {self.record.get('task', 'custom')}"
        return page(title, sections)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the run's folder (default `runs/<task>/predict-<time>`) and return its path."""
        task = str(self.record.get("task", "custom"))
        target = Path(folder) if folder else default_folder(task, "predict")
        with new_run(target) as work:
            write_record(work, self.record)
            write_scores(work, self.scores)
            for name in _TABLES:
                getattr(self, name).to_parquet(work / f"{name}.parquet", index=False)
            (work / "predict.html").write_text(self.page(), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> PredictResult:
        """Read a run back; the same object as the one that was saved."""
        record = read_method(folder, "predict")
        if "targets" not in record:
            raise RunError(f"{folder} is not a whole run of predicting: it has no targets.")
        predictions, features, cells = read_tables(folder, _TABLES)
        return cls(read_scores(folder), predictions, features, cells, record)
