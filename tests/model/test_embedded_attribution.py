"""Attribution and direct effects on the embedded model: the audits must hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from circuits import Site, attribute, direct
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet, load_saes
from circuits.task import load_task


@pytest.fixture(scope="module")
def pairs(model: HookedModel) -> PromptPairs:
    task: Any = load_task("error_type")
    return task.pairs(model, n=3)


@pytest.fixture(scope="module")
def saes(model: HookedModel) -> SaeSet:
    return load_saes("embedded", model)


@pytest.mark.parametrize("method", ["atp", "ig"])
def test_estimates_agree_with_what_they_estimate(
    model: HookedModel, saes: SaeSet, pairs: PromptPairs, method: str
) -> None:
    found = attribute(
        model, pairs, saes=saes, method=method, audit_pairs=2, audit_nodes=20, progress=False
    )
    audit = found.record["audit"]
    assert audit["spearman"] >= 0.95
    if method == "ig":
        assert (
            audit["pearson"] >= 0.99
        )  # first-order estimates of a few nodes of layer 6 are half off
        assert audit["completeness_residual"] <= 0.01
        # The stream of layer 6 changes so much that five points are not enough there.
        assert found.record["steps_used"]["resid_post.6"] > found.record["steps"] == 5
    assert {row["site"] for row in audit["error_share"]} == {str(site) for site in saes}


def test_ten_latents_put_in_together_bring_the_answer_back(
    model: HookedModel, saes: SaeSet, pairs: PromptPairs
) -> None:
    """By hand: the strongest latents of one site toward clean, all at once."""
    site = Site(22, "resid_post")
    found = attribute(
        model, pairs, saes=saes, sites=[site], method="ig", audit_pairs=0, progress=False
    )
    ten = found.ranking(20, roles=("latent",), sign=1)
    scores: Any = found.scores
    chosen = scores.merge(ten[["position", "latent", "role"]], on=["position", "latent", "role"])
    change = torch.tensor((chosen["clean"] - chosen["corrupted"]).to_numpy(), dtype=torch.float32)
    patch = Patches(
        site,
        torch.tensor(chosen["pair"].to_numpy()),
        torch.tensor(chosen["position"].to_numpy()),
        change[:, None] * saes[site].rows[torch.tensor(chosen["latent"].to_numpy())],
        add=True,
    )
    rows = torch.arange(3)

    def difference(tokens: Any, patches: Any = ()) -> torch.Tensor:
        logits = model.run(torch.tensor(tokens), patches)
        return logits[rows, list(pairs.answer_tokens)] - logits[rows, list(pairs.foil_tokens)]

    clean, corrupted = difference(pairs.clean_tokens), difference(pairs.corrupted_tokens)
    patched = difference(pairs.corrupted_tokens, [patch])
    assert float((patched - corrupted).mean() / (clean - corrupted).mean()) > 0.7


def test_direct_contributions_add_up_to_the_logit_difference(
    model: HookedModel, saes: SaeSet, pairs: PromptPairs
) -> None:
    found = direct(model, pairs, saes=saes, totals=False, progress=False)
    assert found.record["sum_error"] <= 1e-4
    for site in (None, *(s for s in saes if s.kind == "resid_post")):
        parts = found.parts(site)
        assert parts["gap"].sum() == pytest.approx(found.gap.mean(), abs=1e-4)
