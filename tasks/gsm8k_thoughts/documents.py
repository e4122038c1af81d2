"""Whole chains as texts, for SAEs of models that think."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.corpora import Document
from tasks.gsm8k_thoughts.chains import Vocabulary, draw_chains
from tasks.gsm8k_thoughts.pairs import layout_text

_BATCH = 512


@dataclass(frozen=True)
class ChainTexts:
    """Prompts with their answers, from the side of the split that the model was trained on, so that
    none is among the task's pairs."""

    vocabulary: Vocabulary
    steps: tuple[int, int]
    thoughts: Any
    count: int = 200_000
    seed: int = 0
    name: str = "gsm8k_thoughts"

    def describe(self) -> dict[str, Any]:
        return {
            "numbers": self.vocabulary.n_numbers,
            "steps": list(self.steps),
            "count": self.count,
            "seed": self.seed,
        }

    def documents(self) -> Iterator[Document]:
        words = np.array(self.vocabulary.words, dtype=object)
        for batch in range(self.count // _BATCH):
            rng = np.random.default_rng([self.seed, 1, batch])
            n_steps = int(rng.integers(self.steps[0], self.steps[1] + 1))
            chains = draw_chains(rng, _BATCH, n_steps, self.vocabulary.n_numbers, "train")
            questions = words[self.vocabulary.questions(chains)]
            for i, (question, answer) in enumerate(zip(questions, chains.answers, strict=True)):
                text = layout_text(self.thoughts, " ".join(question), self.vocabulary)
                yield Document(f"{batch}:{i}", f"{text} {answer}")
