"""Random token pairs for tiny models: a shared beginning, then a few differing tokens."""

from __future__ import annotations

import torch

from circuits.prompts import PromptPairs
from tests.tiny import VOCAB

LENGTH = 10


def token_pairs(count: int, *, seed: int = 0, length: int = LENGTH, first: int = 3) -> PromptPairs:
    """`count` pairs of `length` tokens that are equal before position `first` and differ there."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, VOCAB, (count, length), generator=generator)
    corrupted = clean.clone()
    shift = torch.randint(1, VOCAB - 3, (count, 2), generator=generator)
    places = [first, min(first + 2, length - 1)]
    corrupted[:, places] = (clean[:, places] - 3 + shift) % (VOCAB - 3) + 3
    answer = torch.randint(3, VOCAB, (count,), generator=generator)
    foil = (answer - 3 + 7) % (VOCAB - 3) + 3
    return from_tokens(clean, corrupted, answer, foil)


def from_tokens(
    clean: torch.Tensor, corrupted: torch.Tensor, answer: torch.Tensor, foil: torch.Tensor
) -> PromptPairs:
    """`PromptPairs` straight from token ids."""

    def strings(rows: torch.Tensor) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(f"<{t}>" for t in row) for row in rows.tolist())

    count, length = clean.shape
    return PromptPairs(
        clean_tokens=tuple(map(tuple, clean.tolist())),
        corrupted_tokens=tuple(map(tuple, corrupted.tolist())),
        answer_tokens=tuple(answer.tolist()),
        foil_tokens=tuple(foil.tolist()),
        answers=tuple(f"<{t}>" for t in answer.tolist()),
        foils=tuple(f"<{t}>" for t in foil.tolist()),
        answer_texts=tuple(f"<{t}>" for t in answer.tolist()),
        foil_texts=tuple(f"<{t}>" for t in foil.tolist()),
        clean_strings=strings(clean),
        corrupted_strings=strings(corrupted),
        positions=({"END": length - 1},) * count,
        templates=("",) * count,
        prepend_bos=False,
    )
