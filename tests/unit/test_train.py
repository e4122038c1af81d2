"""Training on stored activations, its resumption, and the command from text to cards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from circuits.cli import app
from circuits.models.hooked import HookedModel
from circuits.runs import sha256_of
from circuits.saes import load_saes
from circuits.saes.quality import Moments
from circuits.saes.sae import Sae
from circuits.sites import Site
from circuits.train import SaeOptions, Store, TrainError, train_sae, train_saes
from circuits.train import trainer as training
from circuits.train.original import original_history, write_sae, write_states
from circuits.train.store import Manifest, Shard
from tests import corpus, tiny
from tests.unit.test_train_store import digests


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


def synthetic(folder: Path, rows: int = 40_000, width: int = 24, truth: int = 48) -> Any:
    """A store of sparse sums of known directions, and the directions."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(truth, width, generator=draw)
    directions /= directions.norm(dim=1, keepdim=True)

    def sample(count: int) -> torch.Tensor:
        active = torch.rand(count, truth, generator=draw) < 3 / truth
        strength = 1 + torch.rand(count, truth, generator=draw)
        return (active * strength) @ directions + 0.5

    key = {
        "model": "made",
        "model_sha256": "0",
        "sites": ["resid_post.1"],
        "widths": [width],
        "corpus": {"prepend_bos": False, "context": 8, "sources": [{"name": "made"}]},
    }
    shards = []
    for split, count in (("train", rows), ("heldout", 4000)):
        name = f"{split}-00000.safetensors"
        save_file({"resid_post.1": sample(count).to(torch.bfloat16)}, folder / name)
        shards.append(Shard(name, split, 0, count, ""))  # pyright: ignore[reportArgumentType]
    Manifest(key, tuple(shards), True).write(folder)
    return Store.open(folder), directions


OPTIONS = SaeOptions(
    width=64, sparsity=3, l0_range=(2.0, 5.0), batch_size=512, epochs=8, learning_rate=4e-3
)


def test_known_directions_are_recovered(tmp_path: Path) -> None:
    """Mean over true directions of the largest cosine with a decoder row; random rows have .6."""
    store, directions = synthetic(tmp_path)
    site = Site(1, "resid_post")
    trained = train_sae(store, site, OPTIONS, tmp_path / "saes", progress=False)
    sae = training.load_trained(trained.best, site)
    rows = sae.rows / sae.rows.norm(dim=1, keepdim=True)
    assert torch.allclose(sae.rows.norm(dim=1), torch.ones(64), atol=1e-4)
    assert float((directions @ rows.T).max(1).values.mean()) > 0.9
    moments = training.measure_rows(sae, store)
    assert moments.explained_variance > 0.75
    assert 2 < moments.l0 < 5
    assert 0.9 < moments.shrinkage < 1.1
    history = trained.history
    assert [e["step"] for e in history] == sorted(e["step"] for e in history)
    best = min(history, key=lambda e: e["score"])
    assert [e for e in history if e["best"]][-1] == best


@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "jumprelu", "standard"])
def test_a_training_that_was_interrupted_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: Any
) -> None:
    store, _ = synthetic(tmp_path, rows=6000)
    site = Site(1, "resid_post")
    sparsity = {"batchtopk": 3, "topk": 3, "jumprelu": 0.1, "standard": 0.1}[architecture]
    options = replace(OPTIONS, architecture=architecture, sparsity=sparsity, epochs=3)
    whole = train_sae(store, site, options, tmp_path / "whole", progress=False)
    real, steps = training.Run.advance, []

    def dies(self: Any) -> Any:
        steps.append(self.step)
        if len(steps) == 20:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(training.Run, "advance", dies)
    with pytest.raises(KeyboardInterrupt):
        train_sae(store, site, options, tmp_path / "again", progress=False)
    assert not (tmp_path / "again" / "final").exists()
    with pytest.raises(TrainError, match="training of other options"):
        train_sae(store, site, replace(options, seed=1), tmp_path / "again", progress=False)
    again = train_sae(store, site, options, tmp_path / "again", progress=False)
    assert steps[20] == 16  # every fourth step is kept
    for kind in ("best", "final"):
        one, two = (load_file(getattr(t, kind) / "sae_weights.safetensors") for t in (whole, again))
        assert all(torch.equal(one[k], two[k]) for k in one)
    assert again.history == whole.history
    assert not (tmp_path / "again" / "resume" / str(site)).exists()
    done = len(steps)
    assert train_sae(store, site, options, tmp_path / "again", progress=False).history
    assert len(steps) == done  # what is finished is not trained again


@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "jumprelu", "standard"])
def test_what_is_saved_is_what_was_trained(tmp_path: Path, architecture: Any) -> None:
    """The scale folded into the weights, against SAELens' own SAE on scaled inputs."""
    store, _ = synthetic(tmp_path, rows=4000)
    sparsity = {"batchtopk": 3, "topk": 3, "jumprelu": 0.1, "standard": 0.1}[architecture]
    options = replace(OPTIONS, architecture=architecture, sparsity=sparsity)
    site = Site(1, "resid_post")
    run = training.Run(store, site, options, torch.float32, "cpu")
    for _ in range(30):
        run.advance()
    run.export(tmp_path / "out")
    sae = training.load_trained(tmp_path / "out", site)
    x = next(store.rows(site, "heldout"))[:256]
    scale = run.trainer.activation_scaler.scaling_factor
    trained = run.trainer.sae
    with torch.no_grad():
        if architecture == "batchtopk":  # trained with a batch's own threshold
            hidden = (x * scale - trained.b_dec) @ trained.W_enc + trained.b_enc
            hidden = hidden * trained.W_dec.norm(dim=1)
            latents = hidden * (hidden > trained.topk_threshold)
        else:
            latents = trained.encode(x * scale)
        wanted = trained.decode(latents) / scale
    mine = x - sae.decompose(x[None]).error[0]
    assert torch.allclose(mine, wanted, atol=2e-4)
    assert torch.allclose(sae.rows.norm(dim=1), torch.ones(64), atol=1e-4)


def test_moments_by_hand(tmp_path: Path) -> None:
    from tests.unit.test_saes import make_sae

    sae = Sae(make_sae("jumprelu", "blocks.1.hook_resid_post"), Site(1, "resid_post"))
    x = torch.randn(100, 32) + 1
    moments = Moments(sae.d_sae)
    for part in x.split(30):
        moments.add(sae, part)
    latents = sae.encode(x[None])[0]
    made = (x - sae.decompose(x[None]).error[0]).double().numpy()
    wide = x.double().numpy()
    centred, fitted = wide - wide.mean(0), made - wide.mean(0)
    ev = 1 - ((wide - made) ** 2).sum() / (centred**2).sum()
    assert moments.explained_variance == pytest.approx(ev, rel=1e-6)
    assert moments.l0 == pytest.approx(float((latents != 0).sum(1).float().mean()))
    assert moments.shrinkage == pytest.approx((fitted**2).sum() / (fitted * centred).sum())
    assert moments.dead == pytest.approx(float((latents == 0).all(0).float().mean()))


def test_outliers_do_not_decide_what_is_explained(tmp_path: Path) -> None:
    store, _ = synthetic(tmp_path, rows=3000)
    site = Site(1, "resid_post")
    trained = train_sae(store, site, replace(OPTIONS, epochs=2), tmp_path / "s", progress=False)
    sae = training.load_trained(trained.best, site)
    path = tmp_path / "heldout-00000.safetensors"
    rows = load_file(path)["resid_post.1"]
    rows[::500] *= 300
    save_file({"resid_post.1": rows}, path)
    typical, outliers = training.measure_card_rows(sae, store)
    assert (typical.rows, outliers.rows) == (3992, 8)
    wanted = Moments(sae.d_sae)
    wanted.add(sae, rows[[i for i in range(4000) if i % 500]].float())
    assert typical.explained_variance == pytest.approx(wanted.explained_variance, rel=1e-6)
    both = typical.with_(outliers)
    whole = training.measure_rows(sae, store)
    assert both.explained_variance == pytest.approx(whole.explained_variance, rel=1e-6)
    assert (both.l0, both.dead) == (whole.l0, whole.dead)
    assert abs(both.explained_variance - typical.explained_variance) > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gated"}, "unknown architecture 'gated'"),
        ({"sparsity": 65}, "65 active latents of 64"),
        ({"architecture": "topk", "sparsity": 2.5}, "whole number"),
        ({"l0_range": (5.0, 2.0)}, "expected 0 < low < high"),
        ({"sparsity": 0}, "positive number"),
        ({"epochs": 0}, "must be positive"),
    ],
)
def test_options_that_mean_nothing(options: Any, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        replace(OPTIONS, **options)


def test_trainings_that_cannot_be(tmp_path: Path) -> None:
    store, _ = synthetic(tmp_path, rows=300)
    site = Site(1, "resid_post")
    with pytest.raises(TrainError, match="300 rows and 8 epochs do not make 3 batches of 512"):
        train_sae(store, site, OPTIONS, tmp_path / "a", progress=False)
    with pytest.raises(TrainError, match="held-out share of 0 leaves nothing"):
        train_saes(
            tiny.bridge("llama"),
            corpus.corpus(corpus.write(tmp_path / "texts", 3), heldout=0.0),
            [site],
            OPTIONS,
            cache_dir=tmp_path / "c",
            save_dir=tmp_path / "d",
        )
    hot = replace(OPTIONS, batch_size=64, learning_rate=1e30)
    with pytest.raises(TrainError, match=r"the loss of resid_post\.1 is .* lower --learning-rate"):
        train_sae(store, site, hot, tmp_path / "b", progress=False)
    unheld = replace(store.manifest, shards=store.manifest.shards[:1])
    with pytest.raises(TrainError, match="nothing was held out"):
        train_sae(Store(tmp_path, unheld), site, OPTIONS, tmp_path / "c", progress=False)


def test_the_original_files(tmp_path: Path) -> None:
    store, _ = synthetic(tmp_path, rows=3000)
    site = Site(1, "resid_post")
    trained = train_sae(store, site, replace(OPTIONS, epochs=1), tmp_path / "s", progress=False)
    write_sae(trained, site, tmp_path / "o")
    states = np.load(write_states(store, site, tmp_path / "o"), mmap_mode="r")
    assert states.shape == (3000, 24)
    assert np.allclose(states[:100], next(store.rows(site, "train"))[:100].numpy(), atol=1e-2)
    names = {p.name for p in (tmp_path / "o").iterdir()}
    assert names == {
        "layer_1_states.npy",
        "sae_layer_1_best.safetensors",
        "sae_layer_1_final.safetensors",
        "sae_layer_1_history.json",
    }
    keys = "train_loss val_loss recon_loss sparsity_loss train_sparsity sparsity lr".split()
    history = json.loads((tmp_path / "o" / "sae_layer_1_history.json").read_text())
    assert list(history) == keys
    assert history == original_history(trained.history)
    assert history["val_loss"][-1] < history["val_loss"][0]


def test_the_command_from_text_to_cards(model: HookedModel, tmp_path: Path) -> None:
    hf = tiny.hugging_face("llama")
    hf.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    texts = corpus.write(tmp_path / "texts")
    text = ["--corpus", str(texts), "--heldout", "0.2", "--context", "24", "--num-tokens", "99999"]
    words = ["train", "--model", str(tmp_path / "model"), "--layers", "1"]
    words += ["--cache-dir", str(tmp_path / "acts"), "--save-dir", str(tmp_path / "saes")]
    words += ["--width", "64", "--sparsity", "8", "--batch-size", "256", "--ce-tokens", "300"]
    runner = CliRunner()
    done = runner.invoke(app, [*words, *text, "--extract-only"], obj=words)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "saes").exists()
    before = digests(tmp_path / "acts")
    more = ["--train-only", "--save-dtype", "bfloat16", "--format", "original"]
    done = runner.invoke(app, [*words, *more], obj=words)
    assert done.exit_code == 0, done.output
    assert digests(tmp_path / "acts") == before
    folder = tmp_path / "saes" / "best" / "resid_post.1"
    weights = load_file(folder / "sae_weights.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    card = json.loads((folder / "card.json").read_text())
    measured = card["heldout"]
    names = "l0 explained_variance explained_variance_all outliers ce_recovered dead shrinkage"
    assert set(measured) == set(names.split())
    assert card["passed"].keys() == card["targets"].keys()
    assert card["sha256"] == sha256_of(folder / "sae_weights.safetensors")
    text = (folder / "card.txt").read_text()
    assert ("FAIL" in text) == (not all(card["passed"].values()))
    assert "explained_variance" in done.output
    loaded = load_saes(tmp_path / "saes" / "best", model)
    [site] = loaded
    assert site == Site(1, "resid_post")
    assert loaded.sources[site].architecture == "jumprelu"
    assert card["ce_tokens"] >= 300 and card["measured_rows"] > 300
    # The bfloat16 weights are what the card was measured with.
    moments = training.measure_rows(loaded[site], Store.open(tmp_path / "acts"))
    assert moments.explained_variance == pytest.approx(measured["explained_variance_all"], abs=1e-6)
    assert (tmp_path / "saes" / "sae_layer_1_history.json").is_file()
    assert (tmp_path / "acts" / "layer_1_states.npy").is_file()


def test_options_of_the_command_that_contradict_each_other() -> None:
    for words, message in (
        (["--extract-only", "--train-only"], "contradict each other"),
        (["--sites", "z.1", "--layers", "2"], "contradicts --layers"),
        (["--architecture", "jumprelu"], "needs --sparsity"),
        (["--l0-range", "5"], "expected LOW,HIGH"),
        (["--train-only", "--num-tokens", "5"], "--num-tokens and --train-only contradict"),
        (["--layers", "5-3"], "runs backwards"),
    ):
        done = CliRunner().invoke(app, ["train", *words], obj=[])
        assert message in str(done.exception)
