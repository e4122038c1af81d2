"""Answered problems with labels: what errors are predicted from, and where files of them are read.

A record is a prompt, the model's completion, and whether it is correct. Its group is what must
stay on one side of every split: a problem and its variants.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.errors import CircuitsError
from circuits.jsonl import read_lines

ERROR = "wrong"  # the target there always is: whether the answer is wrong
_NEEDED: dict[str, type] = {"id": str, "group": str, "prompt": str, "completion": str}
Label = str | int | bool


class LabelError(CircuitsError):
    """Labelled records that cannot be read, or from which nothing can be learned."""


@dataclass(frozen=True)
class Labelled:
    """One answered problem.

    id: its own. group: of the problems that must never be split. correct: whether the completion
        is.
    labels: other targets by name, such as the type of error.
    surface: numbers that are known without looking into the model, by name: step count, output
        entropy, the answer's probability.
    """

    id: str
    group: str
    prompt: str
    completion: str
    correct: bool
    labels: Mapping[str, Label] = field(default_factory=dict)
    surface: Mapping[str, float] = field(default_factory=dict)
    compared: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "group", "prompt"):
            if not getattr(self, name):
                raise LabelError(f"a record has an empty {name} (id {self.id!r}).")
        wrong = [k for k, v in self.surface.items() if not math.isfinite(v)]
        if wrong:
            raise LabelError(
                f"record {self.id!r}: {', '.join(wrong)} is no finite number: leave it out."
            )

    @property
    def digest(self) -> str:
        """Of the prompt; stored beside vectors, so that they can be seen to be this record's."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:16]

    @property
    def text(self) -> str:
        """What is compared with other records' to find duplicates and twins."""
        return self.compared or self.prompt

    def target(self, name: str = ERROR) -> Label:
        """A label; `wrong` is whether the answer is. Raises `LabelError` where it has none."""
        if name == ERROR:
            return not self.correct
        if name not in self.labels:
            raise LabelError(
                f"record {self.id!r} has no label {name!r}: it has "
                f"{', '.join([ERROR, *self.labels])}."
            )
        return self.labels[name]


def read_labelled(path: str | Path, surface: Sequence[str] = ()) -> list[Labelled]:
    """Read a JSONL file: one object a line with `id, group, prompt, completion, correct`.

    A text `compared`, if there is one, is what duplicates and twins are looked for in, instead of
    the prompt. Other keys become labels (texts, whole numbers, booleans) or, for fractions, the
    keys named in `surface`, and the object under "surface", surface numbers; null is left out. Ids
    and groups may be whole numbers. Raises `LabelError` naming the line of the first mistake.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"the file of labelled records {path} does not exist.")
    records = []
    for where, entry in read_lines(path, LabelError):
        try:
            records.append(_record(entry, set(surface)))
        except LabelError as error:
            raise LabelError(f"{where}: {error}") from error
    if not records:
        raise LabelError(f"{path} holds no records: expected one JSON object a line.")
    check_ids((r.id for r in records), str(path))
    return records


def _record(entry: Any, surface: set[str]) -> Labelled:
    if not isinstance(entry, dict):
        raise LabelError("expected an object.")
    given = dict(entry)
    for name in ("id", "group"):
        if isinstance(given.get(name), int) and not isinstance(given[name], bool):
            given[name] = str(given[name])
    wrong = [k for k, kind in _NEEDED.items() if not isinstance(given.get(k), kind)]
    wrong += [k for k in ("compared",) if not isinstance(given.get(k, ""), str)]
    if not isinstance(given.get("correct"), bool):
        wrong.append("correct")
    if wrong:
        raise LabelError(
            f"missing or of another type: {', '.join(wrong)}. Expected texts id, group, prompt, "
            "completion (and compared, if any), and correct as true or false."
        )
    numbers = given.pop("surface", {})
    if not isinstance(numbers, dict):
        raise LabelError("surface is no object of numbers.")
    labels: dict[str, Label] = {}
    for key in [k for k in given if k not in (*_NEEDED, "correct", "compared")]:
        value = given.pop(key)
        if value is None:
            continue
        if isinstance(value, float) or key in surface:
            numbers = {**numbers, key: value}
        elif isinstance(value, (str, int)):
            labels[key] = value
        else:
            raise LabelError(f"{key} is neither a text, a number, nor true or false.")
    bad = [k for k, v in numbers.items() if isinstance(v, bool) or not isinstance(v, (int, float))]
    if bad:
        raise LabelError(f"surface numbers that are none: {', '.join(bad)}.")
    return Labelled(**given, labels=labels, surface={k: float(v) for k, v in numbers.items()})


def write_labelled(path: str | Path, records: Iterable[Labelled]) -> None:
    """Write records as `read_labelled` reads them."""
    with Path(path).open("w", encoding="utf-8") as file:
        for r in records:
            entry: dict[str, Any] = {"id": r.id, "group": r.group, "prompt": r.prompt}
            entry |= {"completion": r.completion, "correct": r.correct, **r.labels}
            if r.compared:
                entry["compared"] = r.compared
            if r.surface:
                entry["surface"] = dict(r.surface)
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def check_ids(ids: Iterable[str], what: str) -> None:
    """Raise `LabelError` that names ids which occur more than once."""
    repeated = [name for name, n in Counter(ids).items() if n > 1]
    if repeated:
        raise LabelError(
            f"{what}: {named(repeated)} more than once; every record needs its own id."
        )


def named(ids: Sequence[str], most: int = 5) -> str:
    """Some ids in words: "id 'a'", "ids 'a', 'b' and 3 more"."""
    shown = ", ".join(repr(i) for i in ids[:most])
    rest = f" and {len(ids) - most} more" if len(ids) > most else ""
    return f"id{'s' if len(ids) > 1 else ''} {shown}{rest}"


def check_labels(records: Sequence[Labelled], target: str, folds: int) -> list[Label]:
    """The classes of a target, sorted as texts; False before True.

    Raises `LabelError` when a record lacks the label, when there is one class only, and when a
    class is in too few groups for `folds` outer folds with two inner ones.
    """
    groups: dict[Label, set[str]] = {}
    for record in records:
        groups.setdefault(record.target(target), set()).add(record.group)
    if len(groups) < 2:
        only = next(iter(groups), None)
        raise LabelError(
            f"all {len(records)} records have {target} = {only!r}: two classes at least are needed."
        )
    if len(groups) > 20:
        raise LabelError(
            f"{target} has {len(groups)} values: that is no class. Expected at most 20."
        )
    few = {label: len(found) for label, found in groups.items() if len(found) < 2 * folds}
    if few:
        which = ", ".join(f"{target} = {label!r} in {n}" for label, n in few.items())
        raise LabelError(
            f"too few groups: {which}; {folds} folds need {2 * folds} groups with every class. "
            "Take fewer folds, or more records."
        )
    return sorted(groups, key=str)
