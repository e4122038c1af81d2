"""Edges averaged over pairs."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from circuits.attribute.batch import Batch, Sources
from circuits.attribute.plan import STEPS, TOLERANCE, make_plan
from circuits.edges.graph import EdgeTable, edge_effects
from circuits.edges.plan import (
    ROLES,
    EdgeError,
    check_nodes,
    check_options,
    check_sources,
    check_thoughts,
)
from circuits.graph import Edge, Node
from circuits.metrics import Metric, check_metric, summarise_mean
from circuits.models.hooked import HookedModel
from circuits.models.unembed import unembedding
from circuits.patch.ability import in_halves
from circuits.prompts import PromptPairs
from circuits.runs import SIGN_CONVENTION
from circuits.saes import SaeSet

_COLUMNS_AT_ONCE = 2048  # of values that are resampled together


@dataclass(frozen=True)
class EdgeAttribution:
    """Edges between nodes, and into the metric; means over pairs, in units of the metric, positive
    toward clean whatever the direction.

    edges: one row an edge: source_site, source_role, source_latent, source_position, the same with
        target_ (of the metric target_role is "metric", with no site, latent -1 and no position),
        weight, and its 95% interval over pairs low, high (NaN with one pair). All edges there can
        be are listed, with 0 where the pairs have none.
    values: [pair, edge], in the order of `edges`.
    outside: one row a target, source_site and source_role: weight, low, high of all edges from
        nodes there that are not sources.
    incoming: one row a target: weight, low, high of everything that comes in.
    effects: one row a source: weight, low, high of its first-order effect. What of it does not go
        along edges to the targets goes through other nodes.
    closed: one row a site, and one for "all": `share` of |effect| of latents whose gate is closed
        in the base run, NaN where there is no effect.
    record: metric, direction, gates, sites, sign_convention, seconds, thoughts (rerolled or frozen,
        of prompts that have some), and `unsteady`, the share of what latent targets' changes are
        worth where a local slope stands in for the secant one.
    """

    edges: pd.DataFrame
    values: NDArray[np.float64]
    outside: pd.DataFrame
    incoming: pd.DataFrame
    effects: pd.DataFrame
    closed: pd.DataFrame
    record: dict[str, Any]
    sources: tuple[Node, ...]
    targets: tuple[Node | None, ...]
    ends: NDArray[np.int64]

    def between(self, nodes: Sequence[Node]) -> tuple[Edge, ...]:
        """The edges among `nodes` and from them into the metric, strongest first, as a `Circuit`
        of these nodes in this order has them. Edges of weight 0 are left out."""
        place = {node: i for i, node in enumerate(nodes)}
        found = []
        for (source, target), weight in zip(self.ends, self.edges["weight"], strict=True):
            start, end = self.sources[source], self.targets[target]
            if weight != 0 and start in place and (end is None or end in place):
                at = None if end is None else place[end]
                found.append(Edge(place[start], at, float(weight)))
        return tuple(sorted(found, key=lambda edge: -abs(edge.weight)))


def edge_attribution(
    model: HookedModel,
    saes: SaeSet,
    pairs: PromptPairs,
    targets: Sequence[Node],
    sources: Collection[Node],
    *,
    direction: str = "denoising",
    metric: str | Metric = "logit_difference",
    gates: str = "secant",
    batch_size: int = 16,
    chunk: int | None = None,
    progress: bool = True,
) -> EdgeAttribution:
    """Edges from nodes of all SAEs' sites to `targets` and to the metric.

    saes: all their sites are in the graph: an edge crosses none but those of its ends
        (`SaeSet.at` picks sites).
    pairs: positions of nodes count in all of them, so they should be of one template.
    targets, sources, gates, chunk: as in `edge_effects`. direction, metric: as in `attribute`.
    batch_size: most pairs at once; results do not depend on it beyond rounding.

    Raises before any pass: `EdgeError`, `SiteError`, `AttributionError`, `MetricError`.
    """
    started = time.perf_counter()
    check_options(gates, chunk=chunk, batch_size=batch_size)
    plan = make_plan("atp", STEPS, TOLERANCE, direction, metric, None, 0, 1)
    if not len(saes):
        raise EdgeError("there are no SAEs.")
    where = Sources(tuple(saes), saes)
    sites, _ = check_sources(model, where)
    shortest = min(map(len, pairs.clean_tokens))
    summed = check_nodes(saes, sites, [*targets, *sources], shortest)
    first = torch.tensor(pairs.clean_tokens[:1])
    check_thoughts(model, first, summed)
    if callable(metric):
        vocab = unembedding(model).shape[1]
        trial = torch.zeros(2, vocab, device=model.device, dtype=model.dtype)
        check_metric(metric, trial, differentiated=True)
    tables: list[EdgeTable] = []
    with tqdm(total=len(pairs), desc="edges", unit="pair", disable=not progress) as bar:
        for group in pairs.groups(batch_size):

            def work(part: Any) -> EdgeTable:
                batch = Batch(model, where, part, plan.metric, plan.direction)
                return edge_effects(batch, targets, sources, gates=gates, chunk=chunk)

            tables += in_halves(group, work)
            bar.update(len(group.indices))
    record = {
        "metric": plan.metric_name,
        "direction": plan.direction,
        "gates": gates,
        "sites": [str(site) for site in sites],
        "sign_convention": SIGN_CONVENTION,
    }
    how = model.thinks(first)
    record |= {"thoughts": how} if how else {}
    found = _summary(tables, record)
    found.record["seconds"] = time.perf_counter() - started
    return found


def _summary(tables: Sequence[EdgeTable], record: dict[str, Any]) -> EdgeAttribution:
    """Batches of pairs as one, in the order of pairs."""
    one = tables[0]
    order = np.argsort([pair for table in tables for pair in table.pairs])

    def joined(name: str) -> NDArray[np.float64]:
        return torch.cat([getattr(table, name) for table in tables]).numpy()[order]

    ends, weights = _aligned(tables)
    values, outside = weights[order], joined("outside")
    sources = [_row("source", node) for node in one.sources]
    targets = [_row("target", node) for node in one.targets]
    rests = [
        target | {"source_site": str(site), "source_role": role}
        for target in targets
        for site in one.sites
        for role in ROLES
    ]
    there = np.flatnonzero(outside.reshape(len(order), -1).any(0))
    unsteady = joined("unsteady").sum(0)
    record["unsteady"] = _share(unsteady[0], unsteady[1])
    return EdgeAttribution(
        edges=_means([sources[s] | targets[t] for s, t in ends.tolist()], values),
        values=values,
        outside=_means([rests[i] for i in there], outside.reshape(len(order), -1)[:, there]),
        incoming=_means(targets, joined("incoming")),
        effects=_means(sources, joined("effects")),
        closed=_closed(one, joined("closed").sum(0)),
        record=record,
        sources=one.sources,
        targets=one.targets,
        ends=ends,
    )


def _aligned(tables: Sequence[EdgeTable]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(all edges that there can be in any batch, their weights [pair, edge]). Only where thoughts
    are made on the way, at other positions or behind other starts, do batches differ in them."""
    first = tables[0].edges
    if all(torch.equal(table.edges, first) for table in tables):
        return first.numpy(), torch.cat([table.weights for table in tables]).numpy()
    every = torch.cat([table.edges for table in tables])
    # By target, then by source.
    found, place = every.flip(1).unique(dim=0, return_inverse=True)
    parts = []
    mine = place.split([len(table.edges) for table in tables])
    for table, columns in zip(tables, mine, strict=True):
        weights = table.weights.new_zeros(len(table.weights), len(found))
        weights[:, columns] = table.weights
        parts.append(weights)
    return found.flip(1).numpy(), torch.cat(parts).numpy()


def _row(end: str, node: Node | None) -> dict[str, Any]:
    if node is None:
        values: tuple[Any, ...] = (None, "metric", -1, None)
    else:
        values = (str(node.site), node.role, node.latent, node.position)
    return dict(
        zip([f"{end}_{x}" for x in ("site", "role", "latent", "position")], values, strict=True)
    )


def _means(rows: Sequence[Mapping[str, Any]], values: NDArray[np.float64]) -> pd.DataFrame:
    """Rows with the mean of their column of values [pair, row] and its interval."""
    table = pd.DataFrame(list(rows))
    for name in table.columns:
        if name.endswith("_position"):
            table[name] = table[name].astype("Int64")
    means = np.zeros((3, values.shape[1]))
    if len(values) == 1:
        means[1:] = np.nan
    there = np.flatnonzero(values.any(0))  # resampling zeros takes as long
    for first in range(0, len(there), _COLUMNS_AT_ONCE):
        some = there[first : first + _COLUMNS_AT_ONCE]
        found = summarise_mean(values[:, some])
        means[:, some] = found.value, found.low, found.high
    return table.assign(weight=means[0], low=means[1], high=means[2])


def _closed(table: EdgeTable, sums: NDArray[np.float64]) -> pd.DataFrame:
    rows = {str(site): part for site, part in zip(table.sites, sums, strict=True)}
    rows["all"] = sums.sum(0)
    return pd.DataFrame(
        [
            {"site": name, "closed": part[0], "effect": part[1], "share": _share(*part)}
            for name, part in rows.items()
        ]
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
