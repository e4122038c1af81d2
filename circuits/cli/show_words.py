"""Words that a latent adds and removes, at the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from circuits.cli.show import console, escaped
from circuits.report.tables import interval

if TYPE_CHECKING:
    from circuits.replay.words import WordsResult

_STYLES = {"added": "blue", "removed": "red", "mixed": "magenta", "no evidence": "dim"}
_ROWS, _NONE, _TABLES = 24, 5, 8  # words of a table; where none was found; tables
_HEADS = ("word", "verdict", "log odds, 95%", "share", "baseline", "q")


def print_words(result: WordsResult) -> None:
    """Headline; tables of the first arm, and of the others that are not random where words were
    found; notes."""
    for line in result.headline():
        console.print(
            line,
            style="" if "random" in line.partition(" against ")[0] else "bold",
            highlight=False,
            markup=False,
        )
    shown = 0
    for feature in result.features:
        for arm in result.compared(feature):
            if arm.startswith("random"):
                continue
            for kind in result.kinds(feature, arm):
                if arm != result.compared(feature)[0] and not _found(result, feature, arm, kind):
                    continue
                shown += 1
                if shown <= _TABLES:
                    _print_table(result, feature, arm, kind)
    if shown > _TABLES:
        console.print(f"{shown - _TABLES} more tables are in words.html and words.parquet.")
    for note in result.notes():
        console.print(note, highlight=False, markup=False)
    console.print(f"Sign: {result.record['sign_convention']}.", style="dim", highlight=False)


def _found(result: WordsResult, feature: str, arm: str, kind: str) -> int:
    counts = result.counts(feature, arm, kind)
    return sum(counts.values()) - counts.get("no evidence", 0)


def _print_table(result: WordsResult, feature: str, arm: str, kind: str) -> None:
    table: Any = result.of(feature, arm, kind)
    found = _found(result, feature, arm, kind)
    shown = Table(
        title=escaped(f"{feature}, {arm}: {kind}"), title_justify="left", box=box.SIMPLE_HEAD
    )
    for head in _HEADS:
        shown.add_column(head, no_wrap=head != "word", min_width=12 if head == "word" else None)
    for row in table.head(min(found, _ROWS) or _NONE).to_dict("records"):
        shown.add_row(*_cells(row))
    console.print(shown)
    if found > _ROWS:
        console.print(f"{found - _ROWS} more are in words.parquet.")


def _cells(row: dict[str, Any]) -> list[str]:
    verdict = str(row["verdict"])
    return [
        escaped(str(row["word"])),
        f"[{_STYLES[verdict]}]{verdict}[/]",
        escaped(interval(row["log_odds"], row["low"], row["high"], "+.2f")),
        f"{row['responses'] / max(1, row['n']):.0%}",
        f"{row['responses_baseline'] / max(1, row['n_baseline']):.0%}",
        f"{row['q']:.2g}",
    ]
