"""Clean and corrupted chains: of equal length, both solved by the model, different in operands.

- *first*: the first number is another one, so every value behind it changes.
- *later*: the operand of the last step but one; the values before that stay, the last one before
  the answer does not.
- *last*: the operand of the last step; the answer changes and no value before it.
- *null*: the operands of the first and of the last step differ such that every value between is the
  same. What carries such a value must transfer nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from circuits.models.hooked import HookedModel
from circuits.prompts import Mark, Pair
from circuits.task import TaskError
from tasks.gsm8k_thoughts.chains import Chains, Vocabulary, draw_chains
from tasks.gsm8k_thoughts.model import CodiThoughts, thoughts_of

FAMILIES = {
    "first": "another first number: every value changes",
    "later": "another operand of the last step but one: the value before the answer changes",
    "last": "another last operand: only the answer changes",
    "null": "other operands, the same values before the answer: nothing may transfer",
}
_AT_ONCE = 256
_CANDIDATES = 4096  # of which about one in twenty is a couple
_TRIES = 40  # batches of candidates before it is said that there are too few pairs
Changed = tuple[Chains, NDArray[np.bool_]]


def layout_text(thoughts: CodiThoughts, question: str, vocabulary: Vocabulary) -> str:
    """A whole prompt as text, up to where the answer follows."""
    tokens, words = thoughts.tokens, vocabulary.words
    ids = (*tokens.before, *[tokens.pad] * tokens.thoughts, *tokens.after)
    return " ".join([question, *(words[i] for i in (*ids, *tokens.answer_prefix_ids))])


def prompts_of(model: HookedModel, chains: Chains) -> Int[torch.Tensor, "problem position"]:
    """Token ids up to where the answer follows."""
    thoughts = thoughts_of(model)
    vocabulary = chain_vocabulary(model)
    layout = thoughts.tokens.lay_out(())
    questions = torch.from_numpy(vocabulary.questions(chains))
    return torch.cat([questions, torch.tensor(layout.tokens).expand(len(chains), -1)], 1)


def chain_vocabulary(model: HookedModel) -> Vocabulary:
    """The words of a model that was trained on chains; raises `TaskError` for others."""
    vocabulary = thoughts_of(model).vocabulary
    if vocabulary is None:
        raise TaskError(f"{model.name} was not trained on chains of additions.")
    return vocabulary


@torch.no_grad()
def answers_of(model: HookedModel, chains: Chains) -> tuple[NDArray[np.int64], torch.Tensor]:
    """(the number the model answers, or -1 for what is no number; log-probabilities [problem,
    vocab])."""
    vocabulary = chain_vocabulary(model)
    prompts = prompts_of(model, chains)
    logits = torch.cat([model.run(part).float() for part in prompts.split(_AT_ONCE)])
    number = (logits.argmax(-1) - vocabulary.number(0)).cpu().numpy()
    return np.where(number >= 0, number, -1), logits.log_softmax(-1)


def solved(model: HookedModel, chains: Chains) -> Bool[np.ndarray, " problem"]:
    """Which problems the model answers right."""
    return answers_of(model, chains)[0] == chains.answers


def chain_pairs(
    model: HookedModel,
    family: str,
    n: int,
    seed: int,
    split: Literal["explored", "held_out"],
    steps: int | None = None,
) -> list[tuple[Chains, Chains, int]]:
    """`n` couples of problems (each a `Chains` of one) and the step whose operand differs.

    Neither was trained on, and the model answers both right. Explored and held-out ones are halves
    of those. steps: of every problem; None for the most the model was trained with. Raises
    `TaskError` for steps that it was not trained with and where there are too few pairs.
    """
    thoughts = thoughts_of(model)
    vocabulary = chain_vocabulary(model)
    assert thoughts.steps is not None
    low, high = thoughts.steps
    fewest, n_steps = max(low, 3 if family == "later" else 2), high if steps is None else steps
    if not fewest <= n_steps <= high:
        raise TaskError(
            f"{model.name} has no pairs of {family} with {n_steps} steps: it was trained on "
            f"problems of {low} to {high}, and {family} needs {fewest}."
        )
    rng = np.random.default_rng([seed, sorted(FAMILIES).index(family), split == "held_out"])
    found: dict[str, tuple[Chains, Chains, int]] = {}
    for _ in range(_TRIES):
        for clean, corrupted, step in _couples(model, vocabulary, family, n_steps, rng, split):
            found.setdefault(clean.keys()[0], (clean, corrupted, step))
        if len(found) >= n:
            return list(found.values())[:n]
    raise TaskError(
        f"{model.name} has {len(found)} pairs of {family}, not {n}: it must answer both "
        "problems of a pair right. Ask for fewer, or take a model that solves more."
    )


def _couples(
    model: HookedModel,
    vocabulary: Vocabulary,
    family: str,
    n_steps: int,
    rng: np.random.Generator,
    split: str,
) -> Iterator[tuple[Chains, Chains, int]]:
    clean = draw_chains(rng, _CANDIDATES, n_steps, vocabulary.n_numbers, "held_out")
    clean = clean.take(_half(clean) == (split == "held_out"))
    corrupted, step = _CHANGES[family](clean, rng, vocabulary.n_numbers)
    fits = ((corrupted.values >= 0) & (corrupted.values < vocabulary.n_numbers)).all(1)
    fits &= (corrupted.numbers >= 1)[:, 1:].all(1) & (corrupted.numbers[:, 0] >= 0)
    fits &= (corrupted.numbers < vocabulary.n_numbers).all(1) & corrupted.held_out()
    fits &= corrupted.answers != clean.answers
    fits &= _half(corrupted) == (split == "held_out")
    rows = np.flatnonzero(fits)
    if not len(rows):
        return
    rows = rows[solved(model, clean.take(rows)) & solved(model, corrupted.take(rows))]
    for row in rows:
        yield clean.take([row]), corrupted.take([row]), step


def _half(chains: Chains) -> NDArray[np.bool_]:
    return chains.values.sum(1) % 2 == 1


def _operand(clean: Chains, rng: np.random.Generator, n_numbers: int, column: int) -> Chains:
    numbers = clean.numbers.copy()
    numbers[:, column] = rng.integers(0, n_numbers, len(clean))
    return replace(clean, numbers=numbers)


def _first(clean: Chains, rng: np.random.Generator, n_numbers: int) -> tuple[Chains, int]:
    return _operand(clean, rng, n_numbers, 0), 1


def _later(clean: Chains, rng: np.random.Generator, n_numbers: int) -> tuple[Chains, int]:
    step = clean.n_steps - 1
    return _operand(clean, rng, n_numbers, step), step


def _last(clean: Chains, rng: np.random.Generator, n_numbers: int) -> tuple[Chains, int]:
    return _operand(clean, rng, n_numbers, clean.n_steps), clean.n_steps


def _null(clean: Chains, rng: np.random.Generator, n_numbers: int) -> tuple[Chains, int]:
    numbers = clean.numbers.copy()
    first = rng.integers(0, n_numbers, len(clean))
    # v1 stays what it is; where no operand does that, the couple is left out.
    value, sign = clean.values[:, 0], clean.signs[:, 0]
    factor = np.where((first > 0) & (value % np.maximum(first, 1) == 0), value, 0)
    quotient = factor // np.maximum(first, 1)
    numbers[:, 1] = np.choose(sign, [value - first, first - value, quotient])
    numbers[:, 0] = first
    numbers[:, -1] = rng.integers(1, n_numbers, len(clean))
    changed = replace(clean, numbers=numbers)
    same = first == clean.numbers[:, 0]
    numbers[same, 1] = -1
    return changed, clean.n_steps


_CHANGES: dict[str, Callable[[Chains, np.random.Generator, int], tuple[Chains, int]]] = {
    "first": _first,
    "later": _later,
    "last": _last,
    "null": _null,
}


def as_pair(model: HookedModel, clean: Chains, corrupted: Chains, step: int, family: str) -> Pair:
    """A couple as prompts, with its named positions."""
    thoughts, vocabulary = thoughts_of(model), chain_vocabulary(model)
    words = vocabulary.words
    texts = [
        layout_text(thoughts, " ".join(words[i] for i in vocabulary.questions(one)[0]), vocabulary)
        for one in (clean, corrupted)
    ]
    where = [_starts(text) for text in texts]
    question = 6 * clean.n_steps + 2
    places = {"bot": question}
    places |= {f"t{i + 1}": question + 1 + i for i in range(thoughts.tokens.thoughts)}
    places["eot"] = question + 1 + thoughts.tokens.thoughts
    places["answer"] = places["eot"] + 1
    # Facts stand backwards: that of the last step first, six tokens each.
    fact = 6 * (clean.n_steps - step)
    places["operand"] = fact + (2 if family == "first" else 4)
    marks = {name: Mark(where[0][at], where[1][at]) for name, at in places.items()}
    template = f"{clean.n_steps} steps, operand {0 if family == 'first' else step}"
    return Pair(
        texts[0], texts[1], f" {clean.answers[0]}", f" {corrupted.answers[0]}", marks, template
    )


def _starts(text: str) -> list[int]:
    """The first character of every word."""
    starts, at = [], 0
    for word in text.split(" "):
        starts.append(at)
        at += len(word) + 1
    return starts
