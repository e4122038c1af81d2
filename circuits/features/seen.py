"""What a bank has seen: which documents, and how often each token stood where latents were read.

It is what lets a hypothesis that was made from a bank be tested on other documents: without it
nobody could say which those are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits.corpora import Context, Corpus, CorpusError, reopen_corpus
from circuits.features.tally import Batch
from circuits.train.store import Store

_DOCUMENTS, _TOKENS = "documents.parquet", "tokens.parquet"


@dataclass(frozen=True, eq=False)
class Seen:
    """documents: `document` (its number in the corpus), `source, name, digest` (16 hex digits of
    the text's SHA-256). tokens: `token, count`, over the positions that were looked at."""

    documents: pd.DataFrame
    tokens: pd.DataFrame

    @property
    def digests(self) -> frozenset[str]:
        """Of the texts of all documents."""
        return frozenset(self.documents["digest"])

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """(source, name) of all documents."""
        return frozenset(zip(self.documents["source"], self.documents["name"], strict=True))

    def has(self, context: Context) -> bool:
        """Whether a context is of one of these documents, or of another version of one."""
        return digest_text(context) in self.digests or (context.source, context.name) in self.names

    def save(self, folder: Path) -> None:
        """Write both tables."""
        for table, name in ((self.documents, _DOCUMENTS), (self.tokens, _TOKENS)):
            table.to_parquet(folder / name, index=False, compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> Seen | None:
        """Read them; None for a bank that was collected without."""
        if not (folder / _DOCUMENTS).is_file():
            return None
        return cls(pd.read_parquet(folder / _DOCUMENTS), pd.read_parquet(folder / _TOKENS))


def digest_text(context: Context) -> str:
    """The digest of a context's document as tables have it."""
    return f"{context.digest:016x}"


@dataclass
class Watch:
    """Notes what goes by during a pass."""

    n_tokens: int
    counts: NDArray[np.int64] = field(init=False)
    contexts: dict[int, Context] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.n_tokens, dtype=np.int64)

    def of(self, contexts: Iterable[Context]) -> Iterator[Context]:
        """The same contexts, whose documents are remembered."""
        for context in contexts:
            self.contexts.setdefault(context.document, context)
            yield context

    def add(self, batch: Batch) -> None:
        """Count a batch; the first position of every context is left out."""
        tokens = batch.tokens.numpy()
        real = np.arange(tokens.shape[1])[None] < batch.lengths.numpy()[:, None]
        real[:, 0] = False
        self.counts += np.bincount(tokens[real], minlength=self.n_tokens)
        self.numbers.update(batch.document.tolist())

    def seen(self, corpus: Corpus | Store, tokenizer: Any) -> Seen | None:
        """What was seen; None where the documents of stored activations cannot be named, because
        their corpus has changed since."""
        known = self.contexts
        if isinstance(corpus, Store):
            try:
                text = reopen_corpus(corpus.manifest.key["corpus"], tokenizer)
                known = _named(text, self.numbers)
            except CorpusError:
                return None
        rows = [
            (n, known[n].source, known[n].name, digest_text(known[n])) for n in sorted(self.numbers)
        ]
        found = np.flatnonzero(self.counts)
        return Seen(
            pd.DataFrame(rows, columns=pd.Index(["document", "source", "name", "digest"])),
            pd.DataFrame({"token": found, "count": self.counts[found]}),
        )


def _named(corpus: Corpus, numbers: set[int]) -> dict[int, Context]:
    """A context of each of some documents; raises `CorpusError` when the corpus ends before."""
    known: dict[int, Context] = {}
    for context in corpus.contexts():
        if context.document in numbers:
            known.setdefault(context.document, context)
            if len(known) == len(numbers):
                return known
    raise CorpusError("the corpus has fewer documents than were stored.")
