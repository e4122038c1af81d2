"""Metrics by hand, intervals against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from circuits.metrics import (
    SMALLEST_GAP,
    MetricError,
    Targets,
    answer_probability,
    evaluate,
    find_metric,
    logit_difference,
    minus_kl_to_clean,
    recovery,
    summarise_mean,
    summarise_ratio,
)
from circuits.patch import CannotDo, assess


@pytest.fixture
def targets() -> Targets:
    clean = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
    return Targets.of(torch.tensor([2, 0]), torch.tensor([0, 1]), clean)


def test_values_by_hand(targets: Targets) -> None:
    logits = torch.tensor([[0.0, 1.0, 4.0], [2.0, -1.0, 0.0]])
    assert logit_difference(logits, targets).tolist() == [4.0, 3.0]
    expected = torch.nn.functional.softmax(logits, -1)[[0, 1], [2, 0]]
    assert torch.allclose(answer_probability(logits, targets), expected)
    clean, here = targets.clean_logprobs.exp(), logits.softmax(-1)
    divergence = stats.entropy(clean.numpy(), here.numpy(), axis=1)
    assert np.allclose(minus_kl_to_clean(logits, targets), -divergence, atol=1e-6)


def test_kl_is_zero_at_the_clean_run_and_negative_elsewhere(targets: Targets) -> None:
    clean = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
    assert minus_kl_to_clean(clean, targets).abs().max() < 1e-6
    assert (minus_kl_to_clean(clean.flip(1), targets) < 0).all()


def test_metrics_are_found_by_name_and_alias() -> None:
    assert find_metric("recovery") == ("logit_difference", logit_difference)
    assert find_metric("kl")[0] == "minus_kl_to_clean"
    assert find_metric(logit_difference)[0] == "logit_difference"
    with pytest.raises(MetricError, match="unknown metric 'accuracy'"):
        find_metric("accuracy")


def test_a_metric_gives_one_value_a_row(targets: Targets) -> None:
    with pytest.raises(MetricError, match=r"gave \(2, 3\) for 2 rows"):
        evaluate(lambda logits, t: logits, torch.zeros(2, 3), targets)
    with pytest.raises(MetricError, match="gave float for 2 rows"):
        evaluate(lambda logits, t: 1.0, torch.zeros(2, 3), targets)  # pyright: ignore


def test_recovery_is_zero_corrupted_one_clean_and_nan_without_a_gap() -> None:
    patched = np.array([-1.0, 3.0, 1.0, 0.3])
    clean, corrupted = np.array([3.0, 3.0, 3.0, 0.3]), np.array([-1.0, -1.0, -1.0, 0.25])
    found = recovery(patched, clean, corrupted)
    assert found[:3].tolist() == [0.0, 1.0, 0.5] and np.isnan(found[3])
    assert SMALLEST_GAP > 0.05


def test_a_summary_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    numerator, denominator = np.array([[1.0], [9.0]]), np.array([1.0, 3.0])
    assert summarise_ratio(numerator, denominator).value.tolist() == [2.5]


def test_intervals_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    numerator, denominator = rng.normal(2, 1, (40, 3)), rng.normal(4, 1, 40)
    ours = summarise_ratio(numerator, denominator, resamples=20_000)
    for cell in range(3):
        theirs = stats.bootstrap(
            (numerator[:, cell], denominator),
            lambda a, b, axis: a.mean(axis) / b.mean(axis),
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=20_000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert abs(ours.low[cell] - theirs.low) < 0.01
        assert abs(ours.high[cell] - theirs.high) < 0.01
    mean = summarise_mean(numerator, resamples=20_000)
    assert np.allclose(mean.value, numerator.mean(0))
    assert np.all(mean.low < mean.value) and np.all(mean.value < mean.high)


def test_one_pair_has_no_interval_and_no_gap_has_no_ratio() -> None:
    one = summarise_mean(np.array([[2.0]]))
    assert one.value.tolist() == [2.0] and np.isnan(one.low).all()
    assert np.isnan(summarise_ratio(np.ones((3, 2)), np.array([0.1, -0.1, 0.0])).value).all()


@pytest.mark.parametrize(
    ("clean", "corrupted", "message"),
    [
        (np.full(10, 2.0), np.full(10, -1.0), None),
        (np.linspace(-1, 1, 10), np.zeros(10), "must lie above 0"),
        (np.full(10, -1.0), np.full(10, 2.0), "must lie above 0"),
        (np.r_[np.full(5, 9.0), np.full(5, -0.1)], np.zeros(10), "only 50% of the pairs"),
        (np.full(10, 0.05), np.zeros(10), "shares of rounding"),
    ],
)
def test_what_a_model_can_do(clean: np.ndarray, corrupted: np.ndarray, message: str | None) -> None:
    problem = assess(clean, corrupted).problem
    assert problem is None if message is None else problem is not None and message in problem


def test_logit_differences_that_are_not_finite_are_refused() -> None:
    with pytest.raises(CannotDo, match=r"pairs \[1\] are not finite: the model overflows"):
        assess(np.array([1.0, np.nan]), np.zeros(2))


def test_targets_of_rows_are_those_of_their_pairs(targets: Targets) -> None:
    picked = targets.rows(torch.tensor([1, 0, 1]))
    assert picked.answer.tolist() == [0, 2, 0]
    assert torch.equal(picked.clean_logprobs, targets.clean_logprobs[[1, 0, 1]])


def test_a_flip_is_positive_when_clean_and_negative_when_corrupted() -> None:
    found = assess(np.array([1.0, 1.0, -1.0, 2.0]), np.array([-1.0, 0.5, -2.0, -1.0]))
    assert found.flipped == 0.5 and found.ordered == 1.0
