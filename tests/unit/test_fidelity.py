"""What SAEs erase, against SAEs whose answer is known and against TransformerLens' own hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from circuits import cli
from circuits.cli.show import print_fidelity
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.patch import CannotDo
from circuits.saes import Fidelity, SaeError, load_saes, measure_fidelity
from circuits.saes.fidelity import PLAIN, STACKED, WITH_ERROR
from circuits.sites import Site, SiteError
from tests import tiny
from tests.pairs import LENGTH, token_pairs
from tests.unit.test_saes import WIDTH, make_sae

HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_mlp_out", "blocks.3.attn.hook_z")


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


def identity(hook: str) -> Any:
    """An SAE that reconstructs everything: each direction and its opposite."""
    import sae_lens

    config = sae_lens.StandardSAEConfig(d_in=WIDTH, d_sae=2 * WIDTH, apply_b_dec_to_input=False)
    config.metadata = sae_lens.saes.sae.SAEMetadata(hook_name=hook)
    sae = sae_lens.StandardSAE(config)
    eye = torch.eye(WIDTH)
    sae.W_enc.data, sae.W_dec.data = torch.cat([eye, -eye], 1), torch.cat([eye, -eye])
    return sae


def blind(hook: str) -> Any:
    """An SAE that reconstructs nothing: all is error."""
    sae = identity(hook)
    sae.W_dec.data.zero_()
    return sae


def fidelity(model: HookedModel, folder: Path, saes: list[Any], count: int = 5) -> Fidelity:
    for i, sae in enumerate(saes):
        sae.save_model(folder / str(i))
    pairs = token_pairs(count, seed=2)
    return measure_fidelity(model, load_saes(folder, model), pairs, force=True, progress=False)


def test_a_perfect_sae_keeps_everything(model: HookedModel, tmp_path: Path) -> None:
    found = fidelity(model, tmp_path, [identity(hook) for hook in HOOKS])
    for variant in found.variants:
        assert np.allclose(found.gap(variant), found.gap(PLAIN), atol=1e-4)
    assert len(found.variants) == 2 + len(HOOKS) + 1 and found.gate is None
    assert np.allclose(found.quality["explained_variance"], 1, atol=1e-6)
    assert np.allclose(found.quality["ce_recovered"], 1, atol=1e-4)
    assert np.allclose(found.quality["l0"], WIDTH)  # of x and -x one is active


def test_a_blind_sae_erases_the_task_and_says_so(model: HookedModel, tmp_path: Path) -> None:
    # At the last residual site nothing but the error leads on.
    found = fidelity(model, tmp_path, [blind("blocks.3.hook_resid_post")])
    assert np.abs(found.gap(STACKED)).max() < 1e-5 < np.abs(found.gap(PLAIN)).max()
    assert found.gate is not None and "THESE SAEs ERASE THE TASK" in found.gate
    assert np.allclose(found.gap(WITH_ERROR), found.gap(PLAIN), atol=1e-4)
    assert np.allclose(found.quality["ce_recovered"], 0, atol=1e-6)


def test_variants_are_those_of_transformer_lens_hooks(model: HookedModel, tmp_path: Path) -> None:
    saes = [make_sae("jumprelu", hook, seed=i) for i, hook in enumerate(HOOKS)]
    found = fidelity(model, tmp_path, saes)
    pairs = token_pairs(5, seed=2)
    bridge: Any = model.module

    def splice(sae: Any) -> Any:
        def hook(x: torch.Tensor, hook: Any) -> torch.Tensor:
            flat = x.flatten(2)
            changed = sae.decode(sae.encode(flat)).detach()
            changed[:, 0] = flat[:, 0]
            return changed.reshape(x.shape)

        return hook

    def differences(tokens: Any, hooks: list[Any]) -> np.ndarray:
        logits = bridge.run_with_hooks(torch.tensor(tokens), fwd_hooks=hooks)[:, -1].detach()
        rows = range(len(pairs))
        answer, foil = list(pairs.answer_tokens), list(pairs.foil_tokens)
        return (logits[rows, answer] - logits[rows, foil]).numpy()

    every = [(hook, splice(sae)) for hook, sae in zip(HOOKS, saes, strict=True)]
    sites = {"blocks.1.hook_resid_post": "resid_post.1", HOOKS[1]: "mlp_out.2", HOOKS[2]: "z.3"}
    cases = [(f"{sites[hook]}, without error", [(hook, f)]) for hook, f in every]
    for variant, hooks in [*cases, (STACKED, every), (PLAIN, [])]:
        part: Any = found.scores[found.scores["variant"] == variant]
        assert np.allclose(part["ld_clean"], differences(pairs.clean_tokens, hooks), atol=1e-4)
        corrupted = differences(pairs.corrupted_tokens, hooks)
        assert np.allclose(part["ld_corrupted"], corrupted, atol=1e-4)


def test_quality_by_hand(model: HookedModel, tmp_path: Path) -> None:
    sae = make_sae("topk", HOOKS[0])
    found = fidelity(model, tmp_path, [sae])
    pairs = token_pairs(5, seed=2)
    tokens = torch.tensor([*pairs.clean_tokens, *pairs.corrupted_tokens])
    _, values = model.cache(tokens, [Site(1, "resid_post")])
    x = values[Site(1, "resid_post")][:, 1:].reshape(-1, WIDTH)
    recon = sae.decode(sae.encode(x)).detach()
    variance = ((x - x.mean(0)) ** 2).sum()
    expected = float(1 - ((x - recon) ** 2).sum() / variance)
    row: Any = found.quality.iloc[0]
    assert abs(row["explained_variance"] - expected) < 1e-4
    assert abs(row["l0"] - float((sae.encode(x) != 0).float().sum(1).mean())) < 1e-5
    assert len(x) == 10 * (LENGTH - 1)
    bridge: Any = model.module

    def loss(change: Any) -> float:
        def hook(x: torch.Tensor, hook: Any) -> torch.Tensor:
            return torch.cat([x[:, :1], change(x[:, 1:])], 1)

        logits = bridge.run_with_hooks(tokens, fwd_hooks=[(HOOKS[0], hook)]).detach()
        logprobs = logits.log_softmax(-1)
        # The prediction of token t + 1 is read at token t; the untouched first one is left out.
        terms = [logprobs[:, t].gather(1, tokens[:, t + 1, None]) for t in range(1, LENGTH - 1)]
        return -float(torch.cat(terms).mean())

    plain, zero = loss(lambda x: x), loss(torch.zeros_like)
    spliced = loss(lambda x: sae.decode(sae.encode(x)).detach())
    assert abs(row["ce_recovered"] - (zero - spliced) / (zero - plain)) < 1e-4


def test_a_run_read_back_is_the_same(model: HookedModel, tmp_path: Path) -> None:
    found = fidelity(model, tmp_path / "saes", [identity(HOOKS[0])])
    again = Fidelity.load(found.save(tmp_path / "run"))
    pd.testing.assert_frame_equal(again.scores, found.scores)
    pd.testing.assert_frame_equal(again.quality, found.quality)
    assert again.table().equals(found.table()) and again.gate == found.gate


def test_saes_that_do_not_add_up_are_an_error(model: HookedModel, tmp_path: Path) -> None:
    """Reconstructions so large that float32 loses the activation in them."""
    sae = make_sae("standard", HOOKS[0])
    sae.W_dec.data *= 1e6
    with pytest.raises(SaeError, match="reconstruction and error do not add up"):
        fidelity(model, tmp_path, [sae])


def test_in_bfloat16_models_errors_make_up_for_everything_too(tmp_path: Path) -> None:
    half = tiny.bridge("llama", torch.bfloat16)
    found = fidelity(half, tmp_path, [make_sae("standard", hook) for hook in HOOKS])
    assert np.allclose(found.gap(WITH_ERROR), found.gap(PLAIN), atol=1e-4)


def test_a_contrast_that_the_model_cannot_do_has_nothing_to_keep(
    model: HookedModel, tmp_path: Path
) -> None:
    identity(HOOKS[0]).save_model(tmp_path)
    saes, pairs = load_saes(tmp_path, model), token_pairs(5, seed=2)
    with pytest.raises(CannotDo, match="There is nothing to keep"):
        measure_fidelity(model, saes, pairs, progress=False)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "transformer"])
def test_edits_of_the_middle_of_the_stream_are_patches_of_it(kind: str) -> None:
    model = tiny.hooked_transformer() if kind == "transformer" else tiny.bridge(kind)
    site, tokens = Site(1, "resid_mid"), torch.tensor([[4, 9, 2, 7], [3, 3, 8, 1]])
    _, values = model.cache(tokens, [site])
    edited = model.run_all_positions(tokens, {site: lambda x, start: 0.5 * x + 1})[:, -1]
    rows, positions = torch.arange(2).repeat_interleave(4), torch.arange(4).repeat(2)
    wanted = 0.5 * values[site].flatten(0, 1) + 1
    patched = model.run(tokens, [Patches(site, rows, positions, wanted)])
    assert torch.allclose(edited, patched, atol=1e-4)
    assert float((edited - model.run(tokens)).abs().max()) > 0.1


def test_a_parallel_model_has_no_middle_to_edit() -> None:
    with pytest.raises(SiteError, match="in parallel"):
        tiny.bridge("pythia").run_all_positions(
            torch.zeros(1, 3, dtype=torch.long), {Site(0, "resid_mid"): abs}
        )


def test_the_command_prints_saves_and_shows(
    model: HookedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fidelity(model, tmp_path / "saes", [blind("blocks.3.hook_resid_post")])
    found.save(tmp_path / "run")
    print_fidelity(found)
    printed = capsys.readouterr().out
    assert "THESE SAEs ERASE THE TASK" in printed and "all, with error" in printed
    with pytest.raises(SystemExit) as end:
        cli.run_app(cli.app, ["show", str(tmp_path / "run")])
    assert end.value.code in (0, None) and capsys.readouterr().out == printed
