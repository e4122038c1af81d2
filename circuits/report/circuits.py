"""What a report shows of a circuit: its worth, its nodes, its graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from circuits.features import FeatureBank
from circuits.graph import Circuit
from circuits.patch.result import count
from circuits.report.folders import Run
from circuits.report.methods import NARROW, WORDS, Sections, unit
from circuits.report.tables import (
    NONE,
    Html,
    bullets,
    interval,
    number,
    of_row,
    paragraph,
    table,
    token,
)

_TOP = 20  # nodes in the table
_DRAWN = 100  # in the graph, where the run drew none
_HEIGHT = 950  # pixels of the graph's frame
SETS = {
    "found": "the pairs it was found on",
    "unseen": "unseen pairs",
    "held_out": "pairs of held-out templates",
}
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


def circuit_sections(run: Run, banks: Sequence[FeatureBank]) -> Sections:
    """What it is worth, on which pairs; curves, removals and edges as on the circuit's own page;
    its strongest nodes; its graph, with cards of the bank that knows its latents."""
    from circuits.graph.page import graph_fragment
    from circuits.plots.circuit import sections

    result = run.result
    bank = bank_for(run.record, banks)
    shown = result.described(bank).strongest(run.record["drawn"] or _DRAWN)
    found: Sections = [("What it is worth", _worth(run))]
    found += sections(result)[1:]  # the first is the same table
    found.append(("Its strongest nodes", _nodes(run, shown)))
    note = (
        "Click a node for its card and its strongest edges; the slider leaves out weak edges. A "
        "script draws it; without scripts, the table above has the strongest nodes."
    )
    frame = Html(graph_fragment(shown, bank, f"Circuit: {run.record['task']}", _HEIGHT))
    return [*found, ("Graph", paragraph(note, "note") + frame)]


def _worth(run: Run) -> Html:
    record, stable = run.record, run.record["stability"]
    index = interval(stable["mean"], stable["low"], stable["high"], ".2f")
    found = paragraph(
        f"{record['nodes']:,} of {record['nodes_seen']:,} nodes at {', '.join(record['sites'])}: "
        f"{record['chosen']}. Found again on resampled pairs, it has a Jaccard "
        f"index of {index} with itself; 1 is the same nodes."
    )
    rows = run.result.summary().to_dict("records")
    for name, base in record["sets"].items():
        mine = [row for row in rows if row["set"] == name]
        which = count(len(base["metric_clean"]), "pair")
        found += paragraph(f"On {which}, {SETS.get(name, name)}:") + _set_table(mine)
    return found + paragraph(_EXPLAINED, "note") + _notes(run)


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


def _notes(run: Run) -> Html:
    """What the table does not say: how far nodes have a place in other prompts, what was not
    measured, how much sits behind closed gates."""
    lines = []
    for name, base in run.record["sets"].items():
        which = f"{SETS.get(name, name)} ({count(len(base['metric_clean']), 'pair')})"
        if base["carried"] < 1:
            lines.append(
                f"On {which} {number(base['carried'], '.0%')} of its nodes have a place, that of "
                "the same name; the others are left out there."
            )
    for name, why in run.record["missing"].items():
        lines.append(f"Not measured on {SETS.get(name, name)}: {why}.")
    closed = {one["site"]: one["share"] for one in run.record.get("edges", {}).get("closed", ())}
    if closed.get("all") is not None:
        lines.append(
            f"{number(closed['all'], '.0%')} of the latents' effect sits behind gates that are "
            "closed in the corrupted run; edges use secant gates."
        )
    return bullets(lines) if lines else Html("")


def _nodes(run: Run, shown: Circuit) -> Html:
    drawn = run.record["drawn"]
    costs = run.result.removals().to_dict("records") if drawn else []
    rows = []
    for index, one in enumerate(shown.nodes[:_TOP]):
        cost = costs[index] if index < len(costs) else {}
        removal = interval(cost.get("value"), cost.get("low"), cost.get("high"), "+.2f")
        tokens, place = "all", ""
        if one.node.position is not None:
            at = shown.tokens[one.node.position]
            place = f"{one.node.position} {at.name}".strip().replace(" ", NARROW)
            tokens = "|".join(token(t) for t in at.clean[:2])
            if at.clean != at.corrupted:
                tokens += " / " + "|".join(token(t) for t in at.corrupted[:2])
        role = f"latent {one.node.latent}" if one.node.role == "latent" else one.node.role
        effect = interval(one.effect, one.low, one.high, "+.3f")
        rows.append(
            [
                f"{one.node.site} {role}".replace(" ", NARROW),
                place,
                tokens,
                effect,
                removal,
                one.label,
            ]
        )
    heads = ("node", "place", "token", "effect", "removal costs", "what it is")
    return table(heads, rows, heads[3:5]) + paragraph(
        f"Effect on the {unit(run.record)}, toward clean where positive; removal costs: "
        "what the circuit loses without this node, as a share of m(M) \u2212 m(0), on unseen "
        f"pairs. {WORDS}",
        "note",
    )


def bank_for(record: Mapping[str, Any], banks: Sequence[FeatureBank]) -> FeatureBank | None:
    """Of some banks the one that has most of a run's SAEs, and no other SAE at their sites."""
    ours = _digests(record)
    best, most = None, 0
    for bank in banks:
        theirs = _digests(bank.record)
        both = ours.keys() & theirs.keys()
        same = sum(ours[site] == theirs[site] for site in both)
        if same == len(both) and same > most:
            best, most = bank, same
    return best


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    return {str(one["site"]): str(one["sha256"]) for one in record.get("saes") or ()}


def worth(run: Run, name: str) -> dict[str, Any] | None:
    """The row of `CircuitResult.summary` of a set of pairs, with the reference that the size was
    chosen with, and `pairs`; None where it was not run on the set."""
    if name not in run.result.sets:
        return None
    table_: Any = run.result.summary()
    table_ = table_[(table_["set"] == name) & (table_["reference"] == run.record["by"])]
    row = table_.to_dict("records")[0]
    return {**row, "pairs": len(run.result.gap(name))}


def share_of_nodes(run: Run) -> float:
    """Nodes of the circuit as a share of all that were seen."""
    seen = run.record["nodes_seen"]
    return run.record["nodes"] / seen if seen else math.nan
