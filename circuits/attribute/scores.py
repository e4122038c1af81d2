"""The effects of all nodes of a group of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from circuits.attribute.batch import Batch, Sources
from circuits.attribute.exact import Item, patch_nodes
from circuits.attribute.nodes import Block, Nodes
from circuits.attribute.plan import MOST_STEPS, Plan
from circuits.models.hooked import HookedModel
from circuits.prompts import PairGroup
from circuits.sites import Site


def scores_of(model: HookedModel, sources: Sources, group: PairGroup, plan: Plan) -> pd.DataFrame:
    """The effects of all nodes of a group of pairs, sparse, one row a node and pair."""
    batch = Batch(model, sources, group, plan.metric, plan.direction)
    found: list[tuple[Site, Nodes, Tensor]] = []
    if plan.method == "exact":
        # Decoders that do not fit into memory together are not held together.
        together = sources.saes is None or sources.saes.fits
        parts = [sources.sites] if together else [(site,) for site in sources.sites]
        for sites in parts:
            items = [
                (site, block, torch.arange(len(block.pair), device=block.pair.device))
                for site in sites
                for block in batch.nodes(site)
            ]
            effects = exact_effects(batch, items, plan.batch_size)
            for (site, block, _), effect in zip(items, effects, strict=True):
                found.append((site, block.without_writes(), effect))
        return _frame(found, group, ["exact"] * len(found))
    names: list[str] = []
    # First, because the activations of the base run come with them.
    gradients = batch.gradients[1] if plan.method == "atp" else {}
    whole = batch.whole_effects(plan.batch_size) if plan.method == "ig" else {}
    for site in sources.sites:
        blocks = batch.nodes(site)
        if plan.method == "atp":
            name, effects = "atp", [block.project(gradients[site]) for block in blocks]
        else:
            steps, effects = _integrated(batch, site, blocks, whole, plan)
            name = f"ig-{steps}"
        kept = [block.without_writes() for block in blocks]
        found += zip([site] * len(blocks), kept, effects, strict=True)
        names += [name] * len(blocks)
    return _frame(found, group, names)


def _integrated(
    batch: Batch, site: Site, blocks: Sequence[Block], whole: dict[Site, Tensor], plan: Plan
) -> tuple[int, list[Tensor]]:
    """Integrated gradients of a site and the number of points that were used: twice as many until
    the sum over nodes is the exact effect of the whole site, to the tolerance."""
    largest = max(float(effect.mean().abs()) for effect in whole.values())
    steps = plan.steps
    while True:
        gradient = batch.mean_gradient(site, steps, plan.batch_size)
        effects = [block.project(gradient) for block in blocks]
        total = torch.zeros_like(whole[site])
        for block, effect in zip(blocks, effects, strict=True):
            total.index_add_(0, block.pair.cpu(), effect.double().cpu())
        missed = float((total - whole[site]).abs().mean())
        if not plan.tolerance or missed <= plan.tolerance * largest or 2 * steps > MOST_STEPS:
            return steps, effects
        steps *= 2


def exact_effects(batch: Batch, items: Sequence[Item], batch_size: int | None) -> list[Tensor]:
    """Effects of nodes patched by themselves, in the order of the items."""
    patched = patch_nodes(
        batch.model, batch.baseline, items, batch.row_metric, batch.sign, batch_size
    )
    base = batch.base_metric
    return [
        (values - base[block.pair[nodes].cpu()]) * batch.sign
        for (_, block, nodes), values in zip(items, patched, strict=True)
    ]


def _frame(
    found: Sequence[tuple[Site, Nodes, Tensor]], group: PairGroup, methods: Sequence[str]
) -> pd.DataFrame:
    """Scores as one table; put together from arrays, which many small tables are slower than."""
    counts = [len(block.pair) for _, block, _ in found]
    sites = list(dict.fromkeys(str(site) for site, _, _ in found))
    roles = list(dict.fromkeys(block.role for _, block, _ in found))

    def column(values: Sequence[Tensor]) -> np.ndarray:
        return torch.cat([v.cpu() for v in values]).numpy()

    def named(names: Sequence[str], which: Sequence[str]) -> pd.Categorical:
        codes = [names.index(name) for name in which]
        return pd.Categorical.from_codes(np.repeat(codes, counts), list(names))

    blocks = [block for _, block, _ in found]
    pair = np.array(group.indices, dtype=np.int64)[column([b.pair for b in blocks])]
    return pd.DataFrame(
        {
            "pair": pair,
            "site": named(sites, [str(site) for site, _, _ in found]),
            "layer": np.repeat([site.layer for site, _, _ in found], counts),
            "position": column([b.position for b in blocks]),
            "role": named(roles, [b.role for b in blocks]),
            "latent": column([b.index for b in blocks]),
            "clean": column([b.clean.double() for b in blocks]),
            "corrupted": column([b.corrupted.double() for b in blocks]),
            "effect": column([effect.double() for _, _, effect in found]),
            "method": named(list(dict.fromkeys(methods)), methods),
        },
        copy=False,  # these arrays are nobody else's
    )
