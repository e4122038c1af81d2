"""Two arms of words: one weighting and one unit for the difference, its p and its interval."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, t

from circuits.replay.log import Response
from circuits.replay.words import Rules, Splitter, compare, count
from circuits.replay.words.arms import Arms

# Of each prompt, which responses hold "bet": arm and baseline.
UNEQUAL = [([1, 1, 1, 0], [0, 1, 0, 0]), ([0, 0], [1, 1]), ([1, 0, 0], [0, 0, 0])]
UNPAIRED = [([1, 1, 1, 0, 1], [0, 1, 0]), ([0, 0], [1, 1, 1]), ([1, 0], [0, 0])]


def log_of(held: Any, kind: str = "all") -> list[Response]:
    """Responses: "bet" or "go", and "stop" the more often the later the trial."""
    return [
        Response("f", kind, arm, trial, str(prompt), ("bet " if one else "go ") + "stop " * trial)
        for prompt, sides in enumerate(held)
        for arm, side in zip(("latent", "no-op"), sides, strict=True)
        for trial, one in enumerate(side)
    ]


def arms_of(held: Any, paired: bool) -> tuple[Arms, np.ndarray]:
    """The arms of such a log, and the column of "bet"."""
    corpus = count(log_of(held), Splitter())
    arm = corpus.responses["arm"].to_numpy()
    rows = [np.flatnonzero(arm == name) for name in ("latent", "no-op")]
    return Arms.of(corpus, rows[0], rows[1], paired, "f"), np.array(
        [corpus.vocabulary.index("bet")]
    )


def row_of(held: Any, paired: bool) -> Any:
    rules = Rules(unit="trial", paired=paired, min_responses=1, resamples=4000)
    table = compare(count(log_of(held), Splitter()), rules).table
    return table[table["word"] == "bet"].iloc[0]


@pytest.mark.parametrize(("held", "paired"), [(UNEQUAL, True), (UNEQUAL, False), (UNPAIRED, False)])
def test_difference_and_p_are_of_one_statistic(held: Any, paired: bool) -> None:
    """All exchanges there are, of the weighted difference that the table shows."""
    n = np.array([[len(a), len(b)] for a, b in held], dtype=float)
    weights = n[:, 0] * n[:, 1] / n.sum(1)
    weights /= weights.sum()

    def exchanged(arm: list[int], other: list[int]) -> list[float]:
        """The difference of shares of one prompt under every exchange of its labels."""
        if paired:
            signs = itertools.product((1, -1), repeat=len(arm))
            steps = np.subtract(arm, other)
            return [float(np.dot(s, steps)) / len(arm) for s in signs]
        both = np.array([*arm, *other])
        ways = itertools.combinations(range(len(both)), len(arm))
        inside = (np.isin(np.arange(len(both)), w) for w in ways)
        return [float(both[i].mean() - both[~i].mean()) for i in inside]

    seen = float(
        sum(w * (np.mean(a) - np.mean(b)) for w, (a, b) in zip(weights, held, strict=True))
    )
    ways = np.array(
        [np.dot(weights, w) for w in itertools.product(*(exchanged(a, b) for a, b in held))]
    )
    row = row_of(held, paired)
    assert row["difference"] == pytest.approx(seen, abs=1e-12)
    assert row["p_permutation"] == pytest.approx((np.abs(ways) >= abs(seen) - 1e-9).mean())
    # Prompts alike would say something else, of the other sign.
    alike = float(np.mean([np.mean(a) - np.mean(b) for a, b in held]))
    assert alike < 0 < seen


def test_trials_are_drawn_within_their_prompts() -> None:
    """All draws of n - 1 of the n trials of every prompt, by hand, stretched to t."""
    held = [([1, 1, 0], [0, 1, 0]), ([1, 0, 1], [1, 0, 0])]
    arms, word = arms_of(held, True)
    prior, total = 0.5, 7.0
    counts = [m.toarray().sum(1) for m in (arms.mine, arms.other)]
    bets = [m[:, word].toarray().ravel() for m in (arms.mine, arms.other)]

    def ratio(weights: np.ndarray) -> float:
        odds = []
        for mine, every in zip(bets, counts, strict=True):
            a, b = weights @ mine + prior, weights @ every + total
            odds.append(np.log(a / (b - a)))
        return odds[0] - odds[1]

    draws = [np.bincount(d, minlength=3) * 1.5 for d in itertools.product(range(3), repeat=2)]
    whole = [ratio(np.concatenate(both)) for both in itertools.product(draws, draws)]
    seen, wider = ratio(np.ones(6)), t.ppf(0.975, 4) / norm.ppf(0.975)
    wanted = seen + wider * (np.array(whole) - seen)
    given = (word, np.array([prior]), total)
    found = arms.resampled(*given, unit="trial", resamples=20_000, seed=3)[:, 0]
    assert found.mean() == pytest.approx(wanted.mean(), abs=5 * wanted.std() / 20_000**0.5)
    assert found.std() == pytest.approx(wanted.std(), rel=0.03)
    assert set(np.round(found, 9)) == set(np.round(wanted, 9))


@pytest.mark.parametrize("unit", ["prompt", "trial"])
def test_intervals_hold_what_they_say(unit: Any) -> None:
    """At least nine of ten cover 0 where nothing is done, though prompts differ."""
    rng, inside = np.random.default_rng(0), 0
    prompts, trials, runs = (12, 3, 100) if unit == "prompt" else (3, 5, 100)
    for run in range(runs):
        rate = rng.beta(8, 24, prompts)
        held = [
            tuple(rng.binomial(1, np.repeat(r, trials)).tolist() for _ in range(2)) for r in rate
        ]
        arms, word = arms_of(held, False)
        drawn = arms.resampled(word, np.array([0.5]), 4.0, unit=unit, resamples=400, seed=run)
        low, high = np.quantile(drawn, [0.025, 0.975])
        inside += bool(low <= 0 <= high)
    assert 0.90 * runs <= inside


def test_no_interval_of_too_few() -> None:
    arms, word = arms_of([([1], [0]), ([1, 0, 1, 0, 1, 1, 0], [0] * 7)], True)
    given = (word, np.array([0.5]), 4.0)
    assert np.isnan(arms.resampled(*given, unit="trial", resamples=100, seed=0)).all()
    assert np.isnan(arms.resampled(*given, unit="prompt", resamples=100, seed=0)).all()
    row = row_of([([1, 0], [0, 0])], True)
    assert np.isnan(row["low"]) and np.isnan(row["high"]) and np.isfinite(row["log_odds"])
