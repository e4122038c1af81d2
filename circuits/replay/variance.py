"""What common random numbers save: the variance of a paired difference of two arms against that of
arms with noise of their own.

With outcomes Y of a prompt's trials in an arm and in the no-op arm, the paired difference has the
variance V(Y_arm - Y_no-op); independent arms would have V(Y_arm) + V(Y_no-op), which the marginals
of the same run give, because each arm alone is an ordinary sample. The ratio of their means over
prompts is at most 1 where the shared noise helps: half as much variance needs half as many trials.
Variances are within prompts; intervals are over prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from circuits.metrics import bootstrap_weights
from circuits.replay.interventions import ReplayError
from circuits.replay.paired import PathwayError, Units, summarise

OUTCOMES = ("length", "logprob", "unpatched_logprob")
ALWAYS = OUTCOMES[:2]  # those of every run
SHOWN = {
    "length": "Length of responses (tokens), arm - no-op",
    "logprob": "Log-probability of responses (nats), arm - no-op",
    "unpatched_logprob": "Log-probability of responses under the unchanged model (nats), "
    "arm - no-op",
}
_RESAMPLES, _LEVEL = 2000, 0.95
_FEWEST = 5  # units of an interval


@dataclass(frozen=True)
class Ratio:
    """Variances, means over prompts, and their ratio with a 95% interval (bootstrap over prompts).

    NaN where no response's outcome varies; the interval also with fewer than 5 prompts, of which a
    bootstrap says too little.
    """

    paired: float
    independent: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """arm - base, the mean over prompts of their trials' means, with a 95% interval over units.

    unit: "prompt" or "trial", as `paired.Units` chooses; "" where there are too few for an
    interval, which is NaN then. prompts, pairs: that are in the mean. lost: pairs of which one side
    at least has no value.
    """

    value: float
    low: float
    high: float
    unit: str
    prompts: int
    pairs: int
    lost: int


def variance_ratio(
    arm: Float[np.ndarray, "prompt trial"], base: Float[np.ndarray, "prompt trial"], seed: int = 0
) -> Ratio:
    """V(arm - base) over V(arm) + V(base), trials of one column having the same noise.

    Of pairs with a value on both sides, in prompts with at least two of them. Raises `ReplayError`
    where no prompt has two, because one has no variance.
    """
    there = ~np.isnan(arm - base)
    kept = there.sum(axis=1) >= 2
    if not kept.any():
        raise ReplayError(
            "no prompt has two trials with a value in both arms, and one has no variance: run at "
            "least two trials, or more where some cannot be read."
        )
    arm, base = (np.where(there, side, np.nan)[kept] for side in (arm, base))
    paired = np.nanvar(arm - base, axis=1, ddof=1)
    independent = np.nanvar(arm, axis=1, ddof=1) + np.nanvar(base, axis=1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.float64(paired.mean()) / np.float64(independent.mean())
        ends = float("nan"), float("nan")
        if len(arm) >= _FEWEST:
            weights = bootstrap_weights(len(arm), _RESAMPLES, seed)
            ends = _ends((weights @ paired) / (weights @ independent))
    return Ratio(float(paired.mean()), float(independent.mean()), float(value), *ends)


def mean_difference(
    arm: Float[np.ndarray, "prompt trial"], base: Float[np.ndarray, "prompt trial"], seed: int = 0
) -> Difference:
    """Mean of arm - base over the pairs that have a value on both sides: a prompt stays with those
    it has, so that one response that could not be read does not cost the others."""
    apart = arm - base
    there = ~np.isnan(apart)
    prompt, values = there.nonzero()[0], apart[there]
    pairs, lost = len(values), int((~there).sum())
    nan, count = float("nan"), len(np.unique(prompt))
    if not pairs:
        return Difference(nan, nan, nan, "", 0, 0, lost)
    try:
        units = Units.of(prompt)
    except PathwayError:  # fewer than two units
        return Difference(float(values.mean()), nan, nan, "", count, pairs, lost)
    found = summarise(values, units, seed=seed)
    value, low, high = (float(x) for x in (found.value, found.low, found.high))
    unit: str = units.kind
    # Units that are all alike, or too few, say nothing about others.
    if len(units) < _FEWEST or np.isnan(low) or low == high:
        low, high, unit = nan, nan, ""
    return Difference(value, low, high, unit, count, pairs, lost)


def _ends(drawn: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    finite = drawn[np.isfinite(drawn)]
    if len(finite) < len(drawn) / 2 or np.ptp(finite) == 0:
        return float("nan"), float("nan")
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def title_of(outcome: str) -> str:
    """What a difference in an outcome is, with its unit and sign."""
    kind, _, argument = outcome.partition(":")
    key, equals, text = argument.partition("=")
    if kind == "word":
        what = f"{argument.strip()!r} in responses (times)"
    elif kind == "parsed":
        what = f"Share of valid responses with {key} {text}" if equals else f"{key}, as it was read"
    else:
        return SHOWN[outcome]
    return f"{what}, arm - no-op"


def check_outcomes(outcomes: Sequence[str], *, unpatched: bool, parsed: bool) -> None:
    """Raise `ReplayError` for outcomes that `outcome_of` does not know, and for those that a run
    will not have: without `unpatched`, or without a task that reads responses (`parsed`)."""
    for outcome in outcomes:
        kind = _kind(outcome)
        if outcome == "unpatched_logprob" and not unpatched:
            raise ReplayError(f"the run has no {outcome}: make it with --unpatched.")
        if kind == "parsed" and not parsed:
            raise ReplayError(f"outcome {outcome!r}: only a task reads responses, give --task.")


def _kind(outcome: str) -> str:
    """ "word", "parsed", or one of `OUTCOMES`; raises `ReplayError` for what is none."""
    kind, _, argument = outcome.partition(":")
    named = kind in ("word", "parsed") and argument.partition("=")[0].strip()
    if outcome not in OUTCOMES and not named:
        raise ReplayError(
            f"outcome {outcome!r}: expected one of {', '.join(OUTCOMES)}, word:TEXT, parsed:KEY "
            "or parsed:KEY=TEXT."
        )
    return kind


def column_of(outcome: str) -> str:
    """The column of responses that an outcome is read from; raises as `outcome_of` does."""
    return {"word": "response", "parsed": "parsed"}.get(_kind(outcome), outcome)


def outcome_of(responses: pd.DataFrame, outcome: str) -> Float[np.ndarray, " response"]:
    """A number for every response.

    outcome: "length" (tokens), "logprob" (of the response under the model as it ran),
        "unpatched_logprob" (under the unchanged model, where the run has measured it),
        "word:TEXT" (how often a whole word stands in it, whatever its case), "parsed:KEY" (what
        the task read; NaN where it could not), or "parsed:KEY=TEXT" (1 where it read that text and
        0 where it read another, as in parsed:action=stop; NaN where it is not valid).
    Raises `ReplayError` for any other, and for one that the run does not have.
    """
    return outcome_over([responses[column_of(outcome)]], outcome)


def outcome_over(pieces: Iterable[Any], outcome: str) -> Float[np.ndarray, " response"]:
    """`outcome_of` from pieces of its column (pandas), of which one at a time is held."""
    kind, argument = _kind(outcome), outcome.partition(":")[2]
    key, equals, text = argument.partition("=")
    word = re.compile(rf"(?<!\w){re.escape(argument.strip())}(?!\w)", re.IGNORECASE)
    found, there = [np.zeros(0)], set[str]()
    for piece in pieces:
        if kind == "word":
            made = [float(len(word.findall(text))) for text in piece]
        elif kind == "parsed" and equals:
            made = [_reads(value, key, text, there) for value in piece.map(_json)]
        elif kind == "parsed":
            read = piece.map(_json)
            made = [np.nan if v is None else _number(v.get(key), outcome) for v in read]
        else:
            made = piece
        found.append(np.asarray(made, dtype=np.float64))
    values = np.concatenate(found)
    if kind == "parsed" and equals and text not in there:
        raise ReplayError(
            f"no valid response has {outcome}: the texts read as {key} are "
            f"{', '.join(sorted(there)) or 'none'}."
        )
    if kind != "word" and np.isnan(values).all():
        if kind == "parsed":
            raise ReplayError(f"no response has {outcome}: the task did not read it.")
        raise ReplayError(f"the run has no {outcome}: make it with --unpatched.")
    return values


def _reads(value: Mapping[str, Any] | None, key: str, text: str, there: set[str]) -> float:
    """Whether a response's `key` is `text`, if it is valid. there: the texts that were met."""
    read = None if value is None or value.get("valid") is False else value.get(key)
    if not isinstance(read, str):
        return float("nan")
    there.add(read)
    return float(read == text)


def _json(text: Any) -> Mapping[str, Any] | None:
    return json.loads(text) if isinstance(text, str) else None


def _number(value: Any, outcome: str) -> float:
    if value is None:
        return float("nan")
    if not isinstance(value, (int, float)):
        raise ReplayError(
            f"{outcome} is {value!r}: expected numbers, or true and false. Of a text "
            f"name the value, as in {outcome}={value}."
        )
    return float(value)


def by_trial(
    responses: pd.DataFrame, values: Float[np.ndarray, " response"], arm: str
) -> Float[np.ndarray, "prompt trial"]:
    """An arm's outcomes, prompts and trials in the order of their numbers."""
    frame = pd.DataFrame(
        {"prompt": responses["prompt"], "trial": responses["trial"], "value": values}
    )
    chosen: Any = frame[(responses["arm"] == arm).to_numpy()]
    return chosen.pivot(index="prompt", columns="trial", values="value").to_numpy(np.float64)


@dataclass(frozen=True, eq=False)
class Report:
    """What an outcome's differences and variances are, arm by arm.

    table: see `ReplayResult.variance`; None where there is none, and `problem` says why.
    """

    title: str
    table: pd.DataFrame | None
    problem: str = ""

    @property
    def lost(self) -> str:
        """In words: how many pairs have no value on one side; empty where all have."""
        if self.table is None or not (self.table["lost"].to_numpy() > 0).any():
            return ""
        rows = self.table.to_dict("records")
        each = ", ".join(f"{r['arm']} {r['lost']} of {r['lost'] + r['pairs']}" for r in rows)
        return f"Pairs lost, because one side at least has no value: {each}."
