"""A replay at the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from circuits.cli.show import console, escaped
from circuits.report.tables import of_row

if TYPE_CHECKING:
    from circuits.replay import ReplayResult
    from circuits.replay.variance import Report


def print_replay(result: ReplayResult, outcomes: Sequence[str] = ()) -> None:
    """What was done, the arms, how much they differ and what common random numbers save.

    outcomes: of responses, besides those that every run shows and those it was asked for. Raises
    `ReplayError` for one that it does not have.
    """
    reports = result.reports(outcomes)
    console.print(result.headline(), style="bold", highlight=False, markup=False)
    table = Table(title="Arms", box=box.SIMPLE_HEAD)
    for column in (
        "arm",
        "responses",
        "mean length",
        "stopped",
        "diverged",
        "median step",
        "valid",
    ):
        table.add_column(column)
    for row in result.table().to_dict("records"):
        table.add_row(
            escaped(str(row["arm"])),
            str(row["responses"]),
            f"{row['length']:.1f}",
            f"{row['stopped']:.0%}",
            "" if row["arm"] == result.arms[0] else f"{row['diverged']:.0%}",
            _or_nothing(row["divergence"], ".0f"),
            _or_nothing(row["valid"], ".0%"),
        )
    console.print(table)
    for about in result.record["latents"]:
        others = ", ".join(
            f"{latent} ({rate:.2%}{'' if matched else ', not matched'})"
            for latent, rate, matched in zip(
                about["random"], about["random_rates"], about["random_matched"], strict=True
            )
        )
        console.print(
            f"{about['site']}:{about['latent']} is active at {about['rate']:.2%} of the positions"
            + (f"; random arms: {others}" if others else ""),
            highlight=False,
            markup=False,
        )
    for line in result.warnings():
        console.print(line, style="yellow", highlight=False, markup=False)
    for report in reports:
        _print_report(report)
    console.print(f"Sign: {result.record['sign_convention']}.", style="dim", highlight=False)


def _print_report(report: Report) -> None:
    if report.table is None:
        console.print(f"{report.title}: {report.problem}", highlight=False, markup=False)
        return
    title = f"{report.title}; variance with common random numbers over independent"
    table = Table(title=escaped(title), box=box.SIMPLE_HEAD)
    for column in ("arm", "difference", "95%", "ratio"):
        table.add_column(column)
    for row in report.table.to_dict("records"):
        named = {str(key): value for key, value in row.items()}
        over = f"over {row['unit']}s" if row["unit"] else ""
        cells = [of_row(named, "difference", "+.2f"), over, of_row(named, "ratio", ".2f")]
        table.add_row(*map(escaped, [str(row["arm"]), *cells]))
    console.print(table)
    if report.lost:
        console.print(report.lost, highlight=False, markup=False)


def _or_nothing(value: float, form: str) -> str:
    return "" if value != value else f"{value:{form}}"  # noqa: PLR0124 (NaN)
