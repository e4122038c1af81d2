"""Paired differences between two arms of a replay: tests, sizes and intervals that respect prompts.

Every trial is run in both arms, so arms are compared within trials. A trial's difference is its
value in one arm minus its value in the other; differences are averaged over the trials of a prompt
and then over prompts, which count alike.

1. The unit. Trials of one prompt share what is peculiar to the prompt. A statement about prompts
   like these needs prompts as units: with at least `FEWEST_PROMPTS` of them, signs of whole prompts
   are flipped and prompts are drawn with replacement. With fewer, too few signs are left for any p
   that survives a correction for many latents; then signs of single trials are flipped and trials
   are drawn within their prompts, and what is found is a statement about these prompts alone. Which
   of the two it is depends on the number of prompts and never on the differences.
2. The test. Where the arms are exchangeable, a unit's difference has either sign with probability
   one half whatever its distribution, and units are independent. p is two-sided: the share of sign
   patterns whose mean is at least as far from 0 as the one that was seen; of all patterns where
   there are few enough, else of `flips` random ones with the seen one among them (Phipson and Smyth
   2010). All cells share the patterns.
3. The size is the mean difference divided by the standard deviation of the units' differences
   (Cohen's d_z), with the interval that inverts the noncentral t distribution (Steiger and Fouladi
   1997). Unlike the p and the interval of the mean difference, it takes units for normal.
4. Intervals of means are percentile bootstraps over units, 95%, whose draws are spread by
   sqrt(n / (n - 1)) (what is drawn varies about its own mean) and by the ratio of the t to the
   normal quantile, or they would be too narrow: prompts with n their number; trials with n those of
   each prompt, and n - 1 degrees of freedom of every prompt together. There is none (NaN) with
   fewer than `FEWEST_UNITS` prompts, fewer than 4 degrees of freedom, or a prompt with a single
   trial, whose spread is not known. A ratio of means (a share of a
   total) is refused where the interval of the total has 0 in it or the total is rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import nctdtrinc, ndtri, stdtrit

from circuits.errors import CircuitsError
from circuits.metrics import Summary, bootstrap_weights

UnitKind = Literal["prompt", "trial"]
FEWEST_PROMPTS = 10  # with 10, the smallest p of sign flips is 2 / 2^10
FLIPS = 19_999
FEWEST_UNITS = 5  # for an interval
RESAMPLES = 2000
_TAIL = 0.025
_AT_ONCE = 1 << 24  # numbers held at once while signs are flipped
# Sums whose order differs are equal up to rounding; patterns that tie must count.
_TIE = 1e-9


class PathwayError(CircuitsError):
    """Pathways that cannot be computed from what was given."""


@dataclass(frozen=True)
class Units:
    """What is exchanged and drawn again: whole prompts, or trials within their prompts.

    prompt: of each trial, 0 to the number of prompts - 1, each of which occurs. kind: see above.
    """

    prompt: Int[np.ndarray, " trial"]
    kind: UnitKind

    @classmethod
    def of(cls, prompts: Int[np.ndarray, " trial"], kind: UnitKind | None = None) -> Units:
        """Units of trials whose prompts have these numbers. kind: None chooses by their count.

        Raises `PathwayError` where there are fewer than two units.
        """
        _, codes, counts = np.unique(prompts, return_inverse=True, return_counts=True)
        alone = bool(len(counts)) and int(counts.max()) == 1
        chosen = kind or ("prompt" if len(counts) >= FEWEST_PROMPTS or alone else "trial")
        units = len(counts) if chosen == "prompt" else len(codes)
        if units < 2:
            raise PathwayError(
                f"{len(counts)} prompts with {len(codes)} trials give {units} units ({chosen}s): "
                "at least two are needed. Run more prompts or trials."
            )
        return cls(codes.reshape(-1), chosen)

    @property
    def n_prompts(self) -> int:
        """Different prompts."""
        return int(self.prompt.max()) + 1

    def __len__(self) -> int:
        return self.n_prompts if self.kind == "prompt" else len(self.prompt)

    @property
    def shares(self) -> Float[np.ndarray, " trial"]:
        """The weight of each trial in a mean over prompts; they sum to 1."""
        return 1 / (np.bincount(self.prompt)[self.prompt] * self.n_prompts)

    def mean(self, values: Float[np.ndarray, "trial ..."]) -> np.ndarray:
        """Over the trials of each prompt, then over prompts."""
        return np.tensordot(self.shares, values.astype(np.float64), 1)

    def by_unit(self, values: Float[np.ndarray, "trial cell"]) -> Float[np.ndarray, "unit cell"]:
        """Each unit's own value: a prompt's mean over its trials, or the trial's."""
        values = values.astype(np.float64)
        if self.kind == "trial":
            return values
        made = np.zeros((self.n_prompts, values.shape[1]))
        np.add.at(made, self.prompt, values)
        return made / np.bincount(self.prompt)[:, None]

    def weights(self, resamples: int, seed: int) -> Float[np.ndarray, "resample trial"]:
        """Bootstrap weights of the trials, each row summing to 1, spread as the module says; NaN
        where there is no interval."""
        counts = np.bincount(self.prompt)
        if not self.bounded:
            return np.full((resamples, len(self.prompt)), np.nan)
        if self.kind == "prompt":
            drawn = bootstrap_weights(self.n_prompts, resamples, seed)
            drawn = drawn[:, self.prompt] / counts[self.prompt]
            each = np.full(len(counts), self.n_prompts)
        else:
            drawn = self._within(resamples, seed)
            each = counts
        wider = stdtrit(self.freedom, 1 - _TAIL) / ndtri(1 - _TAIL)
        spread = wider * np.sqrt(each / (each - 1))[self.prompt]
        return self.shares + spread * (drawn - self.shares)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of a mean's interval."""
        return (len(self.prompt) if self.kind == "trial" else 2 * self.n_prompts - 1) - (
            self.n_prompts
        )

    @property
    def bounded(self) -> bool:
        """Whether a mean has an interval."""
        single = self.kind == "trial" and int(np.bincount(self.prompt).min()) < 2
        return self.freedom >= FEWEST_UNITS - 1 and not single

    def _within(self, resamples: int, seed: int) -> Float[np.ndarray, "resample trial"]:
        """Of trials drawn within their prompts."""
        made = np.zeros((resamples, len(self.prompt)))
        for code in range(self.n_prompts):
            mine = np.flatnonzero(self.prompt == code)
            # A seed of its own, or the prompts would be drawn alike.
            made[:, mine] = bootstrap_weights(len(mine), resamples, seed + 7919 * code)
        return made / self.n_prompts

    @property
    def smallest_p(self) -> float:
        """The smallest p that flipping signs can give, whatever the differences."""
        return 1 / min(2.0 ** (len(self) - 1), FLIPS + 1)


def summarise(
    values: Float[np.ndarray, "trial ..."],
    units: Units,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Summary:
    """Mean over units with a 95% bootstrap interval; NaN where a value is, or no interval."""
    flat = values.astype(np.float64).reshape(len(values), -1)
    drawn = units.weights(resamples, seed) @ flat
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL], axis=0)
    shape = values.shape[1:]
    return Summary(units.mean(values), low.reshape(shape), high.reshape(shape))


def sign_flips(
    differences: Float[np.ndarray, "trial cell"],
    units: Units,
    *,
    flips: int = FLIPS,
    seed: int = 0,
) -> Float[np.ndarray, " cell"]:
    """Two-sided p of every cell against differences whose signs mean nothing; 1 where all are 0."""
    weighted = differences.astype(np.float64) * units.shares[:, None]
    if units.kind == "prompt":
        summed = np.zeros((units.n_prompts, weighted.shape[1]))
        np.add.at(summed, units.prompt, weighted)
        weighted = summed
    signs, whole = _signs(len(weighted), flips, seed)
    seen = np.abs(weighted.sum(0)) - _TIE * np.abs(weighted).sum(0)
    found = np.empty(weighted.shape[1])
    step = max(1, _AT_ONCE // len(signs))
    for first in range(0, len(found), step):
        part = slice(first, first + step)
        made = np.abs(signs @ weighted[:, part])
        count = (made >= seen[part]).sum(0)
        found[part] = count / len(signs) if whole else (1 + count) / (1 + len(signs))
    return found


def _signs(n: int, flips: int, seed: int) -> tuple[Float[np.ndarray, "pattern unit"], bool]:
    """Sign patterns, and whether they are all there are (up to the sign of all of them)."""
    if n - 1 < 40 and 2 ** (n - 1) <= flips + 1:
        numbers = np.arange(2 ** (n - 1))
        return 1.0 - 2.0 * ((numbers[:, None] >> np.arange(n)) & 1), True
    draw = np.random.default_rng(seed)
    return 1.0 - 2.0 * draw.integers(0, 2, (flips, n)), False


def sizes(differences: Float[np.ndarray, "trial cell"], units: Units) -> Summary:
    """Cohen's d_z of every cell with its 95% interval; NaN where the units do not differ."""
    values = units.by_unit(differences)
    n = len(values)
    spread = values.std(0, ddof=1)
    # Equal numbers have a spread of rounding.
    flat = spread <= 1e-12 * np.abs(values).max(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(flat, np.nan, units.mean(differences) / spread)
    ends = [nctdtrinc(n - 1, tail, found * np.sqrt(n)) / np.sqrt(n) for tail in (1 - _TAIL, _TAIL)]
    return Summary(found, *(np.where(np.isnan(found), np.nan, end) for end in ends))


@dataclass(frozen=True)
class Share:
    """part / total, of means over units; NaN with the reason in `problem` where it is refused."""

    value: float
    low: float
    high: float
    problem: str = ""


def share(
    part: Float[np.ndarray, " trial"],
    total: Float[np.ndarray, " trial"],
    units: Units,
    *,
    noise: float = 0.0,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Share:
    """mean(part) / mean(total) with a 95% interval, both drawn together.

    noise: totals of this size are rounding.
    """
    whole = summarise(total, units, resamples=resamples, seed=seed)
    value, low, high = (float(x) for x in (whole.value, whole.low, whole.high))
    nan = float("nan")
    if np.isnan(low) and not np.isnan(value) and abs(value) > noise:
        return Share(nan, nan, nan, "too few units, or trials of a prompt, for an interval")
    if abs(value) <= noise:
        return Share(nan, nan, nan, f"the total effect, {value:.2g}, is no more than rounding")
    if low <= 0 <= high:
        return Share(nan, nan, nan, f"the total effect's interval, {low:.3g} to {high:.3g}, has 0")
    weights = units.weights(resamples, seed)
    drawn = (weights @ part) / (weights @ total)
    ends = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    found = float(units.mean(part)) / value
    return Share(found, float(ends[0]), float(ends[1]))
