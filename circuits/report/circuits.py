"""What a report shows of a circuit: its worth, its nodes, its graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from circuits.circuit.result import DRAWN
from circuits.features import FeatureBank
from circuits.graph import Circuit
from circuits.report.folders import Run
from circuits.report.methods import NARROW, WORDS, Sections, unit
from circuits.report.tables import Html, interval, paragraph, table, token
from circuits.report.worth import worth_of

_TOP = 20  # nodes in the table
_HEIGHT = 950  # pixels of the graph's frame


def circuit_sections(run: Run, banks: Sequence[FeatureBank]) -> Sections:
    """What it is worth, on which pairs; curves, removals and edges as on the circuit's own page;
    its strongest nodes; its graph, with cards of the bank that knows its latents."""
    from circuits.graph.page import graph_fragment
    from circuits.plots.circuit import figures

    result = run.result
    bank = bank_for(run.record, banks)
    shown = result.described(bank).strongest(run.record["drawn"] or DRAWN)
    found: Sections = [("What it is worth", worth_of(result))]
    found += figures(result)
    found.append(("Its strongest nodes", _nodes(run, shown)))
    note = (
        "Click a node for its card and its strongest edges; the slider leaves out weak edges. A "
        "script draws it; without scripts, the table above has the strongest nodes."
    )
    frame = Html(graph_fragment(shown, bank, f"Circuit: {run.record['task']}", _HEIGHT))
    return [*found, ("Graph", paragraph(note, "note") + frame)]


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
