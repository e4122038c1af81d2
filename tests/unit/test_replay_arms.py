"""Arms of a replay: rates of latents, the random ones that are drawn by them, reconstructions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from circuits.models.hooked import HookedModel
from circuits.replay import Change, Prompts, ReplayError, generate, keys_of
from circuits.replay.arms import Rates, draw_others, measure_rates, reconstructions, record_of
from circuits.replay.interventions import touched
from circuits.replay.sampling import Sampling
from circuits.sites import Site
from circuits.task import Prompt
from tests import tiny
from tests.replayed import LATE, POST, random_saes

TEXTS = ("the cat sat on the mat .", "a dog ran under the log .", "the red dog")
SITES = [POST, Site(2, "resid_post"), LATE]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


def prompts(model: HookedModel) -> Prompts:
    return Prompts.of([Prompt(text) for text in TEXTS], model.tokenizer)


def test_random_latents_are_about_as_often_active(model: HookedModel) -> None:
    saes = random_saes(SITES)
    given: dict[str, Any] = {"max_new_tokens": 6, "seed": 0, "stop": [], "batch_size": 4}
    for where, count in (("generated", 3 * 5), ("prompt", 6 + 6 + 2), ("all", 14 + 15)):
        change = Change(POST, 3, "remove", None, where)  # pyright: ignore
        rates = measure_rates(
            model, saes, prompts(model), [change], sampling=Sampling(0.0), **given
        )
        assert rates.positions == {POST: count}
        # Prompts and greedy continuations, run whole and encoded densely.
        total = np.zeros(48)
        for ids in prompts(model).tokens:
            tokens = torch.tensor([ids])
            made = generate(
                model, tokens, keys_of(tokens, [0]), max_new_tokens=6, sampling=Sampling(0.0)
            )
            whole = torch.cat([tokens, made.tokens], 1)[:, :-1]
            x = model.activations(whole, [POST])[POST][0]
            inside = {"prompt": slice(1, len(ids)), "generated": slice(len(ids), None)}
            part = x[inside.get(where, slice(1, None))]
            total += (saes[POST].coefficients(part) > 0).sum(0).numpy()
        np.testing.assert_array_equal(rates.counts[POST], total)


def test_rates_of_drawn_latents() -> None:
    saes = random_saes([POST])
    counts, even = np.arange(48) ** 2, {POST: np.full(48, 7)}
    drawn = draw_others(
        saes, Rates({POST: counts}, {POST: 3000}), [Change(POST, 20, "remove")], 12, 1
    )
    others = [latent for [latent] in drawn]
    assert len(set(others)) == 12 and 20 not in others
    rows = saes[POST].rows
    cosine = torch.nn.functional.cosine_similarity(rows[others], rows[20][None])
    assert cosine.abs().max() <= 0.5
    both = [Change(POST, 20, "remove"), Change(POST, 4, "remove")]
    pairs = draw_others(saes, Rates({POST: counts}, {POST: 3000}), both, 9, 1)
    flat = [latent for pair in pairs for latent in pair]
    assert len(set(flat)) == 18 and not {20, 4} & set(flat)
    with pytest.raises(ReplayError, match="ask for fewer"):
        draw_others(saes, Rates({POST: counts}, {POST: 3000}), [Change(POST, 20, "remove")], 60, 1)

    # Within a factor of 2 where there are as many as arms: 15^2 to 28^2 of 20^2.
    many = Rates({POST: counts}, {POST: 3000})
    for seed in range(5):
        matched = draw_others(saes, many, [Change(POST, 20, "remove")], 3, seed)
        assert all(15 <= latent <= 28 for [latent] in matched)
    [few] = record_of(saes, many, [Change(POST, 20, "remove")], [[15], [14], [28], [29]])
    assert few["random_matched"] == [True, False, True, False]
    assert few["rate"] == 400 / 3000 and few["random_rates"][1] == 196 / 3000
    # All rates are the same: any latent may be drawn.
    first = [
        draw_others(saes, Rates(even, {POST: 9}), [Change(POST, 0, "remove")], 1, seed)[0][0]
        for seed in range(30)
    ]
    assert len(set(first)) > 15 and max(first) > 40


def test_reconstructions_are_where_changes_are() -> None:
    def change(where: Any, skip: int = 0, first: bool = False) -> Change:
        return Change(POST, 3, "remove", None, where, skip, first)

    for changes in (
        [change("prompt"), change("generated", 3)],
        [change("prompt", 0, False), change("generated", 3, True)],
        [change("all", 4), change("generated", 2), change("prompt", 1, True)],
        [change("generated", 2), change("generated", 1)],
        [change("prompt", 5)],
    ):
        [one] = reconstructions(changes)
        expected = torch.stack([touched(c, 0, 12, 5) for c in changes]).any(0)
        assert torch.equal(touched(one, 0, 12, 5), expected)


def test_positions_are_counted_site_by_site(model: HookedModel) -> None:
    changes = [Change(POST, 3, "remove", None, "prompt"), Change(LATE, 4, "remove")]
    rates = measure_rates(
        model,
        random_saes([POST, LATE]),
        prompts(model),
        changes,
        sampling=Sampling(0.0),
        max_new_tokens=6,
        seed=0,
        stop=[],
        batch_size=4,
    )
    assert rates.positions == {POST: 14, LATE: 14 + 15}
