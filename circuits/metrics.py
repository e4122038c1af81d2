"""Metrics: functions of the last position's logits that give one value a pair, and their summaries.

A metric takes `(logits, targets)` and returns one value a row. Positive always means toward clean,
so the divergence enters with a minus sign and says so in its name. Summaries over pairs are ratios
of mean differences with bootstrap intervals, never means of ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from circuits.errors import CircuitsError

# A pair whose clean and corrupted logit differences are closer than this has no ratio of its own:
# dividing by it would turn rounding into recovery. Logits; float32 rounding is about 1e-5 here.
SMALLEST_GAP = 0.1


class MetricError(CircuitsError):
    """An unknown metric, or one that does not give one value a row."""


@dataclass(frozen=True)
class Targets:
    """What a metric may compare logits with.

    answer, foil: token ids, one a row.
    pair_logprobs: log probabilities of the clean runs at the last position, one row a pair.
    pair: for each row, its pair.
    """

    answer: Int[Tensor, " row"]
    foil: Int[Tensor, " row"]
    pair_logprobs: Float[Tensor, "pair vocab"]
    pair: Int[Tensor, " row"]

    @property
    def clean_logprobs(self) -> Float[Tensor, "row vocab"]:
        """Log probabilities of each row's clean run; gathered only when a metric asks for them."""
        return self.pair_logprobs[self.pair]

    def rows(self, index: Int[Tensor, " picked"]) -> Targets:
        """The targets of the rows at `index`."""
        return Targets(self.answer[index], self.foil[index], self.pair_logprobs, self.pair[index])

    @classmethod
    def of(
        cls,
        answer: Int[Tensor, " pair"],
        foil: Int[Tensor, " pair"],
        clean: Float[Tensor, "pair v"],
    ) -> Targets:
        """The targets of pairs whose clean runs have the logits `clean`."""
        device = clean.device
        logprobs = torch.log_softmax(clean.float(), -1)
        return cls(
            answer.to(device), foil.to(device), logprobs, torch.arange(len(answer), device=device)
        )


Metric = Callable[[Tensor, Targets], Tensor]


def logit_difference(logits: Float[Tensor, "row vocab"], targets: Targets) -> Float[Tensor, " row"]:
    """logit(answer) - logit(foil); positive when the clean answer wins."""
    answer = logits.gather(1, targets.answer[:, None])
    return (answer - logits.gather(1, targets.foil[:, None])).squeeze(1)


def answer_probability(
    logits: Float[Tensor, "row vocab"], targets: Targets
) -> Float[Tensor, " row"]:
    """Probability of the clean answer's token, 0 to 1."""
    return logits.float().softmax(-1).gather(1, targets.answer[:, None]).squeeze(1)


def minus_kl_to_clean(
    logits: Float[Tensor, "row vocab"], targets: Targets
) -> Float[Tensor, " row"]:
    """-KL(clean || this run) in nats: 0 when the run predicts as the clean one does, else below."""
    clean = targets.clean_logprobs
    return -(clean.exp() * (clean - logits.float().log_softmax(-1))).sum(-1)


METRICS: dict[str, Metric] = {
    "logit_difference": logit_difference,
    "answer_probability": answer_probability,
    "minus_kl_to_clean": minus_kl_to_clean,
}
# What the command line and older habits call them.
METRIC_ALIASES = {
    "recovery": "logit_difference",
    "kl": "minus_kl_to_clean",
    "probability": "answer_probability",
}


def find_metric(metric: str | Metric) -> tuple[str, Metric]:
    """Return (name, function) for a metric's name or for a function of one's own."""
    if callable(metric):
        return getattr(metric, "__name__", "custom"), metric
    name = METRIC_ALIASES.get(metric, metric)
    if name not in METRICS:
        names = ", ".join([*METRICS, *METRIC_ALIASES])
        raise MetricError(f"unknown metric {metric!r}: expected one of {names}.")
    return name, METRICS[name]


def evaluate(metric: Metric, logits: Tensor, targets: Targets) -> Float[Tensor, " row"]:
    """Apply `metric`; raises `MetricError` unless it gives one number a row."""
    values = metric(logits, targets)
    if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise MetricError(
            f"the metric gave {shape} for {logits.shape[0]} rows: expected one number a row."
        )
    return values


def check_metric(
    metric: Metric, logits: Float[Tensor, "row vocab"], *, differentiated: bool
) -> None:
    """Raise `MetricError` for a function that is no metric, before a model is run.

    logits: two rows, of the model's type and device, on which it is tried. differentiated: whether
        gradients of it are needed.
    """
    made_up = torch.linspace(-1, 1, logits.numel()).view(logits.shape).to(logits)
    tried = made_up.requires_grad_(differentiated)
    ends = torch.tensor([0, logits.shape[1] - 1])
    targets = Targets.of(ends, ends.flip(0), made_up.detach())
    try:
        values = evaluate(metric, tried, targets)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise MetricError(
            f"the metric failed on logits of shape {tuple(logits.shape)}, {logits.dtype} on "
            f"{logits.device}: {error}"
        ) from error
    if differentiated and not values.requires_grad:
        raise MetricError(
            "the metric cannot be differentiated: use torch functions throughout, or the method "
            "exact."
        )


def recovery(
    patched: NDArray[np.floating], clean: NDArray[np.floating], corrupted: NDArray[np.floating]
) -> NDArray[np.floating]:
    """A pair's own recovery, (patched - corrupted) / (clean - corrupted): 0 corrupted, 1 clean.

    Arguments broadcast; all are logit differences. NaN where |clean - corrupted| < `SMALLEST_GAP`.
    """
    gap = clean - corrupted
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(gap) < SMALLEST_GAP, np.nan, (patched - corrupted) / gap)


@dataclass(frozen=True)
class Summary:
    """An estimate with its interval; arrays of one shape, or plain numbers."""

    value: NDArray[np.floating]
    low: NDArray[np.floating]
    high: NDArray[np.floating]


def bootstrap_weights(n_pairs: int, resamples: int, seed: int) -> NDArray[np.float64]:
    """How often each pair is drawn, [resamples, pairs], each row summing to 1.

    Weights instead of index lists: one matrix product then resamples any number of cells at once.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), size=resamples) / n_pairs


def summarise_mean(
    values: NDArray[np.floating], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Summary:
    """Mean over the first axis (pairs) with a percentile bootstrap interval.

    values: [pair, ...]. With one pair the interval is NaN: one pair says nothing about others.
    """
    values = np.asarray(values, dtype=np.float64)
    return summarise_ratio(
        values, np.ones(values.shape[0]), level=level, resamples=resamples, seed=seed
    )


def summarise_ratio(
    numerator: NDArray[np.floating],
    denominator: NDArray[np.floating],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """mean(numerator) / mean(denominator) over pairs with a percentile bootstrap interval.

    numerator: [pair, ...]; denominator: [pair]. Pairs are resampled, numerator and denominator
    together. NaN where the mean denominator is smaller than `SMALLEST_GAP` in size.
    """
    numerator = np.asarray(numerator, dtype=np.float64)
    denominator = np.asarray(denominator, dtype=np.float64)
    n_pairs = numerator.shape[0]
    flat = numerator.reshape(n_pairs, -1)
    base = denominator.mean()
    if abs(base) < SMALLEST_GAP:
        nan = np.full(numerator.shape[1:], np.nan)
        return Summary(nan, nan.copy(), nan.copy())
    value = (flat.mean(0) / base).reshape(numerator.shape[1:])
    if n_pairs == 1:
        nan = np.full(numerator.shape[1:], np.nan)
        return Summary(value, nan, nan.copy())
    weights = bootstrap_weights(n_pairs, resamples, seed)
    drawn = (weights @ flat) / (weights @ denominator)[:, None]
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return Summary(value, low.reshape(value.shape), high.reshape(value.shape))
