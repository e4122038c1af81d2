"""The record of a run on disk: one folder, complete or absent.

`run.json` holds every option, id, version and baseline; `scores.parquet` one row a score; `*.html`
the figures. A folder is written under a temporary name and renamed when it is whole, so a killed
run leaves nothing that could be taken for a result. Only JSON and parquet are ever read back.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from circuits.errors import CircuitsError
from circuits.prompts import PromptPairs

RUN_JSON = "run.json"
SCORES = "scores.parquet"
_PARTS_LIVE = 14 * 24 * 3600  # seconds that the parts of an interrupted run are kept
_NOUNS = {"patch": "patching", "attribute": "attribution", "direct": "direct-effects"}
FORMAT = 1  # of run.json; raised when a reader of the old one would misread it

SIGN_CONVENTION = (
    "positive means toward clean; effect when denoising = m(patched) - m(corrupted), when noising "
    "= m(clean) - m(patched); recovery = (LD_patched - LD_corrupted) / (LD_clean - LD_corrupted), "
    "LD = logit(answer) - logit(foil)"
)
_PACKAGES = ("sae-circuits", "torch", "transformers", "transformer-lens", "sae-lens", "numpy")
_PACKAGES += ("scikit-learn",)


class RunError(CircuitsError):
    """A run folder that cannot be written or read."""


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on; "-" for a package that is not installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "-"
    return found


def default_folder(task: str, method: str) -> Path:
    """`runs/<task>/<method>-<time>`, with a number behind it when that exists."""
    base = Path("runs") / task / f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def check_new(folder: Path) -> None:
    """Raise `RunError` when a run could not be written to `folder`; call before long work."""
    if folder.exists():
        raise RunError(f"{folder} exists already: give --out another folder, or remove it.")
    parent = next(p for p in [folder.parent, *folder.parent.parents] if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(f"{folder} cannot be made: {parent} is not a folder that you may write to.")


@contextmanager
def new_run(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, renamed to it when the block ends well and removed
    when it does not."""
    check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    prefix = f".partial-{platform.node()}-{os.getpid()}-"
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        yield work
        work.chmod(0o755)  # mkdtemp makes private folders; results are for others too
        work.rename(folder)
    finally:
        if work.exists():
            shutil.rmtree(work)


def _remove_stale(parent: Path) -> None:
    """Remove what killed processes of this machine left behind, and parts nobody came back for."""
    here = f".partial-{platform.node()}-"
    for left in parent.glob(".partial-*"):
        process = left.name.removeprefix(here).split("-")[0]
        if left.name.startswith(here) and process.isdigit() and not _alive(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    for left in parent.glob(".parts-*"):
        if time.time() - left.stat().st_mtime > _PARTS_LIVE:
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Parts:
    """The finished parts of a long run, kept until the run is whole.

    They lie in `<parent>/.parts-<digest>`, the digest being of everything the numbers depend on, so
    that an interrupted command, given again, finds its own parts and no others.
    """

    def __init__(self, parent: Path, key: dict[str, Any]) -> None:
        text = json.dumps(_plain(key), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:20]
        self.folder = parent / f".parts-{digest}"

    def get(self, number: int) -> pd.DataFrame | None:
        """A part that is there and can be read; None otherwise."""
        path = self.folder / f"{number}.parquet"
        if not path.is_file():
            return None
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError):
            return None  # half written on a full disk: it is computed again

    def put(self, number: int, table: pd.DataFrame) -> None:
        """Keep a part; whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        work = self.folder / f"{number}.{platform.node()}-{os.getpid()}"
        table.to_parquet(work, index=False)
        work.rename(self.folder / f"{number}.parquet")

    def clear(self) -> None:
        """Remove the parts, once the run is on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write run.json; NaN becomes null, because JSON has no NaN."""
    text = json.dumps(_plain({"format": FORMAT, **record}), indent=1, allow_nan=False)
    (folder / RUN_JSON).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path | str) -> dict[str, Any]:
    """Read run.json of a finished run; raises `RunError` when the folder is not one."""
    path = Path(folder) / RUN_JSON
    if not path.is_file():
        raise RunError(f"{folder} is not a run: it has no {RUN_JSON}.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is damaged ({error}): run it again.") from error
    if not isinstance(record, dict):
        raise RunError(f"{path} is damaged (it holds no object): run it again.")
    if record.get("format") != FORMAT:
        raise RunError(
            f"{path} has the format {record.get('format')!r}, this version reads {FORMAT}: run it "
            "again with this version, or read it with the one named in its `versions`."
        )
    return record


def read_method(folder: Path | str, method: str) -> dict[str, Any]:
    """The record of a finished run of a method, without its format.

    Raises `RunError` when the folder holds a run of another one, or none.
    """
    record = read_record(folder)
    record.pop("format")
    if record.get("method") != method:
        raise RunError(
            f"{folder} holds a run of {record.get('method')!r}: one of {method!r} is expected."
        )
    return record


def read_pairs_run(
    folder: Path | str, method: str
) -> tuple[pd.DataFrame, PromptPairs, dict[str, Any]]:
    """Scores, pairs and record of a finished run of a method on prompt pairs.

    Raises `RunError` when the folder holds a run of another method, or not a whole one.
    """
    record = read_method(folder, method)
    try:
        prompts = PromptPairs.of_record(record)
    except (KeyError, TypeError) as error:
        raise RunError(
            f"{folder} is not a whole {_NOUNS.get(method, method)} run: {error} is missing from "
            f"{RUN_JSON}."
        ) from error
    return read_scores(folder), prompts, record


def write_scores(folder: Path, scores: pd.DataFrame) -> None:
    """Write scores.parquet."""
    scores.to_parquet(folder / SCORES, index=False)


def read_tables(folder: Path | str, names: Sequence[str]) -> list[pd.DataFrame]:
    """`<name>.parquet` of a run, for each name; raises `RunError` that names one that cannot be
    read."""
    tables = []
    for name in names:
        path = Path(folder) / f"{name}.parquet"
        try:
            tables.append(pd.read_parquet(path))
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}): run it again.") from error
    return tables


def read_scores(folder: Path | str) -> pd.DataFrame:
    """Read scores.parquet; raises `RunError` when it is missing or damaged."""
    (scores,) = read_tables(folder, [Path(SCORES).stem])
    return scores


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy numbers and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
