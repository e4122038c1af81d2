"""Circuits that were planted, found again: every node, every edge, and what they are worth."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from circuits.attribute import attribute
from circuits.circuit import CircuitResult, circuit
from circuits.circuit.candidates import Candidates
from circuits.edges import EdgeAttribution, edge_attribution
from circuits.graph import Node
from circuits.prompts import PromptPairs
from circuits.sites import Site
from tests.by_hand import LD, Known, check, edges_found, edges_in, named
from tests.planted import (
    GRAPHS,
    PLANTED,
    Amounts,
    Network,
    amounts,
    known,
    pairs_of,
    planted,
)

ATTENTION = ("z", "attn_out")
# LD is 24 + 9 + 10 + 7 = 50 on the clean prompts and 0 + 3 + 0 + 7 = 10 on the corrupted ones.
NUMBERS: Amounts = [
    ({"u": 4, "p": 3, "e": 2, "t": t, "d": d, "c": 2}, {"p": 1, "t": 1, "c": t})
    for t, d in ((2, 1), (0, 3), (2, 3), (0, 2))
]


@cache
def network(**options: Any) -> tuple[Network, dict[str, Node]]:
    """Each of them is made once."""
    return planted(**options)


def found_circuit(made: Network, on: Amounts, judged: Amounts, **options: Any) -> CircuitResult:
    return circuit(
        made.model,
        pairs_of(made, on),
        saes=made.saes,
        evaluate_on=pairs_of(made, judged),
        progress=False,
        **{"sizes": (0.1, 1.0), **options},
    )


def parts(
    made: Network, pairs: PromptPairs, sites: tuple[Site, ...] | None = None, **options: Any
) -> tuple[Candidates, EdgeAttribution]:
    """The nodes that were seen, and the edges between those with an effect."""
    found = attribute(
        made.model, pairs, saes=made.saes, sites=sites, audit_pairs=0, progress=False, **options
    )
    candidates = Candidates.of(found)
    nodes = [candidates.table.node(i) for i in range(candidates.count(1e-6))]
    saes = made.saes.at(candidates.table.sites)
    direction = options.get("direction", "denoising")
    edges = edge_attribution(
        made.model, saes, pairs, nodes, nodes, direction=direction, progress=False
    )
    return candidates, edges


@pytest.mark.parametrize("attention", ATTENTION)
def test_the_network_is_what_it_is_said_to_be(attention: str) -> None:
    """The metric, every planted node's value, and no error anywhere."""
    made, nodes = network(attention=attention)
    given = amounts(6, 1)
    pairs, hand = pairs_of(made, given), known(given, GRAPHS[attention])
    for tokens, inputs, values in (
        (pairs.clean_tokens, hand.clean, hand.runs[0]),
        (pairs.corrupted_tokens, hand.corrupted, hand.runs[1]),
    ):
        logits, kept = made.model.cache(torch.tensor(tokens), list(made.saes))
        difference = (logits[:, 1] - logits[:, 2]).tolist()
        assert difference == (6 * inputs["u"] + 3 * inputs["p"] + 5 * inputs["e"] + 7).tolist()
        assert difference == hand.graph.metric(inputs).tolist()
        split = {site: made.saes[site].decompose(kept[site]) for site in made.saes}
        assert all(float(x.error[:, 1:].abs().max()) < 1e-12 for x in split.values())
        latents = {site: x.latents.dense() for site, x in split.items()}
        for name, node in nodes.items():
            found = latents[node.site][:, node.position, node.latent]
            assert found.tolist() == values[name].tolist()


def test_in_plain_numbers() -> None:
    """All pairs have u 4 -> 0, p 3 -> 1, e 2 -> 0, and LD 50 -> 10: of the 40, 6 x 4 = 24 are u's,
    3 x 2 = 6 p's and 5 x 2 = 10 e's. H is 30 -> 6 and makes 2 x 24 = 48 of it, of which Q2, 9 -> 3,
    takes 3 x 6 = 18 back."""
    made, nodes = network()
    result = found_circuit(made, NUMBERS[:2], NUMBERS[2:], threshold=1.0)
    effects = {"u": 24, "zu": 24, "u2": 24, "p": 6, "q": 6, "zq": 6, "q2": 6}
    effects |= {"e": 10, "e2": 10, "h": 48}
    assert {one.node: one.effect for one in result.circuit.nodes} == {
        nodes[name]: effect for name, effect in effects.items()
    }
    edges = {"u zu": 24, "zu u2": 24, "u2 h": 24, "p q": 6, "q zq": 6, "zq q2": 6, "q2 h": 24}
    edges |= {"q2 LD": -18, "e e2": 10, "e2 LD": 10, "h LD": 48}
    ends = [edge.split() for edge in edges]
    wanted = [(nodes[a], None if b == LD else nodes[b]) for a, b in ends]
    assert edges_in(result.circuit) == dict(zip(wanted, edges.values(), strict=True))
    # A node that is taken out takes its effect with it: everything is linear here.
    assert {one.node: one.removal for one in result.circuit.nodes} == {
        nodes[name]: effect / 40 for name, effect in effects.items()
    }
    for column, value in (("faithfulness", 1.0), ("completeness", 0.0), ("errors_out", 1.0)):
        assert set(result.summary()[column].dropna()) == {value}


WAYS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"attention": "z"}, {"threshold": 1e-9}),
    ({"attention": "attn_out"}, {"size": 10, "method": "ig", "by": "mean"}),
    ({"architecture": "standard"}, {"size": 10, "method": "exact"}),
    (
        {"stream": "resid_mid.1", "attention": "attn_out"},
        {"threshold": 1e-9, "by": "zero", "batch_size": 50},
    ),
    ({"stream": "resid_pre.2", "missing": ("zu", "h")}, {"threshold": 1e-9}),
    ({"dtype": torch.float32}, {"threshold": 1e-4}),
    ({"missing": ("u2", "e2", "q", "zq")}, {"threshold": 1e-9, "by": "mean"}),
    # 117 nodes were seen.
    ({}, {"reach": 0.999, "sizes": tuple(n / 117 for n in range(1, 20))}),
]


@pytest.mark.parametrize(("network_options", "options"), WAYS)
def test_the_planted_circuit_is_found_exactly(
    network_options: dict[str, Any], options: dict[str, Any]
) -> None:
    made, nodes = network(**network_options)
    on, judged = amounts(6, 2), amounts(7, 3)
    result = found_circuit(made, on, judged, **options)
    graph = GRAPHS[network_options.get("attention", "z")]
    check(result, nodes, known(on, graph), known(judged, graph))


def test_summed_over_positions() -> None:
    """U2, Q2 and H are there at the tokens between as well, where nothing reads them."""
    made, nodes = network()
    on, judged = amounts(6, 2), amounts(7, 3)
    result = found_circuit(made, on, judged, threshold=1e-9, summed=True)
    everywhere = {name: replace(node, position=None) for name, node in nodes.items()}
    check(result, everywhere, known(on), known(judged))


def test_from_the_clean_run() -> None:
    """Where everything is linear, what is lost from the clean run is what is won in the other."""
    made, nodes = network()
    on, judged = amounts(6, 2), amounts(7, 3)
    pairs = pairs_of(made, on)
    found = attribute(
        made.model, pairs, saes=made.saes, direction="noising", audit_pairs=0, progress=False
    )
    result = found_circuit(made, on, judged, attribution=found, size=10)
    check(result, nodes, known(on), known(judged))
    _, edges = parts(made, pairs, direction="noising")
    assert edges_found(edges) == pytest.approx(known(on).edges(nodes), abs=1e-9)


MISSING = [(name,) for name in PLANTED.names]
MISSING += [("u2", "e2"), ("u2", "q2", "e2"), ("zu", "zq"), tuple(PLANTED.names)]


@pytest.mark.parametrize("missing", MISSING, ids="-".join)
def test_what_a_dictionary_misses_is_in_the_error(missing: tuple[str, ...]) -> None:
    """The error at that token takes the feature's place in the circuit, with its effect and its
    edges; of several features that are missed there, with the sum."""
    made, nodes = network(missing=missing)
    given, names = amounts(4, 6), named(nodes)
    hand = known(given)
    assert {n for n, node in nodes.items() if node.role == "error"} == set(missing)
    candidates, edges = parts(made, pairs_of(made, given))
    check_parts(candidates, edges, hand, nodes)
    assert len(names) == candidates.count(1e-6)


def check_parts(
    candidates: Candidates, edges: EdgeAttribution, hand: Known, nodes: dict[str, Node]
) -> None:
    """Nodes with effects and the edges between them."""
    names = named(nodes)
    strongest = {candidates.table.node(i): candidates.effect[i] for i in range(len(names))}
    wanted = {node: hand.effect(mine) for node, mine in names.items()}
    assert strongest == pytest.approx(wanted, abs=1e-9)
    assert np.abs(candidates.effect[len(names) :]).max() < 1e-9
    assert edges_found(edges) == pytest.approx(hand.edges(nodes), abs=1e-9)


CUTS = [
    ("resid_pre.0", "mlp_out.2"),
    ("resid_pre.0", "z.1", "mlp_out.2"),
    ("mlp_out.0", "resid_post.1"),
    ("z.1",),
    ("resid_pre.0",),
    ("mlp_out.0", "z.1", "mlp_out.2"),
]


@pytest.mark.parametrize("sites", CUTS, ids=" ".join)
def test_with_fewer_sites_edges_lead_over_those_that_are_left_out(sites: tuple[str, ...]) -> None:
    """Such as p to the metric: 12 for each unit by way of H, and -9 by way of Q2 alone."""
    made, nodes = network()
    given = amounts(4, 6)
    there = {name: node for name, node in nodes.items() if str(node.site) in sites}
    whole = known(given)
    hand = Known(PLANTED.only(list(there)), *whole.runs)
    if sites == CUTS[0]:
        assert hand.graph.weights["p", LD] == -9 and hand.graph.weights["p", "h"] == 6
    candidates, edges = parts(made, pairs_of(made, given), tuple(map(Site.parse, sites)))
    check_parts(candidates, edges, hand, there)
