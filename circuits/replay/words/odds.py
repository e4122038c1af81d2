"""Log odds of words with an informative Dirichlet prior.

Monroe, Colaresi and Quinn (2008), "Fightin' Words", equations 15, 16 (with the variance of both
sides), 19 and 22. Of an arm's n words y are w; the prior adds a pseudo-counts of w, a0 in all:

    log odds = log((y + a) / (n + a0 - y - a)), its variance about 1 / (y + a)
    delta    = log odds in the arm - log odds in the baseline, z = delta / sqrt(sum of variances)

Positive: the arm writes the word more. Words are counted as if they were independent, which those
of one response are not: z sorts, and the tests (significance.py) decide.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from circuits.errors import CircuitsError


class WordsError(CircuitsError):
    """Responses or options from which no words can be compared."""


def log_odds(
    counts: Float[np.ndarray, "*rows word"],
    totals: Float[np.ndarray, "*rows"],
    prior: Float[np.ndarray, " word"],
    prior_total: float,
) -> Float[np.ndarray, "*rows word"]:
    """Posterior log odds of each word.

    counts: how often it is written. totals: words written in all. prior: pseudo-counts of each
    word; prior_total: those of all words, of which `prior` may be a part.
    """
    mine = counts + prior
    return np.log(mine) - np.log(np.asarray(totals)[..., None] + prior_total - mine)


def odds_ratio(
    counts: Int[np.ndarray, " word"],
    baseline: Int[np.ndarray, " word"],
    total: int,
    baseline_total: int,
    prior: Float[np.ndarray, " word"],
    prior_total: float,
) -> tuple[Float[np.ndarray, " word"], Float[np.ndarray, " word"]]:
    """(log odds ratio, its variance) of words in an arm against the baseline, natural logarithm."""
    arms = np.stack([counts, baseline]).astype(np.float64)
    odds = log_odds(arms, np.array([total, baseline_total], dtype=np.float64), prior, prior_total)
    return odds[0] - odds[1], (1 / (arms + prior)).sum(0)


def pooled_prior(pooled: Int[np.ndarray, " word"], scale: float) -> Float[np.ndarray, " word"]:
    """`scale` pseudo-counts for each time a word is written in either arm."""
    return scale * pooled.astype(np.float64)


def background_prior(
    pooled_total: int,
    background: Int[np.ndarray, " word"],
    background_total: int,
    background_words: int,
    scale: float,
) -> Float[np.ndarray, " word"]:
    """`scale` times `pooled_total` pseudo-counts, shared out as in a background corpus.

    background: how often it has each word of the arms. background_total, background_words: how many
    words it has, and how many different ones there are in it or in the arms. One is added to each,
    so that a word it does not have keeps a prior above 0.
    """
    return scale * pooled_total * (background + 1.0) / (background_total + background_words)
