"""What the digits study says of latents, against computations by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from circuits.features import FeatureBank, LabelledVectors
from circuits.hypotheses import HypothesesResult
from circuits.saes.sae import Sae
from tasks.digits.data.checks import DataError
from tasks.digits.features import Analysis, _digests, _without, analyse
from tasks.digits.network import DigitClassifier
from tasks.digits.sae import SaeTraining, Standardiser, train_standard
from tasks.digits.task import DigitImages

LATENTS = 48


@pytest.fixture(scope="module")
def task() -> DigitImages:
    return DigitImages("sklearn")


@pytest.fixture(scope="module", params=["relu", "geglu"])
def network(
    request: pytest.FixtureRequest, task: DigitImages, tmp_path_factory: pytest.TempPathFactory
) -> DigitClassifier:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUITS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return task.load(request.param, hidden=24, min_steps=300, progress=False, device="cpu")


@pytest.fixture(scope="module")
def sae(task: DigitImages, network: DigitClassifier) -> Sae:
    x = network.preactivations(task.examples("train")[0])
    scale = Standardiser.of(x)
    options = SaeTraining(latents=LATENTS, min_steps=80, batch_size=128)
    return train_standard(scale(x), 1e-3, options).raw(scale)


@pytest.fixture(scope="module")
def found(task: DigitImages, network: DigitClassifier, sae: Sae) -> Analysis:
    return analyse(task, network, sae, progress=False)


def test_the_report_is_what_writing_latents_in_does(
    task: DigitImages, network: DigitClassifier, sae: Sae, found: Analysis, tmp_path: Path
) -> None:
    found.save(tmp_path / "features", pictures=2)
    report = json.loads((tmp_path / "features" / "feature_report.json").read_text())
    train, labels = task.examples("train")
    active = sae.encode(network.preactivations(train)[None])[0].double()
    alive = (active != 0).any(0)
    rates = [one["mean_active"] for one in report]
    assert rates == sorted(rates, reverse=True)
    assert sorted(one["feature"] for one in report) == alive.nonzero().flatten().tolist()
    x = network.preactivations(task.examples("validation")[0]).double()
    double = network.double()
    try:
        plain = double.readout(x)
        for one in report:
            j = one["feature"]
            on = active[:, j] != 0
            std = active[:, j].std(correction=0)
            assert one["mean_active"] == pytest.approx(float(on.double().mean()))
            assert one["std"] == pytest.approx(float(std), rel=1e-5)
            counts = torch.bincount(labels[on], minlength=10)
            assert counts[one["label_mode_when_active"]] == counts.max()
            moved = double.readout(x + std * sae.rows[j].double()) - plain
            delta = (moved - moved.mean(-1, keepdim=True)).mean(0)
            assert one["logit_delta_vector"] == pytest.approx(delta.tolist(), abs=1e-5)
            low, high = one["effect_95"]
            assert low <= one["logit_delta_vector"][one["logit_boost_class"]] <= high
    finally:
        network.float()
    table = pd.read_parquet(tmp_path / "features" / "effects.parquet")
    row = table[(table["latent"] == report[0]["feature"]) & (table["dose"] == 1.0)]
    assert row["mean"].tolist() == pytest.approx(report[0]["logit_delta_vector"])
    assert len(table) == LATENTS * 5 * 10  # four doses, and taken out
    assert FeatureBank.load(tmp_path / "features" / "bank").record["kind"] == "vectors"
    again = HypothesesResult.load(tmp_path / "features" / "hypotheses")
    assert again.counts() == found.hypotheses.counts()
    names = sorted(p.name for p in (tmp_path / "features" / "pictures").iterdir())
    first = found.gallery.alive()[0]
    assert len(names) == 8 and f"feature_{first}_pattern.npy" in names
    assert (tmp_path / "features" / "index.html").stat().st_size > 1_000_000


def test_patterns_go_through_the_standardisation(
    network: DigitClassifier, sae: Sae, found: Analysis
) -> None:
    patterns = found.gallery.patterns
    assert patterns is not None and patterns.shape == (LATENTS, 8, 8)
    weight = network.inward.weight  # [width, pixel]
    encoder = sae.module.W_enc  # of raw pre-activations: divided by their standard deviations
    assert isinstance(encoder, torch.Tensor)
    assert torch.allclose(patterns.flatten(1), (weight.T @ encoder).T, atol=1e-5)


def test_hypotheses_are_made_and_tested_on_different_images(found: Analysis) -> None:
    record = found.hypotheses.record
    assert record["explored"] == 1078 and record["evidence"]["examples"] == 360
    table: Any = found.hypotheses.table
    assert set(table["claim"]) == {"fires_on", "raises"} and table["verdict"].nunique() > 1
    latent = int(table["latent"].iloc[0])
    lines = found.gallery.verdicts[latent]
    mine = table[table["latent"] == latent]
    assert len(lines) == len(mine)
    assert lines[0].startswith(mine["verdict"].iloc[0].upper())
    assert mine["statement"].iloc[0] in lines[0]
    title = found.gallery.card(latent).layout.title.text
    assert mine["statement"].iloc[0] in title


def labelled(images: torch.Tensor) -> LabelledVectors:
    """Labels and vectors that say which image each is of."""
    first = images[:, 0, 0]
    return LabelledVectors(first[:, None], first.long(), tuple("0123456789"), images)


def test_copies_of_training_images_are_not_tested_on() -> None:
    images = torch.arange(7.0)[:, None, None] + torch.linspace(0, 0.5, 9).view(3, 3)
    trained = labelled(images[[0, 1, 1, 2]])  # one of them twice
    which = set(_digests(trained.inputs)) if trained.inputs is not None else set()
    left = _without(labelled(images[[3, 1, 4, 4, 0, 5, 1]]), which)
    assert left.labels.tolist() == [3, 4, 4, 5]  # copies within the test images stay
    assert left.vectors.flatten().tolist() == [3.0, 4.0, 4.0, 5.0]
    assert left.inputs is not None and torch.equal(left.inputs, images[[3, 4, 4, 5]])
    assert left.classes == trained.classes
    same = _without(labelled(images[[6, 3]]), which)
    assert same.labels.tolist() == [6, 3]
    with pytest.raises(DataError, match="all 3 test images are among the training images"):
        _without(labelled(images[[1, 0, 1]]), which)


def test_the_analysis_leaves_copies_out(
    task: DigitImages, network: DigitClassifier, sae: Sae
) -> None:
    """Training images put among scikit-learn's 360 test images."""
    (images, labels), (more, theirs) = task.examples("test"), task.examples("train")
    test = torch.cat([images, more[:50]]), torch.cat([labels, theirs[:50]])
    mixed = DigitImages("sklearn")
    vars(mixed)["digits"] = replace(task.digits, parts={**task.digits.parts, "test": test})
    assert len(mixed.examples("test")[0]) == 410
    record = analyse(mixed, network, sae, progress=False).hypotheses.record
    assert record["evidence"]["examples"] == 360
