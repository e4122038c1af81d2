"""Exact interventions on nodes: what the estimates are checked against.

`patch_nodes`: one node put in, everything else as in the run that is patched. First-order
attribution at that run estimates this.

`path_effects`: the node's share of the joint change. The site stands at a point alpha of the line
between the two runs; the node's effect there is the metric with the node at its clean value minus
the metric with it at its corrupted one, all others at alpha; averaged over alpha on a rule of
the same kind as that of integrated gradients, which estimate this.

`patch_sites`: all nodes of a site at once, which is the whole activation. Integrated gradients of a
site add up to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribute.gradients import RowMetric, gauss_legendre
from circuits.attribute.nodes import Block
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.models.resume import Baseline
from circuits.sites import Site

# A site, its block of nodes, and which of them are patched.
Item = tuple[Site, Block, Tensor]
_NODES_AT_ONCE = 512
_NUMBERS_AT_ONCE = 1 << 25  # of activations that are held for path points


def patch_nodes(
    model: HookedModel,
    baseline: Baseline,
    items: Sequence[Item],
    metric: RowMetric,
    sign: int,
    batch_size: int | None = None,
) -> list[Float[Tensor, " node"]]:
    """The metric with each node patched by itself, in the order of the items.

    Nodes of all sites share passes: a pass serves rows that begin at any layer.
    sign: 1 puts clean values into a corrupted run, -1 corrupted ones into a clean run.
    """
    found = [torch.zeros(len(nodes), dtype=torch.float64) for _, _, nodes in items]
    waiting: list[tuple[int, Tensor]] = []
    for number, (_, _, nodes) in enumerate(items):
        for part in torch.arange(len(nodes)).split(_NODES_AT_ONCE):
            if sum(len(p) for _, p in waiting) + len(part) > _NODES_AT_ONCE:
                _patch(model, baseline, items, waiting, metric, sign, batch_size, found)
                waiting = []
            waiting.append((number, part))
    if waiting:
        _patch(model, baseline, items, waiting, metric, sign, batch_size, found)
    return found


def _patch(
    model: HookedModel,
    baseline: Baseline,
    items: Sequence[Item],
    parts: Sequence[tuple[int, Tensor]],
    metric: RowMetric,
    sign: int,
    batch_size: int | None,
    into: Sequence[Tensor],
) -> None:
    """Patch some nodes of some items, in shared passes."""
    patches, pairs, count = [], [], 0
    for number, part in parts:
        site, block, nodes = items[number]
        some = nodes[part.to(nodes.device)]
        rows = count + torch.arange(len(some))
        patches.append(
            Patches(site, rows, block.position[some], sign * block.vectors(some), add=True)
        )
        pairs.append(block.pair[some].cpu())
        count += len(some)
    values = torch.zeros(count, dtype=torch.float64)
    _run(model, baseline, torch.cat(pairs), patches, metric, values, batch_size)
    sizes = [len(part) for _, part in parts]
    for (number, part), mine in zip(parts, values.split(sizes), strict=True):
        into[number][part] = mine


def path_effects(
    model: HookedModel,
    baseline: Baseline,
    site: Site,
    block: Block,
    nodes: Int[Tensor, " node"],
    corrupted: Float[Tensor, "pair suffix width"],
    clean: Float[Tensor, "pair suffix width"],
    metric: RowMetric,
    steps: int,
    batch_size: int | None = None,
) -> Float[Tensor, " node"]:
    """Each node's effect, the others at a point of the path, averaged over the path.

    corrupted, clean: the site's activations from `baseline.first` on.
    """
    points, weights = gauss_legendre(steps)
    found = torch.zeros(len(nodes), dtype=torch.float64)
    suffix, width = clean.shape[1:]
    per_node = 2 * steps * suffix * width
    for part in torch.arange(len(nodes)).split(max(1, _NUMBERS_AT_ONCE // per_node)):
        some = nodes[part]
        pair, place = block.pair[some], block.position[some] - baseline.first
        vector = block.vectors(some).to(clean)
        values = []
        for point in points.tolist():
            middle = corrupted[pair] + point * (clean - corrupted)[pair]
            for share in (1 - point, -point):  # the node at its clean, at its corrupted value
                moved = middle.clone()
                moved[torch.arange(len(some)), place] += share * vector
                values.append(moved)
        stacked = torch.stack(values)  # [2 steps, node, suffix, width]
        rows = stacked.shape[0] * len(some)
        patch = Patches(
            site,
            torch.arange(rows).repeat_interleave(suffix),
            (baseline.first + torch.arange(suffix)).repeat(rows),
            stacked.flatten(0, 2),
        )
        values_of = torch.zeros(rows, dtype=torch.float64)
        _run(model, baseline, pair.cpu().repeat(2 * steps), [patch], metric, values_of, batch_size)
        there, back = values_of.view(steps, 2, len(some)).unbind(1)
        found[part] = ((there - back) * weights[:, None]).sum(0)
    return found


def patch_sites(
    model: HookedModel,
    baseline: Baseline,
    values: dict[Site, Float[Tensor, "pair suffix width"]],
    metric: RowMetric,
    batch_size: int | None = None,
) -> dict[Site, Float[Tensor, " pair"]]:
    """The metric with each site overwritten, by itself, from `baseline.first` on."""
    sites = list(values)
    patches, count = [], 0
    for site in sites:
        pairs, suffix, _ = values[site].shape
        rows = count + torch.arange(pairs)
        positions = (baseline.first + torch.arange(suffix)).repeat(pairs)
        patches.append(
            Patches(site, rows.repeat_interleave(suffix), positions, values[site].flatten(0, 1))
        )
        count += pairs
    found = torch.zeros(count, dtype=torch.float64)
    n_pairs = count // len(sites)
    pair = torch.arange(n_pairs).repeat(len(sites))
    _run(model, baseline, pair, patches, metric, found, batch_size)
    return dict(zip(sites, found.view(len(sites), n_pairs), strict=True))


def _run(
    model: HookedModel,
    baseline: Baseline,
    pair: Int[Tensor, " row"],
    patches: list[Patches],
    metric: RowMetric,
    into: Float[Tensor, " row"],
    batch_size: int | None,
) -> None:
    def read(rows: Tensor, logits: Tensor) -> Tensor:
        return metric(pair[rows], logits).double().cpu()

    for rows, values in model.resume(baseline, pair, patches, batch_size, read):
        into[rows] = values
