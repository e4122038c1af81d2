"""Log odds and tests of words, against formulas by hand and against all exchanges there are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from circuits.replay.words import significance as test
from circuits.replay.words.odds import background_prior, odds_ratio, pooled_prior


def test_log_odds_by_hand() -> None:
    mine, other = np.array([30, 0, 5]), np.array([10, 4, 5])
    n, m, scale = 400, 300, 0.5  # other words make up the rest
    prior, total = pooled_prior(mine + other, scale), scale * (n + m)
    ratio, variance = odds_ratio(mine, other, n, m, prior, total)
    for i, (y, k) in enumerate(zip(mine.tolist(), other.tolist(), strict=True)):
        a = scale * (y + k)
        left = math.log((y + a) / (n + total - y - a))
        right = math.log((k + a) / (m + total - k - a))
        assert ratio[i] == pytest.approx(left - right, abs=1e-12)
        assert variance[i] == pytest.approx(1 / (y + a) + 1 / (k + a), abs=1e-12)
    swapped = odds_ratio(other, mine, m, n, prior, total)[0]
    np.testing.assert_allclose(swapped, -ratio, atol=1e-12)
    assert ratio[0] > 0 > ratio[1]


def test_a_background_prior_adds_up() -> None:
    background = np.array([90, 0])  # ten words more are of no arm: eleven different ones in all
    prior = background_prior(200, background, 100, 11, 0.1)
    np.testing.assert_allclose(prior, [0.1 * 200 * 91 / 111, 0.1 * 200 * 1 / 111])


def test_fisher_against_the_law_of_the_table() -> None:
    def by_hand(a: int, n: int, b: int, m: int) -> float:
        held, every = a + b, n + m
        law = {
            k: math.comb(n, k) * math.comb(m, held - k) / math.comb(every, held)
            for k in range(max(0, held - m), min(n, held) + 1)
        }
        return sum(p for p in law.values() if p <= law[a] * (1 + 1e-7))

    mine, other = np.array([0, 3, 7, 10]), np.array([0, 9, 2, 12])
    found = test.fisher(mine, 10, other, 12)
    wanted = [by_hand(a, 10, b, 12) for a, b in zip(mine.tolist(), other.tolist(), strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("prompts", [3, 9])
def test_prompts_exchanged_in_every_way(prompts: int) -> None:
    differences = np.random.default_rng(0).integers(-4, 5, size=(prompts, 6)) / 8
    signs = np.array(list(itertools.product((-1, 1), repeat=prompts)))
    sums = np.abs(signs @ differences)
    wanted = (sums >= np.abs(differences.sum(0)) - 1e-12).mean(0)
    found = test.exchange_prompts(differences, 999, np.random.default_rng(1))
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_prompts_exchanged_at_random() -> None:
    """16 prompts have 65,536 exchanges; 9,999 drawn ones give their p within its own error."""
    rng = np.random.default_rng(3)
    differences = rng.integers(-3, 5, size=(16, 8)) / 10
    exact = test.exchange_prompts(differences, 65_535, rng)
    drawn = test.exchange_prompts(differences, 9_999, rng)
    assert exact.min() < 0.2
    assert np.all(np.abs(drawn - exact) < 5 * np.sqrt(exact * (1 - exact) / 9_999) + 2e-4)
    np.testing.assert_allclose(drawn * 10_000, np.round(drawn * 10_000), atol=1e-6)
    never = test.exchange_prompts(np.ones((40, 1)), 99, rng)
    assert never[0] == 0.01  # (1 + 0) / (1 + 99): a p is never 0


def test_pairs_exchanged_in_every_way() -> None:
    rng = np.random.default_rng(0)
    held = rng.random((2, 8, 5)) < np.array([0.7, 0.3])[:, None, None]
    steps = held[0].astype(int) - held[1]
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    wanted = (np.abs(signs @ steps) >= np.abs(steps.sum(0))).mean(0)
    found = test.exchange_pairs((steps == 1).sum(0), (steps == -1).sum(0))
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert test.exchange_pairs(np.array([0]), np.array([0]))[0] == 1


def test_trials_exchanged_in_every_way_within_prompts() -> None:
    rng = np.random.default_rng(2)
    sizes = [(3, 2), (2, 2)]  # responses of arm and baseline, of two prompts
    held = [rng.random((sum(s), 6)) < rng.random(6) for s in sizes]
    ways = [list(itertools.combinations(range(sum(s)), s[0])) for s in sizes]
    sums = np.array(
        [
            [h[list(w)].sum(0) for h, w in zip(held, way, strict=True)]
            for way in itertools.product(*ways)
        ]
    ).sum(1)
    mine = np.stack([h[: s[0]].sum(0) for h, s in zip(held, sizes, strict=True)])
    other = np.stack([h[s[0] :].sum(0) for h, s in zip(held, sizes, strict=True)])
    mean = sums.mean(0)
    wanted = (np.abs(sums - mean) >= np.abs(mine.sum(0) - mean) - 1e-12).mean(0)
    found = test.exchange_trials(mine, np.array([3, 2]), other, np.array([2, 2]))
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_kinds_exchanged() -> None:
    """The statistic is Welch's t, and its distribution that of all exchanges of prompts."""
    rng = np.random.default_rng(4)
    first, second = rng.normal(0, 1, (5, 3)), rng.normal([0, 1, 3], 1, (6, 3))
    both = np.concatenate([first, second])
    observed = np.abs(stats.ttest_ind(second, first, equal_var=False).statistic)
    sizes = []
    for chosen in itertools.combinations(range(11), 6):
        inside = np.isin(np.arange(11), chosen)
        t = stats.ttest_ind(both[inside], both[~inside], equal_var=False).statistic
        sizes.append(np.abs(t))
    exact = (np.array(sizes) >= observed * (1 - 1e-9)).mean(0)
    found = test.exchange_kinds(first, second, 9_999, rng)
    assert exact[2] < 0.05 < exact[0]
    assert np.all(np.abs(found - exact) < 5 * np.sqrt(exact * (1 - exact) / 9_999) + 2e-4)
    nothing = test.exchange_kinds(np.zeros((3, 1)), np.zeros((4, 1)), 99, rng)
    assert nothing[0] == 1


def test_effects_that_differ_by_trial() -> None:
    """Normal tests by hand; and level under a null of rare words and of prompts that differ."""
    up, down, n = np.array([[9], [2]]), np.array([[2], [3]]), np.array([50, 10])
    weights = n / n.sum()
    mean, variance = test.effect_of_pairs(up, down, n, weights)
    wanted, spread = 0.0, 0.0
    for w, a, b, count in zip(weights, (9.25, 2.25), (2.25, 3.25), (50, 10), strict=True):
        apart, either = (a - b) / (count + 1), (a + b) / (count + 1)
        wanted += w * apart
        spread += w**2 * (either - apart**2) / (count + 1) * count / (count - 1)
    assert mean[0] == pytest.approx(wanted) and variance[0] == pytest.approx(spread)
    held, sizes = (np.array([[6]]), np.array([[1]])), (np.array([20]), np.array([30]))
    mean, variance = test.effect_of_trials(held, sizes, np.ones(1))
    p, q = 6.5 / 21, 1.5 / 31
    assert mean[0] == pytest.approx(p - q)
    wanted = p * (1 - p) / 21 * 20 / 19 + q * (1 - q) / 31 * 30 / 29
    assert variance[0] == pytest.approx(wanted)
    single = np.array([[1]]), np.array([[0]])
    one = np.array([1])
    assert test.effect_of_trials(single, (one, one), np.ones(1))[1][0] == pytest.approx(0.25)
    assert test.effect_of_pairs(*single, one, np.ones(1))[1][0] == pytest.approx(2 / 9)
    rng, n = np.random.default_rng(0), np.array([10, 8, 12])
    for rate in (0.05, 0.4):
        rates = rng.beta(4 * rate, 4 * (1 - rate), (2, 1, 3, 4000))
        arms = rng.binomial(n[:, None], np.repeat(rates, 2, 1))  # kind, arm, prompt, word
        kinds = [test.effect_of_trials((a, b), (n, n), n / 30) for a, b in arms]
        assert 0.01 < (test.unlike(kinds[0], kinds[1]) <= 0.05).mean() < 0.06
    strong = test.unlike((np.array([0.5]), np.array([0.01])), (np.array([0.0]), np.array([0.01])))
    assert strong[0] == pytest.approx(2 * stats.norm.sf(0.5 / math.sqrt(0.02)))
