"""What a circuit is worth, as HTML: on its own page and in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuits.circuit.sets import SETS
from circuits.patch.result import count
from circuits.report.tables import NONE, Html, bullets, interval, number, of_row, paragraph, table

if TYPE_CHECKING:
    from circuits.circuit.result import CircuitResult

_COLUMNS = {
    "faithfulness": "faithfulness",
    "completeness": "completeness",
    "errors_out": "no errors kept",
    "errors_in": "all errors kept",
    "random": "random nodes",
}
_EXPLAINED = (
    "Faithfulness: what the circuit alone keeps of the metric; 1 is the whole model, 0 is every "
    "node at the reference. Completeness: the same of everything but the circuit; near 0 means "
    "that nothing else carries it. No errors, all errors kept: the circuit's latents with none or "
    "with all of the SAEs' errors. Random nodes: as many nodes, drawn by chance. CPR: area under "
    "faithfulness over sizes; CMD: area between it and 1, best at 0. 95% intervals over pairs."
)


def worth_of(result: CircuitResult) -> Html:
    """What a circuit is worth on each set of pairs, and what the tables do not say."""
    record, stable = result.record, result.record["stability"]
    index = interval(stable["mean"], stable["low"], stable["high"], ".2f")
    found = paragraph(
        f"{record['nodes']:,} of {record['nodes_seen']:,} nodes at {', '.join(record['sites'])}: "
        f"{record['chosen']}. Found again on resampled pairs, it has a Jaccard "
        f"index of {index} with itself; 1 is the same nodes."
    )
    rows = result.summary().to_dict("records")
    for name, base in record["sets"].items():
        mine = [row for row in rows if row["set"] == name]
        which = count(len(base["metric_clean"]), "pair")
        found += paragraph(f"On {which}, {SETS.get(name, name)}:") + _set_table(mine)
    return found + paragraph(_EXPLAINED, "note") + _notes(record)


def _set_table(rows: Sequence[Mapping[str, Any]]) -> Html:
    """What it is worth on one set of pairs, a row a reference; without what was not measured."""
    usable = [row for row in rows if not row["problem"]]
    shown = [key for key in _COLUMNS if any(number(row.get(key), "") != NONE for row in usable)]
    lines = [
        [
            row["reference"],
            *(of_row(row, key, ".2f") for key in shown),
            *(number(row[key], ".2f") for key in ("cpr", "cmd")),
        ]
        for row in usable
    ]
    heads = ("reference", *(_COLUMNS[key] for key in shown), "CPR", "CMD")
    none = [
        f"No ratio with reference {r['reference']}: {r['problem']}."
        for r in rows
        if r not in usable
    ]
    return (table(heads, lines, heads[1:]) if lines else Html("")) + (
        bullets(none) if none else Html("")
    )


def _notes(record: Mapping[str, Any]) -> Html:
    """What the table does not say: how far nodes have a place in other prompts, what was not
    measured, how much sits behind closed gates."""
    lines = []
    for name, base in record["sets"].items():
        which = f"{SETS.get(name, name)} ({count(len(base['metric_clean']), 'pair')})"
        if base["carried"] < 1:
            lines.append(
                f"On {which} {number(base['carried'], '.0%')} of its nodes have a place, that of "
                "the same name; the others are left out there."
            )
    for name, why in record["missing"].items():
        lines.append(f"Not measured on {SETS.get(name, name)}: {why}.")
    closed = {one["site"]: one["share"] for one in record.get("edges", {}).get("closed", ())}
    if closed.get("all") is not None:
        lines.append(
            f"{number(closed['all'], '.0%')} of the latents' effect sits behind gates that are "
            "closed in the corrupted run; edges use secant gates."
        )
    return bullets(lines) if lines else Html("")
