"""What any part of a planted circuit is worth, node by node and edge by edge."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import pytest

from circuits.circuit import REFERENCES
from circuits.circuit.evaluate import Places, metrics_of, wired_metrics_of
from circuits.circuit.selections import NodeTable, Selections
from circuits.circuit.wired import Wiring
from circuits.graph import Node
from circuits.sites import forward_order
from tests.by_hand import Known, along, named
from tests.planted import END, GRAPHS, Network, amounts, known, pairs_of
from tests.unit.test_planted import ATTENTION, NUMBERS, found_circuit, network

PLACES = Places(False, "by hand", END + 1, (("END", END),))


def table_of(made: Network, nodes: Mapping[str, Node]) -> NodeTable:
    return NodeTable.of(list(dict.fromkeys(nodes.values())), forward_order(made.saes))


def by_hand(hand: Known, **how: frozenset) -> np.ndarray:
    return np.array([hand.metric(name, **how) for name in REFERENCES])


@pytest.mark.parametrize("attention", ATTENTION)
def test_every_set_of_nodes(attention: str) -> None:
    """All 1,024 sets of planted nodes, with every reference."""
    made, nodes = network(attention=attention)
    given, names = amounts(3, 4), list(nodes)
    pairs, hand = pairs_of(made, given), known(given, GRAPHS[attention])
    every = (np.arange(2 ** len(names))[:, None] >> np.arange(len(names)) & 1).astype(bool)
    chosen = Selections.of(table_of(made, nodes), every)
    m, whole = metrics_of(made.model, made.saes, pairs, chosen, PLACES, REFERENCES)
    for inside, found in zip(every, m, strict=True):
        kept = frozenset(n for n, there in zip(names, inside, strict=True) if there)
        assert np.abs(found - by_hand(hand, kept=kept)).max() < 1e-9
    assert np.abs(whole - m[-1]).max() < 1e-9
    assert np.ptp(m[:, 0], axis=0).min() > 10


@pytest.mark.parametrize("missing", [(), ("u2", "e2"), ("u", "q", "zu", "zq", "h")])
def test_sets_of_edges(missing: tuple[str, ...]) -> None:
    """All edges, none, all but one, and 60 sets at random, with every reference."""
    made, nodes = network(missing=missing)
    given, names = amounts(3, 5), named(nodes)
    pairs, hand = pairs_of(made, given), known(given)
    table = table_of(made, nodes)
    place = {table.node(i): i for i in range(len(table))}
    every = list(hand.edges(nodes))
    draw = random.Random(0)
    sets = [every, [], *([e for e in every if e != out] for out in every)]
    sets += [[e for e in every if draw.random() < 0.7] for _ in range(60)]
    circuits = [
        (range(len(table)), [(place[a], None if b is None else place[b]) for a, b in edges])
        for edges in sets
    ]
    wiring = Wiring.of(table, circuits)
    m, whole = wired_metrics_of(made.model, made.saes, pairs, wiring, PLACES, REFERENCES)
    for edges, found in zip(sets, m, strict=True):
        assert np.abs(found - by_hand(hand, edges=along(edges, names))).max() < 1e-9
    assert np.abs(m[0] - whole).max() < 1e-9
    # Every edge matters: without it the mean is another one.
    assert np.abs((m[2 : 2 + len(every), 0] - whole).mean(1)).min() > 1


def test_what_is_the_same_in_both_runs_is_missed_by_the_reference_zero_alone() -> None:
    """All prompts end with k = 1 now, which adds 10: LD is 60, and 20 on corrupted prompts. K has
    no effect, so it is in no circuit. With zero outside, where 7 is what the SAEs' bias makes, the
    circuit has 50 - 7 of 60 - 7, and its complement the 10 of K."""
    made, nodes = network()
    given = [(clean | {"k": 1}, corrupted | {"k": 1}) for clean, corrupted in NUMBERS]
    result = found_circuit(made, given[:2], given[2:], threshold=1e-9)
    assert result.circuit.node_set == set(nodes.values())
    found = result.summary().set_index(["set", "reference"])
    wanted = {"corrupted": (1, 0), "mean": (1, 0), "zero": (43 / 53, 10 / 53)}
    for reference, (faithful, complete) in wanted.items():
        row = found.loc[("unseen", reference)]
        assert row["faithfulness"] == pytest.approx(faithful, abs=1e-9)
        assert row["completeness"] == pytest.approx(complete, abs=1e-9)
    # With K at the two sites of the stream it is all there is.
    constant = [made.node(site, "K", END) for site in ("resid_pre.0", "resid_post.1")]
    table = NodeTable.of([*nodes.values(), *constant], forward_order(made.saes))
    both = Selections.of(table, np.ones((1, len(table)), dtype=bool))
    pairs = pairs_of(made, given)
    m, whole = metrics_of(made.model, made.saes, pairs, both, PLACES, REFERENCES)
    assert np.abs(m[0] - whole).max() < 1e-9 and set(whole.round(9)) == {60.0}
