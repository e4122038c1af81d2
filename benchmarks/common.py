"""What every benchmark shares: the machine, the table, the JSON file beside the script."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from circuits.runs import versions


def machine() -> dict[str, Any]:
    """The processor, cores, memory and threads that the figures were measured with."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def seconds(function: Callable[[], Any], repeats: int = 1) -> float:
    """The shortest wall time of `repeats` calls."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - started)
    return best


def product_rate(size: int = 4096, repeats: int = 5) -> float:
    """Operations a second of a large float32 matrix product on this machine."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    _ = a @ b  # warm
    return 2 * size**3 / seconds(lambda: a @ b, repeats)


@contextmanager
def memory_growth() -> Iterator[dict[str, float]]:
    """How much more memory this process holds at most during the block than before it, in MiB.

    Sampled every 5 ms: the operating system's own high-water mark still holds the peak of loading.
    """
    process, found, stop = psutil.Process(), {"peak_mib": 0.0}, threading.Event()
    before = process.memory_info().rss

    def sample() -> None:
        while not stop.wait(0.005):
            grown = (process.memory_info().rss - before) / 2**20
            found["peak_mib"] = max(found["peak_mib"], grown)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield found
    finally:
        stop.set()
        sampler.join()


def report(script: str, rows: list[dict[str, Any]], details: dict[str, Any]) -> None:
    """Print the rows (what, measured, unit, bar) and write them beside the script as JSON."""
    table = Table(title=Path(script).stem)
    for column in ("what", "measured", "bar"):
        table.add_column(column)
    for row in rows:
        value = f"{row['measured']:.3g} {row.get('unit', '')}".strip()
        table.add_row(row["what"], value, str(row.get("bar", "")))
    Console().print(table)
    record = {"machine": machine(), "versions": versions(), "rows": rows, **details}
    target = Path(script).with_suffix(".json")
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
