"""`HookedModel` against plain Hugging Face models, TransformerLens and finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.check import check_model
from circuits.models.hooks import HookError, HookSet, hooks_left
from circuits.models.load import find_device, find_dtype, load_model
from circuits.models.patches import PatchError, Patches
from circuits.sites import SITE_KINDS, Site, SiteError
from circuits.task import Inputs
from tests import naive, tiny


def tokens(rows: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(
        3, tiny.VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def one_patch(site: Site, position: int, value: Tensor) -> Patches:
    return Patches(site, torch.tensor([0]), torch.tensor([position]), value[None])


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_logits_and_activations_are_those_of_the_wrapped_model(kind: str) -> None:
    model, plain = tiny.bridge(kind), tiny.hugging_face(kind)
    x = tokens()
    with torch.no_grad():
        expected = plain(x).logits
    assert (model.run_all_positions(x) - expected).abs().max() < 1e-5
    late = model.run_all_positions(x, last=3)
    assert late.shape == expected[:, -3:].shape and (late - expected[:, -3:]).abs().max() < 1e-5
    sites = [Site(layer, k) for layer in range(4) for k in SITE_KINDS if model.has(k)]
    logits, values = model.cache(x, sites)
    assert (logits - expected[:, -1]).abs().max() < 1e-5
    for site in sites:
        assert (values[site] - naive.activation(plain, x, site.layer, site.kind)).abs().max() < 1e-4
    _, late = model.cache(x, sites, first=4)
    assert all(torch.equal(late[s], values[s][:, 4:]) for s in sites)


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_the_load_check_finds_that_resuming_agrees(kind: str) -> None:
    found = tiny.bridge(kind).check
    assert found.failure == "" and found.resumes
    assert found.resume_error < 1e-5 and found.stream_error < 1e-6 and found.rounding == 0


def test_in_bfloat16_rounding_is_measured_and_the_weights_are_left_as_they_were() -> None:
    model = tiny.bridge("llama", torch.bfloat16)
    before = {n: p.clone() for n, p in model.module.named_parameters()}
    check_model(model)
    assert model.check.resumes and 0 < model.check.rounding < 1
    assert model.check.allowed == 2 * model.check.rounding
    for name, parameter in model.module.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, before[name])


def test_a_model_whose_resumed_passes_are_wrong_falls_back_to_full_forwards() -> None:
    """A layer that looks at how many positions it is given breaks resuming, and only that."""
    plain = tiny.hugging_face("llama")
    model = load_model(plain, tokenizer=tiny.tokenizer())

    def by_length(module: Any, args: Any, output: Any) -> Any:
        return output * (1 + 0.05 * output.shape[1])

    model.adapter.blocks[1].register_forward_hook(by_length)
    found = check_model(model)
    assert not found.resumes and not model.can_resume and found.resume_error > found.allowed
    x = tokens(1)
    value = torch.randn(32)
    patch = one_patch(Site(2, "resid_pre"), 5, value)
    baseline = model.baseline(x, first=3)
    [(rows, logits)] = model.resume(baseline, torch.tensor([0]), [patch])
    assert rows.tolist() == [0] and torch.equal(logits, model.run(x, [patch]))


@pytest.mark.parametrize("kind", ["gpt2", "pythia", "gemma2"])
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    # Gemma-2 norms in float32 whatever the weights are, which limits the differences there.
    model = tiny.bridge(kind, torch.float64)
    tolerance = 1e-7 if kind != "gemma2" else 5e-3
    step = 1e-5 if kind != "gemma2" else 1e-2
    x = tokens()
    metric = _difference
    sites = [Site(layer, k) for layer in (0, 2) for k in SITE_KINDS if model.has(k)]
    found = model.gradients(x, sites, metric)
    assert torch.allclose(found.metric, metric(model.run(x)))
    generator = torch.Generator().manual_seed(1)
    for site in sites:
        direction = torch.randn(found.values[site].shape[-1], generator=generator).double()
        for position in (2, 8):
            moved = []
            for sign in (1, -1):
                value = found.values[site][0, position] + sign * step * direction
                moved.append(metric(model.run(x[:1], [one_patch(site, position, value)])))
            numeric = float((moved[0] - moved[1])[0]) / (2 * step)
            exact = float(found.gradients[site][0, position] @ direction)
            assert abs(numeric - exact) < tolerance * max(1.0, abs(exact)), site


def _difference(logits: Tensor) -> Tensor:
    return logits[:, 11] - logits[:, 12]


def test_gradients_of_a_hooked_transformer_at_resid_mid_are_those_of_its_own_stream() -> None:
    model = tiny.hooked_transformer()
    x = tokens()
    found = model.gradients(x, [Site(1, "resid_mid")], _difference)
    kept: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> Tensor:
        leaf = value.detach().requires_grad_()
        kept.append(leaf)
        return leaf

    logits = model.module.run_with_hooks(x, fwd_hooks=[("blocks.1.hook_resid_mid", keep)])
    _difference(logits[:, -1]).sum().backward()
    assert kept[0].grad is not None
    assert (kept[0].grad - found.gradients[Site(1, "resid_mid")]).abs().max() < 1e-5


def test_gradients_want_one_value_a_row() -> None:
    with pytest.raises(ModelError, match="expected one value a row"):
        tiny.bridge("gpt2").gradients(tokens(), [Site(0, "resid_pre")], lambda logits: logits.sum())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_embeddings_can_be_overwritten(kind: str) -> None:
    model, plain = tiny.bridge(kind), tiny.hugging_face(kind)
    x = tokens()
    thoughts = torch.randn(2, 2, 32)
    embedded = plain.get_input_embeddings()(x).detach().clone()
    embedded[:, [4, 5]] = thoughts
    with torch.no_grad():
        expected = plain(inputs_embeds=embedded).logits[:, -1]
    inputs = Inputs(x, slots=(4, 5), embeddings=thoughts)
    assert (model.run(inputs) - expected).abs().max() < 1e-5
    # Resumed and differentiated runs start from the same overwritten embeddings.
    baseline = model.baseline(inputs, first=6)
    patch = one_patch(Site(1, "resid_pre"), 7, torch.randn(32))
    [(_, resumed)] = model.resume(baseline, torch.tensor([0]), [patch])
    full = model.run(Inputs(x[:1], (4, 5), thoughts[:1]), [patch])
    assert (resumed - full).abs().max() < 1e-4
    found = model.gradients(inputs, [Site(0, "resid_pre")], _difference)
    assert (found.metric - _difference(expected)).abs().max() < 1e-5


def test_unknown_sites_are_errors() -> None:
    model = tiny.bridge("llama")
    with pytest.raises(SiteError, match="layers 0 to 3"):
        model.cache(tokens(), [Site(4, "resid_pre")])
    with pytest.raises(SiteError, match="parallel"):
        tiny.bridge("pythia").cache(tokens(), [Site(0, "resid_mid")])
    with pytest.raises(SiteError, match="layers 0 to 3"):
        tiny.hooked_transformer().cache(tokens(), [Site(9, "z")])
    with pytest.raises(SiteError, match="has no resid_mid"):
        tiny.hooked_transformer(parallel=True).cache(tokens(), [Site(0, "resid_mid")])


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (Patches(Site(0, "z"), torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 5)), "width 5"),
        (
            Patches(Site(0, "attn_out"), torch.tensor([7]), torch.tensor([0]), torch.zeros(1, 32)),
            "rows at attn_out.0 must lie between 0 and 1",
        ),
        (
            Patches(Site(0, "attn_out"), torch.tensor([0]), torch.tensor([99]), torch.zeros(1, 32)),
            "positions at attn_out.0 must lie between 0 and 8",
        ),
        (
            Patches(
                Site(0, "z"),
                torch.tensor([0]),
                torch.tensor([0]),
                torch.zeros(1, 8),
                heads=torch.tensor([4]),
            ),
            "heads at z.0 must lie between 0 and 3",
        ),
    ],
)
def test_patches_that_do_not_fit_are_refused_before_a_pass(patch: Patches, message: str) -> None:
    with pytest.raises(PatchError, match=message):
        tiny.bridge("llama").run(tokens(), [patch])


def test_heads_exist_at_z_only() -> None:
    with pytest.raises(PatchError, match="heads are patched at z"):
        Patches(
            Site(0, "attn_out"),
            torch.tensor([0]),
            torch.tensor([0]),
            torch.zeros(1, 8),
            heads=torch.tensor([0]),
        )


def test_patches_of_unequal_lengths_are_refused_without_a_type_checker_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(PatchError, match="differ in length"):
        Patches(Site(0, "z"), torch.tensor([0, 1]), torch.tensor([0]), torch.zeros(1, 8))


def test_no_hook_is_left_after_any_call_or_exception() -> None:
    model = tiny.bridge("llama")
    before = hooks_left(model.module)
    x, site = tokens(), Site(1, "resid_mid")
    patch = one_patch(site, 4, torch.randn(32))
    model.run(x, [patch])
    model.cache(x, [site])
    model.gradients(x, [site], _difference)
    list(model.resume(model.baseline(x, first=3), torch.tensor([0]), [patch]))
    assert hooks_left(model.module) == before

    def broken(module: Any, args: Any) -> None:
        raise KeyboardInterrupt

    layers = list(model.adapter.blocks)
    baseline = model.baseline(x, first=3)
    handle = layers[3].register_forward_pre_hook(broken)
    for call in (
        lambda: model.run(x, [patch]),
        lambda: model.cache(x, [site]),
        lambda: model.gradients(x, [site], _difference),
        lambda: model.baseline(x),
        lambda: list(model.resume(baseline, torch.tensor([0]), [patch])),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()
    handle.remove()
    assert hooks_left(model.module) == before
    assert list(model.adapter.blocks) == layers  # skipped layers are put back


def test_a_hook_that_does_not_fire_is_an_error() -> None:
    model = tiny.bridge("llama")
    idle = torch.nn.Identity()
    with pytest.raises(HookError, match=r"nowhere \(0 times\)"), HookSet() as hooks:
        hooks.on_output(idle, "nowhere", lambda x: None)
        model.module(tokens())


def test_parameters_need_no_gradients() -> None:
    assert not any(p.requires_grad for p in tiny.bridge("gpt2").module.parameters())


def test_a_local_folder_and_an_object_give_the_same_model(tmp_path: Path) -> None:
    plain = tiny.hugging_face("qwen2")
    plain.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model", device="cpu")
    made = load_model(plain, tokenizer=tiny.tokenizer())
    assert torch.equal(loaded.run(tokens()), made.run(tokens()))
    assert loaded.name == "model" and len(loaded.sha256) == len(made.sha256) == 64
    assert load_model(tmp_path / "model", device="cpu").sha256 == loaded.sha256
    half = load_model(tmp_path / "model", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and half.check.resumes


def test_a_tokenizer_made_in_memory_is_saved_and_loaded_back() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    assert not made.name_or_path
    model = load_model(tiny.hugging_face("gpt2"), tokenizer=made)
    assert model.tokenizer("the the")["input_ids"] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "./no/such/folder"}, "the model folder ./no/such/folder does not exist"),
        ({"model": "x", "dtype": "float8"}, "unknown dtype 'float8': expected one of float32"),
        ({"model": "x", "device": "tpu9000"}, "unknown device 'tpu9000'"),
        ({"model": object()}, "expected a TransformerBridge or a HookedTransformer, got object"),
        ({"model": object(), "device": "cpu"}, "an object keeps its own"),
    ],
)
def test_models_that_cannot_be_loaded(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(**arguments)


def test_a_hugging_face_object_needs_its_tokenizer() -> None:
    with pytest.raises(ModelError, match="needs its tokenizer"):
        load_model(tiny.hugging_face("gpt2"))


def test_a_folder_without_a_config_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"it has no config.json"):
        load_model(tmp_path)


def test_a_folder_with_broken_weights(tmp_path: Path) -> None:
    tiny.hugging_face("gpt2").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"could not be loaded: .* It needs whole weights"):
        load_model(tmp_path)


def test_a_prompt_longer_than_the_model_takes() -> None:
    with pytest.raises(ModelError, match="has 65 tokens, gpt2 takes at most 64"):
        tiny.bridge("gpt2").run(tokens(1, 65))


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    model = tiny.bridge("llama")

    def leak(module: Any, args: Any, output: Any) -> Any:
        return output + output.mean(1, keepdim=True)

    model.adapter.blocks[1].register_forward_hook(leak)
    with pytest.raises(ModelError, match="is not causal"):
        check_model(model)


def test_a_stream_that_is_not_the_sum_of_its_parts_has_no_resid_mid() -> None:
    model = tiny.bridge("llama")
    # What attention really adds is not what its hook point shows.
    attention = model.adapter.blocks[1].get_submodule("attn")
    attention.register_forward_hook(lambda module, args, output: (1.5 * output[0], *output[1:]))
    check_model(model)
    assert not model.check.adds_up and model.has("attn_out")
    with pytest.raises(SiteError, match="resid_mid is patched through attn_out, but in this"):
        model.require("resid_mid")


def test_an_unchecked_model_uses_full_forwards() -> None:
    from circuits.models.hooked import HookedModel

    assert not HookedModel(tiny.hooked_transformer().module, name="unchecked").can_resume


def test_a_name_that_the_hub_does_not_give_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"Similar names: .*pythia-70m"):
        load_model("EleutherAI/pythia-70n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="sees no GPU"):
        find_device("cuda")


def test_types_by_name() -> None:
    assert find_dtype("bfloat16") is torch.bfloat16 and find_dtype(torch.float64) is torch.float64
