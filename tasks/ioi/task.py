"""The IOI task: who is given the thing. Clean and corrupted differ in one name."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from circuits.models.load import load_model
from circuits.prompts import Mark, Pair, PromptPairs
from circuits.task import TaskError, check_contrast

NAMES = (
    "Mary John Tom James Anna David Sarah Michael Emma Paul Laura Mark Alice Peter Lisa "
    "Robert Kate Daniel Jane Kevin Susan Brian Rachel Steven"
).split()

# {a} and {b} are introduced; {s} is the one of them who acts.
TEMPLATES = {
    "store": "When {a} and {b} went to the store, {s} gave a drink to",
    "park": "After {a} and {b} walked to the park, {s} handed a ball to",
    "work": "While {a} and {b} were at work, {s} gave a letter to",
    "school": "Then {a} and {b} met at the school, and {s} passed a book to",
    "dinner": "When {a} and {b} sat down for dinner, {s} gave the salt to",
}
HELD_OUT = ("school", "dinner")
ORDERS = ("first", "second")  # which of the two names is the indirect object in the clean prompt


@dataclass(frozen=True)
class IndirectObject:
    """Clean: the subject is repeated and the other name, the indirect object, is the answer.
    Corrupted: the indirect object is repeated instead, so that the subject is the answer.

    Named positions: IO and S1, where indirect object and subject are introduced; S2, where a name
    is repeated (the only token that differs); END, the last token.
    """

    name: str = "ioi"
    description: str = "indirect-object identification, a control with a known circuit"
    position_names: tuple[str, ...] = ("IO", "S1", "S2", "END")
    default_contrast: str = "IO/S"
    contrasts: Mapping[str, str] = field(
        default_factory=lambda: {"IO/S": "clean repeats the subject, corrupted the indirect object"}
    )

    def load(self, model: str | None = None, **options: Any) -> Any:
        """The language model; None is the embedded default."""
        return load_model(model, **options)

    def pairs(
        self,
        model: Any,
        *,
        contrast: str | None = None,
        n: int = 12,
        seed: int = 0,
        split: Literal["explored", "held_out"] = "explored",
        prepend_bos: bool | None = None,
    ) -> PromptPairs:
        """`n` distinct pairs, template after template; names are single tokens of `model`.

        Raises `TaskError` for an unknown contrast and when there are fewer than `n`.
        """
        check_contrast(self, contrast)
        if n < 1:
            raise TaskError(f"{n} pairs asked for: at least 1 is needed.")
        chosen = list(itertools.islice(_all_pairs(model.tokenizer, seed, split), n))
        if len(chosen) < n:
            raise TaskError(f"ioi has {len(chosen)} {split} pairs for {model.name}, not {n}.")
        return PromptPairs.from_texts(chosen, model.tokenizer, prepend_bos)


def _single_tokens(tokenizer: Any) -> list[str]:
    return [n for n in NAMES if len(tokenizer(f" {n}", add_special_tokens=False)["input_ids"]) == 1]


def _all_pairs(tokenizer: Any, seed: int, split: str) -> Iterator[Pair]:
    couples = list(itertools.permutations(_single_tokens(tokenizer), 2))
    templates = [t for t in TEMPLATES if (t in HELD_OUT) == (split == "held_out")]
    for template, order in itertools.product(templates, ORDERS):
        shuffled = random.Random(f"{seed} {template} {order}").sample(couples, len(couples))
        for indirect, subject in shuffled:
            yield _pair(template, order, indirect, subject)


def _pair(template: str, order: str, indirect: str, subject: str) -> Pair:
    a, b = (indirect, subject) if order == "first" else (subject, indirect)
    clean = TEMPLATES[template].format(a=a, b=b, s=subject)
    corrupted = TEMPLATES[template].format(a=a, b=b, s=indirect)
    places = {"IO": clean.index(indirect), "S1": clean.index(subject)}
    marks = {name: Mark(place, place) for name, place in places.items()}
    marks["S2"] = Mark(clean.rindex(subject), corrupted.rindex(indirect))
    return Pair(clean, corrupted, f" {indirect}", f" {subject}", marks, f"{template}.io_{order}")
