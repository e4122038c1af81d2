"""A replay at the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from circuits.cli.show import console, escaped
from circuits.replay.variance import SHOWN

if TYPE_CHECKING:
    from circuits.replay import ReplayResult


def print_replay(result: ReplayResult) -> None:
    """What was done, the arms, and what common random numbers save."""
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
    if result.record["trials"] > 1:
        _print_variance(result)
    console.print(f"Sign: {result.record['sign_convention']}.", style="dim", highlight=False)


def _print_variance(result: ReplayResult) -> None:
    for outcome, name in SHOWN.items():
        found = result.variance(outcome)
        if not (found["independent"].to_numpy() > 0).any():
            line = f"{name}: no response's {outcome} varies"
            console.print(line, highlight=False, markup=False)
            continue
        title = f"{name}; variance with common random numbers over independent"
        table = Table(title=escaped(title), box=box.SIMPLE_HEAD)
        for column in ("arm", "difference", "95%", "ratio"):
            table.add_column(column)
        for row in found.to_dict("records"):
            over = f"over {row['unit']}s" if row["unit"] else ""
            cells = [_interval(row, "difference", "+.2f"), over, _interval(row, "ratio", ".2f")]
            table.add_row(escaped(str(row["arm"])), *cells)
        console.print(table)


def _interval(row: Mapping[Any, Any], name: str, form: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return escaped(f"{row[name]:{form}} [{low:{form}}, {high:{form}}]")


def _or_nothing(value: float, form: str) -> str:
    return "" if value != value else f"{value:{form}}"  # noqa: PLR0124 (NaN)
