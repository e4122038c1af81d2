"""Every cell of a sweep against full forwards written independently and TransformerLens."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from circuits.metrics import Targets, minus_kl_to_clean
from circuits.patch import patch
from circuits.patch.ability import CannotDo
from circuits.sites import SITE_KINDS, SiteError
from tests import naive, tiny
from tests.pairs import LENGTH, token_pairs

CELLS = [
    (a, s) for a in tiny.ARCHITECTURES for s in SITE_KINDS if (a, s) != ("pythia", "resid_mid")
]


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {kind: (tiny.bridge(kind), tiny.hugging_face(kind)) for kind in tiny.ARCHITECTURES}


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(("kind", "site"), CELLS)
def test_every_cell_equals_a_naive_full_forward(
    models: dict[str, Any], kind: str, site: str, direction: str
) -> None:
    model, plain = models[kind]
    assert model.check.failure == "" and model.can_resume
    pairs = token_pairs(2, seed=3)
    result = patch(
        model, pairs, site=site, direction=direction, positions="each", force=True, progress=False
    )
    width = model.adapter.d_head
    worst = 0.0
    for row in result.scores.itertuples():
        clean = torch.tensor([pairs.clean_tokens[row.pair]])
        corrupted = torch.tensor([pairs.corrupted_tokens[row.pair]])
        source, target = (clean, corrupted) if direction == "denoising" else (corrupted, clean)
        heads = slice(row.head * width, (row.head + 1) * width) if site == "z" else slice(None)
        value = naive.activation(plain, source, row.layer, site)[0, row.position, heads]
        logits = naive.patched_logits(
            plain, target, row.layer, site, row.position, value, heads if site == "z" else None
        )
        expected = logits[pairs.answer_tokens[row.pair]] - logits[pairs.foil_tokens[row.pair]]
        worst = max(worst, abs(float(expected) - row.logit_difference))
    assert worst < 1e-4
    places = model.n_heads if site == "z" else 1
    assert len(result.scores) == 2 * model.n_layers * LENGTH * places
    moved = result.scores["logit_difference"].groupby(result.scores["pair"]).std()
    assert (moved > 1e-2).all()  # the comparison is about something


def test_heads_patched_at_all_positions_equal_a_naive_full_forward(models: dict[str, Any]) -> None:
    model, plain = models["gemma2"]
    pairs = token_pairs(2, seed=4)
    result = patch(model, pairs, site="z", force=True, progress=False)
    assert result.record["positions_patched"] == "all"
    width = model.adapter.d_head
    for row in result.scores.itertuples():
        clean = torch.tensor([pairs.clean_tokens[row.pair]])
        corrupted = torch.tensor([pairs.corrupted_tokens[row.pair]])
        heads = slice(row.head * width, (row.head + 1) * width)
        value = naive.activation(plain, clean, row.layer, "z")[0, :, heads]
        logits = naive.patched_logits(plain, corrupted, row.layer, "z", slice(None), value, heads)
        expected = logits[pairs.answer_tokens[row.pair]] - logits[pairs.foil_tokens[row.pair]]
        assert abs(float(expected) - row.logit_difference) < 1e-4
    assert len(result.scores) == 2 * model.n_layers * model.n_heads


def _transformer_lens_sweep(
    model: Any, pairs: Any, function: str, cells: pd.DataFrame | None = None
) -> np.ndarray:
    from transformer_lens import patching

    clean = torch.tensor([pairs.clean_tokens[0]])
    corrupted = torch.tensor([pairs.corrupted_tokens[0]])
    _, cache = model.module.run_with_cache(clean)
    answer, foil = pairs.answer_tokens[0], pairs.foil_tokens[0]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, answer] - logits[0, -1, foil]

    with torch.no_grad():
        sweep = getattr(patching, function)
        given = {} if cells is None else {"index_df": cells, "index_axis_names": None}
        return sweep(model.module, corrupted, cache, metric, **given).numpy()


@pytest.mark.parametrize(
    ("site", "function"),
    [
        ("resid_pre", "get_act_patch_resid_pre"),
        # TransformerLens overwrites in place, and so along the skip path as well: see below.
        ("resid_mid", "get_act_patch_resid_mid"),
        ("attn_out", "get_act_patch_attn_out"),
        ("mlp_out", "get_act_patch_mlp_out"),
        ("z", "get_act_patch_attn_head_out_by_pos"),
    ],
)
def test_a_bridge_sweep_equals_transformer_lens(
    models: dict[str, Any], site: str, function: str
) -> None:
    model, _ = models["llama"]
    pairs = token_pairs(1, seed=5)
    ours = patch(model, pairs, site=site, positions="each", force=True, progress=False)
    theirs = _transformer_lens_sweep(model, pairs, function)
    if site == "z":  # theirs is [layer, position, head], ours is sorted the same way
        assert theirs.shape == (model.n_layers, LENGTH, model.n_heads)
    found = ours.scores["logit_difference"].to_numpy().reshape(theirs.shape)
    assert np.abs(found - theirs).max() < 1e-4


@pytest.mark.parametrize(
    ("site", "function"),
    [
        ("resid_pre", "get_act_patch_resid_pre"),
        ("resid_mid", "get_act_patch_resid_mid"),
        ("attn_out", "get_act_patch_attn_out"),
        ("mlp_out", "get_act_patch_mlp_out"),
        ("z", "get_act_patch_attn_head_out_all_pos"),
    ],
)
def test_a_hooked_transformer_sweep_equals_transformer_lens(site: str, function: str) -> None:
    model = tiny.hooked_transformer()
    assert model.check.failure == "" and model.can_resume
    pairs = token_pairs(1, seed=6)
    ours = patch(model, pairs, site=site, force=True, progress=False)
    theirs = _transformer_lens_sweep(model, pairs, function)
    found = ours.scores["logit_difference"].to_numpy().reshape(theirs.shape)
    assert np.abs(found - theirs).max() < 1e-4


def test_resid_post_of_a_hooked_transformer_equals_its_own_hooks() -> None:
    model = tiny.hooked_transformer(parallel=True, position="standard")
    pairs = token_pairs(1, seed=7)
    ours = patch(model, pairs, site="resid_post", force=True, progress=False)
    clean = torch.tensor([pairs.clean_tokens[0]])
    corrupted = torch.tensor([pairs.corrupted_tokens[0]])
    _, cache = model.module.run_with_cache(clean)

    def put(x: torch.Tensor, hook: Any, position: int) -> torch.Tensor:
        x[:, position] = cache[hook.name][:, position]
        return x

    for row in ours.scores.itertuples():
        hook = (f"blocks.{row.layer}.hook_resid_post", partial(put, position=row.position))
        logits = model.module.run_with_hooks(corrupted, fwd_hooks=[hook])[0, -1]
        expected = logits[pairs.answer_tokens[0]] - logits[pairs.foil_tokens[0]]
        assert abs(float(expected) - row.logit_difference) < 1e-4


def test_a_hook_that_returns_a_new_resid_mid_is_wrong_on_a_bridge(models: dict[str, Any]) -> None:
    """The trap that resid_mid is patched through attn_out for: a returned tensor reaches only the
    MLP. If this fails, the library has changed and the detour can go."""
    model, _ = models["llama"]
    pairs = token_pairs(1, seed=8)
    ours = patch(model, pairs, site="resid_mid", force=True, progress=False)
    clean = torch.tensor([pairs.clean_tokens[0]])
    corrupted = torch.tensor([pairs.corrupted_tokens[0]])
    _, cache = model.module.run_with_cache(clean)

    def put(x: torch.Tensor, hook: Any, layer: int, position: int) -> torch.Tensor:
        x = x.clone()
        x[:, position] = cache[f"blocks.{layer}.hook_resid_mid"][:, position]
        return x

    worst = 0.0
    for row in ours.scores.itertuples():
        function = partial(put, layer=row.layer, position=row.position)
        hook = (f"blocks.{row.layer}.hook_resid_mid", function)
        logits = model.module.run_with_hooks(corrupted, fwd_hooks=[hook])[0, -1]
        naive_value = logits[pairs.answer_tokens[0]] - logits[pairs.foil_tokens[0]]
        worst = max(worst, abs(float(naive_value) - row.logit_difference))
    assert worst > 0.1


def test_full_forwards_give_the_same_numbers(models: dict[str, Any]) -> None:
    model, _ = models["gpt2"]
    pairs = token_pairs(2, seed=10)
    resumed = patch(model, pairs, force=True, progress=False)
    model.can_resume = False
    try:
        full = patch(model, pairs, force=True, progress=False)
    finally:
        model.can_resume = True
    assert resumed.record["resumed"] and not full.record["resumed"]
    difference = resumed.scores["logit_difference"] - full.scores["logit_difference"]
    assert difference.abs().max() < 1e-4


def test_metrics_of_every_kind_are_those_of_the_patched_logits(models: dict[str, Any]) -> None:
    model, plain = models["llama"]
    pairs = token_pairs(1, seed=11)
    clean = torch.tensor([pairs.clean_tokens[0]])
    corrupted = torch.tensor([pairs.corrupted_tokens[0]])
    clean_logprobs = plain(clean).logits[0, -1].detach().log_softmax(-1)
    for metric in ("kl", "probability", minus_kl_to_clean):
        result = patch(model, pairs, metric=metric, layers=[2], force=True, progress=False)
        for row in result.scores.itertuples():
            value = naive.activation(plain, clean, 2, "resid_pre")[0, row.position]
            logits = naive.patched_logits(plain, corrupted, 2, "resid_pre", row.position, value)
            logprobs = logits.log_softmax(-1)
            if metric == "probability":
                expected = logprobs[pairs.answer_tokens[0]].exp()
            else:
                expected = -(clean_logprobs.exp() * (clean_logprobs - logprobs)).sum()
            assert abs(float(expected) - row.metric) < 1e-4


def test_a_metric_of_ones_own(models: dict[str, Any]) -> None:
    model, _ = models["llama"]

    def answer_logit(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
        return logits.gather(1, targets.answer[:, None]).squeeze(1)

    result = patch(
        model, token_pairs(1, seed=1), metric=answer_logit, force=True, progress=False, layers=[0]
    )
    assert result.record["metric"] == "answer_logit"
    assert result.summary()["effect"].abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "resid"}, "unknown site kind 'resid': expected one of resid_pre"),
        ({"direction": "up"}, "unknown direction 'up': expected denoising or noising"),
        ({"metric": "ld"}, "unknown metric 'ld': expected one of logit_difference"),
        ({"positions": "some"}, "unknown positions 'some': expected each or all"),
        ({"layers": [9]}, "has layers 0 to 3"),
        ({"layers": []}, "are empty or repeated"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
        ({"pairs": token_pairs(1)}, "pairs belong to a task"),
    ],
)
def test_bad_options_are_refused(
    models: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    model, _ = models["llama"]
    with pytest.raises(Exception, match=message) as caught:
        patch(model, token_pairs(1), **options, progress=False)
    assert type(caught.value).__module__.startswith("circuits")


def test_pythia_has_no_resid_mid(models: dict[str, Any]) -> None:
    model, _ = models["pythia"]
    with pytest.raises(SiteError, match="has no resid_mid: attention and MLP read the same stream"):
        patch(model, token_pairs(1), site="resid_mid", progress=False)


def test_a_metric_that_is_not_one_number_a_row_is_refused(models: dict[str, Any]) -> None:
    model, _ = models["llama"]
    with pytest.raises(Exception, match="expected one number a row"):
        patch(model, token_pairs(1), metric=lambda logits, targets: logits.sum(), progress=False)


def test_what_the_model_cannot_do_is_not_patched_unless_forced(models: dict[str, Any]) -> None:
    model, _ = models["llama"]
    pairs = token_pairs(6, seed=2)
    clean = model.run(torch.tensor(pairs.clean_tokens))
    corrupted = model.run(torch.tensor(pairs.corrupted_tokens))
    # Name as answer what makes the gap negative for every pair.
    worst = (corrupted - clean).argmax(1).tolist()
    best = (clean - corrupted).argmax(1).tolist()
    wrong = type(pairs)(
        **{**vars(pairs), "answer_tokens": tuple(worst), "foil_tokens": tuple(best)}
    )
    with pytest.raises(CannotDo, match="it must lie above 0"):
        patch(model, wrong, progress=False)
    forced = patch(model, wrong, force=True, progress=False, layers=[0])
    assert forced.record["forced"] and "must lie above 0" in forced.record["ability"]
