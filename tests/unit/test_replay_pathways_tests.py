"""The tests of pathways: against brute force, at their level without an effect, and what the unit
of exchange changes."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import sparse
from scipy.stats import binom, nct, permutation_test, ttest_1samp
from scipy.stats import t as t_quantile

from circuits.cli.replay_pathways import task_of, task_outcome
from circuits.metrics import summarise_mean
from circuits.replay.changes import Trials, active_units, beside, changes, read_means
from circuits.replay.outcomes import Outcome, check_outcome, parse_outcome, read_sides, steps_mean
from circuits.replay.paired import PathwayError, Units, share, sign_flips, sizes, summarise
from circuits.sites import Site
from circuits.task import load_task

HERE = Site.parse("resid_post.1")
THERE = Site.parse("resid_post.2")


def prompts(count: int, trials: int) -> np.ndarray:
    return np.repeat(np.arange(count), trials)


def test_units_follow_from_the_number_of_prompts() -> None:
    assert Units.of(prompts(10, 3)).kind == "prompt" and len(Units.of(prompts(10, 3))) == 10
    assert Units.of(prompts(9, 3)).kind == "trial" and len(Units.of(prompts(9, 3))) == 27
    # One trial a prompt: trials are prompts.
    assert Units.of(prompts(4, 1)).kind == "prompt"
    assert Units.of(prompts(9, 3), "prompt").kind == "prompt"
    assert Units.of(np.array([7, 7, 3])).prompt.tolist() == [1, 1, 0]
    for wrong in (np.zeros(0, dtype=int), np.zeros(1, dtype=int)):
        with pytest.raises(PathwayError, match="at least two are needed"):
            Units.of(wrong)
    with pytest.raises(PathwayError, match=r"1 prompts with 5 trials give 1 units \(prompts\)"):
        Units.of(np.zeros(5, dtype=int), "prompt")


@pytest.mark.parametrize("count", [4, 8])
def test_flips_of_prompts_by_brute_force(count: int) -> None:
    """All 2^n patterns over prompts, and scipy's paired permutation test of prompt means."""
    draw = np.random.default_rng(count)
    of = prompts(count, 3)
    values = draw.normal(size=(len(of), 5)) + np.array([0.0, 0.2, 0.5, 1.0, 0.0])
    values[:, 4] = 0
    got = sign_flips(values, Units.of(of, "prompt"))
    means = values.reshape(count, 3, 5).mean(1)
    seen = np.abs(means.mean(0))
    patterns = np.array(list(itertools.product((1, -1), repeat=count)))
    all_of_them = np.abs(patterns @ means / count)
    assert got == pytest.approx((all_of_them >= seen - 1e-12).mean(0))
    assert got[4] == 1
    for cell in range(4):
        found = permutation_test(
            (means[:, cell], np.zeros(count)),
            lambda a, b: np.mean(a - b),
            permutation_type="samples",
            n_resamples=np.inf,
        )
        assert got[cell] == pytest.approx(found.pvalue)


def test_flips_of_trials_by_brute_force() -> None:
    """Prompts count alike, whatever the number of their trials."""
    draw = np.random.default_rng(0)
    of = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    values = draw.normal(0.4, 1, (8, 3))
    units = Units.of(of, "trial")
    each = np.array([0.2 / 3] * 5 + [0.5 / 3] * 2 + [1 / 3])
    assert units.shares == pytest.approx(each)
    assert units.mean(values) == pytest.approx(each @ values)
    patterns = np.array(list(itertools.product((1, -1), repeat=8)))
    moved = np.abs(patterns @ (each[:, None] * values))
    expected = (moved >= np.abs(each @ values) - 1e-12).mean(0)
    assert sign_flips(values, units) == pytest.approx(expected)


def test_random_flips_agree_with_all_of_them() -> None:
    draw = np.random.default_rng(1)
    values = draw.normal(0.3, 1, (14, 4))
    units = Units.of(np.arange(14))
    exact = sign_flips(values, units)
    drawn = sign_flips(values, units, flips=8000, seed=3)
    assert (np.abs(drawn - exact) < 4 * np.sqrt(exact * (1 - exact) / 8000) + 2e-4).all()
    assert not np.array_equal(drawn, exact)
    far = np.ones((60, 1))
    assert sign_flips(far, Units.of(np.arange(60))) == pytest.approx(1 / 20_000)
    assert units.smallest_p == pytest.approx(2**-13)
    assert sign_flips(np.ones((14, 1)), units) == pytest.approx(units.smallest_p)


def test_signs_have_their_level_with_unequal_trials() -> None:
    """Without an effect p is at most .05 in 5% of the cells, however skewed their values are."""
    draw = np.random.default_rng(2)
    of = np.repeat(np.arange(12), draw.integers(1, 6, 12))
    spread = draw.gamma(1, 1, 12)[of][:, None]
    both = draw.gamma(0.3, 1, (2, len(of), 2000)) * spread
    low = (sign_flips(both[0] - both[1], Units.of(of)) <= 0.05).sum()
    assert low <= binom.ppf(0.9995, 2000, 0.05)
    assert low >= binom.ppf(0.0005, 2000, 0.05) - 20  # ties make it a little conservative


def test_prompts_that_differ_need_prompts_as_units() -> None:
    """Every prompt has an effect of its own whose mean over prompts is 0: flipping trials takes
    that for a finding, flipping prompts does not."""
    draw = np.random.default_rng(3)
    of = prompts(12, 10)
    values = draw.normal(size=(12, 1000))[of] + draw.normal(size=(120, 1000))
    alarms = {
        kind: float((sign_flips(values, Units.of(of, kind), flips=999) <= 0.05).mean())
        for kind in ("prompt", "trial")
    }
    assert alarms["prompt"] < binom.ppf(0.9995, 1000, 0.05) / 1000
    assert alarms["trial"] > 0.4


def test_intervals() -> None:
    draw = np.random.default_rng(4)
    values = draw.normal(1, 1, (36, 3))
    units = Units.of(prompts(12, 3))
    got = summarise(values, units, seed=5)
    by_prompt = values.reshape(12, 3, 3).mean(1)
    expected = summarise_mean(by_prompt, seed=5)
    assert got.value == pytest.approx(expected.value)
    wider = t_quantile.ppf(0.975, 11) / 1.959964 * np.sqrt(12 / 11)
    for end in ("low", "high"):
        plain = getattr(expected, end) - expected.value
        assert getattr(got, end) - got.value == pytest.approx(wider * plain, rel=1e-4)
    # Trials within prompts: the spread between prompts is no part of it.
    offset = draw.normal(size=12)[prompts(12, 3)] * 50
    within = summarise(values + offset[:, None], Units.of(prompts(12, 3), "trial"))
    assert (within.high - within.low < 2).all()
    sigma = values.reshape(12, 3, 3).var(1, ddof=1).mean(0) / 36  # of a mean within prompts
    assert within.high - within.low == pytest.approx(
        2 * t_quantile.ppf(0.975, 24) * np.sqrt(sigma), rel=0.1
    )


@pytest.mark.parametrize(
    ("count", "trials", "kind"), [(5, 1, "prompt"), (12, 3, "prompt"), (4, 2, "trial")]
)
def test_intervals_hold_what_they_say(count: int, trials: int, kind: str) -> None:
    """Of normal values, the mean lies in 95% of the intervals, however few units there are."""
    draw = np.random.default_rng(10)
    of = prompts(count, trials)
    values = draw.normal(size=(len(of), 2000))
    if kind == "prompt":
        values += draw.normal(size=(count, 2000))[of]
    got = summarise(values, Units.of(of, kind))  # pyright: ignore
    inside = float(((got.low <= 0) & (got.high >= 0)).mean())
    assert 0.93 < inside < 0.98


def test_no_interval_where_none_is_known() -> None:
    draw = np.random.default_rng(11)
    for of, kind in (
        (prompts(4, 3), "prompt"),
        (prompts(3, 1), "trial"),
        (np.array([0, 0, 0, 0, 0, 0, 1]), "trial"),
        (prompts(3, 2), "trial"),
    ):
        units = Units.of(of, kind)  # pyright: ignore
        values = draw.normal(5, 0.1, len(of))
        got = summarise(values, units)
        assert np.isnan([got.low, got.high]).all() and not np.isnan(got.value)
        assert "too few units" in share(values, values, units).problem


def test_sizes_by_hand() -> None:
    draw = np.random.default_rng(6)
    values = draw.normal(0.8, 1, (12, 4))
    values[:, 3] = 2.0
    got = sizes(values, Units.of(np.arange(12)))
    one = values[:, 0]
    assert got.value[0] == pytest.approx(one.mean() / one.std(ddof=1))
    t = ttest_1samp(one, 0).statistic
    assert got.value[0] * np.sqrt(12) == pytest.approx(t)
    assert nct.sf(t, 11, got.low[0] * np.sqrt(12)) == pytest.approx(0.025, abs=1e-5)
    assert nct.cdf(t, 11, got.high[0] * np.sqrt(12)) == pytest.approx(0.025, abs=1e-5)
    turned = sizes(-values, Units.of(np.arange(12)))
    assert turned.low[:3] == pytest.approx(-got.high[:3], abs=1e-5)
    assert np.isnan([got.value[3], got.low[3], got.high[3]]).all()  # units that are all alike


def test_shares_are_refused_where_the_total_may_be_none() -> None:
    draw = np.random.default_rng(7)
    units = Units.of(prompts(12, 4))
    total = draw.normal(2, 0.3, 48)
    part = 0.4 * total
    got = share(part, total, units)
    assert (got.value, got.low, got.high) == pytest.approx((0.4, 0.4, 0.4))
    noisy = share(part + draw.normal(0, 0.1, 48), total, units)
    assert noisy.low < noisy.value < noisy.high and noisy.high - noisy.low < 0.1
    centred = total - total.mean() + 0.01
    none = share(part, centred, units)
    assert np.isnan(none.value) and "has 0" in none.problem
    rounding = share(1e-8 * part, 1e-8 * total, units, noise=1e-6)
    assert np.isnan(rounding.value) and "rounding" in rounding.problem


def table(*rows: tuple[str, int, int, int, str, int, float]) -> pa.Table:
    names = ["arm", "prompt", "trial", "step", "site", "latent", "value"]
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def test_means_of_responses_by_hand(tmp_path: pytest.TempPathFactory) -> None:
    """A response's mean is over its own steps; what is not active counts as 0."""
    responses = pd.DataFrame(
        [
            {"arm": arm, "kind": kind, "prompt": p, "trial": t, "length": length}
            for p, kind in ((3, "risky"), (1, "safe"))
            for t in (0, 1)
            for arm, length in (("no-op", 4), ("latent", 2 + 2 * t))
        ]
    )
    responses.loc[(responses["arm"] == "latent") & (responses["prompt"] == 1), "length"] = 0
    path = tmp_path / "latents.parquet"  # pyright: ignore
    rows = [
        ("no-op", 3, 0, 0, "resid_post.1", 5, 2.0),
        ("no-op", 3, 0, 3, "resid_post.1", 5, 4.0),
        ("latent", 3, 0, 1, "resid_post.1", 5, 4.0),
        ("latent", 3, 1, 2, "resid_post.2", 0, 8.0),
        ("latent", 3, 1, 2, "resid_post.9", 0, 8.0),
        ("random-1", 3, 1, 2, "resid_post.1", 0, 8.0),
        ("no-op", 1, 0, 0, "resid_post.1", 5, 2.0),
    ]
    with pq.ParquetWriter(path, table(rows[0]).schema) as writer:
        for first in range(0, len(rows), 2):  # several row groups
            writer.write_table(table(*rows[first : first + 2]))
    trials = Trials.of(responses, ["no-op", "latent"])
    assert trials.table.to_dict("records") == [
        {"prompt": 3, "trial": 0, "kind": "risky"},
        {"prompt": 3, "trial": 1, "kind": "risky"},
    ]
    means = read_means(path, trials, {HERE: 8, THERE: 2})
    assert set(means) == {"no-op", "latent"}
    assert means["no-op"][HERE].toarray().tolist() == [[0] * 5 + [1.5, 0, 0], [0] * 8]
    assert means["latent"][HERE].toarray().tolist() == [[0] * 5 + [2, 0, 0], [0] * 8]
    assert means["latent"][THERE].toarray().tolist() == [[0, 0], [2, 0]]
    with pytest.raises(PathwayError, match="no arm random-2: it has latent, no-op"):
        Trials.of(responses, ["no-op", "random-2"])
    with pytest.raises(PathwayError, match="kind 'neutral': it has risky, safe"):
        Trials.of(responses, ["no-op"], "neutral")
    with pytest.raises(PathwayError, match="no trial has a response in each"):
        Trials.of(responses, ["no-op", "latent"], "safe")


def test_what_is_tested_does_not_depend_on_the_difference() -> None:
    draw = np.random.default_rng(8)
    of = prompts(10, 2)
    first, second = (
        sparse.csr_array(draw.gamma(1, 1, (20, 40)) * (draw.random((20, 40)) < rate))
        for rate in (0.3, 0.1)
    )
    units = Units.of(of)
    counts = active_units(first, second, units)
    either = (first.toarray() > 0) | (second.toarray() > 0)
    assert counts.tolist() == either.reshape(10, 2, 40).any(1).sum(0).tolist()
    assert active_units(first, second, Units.of(of, "trial")).tolist() == either.sum(0).tolist()
    one = changes({HERE: first}, {HERE: second}, units)
    other = changes({HERE: second}, {HERE: first}, units)
    assert one["latent"].tolist() == np.flatnonzero(counts >= 6).tolist()
    for column, sign in (("latent", 1), ("p", 1), ("q", 1), ("difference", -1)):
        assert one[column].to_numpy() == pytest.approx(sign * other[column].to_numpy())
    dense = (first - second).toarray()[:, one["latent"]]
    assert one["difference"].to_numpy() == pytest.approx(dense.mean(0))
    assert one["p"].to_numpy() == pytest.approx(sign_flips(dense, units))
    assert (one["patched"] - one["base"]).to_numpy() == pytest.approx(one["difference"].to_numpy())
    found = beside(one, {"random-1": {HERE: second}, "x": {HERE: first}}, {HERE: second}, units)
    assert found[0].tolist() == [0] * len(one)
    assert found[1] == pytest.approx(one["difference"].to_numpy())
    assert changes({HERE: first}, {HERE: second}, units, least=11).empty


def test_outcomes_by_hand() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 2, 3, 7, generator=draw, dtype=torch.float64)
    p, q = (x.softmax(-1) for x in (logits, reference))
    odds = (p[..., 1] + p[..., 2]).log() - p[..., 5].log()
    for outcome, expected in (
        (Outcome("kl"), (q * (q / p).log()).sum(-1)),
        (Outcome("logprob", (1, 2), text="logit:x"), (p[..., 1] + p[..., 2]).log()),
        (Outcome("logit", (4,), text="logit:x"), logits[..., 4] - logits.mean(-1)),
        (Outcome("difference", (1, 2), (5,), "difference:x//y"), odds),
    ):
        torch.testing.assert_close(outcome.values(logits, reference), expected)
    values = torch.tensor([[1.0, 2.0, 9.0], [4.0, 6.0, 8.0]])
    assert steps_mean(values, torch.tensor([2, 3]), None).tolist() == [1.5, 6]
    assert steps_mean(values, torch.tensor([1, 3]), 2).tolist() == [1, 5]


class Letters:
    """A tokenizer with a token for each letter but Q, which has two."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [i for c in text for i in ([1, 2] if c == "Q" else [ord(c)])]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def test_a_task_names_its_outcome() -> None:
    gambling = load_task("gambling")
    for options in ({}, {"chat": True}, {"family": "slots"}):
        named = task_outcome(gambling, None, options)  # pyright: ignore
        assert named == "difference[1]: Stop// Bet"  # what is decided at the first step
    assert task_outcome(gambling, None, {"family": "neutral"}) is None  # pyright: ignore
    assert read_sides("difference: Stop// Bet") == ("difference", ([" Stop"], [" Bet"]))
    assert task_outcome(load_task("ioi"), None) is None and task_outcome(None, None) is None  # pyright: ignore


def test_the_task_of_a_run() -> None:
    ioi = task_of({"task": "ioi", "task_from": "ioi"}, None)
    assert ioi is not None and ioi.name == "ioi" and task_of({"task": "ioi"}, None) is ioi
    for record in ({"task": "custom"}, {"task": "gone"}, {"task": "ioi", "task_from": "my/ioi.py"}):
        assert task_of(record, None) is None


def test_outcomes_as_text() -> None:
    def read(text: str) -> Outcome:
        return parse_outcome(text, Letters())

    assert read(" kl ") == Outcome("kl")
    assert read("logprob:a|b").tokens == (97, 98)
    assert read("logit: ").tokens == (32,)
    both = read("difference:a|#7//b")
    assert (both.tokens, both.foils) == ((97, 7), (98,))
    assert both.name == "log odds of 'a' or '#7' against 'b' (nats)"
    assert read("logprob: ").name == "log probability of ' ' (nats)"
    early = read("difference[1]:a//b")
    assert (early.first, early.tokens, early.foils) == (1, (97,), (98,))
    assert early.name == "log odds of 'a' against 'b' at the first step (nats)"
    assert read("kl[3]").name == "KL from the no-op run at the first 3 steps (nats)"
    assert read("logit:a[1]"[:7]).first is None
    for text, said in (
        ("logit[0]:a", "counts no step"),
        ("entropy:a", "unknown outcome 'entropy:a': expected kl"),
        ("logprob", "unknown outcome"),
        ("difference:a", "two sides"),
        ("logprob:a//b", "two sides"),
        ("logprob:a|", "empty token"),
        ("logprob:Q", "'Q' is 2 tokens"),
        ("difference:a|b//b", "on both sides"),
        ("difference:a//", "1 tokens and 0 foils"),
    ):
        with pytest.raises(PathwayError, match=said):
            read(text)
    with pytest.raises(PathwayError, match=r"names the tokens \[97\], the model has 0 to 96"):
        check_outcome(read("logit:a|b"[:7]), 97)
