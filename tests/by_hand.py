"""Circuits calculated by hand, on a graph of single numbers that knows nothing of transformers, and
results held against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pytest

from circuits.circuit import REFERENCES, CircuitResult
from circuits.circuit.candidates import Candidates
from circuits.edges import EdgeAttribution
from circuits.graph import Circuit, Node

LD = "LD"  # the metric, as the last node of a graph
Values = Mapping[str, Any]  # of nodes; a number, or an array with one for each pair
Ends = tuple[Node, Node | None]  # of an edge; None is the metric


@dataclass(frozen=True)
class Graph:
    """A network as a graph of single numbers, for calculations by hand: the value of a node is the
    sum of the values of its parents times the weights. In forward order; the metric is `LD`.

    weights: by (parent, node); a number, or an array with one for each pair. constant: what the
        metric has beside.
    """

    weights: Mapping[tuple[str, str], Any]
    constant: float = 0.0

    @property
    def names(self) -> list[str]:
        """All nodes but the metric, parents first."""
        waiting = {name: {a for a, b in self.weights if b == name} for name, _ in self.weights}
        found: list[str] = []
        while len(found) < len(waiting):
            found += [n for n in waiting if n not in found and waiting[n] <= set(found)]
        return found

    def metric(
        self,
        inputs: Values,
        reference: Values | None = None,
        kept: frozenset[str] | None = None,
        edges: frozenset[tuple[str, str]] | None = None,
    ) -> Any:
        """Of the whole network; of one in which only some nodes are kept and all others have
        their reference value; or of one in which every node sees its parents along `edges`
        alone, and of all others the reference."""
        now = self.values(inputs, reference, kept, edges)
        return now[LD] + self.constant

    def values(
        self,
        inputs: Values,
        reference: Values | None = None,
        kept: frozenset[str] | None = None,
        edges: frozenset[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        """As in `metric`, of all nodes."""
        now: dict[str, Any] = {}
        for name in [*self.names, LD]:
            parents = [(a, w) for (a, b), w in self.weights.items() if b == name]
            seen = {
                a: now[a] if edges is None or (a, name) in edges else reference[a]  # pyright: ignore
                for a, _ in parents
            }
            made = sum(w * seen[a] for a, w in parents) if parents else inputs[name]
            out = name != LD and kept is not None and name not in kept
            now[name] = reference[name] if out else made  # pyright: ignore
        return now

    def totals(self) -> dict[str, Any]:
        """By how much the metric rises where a node does by 1."""
        found: dict[str, Any] = {LD: 1.0}
        for name in reversed(self.names):
            found[name] = sum(w * found[b] for (a, b), w in self.weights.items() if a == name)
        return found

    def edges(self, clean: Values, corrupted: Values) -> dict[tuple[str, str], float]:
        """The part of each node's effect that goes along each edge, mean over pairs."""
        ends, totals = [self.values(run) for run in (clean, corrupted)], self.totals()
        return {
            (a, b): float(np.mean(w * (ends[0][a] - ends[1][a]) * totals[b]))
            for (a, b), w in self.weights.items()
        }

    def only(self, names: Sequence[str]) -> Graph:
        """The same without the other nodes: an edge for all paths that lead over those alone."""
        weights = dict(self.weights)
        for gone in [name for name in self.names if name not in names]:
            into = {a: w for (a, b), w in weights.items() if b == gone}
            out = {b: w for (a, b), w in weights.items() if a == gone}
            weights = {ends: w for ends, w in weights.items() if gone not in ends}
            for (a, first), (b, second) in product(into.items(), out.items()):
                weights[a, b] = weights.get((a, b), 0.0) + first * second
        return Graph(weights, self.constant)


@dataclass(frozen=True)
class Known:
    """A graph and what its inputs are in the clean and in the corrupted run, one value a pair."""

    graph: Graph
    clean: Values
    corrupted: Values

    @cached_property
    def runs(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of all nodes in the two runs."""
        return self.graph.values(self.clean), self.graph.values(self.corrupted)

    @cached_property
    def references(self) -> dict[str, Values]:
        """What nodes outside of a circuit are set to; means are over both runs of all pairs."""
        clean, corrupted = self.runs
        mean = {n: np.full_like(x, np.mean([x, corrupted[n]])) for n, x in clean.items()}
        return {"corrupted": corrupted, "mean": mean, "zero": {n: 0 * x for n, x in clean.items()}}

    def metric(self, reference: str, **how: Any) -> np.ndarray:
        """Of a circuit (see `Graph.metric`), one value a pair."""
        return self.graph.metric(self.clean, self.references[reference], **how)

    def share(self, reference: str, **how: Any) -> float:
        """(m - m(0)) / (m(M) - m(0)) of a circuit."""
        nothing = self.metric(reference, kept=frozenset()).mean()
        whole = self.graph.metric(self.clean).mean()
        return float((self.metric(reference, **how).mean() - nothing) / (whole - nothing))

    def effect(self, names: frozenset[str]) -> float:
        """Of nodes that stand for each other's sum: mean over pairs, positive toward clean."""
        totals, (clean, corrupted) = self.graph.totals(), self.runs
        return sum(float(np.mean(totals[n] * (clean[n] - corrupted[n]))) for n in names)

    def edges(self, nodes: Mapping[str, Node]) -> dict[Ends, float]:
        """Edges by what their ends are called in a circuit."""
        found: dict[Ends, float] = {}
        for (a, b), weight in self.graph.edges(*self.runs).items():
            ends = (nodes[a], nodes.get(b))
            found[ends] = found.get(ends, 0.0) + weight
        return found


def named(nodes: Mapping[str, Node]) -> dict[Node, frozenset[str]]:
    """Names by node: an error may stand for several."""
    return {node: frozenset(n for n in nodes if nodes[n] == node) for node in nodes.values()}


def edges_in(circuit: Circuit) -> dict[Ends, float]:
    """A circuit's edges, strongest first."""
    nodes = [one.node for one in circuit.nodes]
    return {
        (nodes[e.source], None if e.target is None else nodes[e.target]): e.weight
        for e in circuit.edges
    }


def edges_found(found: EdgeAttribution) -> dict[Ends, float]:
    """Those that are not 0."""
    weights = found.edges["weight"].tolist()
    ends = [(found.sources[s], found.targets[t]) for s, t in found.ends.tolist()]
    return {end: weight for end, weight in zip(ends, weights, strict=True) if weight != 0}


def along(
    edges: Sequence[Ends], names: Mapping[Node, frozenset[str]]
) -> frozenset[tuple[str, str]]:
    """A circuit's edges in the graph."""
    return frozenset((a, b) for u, v in edges for a in names[u] for b in (names[v] if v else [LD]))


def check(
    result: CircuitResult,
    nodes: Mapping[str, Node],
    on: Known,
    judged: Known,
    references: Sequence[str] = REFERENCES,
) -> None:
    """A result against what is known: nodes, effects, edges, removals, shares, wirings.

    nodes: all that matter. A circuit of them has the clean metric, however the others are set, so
    its faithfulness is 1; its complement has them at their reference, which is all that the metric
    of nothing has, so completeness is 0. references: those of which that is true, because nodes
    that are the same in both runs do not matter or keep their value.
    """
    names = named(nodes)
    assert result.circuit.node_set == set(names)
    (clean, corrupted), by = on.runs, result.record["by"]
    for one in result.circuit.nodes:
        mine = names[one.node]
        assert one.effect == close(on.effect(mine))
        if one.node.role == "latent" and not result.circuit.summed:
            [name] = mine
            assert one.clean == close(clean[name].mean())
            assert one.corrupted == close(corrupted[name].mean())
        cost = 1 - judged.share(by, kept=frozenset(nodes) - mine)
        assert one.removal == close(cost)
    assert edges_in(result.circuit) == close(on.edges(nodes))
    errors = frozenset(n for n in nodes if nodes[n].role == "error")
    for row in result.summary().to_dict("records"):
        if row["reference"] not in references:
            continue
        assert row["problem"] == "" and row["faithfulness"] == close(1)
        if row["set"] == "unseen":
            assert row["completeness"] == close(0) and row["errors_in"] == close(1)
            left = judged.share(row["reference"], kept=frozenset(nodes) - errors)
            assert row["errors_out"] == close(left)
    _check_random(result, names, judged, references)
    _check_edges(result, names, judged)


def close(value: Any) -> Any:
    """What float32 may be off by."""
    return pytest.approx(value, rel=1e-5, abs=1e-5)


def _check_random(
    result: CircuitResult,
    names: Mapping[Node, frozenset[str]],
    judged: Known,
    references: Sequence[str],
) -> None:
    """Random circuits have what the nodes that matter among them make."""
    assert result.attribution is not None
    candidates = Candidates.of(result.attribution, summed=result.circuit.summed)
    for reference in references:
        found = result.of_circuit("random", reference=reference)
        for seed, value in zip(found["detail"], found["value"], strict=True):
            [inside] = candidates.random([len(result.circuit)], int(seed))
            drawn = [candidates.table.node(int(i)) for i in np.flatnonzero(inside)]
            kept = frozenset(name for node in drawn for name in names.get(node, ()))
            assert value == close(judged.share(reference, kept=kept))


def _check_edges(
    result: CircuitResult, names: Mapping[Node, frozenset[str]], judged: Known
) -> None:
    """The strongest edges alone; all of them are the circuit."""
    strongest = list(edges_in(result.circuit))
    *some, nodes = result.edge_curve().to_dict("records")
    assert nodes["edges"] == "nodes" and nodes["value"] == close(1)
    for row in some:
        wired = along(strongest[: int(row["edges"])], names)
        assert row["value"] == close(judged.share(result.record["by"], edges=wired))
    assert int(some[-1]["edges"]) == len(strongest) and some[-1]["value"] == close(1)
