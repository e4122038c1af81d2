"""Where the thoughts of a CODI stand among the tokens, and what the new tokens are called.

The published code adds three tokens behind the base model's vocabulary of V: V pads batches, V+1
begins the thoughts (bot), V+2 ends them (eot). A prompt is

    question bot x1 ... x6 eot The answer is: N

where x1 is the projection of the hidden state at bot, and each further thought the projection of
the one before it. Source: Shen et al. 2025, CODI, arXiv:2502.21074, and its published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.gsm8k_thoughts.checkpoint.files import CheckpointError

ANSWER_PREFIX = "The answer is:"
NEW_TOKENS = ("<|pad|>", "<|bot|>", "<|eot|>")


@dataclass(frozen=True)
class Layout:
    """One prompt. tokens: ids, at the slots the id of pad, which is overwritten. slots: where the
    thoughts stand. sources: for each slot, the position whose hidden state it is made from."""

    tokens: tuple[int, ...]
    slots: tuple[int, ...]
    sources: tuple[int, ...]


@dataclass(frozen=True)
class CodiTokens:
    """The tokens around the thoughts.

    pad, bot, eot: ids of the new tokens. before: ids between question and thoughts. after: ids
    between thoughts and answer. thoughts: how many. answer_prefix: the text that stands before the
    number. answer_prefix_ids: its tokens, with the space before the number where that is a token of
    its own. prepend_bos: whether questions begin with a beginning-of-text token, as in training.
    """

    pad: int
    bot: int
    eot: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    thoughts: int
    answer_prefix: str
    answer_prefix_ids: tuple[int, ...]
    prepend_bos: bool

    def __post_init__(self) -> None:
        if self.thoughts < 0:
            raise CheckpointError(f"thoughts={self.thoughts}: at least 0 is needed.")
        if self.bot not in self.before or self.eot not in self.after:
            raise CheckpointError("bot must stand before the thoughts and eot after them.")

    def lay_out(
        self, question: Sequence[int], answer: Sequence[int] = (), *, prefix: bool = True
    ) -> Layout:
        """The prompt of a question.

        question: its token ids, with the beginning-of-text token where there is one. answer: ids
        that follow. prefix: whether `answer_prefix_ids` stands between eot and `answer`.
        """
        start = len(question) + len(self.before)
        slots = tuple(range(start, start + self.thoughts))
        tokens = (
            *question,
            *self.before,
            *([self.pad] * self.thoughts),
            *self.after,
            *(self.answer_prefix_ids if prefix else ()),
            *answer,
        )
        sources = tuple(range(start - 1, start - 1 + self.thoughts))
        return Layout(tokens, slots, sources)


def number_prefix(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The tokens of `text` where " 7" or another number follows it.

    Tokenizers differ in whether the space is a token of its own (Llama 3) or belongs to the number
    (GPT-2): it is among the ids in the first case only.
    """
    left, right = (
        tokenizer(f"{text} {digit}", add_special_tokens=False)["input_ids"] for digit in (3, 7)
    )
    shared = 0
    while shared < min(len(left), len(right)) and left[shared] == right[shared]:
        shared += 1
    if shared == 0 or shared == len(left):
        raise CheckpointError(
            f"the tokenizer gives {text!r} and numbers after it no tokens that can be told apart: "
            "it is not the one of the base model."
        )
    return tuple(left[:shared])


def add_tokens(tokenizer: Any, vocabulary: int) -> None:
    """Name the new tokens, whose ids are `vocabulary` and the two after it.

    Where the base model's embedding has more rows than its tokenizer has tokens, the rows between
    are named too. Raises `CheckpointError` when the names would get other ids.
    """
    from tokenizers import AddedToken

    fillers = [f"<|unused_{i}|>" for i in range(len(tokenizer), vocabulary)]
    names = [*fillers, *NEW_TOKENS]
    tokenizer.add_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    ids = tuple(tokenizer.convert_tokens_to_ids(list(NEW_TOKENS)))
    if ids != (vocabulary, vocabulary + 1, vocabulary + 2):
        raise CheckpointError(
            f"the new tokens {', '.join(NEW_TOKENS)} get the ids {ids} under this tokenizer, but "
            f"the base model's vocabulary has {vocabulary} entries and they should follow it: give "
            "the base model's own tokenizer (base=...)."
        )


def make_tokens(
    tokenizer: Any, vocabulary: int, *, thoughts: int, remove_eos: bool, answer_prefix: str
) -> CodiTokens:
    """Where everything stands, under a tokenizer that knows the new tokens.

    remove_eos: whether the end-of-text token is left out before bot and after eot.
    """
    from circuits.prompts import resolve_bos

    pad, bot, eot = vocabulary, vocabulary + 1, vocabulary + 2
    eos = tokenizer.eos_token_id
    if not remove_eos and eos is None:
        raise CheckpointError(
            "remove_eos=False, but the base model's tokenizer has no end-of-text token."
        )
    return CodiTokens(
        pad=pad,
        bot=bot,
        eot=eot,
        before=(bot,) if remove_eos else (eos, bot),
        after=(eot,) if remove_eos else (eot, eos),
        thoughts=thoughts,
        answer_prefix=answer_prefix,
        answer_prefix_ids=number_prefix(tokenizer, answer_prefix),
        prepend_bos=resolve_bos(tokenizer, None),
    )
