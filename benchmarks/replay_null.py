"""How often latents are "found" that do not change: 200 pairs of arms without an effect.

    python -m benchmarks.replay_null [RUNS]

With common random numbers, arms without an effect are equal token for token, and nothing can be
found. The null that can go wrong is two arms that differ in their random numbers only: a tiny
random model writes 10 trials of each of 12 prompts twice, with two seeds, at temperature 1.5, some
responses ending early; 400 latents at two sites with rates from 0.2% to 50% hang together as those
of one stream do. They are tested over prompts (12 units), and, of the first four prompts, over
trials (40 units). A false alarm is a run in which any latent is found: without an effect that is
the false discovery rate. Each rate must lie under the largest number of runs that a rate of 5%
exceeds once in a thousand times.

Then 200 made problems in which 40 of 400 latents change, with values that are skewed, mostly 0 and
alike within a prompt: the mean share of false ones among those found. And, to show what the unit is
for, made prompts that differ in an effect whose mean is 0: p below .05 over trials and over
prompts.

What was predicted before the first measurement: alarms in 1 to 4% of the runs over prompts (p comes
in steps of 1/2048, of which several latents must share the smallest) and in 2 to 6% over trials;
p below .05 in 4.5 to 5% of the latents; 4 to 5% false discoveries in the made problems; with
prompts that differ, p below .05 over trials in more than 40% and over prompts in 5%.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import binom
from tqdm import tqdm

from benchmarks.common import report
from circuits.replay.changes import changes
from circuits.replay.paired import Units, sign_flips
from circuits.sites import Site
from tests.twins import drawn_prompts, written

RUNS, LEVEL = 200, 0.05
PROMPTS, TRIALS, STEPS, FEW = 12, 10, 12, 4
LATENTS, CHANGED = 400, 40


def twins(seed: int) -> list[dict[str, Any]]:
    """One pair of arms, over prompts and, of few prompts, over trials."""
    prompts = drawn_prompts(PROMPTS, seed)
    arms = [written(prompts, TRIALS, STEPS, 2 * seed + i) for i in range(2)]
    found = []
    for count in (PROMPTS, FEW):
        rows = np.arange(count * TRIALS)
        first, second = ({site: arm[site][rows] for site in arm} for arm in arms)
        units = Units.of(np.repeat(np.arange(count), TRIALS))
        table: Any = changes(first, second, units, seed=seed)
        found.append(
            {
                "seed": seed,
                "unit": units.kind,
                "tested": len(table),
                "found": int((table["q"] <= LEVEL).sum()),
                "p_low": float((table["p"] <= LEVEL).mean()),
            }
        )
    return found


def made(seed: int) -> dict[str, Any]:
    """One problem in which the first latents change."""
    draw = np.random.default_rng([seed, 2])
    prompt = np.repeat(np.arange(PROMPTS), TRIALS)
    shape = (len(prompt), LATENTS)
    liking = draw.gamma(4, 1, (PROMPTS, LATENTS))[prompt]
    arms = [liking * draw.gamma(1, 1, shape) * (draw.random(shape) < 0.3) for _ in range(2)]
    arms[0][:, :CHANGED] *= draw.uniform(1.5, 6, CHANGED)
    site = Site.parse("resid_post.0")
    first, second = ({site: sparse.csr_array(arm)} for arm in arms)
    table: Any = changes(first, second, Units.of(prompt), seed=seed)
    found = table["q"] <= LEVEL
    false = int((found & (table["latent"] >= CHANGED)).sum())
    right = int((found & (table["latent"] < CHANGED)).sum())
    return {"seed": seed, "false": false, "right": right, "share": false / max(1, false + right)}


def heterogeneous(seed: int) -> dict[str, float]:
    """Share of p below .05 where every prompt has an effect of its own, 0 on average."""
    draw = np.random.default_rng([seed, 3])
    prompt = np.repeat(np.arange(PROMPTS), TRIALS)
    effect = draw.normal(size=(PROMPTS, LATENTS))[prompt]
    values = effect + draw.normal(size=(len(prompt), LATENTS))
    low: dict[str, float] = {}
    for kind in ("prompt", "trial"):
        p = sign_flips(values, Units.of(prompt, kind), flips=1999, seed=seed)
        low[kind] = float((p <= LEVEL).mean())
    return low


def main(runs: int = RUNS) -> None:
    """All runs, and their rates."""
    started = time.perf_counter()
    found = [twins(seed) for seed in tqdm(range(runs), desc="null runs")]
    seconds = (time.perf_counter() - started) / runs
    bound = float(binom.ppf(0.999, runs, LEVEL) / runs)
    rows: list[dict[str, Any]] = []
    for i, unit in enumerate((f"prompts ({PROMPTS})", f"trials ({FEW} prompts)")):
        mine = [one[i] for one in found]
        alarms = float(np.mean([r["found"] > 0 for r in mine]))
        what = f"runs in which a latent is found, over {unit}"
        rows.append({"what": what, "measured": alarms, "bar": f"<= {bound:.3f}"})
        low = float(np.mean([r["p_low"] for r in mine]))
        rows.append({"what": f"p below .05, over {unit}", "measured": low})
        tested = float(np.mean([r["tested"] for r in mine]))
        rows.append({"what": f"latents tested, over {unit}", "measured": tested})
    problems = [made(seed) for seed in tqdm(range(runs), desc="made")]
    shares = np.array([p["share"] for p in problems])
    most = LEVEL + 3.09 * float(shares.std()) / runs**0.5
    what = "false among those found, where a tenth changes"
    rows.append({"what": what, "measured": float(shares.mean()), "bar": f"<= {most:.3f}"})
    right = float(np.mean([p["right"] for p in problems])) / CHANGED
    rows.append({"what": "found of those that change", "measured": right})
    differ = [heterogeneous(seed) for seed in range(max(1, runs // 20))]
    for kind in ("trial", "prompt"):
        low = float(np.mean([d[kind] for d in differ]))
        what = f"p below .05 where prompts differ around 0, over {kind}s"
        rows.append({"what": what, "measured": low})
    rows.append({"what": "a pair of arms, written and tested", "measured": seconds, "unit": "s"})
    details = {"runs": found, "made": problems, "bound": bound, "level": LEVEL}
    report(__file__, rows, details)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
