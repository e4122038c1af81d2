"""Edge-level runs against full forwards, one a node, and at their two ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from circuits.circuit.evaluate import wired_metrics_of
from circuits.circuit.selections import NodeTable, Selections
from circuits.circuit.wired import Wiring
from circuits.graph import Node
from circuits.models.hooked import HookedModel
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet
from circuits.sites import Site, forward_order
from tests import tiny
from tests.circuits import Parts, joined, parts_of, reference_parts
from tests.unit.test_attribute import sae_set
from tests.unit.test_circuit_runs import (
    MIXED,
    PLACES,
    REFERENCES,
    RESIDUAL,
    model_of,
    random_table,
    templated,
)
from tests.unrolled import SLOTS, thinking, with_slots


def test_all_edges_are_the_clean_run_and_none_the_reference() -> None:
    """1e-5 of m(M) - m(0) in float64, asked for; 1e-4 in float32, next test."""
    for hooks in (RESIDUAL, MIXED):
        model = model_of("gpt2")
        saes = sae_set("jumprelu", hooks, model)
        check_ends(model, saes, 1e-10)


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu"])
@pytest.mark.parametrize("how", ["none", "layer_norm", "constant_norm_rescale"])
def test_ends_with_every_architecture(architecture: str, how: str) -> None:
    model = model_of("gpt2")
    saes = sae_set(architecture, RESIDUAL, model, normalize_activations=how)
    check_ends(model, saes, 1e-10)


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_ends_in_float32(kind: str) -> None:
    model = tiny.bridge(kind)
    hooks = RESIDUAL if kind == "pythia" else MIXED
    check_ends(model, sae_set("jumprelu", hooks, model, double=False), 1e-4)


def check_ends(
    model: HookedModel, saes: SaeSet, bound: float, pairs: PromptPairs | None = None
) -> None:
    pairs = pairs or templated(3)
    table = random_table(saes, 40, 1)
    nothing = Wiring.of(table, [(range(len(table)), [])])
    every, whole = wired_metrics_of(
        model, saes, pairs, Wiring.everything(table), PLACES, REFERENCES
    )
    none, _ = wired_metrics_of(model, saes, pairs, nothing, PLACES, REFERENCES)
    empty = empty_metrics(model, saes, pairs, table)
    scale = np.abs(whole - empty).max()
    assert scale > 0.1
    assert np.abs(every - whole).max() < bound * max(1.0, scale)
    assert np.abs(none[0] - empty).max() < bound * max(1.0, scale)


def empty_metrics(
    model: HookedModel, saes: SaeSet, pairs: PromptPairs, table: NodeTable
) -> np.ndarray:
    from circuits.circuit.evaluate import metrics_of

    inside = np.zeros((1, len(table)), dtype=bool)
    chosen = Selections.of(table, inside)
    return metrics_of(model, saes, pairs, chosen, PLACES, REFERENCES)[0][0]


def naive_wired(
    model: HookedModel,
    saes: SaeSet,
    pairs: PromptPairs,
    table: NodeTable,
    nodes: Iterable[int],
    edges: Iterable[tuple[int, int | None]],
    slots: Sequence[int] = (),
) -> np.ndarray:
    """Node after node, each with a forward of its own in which every chosen site before it is
    overwritten: with slots, those of the pieces before its own, and of its own those before it."""
    sites = table.sites
    parents: dict[int | None, list[int]] = {n: [] for n in nodes} | {None: []}
    for source, target in edges:
        parents[target].append(source)
    found = np.zeros((len(REFERENCES), len(pairs)))
    prompts = [torch.tensor(t) for t in (*pairs.clean_tokens, *pairs.corrupted_tokens)]
    for i in range(len(pairs)):
        for r, name in enumerate(REFERENCES):
            corrupted = prompts[i + len(pairs)]
            other = reference_parts(model, saes, name, corrupted, prompts)
            values: dict[int, Any] = {}

            def put(
                wired: list[int], piece: int, before: int, values: Any = values, other: Any = other
            ) -> dict[Site, Any]:
                """Edits of earlier pieces and, in this one, of the sites before number `before`."""

                def edit(place: int, site: Site) -> Any:
                    here = [n for n in wired if table.site[n] == place]

                    def apply(x: torch.Tensor, start: int) -> torch.Tensor:
                        if (piece_of(start, slots), place) >= (piece, before):
                            return x
                        latents, error, offset = (part.clone() for part in other[site])
                        for n in here:
                            node = table.node(n)
                            if node.role == "latent":
                                latents[node.position, node.latent] = values[n]
                            else:
                                into = error if node.role == "error" else offset
                                into[node.position] = values[n]
                        new = joined(saes[site], (latents, error, offset))
                        if start == 0:
                            new[0] = x[0, 0]
                        return new[None, start : start + x.shape[1]]

                    return apply

                return {site: edit(place, site) for place, site in enumerate(sites)}

            for n in sorted(
                (n for n in parents if n is not None), key=lambda n: order(table, n, slots)
            ):
                node, (piece, place) = table.node(n), order(table, n, slots)
                seen: list[Parts] = []
                starts: list[int] = []
                edits = put(parents[n], piece, place)

                def look(
                    x: torch.Tensor,
                    start: int,
                    piece: int = piece,
                    then: Any = edits[node.site],
                    site: Site = node.site,
                    seen: Any = seen,
                    starts: list[int] = starts,
                ) -> torch.Tensor:
                    if piece_of(start, slots) == piece:
                        seen.append(parts_of(saes[site], x[0]))
                        starts.append(start)
                    return then(x, start)

                model.run_all_positions(prompts[i][None], {**edits, node.site: look})
                latents, error, offset = seen[0]
                at = (node.position or 0) - starts[0]
                if node.role == "latent":
                    values[n] = latents[at, node.latent]
                else:
                    values[n] = (error if node.role == "error" else offset)[at]
            edits = put(parents[None], len(slots) + 1, 0)
            logits = model.run_all_positions(prompts[i][None], edits)[0, -1]
            found[r, i] = logits[pairs.answer_tokens[i]] - logits[pairs.foil_tokens[i]]
    return found


def piece_of(position: int, slots: Sequence[int]) -> int:
    return sum(slot <= position for slot in slots)


def order(table: NodeTable, n: int, slots: Sequence[int]) -> tuple[int, int]:
    """(piece, number of the site)."""
    return piece_of(int(table.position[n]), slots), int(table.site[n])


def random_wiring(
    table: NodeTable, seed: int, slots: Sequence[int] = ()
) -> tuple[list[int], list[tuple[int, int | None]]]:
    random = np.random.default_rng(seed)
    nodes = np.flatnonzero(random.random(len(table)) < 0.8).tolist()
    edges: list[tuple[int, int | None]] = []
    for source in nodes:
        later = [t for t in nodes if order(table, t, slots) > order(table, source, slots)]
        edges += [(source, t) for t in later if random.random() < 0.4]
        if random.random() < 0.5:
            edges.append((source, None))
    return nodes, edges


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize(
    ("hooks", "more"),
    [
        (RESIDUAL, {}),
        (MIXED, {}),
        (RESIDUAL, {"normalize_activations": "layer_norm"}),
        (MIXED[1:], {}),
    ],
)
def test_wirings_equal_one_forward_a_node(
    hooks: tuple[str, ...], more: dict[str, Any], resumes: bool
) -> None:
    model = model_of("gpt2")
    model.can_resume = resumes
    saes = sae_set("jumprelu", hooks, model, **more)
    pairs = templated(2)
    table = random_table(saes, 30, 2)
    circuits = [random_wiring(table, 3), random_wiring(table, 4)]
    wiring = Wiring.of(table, circuits)
    found, _ = wired_metrics_of(model, saes, pairs, wiring, PLACES, REFERENCES)
    for number, (nodes, edges) in enumerate(circuits):
        wanted = naive_wired(model, saes, pairs, table, nodes, edges)
        assert np.abs(found[number] - wanted).max() < 1e-8
    few, _ = wired_metrics_of(model, saes, pairs, wiring, PLACES, REFERENCES, batch_size=5)
    assert np.abs(found - few).max() < 1e-10
    assert np.ptp(found, axis=0).max() > 1e-3  # wirings matter


def test_wirings_through_thoughts() -> None:
    """Nodes also see lower sites' and their own site's nodes at earlier positions; the ends are the
    clean run and the reference."""
    model = thinking()
    saes = sae_set("jumprelu", MIXED[1:], model)
    pairs = with_slots(templated(1))
    errors = [Node(site, "error", -1, at) for site in saes for at in (4, 9)]
    table = NodeTable.of([*errors, Node(errors[0].site, "latent", 3, 5)], forward_order(saes))
    nodes = list(range(len(table)))
    place = [order(table, n, SLOTS) for n in nodes]
    every = [(a, b) for a in nodes for b in [*nodes, None] if b is None or place[a] < place[b]]
    ahead = [(a, b) for a, b in every if b is None or table.site[b] > table.site[a]]
    circuits: Any = [(nodes, every), (nodes, ahead)]
    wiring = Wiring.of(table, circuits)
    found, _ = wired_metrics_of(model, saes, pairs, wiring, PLACES, REFERENCES)
    for number, (some, edges) in enumerate(circuits):
        wanted = naive_wired(model, saes, pairs, table, some, edges, SLOTS)
        assert np.abs(found[number] - wanted).max() < 1e-8
    assert np.abs(found[0] - found[1]).max() > 1e-3  # what leads back matters
    model.can_resume = False
    again, _ = wired_metrics_of(model, saes, pairs, wiring, PLACES, REFERENCES, batch_size=2)
    assert np.abs(found - again).max() < 1e-9
    check_ends(model, saes, 1e-9, pairs)
