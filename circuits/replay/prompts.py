"""Prompts to be continued: read, tokenised, and put into batches of one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.jsonl import read_lines
from circuits.prompts import resolve_bos, tokenise
from circuits.replay.interventions import ReplayError
from circuits.replay.noise import Key, keys_of
from circuits.task import Prompt


@dataclass(frozen=True)
class Prompts:
    """Tokenised prompts. prepend_bos: whether a beginning-of-text token stands first."""

    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    prepend_bos: bool

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ReplayError("there are no prompts: at least one is needed.")
        seen: dict[tuple[int, ...], int] = {}
        for i, ids in enumerate(self.tokens):
            if ids in seen:
                raise ReplayError(
                    f"prompts {seen[ids]} and {i} are the same tokens, and so would be their "
                    "responses (the noise is the prompt's): leave one out and take more trials."
                )
            seen[ids] = i
        wrong = sorted({kind for kind in self.kinds if not kind or ":" in kind})
        if wrong:
            raise ReplayError(f"kinds {wrong}: a kind is not empty and holds no colon.")

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(
        cls, prompts: Sequence[Prompt], tokenizer: Any, prepend_bos: bool | None = None
    ) -> Prompts:
        """prepend_bos: None does what the tokenizer itself does. Raises `ReplayError` for no
        prompts and for two of the same tokens, and `PromptError` for texts without tokens."""
        bos = resolve_bos(tokenizer, prepend_bos)
        tokens = tuple(tokenise(tokenizer, prompt.text, bos) for prompt in prompts)
        return cls(tuple(p.text for p in prompts), tuple(p.kind for p in prompts), tokens, bos)

    def as_record(self) -> dict[str, Any]:
        """What a run's record keeps of them."""
        return {
            "prompts": list(self.texts),
            "kinds": list(self.kinds),
            "prompt_tokens": [list(ids) for ids in self.tokens],
            "prepend_bos": self.prepend_bos,
        }


@dataclass(frozen=True)
class Batch:
    """Rows that are run together: prompts of one length. prompt, trial: numbers, one a row."""

    number: int
    prompt: tuple[int, ...]
    trial: tuple[int, ...]
    tokens: Int[Tensor, "row position"]

    @property
    def keys(self) -> list[Key]:
        """What tells the noise of its rows."""
        return keys_of(self.tokens, self.trial)


def batches(prompts: Prompts, trials: int, size: int) -> Iterator[Batch]:
    """All trials of all prompts, shortest prompts first, the trials of a prompt side by side.

    One at a time: nothing grows with the number of trials.
    """
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(prompts.tokens):
        by_length.setdefault(len(ids), []).append(i)
    number = 0
    for length in sorted(by_length):
        members = by_length[length]
        for start in range(0, len(members) * trials, size):
            rows = range(start, min(start + size, len(members) * trials))
            prompt = tuple(members[row // trials] for row in rows)
            tokens = torch.tensor([prompts.tokens[i] for i in prompt])
            yield Batch(number, prompt, tuple(row % trials for row in rows), tokens)
            number += 1


def count_batches(prompts: Prompts, trials: int, size: int) -> int:
    """How many there are."""
    lengths = [len(ids) for ids in prompts.tokens]
    return sum(-(-lengths.count(length) * trials // size) for length in set(lengths))


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts of a JSONL file: {"prompt": ..., "kind": ...} a line, the kind being optional.

    Raises `ReplayError` naming the line of the first mistake.
    """
    found = []
    for where, entry in read_lines(path, ReplayError):
        texts = [entry.get("prompt"), entry.get("kind", "all")] if isinstance(entry, dict) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ReplayError(
                f'{where}: expected {{"prompt": TEXT}}, with "kind": TEXT if there are several.'
            )
        found.append(Prompt(*texts))
    if not found:
        raise ReplayError(f"{path} holds no prompts: expected one JSON object a line.")
    return found
