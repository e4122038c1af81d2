"""Finished parts of a run, and the run's tables put together from them.

A part is one batch in one arm: a folder with a parquet file a table. Parts are whole or absent, lie
in one folder that is named by everything the numbers depend on, and are put together one after the
other: memory does not grow with the number of trials, and a run that was interrupted ends with the
same bytes as one that was not.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuits.runs import Parts

# Of a row group, about: what is held while tables are put together.
_ROWS, _BYTES = 1 << 17, 1 << 24
_RESIDUALS = "residuals.safetensors"
_ARMS = "arms.json"


class Store:
    """The parts of one run. parent: where they lie; key: everything that the numbers depend on."""

    def __init__(self, parent: Path, key: dict[str, Any]) -> None:
        self._parts = Parts(parent, key)
        self.folder = self._parts.folder

    def clear(self) -> None:
        """Remove the parts, once the run is on disk."""
        self._parts.clear()

    def keep(self, value: Any) -> None:
        """Keep what was found out before the first part."""
        self.folder.mkdir(parents=True, exist_ok=True)
        work = self.folder / f"{_ARMS}.{_own()}"
        work.write_text(json.dumps(value), encoding="utf-8")
        work.rename(self.folder / _ARMS)

    def kept(self) -> Any:
        """What was kept; None when nothing was."""
        path = self.folder / _ARMS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def has(self, part: str, name: str) -> bool:
        """Whether a part has this table, and it can be read."""
        path = self.folder / part / f"{name}.parquet"
        try:
            pq.read_metadata(path)
        except (OSError, pa.ArrowInvalid):
            return False  # half written on a full disk: it is made again
        return True

    def put(
        self, part: str, tables: Mapping[str, pa.Table], tensors: Mapping[str, Tensor] | None
    ) -> None:
        """Keep a part, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        work = self.folder / f"{part}.{_own()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        for name, table in tables.items():
            pq.write_table(table, work / f"{name}.parquet")
        if tensors is not None:
            save_file({k: t.contiguous() for k, t in tensors.items()}, work / _RESIDUALS)
        shutil.rmtree(self.folder / part, ignore_errors=True)
        work.rename(self.folder / part)

    def add(self, part: str, name: str, table: pa.Table) -> None:
        """Add a table to a part."""
        work = self.folder / part / f"{name}.{_own()}"
        pq.write_table(table, work)
        work.rename(self.folder / part / f"{name}.parquet")

    def read(self, part: str, name: str) -> pa.Table:
        """A table of a part."""
        return pq.read_table(self.folder / part / f"{name}.parquet")

    def tensor(self, part: str, name: str) -> Tensor:
        """One of a part's tensors, alone."""
        with safe_open(self.folder / part / _RESIDUALS, framework="pt") as file:
            return file.get_tensor(name)

    def residuals(self, part: str) -> Path:
        """The file of a part's tensors."""
        return self.folder / part / _RESIDUALS


def _own() -> str:
    return f"{platform.node()}-{os.getpid()}"


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables one behind the other into one file, of which about one row group is held at a
    time; returns the number of rows."""
    held: list[pa.Table] = []
    rows = 0  # in all
    with pq.ParquetWriter(path, schema) as writer:

        def write() -> None:
            # Names are numbered anew: every part numbers those it has.
            writer.write_table(pa.concat_tables(held).unify_dictionaries())
            held.clear()

        for table in tables:
            held.append(table)
            rows += len(table)
            if sum(map(len, held)) >= _ROWS or sum(t.nbytes for t in held) >= _BYTES:
                write()
        if held:
            write()
    return rows
