"""AND and OR: features that matter in one direction only.

LD = 2 AND(a, b) + 3 OR(c, d). All four are 1 in clean prompts, where LD is 5, and 0 in corrupted
ones, where it is 0. One input of an AND does nothing in the corrupted run and everything in the
clean one; one input of an OR the reverse.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from circuits.attribute import Attribution, attribute
from circuits.circuit import REFERENCES, circuit
from circuits.circuit.evaluate import Places, metrics_of
from circuits.circuit.selections import NodeTable, Selections
from circuits.edges import edge_attribution
from circuits.graph import Node
from circuits.prompts import PromptPairs
from tests.by_hand import LD, edges_found
from tests.compiled import gates
from tests.planted import END, Network


@cache
def network() -> tuple[Network, dict[str, Node]]:
    return gates()


def pairs_of(made: Network, others: tuple[int, ...]) -> PromptPairs:
    """others: how much of a feature that nobody reads is in the clean prompts."""
    clean = [f"bos a1 b1 c1 d1 x{x} filler filler" for x in others]
    corrupted = [f"bos a0 b0 c0 d0 x{(x + 1) % 4} filler filler" for x in others]
    return made.pairs(clean, corrupted, [("yes", "no")] * len(others))


def effects(method: str, direction: str) -> Attribution:
    made, _ = network()
    return attribute(
        made.model,
        pairs_of(made, (0, 1)),
        saes=made.saes,
        method=method,
        direction=direction,
        audit_pairs=0,
        progress=False,
    )


CASES = [
    # Put into the corrupted run one by one.
    ("exact", "denoising", {"c": 3, "d": 3, "AND": 2, "OR": 3}, 3 / 5),
    # Taken out of the clean run one by one.
    ("exact", "noising", {"a": 2, "b": 2, "AND": 2, "OR": 3}, 2 / 5),
    # Averaged over the way: AND opens at its middle, and there the OR is full. Both share alike.
    ("ig", "denoising", {"a": 1, "b": 1, "c": 1.5, "d": 1.5, "AND": 2, "OR": 3}, 1),
    ("ig", "noising", {"a": 1, "b": 1, "c": 1.5, "d": 1.5, "AND": 2, "OR": 3}, 1),
    # Slopes at the corrupted run: all neurons are closed there. At the clean run AND's is open, and
    # more of the OR does not help.
    ("atp", "denoising", {"AND": 2, "OR": 3}, 0),
    ("atp", "noising", {"a": 2, "b": 2, "AND": 2, "OR": 3}, 2 / 5),
]


@pytest.mark.parametrize(("method", "direction", "wanted", "faithful"), CASES)
def test_each_method_finds_what_it_can_see(
    method: str, direction: str, wanted: dict[str, float], faithful: float
) -> None:
    """And the circuit has the gates whose inputs were found: 3 of 5 is OR alone, 2 of 5 AND."""
    made, nodes = network()
    found = effects(method, direction)
    result = circuit(
        made.model,
        found.prompts,
        saes=made.saes,
        attribution=found,
        evaluate_on=pairs_of(made, (2, 3)),
        threshold=1e-6,
        progress=False,
    )
    given = {one.node: one.effect for one in result.circuit.nodes}
    assert given == pytest.approx({nodes[name]: effect for name, effect in wanted.items()})
    row = result.summary().set_index(["set", "reference"]).loc[("unseen", "corrupted")]
    assert row["faithfulness"] == pytest.approx(faithful)
    assert row["completeness"] == pytest.approx(0)  # both gates themselves are always in it
    if len(wanted) == 6:
        costs = {"a": 2, "b": 2, "c": 0, "d": 0, "AND": 2, "OR": 3}
        removed = {one.node: one.removal for one in result.circuit.nodes}
        assert removed == pytest.approx({nodes[n]: cost / 5 for n, cost in costs.items()})


def test_one_input_of_an_or_is_faithful_and_not_complete() -> None:
    """With an SAE at the inputs alone, all 16 circuits of them. a, b and c are all it takes, but
    what is left, d, makes 3 of the 5 by itself. Outside of the circuit inputs are 0, or one half,
    their mean."""
    made, nodes = network()
    table = NodeTable.of([nodes[name] for name in "abcd"], [nodes["a"].site])
    every = np.array(list(product([False, True], repeat=4)))
    pairs, places = pairs_of(made, (0, 1, 2)), Places(False, "by hand", END + 1)
    chosen = Selections.of(table, every)
    m, whole = metrics_of(made.model, made.saes, pairs, chosen, places, REFERENCES)
    assert set(whole) == {5.0}
    for inside, found in zip(every, m.mean(2), strict=True):
        for reference, value in zip(REFERENCES, found, strict=True):
            a, b, c, d = np.where(inside, 1.0, 0.5 if reference == "mean" else 0.0)
            assert value == pytest.approx(2 * max(a + b - 1, 0) + 3 * min(c + d, 1))
    share = {"".join(np.array([*"abcd"])[x]): y / 5 for x, y in zip(every, m[:, 0, 0], strict=True)}
    assert share["abc"] == pytest.approx(1) and share["d"] == pytest.approx(3 / 5)


def test_edges_have_the_slopes_of_the_run_they_start_from() -> None:
    """In the corrupted run no input moves a gate. In the clean run each input of AND moves it by
    all of its way, which its secant shares out between them; those of OR do not move it."""
    made, nodes = network()
    every = list(nodes.values())
    for direction, inputs in (("denoising", ""), ("noising", "ab")):
        table = edge_attribution(
            made.model,
            made.saes,
            pairs_of(made, (0, 1)),
            every,
            every,
            direction=direction,
            progress=False,
        )
        wanted: dict[Any, float] = {(nodes[name], nodes["AND"]): 1.0 for name in inputs}
        wanted |= {(nodes["AND"], nodes.get(LD)): 2.0, (nodes["OR"], nodes.get(LD)): 3.0}
        assert edges_found(table) == pytest.approx(wanted)
