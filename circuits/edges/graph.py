"""Edges of a batch of pairs, to first order.

The effect of a node u at site A is <write of u, g_A>, with g the gradient of the metric in the base
run of the model as it is and the write that of the clean run less that of the corrupted one. An
edge from u to a node d at a later site B is the part of it that goes through d: along all paths
from A to B that cross no other site, and there as gates.py says.

1. One pass of the base run is cut at all sites (`circuits.models.blocked`): what arrives at a site
   is a function of the leaves at earlier sites, and J_AB its derivative along the paths that cross
   no third one. The same pass carries the changes of all leaves along: to first order they move
   what arrives at B by sum_A J_AB (x_A clean - x_A corrupted). Many targets at early positions get
   a pass of their own that ends there.
2. At each site the targets get their cotangents. Those of a position add up to g_B.
3. Cotangents are pulled back to the leaves, many at once, and multiplied with the writes there.

So edges from a node to all nodes of all later sites and to the metric add up to its effect, and (by
secant gates) edges from all nodes to a latent add up to what that latent's change is worth. This is
Marks et al. 2024 (Sparse feature circuits) with error nodes that have edges, and with gates that do
not vanish where a latent is closed in the base run.

Where thoughts are made while the model runs, the run is cut at all sites in every piece of it, and
"earlier" goes by piece first and then by site: a node also acts on nodes of the same site and of
lower ones at later positions, through the thoughts between them (the projection of the final norm's
output). All of the above holds with that order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribute.batch import Batch
from circuits.attribute.nodes import Block, LatentBlock
from circuits.edges.gates import Run, SiteTargets, Slots
from circuits.edges.plan import check_nodes, check_options, check_sources, check_thoughts
from circuits.edges.writes import SiteWrites
from circuits.graph import Node
from circuits.models.blocked import Blocked, BlockedRuns, Place
from circuits.models.memory import out_of_memory, rows_that_fit
from circuits.sites import Site

_GRAPH = 4  # how many times more memory a slot takes than a row of a forward pass


@dataclass(frozen=True)
class EdgeTable:
    """Edges of a batch of pairs; every number is in units of the metric, positive toward clean.

    pairs: their numbers. sites: in forward order. targets: nodes, and None for the metric as the
    last; sources: the nodes whose edges are kept one by one.
    edges: (source, target) of every edge, places in `sources` and `targets`: all there can be,
        which are those from a site on which the target's depends directly. Where thoughts are made
        on the way, those from a place (a site in a piece of the run, from the pairs' first
        difference on) on which the target's does, to the source's position or later ones.
    weights: [pair, edge]; 0 where the source or the target is not there in a pair.
    outside: [pair, target, site, role], sums over all sources of a site that are not in `sources`:
        latents, errors, offsets.
    incoming: [pair, target], sums over all sources.
    effects: [pair, source], first-order effects.
    closed: [pair, site, 2], |effect| of all latents of a site whose gate is closed in the base run,
        and of all of them.
    unsteady: [pair, 2], of latents that are targets |<d_j, g> (change of a_j)| where the local
        slope stands in for the secant one, and of all of them.
    """

    pairs: tuple[int, ...]
    sites: tuple[Site, ...]
    targets: tuple[Node | None, ...]
    sources: tuple[Node, ...]
    edges: Int[Tensor, "edge 2"]
    weights: Float[Tensor, "pair edge"]
    outside: Float[Tensor, "pair target site role"]
    incoming: Float[Tensor, "pair target"]
    effects: Float[Tensor, "pair source"]
    closed: Float[Tensor, "pair site 2"]
    unsteady: Float[Tensor, "pair 2"]

    def dense(self) -> Float[Tensor, "pair target source"]:
        """Weights with zeros where there can be no edge."""
        full = self.weights.new_zeros(len(self.pairs), len(self.targets), len(self.sources))
        full[:, self.edges[:, 1], self.edges[:, 0]] = self.weights
        return full


def edge_effects(
    batch: Batch,
    targets: Sequence[Node],
    sources: Collection[Node],
    *,
    gates: str = "secant",
    chunk: int | None = None,
) -> EdgeTable:
    """Edges from all nodes to `targets` and to the metric.

    sources: the nodes whose edges are kept one by one; all others are summed by site and role.
    targets, sources: all with positions, or all without: then an edge is the sum over all positions
        (but 0) of both of its ends.
    gates: "secant" or "local" (gates.py).
    chunk: most cotangents that are pulled back at once; by default what fits into memory. Results
        do not depend on it beyond rounding.

    Raises `EdgeError` and `SiteError`, before any pass but that of `batch` itself.
    """
    kind = check_options(gates, chunk=chunk)
    sites, saes = check_sources(batch.model, batch.sources)
    targets, kept = tuple(dict.fromkeys(targets)), tuple(dict.fromkeys(sources))
    length = batch.base_tokens.shape[1]
    summed = check_nodes(saes, sites, [*targets, *kept], length)
    check_thoughts(batch.model, batch.base_tokens, summed)
    known, gradients = batch.gradients
    changes = {site: _change(batch, site) for site in sites}
    moves = None if kind == "local" else {s: batch.sign * x for s, x in changes.items()}
    runs = BlockedRuns(batch.model, batch.base_tokens, int(batch.first.min()), sites, known)
    # All that comes before the last site acts on the metric through it if it holds the stream.
    to_logits = runs.rolled or not _holds_stream(sites[-1])
    stops = [length] if summed or to_logits else _stops(targets, sites, int(batch.first.min()))
    work = _Work(batch, sites, targets, kept, runs)
    for number, site in enumerate(sites):
        sae, gradient = saes[site], gradients[site]
        blocks = batch.nodes(site)
        mine = [node for node in kept if node.site == site]
        change = changes[site].to(sae.dtype)
        work.writes[site] = SiteWrites(sae, blocks, change, mine, summed, runs.start)
        work.effects[:, work.columns[site]] = work.along(site, gradient[None])[0][0]
        work.closed[:, number] = _closed(blocks, gradient, batch)
    # The longest first: it alone carries the moves.
    parts = {stops[-1]: runs.run(stops[-1], moves, to_logits=to_logits)}
    parts |= {stop: runs.run(stop) for stop in stops[:-1]}
    whole = parts[stops[-1]]
    for site in sites:
        mine = [node for node in targets if node.site == site]
        reached = [whole.sources(arriving) for arriving in whole.arriving[site]]
        for node in mine:
            work.can_be(node, whole, _seen(node, whole, reached))
        if not mine or not any(reached):
            continue
        sae = saes[site]
        move = torch.zeros_like(known[site])
        move[:, runs.start : stops[-1]] = torch.cat(whole.moved[site], 1)
        coarser = min(move.dtype.itemsize, sae.dtype.itemsize)
        run = Run(known[site], gradients[site], move, batch.first.to(move.device), coarser)
        made = SiteTargets(sae, mine, run, kind)
        work.unsteady += made.unsteady.cpu()
        for part, piece, before, stop in _pieces(parts):
            some = [i for i, n in enumerate(mine) if summed or before <= _position(n) < stop]
            slots = Slots(made, torch.tensor(some, dtype=torch.long))
            work.into([mine[i] for i in some], slots, part, piece, chunk)
    work.into_metric(whole, gradients)
    return work.table()


def _pieces(parts: Mapping[int, Blocked]) -> Iterator[tuple[Blocked, int, int, int]]:
    """(a pass, the number of a piece of it, and from where to where the positions of targets lie
    that are pulled back through that piece)."""
    before = 0
    for stop in sorted(parts):
        for piece, (_, end) in enumerate(parts[stop].bounds):
            yield parts[stop], piece, before, end
            before = end


def _seen(node: Node, run: Blocked, reached: Sequence[tuple[Place, ...]]) -> tuple[Place, ...]:
    """What a target's site depends on, of what it does piece by piece; nothing before the run."""
    if len(run.bounds) == 1 or node.position is None:
        return reached[0]
    piece = run.piece(node.position)
    return () if piece < 0 else reached[piece]


def _position(node: Node) -> int:
    return -1 if node.position is None else node.position


def _stops(targets: Sequence[Node], sites: Sequence[Site], start: int) -> list[int]:
    """Where passes end that targets with positions are pulled back through, ascending.

    A target costs the layers down to the last site that holds the stream, at all positions of the
    pass it is in; a pass costs all layers between the sites, at all its positions. Nothing goes
    through positions before `start`.
    """
    costs: Counter[int] = Counter()
    for node in targets:
        if node.site != sites[0] and _position(node) >= start:
            below = [s.layer for s in sites[: sites.index(node.site)] if _holds_stream(s)]
            costs[_position(node)] += max(1, node.site.layer - (below[-1] if below else 0))
    counts = sorted(costs.items())
    whole = sites[-1].layer - sites[0].layer + 1
    best: list[tuple[int, list[int]]] = [(0, [])]
    for i, (position, _) in enumerate(counts):
        options, together = [], whole
        for j in range(i, -1, -1):
            together += counts[j][1]
            cost = best[j][0] + together * (position + 1 - start)
            options.append((cost, [*best[j][1], position + 1]))
        best.append(min(options))
    return best[-1][1] or [start + 1]


def _holds_stream(site: Site) -> bool:
    return site.kind.startswith("resid")


def _change(batch: Batch, site: Site) -> Float[Tensor, "pair position width"]:
    """Clean less corrupted activation, exactly 0 before a pair's first difference."""
    clean, corrupted = batch.runs(site)
    later = torch.arange(clean.shape[1])[None] >= batch.first[:, None]
    return (clean - corrupted) * later[..., None].to(clean.device)


def _closed(blocks: Sequence[Block], gradient: Tensor, batch: Batch) -> Float[Tensor, "pair 2"]:
    found = torch.zeros(len(gradient), 2, dtype=torch.float64)
    for block in blocks:
        if isinstance(block, LatentBlock):
            effect = block.project(gradient).abs().double().cpu()
            base = block.corrupted if batch.denoising else block.clean
            sizes = torch.stack([effect * (base == 0).cpu(), effect], 1)
            found.index_add_(0, block.pair.cpu(), sizes)
    return found


class _Work:
    """The table in the making."""

    def __init__(
        self,
        batch: Batch,
        sites: tuple[Site, ...],
        targets: tuple[Node, ...],
        sources: tuple[Node, ...],
        runs: BlockedRuns,
    ) -> None:
        self._batch, self._sites = batch, sites
        self._start, self._rolled = runs.start, runs.rolled
        self._targets, self._sources = targets, sources
        pairs, count = len(batch.group.indices), len(targets) + 1
        self._place = {node: i for i, node in enumerate(targets)}
        self.writes: dict[Site, SiteWrites] = {}
        # Edges there can be: (place of the target, site, places in the site's columns).
        self._possible: list[tuple[int, Site, Tensor]] = []
        self.columns = {
            site: torch.tensor([i for i, n in enumerate(sources) if n.site == site]).long()
            for site in sites
        }
        self._positions = {
            site: torch.tensor([_position(sources[i]) for i in column.tolist()]).long()
            for site, column in self.columns.items()
        }
        shapes = {site: (pairs, count, len(column)) for site, column in self.columns.items()}
        self._weights = {s: torch.zeros(x, dtype=torch.float64) for s, x in shapes.items()}
        self._outside = torch.zeros(pairs, count, len(sites), 3, dtype=torch.float64)
        self.effects = torch.zeros(pairs, len(sources), dtype=torch.float64)
        self.unsteady = torch.zeros(pairs, 2, dtype=torch.float64)
        self.closed = torch.zeros(pairs, len(sites), 2, dtype=torch.float64)

    def along(self, site: Site, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """What a gradient at all positions, [slot, pair, position, width], makes of a site's
        writes."""
        single, rest = self.writes[site].along(gradient[:, :, self._start :])
        return single.cpu(), rest.cpu()

    def can_be(self, node: Node | None, run: Blocked, reached: Sequence[Place]) -> None:
        """Take down that there can be edges from these places to a target."""
        target = len(self._targets) if node is None else self._place[node]
        for site in dict.fromkeys(site for site, _ in reached):
            column = self.columns[site]
            some = torch.arange(len(column))
            if self._rolled:
                at = self._positions[site]
                pieces = torch.tensor([piece for s, piece in reached if s == site])
                starts = torch.tensor([start for start, _ in run.bounds])
                there = torch.isin(torch.bucketize(at, starts, right=True) - 1, pieces)
                if node is not None:
                    there &= at <= _position(node)
                some = some[there]
            self._possible.append((target, site, some))

    def into(
        self, nodes: Sequence[Node], slots: Slots, run: Blocked, piece: int, chunk: int | None
    ) -> None:
        """Edges into nodes of one site in one piece of a run, as many slots at once as fit into
        memory."""
        if not nodes:
            return
        arriving = run.arriving[nodes[0].site][piece]
        reached = run.sources(arriving)
        if not reached:
            return
        number = torch.tensor([self._place[node] for node in nodes], dtype=torch.long)
        positions = range(*run.bounds[piece])
        first, size = 0, chunk or self._at_once(positions.stop - self._start)
        while first < len(slots):
            part = range(first, min(len(slots), first + size))
            try:
                cotangents = slots.cotangents(part, positions)
                gradients = run.pull_back(arriving, cotangents, reached)
                found = {s: self.writes[s].along(g) for s, g in gradients.items()}
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or size == 1:
                    raise
                found = None
            if found is None:  # outside of the except block, which holds on to the tensors
                size = max(1, size // 2)
                continue
            node = slots.node[first : part.stop].cpu()
            slot, pair = (node >= 0).nonzero(as_tuple=True)
            for site, (single, rest) in found.items():
                self._keep(site, pair, number[node[slot, pair]], slot, single.cpu(), rest.cpu())
            first = part.stop

    def into_metric(self, run: Blocked, gradients: Mapping[Site, Tensor]) -> None:
        """Edges into the metric."""
        every = torch.arange(len(self._batch.group.indices))
        place, slot = torch.full_like(every, len(self._targets)), torch.zeros_like(every)
        if run.logits is None:
            site = self._sites[-1]
            self.can_be(None, run, [(site, 0)])
            self._keep(site, every, place, slot, *self.along(site, gradients[site][None]))
            return
        reached = run.sources(run.logits)
        self.can_be(None, run, reached)
        with torch.enable_grad():
            values = self._batch.row_metric(every, run.logits)
        for site, found in run.pull_back(values, torch.ones_like(values)[None], reached).items():
            single, rest = self.writes[site].along(found)
            self._keep(site, every, place, slot, single.cpu(), rest.cpu())

    def _at_once(self, positions: int) -> int:
        model, pairs = self._batch.model, len(self._batch.group.indices)
        length = self._batch.base_tokens.shape[1]
        rows = rows_that_fit(model.adapter, positions, length, 0, model.device, model.dtype)
        return max(1, rows // (_GRAPH * pairs))

    def _keep(
        self, site: Site, pair: Tensor, target: Tensor, slot: Tensor, single: Tensor, rest: Tensor
    ) -> None:
        self._weights[site][pair, target] = single[slot, pair]
        self._outside[pair, target, self._sites.index(site)] = rest[slot, pair]

    def table(self) -> EdgeTable:
        """All that was found, with the edges that there can be."""
        edges, weights = [], []
        for target, site, some in self._possible:
            column = self.columns[site][some]
            edges.append(torch.stack([column, torch.full_like(column, target)], 1))
            weights.append(self._weights[site][:, target, some])
        incoming = self._outside.sum((2, 3))
        for weight in self._weights.values():
            incoming = incoming + weight.sum(-1)
        return EdgeTable(
            pairs=tuple(self._batch.group.indices),
            sites=self._sites,
            targets=(*self._targets, None),
            sources=self._sources,
            edges=torch.cat(edges),
            weights=torch.cat(weights, 1),
            outside=self._outside,
            incoming=incoming,
            effects=self.effects,
            closed=self.closed,
            unsteady=self.unsteady,
        )
