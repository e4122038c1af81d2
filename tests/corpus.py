"""A small corpus of words that the tiny tokenizer knows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from circuits.corpora import Corpus, parse_corpus
from tests import tiny

WORDS = ("the a cat dog sat ran on under mat log and then it was red blue one two three .").split()


def write(folder: Path, documents: int = 60, words: int = 90, seed: int = 0) -> Path:
    """A folder of text files whose words follow one another with some order."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    for number in range(documents):
        at, text = draw.randrange(len(WORDS)), []
        for _ in range(words + number % 17):
            text.append(WORDS[at])
            at = (at + draw.choice([1, 1, 1, 5, 7])) % len(WORDS)
        (folder / f"{number:03d}.txt").write_text(" ".join(text))
    return folder


def corpus(folder: Path, **options: Any) -> Corpus:
    """The folder as a corpus of short contexts, a fifth of it held out."""
    settings = {"heldout": 0.2, "context": 24, "smallest": 4, "shortest": 20, **options}
    return parse_corpus([str(folder)], tiny.tokenizer(), **settings)
