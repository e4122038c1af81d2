"""A prediction of errors at the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from circuits.cli.show import console, escaped

if TYPE_CHECKING:
    from circuits.predict import PredictResult

_STYLES = {"leak": "bold red", "nothing": "yellow", "not known": "yellow", "ok": "green"}
_HEADLINES = {"refused": "bold red", "nothing": "yellow", "found": "bold"}


def print_predict(result: PredictResult) -> None:
    """Headline, scores, audit and the places where features differ, target by target."""
    record = result.record
    for target in result.targets:
        about = record["targets"][target]
        shares = ", ".join(
            f"{name} {share:.0%}"
            for name, share in zip(about["classes"], about["shares"], strict=True)
        )
        console.print(
            f"{record.get('task', 'custom')}: {target} ({shares}) of {record['records']} records "
            f"in {record['groups']} groups, {record['folds']} grouped folds, features "
            f"{record['features']['kind']}",
            style="bold",
            highlight=False,
            markup=False,
        )
        console.print(
            result.headline(target),
            style=_HEADLINES[result.verdict(target)],
            highlight=False,
            markup=False,
        )
        _print_scores(result, target)
        _print_audit(result, target)
        _print_places(result, target)
    console.print(f"Sign: {record['sign_convention']}.", style="dim", highlight=False, markup=False)


def _print_scores(result: PredictResult, target: str) -> None:
    table = Table(title="Held out by group; 95% intervals over groups", box=box.SIMPLE_HEAD)
    for column in ("predictor", "AUC", "Brier", "accuracy", "p", "gain over best baseline"):
        table.add_column(column)
    for row in result.table(target).to_dict("records"):
        ends = f"{row['auc']:.3f} [{row['auc_low']:.3f}, {row['auc_high']:.3f}]"
        gain = f"{row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
        table.add_row(
            escaped(str(row["name"])),
            escaped(ends),
            f"{row['brier']:.3f}",
            f"{row['accuracy']:.1%}",
            f"{row['p']:.3f}",
            "" if row["role"] == "baseline" else escaped(gain),
            style="dim" if row["role"] == "baseline" else None,
        )
    console.print(table)


def _print_audit(result: PredictResult, target: str) -> None:
    table = Table(title="Leak audit", box=box.SIMPLE_HEAD)
    for column in ("check", "", "what was found"):
        table.add_column(column)
    for check in result.audit(target):
        style = _STYLES[check["verdict"]]
        table.add_row(check["name"], f"[{style}]{check['verdict']}[/]", escaped(check["text"]))
    console.print(table)


def _print_places(result: PredictResult, target: str) -> None:
    found = result.localisation(target)
    cells: Any = found.cells.sort_values("largest", ascending=False).head(8)
    title = (
        f"Where features differ: largest |d| {found.largest:.2f}, by chance up to "
        f"{found.chance:.2f} (p = {found.p:.3f})"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for column in ("site", "position", "largest d", "p of the cell", "features with FDR < .05"):
        table.add_column(column)
    for row in cells.to_dict("records"):
        table.add_row(
            escaped(str(row["site"])),
            escaped(str(row["position"])),
            f"{row['signed']:+.2f}",
            f"{row['p']:.3f}",
            f"{row['discoveries']} of {row['features']}",
        )
    console.print(table)
