"""Hypotheses about latents that read vectors: planted ones, and labels that mean nothing."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.features import LabelledVectors
from circuits.hypotheses import (
    Condition,
    HypothesesResult,
    Hypothesis,
    HypothesisError,
    Rules,
    VectorEvidence,
    assess,
    from_evidence,
)
from circuits.hypotheses.effects import Target, control_directions, effects, split_places
from circuits.hypotheses.vectors import in_characters
from circuits.runs import RunError, read_record
from circuits.saes import Sae
from circuits.sites import Site

SITE, WIDTH, LATENTS, CLASSES = "hidden", 24, 48, 6
NAMES = tuple(f"class {i}" for i in range(CLASSES))
PLANTED = 3  # active on class 2 by construction, and raises class 5


def planted_sae(normalize: str = "none") -> Sae:
    """Latent i < 24 reads dimension i; the others random directions. Latent 3 writes what class 5
    reads."""
    import sae_lens

    torch.manual_seed(0)
    config = sae_lens.JumpReLUSAEConfig(d_in=WIDTH, d_sae=LATENTS, normalize_activations=normalize)
    config.metadata = sae_lens.saes.sae.SAEMetadata(hook_name="blocks.0.hook_resid_post")
    sae = sae_lens.JumpReLUSAE(config)
    encoder = torch.randn(WIDTH, LATENTS) / WIDTH**0.5
    encoder[:, :WIDTH] = torch.eye(WIDTH)
    decoder = torch.randn(LATENTS, WIDTH)
    decoder[PLANTED] = 4 * readout_weights()[:, 5]
    sae.W_enc.data, sae.W_dec.data = encoder, decoder
    sae.b_enc.data, sae.b_dec.data = torch.zeros(LATENTS), torch.zeros(WIDTH)
    sae.threshold.data = torch.full((LATENTS,), 1.5)
    return Sae(sae, Site(0, "resid_post"))


def readout_weights() -> Tensor:
    return torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(1))


def readout(x: Tensor) -> Tensor:
    """Not linear, so that effects differ from example to example."""
    logits = x @ readout_weights().to(x)
    return logits + torch.tanh(logits)


def data(n: int, seed: int, *, real: bool = True, normalize: str = "none") -> VectorEvidence:
    """Vectors in which dimension 3 is high on class 2; real=False: labels that mean nothing."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=draw)
    x = torch.randn(n, WIDTH, generator=draw)
    if real:
        x[:, PLANTED] = torch.where(labels == 2, 3.0, 0.0) + 0.3 * x[:, PLANTED]
    vectors = LabelledVectors(x, labels, NAMES)
    return VectorEvidence(SITE, planted_sae(normalize), vectors, readout, seed=seed)


def said(claim: Any, label: str, latent: int = PLANTED, **more: Any) -> Hypothesis:
    return Hypothesis(SITE, latent, claim, Condition("label", label), **more)


def row(result: HypothesesResult, one: Hypothesis) -> dict[str, Any]:
    table = result.of(one.site, one.latent).to_dict("records")
    [found] = [r for r in table if (r["claim"], r["about"]) == (one.claim, str(one.about.value))]
    return {str(k): v for k, v in found.items()}


def test_a_planted_latent_gets_the_right_hypotheses_and_false_ones_fail() -> None:
    explored, held = data(1500, 0), data(1500, 1)
    candidates = from_evidence(explored, [PLANTED])
    assert candidates == [said("fires_on", "class 2"), said("raises", "class 5")]
    false = [
        said("fires_on", "class 4"),
        said("raises", "class 1"),
        said("lowers", "class 5"),
        said("fires_on", "class 2", latent=30),
    ]
    result = assess([*candidates, *false], held, explored.ids, progress=False)
    for one in candidates:
        assert row(result, one)["verdict"] == "holds", row(result, one)
    for one in false:
        assert row(result, one)["verdict"] == "fails", row(result, one)
        assert row(result, one)["reason"]
    fires = row(result, candidates[0])
    active = held.active(SITE, [PLANTED])[:, 0] != 0
    assert fires["precision"] == pytest.approx(active[held.labels == 2].mean())
    assert fires["recall"] > 0.99 and fires["low"] > 3 and fires["q"] < 1e-50
    assert result.counts() == {"holds": 2, "fails": 4, "not enough data": 0}


def test_effects_are_those_of_recomputing_by_hand() -> None:
    """In float64, one example, one control and one target at a time."""
    held = data(60, 2)
    vectors = replace(held.data, vectors=held.vectors.double())
    wide = VectorEvidence(SITE, held.sae, vectors, readout, most=40, seed=5)
    targets = [
        Target(Condition("label", "class 5"), 1, None),
        Target(Condition("label", "class 0"), -1, 0.25),
    ]
    first, second = effects(wide, SITE, PLANTED, targets, dose=2.5, controls=19, seed=7)
    x = wide.vectors
    values = torch.where(x[:, PLANTED] > 1.5, x[:, PLANTED], 0.0).float().double()
    spread = float(((values - values.mean()) ** 2).mean().sqrt())
    added = 2.5 * spread * held.sae.rows[PLANTED].double()
    assert first.change == pytest.approx(float(added.norm()), rel=1e-9)
    _, tested = split_places(wide.places, 7)

    def change(i: int, target: int) -> float:
        moved = readout(x[i] + added) - readout(x[i])
        return float(moved[target] - moved.mean())

    for got, target in ((first, 5), (second, 0)):
        mine = [change(int(i), target) for i in wide.places[tested]]
        assert got.value == pytest.approx(np.mean(mine), rel=1e-9)
        reach = 1.96 * np.std(mine, ddof=1) / len(mine) ** 0.5
        assert got.high - got.value == pytest.approx(reach, rel=0.06)  # Student's is wider
        assert got.groups == len(mine)
    assert second.threshold == 0.25
    # The threshold: of 19 mixtures of other latents' rows at that norm, the largest.
    key = np.random.default_rng([7, PLANTED, zlib.crc32(SITE.encode())])
    rows = held.sae.rows.double().numpy()
    mixtures = control_directions(rows, held.alive(SITE), PLANTED, 19, key)
    reference = [int(i) for i in wide.places[split_places(wide.places, 7)[0]]]
    sizes, peaks = [], []
    for mixture in torch.from_numpy(mixtures):
        moved = readout(x[reference] + mixture * added.norm()) - readout(x[reference])
        means = (moved - moved.mean(1, keepdim=True)).mean(0)
        sizes.append(abs(float(means[5])))
        peaks.append(float(means.max()))
    assert first.threshold == pytest.approx(max(sizes), rel=1e-6)
    # An output that was chosen among all is compared with the best output of each.
    chosen = [replace(targets[0], chosen=True)]
    [third] = effects(wide, SITE, PLANTED, chosen, dose=2.5, controls=19, seed=7)
    assert third.threshold == pytest.approx(max(peaks), rel=1e-6)


def test_controls_are_mixtures_of_other_active_latents() -> None:
    rows = np.zeros((6, 5))
    rows[:5] = 3 * np.eye(5)
    found = control_directions(rows, np.array([0, 1, 2, 5]), 2, 8, np.random.default_rng(0))
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert np.abs(found[:, :2]).min() > 0 and not found[:, 2:].any()  # row 5 is 0
    alone = control_directions(rows, np.array([0, 2]), 2, 8, np.random.default_rng(0))
    assert np.abs(alone).min() > 0  # one other is no mixture: any directions


def test_normalised_latents_are_added_in_the_units_of_the_vectors() -> None:
    held = data(200, 3, normalize="layer_norm")
    scale = held.vectors.std(1)
    plain = held.sae.encode(held.vectors[None])[0][:, PLANTED]
    assert np.allclose(held.active(SITE, [PLANTED])[:, 0], plain * scale, atol=1e-5)


def many(n: int, seed: int, latents: int) -> tuple[VectorEvidence, VectorEvidence]:
    """Explored and held-out vectors whose labels mean nothing, for an SAE of many latents."""
    import sae_lens

    torch.manual_seed(seed)
    sae = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(d_in=WIDTH, d_sae=latents))
    for parameter in sae.parameters():
        parameter.data = torch.randn_like(parameter) / WIDTH**0.5
    sae.threshold.data = torch.full((latents,), 1.6)
    mine = Sae(sae, Site(0, "resid_post"))
    parts = [data(n, seed * 10 + i, real=False) for i in (1, 2)]
    explored, held = (replace(p, sae=mine, most=60) for p in parts)
    return explored, held


def test_on_shuffled_labels_hardly_any_hypothesis_passes_and_the_test_can_fail() -> None:
    """Candidates made from labels that mean nothing, over several draws. With the same data for
    making and testing, and without the threshold and the correction, many pass."""
    rules = Rules(enrichment=1.0, min_active=10)  # the p value alone decides
    passed, fluke, uncorrected, total = 0, 0, 0, 0
    for seed in range(4):
        explored, held = many(700, seed, 150)
        hypotheses = [h for h in from_evidence(explored, range(150)) if h.claim == "fires_on"]
        mine = assess(hypotheses, held, explored.ids, rules, progress=False)
        again = assess(hypotheses, explored, [], rules, progress=False)  # what one must not do
        total += len(mine.table) - mine.counts()["not enough data"]
        passed += mine.counts()["holds"]
        fluke += int((again.table["p"] <= 0.05).sum())
        uncorrected += int((mine.table["p"] <= 0.05).sum())
    assert total > 500
    assert passed <= 0.01 * total  # of four runs one may have a few, and 5% at most are allowed
    assert 0.02 * total < uncorrected < 0.08 * total  # what the correction takes away
    assert fluke > 0.15 * total  # exploration data used again


def test_latents_like_any_other_hardly_raise_anything() -> None:
    """Every latent is said to raise a class drawn at random."""
    explored, held = many(300, 7, 120)
    draw = np.random.default_rng(0)
    hypotheses = [said("raises", NAMES[draw.integers(CLASSES)], latent=k) for k in range(120)]
    result = assess(hypotheses, held, explored.ids, Rules(min_active=5), progress=False)
    tested = len(result.table) - result.counts()["not enough data"]
    assert tested > 100
    # One-sided at the 95th percentile of sizes: 2.5% expected; 999 of 1,000 runs stay under 9.
    assert result.counts()["holds"] <= 8
    # Against a threshold of 0 about half pass: what other latents do is what keeps them out.
    free = assess(hypotheses, held, explored.ids, Rules(min_active=5, effect=0.0), progress=False)
    assert free.counts()["holds"] > 0.3 * tested


def test_outputs_chosen_by_the_evidence_hardly_hold_of_latents_without_a_meaning() -> None:
    """The class that a random direction raises most is a fact about it, found again on any data:
    what it must beat is the best class of directions that mean nothing."""
    held_of, total = 0, 0
    for seed in (7, 8):
        explored, held = many(300, seed, 120)
        candidates = [h for h in from_evidence(explored, range(120)) if h.claim == "raises"]
        result = assess(candidates, held, explored.ids, Rules(min_active=5), progress=False)
        held_of += result.counts()["holds"]
        total += len(result.table) - result.counts()["not enough data"]
        named = [replace(h, origin="person") for h in candidates]
        free = assess(named, held, explored.ids, Rules(min_active=5), progress=False)
        # As if somebody had named that very class: the choice alone makes many pass.
        assert free.counts()["holds"] > 0.07 * len(free.table)
    assert total > 200
    assert held_of <= 0.05 * total


def test_a_latent_without_a_dose_has_not_enough_data() -> None:
    explored, held = data(400, 0), data(400, 1)
    held.sae.rows[7] = 0
    result = assess([said("raises", "class 1", latent=7)], held, explored.ids, progress=False)
    assert "decoder row is 0" in result.table["reason"][0]
    explored.sae.rows[7] = 0
    made = from_evidence(explored, [7])
    assert all(h.claim == "fires_on" for h in made)


def test_shared_data_are_refused() -> None:
    explored = data(100, 0)
    held = data(100, 1)
    mixed = torch.cat([held.vectors[:99], explored.vectors[:1]])
    some = replace(held, data=replace(held.data, vectors=mixed))
    with pytest.raises(HypothesisError, match="1 of 100 documents or images to test on were used"):
        assess([said("fires_on", "class 2")], some, explored.ids, progress=False)
    named = replace(explored, names=tuple(f"image {i}" for i in range(100)))
    other = replace(data(100, 1), names=tuple(f"image {i}" for i in range(99, 199)))
    with pytest.raises(HypothesisError, match="image 99"):
        assess([said("fires_on", "class 2")], other, named.ids, progress=False)


def test_too_little_data_never_holds() -> None:
    held = data(60, 4)
    hypotheses = [said("fires_on", "class 2"), said("raises", "class 5")]
    active = int((held.active(SITE, [PLANTED]) != 0).sum())
    result = assess(hypotheses, held, [], Rules(min_active=active + 1), progress=False)
    assert result.counts() == {"holds": 0, "fails": 0, "not enough data": 2}
    assert result.table["q"].isna().all()
    assert f"active examples: {active} of {active + 1}" in result.table["reason"][0]
    enough = assess(hypotheses, held, [], Rules(min_active=active - 1), progress=False)
    assert enough.counts()["not enough data"] == 0


def test_own_thresholds_and_repeated_statements() -> None:
    held = data(1500, 1)
    value = float(assess([said("fires_on", "class 2")], held, [], progress=False).table["value"][0])
    own = said("fires_on", "class 2", threshold=value * 2, origin="person", note="mine")
    result = assess([said("fires_on", "class 2"), own], held, [], progress=False)
    assert len(result.table) == 1  # the person's, with its threshold
    assert result.table["note"][0] == "mine" and result.table["verdict"][0] == "fails"
    assert "under" in result.table["reason"][0]


@pytest.mark.parametrize(
    ("one", "match"),
    [
        (said("fires_on", "class 9"), "no label 'class 9'"),
        (Hypothesis(SITE, 1, "fires_on", Condition("token", "x")), "only the label is known"),
        (said("fires_on", "class 1", latent=LATENTS), r"no latents \[48\] at hidden"),
        (replace(said("fires_on", "class 1"), site="other"), "of hidden, not of other"),
    ],
)
def test_what_the_data_do_not_have_is_refused(one: Hypothesis, match: str) -> None:
    with pytest.raises(HypothesisError, match=match):
        assess([one], data(50, 0), [], progress=False)


def test_statements_that_mean_nothing_are_refused() -> None:
    with pytest.raises(HypothesisError, match="raises before: expected one of label, token, class"):
        Hypothesis(SITE, 0, "raises", Condition("before", "x"))
    with pytest.raises(HypothesisError, match=r"threshold 0\.5: expected 1 or more"):
        said("fires_on", "class 1", threshold=0.5)
    with pytest.raises(HypothesisError, match="expected 0 or more"):
        said("raises", "class 1", threshold=float("nan"))
    with pytest.raises(HypothesisError, match="the dose must be positive; the quantile"):
        Rules(dose=0.0, quantile=1.0)
    with pytest.raises(HypothesisError, match="no hypothesis"):
        assess([], data(50, 0), [], progress=False)


def test_evidence_that_does_not_belong_together_is_refused() -> None:
    held = data(50, 0)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"names": ("a",)}, "50 vectors and 1 names, 1 of them different"),
        ({"names": ("a",) * 50}, "50 vectors and 50 names, 1 of them different"),
        ({"data": LabelledVectors(held.vectors[:1], held.data.labels[:1], NAMES)}, "1 vectors"),
        ({"data": replace(held.data, vectors=held.vectors[:, :7])}, "of width 7, .* of width 24"),
        ({"readout": lambda x: x[:, :4]}, r"makes \(2, 4\), where \[2, 6\] is expected"),
        ({"most": 0}, "to 0 of which latents are added"),
    ]
    for change, match in wrong:
        with pytest.raises(HypothesisError, match=match):
            replace(held, **change)


def test_a_run_read_back_is_the_same(tmp_path: Path) -> None:
    held = data(600, 1)
    hypotheses = [
        said("fires_on", "class 2"),
        said("raises", "class 5"),
        said("lowers", "class 5"),
        said("fires_on", "class 0", note="<b>mine</b>", origin="person"),
    ]
    result = assess(hypotheses, held, data(600, 0).ids, progress=False)
    again = HypothesesResult.load(result.save(tmp_path / "run"))
    assert again.table.equals(result.table) and again.headline() == result.headline()
    assert again.record["rules"]["enrichment"] == 3.0 and again.record["explored"] == 600
    page = (tmp_path / "run" / "hypotheses.html").read_text()
    assert "&lt;b&gt;mine" in page and "<b>mine" not in page
    assert page.count("holds</b>") == 2 and page.count("fails</b>") == 2
    shown = {a.text for a in result.figure().layout.annotations}
    assert {"holds", "fails"} <= shown  # the verdict in words, not in colours alone
    record = read_record(tmp_path / "run")
    assert record["sign_convention"] == result.record["sign_convention"]
    (tmp_path / "run" / "hypotheses.parquet").unlink()
    with pytest.raises(RunError, match=r"hypotheses\.parquet cannot be read"):
        HypothesesResult.load(tmp_path / "run")


def test_examples_are_shown_by_their_label_and_their_image() -> None:
    held = data(4, 0)
    label = f"label: {NAMES[held.labels[2]]}"
    assert held.shown(2) == label
    images = torch.zeros(4, 2, 2)
    images[2, 0] = 1
    assert replace(held, data=replace(held.data, inputs=images)).shown(2) == f"{label}\n##\n  "
    flat = replace(held, data=replace(held.data, inputs=images.flatten(1)))
    assert flat.shown(2) == label


def test_images_in_characters() -> None:
    image = np.zeros((28, 28))
    image[:14] = 1.0
    lines = in_characters(image).split("\n")
    assert lines == ["#" * 14] * 7 + [" " * 14] * 7
    assert in_characters(np.zeros((3, 3))) == "   \n   \n   "
