"""Files of JSON lines: one JSON value a line, in UTF-8, with or without a byte order mark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from circuits.errors import CircuitsError


def read_lines(
    path: str | Path, error: type[CircuitsError], cut_off: str = ""
) -> Iterator[tuple[str, Any]]:
    """(where it stands, value) of every line that is not empty, one at a time; where: "PATH, line
    N", for messages.

    cut_off: what to say behind "not JSON". Raises `error` for a file that cannot be read, and with
    the line's number for one that is not UTF-8 or not JSON.
    """
    path = Path(path)
    try:
        # Not text mode: its decoder reads ahead, and would name the wrong line. Nor other
        # separators of Unicode than the line feed, which texts in JSON may hold.
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                where = f"{path}, line {number}"
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as wrong:
                    raise error(f"{where}: cannot be read as UTF-8 ({wrong}).") from wrong
                if line.strip():
                    yield where, _value(line, where, error, cut_off)
    except OSError as wrong:
        raise error(f"{path} cannot be read: {wrong.strerror or wrong}.") from wrong


def _value(line: str, where: str, error: type[CircuitsError], cut_off: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as wrong:
        behind = f"; {cut_off}" if cut_off else ""
        raise error(f"{where}: not JSON ({wrong}){behind}.") from wrong
