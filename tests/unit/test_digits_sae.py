"""The digit classifier and its SAEs: folding, thresholds, both modes, each against brute force."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from circuits.train import SaeOptions, TrainError
from tasks.digits.calibrate import (
    Calibration,
    CalibrationError,
    Trainings,
    active,
    divergence,
    shift_to,
)
from tasks.digits.fidelity import active_means, fidelity, replaced
from tasks.digits.network import DigitClassifier, DigitsError, NetworkOptions, train_classifier
from tasks.digits.sae import (
    SaeTraining,
    Standardiser,
    StandardSae,
    load_sae,
    save_sae,
    train_standard,
)

WIDTH, LATENTS, ROWS = 6, 15, 40


def by_hand(seed: int = 0) -> StandardSae:
    """A JumpReLU SAE with all its weights random, in float64."""
    g = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    rows = torch.nn.functional.normalize(drawn(LATENTS, WIDTH), dim=1)
    thresholds = drawn(LATENTS).abs() * 0.5
    return StandardSae(drawn(WIDTH, LATENTS), drawn(LATENTS), rows, drawn(WIDTH), thresholds)


def raw_rows(seed: int = 1) -> Tensor:
    """Vectors whose components have means and spreads of their own."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, WIDTH, generator=g, dtype=torch.float64)
    return x * torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0, 30.0]) + torch.arange(WIDTH) * 3.0


def test_the_standardisation_is_folded_in_exactly() -> None:
    """Encode, decode and effect of a latent, against standardising and undoing it by hand."""
    sae, x, shift = by_hand(), raw_rows(), 0.2
    mean, std = x.mean(0), x.std(0, correction=0)
    scale = Standardiser.of(x)
    raw = sae.raw(scale, shift, "float64")
    z = (x - mean) / std
    pre = z @ sae.W_enc + sae.b_enc
    f = torch.where(pre > sae.threshold + shift, pre, torch.zeros_like(pre)).clamp(min=0)
    made = (f @ sae.W_dec + sae.b_dec) * std + mean
    assert 0.05 < (f > 0).double().mean() < 0.6
    assert torch.allclose(raw.encode(x[None])[0], f, atol=1e-11)
    assert torch.allclose(raw.reconstruct(x[None])[0], made, atol=1e-11)
    parts = raw.decompose(x[None])
    assert torch.allclose(parts.error[0], x - made, atol=1e-11)
    # One more of latent 3 moves x by its row times the standard deviations: the original's flaw
    # was to add the row itself.
    moved = ((f + torch.eye(LATENTS, dtype=f.dtype)[3]) @ sae.W_dec + sae.b_dec) * std + mean
    assert torch.allclose(moved - made, raw.rows[3].expand_as(made), atol=1e-11)
    assert not torch.allclose(raw.rows[3], sae.W_dec[3], atol=1e-2)


def test_constant_components_and_thresholds_under_zero() -> None:
    x = raw_rows()
    x[:, 2] = 7.0
    scale = Standardiser.of(x)
    assert float(scale.std[2]) == 1 and bool(scale(x)[:, 2].eq(0).all())
    relu = by_hand().raw(scale, shift=-100.0, dtype="float64")
    pre = by_hand().preactivations(scale(x))
    assert torch.allclose(relu.encode(x[None])[0], pre.clamp(min=0), atol=1e-11)


def test_an_sae_is_read_back_from_disk(tmp_path: Path) -> None:
    x, scale = raw_rows().float(), Standardiser.of(raw_rows())
    sae = by_hand().raw(scale, 0.1)
    save_sae(sae, tmp_path / "sae")
    again = load_sae(tmp_path / "sae")
    assert torch.equal(again.encode(x[None]), sae.encode(x[None]))
    path = tmp_path / "weights.safetensors"
    by_hand().save(path)
    found = StandardSae.load(path)
    assert found is not None and torch.equal(found.W_enc, by_hand().W_enc)
    path.write_bytes(path.read_bytes()[:100])
    assert StandardSae.load(path) is None and StandardSae.load(tmp_path / "none") is None


@pytest.mark.parametrize("kind", ["relu", "geglu"])
def test_the_classifier_is_its_two_halves(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DigitClassifier(9, 5, kind).double()
    images = torch.rand(7, 9, dtype=torch.float64)
    z = network.preactivations(images)
    inward, outward = network.inward.weight, network.outward.weight
    assert z.shape == (7, network.width) and network.width == (5 if kind == "relu" else 10)
    if kind == "relu":
        expected = (images @ inward.T).clamp(min=0) @ outward.T
    else:
        gate, value = images @ inward[:5].T, images @ inward[5:].T
        phi = 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
        expected = (gate * phi * value) @ outward.T
    assert torch.allclose(network(images), expected, atol=1e-12)
    assert torch.equal(network(images), network.readout(z))
    assert len(list(network.parameters())) == 2  # no biases
    network.float().save(tmp_path)
    again = DigitClassifier.load(tmp_path)
    assert torch.equal(again(images.float()), network(images.float()))
    (tmp_path / "network.json").write_text("{}")
    with pytest.raises(DigitsError, match="not a whole digit classifier"):
        DigitClassifier.load(tmp_path)


def test_boolean_mode_by_brute_force() -> None:
    x, scale = raw_rows(), Standardiser.of(raw_rows())
    sae, unseen = by_hand().raw(scale, dtype="float64"), raw_rows(seed=2)
    means = active_means(sae, x)
    train, held = sae.encode(x[None])[0].tolist(), sae.encode(unseen[None])[0].tolist()
    rows, offset = sae.rows.tolist(), sae.constant_offset.tolist()
    made = replaced(sae, unseen, "boolean", means)
    for i, latents in enumerate(held):
        wanted = list(offset)
        for k, value in enumerate(latents):
            if value > 0:
                seen = [row[k] for row in train if row[k] > 0]
                mean = sum(seen) / len(seen) if seen else 0.0
                wanted = [w + mean * d for w, d in zip(wanted, rows[k], strict=True)]
        assert torch.allclose(made[i], torch.tensor(wanted, dtype=torch.float64), atol=1e-10)
    with pytest.raises(DigitsError, match="needs the latents' means"):
        replaced(sae, unseen, "boolean")


def test_fidelity_by_brute_force() -> None:
    torch.manual_seed(3)
    network = DigitClassifier(4, WIDTH).double().requires_grad_(False)
    x, labels = raw_rows(seed=2), torch.randint(10, (ROWS,))
    sae = by_hand().raw(Standardiser.of(raw_rows()), dtype="float64")
    found = fidelity(network, sae, raw_rows(), x, labels)
    made = sae.reconstruct(x[None])[0]
    own, now = network.readout(x).argmax(1), network.readout(made).argmax(1)
    one = found["jumprelu"]
    assert one.accuracy == sum(map(int, now == labels)) / ROWS
    assert one.baseline == found["boolean"].baseline == sum(map(int, own == labels)) / ROWS
    assert one.change == pytest.approx(one.accuracy - one.baseline)
    assert one.low <= one.change <= one.high and one.images == ROWS
    assert one.agreement == sum(map(int, own == now)) / ROWS
    variance = float(((x - x.mean(0)) ** 2).sum())
    assert one.explained_variance == pytest.approx(1 - float(((x - made) ** 2).sum()) / variance)
    assert one.l0 == float((sae.encode(x[None])[0] > 0).sum()) / ROWS
    p, q = network.readout(x).softmax(1), network.readout(made).softmax(1)
    by_definition = float((p * (p / q).log()).sum(1).mean())
    assert divergence(network.readout(x), network.readout(made)) == pytest.approx(by_definition)
    assert divergence(p, p) == 0


def test_the_shift_hits_its_target_and_says_when_it_cannot() -> None:
    pre = torch.randn(500, 80, generator=torch.Generator().manual_seed(0))
    threshold = torch.full((80,), 0.5)
    for target in (2.0, 10.0, 30.0):
        shift, l0 = shift_to(pre, threshold, target)
        assert abs(l0 - target) < 0.05
        assert l0 == float(((pre > threshold + shift) & (pre > 0)).sum()) / 500
    with pytest.raises(
        CalibrationError, match=r"there are 39\.\d+ active latents, fewer than the target of 60"
    ):
        shift_to(pre, threshold, 60.0)
    same = torch.ones(10, 8)  # all eight or none
    with pytest.raises(CalibrationError, match="jumps over the target of 4"):
        shift_to(same, torch.zeros(8), 4.0)
    assert shift_to(pre, threshold, active(pre, threshold))[0] == 0


def synthetic(rows: int = 2000, seed: int = 0) -> Tensor:
    """Sums of a few of 24 directions of 12 dimensions, standardised."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(24, 12, generator=torch.Generator().manual_seed(99)), dim=1
    )
    on = (torch.rand(rows, 24, generator=g) < 0.12).float()
    x = (on * (1 + torch.rand(rows, 24, generator=g))) @ directions
    return Standardiser.of(x)(x)


TRAINING = SaeTraining(latents=40, min_steps=100, batch_size=128)


def test_lambda_trades_reconstruction_for_sparsity_and_seeds_reproduce() -> None:
    z = synthetic()
    few, many = train_standard(z, 0.03, TRAINING), train_standard(z, 0.001, TRAINING)
    l0 = [active(sae.preactivations(z), sae.threshold) for sae in (few, many)]
    assert 0.5 < l0[0] < l0[1] - 1
    assert torch.allclose(few.W_dec.norm(dim=1), torch.ones(40), atol=1e-5)
    again = train_standard(z, 0.03, TRAINING)
    other = train_standard(z, 0.03, SaeTraining(latents=40, min_steps=100, batch_size=128, seed=1))
    assert torch.equal(again.W_enc, few.W_enc) and torch.equal(again.threshold, few.threshold)
    assert not torch.equal(other.W_enc, few.W_enc)
    identity = Standardiser(torch.zeros(12).double(), torch.ones(12).double())
    made = many.raw(identity).reconstruct(z[None])[0]
    assert float((made - z).square().sum() / z.square().sum()) < 0.2
    with pytest.raises(DigitsError, match="lambda is 0"):
        train_standard(z, 0.0, TRAINING)


def test_targets_are_hit_share_their_trainings_and_are_taken_up_again(tmp_path: Path) -> None:
    z, held_out = synthetic(), synthetic(500, seed=1)
    identity = Standardiser(torch.zeros(12).double(), torch.ones(12).double())

    def score(sae: StandardSae, shift: float) -> float:
        made = sae.raw(identity, shift).reconstruct(held_out[None])[0]
        return -float((made - held_out).square().mean())

    def calibration(stop: int | None = None) -> Calibration:
        def told(lam: float) -> None:
            if stop is not None and trainings.made == stop:
                raise KeyboardInterrupt

        trainings = Trainings(lambda lam: train_standard(z, lam, TRAINING), tmp_path, told)
        return Calibration(trainings, held_out, score, coarse=(1e-3, 1e-2, 1e-1))

    interrupted = calibration(stop=5)
    with pytest.raises(KeyboardInterrupt):
        interrupted(4.0)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    search = calibration()
    found = {target: search(target) for target in (4.0, 3.0)}
    assert search.trainings.made == len(list(tmp_path.glob("*.safetensors"))) - 5 >= 2
    for target, one in found.items():
        pre = one.sae.preactivations(held_out)
        assert abs(active(pre, one.sae.threshold, one.shift) - target) < 0.5
        assert active(pre, one.sae.threshold, one.shift) == one.l0
        assert active(pre, one.sae.threshold) == one.l0_before
        assert one.score == score(one.sae, one.shift)
        tried = search.path.query(f"stage == 'shift' and target == {target}")
        assert tried["chosen"].sum() == 1
        assert tried.loc[tried["chosen"], "score"].item() == tried["score"].max() == one.score
    assert (search.path["stage"] == "coarse").sum() == 3
    whole = calibration()
    same = whole(4.0)
    assert whole.trainings.made == 0
    assert (same.lam, same.shift) == (found[4.0].lam, found[4.0].shift)
    assert torch.equal(same.sae.W_enc, found[4.0].sae.W_enc)
    with pytest.raises(CalibrationError, match="39 active latents cannot be reached"):
        whole(39.0)
    with pytest.raises(CalibrationError, match="40 active latents of 40 cannot be a target"):
        whole(40.0)


def test_classifiers_of_one_seed_are_the_same() -> None:
    images = torch.rand(60, 16, generator=torch.Generator().manual_seed(0))
    labels = (images[:, :4].argmax(1)).long()
    state = torch.random.get_rng_state()

    def trained(seed: int) -> Tensor:
        options = NetworkOptions(hidden=8, min_steps=20, batch_size=16, seed=seed)
        return train_classifier(images, labels, options, progress=False).inward.weight

    assert torch.equal(trained(0), trained(0)) and not torch.equal(trained(0), trained(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert NetworkOptions().steps(50_000) == 588 and NetworkOptions().steps(3000) == 500
    with pytest.raises(DigitsError, match="unknown network 'mlp'"):
        NetworkOptions("mlp")


def test_the_settings_reach_saelens() -> None:
    options = SaeTraining(latents=40, batch_size=64).options(0.01, 1000, 12)
    assert options.sparsity == pytest.approx(0.12)  # its loss sums over components
    assert round(1000 // 64 * options.epochs) == 1200
    sae = options.sae(12, {}, 100, "cpu")
    assert torch.equal(sae.threshold, torch.full((40,), 0.5))
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(40))
    assert sae.bandwidth == pytest.approx(0.4) and sae.cfg.jumprelu_ste_to_input
    with pytest.raises(TrainError, match="must be positive"):
        SaeOptions(bandwidth=0)
    with pytest.raises(DigitsError, match="the threshold is not negative"):
        SaeTraining(threshold=-1.0)
