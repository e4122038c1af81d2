"""Which words an arm adds to the baseline's and which it removes, kind by kind.

1. For each feature, kind of prompt and arm, words in enough responses (of arm and baseline
   together, never by their difference) are tested.
2. Log odds with a Dirichlet prior, z, and an interval from prompts (or trials) drawn anew.
3. p by Fisher's exact test, and by exchanging the arms' labels (significance.py). Verdicts rest on
   the latter.
4. q of Benjamini and Hochberg (1995) over all words and kinds of one feature and arm; differences
   between kinds are a family of their own. Or over all features of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control
from tqdm import tqdm

from circuits.replay.log import NO_OP
from circuits.replay.paired import FEWEST_PROMPTS, UnitKind
from circuits.replay.words import significance as test
from circuits.replay.words.arms import Arms
from circuits.replay.words.corpus import Corpus
from circuits.replay.words.odds import WordsError, background_prior, odds_ratio, pooled_prior

_PERMUTATIONS = (9_999, 199_999)
_TAIL = (0.025, 0.975)
VERDICTS = ("added", "removed", "mixed", "no evidence")


@dataclass(frozen=True)
class Rules:
    """How words are compared.

    baseline: the arm that others are compared with. level: largest false discovery rate.
    min_responses: fewest responses of both arms together that hold a word to be tested.
    prior: pseudo-counts of a word for each time that either arm writes it.
    unit: what is exchanged, "prompt" or "trial"; None takes prompts where every kind has at least
    `FEWEST_PROMPTS` of them. paired: whether trials of one number belong together in all arms.
    permutations: None draws so many that one word alone could pass, from 9,999 to 199,999.
    family: over what the false discovery rate is kept. difference: (kind, kind) of which the second
    less the first is tested; None: risky less safe, or the only two there are.
    """

    baseline: str = NO_OP
    level: float = 0.05
    min_responses: int = 5
    prior: float = 0.1
    unit: UnitKind | None = None
    paired: bool = False
    permutations: int | None = None
    family: Literal["feature", "log"] = "feature"
    difference: tuple[str, str] | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise WordsError(f"level {self.level}: expected a rate between 0 and 1.")
        if not (self.prior > 0 and np.isfinite(self.prior)):
            raise WordsError(f"prior {self.prior}: expected a number above 0, such as 0.1.")
        if self.min_responses < 1 or self.resamples < 100:
            raise WordsError(
                f"min_responses {self.min_responses} and resamples {self.resamples}: at least 1 "
                "and 100 are expected."
            )
        if self.permutations is not None and self.permutations < 99:
            raise WordsError(f"permutations {self.permutations}: at least 99 are expected.")
        if self.difference is not None and len(set(self.difference)) < 2:
            raise WordsError(f"difference {self.difference}: two different kinds are expected.")


@dataclass(frozen=True, eq=False)
class Comparison:
    """table: one row a word, kind and arm (result.py has its columns). arms: one row a feature,
    kind and arm. unit: what was exchanged. difference: the kinds compared, if any."""

    table: pd.DataFrame
    arms: pd.DataFrame
    unit: UnitKind
    difference: tuple[str, str] | None
    permutations: tuple[int, int]


def compare(corpus: Corpus, rules: Rules, background: Corpus | None = None) -> Comparison:
    """Compare every arm with the baseline.

    background: a corpus whose words make the prior, instead of those of both arms.
    Raises `WordsError` where the baseline or a kind is missing, arms have different prompts, or a
    comparison has fewer than two different words.
    """
    keys = ["feature", "kind", "arm"]
    rows: dict[Any, np.ndarray] = corpus.responses.groupby(keys, observed=True, sort=False).indices
    _check_baseline(rows, rules)
    difference = _difference(rows, rules)
    unit = rules.unit or _unit(corpus.responses)
    task = _Work(corpus, rules, unit, _background(corpus, background))
    pairs: dict[tuple[str, str], list[str]] = {}
    for feature, kind, arm in rows:
        if arm != rules.baseline:
            pairs.setdefault((feature, arm), []).append(kind)
    parts, drawn = [], []
    for (feature, arm), kinds in tqdm(pairs.items(), desc="arms", delay=2):
        found = {}
        for kind in kinds:
            what = f"feature {feature}, {kind}: {arm} against {rules.baseline}"
            base = rows[feature, kind, rules.baseline]
            found[kind] = Arms.of(corpus, rows[feature, kind, arm], base, rules.paired, what)
            words = int((found[kind].counts.sum(0) > 0).sum())
            if words < 2:
                raise WordsError(
                    f"{what}: the responses have {words} different words, and odds are those of "
                    "one word against the others: at least two are needed. Were they all left out "
                    "(stop words, numbers), or is there little in the responses?"
                )
            if unit == "prompt" and found[kind].prompts < 2:
                raise WordsError(
                    f"{what}: one prompt cannot be exchanged for another; use the unit trial."
                )
        made, permutations = task.arm(found, difference, [feature, arm])
        parts += [one.assign(feature=feature, arm=arm) for one in made]
        drawn.append(permutations)
    table = pd.concat(parts, ignore_index=True)
    table["q"] = _adjusted(table, rules.family)
    table["verdict"] = _verdicts(table, rules.level)
    return Comparison(
        _beside_random(table), _arms(corpus, rows), unit, difference, (min(drawn), max(drawn))
    )


@dataclass(frozen=True, eq=False)
class _Work:
    """What comparisons of all arms share. background: counts by word, their sum, and how many
    different words there are."""

    corpus: Corpus
    rules: Rules
    unit: UnitKind
    background: tuple[Int[np.ndarray, " word"], int, int] | None

    def arm(
        self, kinds: dict[str, Arms], difference: tuple[str, str] | None, names: list[str]
    ) -> tuple[list[pd.DataFrame], int]:
        """Tables of the kinds and of their difference, and how many exchanges were drawn."""
        tested = {k: self._enough(a.held.sum(0)) for k, a in kinds.items()}
        both = None
        if difference is not None and all(k in kinds for k in difference):
            both = kinds[difference[0]], kinds[difference[1]]
        most = sum(len(words) for words in tested.values())
        permutations = self._permutations(most)
        tables = [self._kind(k, a, tested[k], permutations, names) for k, a in kinds.items()]
        if both is not None and difference is not None:
            words = self._enough(both[0].held.sum(0) + both[1].held.sum(0))
            tables.append(self._unlike(difference, both, words, permutations, names))
        return tables, permutations

    def _enough(self, held: Int[np.ndarray, " word"]) -> Int[np.ndarray, " tested"]:
        return np.flatnonzero(held >= self.rules.min_responses)

    def _permutations(self, words: int) -> int:
        """Enough that a single word of all can pass, with room to spare."""
        if self.rules.permutations is not None:
            return self.rules.permutations
        return int(np.clip(np.ceil(2 * words / self.rules.level), *_PERMUTATIONS))

    def _prior(self, pooled: Int[np.ndarray, " word"]) -> tuple[Float[np.ndarray, " word"], float]:
        total = float(self.rules.prior * pooled.sum())
        if self.background is None:
            return pooled_prior(pooled, self.rules.prior), total
        counts, written, different = self.background
        size = int(pooled.sum())
        return background_prior(size, counts, written, different, self.rules.prior), total

    def _rng(self, names: list[str], kind: str) -> np.random.Generator:
        """One stream for each comparison, whatever else the log holds."""
        words = "\0".join([*names, kind]).encode()
        return np.random.default_rng([self.rules.seed, *words])

    def _odds(
        self,
        arms: Arms,
        words: Int[np.ndarray, " tested"],
        prior: tuple[Float[np.ndarray, " word"], float],
        rng: np.random.Generator,
    ) -> tuple[Any, Any, Any]:
        """Log odds ratios, their variances, and resampled ones."""
        totals = arms.counts.sum(1).tolist()
        picked = prior[0][words]
        mine, other = arms.counts[:, words]
        ratio, variance = odds_ratio(mine, other, totals[0], totals[1], picked, prior[1])
        drawn = arms.resampled(
            words,
            picked,
            prior[1],
            unit=self.unit,
            resamples=self.rules.resamples,
            seed=int(rng.integers(2**31)),
        )
        return ratio, variance, drawn

    def _kind(
        self,
        kind: str,
        arms: Arms,
        words: Int[np.ndarray, " tested"],
        permutations: int,
        names: list[str],
    ) -> pd.DataFrame:
        rng = self._rng(names, kind)
        ratio, variance, drawn = self._odds(arms, words, self._prior(arms.counts.sum(0)), rng)
        held, every = arms.by_prompt(words)
        shares = held / every[:, :, None]
        by_prompt = shares[0] - shares[1]
        if self.unit == "prompt":
            p = test.exchange_prompts(by_prompt, permutations, rng)
        elif arms.paired:
            p = test.exchange_pairs(*(only.sum(0) for only in arms.differing(words)))
        else:
            p = test.exchange_trials(held[0], every[0], held[1], every[1])
        low, high = _interval(drawn)
        columns = {
            **self._counts(arms, words, kind),
            "difference": arms.weights(self.unit) @ by_prompt,
            "log_odds": ratio,
            "low": low,
            "high": high,
            "z": ratio / np.sqrt(variance),
            "p_fisher": test.fisher(held[0].sum(0), arms.n[0], held[1].sum(0), arms.n[1]),
            "p_permutation": p,
        }
        return pd.DataFrame(columns)

    def _counts(self, arms: Arms, words: Int[np.ndarray, " tested"], kind: str) -> dict[str, Any]:
        vocabulary = np.array(self.corpus.vocabulary, dtype=object)
        found: dict[str, Any] = {"kind": kind, "word": vocabulary[words]}
        for i, end in enumerate(("", "_baseline")):
            found[f"count{end}"] = arms.counts[i, words]
            found[f"responses{end}"] = arms.held[i, words]
            found[f"total{end}"] = int(arms.counts[i].sum())
            found[f"n{end}"] = arms.n[i]
        return found

    def _unlike(
        self,
        kinds: tuple[str, str],
        both: tuple[Arms, Arms],
        words: Int[np.ndarray, " tested"],
        permutations: int,
        names: list[str],
    ) -> pd.DataFrame:
        """The second kind's effect less the first's; counts are of both kinds together."""
        name = f"{kinds[1]} - {kinds[0]}"
        rng = self._rng(names, name)
        prior = self._prior(both[0].counts.sum(0) + both[1].counts.sum(0))
        ratios = [self._odds(arms, words, prior, rng) for arms in both]
        by_kind = [arms.by_prompt(words) for arms in both]
        effects = [(k[0] / n[0][:, None] - k[1] / n[1][:, None]) for k, n in by_kind]
        if self.unit == "prompt":
            p = test.exchange_kinds(effects[0], effects[1], permutations, rng)
        else:
            p = test.unlike(*(_effect(a, words, *k) for a, k in zip(both, by_kind, strict=True)))
        mean = [a.weights(self.unit) @ e for a, e in zip(both, effects, strict=True)]
        counts = [self._counts(arms, words, name) for arms in both]
        summed = {k: v if k in ("kind", "word") else v + counts[1][k] for k, v in counts[0].items()}
        ratio = ratios[1][0] - ratios[0][0]
        low, high = _interval(ratios[1][2] - ratios[0][2])
        columns = {
            **summed,
            "difference": mean[1] - mean[0],
            "log_odds": ratio,
            "low": low,
            "high": high,
            "z": ratio / np.sqrt(ratios[0][1] + ratios[1][1]),
            "p_fisher": np.full(len(words), np.nan),
            "p_permutation": p,
        }
        return pd.DataFrame(columns)


def _effect(
    arms: Arms,
    words: Int[np.ndarray, " tested"],
    held: Int[np.ndarray, "arm prompt tested"],
    every: Int[np.ndarray, "arm prompt"],
) -> tuple[Any, Any]:
    weights = arms.weights("trial")
    if arms.paired:
        return test.effect_of_pairs(*arms.differing(words), every[0], weights)
    return test.effect_of_trials((held[0], held[1]), (every[0], every[1]), weights)


def _interval(drawn: Float[np.ndarray, "resample tested"]) -> tuple[np.ndarray, np.ndarray]:
    if drawn.shape[1] == 0:
        return np.zeros(0), np.zeros(0)
    low, high = np.quantile(drawn, _TAIL, axis=0)
    return low, high


def _adjusted(table: pd.DataFrame, family: str) -> Float[np.ndarray, " row"]:
    q = np.full(len(table), np.nan)
    unlike: Any = table["p_fisher"].isna()
    by: list[Any] = ["arm", unlike.rename("unlike")]
    groups: Any = table.groupby([*by, "feature"] if family == "feature" else by, sort=False)
    for rows in groups.indices.values():
        q[rows] = false_discovery_control(table["p_permutation"].to_numpy()[rows])
    return q


def _verdicts(table: pd.DataFrame, level: float) -> list[str]:
    """Added or removed where shares of responses and log odds agree, mixed where they do not."""
    signs = np.sign(table["difference"].to_numpy()), np.sign(table["log_odds"].to_numpy())
    passed: Bool[np.ndarray, " row"] = table["q"].to_numpy() <= level
    found = np.where(signs[0] != signs[1], "mixed", np.where(signs[0] > 0, "added", "removed"))
    return np.where(passed, found, "no evidence").tolist()


def _beside_random(table: pd.DataFrame) -> pd.DataFrame:
    """Beside every row what the random arms do to that word: the range of their log odds, and how
    many of them have the same verdict."""
    is_random = table["arm"].str.startswith("random")
    keys = ["feature", "kind", "word"]
    chance: Any = table[is_random].groupby(keys, sort=False)["log_odds"].agg(["min", "max"])
    chance.columns = ["random_low", "random_high"]
    joined: Any = table.merge(chance.reset_index(), on=keys, how="left")
    same: Any = table[is_random & (table["verdict"] != "no evidence")]
    counts = same.groupby([*keys, "verdict"], sort=False).size().rename("random_same")
    joined = joined.merge(counts.reset_index(), on=[*keys, "verdict"], how="left")
    itself = joined["arm"].str.startswith("random") & (joined["verdict"] != "no evidence")
    joined["random_same"] = joined["random_same"].fillna(0).astype(int) - itself.astype(int)
    first = ["feature", "kind", "arm", "word", "verdict", "log_odds", "low", "high", "z"]
    first += ["difference", "p_fisher", "p_permutation", "q"]
    return joined[[*first, *(c for c in joined.columns if c not in first)]]


def _check_baseline(rows: dict[Any, np.ndarray], rules: Rules) -> None:
    arms = list(dict.fromkeys(arm for _, _, arm in rows))
    if rules.baseline not in arms or len(arms) < 2:
        raise WordsError(
            f"the log has the arms {', '.join(arms)}: expected {rules.baseline!r} and at least one "
            "other. Name the one to compare with as the baseline."
        )
    for feature, kind, arm in rows:
        if (feature, kind, rules.baseline) not in rows:
            raise WordsError(
                f"feature {feature}, {kind}: the arm {arm} has responses but {rules.baseline} has "
                "none, so there is nothing to compare with."
            )


def _difference(rows: dict[Any, np.ndarray], rules: Rules) -> tuple[str, str] | None:
    kinds = sorted({kind for _, kind, _ in rows})
    if rules.difference is not None:
        lacking = [k for k in rules.difference if k not in kinds]
        if lacking:
            raise WordsError(f"no kind {lacking[0]!r} to compare: there are {', '.join(kinds)}.")
        return rules.difference
    if {"safe", "risky"} <= set(kinds):
        return "safe", "risky"
    return (kinds[0], kinds[1]) if len(kinds) == 2 else None


def _unit(responses: pd.DataFrame) -> UnitKind:
    prompts: Any = responses.groupby(["feature", "kind"], observed=True)["prompt"].nunique()
    return "prompt" if int(prompts.min()) >= FEWEST_PROMPTS else "trial"


def _background(corpus: Corpus, other: Corpus | None) -> tuple[np.ndarray, int, int] | None:
    if other is None:
        return None
    totals = other.totals()
    known = dict(zip(other.vocabulary, totals.tolist(), strict=True))
    mine = np.array([known.get(word, 0) for word in corpus.vocabulary], dtype=np.int64)
    return mine, int(totals.sum()), len(set(corpus.vocabulary) | set(other.vocabulary))


def _arms(corpus: Corpus, rows: dict[Any, np.ndarray]) -> pd.DataFrame:
    """Responses, prompts and words of every feature, kind and arm."""

    def entries() -> Iterator[dict[str, Any]]:
        counts: Any = corpus.counts
        written = np.asarray(counts.sum(axis=1, dtype=np.int64)).ravel()
        prompts = corpus.responses["prompt"].cat.codes.to_numpy()
        for (feature, kind, arm), here in rows.items():
            yield {
                "feature": feature,
                "kind": kind,
                "arm": arm,
                "responses": len(here),
                "prompts": len(np.unique(prompts[here])),
                "words": int(written[here].sum()),
                "words_a_response": float(written[here].mean()),
            }

    return pd.DataFrame(list(entries()))
