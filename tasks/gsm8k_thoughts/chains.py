"""Chains of additions, subtractions and multiplications, written down backwards.

    c = b + 4 , b = a * 3 , a = 5 - 2 , c ?        worked: 3 , 9 ,        answer: 13

The last fact comes first. A model that reads from left to right can then not compute a step where
it stands: what the step starts from is only known when everything has been read, so the work is
left to what comes after the question, which is where the thoughts are. (With the facts in forward
order a trained model's answer goes past its thoughts.) The worked solution is the steps' values
without the last one, so that the answer itself is not in it; it begins with a value, which the end
of the question must foretell, as the first thought is made there.

Every token of it is one word: a number, a variable's letter or a sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from circuits.errors import CircuitsError

LETTERS = tuple("abcdefgh")
SIGNS = ("+", "-", "*")
PLUS, MINUS, TIMES = range(3)
MOST_FACTOR = 9
PAD, BOT, THOUGHT, EOT, ANSWER = "<pad>", "<bot>", "<thought>", "<eot>", "answer"
WORDS = (PAD, BOT, THOUGHT, EOT, ANSWER, "?", ",", "=", *SIGNS, *LETTERS)
HELD_OUT = 16  # one problem of so many is never trained on

Split = Literal["train", "held_out"]


class ChainError(CircuitsError):
    """Chains that cannot be made."""


@dataclass(frozen=True)
class Chains:
    """Problems of one number of steps.

    numbers: the first number and each step's operand. signs: of each step, its place in `SIGNS`.
    letters: which letter each step's value is called by.
    """

    numbers: Int[np.ndarray, "problem number"]
    signs: Int[np.ndarray, "problem step"]
    letters: Int[np.ndarray, "problem step"]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def n_steps(self) -> int:
        """How many steps a problem has."""
        return self.signs.shape[1]

    @property
    def values(self) -> Int[np.ndarray, "problem step"]:
        """What every step gives; the last one is the answer."""
        value, found = self.numbers[:, 0], []
        for sign, operand in zip(self.signs.T, self.numbers[:, 1:].T, strict=True):
            value = np.choose(sign, [value + operand, value - operand, value * operand])
            found.append(value)
        return np.stack(found, 1)

    @property
    def answers(self) -> Int[np.ndarray, " problem"]:
        """The last value."""
        return self.values[:, -1]

    def take(self, rows: Any) -> Chains:
        """Some of the problems."""
        return Chains(self.numbers[rows], self.signs[rows], self.letters[rows])

    def renamed(self) -> Chains:
        """The same problems with the same letters in all of them."""
        return replace(self, letters=np.broadcast_to(np.arange(self.n_steps), self.letters.shape))

    def held_out(self) -> NDArray[np.bool_]:
        """Which problems are kept out of training: by a hash of numbers and signs, so that a
        problem is on the same side whatever its letters."""
        digest = np.full(len(self), self.n_steps, dtype=np.uint64)
        for column in (*self.numbers.T, *self.signs.T):
            digest = (digest ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            digest ^= digest >> np.uint64(29)
        return (digest >> np.uint64(17)) % np.uint64(HELD_OUT) == 0

    def keys(self) -> list[str]:
        """A name for each problem, without its letters: problems of one name are the same."""
        return [
            f"{first}" + "".join(f"{SIGNS[s]}{n}" for s, n in zip(signs, rest, strict=True))
            for first, signs, rest in zip(
                self.numbers[:, 0].tolist(),
                self.signs.tolist(),
                self.numbers[:, 1:].tolist(),
                strict=True,
            )
        ]


def draw_chains(
    rng: np.random.Generator, n: int, n_steps: int, n_numbers: int, split: Split
) -> Chains:
    """`n` problems whose every value lies in 0 to `n_numbers` - 1, from one side of the split.

    Raises `ChainError` for fewer than two steps, more than there are letters, or too few numbers.
    """
    if not 2 <= n_steps <= len(LETTERS):
        raise ChainError(f"{n_steps} steps: chains have 2 to {len(LETTERS)}.")
    if n_numbers < 4:
        raise ChainError(f"numbers below {n_numbers}: at least the numbers 0 to 3 are needed.")
    parts: list[Chains] = []
    missing = n
    while missing > 0:
        share = 1 / HELD_OUT if split == "held_out" else 1 - 1 / HELD_OUT
        drawn = _draw(rng, int(missing / share * 1.1) + 8, n_steps, n_numbers)
        part = drawn.take(drawn.held_out() == (split == "held_out"))
        part = part.take(slice(None, missing))
        parts.append(part)
        missing -= len(part)
    return join(parts)


def draw_different(
    rng: np.random.Generator, n: int, n_steps: int, n_numbers: int, split: Split
) -> Chains:
    """As `draw_chains`, with no problem twice, whatever its letters.

    Raises `ChainError` where there are not so many.
    """
    found = different(draw_chains(rng, 4 * n + 100, n_steps, n_numbers, split), n)
    if len(found) < n:
        raise ChainError(f"there are too few different problems of {n_steps} steps for {n}.")
    return found


def different(chains: Chains, most: int) -> Chains:
    """The first of each problem, whatever its letters; at most `most` of them."""
    _, first = np.unique(np.array(chains.keys()), return_index=True)
    return chains.take(np.sort(first)[:most])


def join(parts: Sequence[Chains]) -> Chains:
    """Problems of one number of steps, one after another."""
    return Chains(
        np.concatenate([p.numbers for p in parts]),
        np.concatenate([p.signs for p in parts]),
        np.concatenate([p.letters for p in parts]),
    )


def _draw(rng: np.random.Generator, n: int, n_steps: int, n_numbers: int) -> Chains:
    value = rng.integers(0, n_numbers, n)
    numbers, signs = [value], []
    for _ in range(n_steps):
        factor = np.where(value > 0, (n_numbers - 1) // np.maximum(value, 1), 0)
        # How many operands each sign has: 1 to the limit, factors from 2 on.
        room = np.stack([n_numbers - 1 - value, value, np.minimum(factor, MOST_FACTOR) - 1], 1)
        weight = np.cumsum(room > 0, axis=1)
        sign = (rng.random(n) * weight[:, -1] < weight.T).argmax(0)
        limit = room[np.arange(n), sign]
        operand = 1 + (rng.random(n) * limit).astype(np.int64) + (sign == TIMES)
        value = np.choose(sign, [value + operand, value - operand, value * operand])
        numbers.append(operand)
        signs.append(sign)
    order = rng.permuted(np.tile(np.arange(len(LETTERS)), (n, 1)), axis=1)
    return Chains(np.stack(numbers, 1), np.stack(signs, 1), order[:, :n_steps])


@dataclass(frozen=True)
class Vocabulary:
    """Words and numbers as token ids: `WORDS` first, then the numbers 0 to n_numbers - 1."""

    n_numbers: int

    def __len__(self) -> int:
        return len(WORDS) + self.n_numbers

    @property
    def words(self) -> list[str]:
        """All tokens, in the order of their ids."""
        return [*WORDS, *(str(i) for i in range(self.n_numbers))]

    def id(self, word: str) -> int:
        """The id of a word that is not a number."""
        return WORDS.index(word)

    def number(self, value: Any) -> Any:
        """The id of a number, or of an array of them."""
        return len(WORDS) + value

    def questions(self, chains: Chains) -> Int[np.ndarray, "problem position"]:
        """`c = b + 4 , b = a * 3 , a = 5 - 2 , c ?`: 6 tokens a step and 2."""
        n, k = chains.signs.shape
        signs = chains.signs + self.id(SIGNS[0])
        letters = chains.letters + self.id(LETTERS[0])
        columns: list[NDArray[Any]] = []
        for step in reversed(range(k)):
            before = letters[:, step - 1] if step else self.number(chains.numbers[:, 0])
            columns += [letters[:, step], self._all("=", n), before, signs[:, step]]
            columns += [self.number(chains.numbers[:, step + 1]), self._all(",", n)]
        return np.stack([*columns, letters[:, -1], self._all("?", n)], 1)

    def worked(self, chains: Chains) -> Int[np.ndarray, "problem position"]:
        """`3 , 9 ,`: the values of all steps but the last."""
        n, k = chains.signs.shape
        columns = [
            column
            for step in range(k - 1)
            for column in (self.number(chains.values[:, step]), self._all(",", n))
        ]
        return np.stack(columns, 1)

    def _all(self, word: str, n: int) -> NDArray[Any]:
        return np.full(n, self.id(word))

    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer: one token a word, words set apart by spaces."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        ids = {word: i for i, word in enumerate(self.words)}
        inner = Tokenizer(models.WordLevel(ids, unk_token=PAD))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
        return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, unk_token=PAD)
