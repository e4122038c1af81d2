"""Pathways at the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from circuits.cli.show import console, escaped
from circuits.report.tables import number, of_row

if TYPE_CHECKING:
    from circuits.replay.pathways_result import PathwaysResult

_NAMES = {
    "total": "total, text held",
    "confirmed": "  by the confirmed mediators together",
    "rest": "  left with these frozen",
    "mediated": "  by all mediators, confirmed or not",
    "direct": "  left with all of them frozen",
    "controls": "  by as many others that change alike",
    "seen": "seen in the run",
    "seen_direct": "  direct",
    "seen_by_tokens": "  by tokens",
    "seen_interaction": "  interaction",
}


def print_pathways(result: PathwaysResult, top: int = 12) -> None:
    """Headline, effects on the outcome, mediators, and the latents that change most surely."""
    console.print(result.headline(), style="bold", highlight=False, markup=False)
    for line in result.warnings():
        console.print(line, style="yellow", highlight=False, markup=False)
    _print_effects(result)
    if len(result.mediators()):
        _print_mediators(result)
    for view, title in (("held_", "with the text held"), ("", "in the run")):
        _print_changes(result, view, title, top)
    console.print(f"Sign: {result.record['sign_convention']}.", style="dim", highlight=False)


def _print_effects(result: PathwaysResult) -> None:
    outcome = result.record["outcome"]
    table = Table(title=escaped(f"Effect on {outcome}"), box=box.SIMPLE_HEAD)
    table.add_column("part", no_wrap=True)
    table.add_column("mean, 95% interval", justify="right")
    table.add_column("share", justify="right")
    for name, said in _NAMES.items():
        row = dict(result.effect(name))
        share = of_row(row, "share", ".0%") if not row["problem"] else row["problem"]
        table.add_row(said, escaped(_value(row)), escaped(share))
    console.print(table)


def _value(row: dict[str, Any]) -> str:
    return of_row({"v": row["value"], "v_low": row["low"], "v_high": row["high"]}, "v", "+.3g")


def _print_mediators(result: PathwaysResult) -> None:
    table = Table(title="Mediators", box=box.SIMPLE_HEAD)
    for column in ("latent", "mediated", "share", "by itself", "q", "confirmed"):
        left = column == "latent"
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for row in result.mediators().to_dict("records"):
        cells = (
            f"{row['site']} {row['latent']}",
            of_row(row, "mediated", "+.3g"),
            of_row(row, "share", ".0%"),
            of_row(row, "alone", "+.3g"),
            number(row["mediated_q"], ".2g"),
            "yes" if row["confirmed"] else "no",
        )
        table.add_row(*map(escaped, cells))
    console.print(table)


def _print_changes(result: PathwaysResult, view: str, title: str, top: int) -> None:
    found = result.found(view)
    if found.empty:
        return
    most = f", {top} of {len(found)}" if len(found) > top else ""
    table = Table(title=f"Latents that change {title}{most}", box=box.SIMPLE_HEAD)
    heads = ("latent", "no-op", "difference", "d_z", "q", *(() if view else ("random arms",)))
    for column in heads:
        left = column == "latent"
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for row in found.head(top).to_dict("records"):
        named = {f"d{end}": row[f"{view}{c}"] for end, c in _ENDS.items()}
        cells = [
            f"{row['site']} {row['latent']}",
            number(row[f"{view}base"], ".3g"),
            of_row(named, "d", "+.3g"),
            of_row(row, f"{view}size", ".2f"),
            number(row[f"{view}q"], ".2g"),
        ]
        if not view:
            cells.append(number(row["random"], "+.3g"))
        table.add_row(*map(escaped, cells))
    console.print(table)


_ENDS = {"": "difference", "_low": "low", "_high": "high"}
