"""Is a word in more responses of an arm than of the baseline? Tests on responses and on prompts.

What is counted is whether a response holds the word, never how often: within a response words
repeat each other.

1. Fisher's exact test takes responses as independent. Those to one prompt are not, so that it finds
   too much where prompts differ; it stands beside the others, and none of the verdicts rests on it.
2. By prompt: under "the arm changes nothing" an arm's label may be exchanged for the baseline's in
   all responses to a prompt at once. The statistic is the sum over prompts of the differences of
   shares. All exchanges are gone through where there are at most as many as permutations, else
   drawn: p = (1 + as large) / (1 + permutations) (Phipson and Smyth 2010).
3. By trial, where there are too few prompts: labels are exchanged within a prompt, pair by pair
   where trials are paired by common random numbers, else freely. The distribution of the sum over
   all such exchanges is known: binomial over the pairs that differ, and a sum of hypergeometric
   ones over the prompts. Every trial counts alike (`Arms.weights`). The p value is of these
   prompts, and says nothing of others.
4. Do two kinds of prompts differ in the effect? The prompts' differences are exchanged between the
   kinds; the statistic is Welch's t, which also holds where the kinds vary unequally (Janssen
   1997). By trial: a normal test of the difference of the two effects, with their variances within
   prompts, and with the small counts added that keep it honest where words are rare.

All p values are two-sided.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

_AT_ONCE = 2048  # exchanges
_TIE = 1e-9  # sums this close are equal


def fisher(
    with_word: Int[np.ndarray, " word"], n: int, baseline: Int[np.ndarray, " word"], n_baseline: int
) -> Float[np.ndarray, " word"]:
    """Fisher's exact p of each word; n, n_baseline: responses of the two arms."""
    pairs = zip(with_word.tolist(), baseline.tolist(), strict=True)
    return np.array([_fisher(a, n - a, b, n_baseline - b) for a, b in pairs])


@lru_cache(maxsize=2**16)
def _fisher(a: int, b: int, c: int, d: int) -> float:
    found: Any = stats.fisher_exact([[a, b], [c, d]])
    return float(found.pvalue)


def exchange_prompts(
    differences: Float[np.ndarray, "prompt word"], permutations: int, rng: np.random.Generator
) -> Float[np.ndarray, " word"]:
    """p of the summed differences of shares (arm - baseline) when prompts' labels are exchanged."""
    observed = np.abs(differences.sum(0)) - _TIE
    prompts = len(differences)
    if 2.0 ** (prompts - 1) <= permutations + 1:
        # Exchanging all prompts only turns the sign: the first may keep its label.
        rest = itertools.product((1.0, -1.0), repeat=prompts - 1)
        signs = np.array([(1.0, *one) for one in rest])
        return _as_large(signs, differences, observed) / len(signs)
    found = np.zeros(differences.shape[1])
    for start in range(0, permutations, _AT_ONCE):
        size = min(_AT_ONCE, permutations - start)
        signs = rng.integers(0, 2, size=(size, prompts)) * 2.0 - 1
        found += _as_large(signs, differences, observed)
    return (1 + found) / (1 + permutations)


def _as_large(
    signs: Float[np.ndarray, "exchange prompt"],
    differences: Float[np.ndarray, "prompt word"],
    observed: Float[np.ndarray, " word"],
) -> Float[np.ndarray, " word"]:
    found = np.zeros(differences.shape[1])
    for start in range(0, len(signs), _AT_ONCE):
        found += (np.abs(signs[start : start + _AT_ONCE] @ differences) >= observed).sum(0)
    return found


def exchange_pairs(
    only: Int[np.ndarray, " word"], only_baseline: Int[np.ndarray, " word"]
) -> Float[np.ndarray, " word"]:
    """p when the labels of each pair of trials are exchanged.

    only: pairs in which only the arm's response holds the word; only_baseline: only the baseline's.
    """
    differ = only + only_baseline
    tail = stats.binom.cdf(np.minimum(only, only_baseline), np.maximum(differ, 1), 0.5)
    return np.where(differ == 0, 1.0, np.minimum(1.0, 2 * tail))


def exchange_trials(
    with_word: Int[np.ndarray, "prompt word"],
    n: Int[np.ndarray, " prompt"],
    baseline: Int[np.ndarray, "prompt word"],
    n_baseline: Int[np.ndarray, " prompt"],
) -> Float[np.ndarray, " word"]:
    """p when labels are exchanged freely within each prompt.

    with_word, baseline: responses that hold the word. The statistic is how many of the arm's hold
    it, over all prompts, against its mean.
    """
    found = []
    for mine, other in zip(with_word.T.tolist(), baseline.T.tolist(), strict=True):
        strata = zip(mine, n.tolist(), other, n_baseline.tolist(), strict=True)
        found.append(_stratified(tuple(sorted(strata))))
    return np.array(found)


@lru_cache(maxsize=2**16)
def _stratified(strata: tuple[tuple[int, int, int, int], ...]) -> float:
    """strata: (with the word, responses) of the arm, then of the baseline."""
    distribution, lowest, mean = np.ones(1), 0, 0.0
    for mine, n, other, n_other in strata:
        held, every = mine + other, n + n_other
        low, high = max(0, held - n_other), min(held, n)
        law = stats.hypergeom.pmf(np.arange(low, high + 1), every, held, n)
        distribution, lowest = np.convolve(distribution, law), lowest + low
        mean += held * n / every
    away = np.abs(np.arange(len(distribution)) + lowest - mean)
    observed = abs(sum(one[0] for one in strata) - mean)
    return float(min(1.0, distribution[away >= observed - _TIE].sum()))


def exchange_kinds(
    first: Float[np.ndarray, "prompt word"],
    second: Float[np.ndarray, "other word"],
    permutations: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, " word"]:
    """p of the difference of means, second - first, when prompts are exchanged between the kinds.

    first, second: the effect in each prompt of two kinds, two prompts each at least.
    """
    both = np.concatenate([first, second])
    squares, n, m = both**2, len(first), len(second)
    sums, square_sums = both.sum(0), squares.sum(0)

    def statistic(
        inside: Float[np.ndarray, "exchange prompt"],
    ) -> Float[np.ndarray, "exchange word"]:
        mean = inside @ both / m
        spread = np.clip(inside @ squares / m - mean**2, 0, None) / (m - 1)
        rest = (sums - inside @ both) / n
        spread = spread + np.clip((square_sums - inside @ squares) / n - rest**2, 0, None) / (n - 1)
        return np.abs(mean - rest) / np.sqrt(spread + _TIE**2)

    labels = np.repeat([0.0, 1.0], [n, m])
    observed = statistic(labels[None])[0] * (1 - _TIE) - _TIE
    found = np.zeros(both.shape[1])
    for start in range(0, permutations, _AT_ONCE):
        size = min(_AT_ONCE, permutations - start)
        inside = rng.permuted(np.tile(labels, (size, 1)), axis=1)
        found += (statistic(inside) >= observed).sum(0)
    return (1 + found) / (1 + permutations)


def effect_of_pairs(
    only: Int[np.ndarray, "prompt word"],
    only_baseline: Int[np.ndarray, "prompt word"],
    pairs: Int[np.ndarray, " prompt"],
    weights: Float[np.ndarray, " prompt"],
) -> tuple[Float[np.ndarray, " word"], Float[np.ndarray, " word"]]:
    """(difference of shares, its variance within prompts) from pairs of trials of which only one
    holds the word; half a pair is added to each cell of the table (Agresti and Min 2005), shared
    out over the prompts. Of a prompt with one pair the second moment stands for the variance."""
    added = 1 / len(pairs)
    up, down = only + added / 2, only_baseline + added / 2
    every = (pairs + 2 * added)[:, None]
    mean = (up - down) / every
    apart = np.where(pairs > 1, 1.0, 0.0)[:, None] * mean**2
    spread = ((up + down) / every - apart) / every * _of_sample(pairs)
    return weights @ mean, weights**2 @ spread


def effect_of_trials(
    with_word: tuple[Int[np.ndarray, "prompt word"], Int[np.ndarray, "prompt word"]],
    n: tuple[Int[np.ndarray, " prompt"], Int[np.ndarray, " prompt"]],
    weights: Float[np.ndarray, " prompt"],
) -> tuple[Float[np.ndarray, " word"], Float[np.ndarray, " word"]]:
    """(difference of shares, its variance within prompts) from unpaired trials of arm and baseline;
    half a response with and without the word is added to each, as for a contrast of four shares
    (Price and Bonett 2004), shared out over the prompts. A single response has the largest variance
    there is."""
    rates, spreads = [], []
    for held, count in zip(with_word, n, strict=True):
        every = (count + 1 / len(count))[:, None]
        rate = (held + 0.5 / len(count)) / every
        spread = np.where(count[:, None] > 1, rate * (1 - rate), 0.25)
        rates.append(weights @ rate)
        spreads.append(weights**2 @ (spread / every * _of_sample(count)))
    return rates[0] - rates[1], spreads[0] + spreads[1]


def _of_sample(n: Int[np.ndarray, " prompt"]) -> Float[np.ndarray, "prompt 1"]:
    """n / (n - 1): a variance about the sample's own mean is that much too small."""
    return np.where(n > 1, n / np.maximum(n - 1, 1), 1.0)[:, None]


def unlike(
    first: tuple[Float[np.ndarray, " word"], Float[np.ndarray, " word"]],
    second: tuple[Float[np.ndarray, " word"], Float[np.ndarray, " word"]],
) -> Float[np.ndarray, " word"]:
    """Normal p of the difference of two kinds' effects, each with its variance."""
    return 2 * stats.norm.sf(np.abs(second[0] - first[0]) / np.sqrt(first[1] + second[1]))
