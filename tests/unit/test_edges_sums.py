"""What edges add up to: every architecture of SAE and model, positions, directions, types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from circuits.attribute.batch import Batch, Sources
from circuits.attribute.plan import make_plan
from circuits.attribute.scores import scores_of
from circuits.edges import EdgeTable, edge_effects
from circuits.graph import Node
from circuits.metrics import logit_difference
from circuits.models.hooked import HookedModel
from circuits.models.hooks import hooks_left
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet
from circuits.sites import Site
from tests import tiny
from tests.edges import FIRST, HOOKS, LENGTH, SITES, batch_of, nodes_at
from tests.pairs import from_tokens, token_pairs
from tests.unit.test_attribute import CASES, sae_set

STREAM_LAST = (*HOOKS[:3], "blocks.3.hook_resid_post")


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("gpt2", torch.float64)


def centred(saes: SaeSet) -> SaeSet:
    sources = {site: replace(source, centred=True) for site, source in saes.sources.items()}
    return SaeSet(sources, torch.device("cpu"))


def missed(table: EdgeTable) -> float:
    """By how much edges from any source to all targets miss its effect."""
    return float((table.dense().sum(1) - table.effects).abs().max())


@pytest.mark.parametrize("gates", ["secant", "local"])
@pytest.mark.parametrize(("architecture", "more"), [*CASES, ("standard", {"centred": True})])
def test_edges_from_a_node_add_up_to_its_effect(
    model: HookedModel, architecture: str, more: dict[str, Any], gates: Any
) -> None:
    more = dict(more)
    mean = more.pop("centred", False)
    saes = sae_set(architecture, HOOKS, model, **more)
    saes = centred(saes) if mean else saes
    for direction in ("denoising", "noising"):
        nodes = nodes_at(saes, [None])
        table = edge_effects(batch_of(model, saes, direction), nodes, nodes, gates=gates)
        assert missed(table) < 1e-10
        assert float(table.effects.abs().max()) > 1
        # What comes in is all there is: nothing of it is outside.
        assert float(table.outside.abs().max()) < 1e-10
        assert (table.incoming - table.dense().sum(2)).abs().max() < 1e-10


@pytest.mark.parametrize("hooks", [HOOKS, STREAM_LAST, HOOKS[1:]])
def test_edges_at_positions_add_up_too(model: HookedModel, hooks: tuple[str, ...]) -> None:
    """With the effects that attribution itself finds."""
    saes = sae_set("jumprelu", hooks, model)
    sources, targets = nodes_at(saes, range(FIRST, LENGTH)), nodes_at(saes, range(FIRST, LENGTH))
    [group] = token_pairs(3).groups(8)
    for direction in ("denoising", "noising"):
        table = edge_effects(batch_of(model, saes, direction), targets, sources)
        assert missed(table) < 1e-10
        plan = make_plan("atp", 5, 0.0, direction, "logit_difference", None, 0, 1)
        scores = scores_of(model, Sources(tuple(saes), saes), group, plan)
        keys = zip(
            scores["pair"],
            scores["site"],
            scores["role"],
            scores["latent"],
            scores["position"],
            strict=True,
        )
        found = dict(zip(keys, scores["effect"], strict=True))
        wanted = [
            [found.get((pair, str(n.site), n.role, n.latent, n.position), 0.0) for n in sources]
            for pair in range(3)
        ]
        assert np.abs(table.effects.numpy() - wanted).max() < 1e-10


@pytest.mark.parametrize("kind", [*tiny.ARCHITECTURES, "hooked_transformer"])
def test_every_kind_of_model(kind: str) -> None:
    """With the middle of the stream where there is one. Some of these norm in float32 whatever
    their type."""
    plain = kind in ("gpt2", "pythia")
    model = (
        tiny.hooked_transformer()
        if kind == "hooked_transformer"
        else tiny.bridge(kind, torch.float64)
    )
    hooks = (
        "blocks.0.hook_resid_post",
        "blocks.1.attn.hook_z",
        "blocks.1.hook_attn_out",
        "blocks.1.hook_resid_mid",
        "blocks.1.hook_mlp_out",
        "blocks.2.hook_resid_post",
    )
    if not model.has("resid_mid"):
        hooks = tuple(hook for hook in hooks if "resid_mid" not in hook)
    saes = sae_set("jumprelu", hooks, model, double=model.dtype == torch.float64)
    nodes = nodes_at(saes, [None])
    before = hooks_left(model.module)
    batch = batch_of(model, saes)
    for gates in ("secant", "local"):
        table = edge_effects(batch, nodes, nodes, gates=gates)
        size = float(table.dense().abs().max())
        assert missed(table) < (1e-10 if plain else 2e-5) * size
    incoming = table.incoming
    model.can_resume = False
    try:  # full forwards give the same
        again = edge_effects(batch_of(model, saes), nodes, nodes, gates="local")
    finally:
        model.can_resume = True
    assert (again.incoming - incoming).abs().max() < (1e-10 if plain else 2e-5) * size
    assert hooks_left(model.module) == before
    # Attention's output is the only way of z, and the middle of the stream that of both.
    ends = {
        (table.sources[s].site, getattr(table.targets[t], "site", None))
        for s, t in table.edges.tolist()
    }
    z, attn, mlp = (Site(1, "z"), Site(1, "attn_out"), Site(1, "mlp_out"))
    assert (z, attn) in ends and not ends & {(z, mlp), (z, None), (attn, mlp)}


def test_summed_edges_are_sums_over_positions(model: HookedModel) -> None:
    saes = sae_set("topk", HOOKS, model, normalize_activations="layer_norm")
    batch = batch_of(model, saes)
    summed = nodes_at(saes, [None])
    table = edge_effects(batch, summed, summed)
    each = nodes_at(saes, range(FIRST, LENGTH))
    apart = edge_effects(batch, each, each).dense()
    place = {node: i for i, node in enumerate(summed)}
    number = torch.tensor([place[replace(node, position=None)] for node in each])
    folded = torch.zeros(3, len(summed) + 1, len(summed), dtype=torch.float64)
    rows = torch.zeros(3, len(summed) + 1, len(each), dtype=torch.float64)
    rows.index_add_(1, torch.cat([number, torch.tensor([len(summed)])]), apart)
    folded.index_add_(2, number, rows)
    assert (folded - table.dense()).abs().max() < 1e-10


def test_the_first_position(model: HookedModel) -> None:
    """Where pairs differ from the first token on, its error is a node, and no latent is."""
    saes = sae_set("jumprelu", HOOKS, model)
    batch = batch_of(model, saes, first=0, length=6)
    nodes = nodes_at(saes, range(6))
    table = edge_effects(batch, nodes, nodes)
    assert missed(table) < 1e-10
    first = [i for i, node in enumerate(nodes) if node.position == 0]
    assert float(table.dense()[:, first][:, :, first].abs().max()) > 1e-3
    # In sums over positions it is with what is outside.
    summed = nodes_at(saes, [None])
    some = edge_effects(batch, summed, summed)
    assert float(some.outside[..., 1].abs().max()) > 1e-3
    wanted = table.dense()[:, -1].clone()
    wanted[:, first] = 0
    assert some.dense()[:, -1].sum(1) == pytest.approx(wanted.sum(1), abs=1e-10)
    assert some.incoming[:, -1] == pytest.approx(table.incoming[:, -1], abs=1e-10)


def test_what_is_outside(model: HookedModel) -> None:
    """Edges of sources that are not kept one by one are in the sums, by site and role."""
    saes = sae_set("gated", HOOKS, model, normalize_activations="layer_norm")
    batch = batch_of(model, saes)
    every, targets = nodes_at(saes, range(FIRST, LENGTH)), nodes_at(saes, [5, 9])
    whole = edge_effects(batch, targets, every)
    kept = [node for i, node in enumerate(every) if i % 3 == 0]
    some = edge_effects(batch, targets, kept)
    assert (some.incoming - whole.incoming).abs().max() < 1e-10
    dense = whole.dense()
    rest = torch.zeros_like(some.outside)
    roles = ("latent", "error", "offset")
    for i, node in enumerate(every):
        if node in kept:
            mine = some.dense()[:, :, kept.index(node)]
            assert (mine - dense[:, :, i]).abs().max() < 1e-10
        else:
            rest[:, :, SITES.index(node.site), roles.index(node.role)] += dense[:, :, i]
    assert (rest - some.outside).abs().max() < 1e-10


def swapped(pairs: PromptPairs) -> PromptPairs:
    texts = (torch.tensor(t) for t in (pairs.corrupted_tokens, pairs.clean_tokens))
    words = (torch.tensor(t) for t in (pairs.foil_tokens, pairs.answer_tokens))
    return from_tokens(*texts, *words)


def test_noising_is_denoising_of_the_swapped_pairs(model: HookedModel) -> None:
    """The same base run; write and metric both change their sign."""
    saes = sae_set("jumprelu", HOOKS, model)
    nodes = nodes_at(saes, [None])
    one = edge_effects(batch_of(model, saes), nodes, nodes)
    [group] = swapped(token_pairs(3)).groups(8)
    batch = Batch(model, Sources(tuple(saes), saes), group, logit_difference, "noising")
    other = edge_effects(batch, nodes, nodes)
    assert (one.weights - other.weights).abs().max() < 1e-10
    noising = edge_effects(batch_of(model, saes, "noising"), nodes, nodes)
    # Another base run, but positive is toward clean in both.
    both = torch.stack([one.effects.mean(0), noising.effects.mean(0)])
    assert float(torch.corrcoef(both)[0, 1]) > 0.5


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_float32_agrees(architecture: str) -> None:
    found = []
    for dtype in (torch.float64, torch.float32):
        model = tiny.bridge("gpt2", dtype)
        saes = sae_set(architecture, HOOKS, model, double=dtype == torch.float64)
        nodes = nodes_at(saes, [None])
        table = edge_effects(batch_of(model, saes), nodes, nodes, gates="secant")
        assert missed(table) < (1e-10 if dtype == torch.float64 else 2e-4)
        found.append(table)
    wide, narrow = (table.incoming for table in found)
    assert (wide - narrow).abs().max() < 1e-3 * wide.abs().max()
    wide, narrow = (table.weights for table in found)
    # Secants of small quotients hold fewer digits.
    assert (wide - narrow).abs().mean() < 1e-4 * wide.abs().mean() + 1e-5
    assert (wide - narrow).abs().max() < 2e-2 * wide.abs().max()


def test_saes_in_float32_on_another_type() -> None:
    model = tiny.bridge("gpt2", torch.float64)
    saes = sae_set("jumprelu", HOOKS, model, double=False)
    nodes = nodes_at(saes, [None])
    assert missed(edge_effects(batch_of(model, saes), nodes, nodes)) < 1e-3
    model = tiny.bridge("gpt2", torch.bfloat16)
    saes = sae_set("jumprelu", HOOKS, model, double=False)
    table = edge_effects(batch_of(model, saes), nodes, nodes, gates="local")
    assert missed(table) < 0.1 * float(table.effects.abs().max())


def test_a_latent_without_a_secant(model: HookedModel) -> None:
    """One that reads nothing but is on by its bias, and falls out of the largest k: no change of
    what arrives explains it."""
    saes = sae_set("topk", HOOKS[:4], model)
    module: Any = saes[SITES[3]].module
    module.W_enc.data[:, 7] = 0
    nodes = [Node(SITES[3], "latent", 7, place) for place in range(FIRST, LENGTH)]
    found = []
    for bias in torch.linspace(0.5, 6, 12).tolist():
        module.b_enc.data[7] = bias
        table = edge_effects(batch_of(model, saes), nodes, nodes)
        assert float(table.weights[:, table.edges[:, 1] < len(nodes)].abs().sum()) == 0
        found.append(table.unsteady.sum(0))
    touched = torch.stack(found)
    assert torch.equal(touched[:, 0], touched[:, 1])
    assert float(touched.max()) > 0.1


@pytest.mark.parametrize(("architecture", "more"), [*CASES, ("standard", {"centred": True})])
def test_preactivations_are_coefficients_where_gates_are_open(
    model: HookedModel, architecture: str, more: dict[str, Any]
) -> None:
    more = dict(more)
    mean = more.pop("centred", False)
    saes = sae_set(architecture, HOOKS[:1], model, **more)
    sae = (centred(saes) if mean else saes)[SITES[0]]
    x = 3 * torch.randn(6, 32, dtype=torch.float64) + 1
    found, before = sae.coefficients(x), sae.preactivations(x)
    is_open = found != 0
    assert 20 < int(is_open.sum()) < found.numel() - 20
    assert torch.allclose(found[is_open], before[is_open], atol=1e-12)
    latents = torch.randint(48, (6,))
    assert torch.allclose(sae.preactivations(x, latents), before.gather(1, latents[:, None])[:, 0])
    parts = sae.decompose(x[None])
    assert torch.allclose(sae.offsets(x), parts.offset[0])
    assert torch.allclose(sae.offsets(x) + found @ sae.rows + parts.error[0], x)
    one = x[:1].requires_grad_()
    steep = [torch.autograd.grad(sae.preactivations(one)[0, j], one)[0].norm() for j in range(48)]
    assert torch.allclose(torch.stack(steep), sae.encoder_norms, rtol=0.5)
