"""The graph of pathways: source, confirmed mediators, outcome."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from circuits.graph import Circuit, Node
from circuits.graph.circuit import CircuitNode, Edge
from circuits.replay.confirm import Confirmed, Setting, Wired
from circuits.replay.paired import Units, summarise
from circuits.sites import forward_order

# What the page of a circuit says instead of clean and corrupted.
_WORDS = {
    "positive": "raises the outcome",
    "negative": "lowers the outcome",
    "first": "changed",
    "second": "no-op",
}


def graph_of(
    table: pd.DataFrame,
    effects: pd.DataFrame,
    found: Confirmed,
    wired: Wired,
    units: Units,
    setting: Setting,
    record: dict[str, Any],
) -> Circuit:
    """Source, confirmed mediators, outcome.

    found: of all mediators; wired: of the confirmed ones, without the others.

    A node's effect is what goes through it (total - left); the source's is the total. An edge to
    the outcome is the direct part, that of the source all that no drawn mediator carries; an edge
    to a mediator the share of its change that reaches it along the edge, times the mediator's
    effect; left out where the interval of its change has 0 in it, or there is none. In a linear
    network the edges into a mediator add up to its effect, and so do those out of it; those into
    the outcome add up to the total.
    """
    source = setting.source[0]
    whole: Any = effects.set_index("name")
    total, rest = whole.loc["total"], float(whole.loc["rest", "value"])
    rows = {(r["site"], r["latent"]): r for r in table.to_dict("records")}
    value = source.value if isinstance(source.value, (int, float)) else None
    said = source.mode if value is None else f"{source.mode} {value:g}"
    past = f"{rest:+.3g} of {total['value']:+.3g} by no latent that is drawn"
    nodes = [
        CircuitNode(
            Node(source.site, "latent", source.latent),
            float(total["value"]),
            _end(total["low"]),
            _end(total["high"]),
            clean=float(units.mean(found.source[:, 1])),
            corrupted=float(units.mean(found.source[:, 0])),
            label=f"source: {said}, {source.where}; {past}",
        )
    ]
    nodes += [
        _node(rows[str(site), latent], Node(site, "latent", latent))
        for site, latent in wired.mediators
    ]
    edges = [Edge(0, None, rest)]
    for i, mediator in enumerate(wired.mediators):
        edges.append(Edge(i + 1, None, float(units.mean(wired.direct[:, i]))))
        moved = found.moved[:, found.mediators.index(mediator)]
        change = summarise(moved, units, seed=record["plan"]["seed"])
        if not (change.low > 0 or change.high < 0):
            continue  # nothing to divide by: no share of its change can be told
        by = nodes[i + 1].effect / float(change.value)
        edges.append(Edge(0, i + 1, by * float(units.mean(wired.reach_source[:, i]))))
        edges += [
            Edge(j + 1, i + 1, by * float(units.mean(wired.reach[:, j, i])))
            for j, other in enumerate(wired.mediators)
            if other[0] != mediator[0]
        ]
    floor = record["noise"]
    strong = sorted((e for e in edges if abs(e.weight) > floor), key=lambda e: -abs(e.weight))
    sites = forward_order([source.site, *(site for site, _ in found.mediators)])
    order = {site: at for at, site in enumerate(sites)}
    upward = [
        e
        for e in strong
        if e.target is None or order[nodes[e.source].node.site] < order[nodes[e.target].node.site]
    ]
    about = {
        name: record[name] for name in ("method", "model", "model_sha256", "saes", "source")
    } | {"metric": record["outcome"], "trials": record["trials_confirmed"], "words": _WORDS}
    name = f"replay, {record['trials_confirmed']} trials"
    return Circuit(tuple(nodes), tuple(upward), sites, (), name, True, about)


def _end(value: float) -> float | None:
    """An interval's end for a circuit's node, None where there is none."""
    return None if np.isnan(value) else float(value)


def _node(row: dict[str, Any], node: Node) -> CircuitNode:
    shared = "" if np.isnan(row["share"]) else f"{row['share']:.0%} of the effect, "
    return CircuitNode(
        node,
        float(row["mediated"]),
        _end(row["mediated_low"]),
        _end(row["mediated_high"]),
        clean=float(row["held_patched"]),
        corrupted=float(row["held_base"]),
        label=f"mediator: {shared}alone {row['alone']:+.3g}",
    )
