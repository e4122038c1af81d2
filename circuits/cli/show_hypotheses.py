"""Tested hypotheses at the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from circuits.cli.show import console, escaped

if TYPE_CHECKING:
    from circuits.hypotheses import HypothesesResult

_STYLES = {"holds": "green", "fails": "red", "not enough data": "yellow"}


def print_hypotheses(result: HypothesesResult) -> None:
    """Headline, every hypothesis with its verdict and figures, and descriptions."""
    console.print(result.headline(), style="bold", highlight=False, markup=False)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("latent", "hypothesis", "verdict", "figure, 95%", "q", "why"):
        table.add_column(column)
    for row in result.table.to_dict("records"):
        verdict = str(row["verdict"])
        own = " (own)" if row["origin"] == "person" else ""
        table.add_row(
            escaped(f"{row['site']} {row['latent']}"),
            escaped(f"{row['statement']}{own}"),
            f"[{_STYLES[verdict]}]{verdict}[/]",
            escaped(_figure(row)),
            _number(row["q"], ".1g"),
            escaped("" if verdict == "holds" else str(row["reason"])),
        )
    console.print(table)
    if len(result.descriptions):
        _print_descriptions(result)
    console.print(f"Sign: {result.record['sign_convention']}.", style="dim", highlight=False)


def _figure(row: dict[str, Any]) -> str:
    """The enrichment as a multiple, the effect in logits."""
    if math.isnan(row["value"]):
        return ""
    fires = row["claim"] == "fires_on"
    form, sign = (".3g", "x") if fires else ("+.3g", "")
    ends = f" [{row['low']:{form}}, {row['high']:{form}}]" if not math.isnan(row["low"]) else ""
    bound = _number(row["threshold"], ".3g")
    return f"{sign}{row['value']:{form}}{ends} vs {bound}"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _print_descriptions(result: HypothesesResult) -> None:
    table = Table(title="Descriptions, scored on held-out examples", box=box.SIMPLE_HEAD)
    for column in ("latent", "description", "verdict", "AUC", "balanced accuracy"):
        table.add_column(column)
    for row in result.descriptions.to_dict("records"):
        found = [
            ""
            if math.isnan(row[n])
            else f"{row[n]:.2f} [{row[n + '_low']:.2f}, {row[n + '_high']:.2f}]"
            for n in ("auc", "accuracy")
        ]
        table.add_row(
            escaped(f"{row['site']} {row['latent']}"),
            escaped(str(row["description"])),
            str(row["verdict"]),
            *map(escaped, found),
        )
    console.print(table)
