"""Attribution in the model without the SAEs' errors, against TransformerLens' hooks and SAELens'
own encoders and decoders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from circuits.attribute import AttributionError, attribute
from circuits.models.hooked import HookedModel
from circuits.models.hooks import hooks_left
from circuits.saes import SaeSet, measure_fidelity
from tests import tiny
from tests.pairs import token_pairs
from tests.unit.test_attribute import HOOKS, SITES, sae_set


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("gpt2", torch.float64)


def difference(
    model: HookedModel, saes: SaeSet, tokens: Any, answer: int, foil: int, moved: Any = None
) -> float:
    """LD with every SAE's reconstruction in place, one latent of one site moved.

    moved: (site, position, vector that is added to the reconstruction).
    """

    def splice(sae: Any, site: Any) -> Any:
        def hook(x: torch.Tensor, hook: Any) -> torch.Tensor:
            flat = x.flatten(2)
            made = sae.decode(sae.encode(flat))
            made[:, 0] = flat[:, 0]
            if moved is not None and moved[0] == site:
                made[0, moved[1]] += moved[2]
            return made.view(x.shape)

        return hook

    bridge: Any = model.module
    hooks = [(site.hook_name, splice(saes[site].module, site)) for site in saes]
    with torch.no_grad():
        logits = bridge.run_with_hooks(torch.tensor([tokens]), fwd_hooks=hooks)[0, -1]
    return float(logits[answer] - logits[foil])


@pytest.mark.parametrize("normalize", ["none", "layer_norm"])
@pytest.mark.parametrize("architecture", ["jumprelu", "topk", "standard", "gated"])
def test_effects_without_errors_are_those_of_the_spliced_model(
    model: HookedModel, architecture: str, normalize: str
) -> None:
    """AtP against finite differences, exact effects against the intervention."""
    saes = sae_set(architecture, HOOKS, model, normalize_activations=normalize)
    pairs = token_pairs(3)
    options: dict[str, Any] = {"errors": "removed", "force": True, "audit_pairs": 0}
    found = {
        method: attribute(model, pairs, saes=saes, method=method, progress=False, **options)
        for method in ("atp", "exact")
    }
    assert "error" not in set(found["atp"].scores["role"])
    keys = ["pair", "site", "position", "role", "latent"]
    every: Any = found["exact"].scores
    exacts = every.astype({"site": str, "role": str}).set_index(keys).sort_index()
    for site in SITES:
        table: Any = found["atp"].scores
        table = table[(table["site"] == str(site)) & (table["role"] == "latent")]
        assert len(table)
        for index in table["effect"].abs().nlargest(4).index:
            row = table.loc[index]
            exact = exacts.loc[tuple(row[k] for k in keys)]
            pair, place = int(row["pair"]), int(row["position"])
            vector = (row["clean"] - row["corrupted"]) * saes[site].rows[int(row["latent"])]
            given = pairs.corrupted_tokens[pair], pairs.answer_tokens[pair], pairs.foil_tokens[pair]
            values = {
                step: difference(model, saes, *given, moved=(site, place, step * vector))
                for step in (0.0, 1.0, 1e-5, -1e-5)
            }
            slope = (values[1e-5] - values[-1e-5]) / 2e-5
            assert row["effect"] == pytest.approx(slope, rel=1e-5, abs=1e-8)
            assert exact["effect"] == pytest.approx(values[1.0] - values[0.0], rel=1e-6, abs=1e-9)
    assert hooks_left(model.module) == hooks_left(tiny.bridge("gpt2", torch.float64).module)
    assert model.can_resume


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_integrated_gradients_add_up_without_errors_too(model: HookedModel, direction: str) -> None:
    saes = sae_set("standard", HOOKS, model)
    found = attribute(
        model,
        token_pairs(3),
        saes=saes,
        method="ig",
        steps=20,
        errors="removed",
        direction=direction,
        audit_pairs=3,
        audit_nodes=10,
        force=True,
        progress=False,
    )
    audit = found.record["audit"]
    assert audit["completeness_residual"] < 0.05  # thresholds of later SAEs are crossed on the way
    assert audit["pearson"] > 0.99


def test_the_record_says_what_is_left_of_the_contrast(model: HookedModel) -> None:
    saes = sae_set("topk", HOOKS, model)
    pairs = token_pairs(3)
    found = attribute(
        model, pairs, saes=saes, errors="removed", audit_pairs=0, force=True, progress=False
    )
    table: Any = measure_fidelity(model, saes, pairs, force=True, progress=False).table()
    stacked = table.set_index("variant").loc["all, without error"]
    kept = found.record["saes_keep"]
    for name in ("clean", "corrupted", "kept"):
        assert kept[name] == pytest.approx(stacked[name], rel=1e-6)
    own = [
        difference(model, saes, tokens, answer, foil)
        for tokens, answer, foil in zip(
            pairs.clean_tokens, pairs.answer_tokens, pairs.foil_tokens, strict=True
        )
    ]
    assert kept["clean"] == pytest.approx(np.mean(own), rel=1e-6)


def test_what_contradicts_itself_is_refused(model: HookedModel) -> None:
    saes = sae_set("topk", HOOKS, model)
    with pytest.raises(AttributionError, match="without any, there are none"):
        attribute(model, token_pairs(2), errors="removed")
    for hooks, message in (
        (["blocks.1.hook_resid_mid"], "changed through attn_out"),
        (["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"], "one would undo the other"),
    ):
        both = sae_set("topk", tuple(hooks), model)
        with pytest.raises(AttributionError, match=message):
            attribute(model, token_pairs(2), saes=both, errors="removed")
        attribute(model, token_pairs(2), saes=both, force=True, audit_pairs=0, progress=False)
    with pytest.raises(AttributionError, match="unknown errors"):
        attribute(model, token_pairs(2), saes=saes, errors="half")


def test_integrated_gradients_where_full_forwards_are_used(model: HookedModel) -> None:
    """The same numbers for a model that cannot be resumed."""
    saes = sae_set("jumprelu", HOOKS, model)
    options: dict[str, Any] = {"method": "ig", "audit_pairs": 0, "force": True, "progress": False}
    there = attribute(model, token_pairs(3), saes=saes, **options)
    with model.edited({}):
        here = attribute(model, token_pairs(3), saes=saes, **options)
    assert np.allclose(there.scores["effect"], here.scores["effect"], rtol=1e-9, atol=1e-11)
