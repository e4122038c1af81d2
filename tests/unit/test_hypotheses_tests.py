"""The tests of hypotheses: against brute force, and at their level where there is no relation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import fisher_exact, ttest_1samp

from circuits.hypotheses.assess import Rules, false_discoveries
from circuits.hypotheses.candidates import likelihood_ratio
from circuits.hypotheses.claims import HypothesisError
from circuits.hypotheses.effects import conformal, split_places
from circuits.hypotheses.enrichment import enrichment, mean_above, mean_interval


def bursts(
    draw: np.random.Generator, documents: int, length: int, rate: float, run: int
) -> np.ndarray:
    """Runs of about `run` positions in random places, [document x position], and a rate of its own
    in every document."""
    on = np.zeros((documents, length), dtype=bool)
    for one in on:
        share = draw.gamma(1.0, rate)
        for _ in range(draw.poisson(share * length / run)):
            start = draw.integers(length)
            one[start : start + draw.geometric(1 / run)] = True
    return on.ravel()


def by_words(
    draw: np.random.Generator, documents: int, length: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Every document has few words, one of which the latent is active on, wherever it stands; the
    class is drawn for words, so that a document's positions agree by chance."""
    active = np.zeros((documents, length), dtype=bool)
    members = np.zeros((documents, length), dtype=bool)
    for a, m in zip(active, members, strict=True):
        words = draw.integers(0, 12, length)
        a[:] = words == 0
        m[:] = (draw.random(12) < share)[words]
    return active.ravel(), members.ravel()


def test_counts_ratios_and_fisher_by_hand() -> None:
    draw = np.random.default_rng(0)
    members = draw.random(300) < 0.2
    active = draw.random(300) < np.where(members, 0.5, 0.1)
    got = enrichment(active, members, np.arange(300))
    inside, outside = active[members].mean(), active[~members].mean()
    assert got.value == pytest.approx(inside / outside)
    assert got.precision == pytest.approx(inside) and got.rate_outside == pytest.approx(outside)
    assert got.recall == pytest.approx(members[active].mean())
    table = [[(a & m).sum() for m in (members, ~members)] for a in (active, ~active)]
    assert got.p == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert got.low < got.value < got.high and math.isnan(got.within)
    # Nothing outside: half an example is counted there, and the ratio stays a number.
    only = enrichment(active & members, members, np.arange(300))
    assert only.value == pytest.approx(inside / (0.5 / (~members).sum())) and only.p < 1e-10
    # Examples that are their own groups, by the general bootstrap instead of four cells.
    pairs = enrichment(np.tile(active, 2), np.tile(members, 2), np.tile(np.arange(300), 2))
    assert pairs.value == pytest.approx(got.value)
    assert np.log(pairs.low) == pytest.approx(np.log(got.low), abs=0.12)
    assert np.log(pairs.high) == pytest.approx(np.log(got.high), abs=0.12)


def test_documents_by_hand() -> None:
    draw = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 50)
    members = draw.random(1000) < 0.2
    active = draw.random(1000) < np.where(members, 0.3, 0.05)
    got = enrichment(active, members, groups)
    scores, above, below = [], 0.0, 0.0
    for g in range(20):
        a, m = active[groups == g], members[groups == g]
        if not 0 < a.sum() < 50 or not 0 < m.sum() < 50:
            continue
        scores.append((a & m).sum() - a.sum() * m.sum() / 50)
        above += (a & m).sum() * (~m).sum() / 50
        below += (a & ~m).sum() * m.sum() / 50
    assert got.groups == len(scores)
    expected = ttest_1samp(scores, 0, alternative="greater").pvalue
    assert got.p == pytest.approx(max(expected, 2.0 ** -len(scores)))
    assert got.within == pytest.approx(above / below)
    assert got.value == pytest.approx(active[members].mean() / active[~members].mean())


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("shape", ["bursts", "words"])
def test_no_relation_keeps_the_level_however_positions_hang_together(
    shape: str, share: float
) -> None:
    """Nominal 5%; counting positions as if they were independent would say yes far more often."""
    draw = np.random.default_rng(2)
    documents, length, trials = 30, 120, 400
    groups = np.repeat(np.arange(documents), length)
    mine, naive = 0, 0
    for _ in range(trials):
        if shape == "bursts":
            active = bursts(draw, documents, length, 0.05, 12)
            members = bursts(draw, documents, length, share, 12)
        else:
            active, members = by_words(draw, documents, length, share)
        mine += enrichment(active, members, groups, resamples=2).p <= 0.05
        naive += enrichment(active, members, np.arange(len(active)), resamples=2).p <= 0.05
    # 5% of 400 is 20; a binomial of that rate stays under 36 in 999 of 1,000.
    assert mine < 36
    assert naive > 2 * max(mine, 20)


def test_a_relation_between_documents_is_none_inside_them() -> None:
    """Code and prose: the latent is active in half of the documents, where the class is frequent;
    position by position they have nothing to do with one another."""
    draw = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 200)
    code = (groups % 2).astype(bool)
    active = draw.random(len(groups)) < np.where(code, 0.3, 0.01)
    members = draw.random(len(groups)) < np.where(code, 0.8, 0.02)
    got = enrichment(active, members, groups)
    assert got.value > 3 and got.low > 2
    assert got.within == pytest.approx(1, abs=0.15) and got.p > 0.05


def test_sources_are_compared_document_by_document() -> None:
    draw = np.random.default_rng(4)
    groups = np.repeat(np.arange(30), 100)
    source = (groups < 10).astype(bool)
    rates = draw.gamma(1.0, 0.05, 30)
    below = 0
    for _ in range(200):
        active = draw.random(len(groups)) < draw.permutation(rates)[groups]
        below += enrichment(active, source, groups, resamples=2).p <= 0.05
    assert below <= 21  # 10 expected; 999 of 1,000 stay under 22
    active = draw.random(len(groups)) < np.where(source, 0.2, 0.05)
    got = enrichment(active, source, groups)
    assert got.p < 1e-4 and got.value == pytest.approx(4, rel=0.3) and got.groups == 10
    nobody = enrichment(active, np.zeros_like(source), groups)
    assert nobody.groups == 0 and math.isnan(nobody.p) and math.isnan(nobody.value)


def test_means_above_a_bound() -> None:
    values = np.random.default_rng(5).normal(0.4, 1, 50)
    expected = ttest_1samp(values, 0.1, alternative="greater")
    assert mean_above(values, 0.1) == pytest.approx(expected.pvalue)
    both = ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((both.low, both.high))
    assert mean_above(np.full(6, 0.3), 0.1) == 2.0**-6  # all alike: six signs say no more
    assert mean_above(np.full(6, 0.1), 0.1) == 1.0
    assert mean_above(np.array([5.0, 5.1, 5.2]), 0.0) == 2.0**-3
    assert math.isnan(mean_above(np.ones(1), 0.0))


def test_a_latent_like_any_other_passes_the_threshold_as_rarely_as_it_should() -> None:
    draw = np.random.default_rng(6)
    sizes = np.abs(draw.standard_normal((4000, 40)))
    passed = np.mean([one[0] > conformal(one[1:], 0.95) for one in sizes])
    assert passed == pytest.approx(0.05, abs=0.014)
    assert conformal(np.arange(1.0, 20.0), 0.95) == 19.0
    assert conformal(np.arange(1.0, 19.0), 0.95) == math.inf
    with pytest.raises(HypothesisError, match=r"18 controls cannot tell the quantile 0\.95"):
        Rules(controls=18)


def test_thresholds_and_effects_are_of_other_groups() -> None:
    places = np.repeat(np.arange(9), 3)
    reference, tested = split_places(places, 0)
    assert len(reference) == 9 and len(tested) == 18
    assert not set(places[reference]) & set(places[tested])
    with pytest.raises(HypothesisError, match="in 2 documents or images: three at least"):
        split_places(np.array([0, 0, 1]), 0)


def test_false_discovery_rates_leave_out_what_was_not_tested() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, np.nan, 0.5])
    q = false_discoveries(p)
    assert np.isnan(q[[1, 4]]).all()
    assert q[[0, 2, 3, 5]] == pytest.approx([0.04, 0.04 * 4 / 3, 0.04 * 4 / 3, 0.5])
    assert np.isnan(false_discoveries(np.full(2, np.nan))).all()


def test_candidates_are_ranked_by_likelihood() -> None:
    # A token that stood there once must not go before one that covers the latent.
    ratio = likelihood_ratio(
        np.array([50.0, 1.0, 5.0, 10.0]), np.array([60.0, 1.0, 900.0, 90.0]), 80.0, 1000.0
    )
    assert ratio.argmax() == 0
    assert ratio[1] == 0  # a twentieth of its activity at least
    assert ratio[2] == 0  # less often than elsewhere
    both, members, active, n = 10.0, 90.0, 80.0, 1000.0
    expected = both * math.log(both * n / (active * members))
    expected += (active - both) * math.log((active - both) * n / (active * (n - members)))
    assert ratio[3] == pytest.approx(expected)
