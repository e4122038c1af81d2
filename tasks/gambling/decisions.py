"""`python -m tasks.gambling.decisions LOG...`: what logs and replay runs decided, arm by arm."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from circuits.cli import run_app
from circuits.cli.show import console, escaped
from tasks.gambling.metrics import Decisions, decisions

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def counted(
    logs: Annotated[list[Path], typer.Argument(help="JSONL files, or folders of replay runs.")],
) -> None:
    """Stop rates and bets of logs whose responses were read, by kind and arm."""
    from circuits.replay.log import read_log

    for path in logs:
        print_decisions(decisions(read_log(path)), str(path))


def print_decisions(found: Decisions, about: str) -> None:
    """Shares and means with intervals, a row a kind and arm; why responses were not read."""
    shown = Table(title=f"Decisions: {escaped(about)}; 95% over prompts", box=box.SIMPLE_HEAD)
    for column in ("kind", "arm", "read", "stop rate", "mean bet", "of balance"):
        shown.add_column(column)
    for row in found.table.to_dict("records"):
        cells = [
            _cell(row, name, form)
            for name, form in (
                ("parsed", ".0%"),
                ("stop_rate", ".0%"),
                ("mean_bet", ".1f"),
                ("bet_share", ".0%"),
            )
        ]
        shown.add_row(str(row["kind"]), escaped(str(row["arm"])), *cells)
    console.print(shown)
    if len(found.differences):
        _print_differences(found)
    for (kind, arm), reasons in found.reasons.items():
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        if said:
            console.print(f"not read ({kind}, {arm}): {said}", markup=False, highlight=False)


def _print_differences(found: Decisions) -> None:
    """Paired differences from no-op, with what they rest on."""
    shown = Table(
        title="Arm - no-op, in trials valid in both; 95% and p not corrected", box=box.SIMPLE_HEAD
    )
    for column in ("kind", "arm", "of", "difference", "p", "pairs", "lost", "unit"):
        shown.add_column(column)
    for row in found.differences.to_dict("records"):
        ends = {f"d{end}": row[name] for end, name in (("_low", "low"), ("_high", "high"))}
        cell = _cell({"d": row["difference"], **ends}, "d", "+.1%")
        p = "" if math.isnan(row["p"]) else f"{row['p']:.2g}"
        names = [escaped(str(row[name])) for name in ("kind", "arm", "metric")]
        shown.add_row(*names, cell, p, *(str(row[name]) for name in ("pairs", "lost", "unit")))
    console.print(shown)


def _cell(row: dict[str, Any], name: str, form: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if math.isnan(value):  # nothing to average
        return ""
    return escaped(
        f"{value:{form}}" + ("" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]")
    )


if __name__ == "__main__":
    run_app(app, sys.argv[1:], "python -m tasks.gambling.decisions")
