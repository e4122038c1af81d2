"""Tracks: time against positions, links of shuffled layers, and the study on 500 facts.

    python -m benchmarks.tracks [time] [null] [study | study=DIR]

The embedded model and its six SAEs of the residual stream; questions of tasks/facts. time: all of
`track` but the ablations, for four numbers of answers, in seconds of the processor (threads
together), so that neighbours on the machine do not count. null: layers are shuffled between answers
once, and what comes out is treated as if it were found: the share of its links that is kept, 20
times, with 199 permutations each; the false discovery rate states 5%. study: 500 balanced answers
(`python -m circuits.tracks --task facts`); study=DIR reads that command's finished run, whose tells
stand beside it in DIR-tells.

What was predicted before the first measurement: linear time (every token is by itself, but for the
pairs of latents, which level off); shuffled layers keep a link in at most 5% of runs; metrics alone
tell right from wrong a little (AUC 0.55 to 0.6), less than the answer's probability does, and add
nothing to it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import report
from circuits import load_saes, load_task
from circuits.tracks import TrackPlan, Tracks, track
from circuits.tracks.link import Linker, Similar
from circuits.tracks.null import Exchange, shuffle_test
from circuits.tracks.read import read_nodes, residual, texts_of
from circuits.tracks.tells import Tells, tells

TASK: Any = load_task("facts")
STUDIED, SIZES = 500, (60, 120, 240, 480)
SHUFFLED, RUNS, WORLDS = 120, 20, 199


def _answers(n: int) -> tuple[Any, Any, list[Any]]:
    model = TASK.load()
    return model, load_saes("embedded", model), TASK.answered(model, n=STUDIED)[:n]


def against_positions() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Processor time of tracks without ablations, by tokens."""
    model, saes, answers = _answers(STUDIED)
    plan = TrackPlan(checked=0, permutations=19)
    order = np.random.default_rng(0).permutation(len(answers))
    track(model, saes, [answers[i] for i in order[:20]], plan, progress=False)  # warm
    points = []
    for n in SIZES:
        started = time.process_time()
        found = track(model, saes, [answers[i] for i in order[:n]], plan, progress=False)
        taken = time.process_time() - started
        points.append({"answers": n, "positions": found.record["tokens"], "cpu_seconds": taken})
    x, y = (np.array([p[k] for p in points], float) for k in ("positions", "cpu_seconds"))
    slope = float(np.polyfit(np.log(x), np.log(y), 1)[0])
    each = 1e3 * y / x
    rows: list[dict[str, Any]] = [
        {"what": f"{p['positions']} positions", "measured": p["cpu_seconds"], "unit": "cpu s"}
        for p in points
    ]
    rows.append(
        {
            "what": "exponent of time in positions",
            "measured": slope,
            "unit": "",
            "bar": "1 is linear",
        }
    )
    ratio = float(each[-1] / each[0])
    rows.append({"what": "time a position, most against fewest", "measured": ratio, "unit": "x"})
    return rows, {"time": {"points": points, "exponent": slope, "ratio": ratio}}


def of_shuffled_layers() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Share of links kept where layers belong to different answers."""
    model, saes, answers = _answers(STUDIED)
    rng = np.random.default_rng(0)
    some = [answers[i] for i in rng.permutation(len(answers))[:SHUFFLED]]
    plan = TrackPlan(permutations=WORLDS, checked=0)
    sites = residual(saes)
    texts = texts_of(model, some, plan.positions, saes.at(sites).prepend_bos)
    nodes = read_nodes(model, saes, sites, texts, plan, progress=False)
    similar = Similar.of(nodes, saes)
    exchange = Exchange([len(t.cells) for t in texts], some, None)
    links = Linker(nodes, similar, plan).links()
    real = shuffle_test(nodes, links, similar, some, plan, progress=False).facts
    shares = []
    for run in range(RUNS):
        mixed = nodes.shuffled(np.stack([exchange.cells(rng) for _ in nodes.sites]))
        made = Linker(mixed, similar, plan).links()
        of_run = replace(plan, seed=run + 1)
        facts = shuffle_test(mixed, made, similar, some, of_run, progress=False).facts
        shares.append(facts["links_kept"] / max(1, facts["links"]))
    rows: list[dict[str, Any]] = [
        {
            "what": f"share of links kept, {SHUFFLED} answers",
            "measured": real["links_kept"] / real["links"],
            "unit": "",
        },
        {
            "what": f"the same with shuffled layers, mean of {RUNS}",
            "measured": float(np.mean(shares)),
            "unit": "",
            "bar": f"<= {plan.level:g}",
        },
        {
            "what": "runs with shuffled layers that keep any link",
            "measured": float(np.mean([s > 0 for s in shares])),
            "unit": "",
            "bar": f"<= {plan.level:g}, give or take {2 * (0.05 * 0.95 / RUNS) ** 0.5:.2f}",
        },
    ]
    return rows, {"null": {"real": real, "shuffled_shares": shares}}


def study(folder: str = "") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tracks of 500 answers, and whether they tell right from wrong."""
    if folder:
        made, told = Tracks.load(folder), Tells.load(f"{folder.rstrip('/')}-tells")
    else:
        model, saes, answers = _answers(STUDIED)
        made = track(model, saes, answers)
        about = {"task": TASK.name, "model": made.record["model"]}
        told = tells(made.require_metrics(), answers, source=about)
    null, causal = made.record["null"], made.record["causal"]
    measured: dict[str, Any] = {
        "answers": made.record["answers"]["count"],
        "links": null["links"],
        "links with shuffled layers": null["links_shuffled"],
        "share of links kept": null["links_kept"] / null["links"],
        "pairs kept": null["pairs_kept"],
        "share of pairs confirmed by ablation": causal["share"],
    }
    rows: list[dict[str, Any]] = [
        {"what": f"study: {k}", "measured": float(v), "unit": ""} for k, v in measured.items()
    ]
    rows += [
        {"what": f"AUC from {s['features']}", "measured": s["auc"], "unit": ""}
        for s in told.sets.to_dict("records")
    ]
    rows += [
        {"what": f"gain of {g['features']} over {g['over']}", "measured": g["gain"], "unit": ""}
        for g in told.gains.to_dict("records")
    ]
    details = {
        "headline": told.headline(),
        "verdict": told.verdict(),
        "null": null,
        "layers": made.record["layers"],
        "causal": causal,
        "sets": told.sets.to_dict("records"),
        "gains": told.gains.to_dict("records"),
        "single": told.single.to_dict("records"),
        "baselines": told.predicted.table().to_dict("records"),
        "audit": told.predicted.audit(),
        "plan": made.record["plan"],
        "seconds": made.record["seconds"],
    }
    return rows, {"study": details}


_PARTS = {"time": against_positions, "null": of_shuffled_layers, "study": study}


def main(names: list[str]) -> None:
    """Some parts, or all of them."""
    rows: list[dict[str, Any]] = []
    details: dict[str, Any] = {}
    for name in names or _PARTS:
        part, _, folder = name.partition("=")
        found, more = _PARTS[part](folder) if folder else _PARTS[part]()
        rows += found
        details |= more
    report(str(Path(__file__)), rows, details)


if __name__ == "__main__":
    main(sys.argv[1:])
