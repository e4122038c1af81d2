"""How often latents and words are "found" that do not change: 200 pairs of arms without an effect.

    python -m benchmarks.replay_null [RUNS]

With common random numbers, arms without an effect are equal token for token, and nothing can be
found. The null that can go wrong is two arms that differ in their random numbers only: a tiny
random model writes 10 trials of each of 20 prompts twice, with two seeds, at temperature 1.5, some
responses ending early; 400 latents at two sites with rates from 0.2% to 50% hang together as those
of one stream do. They are tested over prompts (20 units), and, of the first four prompts, over
trials (40 units). A false alarm is a run in which any latent is found: without an effect that is
the false discovery rate. Each rate must lie under the largest number of runs that a rate of 5%
exceeds once in a thousand times.

The same responses as logs, every token a word: all prompts of one kind, and of two kinds whose
effects are compared; labels exchanged over prompts (20), and over trials of the first four prompts,
freely and pair by pair. A false alarm is a log in which any word is found at the same level.

Then 200 made problems in which 40 of 400 latents change, with values that are skewed, mostly 0 and
alike within a prompt: the mean share of false ones among those found. And, to show what the unit is
for, made prompts that differ in an effect whose mean is 0: p below .05 over trials and over
prompts.

What was predicted before the first measurement, which was of 12 prompts: alarms in 1 to 4% of the
runs over prompts (p comes in steps of 1/2048, of which several latents must share the smallest) and
in 2 to 6% over trials; p below .05 in 4.5 to 5% of the latents; 4 to 5% false discoveries in the
made problems; with prompts that differ, p below .05 over trials in more than 40% and over prompts
in 5%. (Over 12 prompts there was no alarm at all, because four latents would have had to share the
smallest p.) Before 20 prompts were taken and words looked at: alarms in 2 to 5% over prompts, of
latents as of words, in 2 to 5% of the logs by trial, a little fewer pair by pair, and in 1 to 5%
for the difference of two kinds; p of words below .05 in 4 to 5% over prompts and in 3 to 4.5% by
trial, as responses that hold a word or not come in whole numbers. Measured: 2.5 and 2% of latents;
of words fewer than predicted, 1% over prompts, .5% for the difference of kinds and none by trial,
because most of these words are rare and p is coarser than was thought (below .05 in 3 and 2%).
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
from circuits.replay import Generated
from circuits.replay.changes import changes
from circuits.replay.log import Response
from circuits.replay.paired import Units, sign_flips
from circuits.replay.tables import tokens_of
from circuits.replay.words import Rules, Splitter, compare, count
from circuits.sites import Site
from tests.twins import drawn_prompts, generated, means_of

RUNS, LEVEL = 200, 0.05
PROMPTS, TRIALS, STEPS, FEW = 20, 10, 12, 4
LATENTS, CHANGED = 400, 40
# How labels of words are exchanged: over how many prompts, and of trials whether in pairs.
EXCHANGES = {
    f"prompts ({PROMPTS})": (PROMPTS, False),
    f"trials freely ({FEW} prompts)": (FEW, False),
    f"trials in pairs ({FEW} prompts)": (FEW, True),
}
Found = dict[str, Any]


def twins(seed: int) -> tuple[list[Found], list[Found]]:
    """What is found in one pair of arms: latents, over prompts and, of few prompts, over trials;
    and words."""
    prompts = drawn_prompts(PROMPTS, seed)
    made = [generated(prompts, TRIALS, STEPS, 2 * seed + i) for i in range(2)]
    arms, found = [means_of(one) for one in made], []
    for size in (PROMPTS, FEW):
        rows = np.arange(size * TRIALS)
        first, second = ({site: arm[site][rows] for site in arm} for arm in arms)
        units = Units.of(np.repeat(np.arange(size), TRIALS))
        table: Any = changes(first, second, units, seed=seed)
        found.append(
            {
                "seed": seed,
                "unit": units.kind,
                "tested": len(table),
                "found": int((table["q"] <= LEVEL).sum()),
                "p_low": float((table["p"] <= LEVEL).mean()),
                "p_small": float((table["p"] <= LEVEL / 10).mean()),
            }
        )
    return found, words(made, seed)


def words(made: list[Generated], seed: int) -> list[Found]:
    """Words of the first arm against the second, and of two kinds of prompts, by all exchanges."""
    written = [tokens_of(one) for one in made]
    found = []
    for exchanged, (prompts, paired) in EXCHANGES.items():
        for kinds in (1, 2):
            log = [
                Response("-", "ab"[i // TRIALS % kinds], arm, i % TRIALS, str(i // TRIALS), text)
                for arm, rows in zip(("latent", "no-op"), written, strict=True)
                for i, ids in enumerate(rows[: prompts * TRIALS])
                if (text := " ".join(f"w{token}" for token in ids))
            ]
            unit = "prompt" if prompts == PROMPTS else "trial"
            rules = Rules(level=LEVEL, unit=unit, paired=paired, resamples=100, seed=seed)
            table: Any = compare(count(log, Splitter()), rules).table
            table = table[table["p_fisher"].isna() == (kinds == 2)]
            p = table["p_permutation"]
            found.append(
                {
                    "seed": seed,
                    "exchanged": exchanged,
                    "kinds": kinds,
                    "tested": len(table),
                    "found": int((table["verdict"] != "no evidence").sum()),
                    "p_low": float((p <= LEVEL).mean()),
                    "p_small": float((p <= LEVEL / 10).mean()),
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
        mine = [latents[i] for latents, _ in found]
        rows += _rates("latent", f"over {unit}", mine, bound)
    for exchanged in EXCHANGES:
        for kinds, what in ((1, "word"), (2, "word that differs between kinds")):
            mine = [
                one
                for _, some in found
                for one in some
                if (one["exchanged"], one["kinds"]) == (exchanged, kinds)
            ]
            rows += _rates(what, f"over {exchanged}", mine, bound)
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
    details = {
        "runs": [one for latents, _ in found for one in latents],
        "words": [one for _, some in found for one in some],
        "made": problems,
        "bound": bound,
        "level": LEVEL,
    }
    report(__file__, rows, details)


def _rates(what: str, over: str, found: list[Found], bound: float) -> list[Found]:
    """Alarms, and how many p are small, of all runs."""
    mean = {k: float(np.mean([r[k] for r in found])) for k in ("p_low", "p_small", "tested")}
    alarms = float(np.mean([r["found"] > 0 for r in found]))
    return [
        {
            "what": f"runs in which a {what} is found, {over}",
            "measured": alarms,
            "bar": f"<= {bound:.3f}",
        },
        {"what": f"p below .05 of a {what}, {over}", "measured": mean["p_low"]},
        {"what": f"p below .005 of a {what}, {over}", "measured": mean["p_small"]},
        {"what": f"{what}: tests a run, {over}", "measured": mean["tested"]},
    ]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
