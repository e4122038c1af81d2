"""Replay: what recording costs, memory, a killed run, and what common random numbers save.

    python -m benchmarks.replay [speed] [memory] [resume] [variance]

The embedded model and its residual SAEs, one thread. speed: tokens a second of processor time of a
batch of 16 as a run writes it (edits, six sites watched, encoded, three tables on disk) against the
same generation without edits, sites and tables, with the same noise; and against `generate` of
Hugging Face; in turns. Processor time, because the machine may have other work. memory: the peak of
a whole run with 48, 144 and 432 trials, all enough for a whole row group of latents (an earlier
measurement with 16 and 96 trials gave 81 and 93 MiB), and the slope of a line through them, against
what a trial's tables take where they are all held. resume: a run in its own process is killed
with SIGKILL in the middle, then the same command is given again; every file is compared with those
of a run that was left alone. variance: the five strongest latents of error_type (attribution,
denoising) at layers 12 to 22, removed, and held at twice their mean where active: V(paired
difference) over V(arm) + V(no-op) of the responses' log-probability under the unchanged model and
of their length in characters, prompts of both kinds; and the same difference with a no-op arm that
has noise of its own, which is 1 on average (here with one such arm of 30 responses for all rows).

What was predicted before the first measurement, from counted operations: a token takes 0.27 GFLOP
in the model and 28 MFLOP in six encoders (10%), 50 best of 49,152 logits for 16 rows about 5 ms of
a step of 200 ms, tables 2%: .85 of plain generation. Noise (49,152 random words and two logarithms
a row) 10 ms a step, 5%, which plain generation has as well. memory: flat, 1.0 within the 10% that
allocators leave (before 432 trials were measured: 10 KiB for one trial more, of 100 to 300 KiB that
its tables take). resume: the same bytes. variance: removing a latent that is seldom active leaves
most texts as they are, ratios under .5; holding one at twice its mean at every position changes
nearly all texts soon, ratios of .6 to .9.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from benchmarks.common import memory_growth, report
from circuits import attribute, load_task
from circuits.models.hooked import HookedModel
from circuits.models.load import load_model
from circuits.replay import (
    Change,
    Generated,
    Noise,
    Prompts,
    Sampling,
    edits_of,
    forced,
    generate,
    keys_of,
    replay,
    tables,
)
from circuits.replay.prompts import Batch
from circuits.replay.store import Store
from circuits.replay.variance import variance_ratio
from circuits.saes import SaeSet, load_saes
from circuits.sites import Site
from circuits.task import Prompt

SITES = [Site(layer, "resid_post") for layer in (6, 12, 18, 21, 22, 23)]
TEXT = "Once upon a time there was a little girl who lived in a village near the forest."
ROWS, STEPS, ROUNDS = 16, 24, 3
PAIRS, TRIALS, LENGTH, LATENTS = 3, 5, 10, 5
Row = dict[str, Any]


def main(names: list[str]) -> None:
    """Measure the named parts (all by default), print a table, write replay.json after each.

    Rows of other parts are kept from the last time.
    """
    torch.set_num_threads(1)
    model = load_model(device="cpu")
    target = Path(__file__).with_suffix(".json")
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            found = [{"part": name, **row} for row in PARTS[name](model, Path(folder))]
        rows: list[Row] = []
        if target.is_file():
            kept = json.loads(target.read_text())["rows"]
            rows = [r for r in kept if r["part"] != name and r["part"] in PARTS]
        report(__file__, [*rows, *found], {"sites": [str(s) for s in SITES], "batch": ROWS})


def _processor(function: Callable[[], Any]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def _speed(model: HookedModel, folder: Path) -> list[Row]:
    saes = load_saes("embedded", model)
    for site in SITES:
        _ = saes[site]
    prompts = Prompts.of([Prompt(TEXT)], model.tokenizer, False)
    batch = Batch(0, (0,) * ROWS, tuple(range(ROWS)), torch.tensor([prompts.tokens[0]] * ROWS))
    edits = edits_of(saes, [Change(SITES[1], 17, "scale", 1.0)], len(prompts.tokens[0]))
    store = Store(folder, {})

    def plain() -> None:
        generate(model, batch.tokens, batch.keys, max_new_tokens=STEPS, top=1)

    def recorded() -> None:
        made = generate(
            model, batch.tokens, batch.keys, max_new_tokens=STEPS, edits=edits, watch=SITES
        )
        found = {
            "responses": tables.responses_table(
                "no-op", batch, prompts, made, model.tokenizer, None, None, None
            ),
            "steps": tables.steps_table("no-op", batch, made),
        }
        for i, site in enumerate(SITES):
            given = ("no-op", batch, site, saes, made.inside, made.activations[site])
            found[f"latents-{i}"] = tables.latents_table(*given)
        store.put("0-0", found, None)

    def hugging_face() -> None:
        model.module.original_model.generate(  # pyright: ignore
            batch.tokens,
            attention_mask=torch.ones_like(batch.tokens),
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )

    ways = {"plain": plain, "recorded": recorded, "hugging_face": hugging_face}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    plain()
    for _ in tqdm(range(ROUNDS), desc="speed"):
        for name, way in ways.items():
            taken[name].append(_processor(way))
    noise, vocab = Noise(0, batch.keys), 49152
    drawn = _processor(lambda: [noise.gumbel(row, 0, vocab) for row in range(ROWS)])
    middle = {name: statistics.median(times) for name, times in taken.items()}
    tokens = ROWS * STEPS
    return [
        {"what": "plain generation", "measured": tokens / middle["plain"], "unit": "tokens/s"},
        {
            "what": "recorded at 6 sites",
            "measured": tokens / middle["recorded"],
            "unit": "tokens/s",
        },
        {
            "what": "recorded against plain",
            "measured": middle["plain"] / middle["recorded"],
            "unit": "x",
            "bar": "at least 0.7",
        },
        {
            "what": "recorded against generate of Hugging Face",
            "measured": middle["hugging_face"] / middle["recorded"],
            "unit": "x",
        },
        {
            "what": "noise, share of plain generation",
            "measured": drawn / (middle["plain"] / STEPS),
        },
    ]


def _replayed(model: HookedModel, out: Path, trials: int) -> float:
    prompts = Prompts.of([Prompt(TEXT)], model.tokenizer, False)
    saes = load_saes("embedded", model)
    change = Change(SITES[1], 17, "hold", 5.0, "generated")
    with memory_growth() as memory:
        replay(
            model,
            saes,
            prompts,
            [change],
            sites=SITES,
            trials=trials,
            max_new_tokens=8,
            randoms=0,
            out=out,
            progress=False,
        )
    return memory["peak_mib"]


def _memory(model: HookedModel, folder: Path) -> list[Row]:
    _replayed(model, folder / "warm", ROWS)
    counts = [3 * ROWS, 9 * ROWS, 27 * ROWS]
    peaks = [_replayed(model, folder / str(n), n) for n in counts]
    slope = float(np.polyfit(counts, peaks, 1)[0]) * 1024
    last = folder / str(counts[-1])
    rows = sum(_held(last / f"{name}.parquet") for name in ("responses", "steps", "latents"))
    whole = rows / counts[-1] / 1024
    found: list[Row] = [
        {"what": f"peak of {n} trials", "measured": peak, "unit": "MiB"}
        for n, peak in zip(counts, peaks, strict=True)
    ]
    return [
        *found,
        {"what": "tables of one trial, in memory", "measured": whole, "unit": "KiB"},
        {
            "what": "memory for one trial more",
            "measured": slope,
            "unit": "KiB",
            "bar": f"at most {whole / 4:.3g}, a quarter of its tables",
        },
    ]


def _held(path: Path) -> int:
    """Bytes of a table in memory, read a row group at a time."""
    with pq.ParquetFile(path) as file:
        return sum(file.read_row_group(i).nbytes for i in range(file.num_row_groups))


def _resume(model: HookedModel, folder: Path) -> list[Row]:
    file = folder / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": TEXT}) + "\n")

    def command(out: str) -> list[str]:
        given = f"run --latent {SITES[1]}:17 --value 5 --trials 48 --max-new-tokens 6 --sites"
        sites = ",".join(map(str, SITES))
        options = [*given.split(), sites, "--prompts", str(file), "--random-arms", "0"]
        return [sys.executable, "-m", "circuits.replay", *options, "--out", str(folder / out)]

    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command("whole"), check=True, **quiet)
    process = subprocess.Popen(command("killed"), **quiet)
    while len(list(folder.glob(".parts-*/*-*/responses.parquet"))) < 3:
        if process.poll() is not None:
            raise RuntimeError("the run ended before it could be killed.")
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    parts = len(list(folder.glob(".parts-*/*-*/responses.parquet")))
    assert not (folder / "killed").exists()
    subprocess.run(command("killed"), check=True, **quiet)
    names = sorted(p.name for p in (folder / "whole").iterdir())
    same = [
        (folder / "whole" / name).read_bytes() == (folder / "killed" / name).read_bytes()
        for name in names
        if name.endswith(".parquet")
    ]
    records = [json.loads((folder / n / "run.json").read_text()) for n in ("whole", "killed")]
    for record in records:
        record.pop("command")  # names the folder
    return [
        {"what": "parts of 9 that were there at the kill", "measured": parts},
        {"what": "tables with the same bytes", "measured": sum(same), "bar": f"all {len(same)}"},
        {"what": "the same run.json", "measured": int(records[0] == records[1]), "bar": "1"},
    ]


def _strongest(model: HookedModel, saes: SaeSet) -> tuple[list[tuple[Site, int]], list[Prompt]]:
    """Latents with the largest mean effects on error_type, one a decoder row, and its prompts."""
    task: Any = load_task("error_type")
    pairs = task.pairs(model, n=PAIRS)
    found = attribute(model, task, saes=saes, pairs=pairs, audit_pairs=0, progress=False).scores
    nodes: Any = found[found["role"] == "latent"]
    mean = nodes.groupby(["site", "latent"], observed=True)["effect"].sum().abs()
    best = mean.sort_values(ascending=False).index[:LATENTS]
    every = [*pairs.clean_strings, *pairs.corrupted_strings]
    texts = dict.fromkeys("".join(strings) for strings in every)
    return [(Site.parse(str(site)), int(latent)) for site, latent in best], [
        Prompt(text) for text in texts
    ]


def _variance(model: HookedModel, folder: Path) -> list[Row]:
    saes = load_saes("embedded", model).at([s for s in SITES if 12 <= s.layer <= 22])
    latents, texts = _strongest(model, saes)
    prompts = Prompts.of(texts, model.tokenizer, False)
    tokens = torch.tensor(prompts.tokens)
    if tokens.ndim != 2:
        raise RuntimeError("prompts of one length are expected.")
    with tqdm(total=2 + 2 * len(latents), desc="variance") as bar:
        base = _outcomes(model, prompts, {}, bar)
        other = _outcomes(model, prompts, {}, bar, seed=1)
        rows: list[Row] = []
        for site, latent in latents:
            x = model.activations(tokens, [site])[site][:, 1:].reshape(-1, model.d_model)
            active = saes[site].coefficients(x)[:, latent]
            mean = float(active[active > 0].mean())
            for change in (
                Change(site, latent, "remove"),
                Change(site, latent, "hold", 2 * mean),
            ):
                edits = edits_of(saes, [change], tokens.shape[1])
                arm = _outcomes(model, prompts, edits, bar)
                rows += _ratios(f"{site}:{latent} {change.mode}", arm, base, other)
    return rows


def _ratios(
    name: str,
    arm: dict[str, np.ndarray],
    base: dict[str, np.ndarray],
    other: dict[str, np.ndarray],
) -> list[Row]:
    rows = []
    for outcome, values in arm.items():
        shared = variance_ratio(values, base[outcome])
        alone = variance_ratio(values, other[outcome])
        rows.append(
            {
                "what": f"{name}, {outcome}: variance ratio",
                "measured": shared.value,
                "low": shared.low,
                "high": shared.high,
                "independent_noise": [alone.value, alone.low, alone.high],
                "bar": "below 1",
            }
        )
    return rows


def _outcomes(
    model: HookedModel, prompts: Prompts, edits: Any, bar: Any, seed: int = 0
) -> dict[str, np.ndarray]:
    """Numbers of all responses of an arm, [prompt, trial]."""
    found: dict[str, list[float]] = {"log-probability": [], "characters": []}
    whole = torch.tensor(prompts.tokens).repeat_interleave(TRIALS, 0)
    trials: Sequence[int] = list(range(TRIALS)) * len(prompts)
    for rows in torch.arange(len(whole)).split(ROWS):
        tokens = whole[rows]
        made: Generated = generate(
            model,
            tokens,
            keys_of(tokens, [trials[i] for i in rows]),
            edits=edits,
            max_new_tokens=LENGTH,
            sampling=Sampling(),
            seed=seed,
            stop=[model.tokenizer.eos_token_id],
            top=1,
        )
        read = forced(model, torch.cat([tokens, made.tokens], 1), tokens.shape[1], top=1)
        found["log-probability"] += read.logprobs.double().nansum(1).tolist()
        for ids in tables.tokens_of(made):
            found["characters"].append(float(len(model.tokenizer.decode(ids))))
    bar.update()
    return {name: np.array(v).reshape(len(prompts), TRIALS) for name, v in found.items()}


PARTS = {"speed": _speed, "memory": _memory, "resume": _resume, "variance": _variance}

if __name__ == "__main__":
    main(sys.argv[1:])
