"""SAEs of the hub's releases: found in its cache without a network, chosen, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from circuits.models.hooked import HookedModel
from circuits.saes import SaeError, load_saes
from circuits.saes.releases import choose_id, ids_by_place
from circuits.sites import Site
from tests import tiny
from tests.unit.test_saes import WIDTH, make_sae


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


def _into_hub_cache(hub: Path, repo: str, files: dict[str, Path]) -> None:
    """Files as the hub's own cache keeps them, so that its code finds them without a network."""
    home = hub / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc123")
    for name, source in files.items():
        target = home / "snapshots" / "abc123" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_release_from_the_hub_cache(hub: Path, tmp_path: Path) -> None:
    """gpt2-small-res-jb: SAELens' own loader, on a model whose writes were centred."""
    sae = make_sae("standard", "blocks.1.hook_resid_pre")
    sae.save_model(tmp_path / "made")
    config = json.loads((tmp_path / "made" / "cfg.json").read_text())
    old = {k: config[k] for k in ("d_in", "d_sae", "dtype")}
    old |= {
        "hook_point": "blocks.1.hook_resid_pre",
        "model_name": "gpt2-small",
        "prepend_bos": True,
    }
    old |= {
        "architecture": "standard",
        "apply_b_dec_to_input": True,
        "hook_name": old["hook_point"],
    }
    (tmp_path / "made" / "cfg.json").write_text(json.dumps(old))
    files = {f"blocks.1.hook_resid_pre/{p.name}": p for p in (tmp_path / "made").iterdir()}
    _into_hub_cache(hub, "jbloom/GPT2-Small-SAEs-Reformatted", files)
    found = load_saes("gpt2-small-res-jb", tiny.bridge("gpt2"), layers=[1])
    [site] = found
    source = found.sources[site]
    assert site == Site(1, "resid_pre") and source.centred and source.prepend_bos
    assert source.neuronpedia == "gpt2-small/1-res-jb"
    assert found.sha256(site) == ""  # not loaded yet
    x = torch.randn(1, 5, WIDTH) + 3
    parts = found[site].decompose(x)
    mean = x.mean(-1, keepdim=True)
    assert torch.allclose(parts.latents.dense(), sae.encode(x - mean), atol=1e-5)
    assert len(found.sha256(site)) == 64
    with pytest.raises(SaeError, match="could not be read from the hub"):
        load_saes("gpt2-small-res-jb", tiny.bridge("gpt2"), layers=[2])


def test_releases_of_pickles_are_refused(hub: Path) -> None:
    with pytest.raises(SaeError, match="gpt2-small-hook-z-kk publishes pickled weights"):
        load_saes("gpt2-small-hook-z-kk", tiny.bridge("gpt2"), layers=[1])


def test_a_release_that_does_not_exist_gets_its_neighbours(model: HookedModel) -> None:
    with pytest.raises(SaeError, match="Similar releases: gemma-scope-2b-pt-res"):
        load_saes("gemma-scope-2b-pt-ress", model)


def test_ids_of_releases_are_chosen_by_width_and_l0() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    scope = directory["gemma-scope-2b-pt-res"]
    ids = ids_by_place(scope.saes_map)
    assert sorted(ids) == [(layer, "") for layer in range(26)]
    for place in ids:
        chosen = choose_id("r", ids[place], scope.expected_l0, 100.0, None)
        same = [one for one in ids[place] if "width_16k/" in one and scope.expected_l0[one]]
        assert chosen in same
        gaps = {one: abs(scope.expected_l0[one] - 100) for one in same}
        assert gaps[chosen] == min(gaps.values())
    with pytest.raises(SaeError, match=r"SAEs for one place .*choose with l0 and width"):
        choose_id("r", ids[12, ""], scope.expected_l0, None, "16k")
    with pytest.raises(SaeError, match=r"has no width '7k' here; its widths: .*16k"):
        choose_id("r", ids[12, ""], scope.expected_l0, 100.0, "7k")
    for release, layers in (
        ("gemma-scope-2b-pt-res-canonical", 26),
        ("llama_scope_lxr_8x", 32),
        ("gpt2-small-res-jb", 12),
    ):
        found = ids_by_place(directory[release].saes_map)
        assert set(range(layers)) <= {layer for layer, _ in found}
        for place in found:
            assert choose_id(release, found[place], {}, None, None) in found[place]
