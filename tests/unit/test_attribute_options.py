"""What attribution refuses before any pass, what its options do, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuits.attribute import AttributionError, attribute
from circuits.attribute.batch import Sources
from circuits.metrics import MetricError
from circuits.models.hooked import HookedModel
from circuits.sites import Site
from tests import tiny
from tests.pairs import token_pairs
from tests.unit.test_attribute import HOOKS, SITES, sae_set


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("gpt2", torch.float64)


def test_bad_input_is_refused_before_any_pass(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **more: Any) -> Any:
        raise AssertionError("a pass was run")

    for name in ("run", "cache", "gradients", "baseline"):
        monkeypatch.setattr(HookedModel, name, fail)
    saes = sae_set("topk", HOOKS, model)
    for options, message in (
        ({"steps": 0}, "need at least 1"),
        ({"method": "gradient"}, "unknown method"),
        ({"direction": "both"}, "unknown direction"),
        ({"batch_size": 0}, "at least 1"),
        ({"sites": [Site(3, "resid_post")]}, r"no SAEs at resid_post\.3"),
        ({"audit_pairs": -1}, "an audit needs"),
        ({"tolerance": 1.0}, "from 0 to below 1"),
        ({"metric": "kl", "direction": "noising"}, "its slope there is 0"),
    ):
        with pytest.raises(AttributionError, match=message):
            attribute(model, token_pairs(3), saes=saes, **options)  # pyright: ignore


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda logits, targets: logits, "expected one number a row"),
        (lambda logits, targets: logits.mean(), "expected one number a row"),
        (lambda logits, targets: torch.tensor(logits.detach().numpy())[:, 0], "differentiated"),
        (lambda logits, targets: logits @ torch.ones(5), "the metric failed on logits of shape"),
    ],
)
def test_a_function_that_is_no_metric_is_refused_before_any_pass(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch, metric: Any, message: str
) -> None:
    monkeypatch.setattr(HookedModel, "run", None)
    with pytest.raises(MetricError, match=message):
        attribute(model, token_pairs(3), metric=metric)


def test_integrated_gradients_take_more_points_until_sums_are_right(model: HookedModel) -> None:
    saes = sae_set("topk", HOOKS, model)
    options: dict[str, Any] = {"saes": saes, "method": "ig", "steps": 1, "audit_nodes": 1}
    options |= {"force": True, "progress": False}
    few = attribute(model, token_pairs(3), tolerance=0, **options)
    enough = attribute(model, token_pairs(3), tolerance=1e-3, **options)
    assert set(few.scores["method"]) == {"ig-1"}
    assert few.record["audit"]["completeness_residual"] > 1e-3
    assert enough.record["audit"]["completeness_residual"] <= 1e-3
    used = enough.record["steps_used"]
    assert set(used) == {str(site) for site in SITES} and max(used.values()) > 1


@pytest.mark.parametrize("count", [1, 3])
def test_the_cost_of_attribution_patching_does_not_depend_on_the_number_of_saes(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Two forwards and one backward."""
    from circuits.attribute.plan import make_plan
    from circuits.attribute.scores import scores_of

    calls: list[str] = []
    for name in ("run", "cache", "gradients", "baseline"):
        real = getattr(HookedModel, name)

        def counted(self: Any, *args: Any, name: str = name, real: Any = real, **more: Any) -> Any:
            calls.append(name)
            return real(self, *args, **more)

        monkeypatch.setattr(HookedModel, name, counted)
    saes = sae_set("topk", HOOKS[:count], model)
    [group] = token_pairs(3).groups(8)
    plan = make_plan("atp", 5, 0.0, "denoising", "logit_difference", None, 0, 1)
    scores_of(model, Sources(SITES[:count], saes), group, plan)
    assert calls == ["cache", "gradients"]


def test_exact_effects_need_no_slope_of_the_metric(model: HookedModel) -> None:
    def right(logits: Any, targets: Any) -> Any:
        return (logits.argmax(-1) == targets.answer).double()

    found = attribute(
        model,
        token_pairs(2),
        metric=right,
        method="exact",
        force=True,
        audit_pairs=0,
        sites=[Site(3, "resid_pre")],
        progress=False,
    )
    assert set(found.scores["effect"]) <= {-1.0, 0.0, 1.0}


def test_pairs_without_named_positions_are_saved_too(model: HookedModel, tmp_path: Path) -> None:
    pairs = replace(token_pairs(2), positions=({}, {}))
    saes = sae_set("topk", HOOKS[:1], model)
    found = attribute(model, pairs, saes=saes, force=True, audit_pairs=0, progress=False)
    folder = found.save(tmp_path / "run")
    assert (folder / "top_25_latents.json").read_text().strip() == "{}"
