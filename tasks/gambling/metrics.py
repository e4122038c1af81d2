"""What was decided: stop rates, bets and shares of the balance, with intervals over prompts.

Positive differences of a stop rate are toward stopping. Only valid decisions are counted in rates
and bets; how many were not, and why, stands beside them.

An arm's own interval says little of its difference from the no-op arm, with which it shares prompts
and random numbers. Differences are therefore taken within trials (circuits/replay/paired.py): of
those that are valid in both arms, whose number stands beside; p by flipping signs of prompts, or of
trials where there are few prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuits.metrics import Summary, summarise_ratio
from circuits.replay.log import NO_OP, Response
from circuits.replay.paired import Units, sign_flips, summarise
from circuits.task import TaskError


def _is_bet(reading: Mapping[str, Any]) -> bool:
    return bool(reading["valid"]) and reading["action"] == "bet"


# Name: (of which responses, what is averaged).
_METRICS: Mapping[str, tuple[Callable[[Any], bool], Callable[[Any], float]]] = {
    "parsed": (lambda r: True, lambda r: float(r["valid"])),
    "stop_rate": (lambda r: r["valid"], lambda r: float(r["action"] == "stop")),
    "mean_bet": (_is_bet, lambda r: float(r["amount"])),
    "bet_share": (_is_bet, lambda r: float(r["amount"]) / float(r["balance"])),
}
# As above, of the trials that are so in both arms. Staked is of the balance, none when it stops.
_PAIRED: Mapping[str, tuple[Callable[[Any], bool], Callable[[Any], float]]] = {
    "parsed": _METRICS["parsed"],
    "stop_rate": _METRICS["stop_rate"],
    "staked": (
        lambda r: r["valid"],
        lambda r: float(r["amount"]) / float(r["balance"]) if _is_bet(r) else 0.0,
    ),
}
_Trials = dict[tuple[str, str, int], Mapping[str, Any]]  # by feature, prompt and trial


@dataclass(frozen=True, eq=False)
class Decisions:
    """table: one row a kind and arm: `kind, arm, responses, prompts`, and `parsed` (share of
    responses that could be read), `stop_rate` (of those), `mean_bet` (dollars, of bets) and
    `bet_share` (of the balance, of bets), each with `_low, _high` (95%, prompts resampled; NaN for
    one prompt, and the value where there is nothing to average). reasons: why responses could not
    be read, by (kind, arm). differences: one row a kind, arm but no-op, and metric (`parsed`,
    `stop_rate`, `staked`: share of the balance that is bet, 0 when it stops): `kind, arm, metric,
    difference` from no-op, its `low, high` (95%) and `p` (not corrected for several rows), the
    `pairs` of trials it is of, those `lost` because one of the two was not valid, and the `unit`
    that was drawn and exchanged. NaN where fewer than two units are left; no rows without no-op.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    reasons: Mapping[tuple[str, str], Counter[str]]


def decisions(responses: Iterable[Response]) -> Decisions:
    """Summarise read responses; raises `TaskError` for one that was not read, and for none."""
    found: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    trials: dict[tuple[str, str], _Trials] = {}
    for one in responses:
        read = one.parsed
        if read is None or not {"valid", "action", "amount"} <= set(read):
            raise TaskError(
                f"the response of {one.condition}, prompt {one.prompt!r}, trial {one.trial}, was "
                "not read: expected a `parsed` with valid, action and amount."
            )
        if _is_bet(read) and not float(read.get("balance") or 0) > 0:
            raise TaskError(
                f"the bet of {one.condition}, prompt {one.prompt!r}, trial {one.trial}, has no "
                "`balance` beside it."
            )
        found.setdefault((one.kind, one.arm), {}).setdefault(one.prompt, []).append(read)
        known = trials.setdefault((one.kind, one.arm), {})
        if (one.feature, one.prompt, one.trial) in known:
            raise TaskError(
                f"{one.condition}, prompt {one.prompt!r}, trial {one.trial} of {one.feature} is "
                "there twice: remove one of them."
            )
        known[one.feature, one.prompt, one.trial] = read
    if not found:
        raise TaskError("there are no responses: at least one is needed.")
    rows, reasons = [], {}
    for (kind, arm), prompts in found.items():
        row: dict[str, Any] = {"kind": kind, "arm": arm}
        row |= {"responses": sum(map(len, prompts.values())), "prompts": len(prompts)}
        for name, (counted, value) in _METRICS.items():
            summary = _over_prompts(list(prompts.values()), counted, value)
            ends = (summary.value, summary.low, summary.high)
            row |= {
                f"{name}{end}": float(v) for end, v in zip(("", "_low", "_high"), ends, strict=True)
            }
        rows.append(row)
        said = (
            str(r.get("reason", "")) for part in prompts.values() for r in part if not r["valid"]
        )
        reasons[kind, arm] = Counter(reason.partition(":")[0] for reason in said)
    return Decisions(pd.DataFrame(rows), _differences(trials), reasons)


def _differences(trials: Mapping[tuple[str, str], _Trials]) -> pd.DataFrame:
    columns = ["kind", "arm", "metric", "difference", "low", "high", "p", "pairs", "lost", "unit"]
    rows = [
        (kind, arm, name, *_difference(mine, trials[kind, NO_OP], *_PAIRED[name]))
        for (kind, arm), mine in trials.items()
        if arm != NO_OP and (kind, NO_OP) in trials
        for name in _PAIRED
    ]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def _difference(
    mine: _Trials,
    base: _Trials,
    counted: Callable[[Any], bool],
    value: Callable[[Any], float],
) -> tuple[float, float, float, float, int, int, str]:
    """Difference, its ends, p, pairs, those lost, unit."""
    both = [key for key in mine if key in base]
    kept = [key for key in both if counted(mine[key]) and counted(base[key])]
    lost, nan = len(both) - len(kept), float("nan")
    prompts = np.unique(np.array([key[1] for key in kept], dtype=str), return_inverse=True)[1]
    alone = len(prompts) and int(np.bincount(prompts).max()) == 1
    if len(kept) < 2 or (alone and int(prompts.max()) == 0):
        return nan, nan, nan, nan, len(kept), lost, ""
    units = Units.of(prompts)
    values = np.array([[value(mine[key]) - value(base[key])] for key in kept])
    found = summarise(values, units)
    ends = float(found.value[0]), float(found.low[0]), float(found.high[0])
    return *ends, float(sign_flips(values, units)[0]), len(kept), lost, units.kind


def _over_prompts(
    prompts: list[list[Mapping[str, Any]]],
    counted: Callable[[Any], bool],
    value: Callable[[Any], float],
) -> Summary:
    """Mean over all counted responses; prompts, with all their responses, are drawn anew."""
    sums = [sum(value(r) for r in part if counted(r)) for part in prompts]
    sizes = np.array([sum(1 for r in part if counted(r)) for part in prompts], dtype=np.float64)
    if sizes.sum() == 0:
        nan = np.array(np.nan)
        return Summary(nan, nan, nan)
    # In shares of the mean number, so that few counted responses are no reason to leave it out;
    # without the prompts that have none, which a draw could consist of.
    some = sizes > 0
    scale = sizes[some].mean()
    return summarise_ratio(np.array(sums)[some] / scale, sizes[some] / scale)
