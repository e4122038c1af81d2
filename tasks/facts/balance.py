"""Right and wrong answers in equal numbers, for every kind, commonness and phrasing; their records.

Phrasings differ in how often they are answered right, so that without them in the strata a right
answer could be told by its wording: the leak audit of `circuits.predict` found that (prompts that
differ in one word agreed in their labels).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits.labelled import Labelled
from circuits.task import TaskError
from tasks.facts.answering import Answer
from tasks.facts.facts import KINDS
from tasks.facts.words import folded

BINS = 3  # of commonness: thirds of the facts of a kind that were asked
Stratum = tuple[str, int, int]  # kind, commonness bin, phrasing


def bins(answers: Sequence[Answer]) -> list[int]:
    """The commonness bin of every answer's fact, 0 the least common; thirds of its kind.

    Told by rank among all that were asked, read or not, so that no label takes part.
    """
    values = {kind: _sorted(answers, kind) for kind in {a.question.fact.kind for a in answers}}
    found = []
    for one in answers:
        fact = one.question.fact
        every = values[fact.kind]
        below = np.searchsorted(every, fact.commonness, "left")
        found.append(min(BINS - 1, int(BINS * below / len(every))))
    return found


def _sorted(answers: Sequence[Answer], kind: str) -> np.ndarray:
    facts = [a.question.fact for a in answers]
    return np.sort([fact.commonness for fact in facts if fact.kind == kind])


def balanced(answers: Sequence[Answer], n: int | None = None, seed: int = 0) -> list[int]:
    """Numbers of answers such that every stratum, kind by commonness bin by phrasing, has as many
    right as wrong ones; `n` together, or as many as there are.

    Answers that could not be read are never taken. Where there are more than `n`, the largest
    strata give way first. Raises `TaskError` for an odd `n`, and where there are fewer.
    """
    if n is not None and (n < 2 or n % 2):
        raise TaskError(f"{n} answers: an even number is needed, half of them right.")
    strata: dict[Stratum, tuple[list[int], list[int]]] = {}
    for i, (one, common) in enumerate(zip(answers, bins(answers), strict=True)):
        if one.reading.valid:
            key = (one.question.fact.kind, common, one.question.phrasing)
            sides = strata.setdefault(key, ([], []))
            sides[one.correct].append(i)
    room = {key: min(map(len, sides)) for key, sides in sorted(strata.items())}
    total = sum(room.values())
    wanted = total if n is None else n // 2
    if total < max(wanted, 1):
        raise TaskError(
            f"{2 * total} balanced answers, not {n or 2}: of {len(answers)} questions "
            f"{sum(a.correct for a in answers)} were answered right and "
            f"{sum(a.reading.valid and not a.correct for a in answers)} wrong. Ask for fewer, or "
            "raise pool, the questions a kind is asked."
        )
    taken = _levelled(room, wanted)
    found = []
    for key, count in taken.items():
        draw = random.Random(f"balance {seed} {key}")
        for side in strata[key]:
            found += draw.sample(side, count)
    return sorted(found)


def halves(every: Sequence[Labelled], n: int, seed: int = 0) -> list[Labelled]:
    """`n` of the records, half of them right; raises `TaskError` for an odd `n` or too few."""
    if n < 2 or n % 2:
        raise TaskError(f"{n} answers: an even number is needed, half of them right.")
    sides = [[r for r in every if r.correct is right] for right in (False, True)]
    if min(map(len, sides)) < n // 2:
        raise TaskError(
            f"{2 * min(map(len, sides))} balanced answers, not {n}: of {len(every)} questions "
            f"{len(sides[1])} were answered right. Ask for fewer."
        )
    draw = random.Random(f"halves {seed}")
    kept = {r.id for side in sides for r in draw.sample(side, n // 2)}
    return [r for r in every if r.id in kept]


def _levelled(room: Mapping[Stratum, int], wanted: int) -> dict[Stratum, int]:
    """As even as there is room for: the level to which all are cut, and one more for the first."""
    level = max(room.values())
    while sum(min(level, r) for r in room.values()) > wanted:
        level -= 1
    taken = {key: min(level, r) for key, r in room.items()}
    left = wanted - sum(taken.values())
    for key, r in room.items():
        if left and r > taken[key]:
            taken[key] += 1
            left -= 1
    return taken


def records(answers: Sequence[Answer], chosen: Sequence[int], tokenizer: Any) -> list[Labelled]:
    """The chosen answers as records for `circuits.predict` and `circuits.tracks`.

    surface has what can be known without looking into the model: kind, commonness, phrasing; the
    share of the answers to this kind of question that say the same, over all that were asked, and
    the logarithm of the rank (id) of the answer's first token in the tokenizer; and the model's
    output: entropy over the first token (nats), probability of the answer and of its first token.
    """
    common = bins(answers)
    said = Counter((a.question.fact.kind, folded(a.completion)) for a in answers)
    asked = Counter(a.question.fact.kind for a in answers)
    found = []
    for i in chosen:
        one = answers[i]
        fact, kind = one.question.fact, one.question.fact.kind
        ids = tokenizer(one.completion, add_special_tokens=False)["input_ids"]
        surface = {f"type_{name}": float(kind == name) for name in KINDS}
        surface |= {
            "commonness": _size(fact.commonness),
            "subject_commonness": _size(
                fact.commonness if fact.subject_commonness is None else fact.subject_commonness
            ),
            "phrasing_number": float(one.question.phrasing),
            "said_share": said[kind, folded(one.completion)] / asked[kind],
            "said_rank": math.log1p(ids[0]),
            "output_entropy": one.entropy,
            "answer_probability": one.probability,
            "first_token_probability": one.first,
        }
        found.append(
            Labelled(
                id=one.question.id,
                group=fact.entity,
                prompt=one.question.prompt,
                completion=one.completion,
                correct=one.correct,
                labels={
                    "type": kind,
                    "subject": fact.subject,
                    "expected": fact.answer,
                    "said": one.reading.said,
                    "made_up": not one.reading.known,
                    "phrasing": one.question.phrasing,
                    "commonness_bin": common[i],
                },
                surface=surface,
                compared=one.question.asked,
            )
        )
    return found


def _size(commonness: float) -> float:
    """People by their logarithm; what is negative is small already."""
    return math.log1p(commonness) if commonness > 0 else commonness


def table(answers: Sequence[Answer], chosen: Sequence[int] = ()) -> pd.DataFrame:
    """Per kind, and for all: how many were asked, right, wrong (of them made up), not read, and how
    many of each side were chosen."""
    taken = set(chosen)
    rows = []
    for kind in [*dict.fromkeys(a.question.fact.kind for a in answers), "all"]:
        some = [(i, a) for i, a in enumerate(answers) if kind in ("all", a.question.fact.kind)]
        rows.append(
            {
                "kind": kind,
                "asked": len(some),
                "right": sum(a.correct for _, a in some),
                "wrong": sum(a.reading.valid and not a.correct for _, a in some),
                "made up": sum(not a.reading.known for _, a in some),
                "not read": sum(not a.reading.valid for _, a in some),
                "chosen right": sum(a.correct and i in taken for i, a in some),
                "chosen wrong": sum(not a.correct and i in taken for i, a in some),
            }
        )
    return pd.DataFrame(rows)
