"""Tracks at the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from circuits.cli.show import console, escaped
from circuits.report.tables import number, of_row
from circuits.report.tells import tell_tables

if TYPE_CHECKING:
    from circuits.tracks import Tracks
    from circuits.tracks.tells import Tells


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


def _names(tracks: Tracks) -> Callable[[str], str]:
    """Layers alone where all sites are of one kind."""
    kinds = {site.partition(".")[0] for site in tracks.sites}
    return (lambda site: site.partition(".")[2]) if len(kinds) == 1 else str


def _print_layers(tracks: Tracks) -> None:
    from circuits.tracks.page import apart

    short = _names(tracks)
    rows = [
        [
            f"{short(row['site'])} > {short(row['to_site'])}",
            apart(row),
            number(row["similarity"], ".2f"),
            number(row["similarity_shuffled"], ".2f"),
            f"{row['links']:,}",
            number(row["links_shuffled"], ",.0f"),
            f"{row['kept']:,}",
            f"{row['pairs_kept']}/{row['pairs']}",
        ]
        for row in tracks.record["layers"]
    ]
    heads = ("layers", "apart", "similar", "shuffled", "links", "shuffled", "kept", "pairs")
    _print_table("Similarity and links between sites, and with shuffled layers", heads, rows)


def _print_confirmed(tracks: Tracks, top: int) -> None:
    some: Any = tracks.confirmed.sort_values("lost", ascending=False)
    short, ends = _names(tracks), (("site", "latent"), ("to_site", "to_latent"))
    rows = [
        [
            " > ".join(f"{short(row[site])}:{row[latent]}" for site, latent in ends),
            number(row["similarity"], ".2f"),
            row["groups"],
            of_row(row, "lost", ".0%"),
            of_row(row, "control", ".0%"),
            "yes" if row["confirmed"] else "no",
        ]
        for row in some.head(top).to_dict("records")
    ]
    most = f", {top} of {len(some)}" if len(some) > top else ""
    heads = ("latents", "similar", "groups", "lost", "by the control", "confirmed")
    _print_table(f"Activation lost when the earlier latent is ablated{most}", heads, rows)


_STYLES = {"refused": "bold red", "nothing": "yellow", "found": "bold"}


def print_tells(found: Tells) -> None:
    """Whether metrics tell right from wrong."""
    console.print(found.headline(), style=_STYLES[found.verdict()], highlight=False, markup=False)
    for title, heads, rows in tell_tables(found):
        _print_table(title, heads, rows)
    sign = found.record["sign_convention"]
    console.print(f"Sign: {sign}.", style="dim", highlight=False, markup=False)
