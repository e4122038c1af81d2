"""Clean and corrupted GSM-Symbolic problems: one template, one number of the question changed.

A template's draws are repeated but for one. Kept are pairs whose questions are the same text but
for a single number and equally long under the tokenizer, and whose answers begin with different
tokens, since a logit difference is measured at one token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from circuits.prompts import Mark, Pair, tokenise
from tasks.gsm8k_thoughts.checkpoint import number_prefix
from tasks.gsm8k_thoughts.gsm8k.problems import GsmError, Number, Problem, parse_number
from tasks.gsm8k_thoughts.gsm8k.symbolic import Draws, make_problem, sensible, templates

ANSWER_PREFIX = "The answer is:"
_NUMBERS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_PIECES = re.compile(rf"{_NUMBERS}|[^\W\d_]+|\s+|.")
_TRIES = 60  # changed draws of one problem
_ROUNDS = 20  # problems of one template for one pair


@dataclass(frozen=True)
class ProblemPair:
    """Two problems whose questions differ in one number.

    operand: what the template calls it ("" where no variable has both values). was, now: the number
    in the clean and in the corrupted question. start: its first character, the same in both.
    """

    clean: Problem
    corrupted: Problem
    operand: str
    was: Number
    now: Number
    start: int

    def __post_init__(self) -> None:
        if self.clean.group != self.corrupted.group:
            raise GsmError("the problems of a pair are of one template.")
        if self.clean.answer == self.corrupted.answer or self.was == self.now:
            raise GsmError("the problems of a pair differ in an operand and in their answers.")
        if changed_number(self.clean.question, self.corrupted.question) is None:
            raise GsmError("the questions of a pair differ in one number.")

    def as_pair(self, tokenizer: Any, prefix: str = f"\n{ANSWER_PREFIX}") -> Pair:
        """For `PromptPairs.from_texts`, without thoughts: each question, `prefix`, the answers.

        The space between prefix and answer is put on the side where the tokenizer has it. The
        position `operand` is the first token of the changed number.
        """
        spaced = _space_apart(tokenizer, prefix.strip())
        before, after = (f"{prefix} ", "") if spaced else (prefix, " ")
        return Pair(
            clean=f"{self.clean.question}{before}",
            corrupted=f"{self.corrupted.question}{before}",
            answer=f"{after}{self.clean.answer}",
            foil=f"{after}{self.corrupted.answer}",
            marks={"operand": Mark(self.start, self.start)},
            template=self.clean.group,
        )


def _space_apart(tokenizer: Any, prefix: str) -> bool:
    alone = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    return len(number_prefix(tokenizer, prefix)) > len(alone)


def changed_number(clean: str, corrupted: str) -> tuple[int, Number, Number] | None:
    """(first character, number in clean, number in corrupted) where the texts differ in exactly one
    number and in nothing else; None where they do not."""
    left, right = _PIECES.findall(clean), _PIECES.findall(corrupted)
    if len(left) != len(right):
        return None
    places = [i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b]
    if len(places) != 1:
        return None
    was, now = left[places[0]], right[places[0]]
    if not (was[0].isdigit() and now[0].isdigit()):
        return None
    return sum(map(len, left[: places[0]])), parse_number(was), parse_number(now)


def symbolic_pairs(
    tokenizer: Any, n: int, *, seed: int = 0, split: Literal["train", "test"] | None = None
) -> tuple[ProblemPair, ...]:
    """`n` pairs of GSM-Symbolic problems, from as many templates as possible.

    tokenizer: of the model that will read them. split: as in `gsm8k_problems`. All answers are
    whole numbers. Raises `GsmError` when the templates do not give `n` pairs.
    """
    if n < 1:
        raise GsmError(f"n={n}: at least one pair was expected.")
    numbers = list(templates(split))
    Random(seed).shuffle(numbers)
    prefix = number_prefix(tokenizer, ANSWER_PREFIX)
    found: dict[str, ProblemPair] = {}
    barren: set[int] = set()
    turn = 0
    while len(found) < n and len(barren) < len(numbers):
        template = numbers[turn % len(numbers)]
        if template not in barren:
            pair = _pair(template, f"{seed}.{turn}", tokenizer, prefix, found)
            if pair is None:
                barren.add(template)
            else:
                found[pair.clean.question] = pair
        turn += 1
    if len(found) < n:
        raise GsmError(
            f"the templates gave {len(found)} pairs of equal token length, {n} were asked for: ask "
            "for fewer, or another seed."
        )
    return tuple(found.values())


def _pair(
    template: int, seed: str, tokenizer: Any, prefix: tuple[int, ...], known: dict[str, ProblemPair]
) -> ProblemPair | None:
    for attempt in range(_ROUNDS):
        name = f"{seed}.{attempt}"
        draws = Draws(name)
        clean, variables = make_problem(template, name, draws)
        if clean.question in known or not _measurable(clean):
            continue
        for variant in range(_TRIES):
            changed = Draws(name, variant % draws.count, variant)
            corrupted, others = make_problem(template, f"{name}.changed{variant}", changed)
            change = changed_number(clean.question, corrupted.question)
            if change is None or not _measurable(corrupted):
                continue
            if _comparable(clean, corrupted, tokenizer, prefix):
                start, was, now = change
                both = ((key, variables[key], others.get(key)) for key in variables)
                operand = next((key for key, a, b in both if (a, b) == (was, now)), "")
                return ProblemPair(clean, corrupted, operand, was, now, start)
    return None


def _measurable(problem: Problem) -> bool:
    return sensible(problem) and isinstance(problem.answer, int)


def _comparable(
    clean: Problem, corrupted: Problem, tokenizer: Any, prefix: tuple[int, ...]
) -> bool:
    questions = [tokenise(tokenizer, p.question, False) for p in (clean, corrupted)]
    answers = [
        tokenise(tokenizer, f"{ANSWER_PREFIX} {p.answer}", False) for p in (clean, corrupted)
    ]
    if len(questions[0]) != len(questions[1]):
        return False
    whole = all(ids[: len(prefix)] == prefix for ids in answers)
    return whole and answers[0][len(prefix)] != answers[1][len(prefix)]
