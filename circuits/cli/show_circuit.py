"""Circuits at the terminal, as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from circuits.cli.show import console, print_loud

if TYPE_CHECKING:
    from circuits.circuit import Applied, CircuitResult
    from circuits.features import FeatureBank
    from circuits.graph import Circuit, Difference

_NODES = 12


def print_circuit(result: CircuitResult, bank: FeatureBank | None = None) -> None:
    """What the circuit is worth, and its strongest nodes."""
    record = result.record
    console.print(result.headline(), style="bold", highlight=False, markup=False)
    stable = record["stability"]
    _say(
        f"{record['chosen']}; Jaccard index with circuits of resampled pairs {stable['mean']:.2f} "
        f"[{stable['low']:.2f}, {stable['high']:.2f}]"
    )
    print_loud(record)
    table = Table(box=box.SIMPLE)
    names = ("pairs", "reference", "faithfulness", "completeness", "no errors", "all errors")
    for name in (*names, "random", "CPR", "CMD"):
        table.add_column(name, justify="left" if name in ("pairs", "reference") else "right")
    for row in result.summary().to_dict("records"):
        first = [row["set"].replace("_", " "), row["reference"]]
        if row["problem"]:
            table.add_row(*first, "none")
            _say(f"{row['set']}, {row['reference']}: {row['problem']}.", "yellow")
            continue
        keys = ("faithfulness", "completeness", "errors_out", "errors_in", "random")
        cells = [_cell(row, key) for key in keys]
        table.add_row(*first, *cells, f"{row['cpr']:.2f}", f"{row['cmd']:.2f}")
    console.print(table)
    for name, base in record["sets"].items():
        if base["carried"] < 1:
            _say(
                f"{name.replace('_', ' ')}: other templates, in which {base['carried']:.0%} of the "
                "circuit's nodes have a place of the same name.",
                "yellow",
            )
    for name, why in record["missing"].items():
        _say(f"{name.replace('_', ' ')}: none ({why}).", "yellow")
    if record["drawn"]:
        _print_drawn(result, bank)
    _say(f"Sign: {record['sign_convention']}.", "dim")


def _print_drawn(result: CircuitResult, bank: FeatureBank | None) -> None:
    curve = result.edge_curve()
    wired = ", ".join(
        f"{row['edges']} edges {row['value']:.2f}" for row in curve.iloc[:-1].to_dict("records")
    )
    _say(
        f"The {result.record['drawn']} strongest nodes: faithfulness "
        f"{float(curve['value'].iloc[-1]):.2f}; wired by their strongest edges alone: {wired}."
    )
    closed = {one["site"]: one["share"] for one in result.record["edges"]["closed"]}
    share = closed.get("all", math.nan)
    if not math.isnan(share):
        _say(
            f"{share:.0%} of the latents' effect sits behind gates that are closed in the "
            "corrupted run; edges use secant gates."
        )
    shown = result.described(bank)
    table = Table(box=box.SIMPLE)
    for name in ("node", "token", "effect", "removal costs", "what it is"):
        table.add_column(name, justify="right" if name in ("effect", "removal costs") else "left")
    for one in shown.nodes[: min(_NODES, result.record["drawn"])]:
        token = ""
        if one.node.position is not None:
            place = shown.tokens[one.node.position]
            token = f"{place.name} {place.clean[0]!r}".strip()
        removal = "" if one.removal is None else f"{one.removal:+.2f}"
        table.add_row(str(one.node), token, f"{one.effect:+.3f}", removal, one.label)
    console.print(table, markup=False)


def print_applied(applied: Applied, circuit: Circuit, task: str, pairs: int) -> None:
    """What a circuit is worth on other pairs."""
    found_on = circuit.record.get("task", "?")
    _say(f"A circuit of {len(circuit):,} nodes found on {found_on}, on {pairs} pairs of {task}")
    if applied.carried < 1:
        _say(f"{applied.carried:.0%} of its nodes have a place in these prompts.", "yellow")
    table = Table(box=box.SIMPLE)
    keys = ("faithfulness", "completeness", "errors_out", "errors_in")
    for name in ("reference", *(key.replace("_", " ") for key in keys)):
        table.add_column(name, justify="left" if name == "reference" else "right")
    for row in applied.table.to_dict("records"):
        if row["problem"]:
            _say(f"{row['reference']}: {row['problem']}.", "yellow")
        cells = ["none"] if row["problem"] else [_cell(row, key) for key in keys]
        table.add_row(row["reference"], *cells)
    console.print(table)


def print_difference(found: Difference, a: str, b: str, top: int) -> None:
    """What two circuits share."""
    _say(f"A: {a}; B: {b}")
    for note in found.notes:
        _say(f"Different {note}.", "yellow")
    edges = "" if math.isnan(found.edges_jaccard) else f", of edges {found.edges_jaccard:.2f}"
    _say(
        f"{found.shared} nodes shared, {found.only_a} in A alone, {found.only_b} in B alone: "
        f"Jaccard index {found.jaccard:.2f}{edges}"
        + (
            ""
            if math.isnan(found.correlation)
            else f"; effects of shared nodes correlate {found.correlation:.2f}"
        )
    )
    table = Table(box=box.SIMPLE)
    for name in ("site", "role", "latent", "position", "effect A", "effect B", "where"):
        table.add_column(name, justify="left" if name in ("site", "role", "where") else "right")
    rows: Any = found.nodes.head(top).to_dict("records")
    for row in rows:
        effects = [_number(row[key]) for key in ("effect_a", "effect_b")]
        latent = "" if row["latent"] < 0 else str(row["latent"])
        place = row["position"]
        position = "all" if place is None or math.isnan(place) else str(int(place))
        table.add_row(row["site"], row["role"], latent, position, *effects, row["where"])
    console.print(table)


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key, math.nan)
    if math.isnan(value):
        return ""
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} \\[{low:.2f}, {high:.2f}]"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.3f}"


def _say(text: str, style: str = "") -> None:
    console.print(text, style=style, highlight=False, markup=False)
