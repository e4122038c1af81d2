"""The SAEs and the feature bank that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from circuits import FeatureBank, load_saes, load_task, measure_fidelity
from circuits.features.bank import EMBEDDED as BANK
from circuits.models.hooked import HookedModel
from circuits.runs import sha256_of
from circuits.saes.load import EMBEDDED
from circuits.sites import Site

RESIDUAL = [Site(layer, "resid_post") for layer in (6, 12, 18, 21, 22, 23)]
OTHERS = [Site(22, "mlp_out"), Site(22, "z")]


def size(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6


def test_they_are_all_there_with_their_cards(model: HookedModel) -> None:
    saes = load_saes("embedded", model)
    assert set(saes) == {*RESIDUAL, *OTHERS}
    assert size(EMBEDDED) <= 72
    for site in saes:
        source = saes.sources[site]
        assert source.name == f"embedded/{site}"
        assert source.d_sae == (4096 if site in RESIDUAL else 2048)
        assert source.model_name == model.name and source.prepend_bos is False
        card = json.loads((EMBEDDED / str(site) / "card.json").read_text())
        assert card["sha256"] == source.sha256
        assert card["sha256"] == sha256_of(EMBEDDED / str(site) / "sae_weights.safetensors")
        assert card["model_sha256"] == model.sha256
        assert card["rows"]["train"] + card["rows"]["heldout"] >= 2_000_000
        if site in RESIDUAL:
            assert all(card["passed"].values())


def test_each_keeps_half_of_the_contrast_around_the_move(model: HookedModel) -> None:
    saes = load_saes("embedded", model, layers=[21, 22, 23])
    pairs = load_task("error_type").pairs(model, n=12)  # pyright: ignore
    found = measure_fidelity(model, saes, pairs, task="error_type", progress=False)
    for site in (Site(21, "resid_post"), Site(22, "resid_post"), Site(23, "resid_post")):
        assert float(found.kept(f"{site}, without error").value) >= 0.5
    quality = found.quality.set_index("site")
    assert (quality["l0"].between(20, 80)).all()
    # Stacked they keep less, and the record says so loudly.
    assert (found.gate is None) == (float(found.kept("all, without error").value) >= 0.5)


def test_the_bank_agrees_with_the_saes(model: HookedModel) -> None:
    """Its strongest example of some latents, run again: the same activations at the same tokens."""
    bank, saes = FeatureBank.load("embedded"), load_saes("embedded", model)
    assert size(BANK) <= 12
    assert len(bank.latents) == 6 * 4096 + 2 * 2048
    assert {str(s) for s in bank.sites} == {str(s) for s in saes}
    for row in bank.record["saes"]:
        assert row["sha256"] == saes.sources[Site.parse(row["site"])].sha256
    site, before = RESIDUAL[0], bank.record["window"][0]
    agreed = 0
    for latent in range(0, 4096, 400):
        card = bank.card(site, latent)
        for example in card.examples[:1]:
            # The window is not the whole context, which an early layer hardly needs.
            tokens = [t for t in example["tokens"] if t >= 0]
            place = sum(t >= 0 for t in example["tokens"][:before])
            if place == 0:
                continue
            values = model.activations(torch.tensor([tokens]), [site])[site]
            again = float(saes[site].encode(values)[0, place, latent])
            agreed += again > 0.3 * example["value"]
    assert agreed >= 6


@pytest.mark.parametrize("site", ["resid_post.22", "z.22"])
def test_cards_open_without_a_network(site: str) -> None:
    bank = FeatureBank.load("embedded")
    page = bank.card(site, 100).html()
    assert "https://cdn" not in page.split("<body>")[0] and "plotly" in page
    assert bank.describe(site, 100)
