"""Exact patching: speed against TransformerLens' own sweep, and the share of the machine.

    python -m benchmarks.patching            # about 3 minutes on two cores
    python -m benchmarks.patching --full     # the long prompt's sweep by TransformerLens in full

What was predicted, before it was measured, from counted operations at 180 GFLOP/s (two cores):
20 tokens of which 4 are shared: 0.45 TFLOP, 2.5 s against 600 forwards of 83 ms, so about 20x.
118 tokens of which 98 are shared and 4 more are equal: a little more attention, about 3 s against
3,540 forwards of 0.26 s, so about 300x. Both sweeps compute the same cells; TransformerLens runs
every cell in full, so its time on the long prompt is measured on `--cells` random ones and scaled,
unless --full is given.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens import patching

from benchmarks.common import product_rate, report, seconds
from circuits import PromptPairs, load_model, load_task, patch
from circuits.models.hooked import HookedModel
from circuits.prompts import Pair
from circuits.task import PairsTask, require
from tasks.error_type.templates import CONTRASTS, make_pairs

PREFIX_TOKENS = 98


def long_pairs(model: HookedModel) -> PromptPairs:
    """The first pair of the task behind a shared beginning of 98 tokens."""
    contrast = CONTRASTS["ZeroDivisionError/TypeError"]
    pair = next(make_pairs(contrast, contrast.templates[0], seed=0))
    filler = "# one more line\n" * 200
    ids = model.tokenizer(filler)["input_ids"][: PREFIX_TOKENS - 1]
    start = model.tokenizer.decode(ids) + "\n"
    made = Pair(start + pair.clean, start + pair.corrupted, pair.answer, pair.foil)
    pairs = PromptPairs.from_texts([made], model.tokenizer)
    shared = len(pairs.clean_tokens[0]) - 20
    assert shared == PREFIX_TOKENS, f"the beginning has {shared} tokens"
    return pairs


def theirs(model: HookedModel, pairs: PromptPairs, cells: pd.DataFrame) -> tuple[Any, float]:
    """TransformerLens' own sweep over `cells` (layer, pos), full forwards: values and seconds.

    Only the sweep is timed, not the clean run that it is given; ours is timed with all it needs.
    """
    clean = torch.tensor(pairs.clean_tokens[:1])
    corrupted = torch.tensor(pairs.corrupted_tokens[:1])
    answer, foil = pairs.answer_tokens[0], pairs.foil_tokens[0]
    bridge: Any = model.module

    def sweep(some: pd.DataFrame) -> np.ndarray:
        return patching.get_act_patch_resid_pre(
            bridge,
            corrupted,
            cache,
            lambda logits: logits[0, -1, answer] - logits[0, -1, foil],
            index_axis_names=None,
            index_df=some,
        ).numpy()

    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean)
        sweep(cells.head(5))  # warm
        started = time.perf_counter()
        values = sweep(cells)
        return values, time.perf_counter() - started


def compare(model: HookedModel, pairs: PromptPairs, sample: int | None) -> dict[str, Any]:
    """Both sweeps over one pair; `sample` cells of theirs are run and scaled to all of them."""
    length = len(pairs.clean_tokens[0])
    cells = pd.DataFrame(
        [(layer, p) for layer in range(model.n_layers) for p in range(length)],
        columns=pd.Index(["layer", "pos"]),
    )
    chosen = cells if sample is None else cells.sample(sample, random_state=0)
    chosen = chosen.reset_index(drop=True)
    result = patch(model, pairs, progress=False)  # warm
    times = sorted(seconds(lambda: patch(model, pairs, progress=False)) for _ in range(3))
    expected, taken = theirs(model, pairs, chosen)
    taken *= len(cells) / len(chosen)
    grid = result.scores.set_index(["layer", "position"])["logit_difference"]
    found = grid.loc[list(map(tuple, chosen.to_numpy()))].to_numpy()
    return {
        "tokens": length,
        "cells": len(cells),
        "cells_timed_by_transformer_lens": len(chosen),
        "seconds": times[1],  # the median
        "seconds_transformer_lens": taken,
        "ratio": taken / times[1],
        "largest_difference": float(np.abs(found - expected).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=150, help="of the long prompt, for theirs")
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    model = load_model(device="cpu")
    task = require(load_task("error_type"), PairsTask, "this benchmark")
    short = task.pairs(model, n=1)
    rate = product_rate()
    at_short = compare(model, short, None)
    with FlopCounterMode(display=False) as counter:
        patch(model, short, progress=False)
    share = counter.get_total_flops() / at_short["seconds"] / rate
    at_long = compare(model, long_pairs(model), None if given.full else given.cells)
    worst = max(at_short["largest_difference"], at_long["largest_difference"])
    rows = [
        {
            "what": "20 tokens, ratio to TransformerLens",
            "measured": at_short["ratio"],
            "unit": "x",
            "bar": "at least 8x",
        },
        {"what": "20 tokens, one pair", "measured": at_short["seconds"], "unit": "s"},
        {
            "what": "98 shared tokens, ratio to TransformerLens",
            "measured": at_long["ratio"],
            "unit": "x",
            "bar": "at least 60x",
        },
        {"what": "98 shared tokens, one pair", "measured": at_long["seconds"], "unit": "s"},
        {"what": "largest difference of any cell", "measured": worst, "bar": "1e-4"},
        {"what": "share of the rate of a large matrix product", "measured": share},
    ]
    details = {
        "product_rate_gflops": rate / 1e9,
        "counted_tflop": counter.get_total_flops() / 1e12,
        "short": at_short,
        "long": at_long,
    }
    report(__file__, rows, details)


if __name__ == "__main__":
    main()
