"""The facts task: questions with answers that can be checked, balanced by type and commonness."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from circuits.fetch import cache_folder
from circuits.labelled import Labelled
from circuits.models.hooked import HookedModel
from circuits.models.load import load_model
from circuits.prompts import Mark, Pair, PromptPairs, tokenise
from circuits.sites import Site
from circuits.task import Prompt, TaskError, check_contrast
from tasks.facts.answering import Answer, answer
from tasks.facts.balance import balanced, halves, records
from tasks.facts.facts import ARITHMETIC, KINDS, Fact, facts
from tasks.facts.questions import (
    PHRASINGS,
    STATEMENTS,
    Question,
    ask,
    best_form,
    is_example,
)
from tasks.facts.reading import is_right, read_answer
from tasks.facts.truthful import answer_truthful, read_truthful

Split = Literal["explored", "held_out"]
_ASKED = 4  # questions for each record wanted: models are seldom right half of the time
_WEIGHT = {"city": 2.0, **dict.fromkeys(ARITHMETIC, 0.6)}  # of a kind in the pool, by what there is
PAIRED = ("capital", "country", "continent", "currency", "symbol")


@dataclass(frozen=True)
class Facts:
    """Questions that the model answers rightly or wrongly.

    Pairs: the same statement about two subjects of as many tokens, with different answers; positive
    logit differences are toward the clean subject's. Named positions: subject, the last token of
    what is asked about; END.
    """

    name: str = "facts"
    description: str = "facts that can be checked: capitals, cities, symbols, sums"
    position_names: tuple[str, ...] = ("subject", "END")
    default_contrast: str = "capital"
    contrasts: Mapping[str, str] = field(
        default_factory=lambda: {
            "capital": "two countries, answered by their capitals",
            "country": "two capitals, answered by their countries",
            "continent": "two countries on different continents",
            "currency": "two countries with different currencies",
            "symbol": "two elements, answered by their symbols",
        }
    )

    def load(self, model: str | None = None, **options: Any) -> Any:
        """The language model; None is the embedded default."""
        return load_model(model, **options)

    def questions(
        self,
        model: Any,
        *,
        pool: int,
        seed: int = 0,
        form: str = "statement",
        kinds: str | Sequence[str] = KINDS,
    ) -> list[Question]:
        """About `pool` questions a kind (twice as many about cities, fewer sums; of countries and
        elements there may be fewer), each fact once in a drawn phrasing.

        form: statement, examples, chat, or auto (chat where the tokenizer has a template, else
        examples). kinds: names, with commas between them. Raises `TaskError` for unknown ones.
        """
        names = [k.strip() for k in kinds.split(",")] if isinstance(kinds, str) else list(kinds)
        how: Any = best_form(model.tokenizer) if form == "auto" else form
        found = []
        for kind in names:
            most = math.ceil(pool * _WEIGHT.get(kind, 1.0))
            for fact in facts([kind], most=most, seed=seed):
                if is_example(fact):
                    continue
                which = random.Random(f"phrasing {seed} {fact.id}").randrange(PHRASINGS)
                found.append(ask(fact, how, which, model.tokenizer))
        return found

    def answers(
        self,
        model: HookedModel,
        questions: Sequence[Question],
        *,
        progress: bool = True,
    ) -> list[Answer]:
        """Greedy answers, kept in the cache folder: the same questions are answered once."""
        return answer(model, questions, folder=cache_folder() / "facts", progress=progress)

    def answered(
        self,
        model: HookedModel,
        *,
        n: int,
        seed: int = 0,
        form: str = "statement",
        kinds: str = ",".join(KINDS),
        pool: int | None = None,
        truthful: str = "",
    ) -> list[Labelled]:
        """`n` records, as many right as wrong for every kind, third of commonness and phrasing.

        Groups are the entity that is asked for or about (for sums the result). pool: questions a
        kind to choose them from, four a record wanted if None. form: statement by default, the
        shortest of them, which base and instruct models can go on with alike.
        truthful: instead of all that, TruthfulQA: "hub", or a file in its format (truthful.py).
        Raises `TaskError` where the pool, or the file, does not give `n`.
        """
        if truthful:
            every = answer_truthful(model, read_truthful(truthful))
            return halves(every, n, seed)
        names = [k.strip() for k in kinds.split(",")]
        size = math.ceil(_ASKED * n / max(1, len(names))) if pool is None else pool
        asked = self.questions(model, pool=size, seed=seed, form=form, kinds=names)
        answers = self.answers(model, asked)
        return records(answers, balanced(answers, n, seed), model.tokenizer)

    @property
    def vector_positions(self) -> tuple[str, ...]:
        """The prompt's last token, from which the answer is begun."""
        return ("p-1",)

    def vectors(
        self, model: HookedModel, records: Sequence[Labelled], sites: Sequence[Site]
    ) -> Float[Tensor, "record site position d_model"]:
        """The activations at `sites` and the prompt's last token."""
        import torch

        from circuits.predict.extract import Positions, extract_vectors

        found = extract_vectors(model, records, sites, Positions(), progress=False)
        return torch.from_numpy(found.values)

    def prompts(
        self,
        model: Any,
        *,
        n: int = 12,
        seed: int = 0,
        form: str = "statement",
    ) -> list[Prompt]:
        """`n` questions to be answered in words, of all kinds in turn; `kind` is the fact's."""
        asked = self.questions(model, pool=math.ceil(2 * n / len(KINDS)) + 4, seed=seed, form=form)
        by_kind = [[q for q in asked if q.fact.kind == kind] for kind in KINDS]
        turns = [q for some in itertools.zip_longest(*by_kind) for q in some if q is not None]
        if n < 1 or len(turns) < n:
            raise TaskError(f"{n} prompts asked for: facts has {len(turns)} at least 1 is needed.")
        return [Prompt(q.prompt, q.fact.kind) for q in turns[:n]]

    def parse(self, response: str, prompt: str) -> Mapping[str, Any]:
        """`said, stop, valid, reason, known, correct` of a response to a prompt of `prompts`.

        Raises `TaskError` for a prompt that asks for none of the facts as a statement.
        """
        fact = _asked().get(prompt)
        if fact is None:
            raise TaskError(f"{prompt!r} is no statement of the facts task: nothing to compare.")
        reading = read_answer(response, fact.kind, ended=False)
        return {**reading.as_dict(), "correct": reading.valid and is_right(fact, reading.said)}

    def pairs(
        self,
        model: Any,
        *,
        contrast: str | None = None,
        n: int = 12,
        seed: int = 0,
        split: Split = "explored",
        prepend_bos: bool | None = None,
    ) -> PromptPairs:
        """`n` pairs of the better known half of a kind's facts; each fact stands in one pair.

        Subjects have as many tokens, answers begin with different ones. held_out takes another
        phrasing. Raises `TaskError` for an unknown contrast and when there are fewer.
        """
        kind = check_contrast(self, contrast)
        if n < 1:
            raise TaskError(f"{n} pairs asked for: at least 1 is needed.")
        chosen = list(itertools.islice(_pairs(model.tokenizer, kind, seed, split), n))
        if len(chosen) < n:
            raise TaskError(
                f"facts ({kind}, {split}) has {len(chosen)} pairs that line up under the tokenizer "
                f"of {model.name}, not {n}: ask for fewer, or choose another contrast."
            )
        return PromptPairs.from_texts(chosen, model.tokenizer, prepend_bos)


def _asked() -> dict[str, Fact]:
    """Facts by the statements that ask for them."""
    return {
        ask(fact, "statement", which, None).prompt: fact
        for fact in facts()
        for which in range(PHRASINGS)
    }


def _pairs(tokenizer: Any, kind: str, seed: int, split: Split) -> Iterator[Pair]:
    template = STATEMENTS[kind][0 if split == "explored" else 1]
    every = sorted(facts([kind]), key=lambda fact: -fact.commonness)
    known = every[: len(every) // 2]
    # By length of the subject in its place, where it may be cut otherwise than alone.
    by_length: dict[tuple[int, ...], list[Fact]] = {}
    for fact in random.Random(f"pairs {kind} {seed} {split}").sample(known, len(known)):
        before, after = template.split("{0}")
        whole = tokenise(tokenizer, before + fact.subject + after, False)
        upto = tokenise(tokenizer, before + fact.subject, False)
        by_length.setdefault((len(whole), len(upto)), []).append(fact)
    couples = []
    for some in by_length.values():
        left = list(some)
        while left:
            clean = left.pop(0)
            other = next((f for f in left if _apart(tokenizer, clean, f)), None)
            if other is not None:
                left.remove(other)
                couples.append((clean, other))
    for clean, corrupted in random.Random(f"order {kind} {seed}").sample(couples, len(couples)):
        texts = [template.format(fact.subject) for fact in (clean, corrupted)]
        begin = template.index("{0}")
        ends = [begin + len(fact.subject) - 1 for fact in (clean, corrupted)]
        answers = [f" {fact.answer}" for fact in (clean, corrupted)]
        marks = {"subject": Mark(ends[0], ends[1])}
        yield Pair(texts[0], texts[1], answers[0], answers[1], marks, f"{kind}.{split}")


def _apart(tokenizer: Any, a: Fact, b: Fact) -> bool:
    """Whether the answers differ in their first token, and none is right for both."""
    first = [tokenizer(f" {f.answer}", add_special_tokens=False)["input_ids"][0] for f in (a, b)]
    return first[0] != first[1] and not set(a.accepted) & set(b.accepted)
