"""Finding, judging, applying and comparing circuits on a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits.attribute import attribute
from circuits.circuit import CircuitError, CircuitResult, apply_circuit, circuit
from circuits.circuit.candidates import SIZES, Candidates
from circuits.circuit.evaluate import Shares, area
from circuits.circuit.plan import make_plan
from circuits.circuit.sets import UNSEEN, select
from circuits.graph import Circuit, GraphError, difference
from circuits.models.hooked import HookedModel
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet
from circuits.sites import Site, SiteError
from tests.pairs import token_pairs
from tests.unit.test_attribute import sae_set
from tests.unit.test_circuit_runs import RESIDUAL, model_of, templated


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return model_of("gpt2")


@pytest.fixture(scope="module")
def saes(model: HookedModel) -> SaeSet:
    return sae_set("jumprelu", RESIDUAL, model)


def ordered(model: HookedModel, count: int, seed: int = 0) -> PromptPairs:
    """Pairs whose clean logit difference is the higher one: answer and foil swapped if not."""
    pairs = templated(count, seed)
    rows = [model.run(torch.tensor(t)) for t in (pairs.clean_tokens, pairs.corrupted_tokens)]
    answers, foils = list(pairs.answer_tokens), list(pairs.foil_tokens)
    for i in range(count):
        gap = [float(logits[i, answers[i]] - logits[i, foils[i]]) for logits in rows]
        if gap[0] < gap[1]:
            answers[i], foils[i] = foils[i], answers[i]
    return replace(pairs, answer_tokens=tuple(answers), foil_tokens=tuple(foils))


@pytest.fixture(scope="module")
def result(model: HookedModel, saes: SaeSet) -> CircuitResult:
    return circuit(
        model,
        ordered(model, 4),
        saes=saes,
        evaluate_on=ordered(model, 3, seed=1),
        size=40,
        drawn=12,
        force=True,
        progress=False,
    )


def test_the_ladder_is_the_strongest_nodes_and_everything(model: HookedModel, saes: SaeSet) -> None:
    found = attribute(
        model, ordered(model, 4), saes=saes, audit_pairs=0, force=True, progress=False
    )
    candidates = Candidates.of(found)
    sizes = np.abs(candidates.effect)
    assert (sizes[:-1] >= sizes[1:]).all()
    counts, ladder = candidates.ladder()
    assert counts == [max(1, round(s * len(candidates))) for s in SIZES]
    assert ladder.inside.sum(1).tolist() == counts
    assert ladder.rest.tolist() == [False] * 9 + [True]
    ranked = found.ranking(20)
    ranked = ranked[ranked["position"] > 0]
    for row, at in zip(ranked.to_dict("records"), range(len(ranked)), strict=True):
        node = candidates.table.node(at)
        assert (str(node.site), node.position) == (row["site"], row["position"])
        assert candidates.effect[at] == pytest.approx(row["effect"])
    summed = Candidates.of(found, summed=True)
    scores: Any = found.scores[found.scores["position"] > 0]
    by_latent = scores.groupby(["site", "role", "latent"], observed=True)["effect"].sum() / 4
    assert summed.effect[0] == pytest.approx(by_latent.loc[by_latent.abs().idxmax()], rel=1e-9)
    threshold = float(sizes[9])
    assert candidates.count(threshold) == 10
    with pytest.raises(CircuitError, match="lower threshold"):
        candidates.count(1e9)


def test_mean_coefficients_are_of_the_pairs_that_have_begun_to_differ(
    model: HookedModel, saes: SaeSet
) -> None:
    """Before a pair's first difference its nodes have no rows: that is not a coefficient of 0."""
    early, late = ordered(model, 1), token_pairs(1, seed=2, first=6)
    fields = {
        name: getattr(early, name) + getattr(late, name)
        for name in early.__dataclass_fields__
        if isinstance(getattr(early, name), tuple)
    }
    pairs = replace(early, **fields | {"templates": ("one",) * 2})
    found = attribute(model, pairs, saes=saes, audit_pairs=0, force=True, progress=False)
    candidates = Candidates.of(found)
    _, values = model.cache(torch.tensor(pairs.clean_tokens), list(saes))
    table = candidates.table
    for at in np.flatnonzero(table.role == 0)[:200].tolist():
        node = table.node(at)
        latents = saes[node.site].encode(values[node.site])[:, node.position or 0, node.latent]
        known = latents if (node.position or 0) >= 6 else latents[:1]
        assert candidates.clean[at] == pytest.approx(float(known.mean()), abs=1e-9)


def test_random_circuits_have_as_many_of_each_role(model: HookedModel, saes: SaeSet) -> None:
    found = attribute(
        model, ordered(model, 4), saes=saes, audit_pairs=0, force=True, progress=False
    )
    candidates = Candidates.of(found)
    for count in (3, 30, 100):
        [inside] = candidates.random([count], seed=0)
        assert inside.sum() == count
        roles = candidates.table.role
        assert np.bincount(roles[inside], minlength=3).tolist() == (
            np.bincount(roles[:count], minlength=3).tolist()
        )
    assert candidates.random([30], 0).tolist() != candidates.random([30], 1).tolist()
    stable = candidates.stability(20)
    assert 0 < stable["low"] <= stable["mean"] <= stable["high"] <= 1
    # The whole table is found again whatever the pairs.
    assert candidates.stability(len(candidates))["mean"] == 1


def test_what_is_judged(result: CircuitResult) -> None:
    record = result.record
    assert record["nodes"] == 40 and record["drawn"] == 12 and len(result.circuit) == 40
    assert all(e.source < 12 and (e.target or 0) < 12 for e in result.circuit.edges)
    assert any(e.target is None for e in result.circuit.edges)
    for reference in record["references"]:
        curve = result.curve("circuit", UNSEEN, reference)
        assert curve["size"].tolist() == list(SIZES)
        table: Any = result.scores
        table = table[(table["set"] == UNSEEN) & table["reference"].isin([reference, ""])]

        def mean(variant: str, table: Any = table) -> float:
            mine = table[(table["variant"] == variant) & (table["nodes"] != 0)]
            own = mine[mine["size"].isna()] if variant == "circuit" else mine
            return float(own["m"].mean())

        nothing = float(table[table["variant"] == "nothing"]["m"].mean())
        share = (mean("circuit") - nothing) / (mean("whole") - nothing)
        [value] = result.of_circuit("circuit", UNSEEN, reference)["value"]
        problem = result.shares("circuit", UNSEEN, reference)[1].problem
        assert problem or value == pytest.approx(share)
    errors = result.of_circuit("errors out")["detail"].tolist()
    assert errors == ["", *record["sites"]]
    assert len(result.of_circuit("random")) == 3
    assert len(result.removals()) == 12 and len(result.edge_curve()) == 5
    [alone] = result.of_circuit("circuit", UNSEEN, "corrupted")["value"]
    table = result.summary()
    row = table[(table["set"] == UNSEEN) & (table["reference"] == "corrupted")].iloc[0]
    assert row["faithfulness"] == pytest.approx(alone, nan_ok=True)
    draws = result.of_circuit("random", UNSEEN, "corrupted")["value"]
    assert row["random"] == pytest.approx(draws.mean(), nan_ok=True)
    removed = result.of_circuit("errors out", UNSEEN, "corrupted")["value"].iloc[0]
    assert row["errors_out"] == pytest.approx(removed, nan_ok=True)


def test_a_run_is_saved_whole_and_read_back(result: CircuitResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "run")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "run.json",
        "scores.parquet",
        "circuit.json",
        "circuit.html",
        "graph.html",
        "circuit.graphml",
        "neuronpedia.json",
    }
    again = CircuitResult.load(folder)
    assert again.circuit.nodes == result.circuit.nodes
    assert again.circuit.edges == result.circuit.edges
    assert again.summary().equals(result.summary())
    assert again.removals().equals(result.removals())
    page = (folder / "circuit.html").read_text()
    assert "Faithfulness over size" in page and "Circuit of custom" in page


def test_a_circuit_of_the_file_is_the_same_circuit(
    model: HookedModel, saes: SaeSet, result: CircuitResult, tmp_path: Path
) -> None:
    result.circuit.save(tmp_path / "circuit.json")
    again = Circuit.load(tmp_path / "circuit.json")
    pairs = ordered(model, 3, seed=1)
    applied = apply_circuit(model, again, pairs, saes=saes, progress=False)
    assert applied.carried == 1
    for number, reference in enumerate(result.record["references"]):
        row = applied.table.iloc[number]
        [value] = result.of_circuit("circuit", UNSEEN, reference)["value"]
        [rest] = result.of_circuit("complement", UNSEEN, reference)["value"]
        assert row["faithfulness"] == pytest.approx(value, nan_ok=True)
        assert row["completeness"] == pytest.approx(rest, nan_ok=True)
    other = replace(
        token_pairs(2, seed=5, length=12), templates=("two",) * 2, positions=({"END": 11},) * 2
    )
    carried = apply_circuit(model, again, other, saes=saes, progress=False).carried
    ends = [one.node.position == 9 for one in again.nodes]
    assert carried == pytest.approx(np.mean(ends))
    narrow = saes.at(list(saes)[:1])
    with pytest.raises(CircuitError, match="SAEs at"):
        apply_circuit(model, again, pairs, saes=narrow, progress=False)
    changed = replace(again, record={**again.record, "model_sha256": "other"})
    with pytest.raises(CircuitError, match="load that one"):
        apply_circuit(model, changed, pairs, saes=saes, progress=False)


def test_two_circuits_are_compared(result: CircuitResult) -> None:
    a = result.circuit
    same = difference(a, a)
    assert (same.jaccard, same.only_a, same.only_b) == (1, 0, 0) and not same.notes
    b = replace(a.strongest(20), record={**a.record, "task": "other"})
    found = difference(a, b)
    assert (found.shared, found.only_a, found.only_b) == (20, 20, 0)
    assert found.jaccard == 0.5 and found.correlation == pytest.approx(1)
    assert any("task" in note for note in found.notes)
    summed = replace(a, nodes=(), edges=(), summed=True)
    with pytest.raises(GraphError, match="summed over positions"):
        difference(a, summed)


def test_an_interrupted_run_goes_on(
    model: HookedModel, saes: SaeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from circuits.circuit import judge

    options: dict[str, Any] = {
        "saes": saes,
        "evaluate_on": ordered(model, 3, seed=1),
        "size": 20,
        "drawn": 4,
        "force": True,
        "progress": False,
        "keep_parts": tmp_path,
    }
    pairs = ordered(model, 4)
    real, calls = judge.metrics_of, []

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(more)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(judge, "metrics_of", counted)
    with pytest.raises(KeyboardInterrupt):
        circuit(model, pairs, **options)
    monkeypatch.setattr(judge, "metrics_of", real)
    calls.clear()

    def again(*args: Any, **more: Any) -> Any:
        calls.append(more)
        return real(*args, **more)

    monkeypatch.setattr(judge, "metrics_of", again)
    found = circuit(model, pairs, **options)
    assert len(calls) == 2  # the two ladders were there: removals and the drawn nodes were not
    calls.clear()
    whole = circuit(model, pairs, **{**options, "keep_parts": None})
    assert len(calls) == 4 and found.scores.equals(whole.scores)
    found.save(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_summed_circuits_and_sizes_that_reach(model: HookedModel, saes: SaeSet) -> None:
    options: dict[str, Any] = {"saes": saes, "force": True, "progress": False, "drawn": 5}
    pairs = ordered(model, 8)
    found = circuit(model, pairs, summed=True, reach=0.5, **options)
    assert found.circuit.summed and not found.circuit.tokens
    assert all(one.node.position is None for one in found.circuit.nodes)
    assert (
        found.sets == ["found", "unseen"] and "not of a task" in found.record["missing"]["held_out"]
    )
    on_found = found.of_circuit("circuit", "found")["value"].iloc[0]
    assert on_found >= 0.5 or "no smaller circuit" in found.record["chosen"]
    # Two halves: no pair is in both.
    halves = [set(found.prompts.clean_tokens), set(found.pairs("unseen").clean_tokens)]
    assert not halves[0] & halves[1] and sum(map(len, halves)) == 8


def test_an_attribution_that_was_made_before(model: HookedModel, saes: SaeSet) -> None:
    pairs = ordered(model, 4)
    options: dict[str, Any] = {"saes": saes, "force": True, "progress": False}
    effects = attribute(model, pairs, audit_pairs=0, **options)
    options |= {"evaluate_on": ordered(model, 3, seed=1), "size": 10, "drawn": 0}
    one = circuit(model, pairs, attribution=effects, **options)
    two = circuit(model, pairs, **options)
    assert one.circuit.nodes == two.circuit.nodes and not one.circuit.edges
    assert one.scores.equals(two.scores)
    with pytest.raises(CircuitError, match="drawn"):
        one.removals()
    with pytest.raises(CircuitError, match="give evaluate_on"):
        circuit(model, pairs, attribution=effects, **{**options, "evaluate_on": None})
    others = sae_set("jumprelu", ("blocks.1.hook_resid_post",), model)
    with pytest.raises(CircuitError, match="that is not given here"):
        circuit(model, pairs, attribution=effects, **{**options, "saes": others})
    whole = attribute(
        model, pairs, audit_pairs=0, force=True, progress=False, sites=[Site(1, "resid_post")]
    )
    with pytest.raises(CircuitError, match="without SAEs"):
        circuit(model, pairs, attribution=whole, **options)


def test_shares_are_refused_where_they_would_mean_nothing() -> None:
    m = np.array([[0.5, 0.6], [0.9, 1.1]])
    whole, gap = np.array([1.0, 1.2]), np.array([1.0, 1.0])
    good = Shares(m, np.zeros(2), whole, gap)
    assert good.problem is None
    assert good.summary().value.tolist() == pytest.approx([0.5, 2.0 / 2.2])
    near = Shares(m, whole - 0.1, whole, gap)
    assert near.problem and "under a fifth" in near.problem
    assert np.isnan(near.summary().value).all() and near.drawn() is None


def test_areas_are_those_of_trapezoids() -> None:
    assert area([0.0, 0.5, 1.0], np.array([0.0, 1.0, 1.0])) == pytest.approx(0.75)
    assert area([0.1, 1.0], np.array([[1.0, 1.0], [0.0, 2.0]])).tolist() == pytest.approx(
        [0.9, 0.9]
    )
    with pytest.raises(CircuitError, match="rising"):
        area([0.5, 0.1], np.array([1.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"references": ("median",)}, "unknown reference 'median'"),
        ({"by": "mean", "references": ("zero",)}, "not one of the references"),
        ({"size": 5, "reach": 0.5}, "give one of them"),
        ({"size": 0}, "at least 1"),
        ({"threshold": 0.0}, "above 0"),
        ({"reach": 1.5}, "at most 1"),
        ({"sizes": (0.5,)}, "at least two shares"),
        ({"sizes": (0.5, 2.0)}, "at most 1"),
        ({"drawn": -1}, "0 or more"),
    ],
)
def test_bad_options_are_refused_before_any_pass(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        make_plan(**options)


def test_two_saes_of_one_tensor_are_refused_before_any_pass(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run", "cache", "gradients", "baseline"):
        monkeypatch.setattr(HookedModel, name, None)
    hooks = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre")
    with pytest.raises(SiteError, match="one tensor"):
        circuit(model, token_pairs(4), saes=sae_set("jumprelu", hooks, model), force=True)


def test_pairs_to_judge_on_must_be_others(model: HookedModel, saes: SaeSet) -> None:
    pairs = ordered(model, 4)
    with pytest.raises(CircuitError, match="also pairs to find"):
        circuit(model, pairs, saes=saes, evaluate_on=select(pairs, [1]), force=True)
    with pytest.raises(CircuitError, match="at least 4"):
        circuit(model, select(pairs, [0, 1]), saes=saes, force=True)
    assert math.isnan(
        Candidates.of(
            attribute(
                model, select(pairs, [0]), saes=saes, audit_pairs=0, force=True, progress=False
            )
        ).stability(5)["mean"]
    )
