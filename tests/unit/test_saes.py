"""SAEs of every format and architecture: loaded, refused, and decomposed exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from circuits.models.hooked import HookedModel
from circuits.saes import Sae, SaeError, SaeSet, load_saes
from circuits.sites import Site
from tests import tiny

WIDTH, LATENTS = 32, 48


def make_sae(
    architecture: str, hook: str, *, seed: int = 0, width: int = WIDTH, **more: Any
) -> Any:
    """A random SAELens SAE with about a quarter of its latents active."""
    import sae_lens

    torch.manual_seed(seed)
    names = {"standard": "Standard", "gated": "Gated", "topk": "TopK", "jumprelu": "JumpReLU"}
    name = names[architecture]
    if architecture == "topk":
        more.setdefault("k", 7)
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=hook, model_name="tiny", prepend_bos=False)
    config = getattr(sae_lens, f"{name}SAEConfig")(d_in=width, d_sae=LATENTS, **more)
    config.metadata = metadata
    sae = getattr(sae_lens, f"{name}SAE")(config)
    for parameter in sae.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    if architecture == "jumprelu":
        sae.threshold.data = sae.threshold.data.abs() + 0.5
    return sae


def only(saes: SaeSet) -> Sae:
    """The one SAE of a set."""
    [site] = saes
    return saes[site]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu"])
def test_latents_and_error_make_up_the_activation(
    model: HookedModel, tmp_path: Path, architecture: str, normalize: str
) -> None:
    sae = make_sae(architecture, "blocks.1.hook_resid_post", normalize_activations=normalize)
    sae.save_model(tmp_path)
    saes = load_saes(tmp_path, model)
    [site] = saes
    assert site == Site(1, "resid_post") and saes.sources[site].architecture == architecture
    x = 3 * torch.randn(2, 5, WIDTH) + 1
    parts = saes[site].decompose(x)
    dense = sae.encode(x)
    expected = sae.decode(dense).detach()
    assert torch.allclose(parts.latents.dense(), dense.detach(), atol=1e-6)
    assert 0 < len(parts.latents.value) < dense.numel() * 0.9
    assert (parts.error - (x - expected)).abs().max() < 1e-5
    # offset + scale * latents * rows + error, in our own arithmetic, is the activation
    assert ((saes[site].compose(parts) - x).norm(dim=-1) / x.norm(dim=-1)).max() < 1e-6
    # and a latent's share is its activation times the effective decoder row
    without = saes[site].compose(parts) - parts.error
    assert (without - expected).abs().max() < 1e-5


def test_rescaling_by_decoder_norms_is_in_the_rows(model: HookedModel, tmp_path: Path) -> None:
    hook = "blocks.0.hook_mlp_out"
    make_sae("topk", hook, rescale_acts_by_decoder_norm=True).save_model(tmp_path)
    sae = only(load_saes(tmp_path, model))
    assert torch.allclose(sae.rows.norm(dim=-1), torch.ones(LATENTS), atol=1e-6)
    x = torch.randn(1, 4, WIDTH)
    assert (sae.compose(sae.decompose(x)) - x).abs().max() < 1e-5


def test_attention_saes_read_the_heads_side_by_side(model: HookedModel, tmp_path: Path) -> None:
    sae = make_sae("jumprelu", "blocks.2.attn.hook_z", reshape_activations="hook_z")
    sae.save_model(tmp_path)
    found = only(load_saes(tmp_path, model))
    x = torch.randn(2, 3, WIDTH)
    by_heads = sae.encode(x.view(2, 3, 4, 8)).detach()
    assert torch.allclose(found.encode(x), by_heads, atol=1e-6)


def test_gemma_scope_files(model: HookedModel, tmp_path: Path) -> None:
    sae = make_sae("jumprelu", "blocks.3.hook_resid_post", apply_b_dec_to_input=False)
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_59"
    folder.mkdir(parents=True)
    arrays = {k: v.detach().numpy() for k, v in sae.named_parameters()}
    np.savez(folder / "params.npz", **arrays)
    saes = load_saes(tmp_path, model)
    [site], found = saes, only(saes)
    x = torch.randn(2, 3, WIDTH)
    assert site == Site(3, "resid_post")
    assert torch.allclose(found.encode(x), sae.encode(x).detach(), atol=1e-6)
    assert load_saes(tmp_path, model).sources[site].prepend_bos is True


@pytest.mark.parametrize(
    "folder",
    ["gemma-scope-2b-pt-transcoders/layer_3", "my-mlp-study/layer_3", "gemma-scope-2b-pt-res"],
)
def test_gemma_files_that_do_not_say_where_they_belong(
    model: HookedModel, tmp_path: Path, folder: str
) -> None:
    (tmp_path / folder).mkdir(parents=True)
    np.savez(tmp_path / folder / "params.npz", W_enc=np.zeros((WIDTH, LATENTS), np.float32))
    with pytest.raises(SaeError, match="the path must hold the release's name and the layer"):
        load_saes(tmp_path, model)


@pytest.mark.parametrize("damage", ["cut short", "other size"])
def test_damaged_weights_are_named(model: HookedModel, tmp_path: Path, damage: str) -> None:
    make_sae("standard", "blocks.1.hook_resid_post").save_model(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:500])
    else:
        config = json.loads((tmp_path / "cfg.json").read_text())
        (tmp_path / "cfg.json").write_text(json.dumps({**config, "d_sae": 7}))
    with pytest.raises(
        SaeError, match=r"could not be loaded|sae_weights\.safetensors cannot be read"
    ):
        only(load_saes(tmp_path, model))


def test_options_for_releases_are_not_for_folders(model: HookedModel, tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="l0 and width choose among a release's SAEs"):
        load_saes(tmp_path, model, l0=100.0)


def test_llama_scope_files(model: HookedModel, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    weights = {
        "encoder.weight": torch.randn(LATENTS, WIDTH),
        "encoder.bias": torch.randn(LATENTS),
        "decoder.weight": torch.randn(WIDTH, LATENTS),
        "decoder.bias": torch.randn(WIDTH),
    }
    save_file(weights, tmp_path / "checkpoints" / "final.safetensors")
    settings = {
        "d_model": WIDTH,
        "d_sae": LATENTS,
        "hook_point_in": "blocks.2.hook_resid_post",
        "hook_point_out": "blocks.2.hook_resid_post",
        "jump_relu_threshold": 0.7,
        "dataset_average_activation_norm": {"in": 11.0},
    }
    (tmp_path / "hyperparams.json").write_text(json.dumps(settings))
    found = only(load_saes(tmp_path, model))
    x = torch.randn(2, 3, WIDTH)
    scale = WIDTH**0.5 / 11.0
    hidden = scale * x @ weights["encoder.weight"].T + weights["encoder.bias"]
    # SAELens scales the threshold together with the input.
    expected = torch.where(hidden > 0.7 * scale, hidden, 0).relu()
    assert torch.allclose(found.encode(x), expected, atol=1e-5)
    parts = found.decompose(x)
    recon = (expected @ weights["decoder.weight"].T + weights["decoder.bias"]) / scale
    assert (parts.error - (x - recon)).abs().max() < 1e-4
    settings["hook_point_out"] = "blocks.2.hook_mlp_out"
    (tmp_path / "hyperparams.json").write_text(json.dumps(settings))
    with pytest.raises(SaeError, match="it is a transcoder"):
        load_saes(tmp_path, model)


def test_the_memory_bound_holds_and_does_not_change_results(
    model: HookedModel, tmp_path: Path
) -> None:
    for layer in range(4):
        sae = make_sae("jumprelu", f"blocks.{layer}.hook_resid_post", seed=layer)
        sae.save_model(tmp_path / str(layer))
    x = torch.randn(1, 2, WIDTH)
    free = load_saes(tmp_path, model)
    one = sum(p.numel() * 4 for p in sae.parameters())
    tight = load_saes(tmp_path, model, memory=int(2.2 * one))
    assert tight.nbytes == 0  # nothing is loaded before it is asked for
    for site in [*free, *reversed(list(free))]:
        assert torch.equal(free[site].encode(x), tight[site].encode(x))
        assert 0 < tight.nbytes <= 2.2 * one
    assert free.nbytes == 4 * one
    assert list(load_saes(tmp_path, model, layers=[1, 3])) == [
        Site(1, "resid_post"),
        Site(3, "resid_post"),
    ]


def _spoil(folder: Path, how: str) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    weights = folder / "sae_weights.safetensors"
    if how == "hook":
        config["metadata"]["hook_name"] = "blocks.1.hook_foo"
    elif how == "layer":
        config["metadata"]["hook_name"] = "blocks.9.hook_resid_post"
    elif how == "transcoder":
        config["architecture"] = "transcoder"
        config["metadata"]["hook_name"] = "blocks.1.ln2.hook_normalized"
    elif how == "scale":
        config["normalize_activations"] = "expected_average_only_in"
    elif how == "whitening":
        config["normalize_activations"] = "covariance_whitening"
    elif how == "folded":
        config["metadata"]["hook_name"] = "blocks.1.attn.hook_z"
        config["metadata"]["model_from_pretrained_kwargs"] = {"fold_value_biases": True}
    elif how == "no architecture":
        del config["architecture"]
    elif how == "no width":
        del config["d_in"]
    elif how == "no weights":
        weights.unlink()
    elif how == "pickle":
        weights.rename(folder / "sae.pt")
        (folder / "cfg.json").unlink()
        return
    elif how == "nothing":
        (folder / "cfg.json").unlink()
        return
    (folder / "cfg.json").write_text("{" if how == "json" else json.dumps(config))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("hook", "reads an unknown hook"),
        ("layer", "reads resid_post.9, but .* layers 0 to 3"),
        ("transcoder", "which is a transcoder: expected one of standard, gated"),
        ("scale", "'expected_average_only_in', whose statistics are not stored with it"),
        ("whitening", "'covariance_whitening', whose statistics are not stored with it"),
        ("folded", r"changed by TransformerLens \(fold_value_biases\)"),
        ("no width", r"it lacks d_in in cfg\.json"),
        ("no architecture", r"it lacks architecture in cfg\.json"),
        ("no weights", r"it lacks sae_weights\.safetensors"),
        ("pickle", r"holds pickled weights .*never loaded"),
        ("nothing", r"holds no SAE: expected cfg\.json"),
        ("json", "is not JSON"),
    ],
)
def test_what_is_not_an_sae_is_refused(
    model: HookedModel, tmp_path: Path, how: str, message: str
) -> None:
    make_sae("standard", "blocks.1.hook_resid_post").save_model(tmp_path)
    _spoil(tmp_path, how)
    with pytest.raises(SaeError, match=message):
        load_saes(tmp_path, model)


def test_an_sae_of_another_width_is_refused(model: HookedModel, tmp_path: Path) -> None:
    make_sae("standard", "blocks.1.hook_resid_post", width=16).save_model(tmp_path)
    with pytest.raises(SaeError, match=r"takes vectors of width 16, .* has width 32: .*tiny"):
        load_saes(tmp_path, model)


def test_a_site_that_the_model_lacks(tmp_path: Path) -> None:
    make_sae("standard", "blocks.1.hook_resid_mid").save_model(tmp_path)
    with pytest.raises(SaeError, match="read the same stream in parallel"):
        load_saes(tmp_path, tiny.bridge("pythia"))


def test_non_finite_weights_and_two_saes_for_a_site(model: HookedModel, tmp_path: Path) -> None:
    sae = make_sae("standard", "blocks.1.hook_resid_post")
    sae.W_dec.data[3, 4] = float("nan")
    sae.save_model(tmp_path / "a")
    with pytest.raises(SaeError, match="non-finite values in W_dec"):
        load_saes(tmp_path, model)
    sae.W_dec.data[3, 4] = 0.0
    sae.save_model(tmp_path / "a")
    sae.save_model(tmp_path / "b")
    with pytest.raises(SaeError, match=r"two SAEs for resid_post\.1"):
        load_saes(tmp_path, model)
    with pytest.raises(SaeError, match="has no SAEs for layers 0"):
        load_saes(tmp_path, model, layers=[0])


def test_saes_of_centred_models_on_models_as_published(tmp_path: Path) -> None:
    """TransformerLens' `center_writing_weights` against the centring inside `Sae`."""
    plain, centred = tiny.hooked_transformer(), tiny.hooked_transformer()
    module: Any = centred.module
    state = {k: v.clone() + 0.05 for k, v in module.state_dict().items()}  # nothing is centred yet
    plain.module.load_state_dict(state)
    module.load_and_process_state_dict(
        state,
        fold_ln=False,
        center_writing_weights=True,
        center_unembed=False,
        fold_value_biases=False,
    )
    sae = make_sae("standard", "blocks.1.hook_resid_post")
    sae.cfg.metadata.model_from_pretrained_kwargs = {"center_writing_weights": True}
    sae.save_model(tmp_path)
    ours = only(load_saes(tmp_path, plain))
    site, tokens = ours.site, torch.randint(1, 90, (2, 9))
    there, here = (m.activations(tokens, [site])[site] for m in (centred, plain))
    assert float((there - here).abs().max()) > 0.1
    parts = ours.decompose(here)
    assert torch.allclose(parts.latents.dense(), sae.encode(there), atol=1e-4)
    assert torch.allclose(ours.compose(parts), here, atol=1e-5)
    assert torch.allclose(ours.encode(here), parts.latents.dense())
