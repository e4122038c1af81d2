"""What two circuits share."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import pandas as pd

from circuits.graph.circuit import Circuit, GraphError, Node


@dataclass(frozen=True)
class Difference:
    """nodes: one row a node of either, `site, role, latent, position, effect_a, effect_b, where`
    ("both", "A", "B"), the largest effects first. shared, only_a, only_b: counts. jaccard: shared
    over all; edges_jaccard: the same of edges between nodes, NaN without edges.
    correlation: Pearson's of the effects of shared nodes, NaN for fewer than three.
    notes: what the circuits were found on differently."""

    nodes: pd.DataFrame
    shared: int
    only_a: int
    only_b: int
    jaccard: float
    edges_jaccard: float
    correlation: float
    notes: tuple[str, ...]


_COMPARED = (
    "model",
    "model_sha256",
    "task",
    "contrast",
    "metric",
    "attribution",
    "thoughts",
    "sites",
)


def difference(a: Circuit, b: Circuit) -> Difference:
    """Compare two circuits node by node.

    Raises `GraphError` where one is summed over positions and the other is not: their nodes are
    other things. Circuits of different templates are compared by position, and a note says so.
    """
    if a.summed != b.summed:
        raise GraphError(
            "one circuit is summed over positions and the other is not: find both in the same way."
        )
    effects = [{one.node: one.effect for one in circuit.nodes} for circuit in (a, b)]
    rows = []
    for node in dict.fromkeys([*effects[0], *effects[1]]):
        values = [found.get(node, float("nan")) for found in effects]
        where = "both" if not np.isnan(values).any() else ("A" if node in effects[0] else "B")
        rows.append(
            {
                "site": str(node.site),
                "role": node.role,
                "latent": node.latent,
                "position": node.position,
                "effect_a": values[0],
                "effect_b": values[1],
                "where": where,
            }
        )
    columns = ["site", "role", "latent", "position", "effect_a", "effect_b", "where"]
    table = pd.DataFrame(rows, columns=columns)
    size = table[["effect_a", "effect_b"]].abs().max(axis=1)
    table = table.loc[size.sort_values(ascending=False, kind="stable").index]
    both = table[table["where"] == "both"]
    correlation = float("nan")
    if len(both) > 2:
        correlation = float(np.corrcoef(both["effect_a"], both["effect_b"])[0, 1])
    counts = [int((table["where"] == where).sum()) for where in ("both", "A", "B")]
    return Difference(
        table.reset_index(drop=True),
        *counts,
        jaccard=_jaccard(set(effects[0]), set(effects[1])),
        edges_jaccard=_jaccard(_edges(a), _edges(b)),
        correlation=correlation,
        notes=tuple(_notes(a, b)),
    )


def _edges(circuit: Circuit) -> set[tuple[Node, Node | None]]:
    nodes = [one.node for one in circuit.nodes]
    return {(nodes[e.source], None if e.target is None else nodes[e.target]) for e in circuit.edges}


def _jaccard(a: Set[object], b: Set[object]) -> float:
    return len(a & b) / len(a | b) if a | b else float("nan")


def _notes(a: Circuit, b: Circuit) -> list[str]:
    notes = [
        f"{key}: {a.record.get(key)} and {b.record.get(key)}"
        for key in _COMPARED
        if key in a.record and key in b.record and a.record[key] != b.record[key]
    ]
    if a.template != b.template or len(a.tokens) != len(b.tokens):
        notes.append(
            f"template: {a.template or 'none'} ({len(a.tokens)} tokens) and "
            f"{b.template or 'none'} ({len(b.tokens)} tokens); positions are compared by number"
        )
    shas = [{s["site"]: s.get("sha256") for s in c.record.get("saes") or []} for c in (a, b)]
    others = [site for site in shas[0] if site in shas[1] and shas[0][site] != shas[1][site]]
    if others:
        notes.append(f"SAEs of other weights at {', '.join(others)}: their latents are others too")
    return notes
