"""Mediators are chosen on one half and confirmed on the other: latents that carry nothing are not
confirmed more often than the level says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from circuits.replay.confirm import Confirmed
from circuits.replay.outcomes import Outcome
from circuits.replay.paired import PathwayError, Units
from circuits.replay.pathways import Plan
from circuits.replay.pathways_choice import choose, draw_controls, halves
from circuits.replay.pathways_tables import with_mediators
from circuits.sites import Site

HERE = Site.parse("resid_post.1")
PLAN = Plan(Outcome("kl"))


def listed(prompts: int, trials: int, kinds: int = 1) -> pd.DataFrame:
    prompt = np.repeat(np.arange(prompts), trials)
    table = pd.DataFrame({"prompt": prompt, "kind": [f"k{p % kinds}" for p in prompt]})
    return table.sort_values(["kind", "prompt"], kind="stable").reset_index(drop=True)


def units_of(table: pd.DataFrame, kind: Any = None) -> Units:
    return Units.of(pd.factorize(table["prompt"])[0].astype(int), kind)


def confirmed(through: np.ndarray, chosen: list[Any]) -> Confirmed:
    """Of latents through which so much goes, [trial, mediator]."""
    n, k = through.shape
    none, more = np.zeros((n, k)), np.zeros((n, k, k))
    total = np.full(n, 5.0)
    left = total[:, None] - through
    return Confirmed(
        mediators=tuple(chosen),
        base=total,
        total=total,
        left_all=total,
        left_controls=total,
        left=left,
        alone=none,
        direct=none,
        moved=none,
        reach_source=none,
        reach=more,
        source=none[:, :2],
    )


@pytest.mark.parametrize("count", [(12, 10), (4, 6)])
def test_what_carries_nothing_is_not_confirmed(count: tuple[int, int]) -> None:
    """300 latents whose mediated effects differ between the units and are 0 on average: chosen and
    confirmed on the same trials most of them would be."""
    alarms = {"halves": 0, "same": 0}
    runs = 8
    for seed in range(runs):
        draw = np.random.default_rng(seed)
        trials = listed(*count)
        units = units_of(trials)
        through = draw.normal(size=(len(trials), 300))
        if units.kind == "prompt":
            through += draw.normal(size=(count[0], 300))[units.prompt]
        first, second = halves(trials, units, seed)
        every = np.arange(len(trials))
        for name, choosing, rest in (("halves", first, second), ("same", every, every)):
            mean = Units.of(units.prompt[choosing], units.kind).mean(through[choosing])
            table = pd.DataFrame(
                {"site": str(HERE), "latent": range(300), "held_q": 0.0, "estimate": mean}
            )
            chosen = choose(table, PLAN)
            mine = [latent for _, latent in chosen]
            assert mine == np.argsort(-np.abs(mean))[:6].tolist()
            found = confirmed(through[rest][:, mine], chosen)
            half = Units.of(units.prompt[rest], units.kind)
            alarms[name] += bool(with_mediators(table, found, half, PLAN, 0.0)["confirmed"].any())
    assert alarms["halves"] <= binom.ppf(0.999, runs, 0.05)
    assert alarms["same"] > runs / 2


def test_halves_of_prompts_and_of_trials() -> None:
    trials = listed(12, 3, kinds=2)
    for seed in range(5):
        first, second = halves(trials, units_of(trials), seed)
        assert sorted([*first, *second]) == list(range(36)) and len(first) == 18
        parts = [set(trials["prompt"][rows]) for rows in (first, second)]
        assert not parts[0] & parts[1]
        # Neighbours of two kinds, such as a scene in safe and in risky words, stay together.
        assert {p // 2 for p in parts[0]} & {p // 2 for p in parts[1]} == set()
    assert set(halves(trials, units_of(trials), 1)[0]) != set(
        halves(trials, units_of(trials), 2)[0]
    )
    few = listed(4, 3)
    first, second = halves(few, units_of(few), 0)
    assert few["prompt"][first].tolist() == [0, 1, 2, 3] and len(second) == 8
    odd = listed(5, 1, kinds=5)
    assert [len(rows) for rows in halves(odd, units_of(odd), 0)] == [2, 3]
    with pytest.raises(PathwayError, match="3 prompts: mediators are chosen on one half"):
        halves(listed(3, 1), units_of(listed(3, 1)), 0)


def test_controls_are_moved_alike() -> None:
    """Of the latents that change and are no mediators, those whose writes change by as much."""
    table = pd.DataFrame(
        {
            "site": str(HERE),
            "latent": range(6),
            "held_q": [0.01, 0.01, 0.01, 0.5, 0.01, np.nan],
            "held_difference": [1.0, -4.0, 9.0, 1.0, 0.2, np.nan],
        }
    )
    plain = {HERE: np.ones(6)}
    assert draw_controls(table, [(HERE, 0)], 0.05, plain) == [(HERE, 1)]
    assert draw_controls(table, [(HERE, 0)], 0.05, {HERE: np.array([1, 1, 1, 1, 4, 1.0])}) == [
        (HERE, 4)
    ]
    both = draw_controls(table, [(HERE, 0), (HERE, 1)], 0.05, plain)
    assert both == [(HERE, 2), (HERE, 4)]
    most = [(HERE, k) for k in (0, 1, 2, 4)]
    assert draw_controls(table, most, 0.05, plain) == []
