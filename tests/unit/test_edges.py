"""Edges against derivatives by hand: TransformerLens' hooks, one leaf at a time, SAEs' weights."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from circuits.edges import edge_effects
from circuits.sites import Site
from tests import tiny
from tests.edges import (
    FIRST,
    HOOKS,
    LENGTH,
    PLACES,
    SITES,
    ByHand,
    batch_of,
    in_order,
    nodes_at,
    some_targets,
)
from tests.unit.test_attribute import linear_model, sae_set

HAND: list[tuple[str, str, str, Any]] = [
    ("standard", "none", "local", "denoising"),
    ("standard", "layer_norm", "secant", "denoising"),
    ("jumprelu", "none", "local", "noising"),
    ("jumprelu", "none", "secant", "denoising"),
    ("jumprelu", "constant_norm_rescale", "secant", "noising"),
    ("gated", "none", "secant", "denoising"),
    ("gated", "constant_norm_rescale", "local", "denoising"),
    ("topk", "none", "secant", "noising"),
    ("topk", "layer_norm", "secant", "denoising"),
]


@pytest.mark.parametrize(("architecture", "normalise", "gates", "direction"), HAND)
def test_every_kind_of_edge_is_the_derivative_by_hand(
    architecture: str, normalise: str, gates: Any, direction: Any
) -> None:
    model = tiny.bridge("gpt2", torch.float64)
    saes = sae_set(architecture, HOOKS, model, normalize_activations=normalise)
    sources = nodes_at(saes, range(FIRST, LENGTH), SITES)
    every = nodes_at(saes, PLACES)
    table = edge_effects(batch_of(model, saes, direction), every, sources, gates=gates)
    dense = table.dense()
    place = {node: i for i, node in enumerate(table.targets)}
    pair = 1
    hand = ByHand(model, saes, pair, direction == "denoising")
    slopes = {site: hand.slopes(site, gates) for site in hand.sites}
    biggest: dict[tuple[Any, ...], float] = {}
    worst = 0.0
    kinds: dict[tuple[Site, str], list[int]] = {}
    for i, node in enumerate(sources):
        kinds.setdefault((node.site, node.role), []).append(i)
    for target in [*some_targets(hand, table, gates), None]:
        wanted = in_order(hand.edges(target, slopes), saes, SITES)
        worst = max(worst, float((dense[pair, place[target]] - wanted).abs().max()))
        end: Any = "metric" if target is None else (target.site, target.role)
        for kind, rows in kinds.items():
            biggest[(*kind, end)] = max(
                biggest.get((*kind, end), 0.0), float(wanted[rows].abs().max())
            )
    assert worst < (1e-6 if gates == "secant" else 1e-10)  # secants by finite differences
    # Kinds that can be are there, and not by a rounding error.
    direct = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (3, 4)]
    roles = ["latent", "error"] + (["offset"] if normalise != "none" else [])
    for (a, b), before, after in product(direct, roles, roles):
        least = 1e-6 if "offset" in (before, after) else 1e-3
        assert biggest[SITES[a], before, (SITES[b], after)] > least
    for a, before in product((3, 4), roles):
        assert biggest[SITES[a], before, "metric"] > 1e-4
    # The residual stream at layer 2 stands between.
    assert biggest[SITES[1], "latent", (SITES[4], "latent")] == 0
    assert biggest[SITES[0], "error", "metric"] == 0


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_what_comes_in_at_a_latent_is_its_change(architecture: str, direction: Any) -> None:
    """Of closed latents too; the first-order change of what arrives is a finite difference."""
    model = tiny.bridge("gpt2", torch.float64)
    saes = sae_set(architecture, HOOKS, model)
    nodes = nodes_at(saes, PLACES)
    table = edge_effects(batch_of(model, saes, direction), nodes, [])
    sign = 1 if direction == "denoising" else -1
    opened = 0
    for pair in range(3):
        hand = ByHand(model, saes, pair, direction == "denoising")
        for site in SITES[1:]:
            x, move = hand.base[site].detach(), hand.moved(site)
            before, after = hand.coefficients(site, x), hand.coefficients(site, x + move)
            shares = hand.gradients[site] @ saes[site].rows.T
            for i, node in enumerate(nodes):
                if node.site == site and node.role == "latent":
                    at = (node.position, node.latent)
                    wanted = sign * float((shares * (after - before))[at])
                    assert float(table.incoming[pair, i]) == pytest.approx(wanted, abs=1e-6)
                    opened += bool(before[at] == 0 and abs(wanted) > 1e-3)
    assert opened > 20
    assert float(table.unsteady[:, 0].sum()) == 0 and float(table.unsteady[:, 1].sum()) > 1


@pytest.mark.parametrize(
    ("architecture", "normalise"), [("jumprelu", "none"), ("standard", "layer_norm")]
)
def test_local_edges_are_finite_differences_of_the_blocked_model(
    architecture: str, normalise: str
) -> None:
    model = tiny.bridge("gpt2", torch.float64)
    saes = sae_set(architecture, HOOKS, model, normalize_activations=normalise)
    nodes = nodes_at(saes, PLACES)
    table = edge_effects(batch_of(model, saes), nodes, nodes, gates="local")
    pair, step, checked = 0, 1e-7, 0  # shorter than the way to any kink
    hand = ByHand(model, saes, pair)
    dense = table.dense()[pair, :-1]
    for a in range(len(SITES) - 1):
        of_site = [i for i, node in enumerate(nodes) if node.site == SITES[a]]
        strongest = dense[:, of_site].abs().sum(0).topk(3).indices.tolist()
        for i in [of_site[k] for k in strongest]:
            source = nodes[i]
            write = hand.writes(source.site)[source.role][source.position]
            if source.role == "latent":
                write = write[source.latent] * saes[source.site].rows[source.latent]
            ends = []
            for sign in (1, -1):
                leaves = {site: x.detach().clone() for site, x in hand.base.items()}
                leaves[source.site][source.position] += sign * step * write
                ends.append(hand.cut(hand.tokens, leaves)[0])
            values = [
                {
                    site: hand.through(site, end[site].detach(), hand.gradients[site])
                    for site in SITES[a + 1 :]
                }
                for end in ends
            ]
            for k, target in enumerate(nodes):
                if target.site in values[0]:
                    up, down = (v[target.site][target.role][target.position] for v in values)
                    wanted: Any = (up - down) / (2 * step)
                    wanted = float(wanted[target.latent] if target.role == "latent" else wanted)
                    assert float(dense[k, i]) == pytest.approx(wanted, abs=1e-6)
                    checked += abs(wanted) > 1e-3
    assert checked > 100


def test_the_middle_of_the_stream_is_a_site() -> None:
    """On a `HookedTransformer`, where a hook at the middle reaches the whole stream."""
    model = linear_model()
    hooks = (
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_attn_out",
        "blocks.0.hook_resid_mid",
        "blocks.0.hook_mlp_out",
    )
    saes = sae_set("jumprelu", hooks, model)
    sites = [Site.parse(hook) for hook in hooks]
    sources, targets = nodes_at(saes, range(FIRST, LENGTH), sites), nodes_at(saes, PLACES)
    table = edge_effects(batch_of(model, saes), targets, sources)
    hand = ByHand(model, saes, 2)
    hand.sites = sites
    hand.gradients[hand.sites[2]] = hand.gradients[hand.sites[1]]
    slopes = {site: hand.slopes(site, "secant") for site in hand.sites}
    place = {node: i for i, node in enumerate(table.targets)}
    dense = table.dense()
    biggest: dict[Site | None, float] = {}
    for target in [*some_targets(hand, table, "secant"), None]:
        wanted = in_order(hand.edges(target, slopes), saes, hand.sites)
        assert (dense[2, place[target]] - wanted).abs().max() < 1e-6
        end = None if target is None else target.site
        biggest[end] = max(biggest.get(end, 0.0), float(wanted.abs().max()))
    assert len(biggest) == 4 and min(biggest.values()) > 1e-2
