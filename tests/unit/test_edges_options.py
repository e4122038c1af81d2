"""Edges as tables over pairs: batches, chunks and passes; what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from circuits.attribute import AttributionError, attribute
from circuits.attribute.batch import Batch, Sources
from circuits.edges import EdgeError, edge_attribution, edge_effects
from circuits.edges import graph as edge_graph
from circuits.errors import CircuitsError
from circuits.graph import Circuit, CircuitNode, Node, Token
from circuits.metrics import MetricError, logit_difference, minus_kl_to_clean
from circuits.models.hooked import HookedModel
from circuits.prompts import PromptPairs
from circuits.sites import Site, SiteError
from tests import tiny
from tests.edges import HOOKS, SITES, batch_of, nodes_at
from tests.pairs import token_pairs
from tests.unit.test_attribute import sae_set
from tests.unrolled import thinking, with_slots

STREAM_LAST = (*HOOKS[:3], "blocks.3.hook_resid_post")


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("gpt2", torch.float64)


def mixed_pairs() -> PromptPairs:
    """Of two lengths, and with two first differences in one batch."""
    parts = (token_pairs(2), token_pairs(2, seed=2, first=6), token_pairs(1, length=8, first=2))
    fields = {
        name: tuple(one for part in parts for one in getattr(part, name))
        for name in parts[0].__dataclass_fields__
        if name != "prepend_bos"
    }
    return PromptPairs(**fields, prepend_bos=False)


def test_batches_chunks_and_passes_do_not_change_numbers(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    saes = sae_set("jumprelu", STREAM_LAST, model)
    targets, sources = nodes_at(saes, [4, 5, 7])[::7], nodes_at(saes, range(2, 8))[::9]
    pairs = mixed_pairs()

    def run(**more: Any) -> Any:
        return edge_attribution(model, saes, pairs, targets, sources, progress=False, **more)

    usual = run()
    assert usual.values.shape == (5, len(usual.edges))
    found = [run(batch_size=1), run(chunk=1), run(batch_size=2, chunk=7)]
    monkeypatch.setattr(edge_graph, "_stops", lambda targets, sites, start: [8])
    found.append(run())
    monkeypatch.setattr(edge_graph, "_stops", lambda targets, sites, start: [5, 6, 8])
    found.append(run())
    monkeypatch.undo()

    grad, loops = torch.autograd.grad, []

    def one_at_a_time(*args: Any, is_grads_batched: bool = False, **more: Any) -> Any:
        if is_grads_batched:
            loops.append(1)
            raise RuntimeError("no batching rule")
        return grad(*args, **more)

    monkeypatch.setattr(torch.autograd, "grad", one_at_a_time)
    found.append(run())
    assert loops
    for other in found:
        assert np.abs(other.values - usual.values).max() < 1e-10
        assert np.allclose(other.outside["weight"], usual.outside["weight"], atol=1e-10)
        assert np.allclose(other.incoming["low"], usual.incoming["low"], atol=1e-10)


def test_the_tables(model: HookedModel) -> None:
    saes = sae_set("topk", HOOKS, model)
    every = [Node(SITES[3], "latent", j, 9) for j in range(48)]
    incoming = edge_effects(batch_of(model, saes), every, []).incoming[:, :-1]
    strong = every[int(incoming.abs().sum(0).argmax())]
    targets = [strong, Node(SITES[3], "error", -1, 9), Node(SITES[4], "error", -1, 9)]
    sources = [Node(SITES[0], "error", -1, 5), Node(SITES[2], "error", -1, 9), *targets]
    pairs = token_pairs(4)
    found = edge_attribution(model, saes, pairs, targets, sources, progress=False)
    edges: Any = found.edges
    assert found.record["gates"] == "secant" and 0 <= found.record["unsteady"] < 1
    assert list(found.closed["site"]) == [*map(str, SITES), "all"]
    assert found.closed["share"].between(0.01, 0.9).all()
    assert len(found.effects) == 5 and len(found.incoming) == 4
    row = edges[(edges["source_site"] == str(SITES[0])) & (edges["target_role"] == "error")].iloc[0]
    assert (row["source_position"], row["target_site"]) == (5, str(SITES[3]))
    assert row["low"] <= row["weight"] <= row["high"]
    assert row["weight"] == pytest.approx(found.values[:, int(row.name)].mean())
    # No edge to itself, none back, none across the stream at layer 2.
    ends = set(zip(edges["source_site"], edges["target_site"].fillna("metric"), strict=True))
    assert ends == {
        (str(SITES[0]), str(SITES[3])),
        (str(SITES[2]), str(SITES[3])),
        (str(SITES[3]), str(SITES[4])),
        (str(SITES[3]), "metric"),
        (str(SITES[4]), "metric"),
    }
    total = edges.groupby("target_role")["weight"].sum()["metric"]
    outside: Any = found.outside
    total += outside[outside["target_role"] == "metric"]["weight"].sum()
    assert total == pytest.approx(found.incoming["weight"].iloc[-1])
    graph = found.between(sources)
    circuit = Circuit(
        tuple(CircuitNode(node, 0.0) for node in sources),
        graph,
        SITES,
        (Token((), ()),) * 10,
        "",
        False,
        {},
    )
    assert len(circuit.edges) == len(graph) > 5
    assert [abs(e.weight) for e in graph] == sorted((abs(e.weight) for e in graph), reverse=True)
    alone = edge_attribution(model, saes, pairs, [], [], progress=False)
    assert alone.edges.empty and len(alone.incoming) == 1
    assert float(alone.incoming["weight"].iloc[0]) == pytest.approx(
        float(found.incoming["weight"].iloc[-1])
    )


REFUSED: list[tuple[dict[str, Any], type[CircuitsError], str]] = [
    ({"gates": "soft"}, EdgeError, "unknown gates 'soft': expected secant, local"),
    ({"batch_size": 0}, EdgeError, "batch_size 0 must be at least 1"),
    ({"chunk": -1}, EdgeError, "chunk -1 must be at least 1"),
    (
        {"targets": [Node(Site(0, "z"), "error", -1, 5)]},
        EdgeError,
        r"z\.0 error @5: there is no SAE",
    ),
    ({"targets": [Node(SITES[1], "latent", 48, 5)]}, EdgeError, "latent 48, expected 0 to 47"),
    ({"sources": [Node(SITES[1], "error", 3, 5)]}, EdgeError, "latent 3, expected -1 to -1"),
    ({"sources": [Node(SITES[1], "error", -1, 8)]}, EdgeError, "positions 0 to 7"),
    ({"targets": [Node(SITES[1], "latent", 4, 0)]}, EdgeError, "everything is error"),
    ({"targets": [Node(SITES[1], "offset", -1, 4)]}, EdgeError, "does not normalise"),
    (
        {"targets": [Node(SITES[1], "error", -1, 4), Node(SITES[1], "error")]},
        EdgeError,
        "some nodes have a position and some stand for all",
    ),
    ({"direction": "both"}, AttributionError, "unknown direction 'both'"),
    ({"metric": "magic"}, MetricError, "unknown metric 'magic'"),
    (
        {"metric": minus_kl_to_clean, "direction": "noising"},
        AttributionError,
        "slope there is 0",
    ),
    ({"metric": lambda logits, targets: logits}, MetricError, "expected one number a row"),
    (
        {"hooks": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre")},
        SiteError,
        "are one tensor",
    ),
]


@pytest.mark.parametrize(("options", "kind", "message"), REFUSED)
def test_what_cannot_be_asked_for_is_refused_before_any_pass(
    model: HookedModel,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    kind: type[CircuitsError],
    message: str,
) -> None:
    def never(*args: Any, **more: Any) -> Any:
        raise AssertionError("a pass was run")

    for name in ("forward", "forward_all", "forward_keeping", "forward_from"):
        monkeypatch.setattr(model.adapter, name, never)
    options = dict(options)
    saes = sae_set("standard", options.pop("hooks", HOOKS), model)
    given = [options.pop(name, []) for name in ("targets", "sources")]
    with pytest.raises(kind, match=message):
        edge_attribution(model, saes, mixed_pairs(), *given, progress=False, **options)


def test_edges_need_saes_with_their_errors(model: HookedModel) -> None:
    saes = sae_set("standard", HOOKS, model)
    [group] = token_pairs(2).groups(8)
    for sources, message in (
        (Sources(SITES, None), "edges are between the nodes of SAEs"),
        (Sources(SITES, saes, errors=False), "the SAEs' errors kept"),
    ):
        batch = Batch(model, sources, group, logit_difference, "denoising")
        with pytest.raises(EdgeError, match=message):
            edge_effects(batch, [], [])


def test_unknown_roles_are_refused(model: HookedModel) -> None:
    node = Node(SITES[1], "error", -1, 4)
    object.__setattr__(node, "role", "head")
    saes = sae_set("standard", HOOKS, model)
    with pytest.raises(EdgeError, match="unknown role 'head', expected latent, error, offset"):
        edge_attribution(model, saes, token_pairs(1), [node], [], progress=False)


@pytest.mark.parametrize("mode", ["rerolled", "frozen"])
def test_edges_and_attribution_treat_thoughts_alike(mode: Any) -> None:
    model = thinking()
    pairs = with_slots(token_pairs(1))
    saes = sae_set("jumprelu", HOOKS, model)
    nodes = nodes_at(saes, [4, 8])[::9]
    with model.thinking(mode):
        found = edge_attribution(model, saes, pairs, nodes, nodes, progress=False)
        effects: Any = attribute(
            model, pairs, saes=saes, audit_pairs=0, progress=False, force=True
        ).scores
    assert found.record["thoughts"] == mode
    keys = ["site", "role", "latent", "position"]
    known = effects.set_index([effects[key].astype(str) for key in keys])["effect"]
    for row in found.effects.to_dict("records"):
        key = tuple(str(row[f"source_{key}"]) for key in keys)
        assert row["weight"] == pytest.approx(known.get(key, 0.0), abs=1e-10)
