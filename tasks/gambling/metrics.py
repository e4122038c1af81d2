"""What was decided: stop rates, bets and shares of the balance, with intervals over prompts.

Positive differences of a stop rate are toward stopping. Only valid decisions are counted in rates
and bets; how many were not, and why, stands beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from circuits.metrics import Summary, summarise_ratio
from circuits.replay.log import Response
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


@dataclass(frozen=True, eq=False)
class Decisions:
    """table: one row a kind and arm: `kind, arm, responses, prompts`, and `parsed` (share of
    responses that could be read), `stop_rate` (of those), `mean_bet` (dollars, of bets) and
    `bet_share` (of the balance, of bets), each with `_low, _high` (95%, prompts resampled; NaN for
    one prompt, and the value where there is nothing to average). reasons: why responses could not
    be read, by (kind, arm).
    """

    table: pd.DataFrame
    reasons: Mapping[tuple[str, str], Counter[str]]


def decisions(responses: Iterable[Response]) -> Decisions:
    """Summarise read responses; raises `TaskError` for one that was not read, and for none."""
    found: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
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
    return Decisions(pd.DataFrame(rows), reasons)


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
