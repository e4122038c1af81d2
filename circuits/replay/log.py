"""Logs of responses: who wrote what under which intervention, one JSON object a line.

Ours:       feature, condition ("<kind>:<arm>"), trial, prompt, response, and `parsed` where there
            is a reading of the response.
The original study's trials: feature, condition (`safe_baseline`, `risky_with_safe_patch`, ...),
            trial, response, parsed.
The original study's replays: target_feature, target_layer, target_feature_id, patch_condition,
            prompt_type, trial, response; what else they hold (`patch_value`, `all_features`,
            `generated_tokens`) is not read.

Lines are read one at a time, so that a log may be larger than memory. The prompt's family is its
`kind` (safe or risky, say), what was done to the model the `arm`; the arm without any intervention
is "no-op".
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from circuits.errors import CircuitsError
from circuits.jsonl import read_lines
from circuits.runs import RUN_JSON, read_record

NO_OP = "no-op"
RESPONSES = "responses.parquet"
_COLUMNS = ("arm", "kind", "prompt", "trial", "response")
_PARSED = "parsed"
_ORIGINAL = re.compile(r"(safe|risky)_(baseline|with_(?:safe|risky)_patch)")
_UNPATCHED = {"baseline", "none", "no_patch", "unpatched", NO_OP}  # as replays may call it
_ROWS = 4096  # of a parquet file at once
_CUT_OFF = "a log that was cut off ends in half a line: remove it"


class LogError(CircuitsError):
    """A log of responses that cannot be read or written; the message names the line."""


@dataclass(frozen=True)
class Response:
    """What a model wrote.

    feature: the latent that was intervened on, as the log calls it. kind: the prompt's family.
    arm: what was done to the model. trial: which of the prompt's responses, from 0. prompt: which
    prompt of the kind, by its number or text; empty where a log does not say. parsed: what a task
    read in the response.
    """

    feature: str
    kind: str
    arm: str
    trial: int
    prompt: str
    response: str
    parsed: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.kind or not self.arm or ":" in self.kind:
            raise LogError(
                f"kind {self.kind!r} and arm {self.arm!r}: neither may be empty, and a kind holds "
                "no colon."
            )
        if not 0 <= self.trial < 2**31:
            raise LogError(f"trial {self.trial}: trials are numbered from 0.")

    @property
    def condition(self) -> str:
        """KIND:ARM."""
        return f"{self.kind}:{self.arm}"


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a replay run."""
    return (path / RUN_JSON).is_file()


def read_log(path: str | Path) -> Iterator[Response]:
    """Every response of a JSONL file or of a replay run's folder, in order, a few at a time.

    Raises `LogError` for what is missing or cannot be read, with the number of the line or row.
    """
    path = Path(path)
    if is_run(path):
        yield from _read_run(path)
        return
    if not path.is_file():
        raise LogError(
            f"{path} is no log: expected a JSONL file, or the folder of a replay run with its "
            f"{RUN_JSON}."
        )
    empty = True
    for where, entry in read_lines(path, LogError, _CUT_OFF):
        empty = False
        try:
            yield _response(_object(entry))
        except LogError as error:
            raise LogError(f"{where}: {error}") from error
    if empty:
        raise LogError(f"{path} holds no responses: expected one JSON object a line.")


def write_log(path: str | Path, responses: Iterable[Response]) -> int:
    """Write responses as they come, one a line, and return how many there were.

    The file is there whole or not at all. Raises `LogError` when it exists already.
    """
    path = Path(path)
    if path.exists():
        raise LogError(f"{path} exists already: give another name, or remove it.")
    if not path.parent.is_dir():
        raise LogError(f"{path} cannot be written: {path.parent} is no folder.")
    work = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        with work.open("w", encoding="utf-8") as file:
            for one in responses:
                file.write(json.dumps(_entry(one), ensure_ascii=False) + "\n")
                count += 1
        work.rename(path)
    finally:
        work.unlink(missing_ok=True)
    return count


def feature_of(record: Mapping[str, Any]) -> str:
    """What a replay run's record calls the latent it intervened on: SITE/LATENT, several with +.

    The value, mode and place of the change are no part of it, so that runs which differ in them
    have one name and cannot be counted together.

    Raises `LogError` for a record that names none.
    """
    named = record.get("feature")
    if isinstance(named, str) and named:
        return named
    changes = record.get("changes")
    if isinstance(changes, list) and changes:
        return "+".join(dict.fromkeys(f"{c['site']}/{c['latent']}" for c in changes))
    raise LogError("the run's record names no latent (feature, changes): run it again.")


def _entry(one: Response) -> dict[str, Any]:
    entry = asdict(one)
    del entry["kind"], entry["arm"], entry["parsed"]
    entry["condition"] = one.condition
    return entry if one.parsed is None else {**entry, "parsed": dict(one.parsed)}


def _object(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise LogError(f"expected an object with its keys, got {type(found).__name__}.")
    return found


def _response(entry: dict[str, Any]) -> Response:
    if "condition" in entry:
        return _of_trial(entry)
    if "patch_condition" in entry:
        return _of_replay(entry)
    raise LogError(
        "no condition: expected the keys feature, condition, trial, prompt, response (or those of "
        "the original study: target_feature, patch_condition, prompt_type, trial, response)."
    )


def _of_trial(entry: dict[str, Any]) -> Response:
    condition = _text(entry, "condition")
    match = _ORIGINAL.fullmatch(condition)
    kind, colon, arm = condition.partition(":")
    if match:
        kind, arm = match.group(1), _original_arm(match.group(2))
    elif not (colon and kind and arm):
        raise LogError(
            f"condition {condition!r}: expected KIND:ARM such as risky:no-op, or one of the "
            "original study's such as risky_baseline and risky_with_safe_patch."
        )
    if "prompt" not in entry and not match:
        raise LogError("no prompt: expected its number or text.")
    return _made(entry, _name(entry, "feature"), kind, arm)


def _of_replay(entry: dict[str, Any]) -> Response:
    kind = _text(entry, "prompt_type")
    given = entry["patch_condition"]
    condition = NO_OP if given is None else _text(entry, "patch_condition")
    match = _ORIGINAL.fullmatch(condition)
    if match and match.group(1) != kind:
        raise LogError(f"patch_condition {condition!r} and prompt_type {kind!r} contradict.")
    arm = _original_arm(match.group(2) if match else condition)
    if "target_feature" in entry:
        feature = _name(entry, "target_feature")
    else:
        feature = f"L{_name(entry, 'target_layer')}-{_name(entry, 'target_feature_id')}"
    return _made(entry, feature, kind, arm)


def _original_arm(text: str) -> str:
    return NO_OP if text in _UNPATCHED else text.removeprefix("with_")


def _made(entry: dict[str, Any], feature: str, kind: str, arm: str) -> Response:
    trial, parsed = entry.get("trial"), entry.get("parsed")
    if isinstance(trial, bool) or not isinstance(trial, int):
        raise LogError(f"trial {trial!r}: expected a whole number.")
    if parsed is not None and not isinstance(parsed, dict):
        raise LogError(f"parsed {parsed!r}: expected an object.")
    prompt = _name(entry, "prompt") if "prompt" in entry else ""
    return Response(feature, kind, arm, trial, prompt, _text(entry, "response"), parsed)


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise LogError(f"{key} {'is missing' if value is None else repr(value)}: expected a text.")
    return value


def _name(entry: dict[str, Any], key: str) -> str:
    """A text, or a number as text."""
    value = entry.get(key)
    return str(value) if type(value) is int else _text(entry, key)


def _read_run(folder: Path) -> Iterator[Response]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    record = read_record(folder)
    if record.get("method") != "replay":
        raise LogError(f"{folder} holds a run of {record.get('method')!r}, not of replay.")
    feature = feature_of(record)
    path = folder / RESPONSES
    try:
        with pq.ParquetFile(path) as file:
            lacking = [c for c in _COLUMNS if c not in file.schema_arrow.names]
            if lacking:
                raise LogError(f"{path} has no column {', '.join(lacking)}.")
            row = 0
            more = [_PARSED] if _PARSED in file.schema_arrow.names else []
            for batch in file.iter_batches(_ROWS, columns=[*_COLUMNS, *more]):
                for entry in batch.to_pylist():
                    row += 1
                    if isinstance(entry.get(_PARSED), str):  # JSON in a table
                        entry[_PARSED] = json.loads(entry[_PARSED])
                    try:
                        made = _made(entry, feature, _text(entry, "kind"), _text(entry, "arm"))
                    except LogError as error:
                        raise LogError(f"{path}, row {row}: {error}") from error
                    yield made
    except (OSError, pa.ArrowInvalid) as error:
        raise LogError(f"{path} cannot be read ({error}): run it again.") from error
