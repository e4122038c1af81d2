"""What a report shows of tells: whether metrics of tracks tell right answers from wrong ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from circuits.report.folders import Run
from circuits.report.predict import predict_sections
from circuits.report.tables import number, of_row, paragraph, table

if TYPE_CHECKING:
    from circuits.tracks.tells import Tells


def tell_tables(found: Tells) -> list[tuple[str, tuple[str, ...], list[list[Any]]]]:
    """(title, heads, rows) of what was compared."""
    sets = [
        [row["features"], row["numbers"], _ends(row, "auc", ".3f"), number(row["p"], ".3f")]
        for row in found.sets.to_dict("records")
    ]
    gains = [
        [
            f"{row['features']} over {row['over']}",
            _ends(row, "gain", "+.3f"),
            number(row["p"], ".3f"),
        ]
        for row in found.gains.to_dict("records")
    ]
    single = [
        [
            row["metric"],
            number(row["auc"], ".3f"),
            _ends(row, "d", "+.2f"),
            number(row["q"], ".2g"),
        ]
        for row in found.single.to_dict("records")
    ]
    return [
        ("Held out by group", ("features", "numbers", "AUC", "p"), sets),
        ("Gains in AUC", ("comparison", "gain", "p"), gains),
        ("Each metric, toward wrong answers", ("metric", "AUC", "d", "q"), single),
    ]


def _ends(row: dict[Any, Any], name: str, form: str) -> str:
    return of_row({"v": row[name], "v_low": row["low"], "v_high": row["high"]}, "v", form)


def tells_sections(run: Run) -> list[tuple[str, Any]]:
    """Headline, tables, and the prediction from the metrics alone with its audit."""
    found: Tells = run.result
    loud = "loud" if found.verdict() == "refused" else ""
    made: list[tuple[str, Any]] = [("", paragraph(found.headline(), loud))]
    made += [(title, table(heads, rows, heads[1:])) for title, heads, rows in tell_tables(found)]
    return [*made, *predict_sections(replace(run, result=found.predicted))]
