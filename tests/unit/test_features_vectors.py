"""Latents of vectors of any model: effects, patterns and banks against computations by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from circuits.cli import app
from circuits.features import BankError, FeatureBank
from circuits.features.effects import FEWEST, EffectError, latent_effects, spread
from circuits.features.patterns import input_patterns
from circuits.features.vectors import LabelledVectors, VectorError, collect_vectors
from circuits.saes.sae import Sae
from circuits.sites import Site
from tests.unit.test_saes import LATENTS, make_sae

WIDTH, CLASSES, SIZE = 12, 4, 5
SITE = Site(0, "mlp_out")
DOSES = (-1.5, 1.0, 3.0)


def double() -> Any:
    made = make_sae("jumprelu", "blocks.0.hook_mlp_out", width=WIDTH).double()
    made.dtype = torch.float64  # SAELens would convert what it reads to float32
    return made


@pytest.fixture(scope="module")
def sae() -> Sae:
    made = double()
    made.threshold.data[3] = 1e6  # dead
    return Sae(made, SITE)


@pytest.fixture(scope="module")
def readout() -> nn.Module:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, 9), nn.GELU(), nn.Linear(9, CLASSES))
    return layers.double().requires_grad_(False)


def vectors(n: int, seed: int) -> Tensor:
    return 2 * torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)).double()


def labelled(n: int, seed: int) -> LabelledVectors:
    x = vectors(n, seed)
    labels = torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(seed))
    return LabelledVectors(x, labels, tuple("abcd"))


def test_effects_are_those_of_changing_each_vector(sae: Sae, readout: nn.Module) -> None:
    x = vectors(40, 0)
    found = latent_effects(readout, sae, x, doses=DOSES)
    coefficients = sae.encode(x[None])[0]
    assert np.allclose(found.scale, coefficients.std(0, correction=0), atol=1e-10)
    for j in range(LATENTS):
        row = sae.rows[j]
        for i, dose in enumerate(DOSES):
            moved = [readout(v + dose * coefficients[:, j].std(correction=0) * row) for v in x]
            expected = (torch.stack(moved) - readout(x)).mean(0)
            assert np.allclose(found.written.mean[j, i], expected, atol=1e-10)
        on = coefficients[:, j] != 0
        assert found.active[j] == int(on.sum())
        if on.sum() >= FEWEST:
            without = readout(x[on] - coefficients[on, j, None] * row) - readout(x[on])
            assert np.allclose(found.removed.mean[j], without.mean(0), atol=1e-10)
        else:
            assert np.isnan(found.removed.mean[j]).all()
    assert (found.written.mean[3] == 0).all() and np.isnan(found.removed.mean[3]).all()
    assert found.at(3.0).mean.shape == (LATENTS, CLASSES)
    some = latent_effects(readout, sae, x, [5, 2], doses=DOSES)
    assert np.allclose(some.written.mean, found.written.mean[[5, 2]])


def test_intervals_cover_the_mean_of_what_examples_are_drawn_from(
    sae: Sae, readout: nn.Module
) -> None:
    everything = latent_effects(readout, sae, vectors(6_000, 1), [0, 1, 2, 4], doses=(1.0,))
    wide = torch.zeros(LATENTS)
    wide[[0, 1, 2, 4]] = torch.from_numpy(everything.scale).float()
    covered, covered_without = [], []
    for seed in range(100, 140):
        one = latent_effects(
            readout, sae, vectors(60, seed), [0, 1, 2, 4], doses=(1.0,), scale=wide
        )
        truth = everything.written.mean
        covered.append((one.written.low <= truth) & (truth <= one.written.high))
        removed = everything.removed.mean
        covered_without.append((one.removed.low <= removed) & (removed <= one.removed.high))
    # 640 intervals of 95%, of which those of a run are related; percentiles are a little narrow.
    assert 0.90 < np.mean(covered) < 0.98
    assert 0.85 < np.mean(covered_without) < 0.98


def test_an_effect_that_forgets_the_scale_of_its_input_is_seen() -> None:
    """The original added the decoder row of a standardised activation to the activation itself."""
    torch.manual_seed(3)
    made = double()
    mean, std = torch.randn(WIDTH).double(), torch.rand(WIDTH).double() * 4 + 0.2
    last = nn.Linear(WIDTH, CLASSES).double().requires_grad_(False)
    x = mean + std * vectors(50, 4)
    standardised = Sae(made, SITE)

    def on_standardised(z: Tensor) -> Tensor:
        return last(z * std + mean)

    right = latent_effects(on_standardised, standardised, (x - mean) / std, doses=(1.0,))
    wrong = latent_effects(last, standardised, x, doses=(1.0,), scale=torch.from_numpy(right.scale))
    # By hand: the row in units of the activation.
    expected = torch.from_numpy(right.scale)[:, None] * (standardised.rows * std) @ last.weight.T
    assert np.allclose(right.written.mean[:, 0], expected, atol=1e-10)
    assert np.abs(wrong.written.mean[:, 0] - expected.numpy()).max() > 0.1


@pytest.mark.parametrize("linear", [True, False])
def test_patterns_are_gradients_of_what_opens_the_latent(sae: Sae, linear: bool) -> None:
    torch.manual_seed(2)
    first, gate = (torch.randn(SIZE * SIZE, WIDTH).double() for _ in range(2))

    def front(images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return flat @ first if linear else (flat @ first) * nn.functional.gelu(flat @ gate)

    at = torch.rand(SIZE, SIZE).double()
    found = input_patterns(front, sae, at)
    assert found.shape == (LATENTS, SIZE, SIZE)
    step = 1e-6
    for i, j in ((0, 0), (2, 3), (4, 1)):
        up, down = at.clone(), at.clone()
        up[i, j] += step
        down[i, j] -= step
        moved = sae.preactivations(front(up[None])) - sae.preactivations(front(down[None]))
        assert torch.allclose(found[:, i, j], moved[0].detach() / (2 * step), atol=1e-6)
    if linear:
        encoder: Any = sae.module.W_enc
        by_hand = (first @ encoder).T.detach()
        assert torch.allclose(found.flatten(1), by_hand, atol=1e-10)
    assert torch.allclose(input_patterns(front, sae, at, [7, 1]), found[[7, 1]])
    with pytest.raises(EffectError, match="is what the SAE"):
        input_patterns(lambda x: front(x)[:, :3], sae, at)


def test_the_bank_counts_labels(sae: Sae, readout: nn.Module, tmp_path: Path) -> None:
    explored, held_out = labelled(300, 5), labelled(80, 6)
    bank, effects = collect_vectors(sae, explored, held_out, readout, examples=4)
    dense = sae.encode(explored.vectors[None])[0].numpy()
    logits = readout(held_out.vectors)
    for j in range(LATENTS):
        row, on = bank.latent(SITE, j), dense[:, j] > 0
        counts = np.bincount(explored.labels.numpy()[on], minlength=CLASSES)
        assert row["active"] == on.sum() and row["rate"] == pytest.approx(on.mean())
        assert dict(zip(row["at"], row["at_count"], strict=True)) == {
            i: n for i, n in enumerate(counts) if n
        }
        assert row["std"] == pytest.approx(dense[:, j].std(), abs=1e-9)
        if not on.any():
            assert row["dead"] and row["purity"] == 0
            continue
        assert row["purity"] == counts.max() / counts.sum()
        shown = bank.examples[bank.examples["latent"] == j]  # type: ignore[index]
        order = np.argsort(-dense[:, j], kind="stable")[: min(4, on.sum())]
        assert list(shown["context"]) == list(order)
        assert np.allclose(shown["value"], dense[order, j], rtol=1e-5)
        # One standard deviation in, outputs less their mean.
        moved = readout(held_out.vectors + row["std"] * sae.rows[j]) - logits
        moved = (moved - moved.mean(-1, keepdim=True)).mean(0)
        # Which class is found on explored examples, by how much on held-out ones.
        x = explored.vectors
        guess = readout(x + row["std"] * sae.rows[j]) - readout(x)
        guess = (guess - guess.mean(-1, keepdim=True)).mean(0)
        assert row["boosted"] == int(guess.argmax())
        assert row["raised_by"] == pytest.approx(sorted(guess.tolist(), reverse=True), abs=1e-5)
        assert row["effect"] == pytest.approx(float(moved[row["boosted"]]), abs=1e-5)
        assert row["effect_low"] <= row["effect"] <= row["effect_high"]
    assert effects.doses == (-2.0, -1.0, 1.0, 2.0)
    assert bank.describe(SITE, 3) == "never active at 300 positions"
    assert bank.describe(SITE, 0).startswith("on ")
    with pytest.raises(BankError, match=r"those of a circuits\.features\.Gallery"):
        bank.card(SITE, 0)
    again = FeatureBank.load(bank.save(tmp_path / "bank"))
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "bank")])
    assert shown.exit_code == 0 and "Latents on 300 examples" in shown.output
    assert again.describe(SITE, 0) == bank.describe(SITE, 0)
    assert np.allclose(again.latents["effect"], bank.latents["effect"])


def test_what_does_not_fit_is_refused(sae: Sae, readout: nn.Module) -> None:
    x, y = vectors(6, 0), torch.zeros(6, dtype=torch.long)
    with pytest.raises(VectorError, match="as many of each"):
        LabelledVectors(x, y[:5], ("a",))
    with pytest.raises(VectorError, match="labels 0 to 0, but there are 0 classes"):
        LabelledVectors(x, y, ())
    with pytest.raises(VectorError, match="not finite"):
        LabelledVectors(x / 0, y, ("a",))
    with pytest.raises(VectorError, match="labels are whole numbers"):
        LabelledVectors(x, y, ("a", "a"))
    one, other = LabelledVectors(x, y, ("a", "b")), LabelledVectors(x, y, ("a", "c"))
    with pytest.raises(VectorError, match="different classes"):
        collect_vectors(sae, one, other, readout)
    with pytest.raises(VectorError, match="4 outputs for 2 classes"):
        collect_vectors(sae, one, one, readout)
    for doses in ((), (0.0,), (1.0, 1.0)):
        with pytest.raises(EffectError, match="doses"):
            latent_effects(readout, sae, x, doses=doses)
    with pytest.raises(EffectError, match="two at least"):
        latent_effects(readout, sae, x[:1])
    with pytest.raises(EffectError, match="there are 0 to"):
        latent_effects(readout, sae, x, [LATENTS])
    assert spread(sae, x).shape == (LATENTS,)
