"""Attribution: peak memory beyond the bare passes, against the number of SAEs and their latents.

    python -m benchmarks.attribution_memory      # about 5 minutes on two cores

Every configuration is measured in a process of its own, under a C library that gives freed memory
back at once, so that it is what is held and not what once was; after a call on 8 tokens, so that
what the first call of all takes is not counted. SAEs share one set of weights, which is there
before: weights are no part of the figures. The bare passes are those of benchmarks.attribution.

Predicted before the first measurement: activations and gradients of 30 sites, 3 x 35 MiB, and the
nodes' table, 60 bytes a node, 80 MiB, beyond the bare passes. Too much: the bare passes have their
peak while the graph of the corrupted run is there, and of all that only the clean run's activations
stand beside it; encoding and the table come when the graph is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from tqdm import tqdm

from benchmarks.attribution import ATP, LENGTH, PAIRS, bare, layers, random_pairs, random_saes
from benchmarks.common import memory_growth, report
from circuits import load_model
from circuits.attribute.batch import Sources
from circuits.attribute.scores import scores_of

COUNTS, DICTIONARIES = (6, 30), (4096, 16384, 65536)
# glibc's names; where they are not known, they do nothing.
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def child(count: int, latents: int) -> None:
    """One measurement in this process; without SAEs, of the bare passes."""
    model = load_model(device="cpu")
    group, short = random_pairs(model, PAIRS, LENGTH), random_pairs(model, 1, 8)
    found: dict[str, Any] = {"saes": count, "latents": latents}
    if not count:
        bare(model, short)
        with memory_growth() as memory:
            bare(model, group)
        weights = {p.data_ptr(): p.nbytes for p in model.module.parameters()}
        found["weights_mib"] = sum(weights.values()) / 2**20
    else:
        saes = random_saes(model, layers(model, count), latents, shared=True)
        sources = Sources(tuple(saes), saes)
        scores_of(model, sources, short, ATP)
        with memory_growth() as memory:
            table = scores_of(model, sources, group, ATP)
        found["nodes"] = len(table)
        found["scores_mib"] = float(table.memory_usage(deep=True).sum()) / 2**20
    print(json.dumps({**found, **memory}))


def measured(count: int, latents: int) -> dict[str, Any]:
    """What `child` finds in a new process."""
    module = "benchmarks.attribution_memory"
    command = [sys.executable, "-m", module, "--child", str(count), str(latents)]
    environment = {**os.environ, **AT_ONCE}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(*given.child)
        return
    alone = measured(0, 0)
    peak, weights = alone["peak_mib"], alone["weights_mib"]
    rows: list[dict[str, Any]] = [
        {"what": "bare passes, growth at their peak", "measured": peak, "unit": "MiB"},
        {"what": "the model's weights", "measured": weights, "unit": "MiB"},
    ]
    found, beyond = [alone], {}
    kinds = [(count, latents) for count in COUNTS for latents in DICTIONARIES]
    for kind in tqdm(kinds, desc="memory"):
        one = measured(*kind)
        found.append(one)
        beyond[kind] = one["peak_mib"] - peak
        what = f"{kind[0]} SAEs of {kind[1]}, beyond the bare passes"
        rows += [
            {"what": what, "measured": beyond[kind], "unit": "MiB"},
            {
                "what": f"{what}, share of their growth",
                "measured": beyond[kind] / peak,
                "bar": "at most 0.15",
            },
            {
                "what": f"{what}, share of their growth and the model's weights",
                "measured": beyond[kind] / (peak + weights),
                "bar": "at most 0.15",
            },
        ]
    few, many, small, large = COUNTS[0], COUNTS[-1], DICTIONARIES[0], DICTIONARIES[-1]
    for what, growth in (
        (f"from {few} to {many} SAEs of {small}", beyond[many, small] - beyond[few, small]),
        (f"from {small} to {large} latents, {few} SAEs", beyond[few, large] - beyond[few, small]),
        (
            f"from {small} to {large} latents, {many} SAEs",
            beyond[many, large] - beyond[many, small],
        ),
    ):
        rows.append({"what": what, "measured": growth, "unit": "MiB", "bar": "flat"})
    report(__file__, rows, {"by_configuration": found})


if __name__ == "__main__":
    main()
