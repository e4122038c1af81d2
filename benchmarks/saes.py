"""SAEs: what extraction, training and the feature bank cost.

python -m benchmarks.saes
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common import machine, memory_growth, product_rate, report
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


def main() -> None:
    """Measure, print a table, write saes.json."""
    model = load_model()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*_extraction(model, Path(folder)), *_training(model, Path(folder))]
        rows += _features(model, Path(folder))
    report(__file__, rows, {"product_gflops": product_rate() / 1e9, "sites": list(map(str, SITES))})


def _corpus(model: HookedModel, heldout: float = 0.05) -> Any:
    return parse_corpus(["stdlib"], model.tokenizer, heldout=heldout)


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
    corpus = _corpus(model, heldout=0.2)  # as many held-out rows as a measurement looks at
    store = extract(model, corpus, [TRAINED], folder / "t", num_tokens=60_000, progress=False)
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
    """The bank of the eight embedded SAEs, from text and from stored activations."""
    saes = load_saes("embedded", model)
    store: Store = extract(
        model, _corpus(model), list(saes), folder / "f", num_tokens=TOKENS, progress=False
    )
    found = []
    for name, corpus in (("from text", _corpus(model)), ("from stored activations", store)):
        with memory_growth() as memory:
            started = time.perf_counter()
            bank = collect_features(model, saes, corpus, num_tokens=TOKENS, progress=False)
            taken = time.perf_counter() - started
        minutes = taken / bank.record["tokens"] * 1e6 / 60
        found += [
            {
                "what": f"feature bank of {len(saes)} SAEs {name}",
                "measured": minutes,
                "unit": "min a million tokens",
            },
            {
                "what": f"the same, peak memory, {name}",
                "measured": memory["peak_mib"],
                "unit": "MiB",
            },
        ]
    return found


if __name__ == "__main__":
    print(machine())
    main()
