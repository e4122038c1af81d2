"""Text to train SAEs on and to explain latents with: documents, sources, mixes of them."""

from circuits.corpora.documents import CorpusError, Document, Source, open_source
from circuits.corpora.mix import Context, Corpus, Split, parse_corpus, reopen_corpus

__all__ = [
    "Context",
    "Corpus",
    "CorpusError",
    "Document",
    "Source",
    "Split",
    "open_source",
    "parse_corpus",
    "reopen_corpus",
]
