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
    """Headline, latent by latent every hypothesis with its verdict and figures, descriptions."""
    console.print(result.headline(), style="bold", highlight=False, markup=False)
    rows = result.table.to_dict("records")
    for site, latent in dict.fromkeys((r["site"], r["latent"]) for r in rows):
        table = Table(
            title=f"{site} latent {latent}", title_justify="left", box=box.SIMPLE_HEAD, expand=True
        )
        table.add_column("verdict", no_wrap=True)
        table.add_column("hypothesis", ratio=1)
        table.add_column("figure, 95% interval", no_wrap=True)
        for row in rows:
            if (row["site"], row["latent"]) == (site, latent):
                table.add_row(*_cells(row))
        console.print(table)
    if len(result.descriptions):
        _print_descriptions(result)
    console.print(f"Sign: {result.record['sign_convention']}.", style="dim", highlight=False)


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    verdict = str(row["verdict"])
    said = escaped(str(row["statement"]) + (" (own)" if row["origin"] == "person" else ""))
    if verdict != "holds":
        said += f"\n[dim]{escaped(str(row['reason']))}[/]"
    return f"[{_STYLES[verdict]}]{verdict}[/]", said, escaped(_figure(row))


def _figure(row: dict[str, Any]) -> str:
    """The enrichment as a multiple, the effect in logits."""
    if math.isnan(row["value"]):
        return ""
    fires = row["claim"] == "fires_on"
    form, sign = (".3g", "x ") if fires else ("+.3g", "")
    ends = f" [{row['low']:{form}}, {row['high']:{form}}]" if not math.isnan(row["low"]) else ""
    return f"{sign}{row['value']:{form}}{ends}"


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
