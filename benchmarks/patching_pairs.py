"""Exact patching: time and peak memory against the number of pairs, one process each.

    python -m benchmarks.patching_pairs      # about 5 minutes on two cores

Predicted: time in proportion to the pairs; memory flat from 8 pairs on, which is how many are held
at once. Measured is what the process holds, the C library's free blocks included; that growth from
16 to 64 pairs is fragmentation is likely (no tensor outlives a sweep of 8 pairs), not shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import memory_growth, report
from circuits import load_model, load_task, patch

PAIR_COUNTS = (1, 4, 16, 64)


def child(count: int) -> None:
    """One measurement in this process."""
    model = load_model(device="cpu")
    task = load_task("error_type")
    with memory_growth() as memory:
        started = time.perf_counter()
        result = patch(model, task, n_pairs=count, progress=False)
        taken = time.perf_counter() - started
    scores = float(result.scores.memory_usage(deep=True).sum()) / 2**20
    print(json.dumps({"pairs": count, "seconds": taken, **memory, "scores_mib": scores}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child)
        return
    found: list[dict[str, Any]] = []
    for count in PAIR_COUNTS:
        command = [sys.executable, "-m", "benchmarks.patching_pairs", "--child", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    rows: list[dict[str, Any]] = []
    for one in found:
        name = f"{one['pairs']} pairs"
        rows.append({"what": name, "measured": one["seconds"], "unit": "s"})
        rows.append({"what": f"{name}, peak", "measured": one["peak_mib"], "unit": "MiB"})
        rows.append({"what": f"{name}, scores", "measured": one["scores_mib"], "unit": "MiB"})
    growth = found[-1]["peak_mib"] - found[-2]["peak_mib"]
    rows.append(
        {
            "what": "peak, 64 pairs minus 16",
            "measured": growth,
            "unit": "MiB",
            "bar": "copies of the scores",
        }
    )
    report(__file__, rows, {"by_pairs": found})


if __name__ == "__main__":
    main()
