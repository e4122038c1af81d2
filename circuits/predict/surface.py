"""What is known of a problem without looking into the model: numbers of its text, and the records'
own surface numbers, in the groups that baselines are made of."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from circuits.labelled import Labelled

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_OPERATORS = re.compile(
    r"[-+*/%=^\u00d7\u00f7]|\b(?:plus|minus|times|half|twice|double|triple|each|every|more|less|"
    r"fewer|total|left|per|percent|remaining)\b"
)
QUESTION = (
    *("characters", "words", "sentences", "numbers", "distinct_numbers", "digits"),
    *("largest", "smallest", "mean_number", "sum", "first", "last", "decimals", "operators"),
)
_STEPS = re.compile("step|depth|hop", re.IGNORECASE)
_OUTPUT = re.compile("entropy|prob|confidence|perplexity|margin|nll", re.IGNORECASE)


def is_output(name: str) -> bool:
    """Whether a surface number of this name is one of the model's output."""
    return not _STEPS.search(name) and _OUTPUT.search(name) is not None


def numbers_in(text: str) -> list[float]:
    """The numbers of a text, in order."""
    return [float(n.replace(",", "")) for n in _NUMBER.findall(text)]


def question_numbers(text: str) -> list[float]:
    """The surface of a text: one number for each of `QUESTION`.

    Sizes of numbers enter as the logarithm of one more than their size.
    """
    found = numbers_in(text)
    sizes = np.log1p(found or [0.0])
    counted = [
        len(text),
        len(text.split()),
        len(re.findall(r"[.!?\n]+", text)),
        len(found),
        len(set(found)),
        sum(c.isdigit() for c in text),
        sizes.max(),
        sizes.min(),
        sizes.mean(),
        np.log1p(sum(found)),
        sizes[0],
        sizes[-1],
        sum(n != int(n) for n in found),
        len(_OPERATORS.findall(text.lower())),
    ]
    return [float(number) for number in counted]


def surface_groups(
    records: Sequence[Labelled],
) -> dict[str, Float[np.ndarray, "record number"]]:
    """Baselines' features by name.

    question: of the prompt's text. completion: of the answer's text, where there are any. steps,
    output, given: the records' own surface numbers, by their names (step count; entropy and
    probability of the answer; all others); NaN where a record lacks one. all: everything together,
    where there is more than the question.
    """
    found = {"question": np.array([question_numbers(r.prompt) for r in records], dtype=float)}
    if any(r.completion for r in records):
        found["completion"] = np.array([question_numbers(r.completion) for r in records], float)
    names = sorted({name for r in records for name in r.surface})
    kinds: dict[str, list[str]] = {}
    for name in names:
        kind = "steps" if _STEPS.search(name) else "output" if _OUTPUT.search(name) else "given"
        kinds.setdefault(kind, []).append(name)
    for kind in ("steps", "output", "given"):
        if kind in kinds:
            rows = [[r.surface.get(name, np.nan) for name in kinds[kind]] for r in records]
            found[kind] = np.array(rows, dtype=float)
    if len(found) > 1:
        found["all"] = np.concatenate(list(found.values()), axis=1)
    return found
