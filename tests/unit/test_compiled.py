"""Programs compiled into transformers, read back: which letter at which position is copied where,
and what does not show."""

from __future__ import annotations

import random
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from circuits.attribute import attribute
from circuits.circuit import CircuitResult, apply_circuit, circuit
from circuits.circuit.candidates import Candidates
from circuits.circuit.evaluate import metrics_of, wired_metrics_of
from circuits.circuit.selections import NodeTable, Selections
from circuits.circuit.wired import Wiring
from circuits.edges import edge_attribution
from circuits.graph import Node
from circuits.patch.ability import CannotDo
from circuits.prompts import PromptPairs
from circuits.sites import forward_order
from tests.by_hand import LD, Graph, Known, check, edges_found
from tests.compiled import GAIN, LENGTH, LETTERS, backwards, choice, reversal
from tests.planted import Network

# Where a letter is on its way: site, what it is called there, and at which named position.
ONE_HOP = [
    ("resid_pre.0", "", "source"),
    ("z.0", "z ", "END"),
    ("resid_post.0", "NEXT ", "END"),
]
TWO_HOPS = [
    ("resid_pre.0", "", "source"),
    ("z.0", "z ", "way"),
    ("resid_post.0", "BEFORE ", "way"),
    ("z.1", "z ", "END"),
    ("resid_post.1", "NEXT ", "END"),
]
STEPS = {1: ONE_HOP, 2: TWO_HOPS}


@cache
def program(hops: int, sites: tuple[str, ...] | None = None) -> Network:
    return reversal(hops, sites)


def words(written: int, seed: int) -> list[tuple[str, int]]:
    """Each letter is asked for once and changes places with another one once; the other two are
    any, these again too."""
    draw = random.Random(seed)
    source, made = LENGTH - written, []
    for number, asked in enumerate(LETTERS):
        letters = [draw.choice(LETTERS) for _ in range(LENGTH)]
        other = draw.choice([place for place in range(1, LENGTH + 1) if place != source])
        letters[source - 1] = asked
        letters[other - 1] = LETTERS[(number + 1 + seed) % len(LETTERS)]
        made.append(("".join(letters), other))
    return made


def known(pairs: PromptPairs, steps: list[tuple[str, str, str]]) -> Known:
    """Every letter goes its way by itself, as 1 or 0. The answer's letter adds the gain at the end,
    the foil's takes it off."""
    weights: dict[tuple[str, str], Any] = {}
    answer, foil = np.array(pairs.answers), np.array(pairs.foils)
    names = [f"{site} " for site, _, _ in steps]
    for c in LETTERS:
        weights |= {(a + c, b + c): 1.0 for a, b in pairwise(names)}
        weights[names[-1] + c, LD] = GAIN * (1.0 * (answer == c) - (foil == c))
    runs = [{names[0] + c: 1.0 * (letter == c) for c in LETTERS} for letter in (answer, foil)]
    return Known(Graph(weights), *runs)


def way_of(made: Network, pairs: PromptPairs, steps: list[tuple[str, str, str]]) -> dict[str, Node]:
    places = pairs.positions[0]
    return {
        f"{site} {c}": made.node(site, kind + c, places[place])
        for site, kind, place in steps
        for c in LETTERS
    }


@cache
def read_back(
    hops: int, written: int, sites: tuple[str, ...] | None = None
) -> tuple[CircuitResult, PromptPairs, PromptPairs]:
    """(what is found, on these pairs, judged on those)."""
    made = program(hops, sites)
    on, judged = (backwards(made, words(written, seed), written) for seed in (1, 3))
    result = circuit(
        made.model,
        on,
        saes=made.saes,
        evaluate_on=judged,
        threshold=1e-9,
        sizes=(0.1, 1.0),
        progress=False,
    )
    return result, on, judged


CASES = [(hops, written) for hops in (1, 2) for written in range(LENGTH)]


@pytest.mark.parametrize(("hops", "written"), CASES)
def test_a_program_is_read_back(hops: int, written: int) -> None:
    """Of the letters that changed places only the one that is asked for is there, at its place and
    on its way; what was written already differs as well, and is not. In two hops the way leads over
    the position after the letter's, in one from it to the last."""
    result, on, judged = read_back(hops, written)
    source = LENGTH - written
    assert on.positions[0] == {"source": source, "way": source + 1, "END": LENGTH + 1 + written}
    nodes, steps = way_of(program(hops), on, STEPS[hops]), STEPS[hops]
    check(result, nodes, known(on, steps), known(judged, steps), ("corrupted", "mean"))
    assert {one.effect for one in result.circuit.nodes} == {GAIN / 4}  # 2 pairs of 8 have it


def test_both_programs_write_the_same() -> None:
    """Every letter of every word, whatever the circuit."""
    for written in range(LENGTH):
        pairs = backwards(program(1), words(written, 1), written)
        tokens = torch.tensor(pairs.clean_tokens)
        logits = [program(hops).model.run(tokens) for hops in (1, 2)]
        assert torch.equal(*logits)
        assert logits[0].argmax(1).tolist() == list(pairs.answer_tokens)
        assert set(logits[0].flatten().tolist()) == {0.0, GAIN}


@pytest.mark.parametrize("written", [0, 2])
def test_two_hops_do_not_lead_past_the_position_between(written: int) -> None:
    """Without an SAE at the stream between the heads there could be an edge from the letter to the
    second head's z at the end. There is none."""
    steps = [step for step in TWO_HOPS if not step[0].startswith("resid_post")]
    sites = tuple(site for site, _, _ in steps)
    made, (result, on, judged) = program(2, sites), read_back(2, written, sites)
    nodes = way_of(made, on, steps)
    check(result, nodes, known(on, steps), known(judged, steps), ("corrupted", "mean"))
    letters = [one.node for one in result.circuit.nodes]
    found = edge_attribution(made.model, made.saes, on, letters, letters, progress=False)
    ends = [(found.sources[s], found.targets[t]) for s, t in found.ends.tolist()]
    past = ends.index((nodes["resid_pre.0 a"], nodes["z.1 a"]))
    assert not found.values[:, past].any()


@pytest.mark.parametrize(("hops", "written"), [(1, 0), (1, 2), (2, 0), (2, 2)])
def test_positions_are_needed_where_the_reference_is_zero(hops: int, written: int) -> None:
    """Positions are the same in both runs, so they are in no circuit. Set to zero, a head that
    finds no query or no key looks at all positions up to its own alike, and takes as little of the
    letter. With the positions that queries and keys are made of, that is over."""
    made = program(hops)
    pairs = backwards(made, words(written, 3), written)
    source, way, end = pairs.positions[0].values()
    letters = list(dict.fromkeys(way_of(made, pairs, STEPS[hops]).values()))
    needed = [("resid_pre.0", source), ("resid_pre.0", end)]
    if hops == 2:
        needed += [("resid_pre.0", way), ("resid_post.0", way), ("resid_post.0", end)]
    needed = list(dict.fromkeys(needed))
    positions = [made.node(site, f"at {q}", q) for site, q in needed]
    table = NodeTable.of([*letters, *positions], forward_order(made.saes))
    # The letters with all positions, with none, with all but one, and nothing.
    sets = [needed, [], *([one for one in needed if one != out] for out in needed)]
    inside = [[True] * len(letters) + [one in kept for one in needed] for kept in sets]
    chosen = Selections.of(table, np.array([*inside, [False] * len(table)]))
    places = Candidates.of(
        attribute(made.model, pairs, saes=made.saes, audit_pairs=0, progress=False)
    ).places
    m, whole = metrics_of(made.model, made.saes, pairs, chosen, places, ["zero"])
    assert set(whole) == {GAIN} and set(m[-1, 0]) == {0.0}
    for kept, found in zip(sets, m[:, 0], strict=False):
        # How many positions each head looks at, all alike.
        by_site = {site: {q for s, q in kept if s == site} for site, _ in needed}
        looks = alike(hops, by_site, way, end)
        assert found.tolist() == pytest.approx([GAIN / looks] * len(found), abs=1e-9)


def alike(hops: int, kept: dict[str, set[int]], way: int, end: int) -> int:
    """At how many positions the heads look, one times the other. kept: positions, by site."""
    start = kept["resid_pre.0"]
    if hops == 1:
        return 1 if {way - 1, end} <= start else end + 1
    first = 1 if {way - 1, way} <= start else way + 1
    # What the second head finds at the stream between came from the first.
    return first if {way, end} <= start & kept["resid_post.0"] else first * (end + 1)


@pytest.mark.parametrize(("hops", "written"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_a_circuit_holds_at_other_lengths_by_its_named_positions(hops: int, written: int) -> None:
    """Found where one letter is asked for, applied where those before it are; also where the way
    and the end were one position, and are not any more."""
    made, found = program(hops), read_back(hops, written)[0].circuit
    for more in range(written + 1, LENGTH):
        pairs = backwards(made, words(more, 5), more, "longer")
        applied = apply_circuit(made.model, found, pairs, saes=made.saes, progress=False)
        assert applied.carried == 1
        table = applied.table.set_index("reference").loc[["corrupted", "mean"]]
        assert table["faithfulness"].tolist() == pytest.approx([1, 1])
        assert table["completeness"].tolist() == pytest.approx([0, 0], abs=1e-9)


def test_what_the_program_does_not_tell_apart_is_refused() -> None:
    """The letters that changed places are not the one that is asked for."""
    made = program(2)
    clean, corrupted = (
        ["bos a b c d sep", "bos b d f h sep"],
        ["bos b a c d sep", "bos d b f h sep"],
    )
    pairs = made.pairs(clean, corrupted, [("d", "a"), ("h", "b")])
    with pytest.raises(CannotDo):
        attribute(made.model, pairs, saes=made.saes, progress=False)


def test_first_order_effects_do_not_see_where_a_hard_head_looks() -> None:
    """The last token, "last" instead of "first", turns the head from the first letter to the last.

    Exactly, with each node by itself: "last" put in makes two queries, so that half of each letter
    is seen; "first" taken out leaves none, so that all are seen alike. Both bring LD from -5 to 0.
    But all of the head's attention is on one position, and the derivative of its softmax is 0: to
    first order these two do nothing. What is found without them holds nothing, and edges, which are
    of first order, do not show what leads into z; wirings do.
    """
    made = choice()
    texts = [f"bos {' '.join(word)} " for word in ("abcd", "dbca", "acbd", "dcba")]
    answers = [(text[10], text[4]) for text in texts]
    clean, corrupted = ([text + end for text in texts] for end in ("last", "first"))
    pairs = made.pairs(clean, corrupted, answers)
    end = LENGTH + 1
    turn_of = {word: made.node("resid_pre.0", word, end) for word in ("first", "last")}
    turns = set(turn_of.values())
    seen = {made.node("z.0", f"z {c}", end) for c in "ad"}
    written = {made.node("resid_post.0", f"NEXT {c}", end) for c in "ad"}
    for method, nodes, faithful in (
        ("exact", turns | seen | written, 1.0),
        ("atp", seen | written, 0.0),
    ):
        effects = attribute(
            made.model, pairs, saes=made.saes, method=method, audit_pairs=0, progress=False
        )
        candidates = Candidates.of(effects)
        count = candidates.count(1e-9)
        assert {candidates.table.node(i) for i in range(count)} == nodes
        assert candidates.effect[:count].tolist() == pytest.approx([GAIN] * count)
        chosen = Selections.of(candidates.table, candidates.top([count, 0]))
        m, whole = metrics_of(
            made.model, made.saes, pairs, chosen, candidates.places, ["corrupted"]
        )
        [own], [nothing] = m
        assert set(whole) == {GAIN} and set(nothing) == {-GAIN}
        assert own.tolist() == pytest.approx([-GAIN + 2 * GAIN * faithful] * 4)
    nodes = [*turns, *seen, *written]
    edges = edges_found(
        edge_attribution(made.model, made.saes, pairs, nodes, nodes, progress=False)
    )
    place = {node: i for i, node in enumerate(nodes)}
    first_order = [(place[a], None if b is None else place[b]) for a, b in edges]
    assert {a for a, _ in edges} == seen | written and len(edges) == 4
    into = {word: [(place[turn], place[z]) for z in seen] for word, turn in turn_of.items()}
    wirings = [first_order, first_order + into["last"], first_order + into["last"] + into["first"]]
    wiring = Wiring.of(
        NodeTable.of(nodes, forward_order(made.saes)), [(range(6), one) for one in wirings]
    )
    places = candidates.places
    m, _ = wired_metrics_of(made.model, made.saes, pairs, wiring, places, ["corrupted"])
    # The letters at 1 and 4 are no nodes: they are the same in both runs.
    assert m[:, 0].mean(1).tolist() == pytest.approx([-GAIN, 0.0, GAIN])
