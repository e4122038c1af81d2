"""Grade-school problems with a number as answer, and a strict reading of that number.

Sources: `openai/gsm8k` on the Hugging Face hub (Cobbe et al. 2021, arXiv:2110.14168), a JSONL or
parquet file in its layout, or GSM-Symbolic (Mirzadeh et al. 2024, arXiv:2410.05229), whose
templates `reasoning-gym` has, without a network. Twins, problems that differ in their numbers only,
are in one `group`: what is fitted on some problems and tested on others must be split by it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from circuits.errors import CircuitsError
from circuits.jsonl import read_lines

HUB, SYMBOLIC = "openai/gsm8k", "symbolic"
_MARK = "####"
_FILES = (".jsonl", ".parquet")
Number = int | float

_NUMBER = re.compile(
    r"(?P<sign>[-\u2212]?)[$€£¥]?\s?"
    r"(?P<whole>\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?P<part>\.\d+)?"
    r"\s?(?:%|[A-Za-z][A-Za-z ]*)?\.?"
)


class GsmError(CircuitsError):
    """Problems that are not there, cannot be read, or have no number as answer."""


@dataclass(frozen=True)
class Problem:
    """A question, the number that answers it, and how it comes about.

    id: unique in its source. steps: lines of the worked solution, as written; () when there is
    none. group: shared by problems that differ only in their numbers, or are of one template.
    """

    id: str
    question: str
    answer: Number
    steps: tuple[str, ...]
    group: str

    def __post_init__(self) -> None:
        if not (self.id and self.question.strip() and self.group):
            raise GsmError(f"problem {self.id!r}: id, question and group must not be empty.")


def parse_number(text: str) -> Number:
    """The number that `text` is: an int when it is whole, else a float.

    Thousands may be set off by commas; a currency sign before and a unit (words or %) after are
    left out. Anything else, such as a fraction, two numbers, "1,00" or "1e3", raises `GsmError`.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise GsmError(
            f"{text.strip()!r} is no number: digits, with commas between thousands, a decimal "
            "point, a minus or a unit, such as -1,234.5 or $12 or 30 minutes, were expected."
        )
    whole, part = match["whole"].replace(",", "") or "0", match["part"] or ""
    value: Number = float(whole + part) if part.strip(".0") else int(whole)
    return -value if match["sign"] else value


def parse_solution(text: str) -> tuple[Number, tuple[str, ...]]:
    """Answer and steps of a worked solution that ends in a line "#### N"."""
    before, *after = text.split(_MARK)
    if len(after) != 1:
        raise GsmError(
            f"the answer has {len(after)} marks {_MARK!r}: one was expected, with the number after "
            f"it, in {text[-60:]!r}."
        )
    steps = tuple(line.strip() for line in before.splitlines() if line.strip())
    return parse_number(after[0]), steps


def group_of(question: str) -> str:
    """A name shared by questions that differ in their numbers only."""
    masked = re.sub(r"\d+(?:[.,]\d+)*", "#", " ".join(question.lower().split()))
    return f"text/{hashlib.sha256(masked.encode()).hexdigest()[:16]}"


def gsm8k_problems(
    source: str | Path | None = None,
    *,
    split: Literal["train", "test"] | None = None,
    n: int | None = None,
    seed: int = 0,
) -> tuple[Problem, ...]:
    """Problems from one source.

    source: None or "openai/gsm8k" for the hub; "symbolic" for GSM-Symbolic (the extra `gsm`); or a
        JSONL or parquet file whose rows have the texts `question` and `answer` ("... #### N") and
        may have `id` and `group`.
    split: "train" or "test"; None is "test" on the hub, and all templates of "symbolic", whose two
        splits have no template in common. A file is one split: only None.
    n: how many, drawn with `seed` without replacement; None takes all, in order ("symbolic" has no
        end: n is needed).

    Raises `GsmError`; of a row that cannot be read it names the line (or row) and what is wrong.
    """
    if n is not None and n < 1:
        raise GsmError(f"n={n}: at least one problem was expected.")
    if source == SYMBOLIC:
        from tasks.gsm8k_thoughts.gsm8k.symbolic import symbolic_problems

        if n is None:
            raise GsmError("n= is needed: templates make any number of problems.")
        return symbolic_problems(n, seed=seed, split=split)
    if source is None or source == HUB:
        return _some(_from_hub(split or "test"), n, seed, HUB)
    if split is not None:
        raise GsmError(f"split={split!r}, but the file {source} is one split: leave it out.")
    return _some(_from_file(Path(source)), n, seed, str(source))


def _some(
    problems: Sequence[Problem], n: int | None, seed: int, source: str
) -> tuple[Problem, ...]:
    if n is None:
        return tuple(problems)
    if n > len(problems):
        raise GsmError(f"n={n}, but {source} has {len(problems)} problems: ask for fewer.")
    return tuple(Random(seed).sample(list(problems), n))


def _from_hub(split: str) -> list[Problem]:
    import datasets

    try:
        rows = list(datasets.load_dataset(HUB, "main", split=split))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise GsmError(
            f"{HUB} could not be read from the hub: {reason.rstrip('.')}. It needs a network once; "
            f"without one, give a file (JSONL or parquet), or {SYMBOLIC!r} with the extra `gsm`."
        ) from error
    return _problems(((f"{HUB}, {split}, row {i}", row) for i, row in enumerate(rows)), split)


def _from_file(path: Path) -> list[Problem]:
    if path.suffix not in _FILES or not path.is_file():
        raise GsmError(
            f"{path} is no file of problems: {HUB!r}, {SYMBOLIC!r}, or a file ending in "
            f"{' or '.join(_FILES)} was expected."
        )
    lines = read_lines(path, GsmError) if path.suffix == ".jsonl" else _rows(path)
    return _problems(lines, path.stem)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise GsmError(f"{path} cannot be read as parquet: {error}.") from error
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row


def _problems(rows: Iterable[tuple[str, Any]], name: str) -> list[Problem]:
    """rows: where each stands, and its content. name: the beginning of ids that are made up."""
    found = [_problem(row, where, f"{name}/{i}") for i, (where, row) in enumerate(rows)]
    if not found:
        raise GsmError(f"{name} holds no problems.")
    twice = [key for key, count in Counter(p.id for p in found).items() if count > 1]
    if twice:
        raise GsmError(
            f"{name}: {len(twice)} ids stand for more than one problem ({', '.join(twice[:3])}): "
            "ids are what results are joined by."
        )
    return found


def _problem(row: Any, where: str, made_up: str) -> Problem:
    given: Mapping[str, Any] = row if isinstance(row, dict) else {}
    wrong = [key for key in ("question", "answer") if not isinstance(given.get(key), str)]
    if wrong:
        raise GsmError(
            f"{where}: missing or not a text: {', '.join(wrong)}. Expected question and answer, "
            f'the latter ending in "{_MARK} N".'
        )
    key, group = (given.get(k) for k in ("id", "group"))
    try:
        answer, steps = parse_solution(given["answer"])
        return Problem(
            id=made_up if key is None else str(key),
            question=given["question"],
            answer=answer,
            steps=steps,
            group=group_of(given["question"]) if group is None else str(group),
        )
    except GsmError as error:
        raise GsmError(f"{where}: {error}") from error
