"""Shares of a planted network, in closed form: direct, mediated, by tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from circuits.replay.confirm import Confirmed, Setting, confirm, wire
from circuits.replay.held import batches, coefficients, run_pass, slopes, text_of
from circuits.replay.interventions import Change, edits_of
from circuits.replay.outcomes import Outcome, steps_mean
from circuits.replay.pathways import rounding
from circuits.replay.routes import routes
from circuits.sites import Site
from tests import tiny
from tests.replayed import POST, random_saes
from tests.writer import (
    FIRST,
    NO,
    ODDS,
    SECOND,
    SOURCE,
    STOP,
    YES,
    latent,
    mean_odds,
    odds,
    writer,
)

HELD = 2.5
DIFFERENCE = Outcome("difference", (YES,), (NO,), ODDS)


def texts(seed: int, count: int = 12) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Prompts of two lengths and two responses to each."""
    draw = np.random.default_rng(seed)
    prompts = [[0, *draw.integers(1, 5, 3 + i % 2).tolist()] for i in range(count)]
    made = [
        [
            [*draw.choice([YES, NO], draw.integers(0, 9), p=[p, 1 - p]).tolist(), STOP]
            for _ in prompts
        ]
        for p in (0.3, 0.7)
    ]
    return prompts, made[0], made[1]


def setting(feature: str = "S", outcome: Outcome = DIFFERENCE, **options: Any) -> Setting:
    made = writer(options.pop("chain", False))
    source = [Change(SOURCE, latent(made, SOURCE, feature), "hold", HELD)]
    return Setting(made.model, made.saes, source, outcome, **options)


def mediators(*names: str) -> list[tuple[Site, int]]:
    site = {"M": FIRST, "N": FIRST, "K": SECOND, "R": SECOND}
    return [(site[name], latent(writer(), site[name], name)) for name in names]


@pytest.mark.parametrize("chain", [False, True])
def test_the_network_is_what_it_is_said_to_be(chain: bool) -> None:
    made = writer(chain)
    prompts, given, _ = texts(0)
    for rows in batches(prompts, given, 5):
        text = text_of(rows, [prompts[i] for i in rows], [given[i] for i in rows])
        for held in (None, HELD):
            changes = [] if held is None else setting(chain=chain).source
            edits = edits_of(made.saes, changes, text.prompt)
            found = run_pass(made.model, text, edits)
            got = (found.logits[..., YES] - found.logits[..., NO]).numpy()
            for line, i in enumerate(rows):
                wanted = sum(odds(prompts[i], given[i], held, chain=chain).values())
                assert got[line, : len(given[i])] == pytest.approx(wanted, abs=1e-12)


def test_batches_hold_every_trial_once() -> None:
    prompts, given, _ = texts(1, 23)
    found = list(batches(prompts, given, 4))
    assert sorted(np.concatenate(found).tolist()) == list(range(23))
    assert max(map(len, found)) <= 4
    assert all(len({len(prompts[i]) for i in rows}) == 1 for rows in found)


def by_hand(chain: bool, prompts: Any, given: Any) -> dict[str, np.ndarray]:
    """The source's own part, and what goes by M, trial by trial."""
    own, total = [], []
    for prompt, response in zip(prompts, given, strict=True):
        base = mean_odds(prompt, response, chain=chain)
        own.append(mean_odds(prompt, response, HELD, frozen=True, chain=chain) - base)
        total.append(mean_odds(prompt, response, HELD, chain=chain) - base)
    return {"own": np.array(own), "total": np.array(total)}


def test_mediated_shares_in_closed_form() -> None:
    """Of one mediator that carries it, beside two that do not."""
    prompts, given, _ = texts(2)
    hand = by_hand(False, prompts, given)
    assert 0.1 < hand["own"].mean() / hand["total"].mean() < 0.5
    names = ["N", "M", "K"]
    found = confirm(
        setting(),
        prompts,
        given,
        mediators(*names),
        controls=mediators("N", "K"),
        batch_size=5,
        progress=False,
    )
    close = {"abs": 1e-12}
    assert found.left_controls == pytest.approx(hand["total"], **close)
    assert found.total == pytest.approx(hand["total"], **close)
    assert found.left_all == pytest.approx(hand["own"], **close)
    for i, name in enumerate(names):
        through = hand["total"] - hand["own"] if name == "M" else 0 * hand["total"]
        assert found.total - found.left[:, i] == pytest.approx(through, **close)
        assert found.alone[:, i] == pytest.approx(through, **close)
        assert found.direct[:, i] == pytest.approx(through, **close)
        moved = np.zeros(len(prompts))
        if name == "M":
            steps = [
                odds(p, r, HELD)["M"] - odds(p, r)["M"] for p, r in zip(prompts, given, strict=True)
            ]
            moved = np.array([one.mean() / 0.5 for one in steps])  # M counts half
        assert found.moved[:, i] == pytest.approx(moved, **close)
        assert found.reach_source[:, i] == pytest.approx(moved, **close)
    assert np.abs(found.reach).max() < 1e-12
    s = [odds(p, r)["S"].mean() / 0.5 for p, r in zip(prompts, given, strict=True)]  # A is a half
    assert found.source == pytest.approx(np.stack([s, np.full(12, HELD)], 1), **close)
    base = [mean_odds(p, r) for p, r in zip(prompts, given, strict=True)]
    assert found.base == pytest.approx(np.array(base), **close)


def test_a_chain_of_mediators_adds_up() -> None:
    """M carries all of its part and drives R, which carries some of it."""
    prompts, given, _ = texts(3)
    plan = setting(chain=True)
    found = confirm(plan, prompts, given, mediators("R", "M"), batch_size=4, progress=False)
    hand = by_hand(True, prompts, given)
    shift = {
        name: np.array(
            [
                (odds(p, r, HELD, chain=True)[name] - odds(p, r, chain=True)[name]).mean()
                for p, r in zip(prompts, given, strict=True)
            ]
        )
        for name in ("M", "MA", "R")
    }
    close = {"abs": 1e-12}
    by_r, by_m = shift["R"], shift["M"] + shift["MA"] + shift["R"]
    assert found.total - found.left[:, 0] == pytest.approx(by_r, **close)
    assert found.total - found.left[:, 1] == pytest.approx(by_m, **close)
    assert found.alone == pytest.approx(np.stack([by_r, by_m], 1), **close)
    # Straight to the outcome: R what it carries, M without R.
    assert found.direct == pytest.approx(np.stack([by_r, by_m - by_r], 1), **close)
    assert found.left_all + found.direct.sum(1) == pytest.approx(hand["total"], **close)
    # R hears of the source by M alone.
    assert found.reach_source[:, 0] == pytest.approx(0 * by_r, **close)
    assert found.reach[:, 1, 0] == pytest.approx(found.moved[:, 0], **close)
    assert found.moved[:, 0] == pytest.approx(by_r / 0.25, **close)
    assert np.abs(found.reach[:, 0]).max() < 1e-12


def test_some_of_a_chain_without_the_others_add_up() -> None:
    """R alone, M alone, all and none: what goes by a mediator that is left out is the source's
    again, or that of the one before it."""
    prompts, given, _ = texts(3)
    plan = setting(chain=True)
    names = ["R", "N", "M"]
    found = confirm(plan, prompts, given, mediators(*names), batch_size=4, progress=False)
    by_r, by_m = (found.total - found.left[:, names.index(name)] for name in ("R", "M"))
    close = {"abs": 1e-12}
    for some, own, direct in (
        (["R"], found.total - by_r, [by_r]),
        (["M"], found.total - by_m, [by_m]),
        (["N"], found.total, [0 * by_m]),
        (["R", "M"], found.total - by_m, [by_r, by_m - by_r]),
        ([], found.total, []),
    ):
        at = [names.index(name) for name in some]
        wired = wire(plan, prompts, given, found, at, batch_size=5, progress=False)
        assert wired.mediators == tuple(mediators(*some))
        assert wired.left_all == pytest.approx(own, **close)
        straight = np.array(direct).reshape(len(some), 12).T
        assert wired.direct == pytest.approx(straight, **close)
        assert wired.left_all + wired.direct.sum(1) == pytest.approx(found.total, **close)
        if some == ["R"]:  # M is not held
            assert wired.reach_source[:, 0] == pytest.approx(found.moved[:, 0], **close)
    assert wire(plan, prompts, given, found, [0, 1, 2], progress=False) is found


def test_batches_and_order_change_nothing() -> None:
    prompts, given, _ = texts(4)
    plan = setting(chain=True)
    one = confirm(plan, prompts, given, mediators("M", "R"), batch_size=1, progress=False)
    two = confirm(plan, prompts, given, mediators("R", "M"), batch_size=12, progress=False)
    for name in ("total", "left_all", "base"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), abs=1e-12)
    assert one.left[:, ::-1] == pytest.approx(two.left, abs=1e-12)
    assert one.reach[:, ::-1, ::-1] == pytest.approx(two.reach, abs=1e-12)


@pytest.mark.parametrize("kind", ["kl", "logprob", "logit", "difference"])
def test_a_latent_that_nobody_reads_has_no_effect(kind: str) -> None:
    outcome = {
        "kl": Outcome("kl"),
        "logprob": Outcome("logprob", (YES,), text="logit:x"),
        "logit": Outcome("logit", (YES,), text="logit:x"),
        "difference": DIFFERENCE,
    }[kind]
    prompts, given, other = texts(5)
    plan = setting("T", outcome)
    found = confirm(plan, prompts, given, mediators("M", "K"), progress=False)
    for name in ("total", "left_all", "left", "alone", "direct", "moved", "reach"):
        assert np.abs(getattr(found, name)).max() < 1e-12, name
    parts = routes(plan, prompts, given, other, progress=False).parts
    assert max(np.abs(parts[name]).max() for name in ("direct", "interaction")) < 1e-12


def test_direct_and_by_tokens_in_closed_form() -> None:
    """Linear log odds: the words' part is the same with and without the change but for S and M,
    which the held source takes from them, and that is the interaction."""
    prompts, plain, patched = texts(6)
    found = routes(setting(), prompts, plain, patched, batch_size=5, progress=False)
    cells = {
        "m00": (plain, None),
        "m10": (plain, HELD),
        "m01": (patched, None),
        "m11": (patched, HELD),
    }
    for name, (given, held) in cells.items():
        wanted = [mean_odds(p, r, held) for p, r in zip(prompts, given, strict=True)]
        assert found.cells[name] == pytest.approx(np.array(wanted), abs=1e-12)
        for i, (prompt, response) in enumerate(zip(prompts, given, strict=True)):
            line = found.steps[name][i]
            by_step = sum(odds(prompt, response, held).values())
            assert line[: len(response)] == pytest.approx(by_step, abs=1e-12)
            assert np.isnan(line[len(response) :]).all()
    parts = found.parts
    added = parts["direct"] + parts["by_tokens"] + parts["interaction"]
    assert added == pytest.approx(parts["total"], abs=1e-12)
    assert np.abs(parts["interaction"]).max() > 0.01
    steps = found.step_parts
    shortest = [min(len(a), len(b)) for a, b in zip(plain, patched, strict=True)]
    assert (~np.isnan(steps["total"])).sum(1).tolist() == shortest
    # The first prediction is made before any word is written.
    assert np.abs(steps["by_tokens"][:, 0]).max() < 1e-12
    assert np.abs(steps["direct"][:, 0]).min() > 0.1


def test_kl_in_the_four_cells() -> None:
    prompts, plain, patched = texts(7)
    found = routes(setting(outcome=Outcome("kl")), prompts, plain, patched, progress=False)
    assert np.abs(found.cells["m00"]).max() < 1e-12
    assert all((found.cells[name] > -1e-12).all() for name in found.cells)
    for name in found.steps:  # never behind the end of the no-op response
        ends = [min(len(a), len(b)) for a, b in zip(plain, patched, strict=True)]
        kept = (~np.isnan(found.steps[name])).sum(1)
        assert kept.tolist() == ([len(a) for a in plain] if name[2] == "0" else ends)

    def log_probs(prompt: list[int], response: list[int], held: float | None) -> np.ndarray:
        logits = np.full((len(response), 8), -40.0)
        logits[:, YES] = sum(odds(prompt, response, held).values())
        logits[:, NO], logits[:, STOP] = 0, -2
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    for i, prompt in enumerate(prompts):
        base, now = log_probs(prompt, plain[i], None), log_probs(prompt, plain[i], HELD)
        wanted = (np.exp(base) * (base - now)).sum(1)
        assert found.steps["m10"][i, : len(wanted)] == pytest.approx(wanted, abs=1e-9)


def test_only_the_first_steps() -> None:
    prompts, given, other = texts(8)
    found = routes(setting(first=1), prompts, given, other, progress=False)
    wanted = [sum(odds(p, r, HELD).values())[0] for p, r in zip(prompts, given, strict=True)]  # pyright: ignore
    assert found.cells["m10"] == pytest.approx(np.array(wanted), abs=1e-12)
    assert np.abs(found.parts["by_tokens"]).max() < 1e-12


def test_slopes_are_the_networks() -> None:
    """Of the mean log odds by M: B at each step, and E shared out over the tokens so far."""
    made, plan = writer(), setting()
    prompts, given, _ = texts(9, 6)
    rows = next(batches(prompts, given, 6))
    text = text_of(rows, [prompts[i] for i in rows], [given[i] for i in rows])

    def outcome(logits: torch.Tensor) -> torch.Tensor:
        values = plan.outcome.values(logits, logits)
        return steps_mean(values, text.lengths, None)

    edits = edits_of(made.saes, plan.source, text.prompt)
    found = slopes(made.model, text, edits, [FIRST], outcome)[FIRST]
    by_m = (found @ made.saes[FIRST].rows[latent(made, FIRST, "M")]).numpy()
    for line, i in enumerate(rows):
        n, first = len(given[i]), len(prompts[i]) - 1
        wanted = np.zeros(text.tokens.shape[1])
        for p in range(first, first + n):
            wanted[p] += 0.5 / n
            wanted[: p + 1] += 0.5 / (p + 1) / n
        assert by_m[line] == pytest.approx(wanted, abs=1e-12)


def test_confirmed_without_mediators() -> None:
    prompts, given, _ = texts(10)
    found = confirm(setting(), prompts, given, [], progress=False)
    assert isinstance(found, Confirmed) and found.left.shape == (12, 0)
    assert found.left_all == pytest.approx(found.total)


def test_holding_a_latent_at_its_own_value_changes_nothing_in_half_types() -> None:
    model = tiny.bridge("llama", torch.bfloat16)
    saes = random_saes([POST])
    text = text_of(np.arange(2), [[5, 6, 7]] * 2, [[8, 9, 10, 11], [12, 13]])
    plain = run_pass(model, text, {}, [POST])
    some = list(range(0, 48, 5))
    own = coefficients(saes[POST], plain.seen[POST], some)
    assert own.dtype == torch.float32 and (own != 0).any()
    changes = [Change(POST, k, "hold", own[..., i], first=True) for i, k in enumerate(some)]
    same = run_pass(model, text, edits_of(saes, changes, 3), [POST])
    assert torch.equal(plain.logits, same.logits)


def test_what_counts_as_rounding() -> None:
    """In half types a change of a latent must not drown in the spacing of their numbers."""
    for dtype, fine, coarse in (
        (torch.float64, 2.2e-14, 2.2e-14),
        (torch.float32, 1.2e-5, 1.2e-5),
        (torch.bfloat16, 1.2e-5, 0.031),
    ):
        assert rounding(dtype) == pytest.approx((fine, coarse), rel=0.02)
