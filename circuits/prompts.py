"""Pairs of clean and corrupted prompts as token ids, checked before any pass is run.

A `Pair` is text; `PromptPairs` is what the model sees. Pairs of different lengths may stand in one
set: they are grouped by length (`PromptPairs.groups`) and never padded, because padding has given
wrong logits in several architectures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.errors import CircuitsError
from circuits.jsonl import read_lines

END = "END"  # the named position that every pair has: its last token


# What run.json calls a field: there `positions` would be taken for those that were patched.
_RECORD_KEYS = {"positions": "named_positions"}


class PromptError(CircuitsError):
    """Prompts that cannot be compared token by token."""


@dataclass(frozen=True)
class Mark:
    """A named position, told by characters: the token that holds character `clean` of the clean
    prompt (`corrupted` of the corrupted one), moved by `shift` tokens."""

    clean: int
    corrupted: int
    shift: int = 0


@dataclass(frozen=True)
class Pair:
    """One clean and one corrupted prompt as text, with the token each of them should lead to.

    answer: what follows the clean prompt, with its leading space where the text has one.
    foil: what follows the corrupted prompt.
    marks: named positions; `END` is always there and need not be given.
    template: the name of the template the pair was made from; pairs of one template line up.
    """

    clean: str
    corrupted: str
    answer: str
    foil: str
    marks: Mapping[str, Mark] = field(default_factory=dict)
    template: str = ""


@dataclass(frozen=True)
class PairGroup:
    """The pairs of one length, as tensors on the CPU. `indices` are rows of the whole set."""

    indices: tuple[int, ...]
    clean: Int[Tensor, "pair position"]
    corrupted: Int[Tensor, "pair position"]
    answer: Int[Tensor, " pair"]
    foil: Int[Tensor, " pair"]

    def part(self, rows: slice) -> PairGroup:
        """Some of the pairs."""
        return PairGroup(
            self.indices[rows],
            self.clean[rows],
            self.corrupted[rows],
            self.answer[rows],
            self.foil[rows],
        )

    def first_differences(self) -> Int[Tensor, " pair"]:
        """For each pair, the first position at which its tokens differ."""
        return (self.clean != self.corrupted).int().argmax(1)


@dataclass(frozen=True)
class Alignment:
    """Pairs whose positions line up: one template, one length. `pairs` are their numbers."""

    template: str
    length: int
    pairs: tuple[int, ...]


@dataclass(frozen=True)
class PromptPairs:
    """Token ids of clean and corrupted prompts; one entry a pair in every field.

    answer_tokens, foil_tokens: the first token of the answer and of the foil.
    answers, foils: those tokens as text, so that an answer of several tokens is named by what is
        really measured (` Syntax` for ` SyntaxError`).
    answer_texts, foil_texts: answer and foil as they were given.
    positions: named positions as token indices, the same in both prompts of a pair.
    prepend_bos: whether a beginning-of-text token stands first.
    """

    clean_tokens: tuple[tuple[int, ...], ...]
    corrupted_tokens: tuple[tuple[int, ...], ...]
    answer_tokens: tuple[int, ...]
    foil_tokens: tuple[int, ...]
    answers: tuple[str, ...]
    foils: tuple[str, ...]
    answer_texts: tuple[str, ...]
    foil_texts: tuple[str, ...]
    clean_strings: tuple[tuple[str, ...], ...]
    corrupted_strings: tuple[tuple[str, ...], ...]
    positions: tuple[Mapping[str, int], ...]
    templates: tuple[str, ...]
    prepend_bos: bool

    def __post_init__(self) -> None:
        count = len(self.clean_tokens)
        if count == 0:
            raise PromptError("there are no prompt pairs: at least one is needed.")
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != count:
                raise PromptError(f"{name} has {len(value)} entries for {count} pairs.")
        problems = [p for i in range(count) if (p := self._problem(i))]
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise PromptError("; ".join(problems[:3]) + more)

    def _problem(self, i: int) -> str | None:
        clean, corrupted = self.clean_tokens[i], self.corrupted_tokens[i]
        if len(clean) != len(corrupted):
            return (
                f"pair {i}: the clean prompt has {len(clean)} tokens and the corrupted one "
                f"{len(corrupted)}; they must be equally long to be compared position by "
                f"position. Clean: {list(self.clean_strings[i])}, corrupted: "
                f"{list(self.corrupted_strings[i])}"
            )
        if clean == corrupted:
            return f"pair {i}: the clean and the corrupted prompt are the same tokens"
        if self.answer_tokens[i] == self.foil_tokens[i]:
            return (
                f"pair {i}: answer and foil begin with the same token {self.answers[i]!r}; "
                "the logit difference would always be 0, so choose others"
            )
        outside = {n: p for n, p in self.positions[i].items() if not 0 <= p < len(clean)}
        if outside:
            return f"pair {i}: named positions outside its {len(clean)} tokens: {outside}"
        return None

    def __len__(self) -> int:
        return len(self.clean_tokens)

    def named_answers(self) -> str:
        """What is measured, such as "answer ' Zero' (first token of ' ZeroDivisionError'), foil
        ' TypeError'"; of several answers the first three."""
        return (
            f"answer {_named(self.answers, self.answer_texts)}, "
            f"foil {_named(self.foils, self.foil_texts)}"
        )

    def as_record(self) -> dict[str, Any]:
        """The fields for run.json."""
        return {_RECORD_KEYS.get(k, k): v for k, v in asdict(self).items()}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> PromptPairs:
        """Take the fields out of a record again; raises `KeyError` where one is missing."""
        fields = {
            name: record.pop(_RECORD_KEYS.get(name, name)) for name in cls.__dataclass_fields__
        }
        return cls(**{name: _tuples(value) for name, value in fields.items()})

    def alignments(self) -> list[Alignment]:
        """Groups of pairs that may be averaged position by position, largest first."""
        found: dict[tuple[str, int, Any], list[int]] = {}
        for i, tokens in enumerate(self.clean_tokens):
            template, other = self.templates[i], self.corrupted_tokens[i]
            # Without a template, what lines up is told by the positions that differ.
            differ = tuple(p for p, t in enumerate(tokens) if t != other[p]) if not template else ()
            found.setdefault((template, len(tokens), differ), []).append(i)
        made = [Alignment(t, n, tuple(pairs)) for (t, n, _), pairs in found.items()]
        return sorted(made, key=lambda a: -len(a.pairs))

    def tokens_at(self, alignment: Alignment) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """For each position the different clean and corrupted tokens that stand there."""

        def at(strings: Sequence[Sequence[str]], position: int) -> tuple[str, ...]:
            return tuple(dict.fromkeys(strings[i][position] for i in alignment.pairs))

        both = self.clean_strings, self.corrupted_strings
        return [(at(both[0], p), at(both[1], p)) for p in range(alignment.length)]

    def names_at(self, alignment: Alignment) -> dict[int, str]:
        """Names of positions that are the same in all of the pairs, e.g. {19: "END"}."""
        names: dict[int, list[str]] = {}
        for name, position in self.positions[alignment.pairs[0]].items():
            if all(self.positions[i].get(name) == position for i in alignment.pairs):
                names.setdefault(position, []).append(name)
        return {position: "/".join(found) for position, found in names.items()}

    def groups(self, size: int | None = None) -> Iterator[PairGroup]:
        """Yield the pairs by token length, shortest first, at most `size` at a time."""
        by_length: dict[int, list[int]] = {}
        for i, tokens in enumerate(self.clean_tokens):
            by_length.setdefault(len(tokens), []).append(i)
        for length in sorted(by_length):
            members = by_length[length]
            for start in range(0, len(members), size or len(members)):
                yield self._group(members[start : start + (size or len(members))])

    def _group(self, indices: list[int]) -> PairGroup:
        return PairGroup(
            indices=tuple(indices),
            clean=torch.tensor([self.clean_tokens[i] for i in indices]),
            corrupted=torch.tensor([self.corrupted_tokens[i] for i in indices]),
            answer=torch.tensor([self.answer_tokens[i] for i in indices]),
            foil=torch.tensor([self.foil_tokens[i] for i in indices]),
        )

    @classmethod
    def from_texts(
        cls, pairs: Sequence[Pair], tokenizer: Any, prepend_bos: bool | None = None
    ) -> PromptPairs:
        """Tokenise `pairs` with a Hugging Face tokenizer.

        prepend_bos: True or False to put a beginning-of-text token first or not; None does what
            the tokenizer itself does.
        Raises `PromptError` when there are no pairs, a pair's prompts differ in length, an answer
        melts into the prompt's last token, or answer and foil begin with the same token.
        """
        if not pairs:
            raise PromptError("there are no prompt pairs: at least one is needed.")
        bos = resolve_bos(tokenizer, prepend_bos)
        clean = [tokenise(tokenizer, p.clean, bos) for p in pairs]
        corrupted = [tokenise(tokenizer, p.corrupted, bos) for p in pairs]
        answer = [
            first_token(tokenizer, p.clean, p.answer, ids, bos)
            for p, ids in zip(pairs, clean, strict=True)
        ]
        foil = [
            first_token(tokenizer, p.corrupted, p.foil, ids, bos)
            for p, ids in zip(pairs, corrupted, strict=True)
        ]
        strings = _Strings(tokenizer)
        return cls(
            clean_tokens=tuple(clean),
            corrupted_tokens=tuple(corrupted),
            answer_tokens=tuple(answer),
            foil_tokens=tuple(foil),
            answers=strings(answer),
            foils=strings(foil),
            answer_texts=tuple(p.answer for p in pairs),
            foil_texts=tuple(p.foil for p in pairs),
            clean_strings=tuple(strings(ids) for ids in clean),
            corrupted_strings=tuple(strings(ids) for ids in corrupted),
            positions=tuple(
                _positions(tokenizer, p, len(ids), bos) for p, ids in zip(pairs, clean, strict=True)
            ),
            templates=tuple(p.template for p in pairs),
            prepend_bos=bos,
        )


def _named(tokens: Sequence[str], texts: Sequence[str]) -> str:
    found = dict.fromkeys(zip(tokens, texts, strict=True))
    shown = [
        repr(token) if token.strip() == text.strip() else f"{token!r} (first token of {text!r})"
        for token, text in list(found)[:3]
    ]
    return ", ".join(shown) + (", ..." if len(found) > 3 else "")


class _Strings:
    """Token ids to text, each id decoded once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, ids: Sequence[int]) -> tuple[str, ...]:
        for i in ids:
            if i not in self._known:
                self._known[i] = self._tokenizer.decode([i])
        return tuple(self._known[i] for i in ids)


def resolve_bos(tokenizer: Any, prepend_bos: bool | None) -> bool:
    """What `prepend_bos=None` means for this tokenizer; raises where True cannot be done."""
    if tokenizer is None:
        raise PromptError(
            "this model has no tokenizer, so text cannot be given to it: load it with "
            "load_model(model, tokenizer=...), or make PromptPairs from token ids."
        )
    if prepend_bos is None:
        ids = tokenizer("a")["input_ids"]
        return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    if prepend_bos and tokenizer.bos_token_id is None:
        raise PromptError(
            "prepend_bos=True, but this tokenizer has no beginning-of-text token: leave it out."
        )
    return prepend_bos


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def tokenise(tokenizer: Any, text: str, bos: bool) -> tuple[int, ...]:
    """Token ids of `text`, no special tokens but a beginning-of-text token when `bos`."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise PromptError(f"the prompt {text!r} has no tokens.")
    return (tokenizer.bos_token_id, *ids) if bos else tuple(ids)


def first_token(
    tokenizer: Any, prompt: str, answer: str, prompt_ids: Sequence[int], bos: bool
) -> int:
    """The first token of `answer` where it follows `prompt`.

    Raises `PromptError` when prompt and answer melt into one token at their seam, because then
    the model would never be asked for that token.
    """
    if not answer:
        raise PromptError(f"an empty answer or foil after {prompt!r}.")
    joint = tokenise(tokenizer, prompt + answer, bos)
    if joint[: len(prompt_ids)] != tuple(prompt_ids) or len(joint) == len(prompt_ids):
        raise PromptError(
            f"{answer!r} melts into the last token of {prompt!r}: move the space from the end of "
            "the prompt to the beginning of the answer (or the reverse)."
        )
    return joint[len(prompt_ids)]


def _positions(tokenizer: Any, pair: Pair, length: int, bos: bool) -> Mapping[str, int]:
    found = {}
    for name, mark in pair.marks.items():
        clean = _token_at(tokenizer, pair.clean, mark.clean, bos) + mark.shift
        corrupted = _token_at(tokenizer, pair.corrupted, mark.corrupted, bos) + mark.shift
        if clean != corrupted:
            raise PromptError(
                f"position {name!r} is token {clean} of {pair.clean!r} but token {corrupted} of "
                f"{pair.corrupted!r}: the pair does not line up under this tokenizer."
            )
        found[name] = clean
    return {**found, END: length - 1}


def _token_at(tokenizer: Any, text: str, character: int, bos: bool) -> int:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    for i, (start, stop) in enumerate(offsets):
        if start <= character < stop:
            return i + int(bos)
    raise PromptError(f"no token of {text!r} holds its character {character}.")


def read_pairs(path: str | Path) -> list[Pair]:
    """Read pairs from a JSONL file: one object a line with the texts clean, corrupted, answer, foil
    (and optionally template). Raises `PromptError` naming the line of the first mistake."""
    path = Path(path)
    if not path.is_file():
        raise PromptError(f"the pairs file {path} does not exist.")
    needed = ("clean", "corrupted", "answer", "foil")
    pairs = []
    for where, entry in read_lines(path, PromptError):
        wrong = [
            k for k in needed if not (isinstance(entry, dict) and isinstance(entry.get(k), str))
        ]
        if wrong:
            raise PromptError(
                f"{where}: missing or not a text: {', '.join(wrong)}. "
                f'Expected {{"clean": ..., "corrupted": ..., "answer": ..., "foil": ...}}.'
            )
        pairs.append(Pair(**{k: entry[k] for k in needed}, template=str(entry.get("template", ""))))
    if not pairs:
        raise PromptError(f"{path} holds no pairs: expected one JSON object a line.")
    return pairs
