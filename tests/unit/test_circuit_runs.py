"""Circuits in shared, resumed passes against full forwards one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from circuits.circuit.evaluate import Places, metrics_of
from circuits.circuit.selections import NodeTable, Selections
from circuits.graph import Node
from circuits.models.hooked import HookedModel
from circuits.models.thoughts import Thoughts
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet
from circuits.sites import Site, forward_order
from tests import tiny
from tests.circuits import reference_parts, run_circuit
from tests.pairs import token_pairs
from tests.unit.test_attribute import sae_set
from tests.unit.test_stepped import projection

REFERENCES = ("corrupted", "mean", "zero")
RESIDUAL = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.3.hook_resid_post")
MIXED = (
    "blocks.0.hook_resid_post",
    "blocks.1.attn.hook_z",
    "blocks.1.hook_mlp_out",
    "blocks.2.hook_resid_pre",
    "blocks.2.hook_attn_out",
)
LENGTH, D_SAE = 10, 48


def templated(count: int, seed: int = 0) -> PromptPairs:
    pairs = token_pairs(count, seed=seed)
    return replace(pairs, templates=("one",) * count)


PLACES = Places(False, "one", LENGTH, (("END", LENGTH - 1),))


def random_table(saes: SaeSet, count: int, seed: int, summed: bool = False) -> NodeTable:
    """Nodes at random, errors among them."""
    random = np.random.default_rng(seed)
    nodes: dict[Node, None] = {}
    sites = forward_order(saes)
    for _ in range(count):
        site = sites[random.integers(len(sites))]
        position = None if summed else int(random.integers(1, LENGTH))
        nodes[Node(site, "latent", int(random.integers(D_SAE)), position)] = None
        if random.random() < 0.3:
            nodes[Node(site, "error", -1, position)] = None
        if random.random() < 0.1:
            nodes[Node(site, "offset", -1, position)] = None
    return NodeTable.of(list(nodes), sites)


def naive(
    model: HookedModel, saes: SaeSet, pairs: PromptPairs, chosen: Selections, labels: Any
) -> np.ndarray:
    """labels: from (pair, position) to what the token stands for in the table."""
    found = np.zeros((len(chosen), len(REFERENCES), len(pairs)))
    prompts = [torch.tensor(t) for t in (*pairs.clean_tokens, *pairs.corrupted_tokens)]
    for i in range(len(pairs)):
        clean, corrupted = prompts[i], prompts[i + len(pairs)]
        for r, name in enumerate(REFERENCES):
            other = reference_parts(model, saes, name, corrupted, prompts)
            for c in range(len(chosen)):
                inside = {chosen.table.node(n) for n in np.flatnonzero(chosen.inside[c]).tolist()}
                table = {chosen.table.node(n) for n in range(len(chosen.table))}

                def keep(
                    site: Site,
                    role: Any,
                    latent: int,
                    position: int,
                    i: int = i,
                    c: int = c,
                    inside: Any = inside,
                    table: Any = table,
                ) -> bool:
                    if role == "error":
                        if site in chosen.errors_out[c] or chosen.errors[c] == "out":
                            return False
                        if chosen.errors[c] == "in":
                            return True
                    label = labels(i, position)
                    node = Node(site, role, latent, label)
                    known = label != -1 and node in table
                    return node in inside if known else bool(chosen.rest[c])

                logits = run_circuit(model, saes, clean, other, keep)
                found[c, r, i] = logits[pairs.answer_tokens[i]] - logits[pairs.foil_tokens[i]]
    return found


def several(table: NodeTable, seed: int) -> Selections:
    """Circuits of all kinds: nothing, all of the table, random ones, complements, policies."""
    random = np.random.default_rng(seed)
    inside = random.random((3, len(table))) < np.array([0.0, 0.3, 1.0])[:, None]
    one = Selections.of(table, inside)
    late = inside[2:] & (table.site >= 1)
    return Selections.join(
        [
            one,
            one.complement(),
            Selections.of(table, inside[1:2], errors="in"),
            one.without_errors(),
            one.complement().without_errors(table.sites[0]),
            Selections.of(table, late),
        ]
    )


# Gemma-2 and HookedTransformer compute their norms in float32 whatever the weights are.
KINDS = [("gpt2", 1e-9), ("gemma2", 1e-5), ("hooked_transformer", 1e-3)]


def model_of(kind: str) -> HookedModel:
    if kind == "hooked_transformer":
        return tiny.hooked_transformer()
    return tiny.bridge(kind, torch.float64)


@pytest.mark.parametrize("hooks", [RESIDUAL, MIXED])
@pytest.mark.parametrize(("kind", "bound"), KINDS)
def test_circuits_equal_full_forwards(kind: str, bound: float, hooks: tuple[str, ...]) -> None:
    model = model_of(kind)
    saes = sae_set("jumprelu", hooks, model, double=kind != "hooked_transformer")
    pairs = templated(2)
    chosen = several(random_table(saes, 60, 1), 2)
    found, whole = metrics_of(model, saes, pairs, chosen, PLACES, REFERENCES)
    wanted = naive(model, saes, pairs, chosen, lambda i, position: position)
    assert np.abs(found - wanted).max() < bound
    assert np.ptp(wanted) > 0.1 and np.isfinite(whole).all()


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("mode", ["rerolled", "frozen"])
def test_circuits_of_models_that_think(mode: Any, resumes: bool) -> None:
    """Nodes at thoughts and before them; what is ablated before a thought changes it, or not."""
    model = tiny.bridge("gpt2", torch.float64)
    slot = tiny.VOCAB - 1
    model.thoughts = Thoughts(slot, projection(torch.float64))
    model.can_resume = resumes
    saes = sae_set("jumprelu", MIXED, model)
    pairs = token_pairs(2)
    sides = []
    for side in (pairs.clean_tokens, pairs.corrupted_tokens):
        tokens = torch.tensor(side)
        tokens[tokens == slot] = 3
        tokens[:, 6:8] = slot
        sides.append(tuple(map(tuple, tokens.tolist())))
    pairs = replace(
        pairs, clean_tokens=sides[0], corrupted_tokens=sides[1], templates=("one",) * len(pairs)
    )
    chosen = several(random_table(saes, 60, 1), 2)
    with model.thinking(mode):
        found, whole = metrics_of(model, saes, pairs, chosen, PLACES, REFERENCES)
        wanted = naive(model, saes, pairs, chosen, lambda i, position: position)
        assert np.abs(found - wanted).max() < 1e-9
        assert np.ptp(wanted) > 0.1 and np.isfinite(whole).all()
        removed = np.flatnonzero(chosen.inside[1]).tolist()[:12]
        one = chosen.part(np.arange(len(chosen)) == 1)
        without, _ = metrics_of(model, saes, pairs, one, PLACES, REFERENCES, removed=removed)
        inside = np.repeat(one.inside, len(removed), axis=0)
        inside[np.arange(len(removed)), removed] = False
        each = Selections.of(one.table, inside)
        expected, _ = metrics_of(model, saes, pairs, each, PLACES, REFERENCES)
        assert np.abs(without - expected).max() < 1e-9
    with model.thinking("frozen" if mode == "rerolled" else "rerolled"):
        other, _ = metrics_of(model, saes, pairs, chosen, PLACES, REFERENCES)
    assert np.abs(other - found).max() > 0.1


@pytest.mark.parametrize("hooks", [RESIDUAL, MIXED])
def test_resumed_in_any_batches_and_not_resumed_are_the_same(hooks: tuple[str, ...]) -> None:
    model = model_of("gpt2")
    saes = sae_set("jumprelu", hooks, model)
    pairs = templated(5)
    chosen = several(random_table(saes, 200, 5), 6)
    given = (model, saes, pairs, chosen, PLACES, REFERENCES)
    found, whole = metrics_of(*given)
    few, _ = metrics_of(*given, batch_size=7)
    assert np.abs(found - few).max() < 1e-10
    model.can_resume = False
    full, whole_full = metrics_of(*given)
    assert np.abs(found - full).max() < 1e-10 and np.abs(whole - whole_full).max() < 1e-10


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("hooks", [RESIDUAL, MIXED])
@pytest.mark.parametrize("summed", [True, False])
def test_removing_each_node_is_running_the_circuit_without_it(
    summed: bool, hooks: tuple[str, ...], resumes: bool
) -> None:
    model = model_of("gpt2")
    model.can_resume = resumes
    saes = sae_set("jumprelu", hooks, model)
    pairs = templated(3)
    table = random_table(saes, 60, 7, summed)
    places = Places(True) if summed else PLACES
    inside = np.random.default_rng(8).random((1, len(table))) < 0.6
    chosen = Selections.of(table, inside)
    removed = np.flatnonzero(inside[0]).tolist()
    found, _ = metrics_of(model, saes, pairs, chosen, places, REFERENCES, removed=removed)
    each = np.repeat(inside, len(removed), axis=0)
    each[np.arange(len(removed)), removed] = False
    wanted, _ = metrics_of(model, saes, pairs, Selections.of(table, each), places, REFERENCES)
    assert np.abs(found - wanted).max() < 1e-10
    assert np.ptp(wanted, axis=0).max() > 1e-3


def test_a_circuit_is_carried_to_other_templates_by_the_names_of_positions() -> None:
    """Only tokens that stand for a position of the circuit have nodes; a circuit that is summed
    over positions has them everywhere."""
    model = model_of("gpt2")
    saes = sae_set("jumprelu", RESIDUAL, model)
    other = replace(
        token_pairs(2, seed=3, length=12, first=4),
        templates=("two",) * 2,
        positions=({"END": 11, "op": 4}, {"END": 11, "op": 5}),
    )
    places = Places(False, "one", LENGTH, (("op", 3), ("END", LENGTH - 1)))
    stands = [{4: 3, 11: LENGTH - 1}, {5: 3, 11: LENGTH - 1}]
    chosen = several(random_table(saes, 200, 9), 10)
    found, _ = metrics_of(model, saes, other, chosen, places, REFERENCES)
    wanted = naive(model, saes, other, chosen, lambda i, position: stands[i].get(position, -1))
    assert np.abs(found - wanted).max() < 1e-8
    summed = several(random_table(saes, 40, 11, summed=True), 12)
    found, _ = metrics_of(model, saes, other, summed, Places(True), REFERENCES)
    wanted = naive(model, saes, other, summed, lambda i, position: None)
    assert np.abs(found - wanted).max() < 1e-8


def test_everything_is_the_clean_run_and_nothing_the_reference() -> None:
    model = model_of("gpt2")
    saes = sae_set("jumprelu", RESIDUAL, model)
    pairs = templated(4)
    table = random_table(saes, 30, 13)
    none = np.zeros((1, len(table)), dtype=bool)
    nothing = Selections.of(table, none)
    chosen = Selections.join([nothing, nothing.complement()])
    found, whole = metrics_of(model, saes, pairs, chosen, PLACES, REFERENCES)
    logits = model.run(torch.tensor(pairs.corrupted_tokens))
    corrupted = [
        float(row[a] - row[f])
        for row, a, f in zip(logits, pairs.answer_tokens, pairs.foil_tokens, strict=True)
    ]
    assert np.abs(found[1] - whole).max() < 1e-10
    # Residual sites hold the whole stream: with corrupted values at all of them, it is that run.
    assert np.abs(found[0, 0] - corrupted).max() < 1e-10


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu"])
@pytest.mark.parametrize("how", ["none", "layer_norm", "constant_norm_rescale"])
def test_every_architecture_and_normalisation(architecture: str, how: str) -> None:
    model = tiny.bridge("gpt2", torch.float64)
    saes = sae_set(architecture, RESIDUAL[:2], model, normalize_activations=how)
    pairs = templated(2)
    chosen = several(random_table(saes, 40, 3), 4)
    found, _ = metrics_of(model, saes, pairs, chosen, PLACES, REFERENCES)
    wanted = naive(model, saes, pairs, chosen, lambda i, position: position)
    assert np.abs(found - wanted).max() < 1e-8
