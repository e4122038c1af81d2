"""Two arms on the prompts of one kind: the counts that comparisons are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.special import ndtri, stdtrit

from circuits.replay.paired import FEWEST_UNITS, UnitKind
from circuits.replay.words.corpus import Corpus
from circuits.replay.words.odds import WordsError, log_odds

_CELLS = 2**23  # numbers of resampling weights at once
_TAIL = 0.025  # of an interval


@dataclass(frozen=True, eq=False)
class Arms:
    """Responses of an arm and of its baseline, and the prompt of each response.

    mine, other: sparse counts [response, word].

    Both have the same prompts, numbered from 0. paired: row i of one and row i of the other are the
    same trial of the same prompt.
    """

    mine: Any
    other: Any
    prompt: Int[np.ndarray, " response"]
    other_prompt: Int[np.ndarray, " baseline_response"]
    paired: bool

    @classmethod
    def of(
        cls, corpus: Corpus, mine: np.ndarray, other: np.ndarray, paired: bool, what: str
    ) -> Arms:
        """The responses at rows `mine` and `other` of a corpus. what: names them in messages.

        Raises `WordsError` where the arms have different prompts or, paired, different trials.
        """
        table = corpus.responses
        prompts: list[np.ndarray] = []
        sides: list[np.ndarray] = []
        trials: list[np.ndarray] = []
        for rows in (mine, other):
            prompt = table["prompt"].cat.codes.to_numpy()[rows]
            trial = table["trial"].to_numpy()[rows]
            order = np.lexsort((trial, prompt))
            prompts.append(prompt[order])
            trials.append(trial[order])
            sides.append(rows[order])
        names = table["prompt"].cat.categories
        apart = np.setxor1d(prompts[0], prompts[1])
        if len(apart):
            raise WordsError(
                f"{what}: prompt {names[int(apart[0])]!r} has responses in one arm only"
                + (f", and so have {len(apart) - 1} others" if len(apart) > 1 else "")
                + ". Arms are compared on the same prompts: remove those responses."
            )
        if paired and not all(np.array_equal(both[0], both[1]) for both in (prompts, trials)):
            raise WordsError(
                f"{what}: the trials of the arms do not pair, "
                f"{len(mine)} responses and {len(other)} of the baseline. Where they were sampled "
                "with numbers of their own, say that they are not paired."
            )
        known = np.unique(prompts[0])
        places = [np.searchsorted(known, p).astype(np.int64) for p in prompts]
        rows: Any = corpus.counts
        return cls(rows[sides[0]], rows[sides[1]], places[0], places[1], paired)

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return int(self.prompt.max()) + 1

    @property
    def n(self) -> tuple[int, int]:
        """Responses of the arm and of the baseline."""
        return self.mine.shape[0], self.other.shape[0]

    @cached_property
    def counts(self) -> Int[np.ndarray, "arm word"]:
        """How often each word is written in arm and baseline."""
        both = (self.mine, self.other)
        return np.stack([np.asarray(m.sum(axis=0, dtype=np.int64)).ravel() for m in both])

    @cached_property
    def held(self) -> Int[np.ndarray, "arm word"]:
        """In how many responses of arm and baseline each word is."""
        both = (self.mine, self.other)
        return np.stack([m.getnnz(axis=0).astype(np.int64) for m in both])

    def by_prompt(
        self, words: Int[np.ndarray, " tested"]
    ) -> tuple[Int[np.ndarray, "arm prompt tested"], Int[np.ndarray, "arm prompt"]]:
        """(responses that hold each of some words, responses) by arm and prompt."""
        held, every = [], []
        for rows, prompt in ((self.mine, self.prompt), (self.other, self.other_prompt)):
            held.append(_sums(_present(rows[:, words]), prompt, self.prompts).astype(np.int64))
            every.append(np.bincount(prompt, minlength=self.prompts))
        return np.stack(held), np.stack(every)

    def differing(
        self, words: Int[np.ndarray, " tested"]
    ) -> tuple[Int[np.ndarray, "prompt tested"], Int[np.ndarray, "prompt tested"]]:
        """In how many pairs of trials of each prompt only the arm's response, or only the
        baseline's, holds each of some words."""
        mine, other = _present(self.mine[:, words]), _present(self.other[:, words])
        both = mine.multiply(other)
        sums = [_sums(m - both, self.prompt, self.prompts) for m in (mine, other)]
        return sums[0].round().astype(np.int64), sums[1].round().astype(np.int64)

    def weights(self, unit: UnitKind) -> Float[np.ndarray, " prompt"]:
        """What each prompt counts in a mean difference of shares; they sum to 1.

        Prompts count alike where they are exchanged. Where trials are, a prompt of n responses and
        m of the baseline counts n m / (n + m) (Mantel and Haenszel 1959): that mean is as far from
        0 as the statistic of the exchanges is from its own mean.
        """
        if unit == "prompt":
            return np.full(self.prompts, 1 / self.prompts)
        n, m = (np.bincount(p).astype(np.float64) for p in (self.prompt, self.other_prompt))
        made = n * m / (n + m)
        return made / made.sum()

    def resampled(
        self,
        words: Int[np.ndarray, " tested"],
        prior: Float[np.ndarray, " tested"],
        prior_total: float,
        *,
        unit: UnitKind,
        resamples: int,
        seed: int,
    ) -> Float[np.ndarray, "resample tested"]:
        """Log odds ratios of some words when prompts, or trials within their prompts, are drawn
        anew; pairs of trials together. prior: of these words.

        They spread as the estimate does: of n units n - 1 are drawn (Rao and Wu 1988), and their
        distances from the estimate are stretched by the ratio of the t to the normal quantile. NaN
        with fewer than 5 prompts, fewer than 4 degrees of freedom, or a prompt with a single trial,
        whose spread is not known.
        """
        by_prompt = unit == "prompt"
        groups = [np.zeros(self.prompts, int)] if by_prompt else [self.prompt, self.other_prompt]
        groups = groups[:1] if self.paired else groups
        freedom = sum(len(group) - len(np.unique(group)) for group in groups)
        single = min(int(np.bincount(group).min()) for group in groups) < 2
        if single or freedom < FEWEST_UNITS - 1:
            return np.full((resamples, len(words)), np.nan)
        sides = []
        for rows, prompt in ((self.mine, self.prompt), (self.other, self.other_prompt)):
            picked: Any = rows[:, words].astype(np.float64)
            total = np.asarray(rows.sum(axis=1, dtype=np.float64)).ravel()
            if by_prompt:
                picked = sparse.csr_matrix(_sums(picked, prompt, self.prompts))
                total = np.bincount(prompt, total, self.prompts)
            sides.append((picked.T.tocsr(), total))
        step = max(1, min(resamples, _CELLS // max(len(group) for group in groups)))
        found = [np.zeros((0, len(words)))]
        for start in range(0, resamples, step):
            size = min(step, resamples - start)
            rng = np.random.default_rng([seed, start])
            drawn = [_drawn(group, size, rng) for group in groups]
            found.append(_ratios(sides, [drawn[0], drawn[-1]], prior, prior_total))
        whole = [np.ones((1, len(total))) for _, total in sides]
        seen = _ratios(sides, whole, prior, prior_total)
        wider = stdtrit(freedom, 1 - _TAIL) / ndtri(1 - _TAIL)
        return seen + wider * (np.concatenate(found) - seen)


def _drawn(
    group: Int[np.ndarray, " unit"], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "resample unit"]:
    """How often each unit counts: of n units of a group n - 1 are drawn, each n / (n - 1) times."""
    made = np.zeros((resamples, len(group)))
    for code in range(int(group.max()) + 1):
        mine = np.flatnonzero(group == code)
        n = len(mine)
        made[:, mine] = rng.multinomial(n - 1, np.full(n, 1 / n), size=resamples) * (n / (n - 1))
    return made


def _ratios(
    sides: Sequence[tuple[Any, np.ndarray]],
    weights: Sequence[Float[np.ndarray, "resample _"]],
    prior: Float[np.ndarray, " tested"],
    prior_total: float,
) -> Float[np.ndarray, "resample tested"]:
    """Log odds ratios of weighted units. sides: counts [word, unit] and words in all, of both."""
    odds = [
        log_odds(np.asarray((picked @ drawn.T).T), drawn @ total, prior, prior_total)
        for (picked, total), drawn in zip(sides, weights, strict=True)
    ]
    return odds[0] - odds[1]


def _present(rows: Any) -> Any:
    found = rows.astype(np.float64)
    found.data[:] = 1.0
    return found


def _sums(
    rows: Any, group: Int[np.ndarray, " response"], groups: int
) -> Float[np.ndarray, "group word"]:
    """Rows of a sparse matrix summed by group."""
    n = len(group)
    gather = sparse.csr_matrix((np.ones(n), (group, np.arange(n))), shape=(groups, n))
    return np.asarray((gather @ rows).todense())
