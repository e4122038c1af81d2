"""A mix of sources as contexts of tokens, split into training and held-out documents.

Sources take turns so that their shares of the tokens follow their weights. A document's side of the
split depends on its text alone: copies of it fall on the same side, and no document is on both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from circuits.corpora.documents import CorpusError, Document, Source, open_source
from circuits.prompts import resolve_bos

Split = Literal["train", "heldout"]
_BUCKETS = 10_000


@dataclass(frozen=True)
class Context:
    """A piece of a document, as the model reads it.

    tokens: ids, with a beginning-of-text token in front where one is asked for. document: a number,
    counted over the whole mix. source, name: where it is from. digest: of the document's text.
    """

    tokens: tuple[int, ...]
    document: int
    source: str
    name: str
    split: Split
    digest: int


@dataclass(frozen=True)
class Corpus:
    """Sources mixed by weight.

    sources, weights: the share of each in tokens, as long as it lasts. heldout: share of documents
    that are kept out of training. context: most tokens of a context. smallest: shorter documents
    and rests are left out. shortest: characters under which a document is left out.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    heldout: float = 0.05
    context: int = 256
    smallest: int = 16
    shortest: int = 200
    prepend_bos: bool = False
    tokenizer: Any = field(repr=False, default=None)

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.weights):
            raise CorpusError("a corpus needs sources, and one weight for each.")
        if not all(w > 0 for w in self.weights):
            raise CorpusError(f"weights must be positive, not {self.weights}.")
        names = [s.name for s in self.sources]
        if len(set(names)) != len(names):
            raise CorpusError(f"a corpus is named twice: {', '.join(names)}.")
        if not 0 <= self.heldout < 1:
            raise CorpusError(f"the held-out share is {self.heldout}: expected 0 to below 1.")
        if self.context < self.smallest or self.smallest < 2:
            raise CorpusError(
                f"contexts of {self.context} tokens, at least {self.smallest}: expected 2 or more, "
                "and the first not below the second."
            )
        if self.prepend_bos and getattr(self.tokenizer, "bos_token_id", None) is None:
            raise CorpusError("the tokenizer has no beginning-of-text token to put in front.")

    def describe(self) -> dict[str, Any]:
        """For records and manifests: everything the contexts depend on, except the tokenizer."""
        return {
            "sources": [
                {"name": s.name, "weight": w, **s.describe()}
                for s, w in zip(self.sources, self.weights, strict=True)
            ],
            "heldout": self.heldout,
            "context": self.context,
            "smallest": self.smallest,
            "shortest": self.shortest,
            "prepend_bos": self.prepend_bos,
        }

    def split_of(self, document: Document) -> Split:
        """Which side of the split a document is on."""
        bucket = (document.digest >> 16) % _BUCKETS  # the first 48 bits
        return "heldout" if bucket < round(self.heldout * _BUCKETS) else "train"

    def contexts(self, only: Split | None = None) -> Iterator[Context]:
        """All contexts, in an order that is the same every time; exact copies of a document are
        left out. Ends when every source is used up."""
        seen: set[int] = set()
        streams = [iter(source.documents()) for source in self.sources]
        used = [0.0] * len(streams)
        alive = set(range(len(streams)))
        number = 0
        while alive:
            turn = min(alive, key=lambda i: (used[i] / self.weights[i], i))
            document = next(streams[turn], None)
            if document is None:
                alive.remove(turn)
                continue
            if len(document.text) < self.shortest or document.digest in seen:
                continue
            seen.add(document.digest)
            split = self.split_of(document)
            for tokens in self._pieces(document):
                used[turn] += len(tokens)
                if only in (None, split):
                    name = self.sources[turn].name
                    yield Context(tokens, number, name, document.name, split, document.digest)
            number += 1

    def _pieces(self, document: Document) -> Iterator[tuple[int, ...]]:
        ids = self.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        front = (int(self.tokenizer.bos_token_id),) if self.prepend_bos else ()
        room = self.context - len(front)
        for start in range(0, len(ids), room):
            piece = tuple(ids[start : start + room])
            if len(piece) >= self.smallest:
                yield (*front, *piece)


def parse_corpus(
    specs: Sequence[str],
    tokenizer: Any,
    *,
    text_field: str = "text",
    prepend_bos: bool | None = None,
    **options: Any,
) -> Corpus:
    """A corpus from the words of the command line, each SOURCE or SOURCE=WEIGHT
    (`circuits.corpora.open_source`).

    prepend_bos: None does what the tokenizer itself does. options: the others of `Corpus`.
    """
    if tokenizer is None:
        raise CorpusError("this model has no tokenizer: a corpus of text cannot be read for it.")
    sources, weights = [], []
    for spec in specs:
        name, sign, weight = spec.rpartition("=")
        try:
            weights.append(float(weight) if sign else 1.0)
        except ValueError:
            name, sign = "", ""  # a "=" of the path
            weights.append(1.0)
        sources.append(open_source(name if sign else spec, text_field))
    options["prepend_bos"] = resolve_bos(tokenizer, prepend_bos)
    return Corpus(tuple(sources), tuple(weights), tokenizer=tokenizer, **options)


def reopen_corpus(description: Mapping[str, Any], tokenizer: Any) -> Corpus:
    """The corpus that `Corpus.describe` describes, as a record keeps it.

    Raises `CorpusError` where its sources are not here any more, or have changed.
    """
    try:
        names = [str(one["name"]) for one in description["sources"]]
        weights = [float(one["weight"]) for one in description["sources"]]
        fields = [str(one.get("text_field", "text")) for one in description["sources"]]
        options = {k: description[k] for k in ("heldout", "context", "smallest", "shortest")}
        prepend_bos = bool(description["prepend_bos"])
    except (KeyError, TypeError) as error:
        raise CorpusError(f"the record does not say which corpus it was ({error}).") from error
    sources = tuple(open_source(n, f) for n, f in zip(names, fields, strict=True))
    made = Corpus(sources, tuple(weights), prepend_bos=prepend_bos, tokenizer=tokenizer, **options)
    now = {one["name"]: one for one in made.describe()["sources"]}
    changed = [one["name"] for one in description["sources"] if dict(one) != now[one["name"]]]
    if changed:
        raise CorpusError(
            f"{', '.join(changed)} is not what it was when the record was made: its documents "
            "cannot be told apart from those that were used then."
        )
    return made
