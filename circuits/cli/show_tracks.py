"""Tracks at the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from circuits.cli.show import console, escaped
from circuits.report.tables import number, of_row

if TYPE_CHECKING:
    from circuits.tracks import Tracks


def print_tracks(tracks: Tracks, top: int = 12) -> None:
    """Headline, what links mean between sites, pairs that were ablated, and metrics."""
    from circuits.tracks.page import metric_rows

    console.print(tracks.headline(), style="bold", highlight=False, markup=False)
    for line in tracks.warnings():
        console.print(line, style="yellow", highlight=False, markup=False)
    for line in tracks.notes():
        console.print(line, style="dim", highlight=False, markup=False)
    _print_layers(tracks)
    if tracks.record["causal"]["tested"]:
        _print_confirmed(tracks, top)
    _print_table(
        "Metrics, means over answers",
        ("metric", "range", "right", "wrong"),
        [[row[0], *row[2:]] for row in metric_rows(tracks)],
    )
    console.print(f"Sign: {tracks.record['sign_convention']}.", style="dim", highlight=False)


def _print_table(title: str, heads: tuple[str, ...], rows: list[list[Any]]) -> None:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*(escaped(str(cell)) for cell in row))
    console.print(table)


def _print_layers(tracks: Tracks) -> None:
    from circuits.tracks.page import apart

    rows = [
        [
            f"{row['site']} > {row['to_site']}",
            apart(row),
            number(row["similarity"], ".2f"),
            number(row["similarity_shuffled"], ".2f"),
            f"{row['links']:,}",
            number(row["links_shuffled"], ",.0f"),
            f"{row['kept']:,}",
            f"{row['pairs_kept']} of {row['pairs']}",
        ]
        for row in tracks.record["layers"]
    ]
    heads = (
        "between",
        "layers\napart",
        "similar",
        "shuffled",
        "links",
        "shuffled",
        "kept",
        "pairs",
    )
    _print_table("What a link means: similarity and links, and with shuffled layers", heads, rows)


def _print_confirmed(tracks: Tracks, top: int) -> None:
    some: Any = tracks.confirmed.sort_values("lost", ascending=False)
    rows = [
        [
            f"{row['site']} {row['latent']} > {row['to_site']} {row['to_latent']}",
            number(row["similarity"], ".2f"),
            row["groups"],
            of_row(row, "lost", ".0%"),
            of_row(row, "control", ".0%"),
            "yes" if row["confirmed"] else "no",
        ]
        for row in some.head(top).to_dict("records")
    ]
    most = f", {top} of {len(some)}" if len(some) > top else ""
    heads = ("pair", "similar", "groups", "lost", "by the control", "confirmed")
    _print_table(f"Activation lost when the earlier latent is ablated{most}", heads, rows)


_STYLES = {"refused": "bold red", "nothing": "yellow", "found": "bold"}


def print_tells(found: Any) -> None:
    """Whether metrics tell right from wrong."""
    console.print(found.headline(), style=_STYLES[found.verdict()], highlight=False, markup=False)
    sets = [
        [
            row["features"],
            of_row({"v": row["auc"], "v_low": row["low"], "v_high": row["high"]}, "v", ".3f"),
            number(row["p"], ".3f"),
        ]
        for row in found.sets.to_dict("records")
    ]
    _print_table("Held out by group", ("features", "AUC", "p"), sets)
    gains = [
        [
            f"{row['features']} over {row['over']}",
            of_row({"v": row["gain"], "v_low": row["low"], "v_high": row["high"]}, "v", "+.3f"),
            number(row["p"], ".3f"),
        ]
        for row in found.gains.to_dict("records")
    ]
    _print_table("Gains in AUC", ("comparison", "gain", "p"), gains)
    single = [
        [
            row["metric"],
            number(row["auc"], ".3f"),
            number(row["d"], "+.2f"),
            number(row["q"], ".2g"),
        ]
        for row in found.single.to_dict("records")
    ]
    _print_table("Each metric, toward wrong answers", ("metric", "AUC", "d", "q"), single)
