"""Files of JSON lines, read a line at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuits.errors import CircuitsError
from circuits.jsonl import read_lines


class OwnError(CircuitsError):
    """Of the caller."""


def test_lines_with_their_places(tmp_path: Path) -> None:
    """A byte order mark, empty lines, other line ends, and separators that are no line ends."""
    path = tmp_path / "a.jsonl"
    odd = json.dumps({"a": "b\u2028c\u0085d"}, ensure_ascii=False)
    path.write_bytes(("\ufeff" + odd + "\r\n\n  \n[1, 2]\nnull").encode())
    assert list(read_lines(path, OwnError)) == [
        (f"{path}, line 1", {"a": "b\u2028c\u0085d"}),
        (f"{path}, line 4", [1, 2]),
        (f"{path}, line 5", None),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', r"a\.jsonl, line 2: not JSON \(.*\); it was cut off\.$"),
        (b"1\n\n\xff\xfe", r"a\.jsonl, line 3: cannot be read as UTF-8"),
        (b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(OwnError, match=message):
        list(read_lines(path, OwnError, "it was cut off"))


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OwnError, match=r"cannot be read: [A-Z]"):
            list(read_lines(path, OwnError))
