"""What a report shows of predicted errors: the headline, scores, the audit, the figures."""

from __future__ import annotations

from typing import Any

from circuits.report.folders import Run
from circuits.report.tables import Html, bullets, number, of_row, paragraph, table

_HEADS = ("predictor", "AUC", "Brier", "accuracy", "p", "gain over the best baseline")


def predict_sections(run: Run) -> list[tuple[str, Any]]:
    """Target by target."""
    found: list[tuple[str, Any]] = []
    for target in run.result.targets:
        found.append((f"Target {target}", _scores(run, target)))
        lines = [f"{c['name']}: {c['verdict']}. {c['text']}" for c in run.result.audit(target)]
        found.append(("Leak audit", bullets(lines)))
        found += run.result.sections(target)
    return found


def _scores(run: Run, target: str) -> Html:
    result = run.result
    rows = [
        [
            row["name"] + (" (baseline)" if row["role"] == "baseline" else ""),
            of_row(row, "auc", ".3f"),
            number(row["brier"], ".3f"),
            number(row["accuracy"], ".1%"),
            number(row["p"], ".3f"),
            "" if row["role"] == "baseline" else of_row(row, "gain", "+.3f"),
        ]
        for row in result.table(target).to_dict("records")
    ]
    loud = "loud" if result.verdict(target) == "refused" else ""
    note = (
        "Held out in grouped, nested folds; 95% intervals, groups resampled. AUC: of two records "
        "of a fold, how often the wrong answer gets the larger probability; 0.5 is chance. "
        "Intervals of gains are widened because folds share training data. \u201cChosen\u201d: "
        "the estimator that was best inside the training folds."
    )
    return (
        paragraph(result.headline(target), loud)
        + table(_HEADS, rows, _HEADS[1:])
        + paragraph(note, "note")
    )


def predict_summary(run: Run) -> str:
    """The headlines."""
    return " ".join(f"Predicting {t}: {run.result.headline(t)}" for t in run.result.targets)
