"""SAEs: what extraction, training and the feature bank cost.

python -m benchmarks.saes [extraction] [training] [features]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common import memory_growth, product_rate, report
from circuits.corpora import parse_corpus
from circuits.features import collect_features
from circuits.models.hooked import HookedModel
from circuits.models.load import load_model
from circuits.saes import load_saes
from circuits.sites import Site
from circuits.train import SaeOptions, Store, extract
from circuits.train.trainer import MEASUREMENTS, Run

SITES = [Site(layer, "resid_post") for layer in (4, 9, 14, 19, 24, 29)]
TOKENS, ROUNDS = 16_000, 3
STEPS, BLOCK = 60, 10
REAL_STEPS = 957  # of one epoch over 1.96 million rows, as the embedded SAEs were trained
TRAINED = Site(22, "resid_post")


def main(names: list[str]) -> None:
    """Measure the named parts (all by default), print a table, write saes.json.

    Rows of parts that are not run are kept from the last time, with what they were run on.
    """
    model = load_model()
    target = Path(__file__).with_suffix(".json")
    rows: list[dict[str, Any]] = []
    if names and target.is_file():
        rows = [r for r in json.loads(target.read_text())["rows"] if r["part"] not in names]
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            rows += [{"part": name, **row} for row in PARTS[name](model, Path(folder))]
    report(__file__, rows, {"product_gflops": product_rate() / 1e9, "sites": list(map(str, SITES))})


def _corpus(model: HookedModel) -> Any:
    # Enough held out that there are as many rows of it as a measurement in training looks at.
    return parse_corpus(["stdlib"], model.tokenizer, heldout=0.2)


def _extraction(model: HookedModel, folder: Path) -> list[dict[str, Any]]:
    """Tokens a second of `extract` and of the model alone on the same batches, in turn; six layers,
    the last one among them, so that nothing is gained by stopping early."""
    store = extract(model, _corpus(model), SITES, folder / "0", num_tokens=TOKENS, progress=False)
    batches = []
    for split in ("train", "heldout"):
        for tokens, lengths in store.contexts(split):
            for start in range(0, len(tokens), 8):
                batches.append(tokens[start : start + 8, : int(lengths[start : start + 8].max())])
    total = sum(store.manifest.tokens.values())
    ours, bare, tokenising, peaks = [], [], [], []
    for number in tqdm(range(1, ROUNDS + 1), desc="extraction"):
        started = time.perf_counter()
        for batch in batches:
            model.run(batch)
        bare.append(time.perf_counter() - started)
        started = time.perf_counter()
        rows = 0
        for context in _corpus(model).contexts():  # what the corpus itself costs
            rows += len(context.tokens) - 1
            if rows >= TOKENS:
                break
        tokenising.append(time.perf_counter() - started)
        with memory_growth() as memory:
            started = time.perf_counter()
            extract(
                model,
                _corpus(model),
                SITES,
                folder / str(number),
                num_tokens=TOKENS,
                progress=False,
            )
            ours.append(time.perf_counter() - started)
        peaks.append(memory["peak_mib"])
    return [
        {"what": "extraction, six layers", "measured": total / min(ours), "unit": "tokens/s"},
        {"what": "bare forward", "measured": total / min(bare), "unit": "tokens/s"},
        {
            "what": "extraction against the bare forward",
            "measured": min(bare) / min(ours),
            "unit": "x",
            "bar": "at least 0.9",
        },
        {"what": "of extraction, reading and tokenising", "measured": min(tokenising) / min(ours)},
        {"what": "extraction, peak memory", "measured": max(peaks), "unit": "MiB"},
    ]


def _training(model: HookedModel, folder: Path) -> list[dict[str, Any]]:
    """Steps a second of ours (data from disk) and of SAELens' trainer by itself on the same batches
    in memory, in alternating blocks; and what a measurement with its checkpoint costs."""
    store = extract(
        model, _corpus(model), [TRAINED], folder / "t", num_tokens=60_000, progress=False
    )
    options = SaeOptions(epochs=STEPS * 2048 / store.manifest.rows("train") + 1)
    with memory_growth() as memory:
        run = Run(store, TRAINED, options, torch.float32, "cpu")
        alone = Run(store, TRAINED, options, torch.float32, "cpu").trainer
        data = store.batches(TRAINED, options.batch_size, seed=0)
        stream, ours, theirs = iter([next(data) for _ in range(STEPS + 1)]), 0.0, 0.0
        run.advance()
        alone.step(next(stream))
        alone.n_training_steps += 1
        for _ in tqdm(range(STEPS // BLOCK), desc="training"):
            started = time.perf_counter()
            for _ in range(BLOCK):
                run.advance()
            ours += time.perf_counter() - started
            started = time.perf_counter()
            for _ in range(BLOCK):
                alone.step(next(stream))
                alone.n_training_steps += 1
            theirs += time.perf_counter() - started
        started = time.perf_counter()
        resume = folder / "resume"
        run.measure({"train_loss": 0.0, "sparsity_loss": 0.0}, resume / "measured")
        run.save(resume, {})
        measuring = time.perf_counter() - started
    a_step = ours / STEPS
    whole = theirs / STEPS / (a_step + MEASUREMENTS * measuring / REAL_STEPS)
    return [
        {"what": "training, batches of 2,048, 4,096 latents", "measured": 1 / a_step, "unit": "/s"},
        {"what": "SAELens' trainer alone", "measured": STEPS / theirs, "unit": "/s"},
        {"what": "a step against SAELens' own", "measured": theirs / ours, "unit": "x"},
        {"what": "a measurement and checkpoint", "measured": measuring, "unit": "s"},
        {
            "what": f"{REAL_STEPS} steps and {MEASUREMENTS} measurements against SAELens' alone",
            "measured": whole,
            "unit": "x",
            "bar": "at least 0.95",
        },
        {"what": "training, peak memory", "measured": memory["peak_mib"], "unit": "MiB"},
    ]


def _features(model: HookedModel, folder: Path) -> list[dict[str, Any]]:
    """The bank of the eight embedded SAEs, from text and from stored activations: what a token
    costs, from two lengths, and what the bank costs beside that."""
    saes = load_saes("embedded", model)
    store: Store = extract(
        model, _corpus(model), list(saes), folder / "f", num_tokens=TOKENS, progress=False
    )
    found = []
    for name, corpus in (("from text", _corpus(model)), ("from stored activations", store)):
        taken, seen = [], []
        for tokens in (TOKENS // 4, TOKENS):
            with memory_growth() as memory:
                started = time.perf_counter()
                bank = collect_features(model, saes, corpus, num_tokens=tokens, progress=False)
                taken.append(time.perf_counter() - started)
            seen.append(bank.record["tokens"])
        a_token = (taken[1] - taken[0]) / (seen[1] - seen[0])
        found += [
            {
                "what": f"feature bank of {len(saes)} SAEs {name}",
                "measured": a_token * 1e6 / 60,
                "unit": "min a million tokens",
            },
            {
                "what": f"and beside that, {name}",
                "measured": taken[0] - a_token * seen[0],
                "unit": "s",
            },
            {"what": f"its peak memory, {name}", "measured": memory["peak_mib"], "unit": "MiB"},
        ]
    return found


PARTS = {"extraction": _extraction, "training": _training, "features": _features}

if __name__ == "__main__":
    main(sys.argv[1:])
