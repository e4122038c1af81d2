"""Edges through thoughts that are made while the model runs, against a run unrolled by hand."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.attribute.batch import Batch, Sources
from circuits.edges import EdgeError, EdgeTable, edge_attribution, edge_effects
from circuits.graph import Node
from circuits.metrics import logit_difference
from circuits.models.hooked import HookedModel
from circuits.models.hooks import hooks_left
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet
from circuits.sites import Site
from tests.edges import FIRST, HOOKS, LATENTS, LENGTH, SITES, in_order, nodes_at
from tests.pairs import token_pairs
from tests.unit.test_attribute import sae_set
from tests.unit.test_edges_sums import STREAM_LAST, missed
from tests.unrolled import Unrolled, thinking, with_slots

EVERY, PLACES = range(FIRST, LENGTH), (4, 5, 6, 9)


def batch_of(model: HookedModel, saes: SaeSet, direction: Any = "denoising", **more: Any) -> Batch:
    [group] = with_slots(token_pairs(3, **more)).groups(8)
    return Batch(model, Sources(tuple(saes), saes), group, logit_difference, direction)


def some_targets(table: EdgeTable) -> list[Node]:
    """At each site and some places the error, and the latents that most and that least comes
    into."""
    found, weight = [], table.dense().abs().sum((0, 2)).tolist()
    size = dict(zip(table.targets, weight, strict=True))
    for site, place in product(SITES, PLACES):
        latents = [Node(site, "latent", j, place) for j in range(LATENTS)]
        latents.sort(key=lambda node: size[node])
        found += [latents[0], *latents[-2:], Node(site, "error", -1, place)]
    return found


def ends_of(table: EdgeTable) -> tuple[Tensor, Tensor]:
    """[target, source], of targets but the metric: by how many sites, and by how many positions an
    edge would lead on."""

    def places(nodes: Sequence[Node | None]) -> Tensor:
        return torch.tensor([(table.sites.index(n.site), n.position) for n in nodes if n]).T

    source, target = places(table.sources), places(table.targets)
    return target[0][:, None] - source[0], target[1][:, None] - source[1]


@pytest.mark.parametrize(
    ("architecture", "normalise", "gates", "direction"),
    [
        ("jumprelu", "none", "local", "denoising"),
        ("jumprelu", "none", "secant", "noising"),
        ("topk", "layer_norm", "secant", "denoising"),
    ],
)
def test_every_edge_is_the_derivative_by_hand(
    architecture: str, normalise: str, gates: Any, direction: Any
) -> None:
    model = thinking()
    saes = sae_set(architecture, HOOKS, model, normalize_activations=normalise)
    every, asked = nodes_at(saes, EVERY, SITES), nodes_at(saes, PLACES)
    table = edge_effects(batch_of(model, saes, direction), asked, every, gates=gates)
    dense, place = table.dense(), {node: i for i, node in enumerate(table.targets)}
    hand = Unrolled(model, saes, 1, direction == "denoising")
    slopes = {site: hand.slopes(site, gates) for site in hand.sites}
    can_be = torch.zeros(dense.shape[1:], dtype=torch.bool)
    can_be[table.edges[:, 1], table.edges[:, 0]] = True
    biggest: dict[tuple[Site, Any], float] = {}
    for target in [*some_targets(table), None]:
        wanted = in_order(hand.into(target, slopes), saes, SITES)
        # Secants by finite differences.
        bound = 1e-6 if gates == "secant" else 1e-10
        assert (dense[1, place[target]] - wanted).abs().max() < bound
        assert can_be[place[target]][wanted != 0].all()
        parts = wanted.abs().reshape(len(SITES), -1).amax(1).tolist()
        for site, size in zip(SITES, parts, strict=True):
            ends = site, None if target is None else target.site
            biggest[ends] = max(biggest.get(ends, 0.0), size)
    # From the top of one thought's run to the bottom of the next one's, but not over the stream.
    first, z, mlp, stream, top = SITES
    for ends in [(top, first), (stream, first), (first, stream), (top, None), (stream, None)]:
        assert biggest[ends] > 1e-3
    # The stream at layer 2 holds all that is below it; at layer 0, all that a thought is.
    for ends in [(first, first), (first, top), (z, first), (mlp, None), (top, top), (stream, z)]:
        assert biggest.get(ends, 0.0) == 0
    # Edges lead to later positions, or at one position to later sites.
    sites, positions = ends_of(table)
    assert bool(((positions > 0) | ((positions == 0) & (sites > 0)))[can_be[:-1]].all())


@pytest.mark.parametrize(
    ("hooks", "gates", "direction"),
    [
        (HOOKS, "secant", "denoising"),
        (STREAM_LAST, "local", "noising"),
        (HOOKS[1:3], "secant", "noising"),
    ],
)
def test_sums_hold(hooks: tuple[str, ...], gates: Any, direction: Any) -> None:
    """Edges from a node add up to its effect, whether runs begin at the first difference or not."""
    model = thinking()
    saes = sae_set("jumprelu", hooks, model)
    nodes = nodes_at(saes, EVERY)
    before = hooks_left(model.module)
    table = edge_effects(batch_of(model, saes, direction), nodes, nodes, gates=gates)
    assert missed(table) < 1e-9 and float(table.effects.abs().max()) > 0.5
    assert float(table.outside.abs().max()) < 1e-9
    model.can_resume = False
    again = edge_effects(batch_of(model, saes, direction), nodes, nodes, gates=gates, chunk=7)
    assert (again.dense() - table.dense()).abs().max() < 1e-9
    assert hooks_left(model.module) == before


@pytest.mark.parametrize("kind", ["llama", "gemma2", "pythia", "hooked_transformer"])
def test_every_kind_of_model(kind: str) -> None:
    """With the middle of the stream where there is one. Some norm in float32 whatever their
    type."""
    model = thinking(kind)
    middle = ("blocks.1.hook_resid_mid",) if model.has("resid_mid") else ()
    hooks = (HOOKS[0], "blocks.1.hook_attn_out", *middle, *HOOKS[2:])
    saes = sae_set("standard", hooks, model, double=model.dtype == torch.float64)
    nodes = nodes_at(saes, EVERY)
    table = edge_effects(batch_of(model, saes), nodes, nodes, gates="local")
    size = float(table.dense().abs().max())
    assert missed(table) < (1e-9 if kind == "pythia" else 1e-4) * size


def test_what_comes_in_at_a_latent_is_its_change() -> None:
    """Secant gates: by what all earlier places move it to first order, a finite difference."""
    model = thinking()
    saes = sae_set("jumprelu", HOOKS, model)
    nodes = nodes_at(saes, (4, 6, 9))
    table = edge_effects(batch_of(model, saes), nodes, [])
    hand, checked = Unrolled(model, saes, 2), 0
    for site in SITES:
        x, move = hand.base[site].detach(), hand.moved(site)
        change = hand.coefficients(site, x + move) - hand.coefficients(site, x)
        worth = change * (hand.gradients[site] @ saes[site].rows.T)
        for i, node in enumerate(nodes):
            if node.site == site and node.role == "latent" and node.position is not None:
                wanted = float(worth[node.position, node.latent])
                assert float(table.incoming[2, i]) == pytest.approx(wanted, abs=1e-5)
                checked += site == SITES[0] and abs(wanted) > 1e-3
    assert checked > 5  # what is before the first site is a thought


def test_without_the_projection_nothing_leads_back() -> None:
    """And held thoughts are as before: no site acts on itself or on lower ones."""
    model = thinking()
    saes = sae_set("jumprelu", HOOKS, model)
    nodes = [n for n in nodes_at(saes, EVERY, SITES) if n.latent < 24]

    def back() -> Tensor:
        table = edge_effects(batch_of(model, saes), nodes, nodes)
        return table.dense()[:, :-1][:, ends_of(table)[0] <= 0]

    assert float(back().abs().max()) > 1e-2
    with model.thinking("frozen"):
        assert float(back().abs().max()) == 0
    assert model.thoughts is not None
    for parameter in model.thoughts.step.parameters():
        parameter.data.zero_()
    assert float(back().abs().max()) == 0


def test_batches_with_thoughts_at_other_places() -> None:
    """Edges there can be are those of any batch; numbers are each batch's own."""
    model = thinking()
    saes = sae_set("jumprelu", HOOKS[::2], model)
    nodes = [n for n in nodes_at(saes, (3, 5, 7)) if n.latent % 9 in (-1, 0, 8)]
    parts = [with_slots(token_pairs(2)), with_slots(token_pairs(2, seed=1, length=8), (4, 6))]
    parts.append(with_slots(token_pairs(1, seed=2, first=5, length=12), (4, 7)))
    fields = {
        name: tuple(one for part in parts for one in getattr(part, name))
        for name in parts[0].__dataclass_fields__
        if name != "prepend_bos"
    }
    pairs = PromptPairs(**fields, prepend_bos=False)
    found = edge_attribution(model, saes, pairs, nodes, nodes, progress=False)
    assert found.record["thoughts"] == "rerolled"
    for some, part in zip(([0, 1], [2, 3], [4]), parts, strict=True):
        [group] = part.groups()
        batch = Batch(model, Sources(tuple(saes), saes), group, logit_difference, "denoising")
        dense = edge_effects(batch, nodes, nodes).dense().numpy()
        ends = found.ends.T
        assert np.abs(dense[:, ends[1], ends[0]] - found.values[some]).max() < 1e-9
        assert np.abs(dense).sum() == pytest.approx(np.abs(found.values[some]).sum())


def test_nodes_of_all_positions_are_refused() -> None:
    model = thinking()
    saes = sae_set("jumprelu", HOOKS, model)
    nodes, pairs = nodes_at(saes, [None])[::9], with_slots(token_pairs(2))
    with pytest.raises(EdgeError, match="ask for nodes with positions"):
        edge_attribution(model, saes, pairs, nodes, nodes, progress=False)
    with model.thinking("frozen"):
        assert len(edge_attribution(model, saes, pairs, nodes, nodes, progress=False).edges)
