"""`TextEvidence`: positions of documents, read by a language model with SAEs.

1. Documents come from a corpus, one after another; those that a bank has seen are left out. Of each
   a few contexts are taken, anywhere in it: documents count, and many short looks say more than one
   long one.
2. The model reads them up to the last site; of every wanted latent the coefficient is kept at every
   position but the first of each context.
3. Latents are added at the last position of pieces of these contexts, and only what is behind that
   place is computed again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from circuits.corpora import Context, Corpus, Split
from circuits.features.seen import Seen, digest_text
from circuits.hypotheses.claims import Condition, HypothesisError
from circuits.hypotheses.classes import CLASSES, classes_of
from circuits.hypotheses.evidence import coded
from circuits.hypotheses.vectors import check_latents
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.models.resume import Baseline
from circuits.models.unembed import unembedding
from circuits.saes import SaeSet
from circuits.sites import Site
from circuits.tokens import visible
from circuits.train.extract import padded

_CONTEXTS_AT_ONCE = 8
_PIECES_AT_ONCE = 16
_ENOUGH = 12  # documents in which latents are added, at least, where there are as many
_BEFORE, _AFTER = 24, 8  # tokens around an example that is shown


@dataclass(frozen=True)
class Reading:
    """What was seen of one site: the wanted latents, their coefficients, and all that were
    active."""

    latents: tuple[int, ...]
    values: Float[np.ndarray, "example latent"]
    alive: Int[np.ndarray, " some"]


@dataclass(frozen=True, eq=False)
class TextEvidence:
    """Positions of held-out documents.

    contexts: what was read; examples are their positions but the first, one context after another.
    readings: by site. pieces: tokens of which the last position is where latents are added;
    places: the document of each, coded as `groups`. left_out: documents that were skipped because
    they had been seen.
    """

    model: HookedModel
    saes: SaeSet
    contexts: tuple[Context, ...]
    readings: Mapping[str, Reading]
    pieces: Int[Tensor, "place position"]
    places: Int[np.ndarray, " place"]
    left_out: int
    corpus: dict[str, Any]

    @property
    def kind(self) -> Literal["text"]:
        """What sort of data this is."""
        return "text"

    @property
    def ids(self) -> frozenset[str]:
        """Digests of the documents' texts."""
        return self._ids

    @cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(digest_text(c) for c in self.contexts)

    @cached_property
    def where(self) -> Int[np.ndarray, "example 2"]:
        """Of each example the context and the position in it."""
        return np.concatenate(
            [[(i, p) for p in range(1, len(c.tokens))] for i, c in enumerate(self.contexts)]
        )

    @property
    def groups(self) -> Int[np.ndarray, " example"]:
        """Of each example its document."""
        return self._groups

    @cached_property
    def _groups(self) -> Int[np.ndarray, " example"]:
        return coded([c.document for c in self.contexts])[self.where[:, 0]]

    @cached_property
    def tokens(self) -> Int[np.ndarray, " example"]:
        """Token ids at the examples."""
        return np.array([t for c in self.contexts for t in c.tokens[1:]])

    @cached_property
    def before(self) -> Int[np.ndarray, " example"]:
        """Token ids just before the examples."""
        return np.array([t for c in self.contexts for t in c.tokens[:-1]])

    @cached_property
    def texts(self) -> list[str]:
        """The text of every token of the vocabulary."""
        size = unembedding(self.model).shape[1]
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise HypothesisError("this model has no tokenizer: tokens cannot be named.")
        # Rows of the unembedding beyond the tokenizer's have no text.
        known = min(size, len(tokenizer))
        texts = tokenizer.batch_decode([[i] for i in range(known)])
        return [*texts, *([""] * (size - known))]

    def sites(self) -> tuple[str, ...]:
        """Where SAEs were read."""
        return tuple(self.readings)

    def _reading(self, site: str) -> Reading:
        if site not in self.readings:
            raise HypothesisError(
                f"no SAE was read at {site}: there are {', '.join(self.sites())}."
            )
        return self.readings[site]

    def active(self, site: str, latents: Sequence[int]) -> Float[np.ndarray, "example latent"]:
        """Coefficients of latents that were wanted when the text was read."""
        found = self._reading(site)
        missing = [k for k in latents if k not in found.latents]
        if missing:
            raise HypothesisError(
                f"latents {missing} at {site} were not kept: read the text again."
            )
        return found.values[:, [found.latents.index(k) for k in latents]]

    def alive(self, site: str) -> Int[np.ndarray, " latent"]:
        """Latents that are active on some example."""
        return self._reading(site).alive

    def rows(self, site: str) -> Float[np.ndarray, "latent width"]:
        """Decoder rows."""
        self._reading(site)
        return self.saes[Site.parse(site)].rows.float().cpu().numpy()

    def outputs(self, condition: Condition) -> Int[np.ndarray, " output"]:
        """Token ids that a token's text, its id, or a class means."""
        value = condition.value
        if condition.kind in ("token", "before"):
            if isinstance(value, int):
                if not 0 <= value < len(self.texts):
                    raise HypothesisError(
                        f"there is no token {value}: ids end at {len(self.texts)}."
                    )
                return np.array([value])
            found = [i for i, text in enumerate(self.texts) if text == value]
            if not found:
                raise HypothesisError(f"{value!r} is no token of this model. {_near(self, value)}")
            return np.array(found)
        if condition.kind == "class":
            if value not in CLASSES:
                raise HypothesisError(
                    f"unknown class of tokens {value!r}: expected one of {', '.join(CLASSES)}."
                )
            found = np.flatnonzero([value in classes_of(text) for text in self.texts])
            if not len(found):
                raise HypothesisError(f"this model has no token of the class {value!r} by itself.")
            return found
        raise HypothesisError(f"{condition.kind} {value!r} names no tokens.")

    def members(self, condition: Condition) -> Bool[np.ndarray, " example"]:
        """The positions of a token, behind a token, of a class, or in documents of a source."""
        if condition.kind == "label":
            raise HypothesisError("text has no labels: expected token, before, class or source.")
        if condition.kind == "source":
            names = {c.source for c in self.contexts}
            if condition.value not in names:
                raise HypothesisError(
                    f"no document is from {condition.value!r}: there are "
                    f"{', '.join(sorted(names))}."
                )
            mine = np.array([c.source == condition.value for c in self.contexts])
            return mine[self.where[:, 0]]
        stands = self.before if condition.kind == "before" else self.tokens
        return np.isin(stands, self.outputs(condition))

    @cached_property
    def _baselines(self) -> list[Baseline]:
        """Runs of all pieces: a few at once, kept for every latent."""
        last = self.pieces.shape[1] - 1
        return [self.model.baseline(part, last) for part in self.pieces.split(_PIECES_AT_ONCE)]

    @torch.no_grad()
    def effect(
        self,
        site: str,
        directions: Float[np.ndarray, "direction width"],
        targets: Sequence[Int[np.ndarray, " _"]],
        places: Int[np.ndarray, " some"],
    ) -> Float[np.ndarray, "some direction target"]:
        """See `Evidence.effect`."""
        device = self.model.device
        wanted = [torch.from_numpy(t).to(device) for t in targets]
        found = np.empty((len(places), len(directions), len(targets)))

        def read(rows: Tensor, logits: Tensor) -> Tensor:
            wide = logits.double()
            mean = wide.mean(-1)
            return torch.stack([wide[:, t].mean(-1) - mean for t in wanted], 1)

        for mine, entries, pairs, baseline, passes in self._added(site, directions, places, read):
            values = torch.empty(len(pairs), len(wanted), dtype=torch.float64)
            for part, got in passes:
                values[part] = got.cpu()
            plain = read(pairs, baseline.logits)[entries.to(device)].cpu()
            change = rearrange(values, "(p d) t -> p d t", d=len(directions)) - plain[:, None]
            found[mine] = change.numpy()
        return found

    def mean_effects(
        self,
        site: str,
        directions: Float[np.ndarray, "direction width"],
        places: Int[np.ndarray, " some"],
        weights: Float[np.ndarray, " some"],
    ) -> Float[np.ndarray, "direction output"]:
        """See `Evidence.mean_effects`."""
        device, count = self.model.device, len(directions)
        share = torch.from_numpy(weights).to(device)
        vocabulary = unembedding(self.model).shape[1]
        total = torch.zeros(count, vocabulary, dtype=torch.float64, device=device)

        def centred(logits: Tensor) -> Tensor:
            wide = logits.double()
            return wide - wide.mean(-1, keepdim=True)

        def read(rows: Tensor, logits: Tensor) -> Tensor:
            return centred(logits)

        for mine, entries, _, baseline, passes in self._added(site, directions, places, read):
            weight = share[torch.from_numpy(mine).to(device)]
            for part, got in passes:
                there = part.to(device)
                place = there.div(count, rounding_mode="floor")
                total.index_add_(0, there % count, got.to(device) * weight[place, None])
            total -= weight @ centred(baseline.logits[entries.to(device)])
        return total.cpu().numpy()

    def _added(
        self,
        site: str,
        directions: Float[np.ndarray, "direction width"],
        places: Int[np.ndarray, " some"],
        read: Callable[[Tensor, Tensor], Tensor],
    ) -> Iterator[tuple[Any, Tensor, Tensor, Any, Any]]:
        """Per baseline (which of `places` it has, their entries in it, the pair of every row,
        the baseline, passes): rows are places with each direction added at their last position, in
        this order."""
        added = torch.from_numpy(directions).float().to(self.model.device)
        for number, baseline in enumerate(self._baselines):
            mine = np.flatnonzero(places // _PIECES_AT_ONCE == number)
            if not len(mine):
                continue
            entries = torch.from_numpy(places[mine] % _PIECES_AT_ONCE)
            pairs = entries.repeat_interleave(len(added))
            rows = torch.arange(len(pairs))
            last = torch.full((len(pairs),), baseline.length - 1)
            patch = Patches(Site.parse(site), rows, last, added.repeat(len(mine), 1), add=True)
            passes = self.model.resume(baseline, pairs, [patch], read=read)
            yield mine, entries, pairs, baseline, passes

    def shown(self, example: int) -> str:
        """The text around a position, with the token there between double angle brackets."""
        context, position = self.where[example].tolist()
        tokens = self.contexts[context].tokens
        first = max(0, position - _BEFORE)
        texts = [self.texts[t] for t in tokens[first : position + _AFTER + 1]]
        return marked(texts, position - first)

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {
            "kind": self.kind,
            "model": self.model.name,
            "model_sha256": self.model.sha256,
            "saes": [self.saes.describe(Site.parse(site)) for site in self.readings],
            "corpus": self.corpus,
            "examples": len(self.tokens),
            "documents": len(self.ids),
            "documents_left_out": self.left_out,
            "contexts": len(self.contexts),
            "piece": int(self.pieces.shape[1]),
        }


def marked(texts: Sequence[str], position: int) -> str:
    """Tokens as text, the one at `position` between double angle brackets."""
    parts = [f"<<{t}>>" if i == position else t for i, t in enumerate(texts)]
    return "".join(parts)


def _near(evidence: TextEvidence, value: str) -> str:
    """What may have been meant."""
    bare = value.strip()
    like = [t for t in evidence.texts if bare and t.strip() == bare][:5]
    if like:
        return f"Tokens count their spaces; there are {', '.join(map(repr, like))}."
    ids = evidence.model.tokenizer(value, add_special_tokens=False)["input_ids"]
    pieces = " | ".join(visible(evidence.texts[i]) for i in ids)
    return f"It is read as {pieces}: name one of these, or a token's id."


def read_text(
    model: HookedModel,
    saes: SaeSet,
    corpus: Corpus,
    wanted: Mapping[str, Sequence[int]],
    *,
    num_tokens: int = 40_000,
    unseen: Seen | None = None,
    only: Split | None = None,
    per_document: int = 2,
    places: int = 48,
    length: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> TextEvidence:
    """Read documents on which hypotheses are to be tested.

    wanted: latents by site. num_tokens: positions to look at, as long as there are documents.
    unseen: leave out the documents of this bank. only: the side of the corpus' split.
    per_document: most contexts of one document. places: pieces at whose end latents are added, at
        most one a context; length: tokens of a piece.

    Raises `HypothesisError` for latents that there are not and when no document is left.
    """
    for site, latents in wanted.items():
        if Site.parse(site) not in saes.sources:
            raise HypothesisError(f"no SAE at {site}: there are {', '.join(map(str, saes))}.")
        check_latents(site, latents, saes.sources[Site.parse(site)].d_sae)
    draw = np.random.default_rng(seed)
    chosen, left_out = _choose(corpus, num_tokens, unseen, only, per_document, draw)
    if not chosen:
        side = {"heldout": " on the held-out side", "train": " on the training side"}
        raise HypothesisError(
            f"no document is left to test on: {left_out} were seen when the bank was made"
            f"{', and no other is' + side[only] if only else ''}. Give another --corpus, or "
            "collect a bank that leaves documents out (circuits features --heldout 0.1)."
        )
    readings = _read(model, saes, chosen, wanted, progress)
    pieces, groups = _pieces(chosen, places, length, draw)
    return TextEvidence(
        model, saes, tuple(chosen), readings, pieces, groups, left_out, corpus.describe()
    )


def _choose(
    corpus: Corpus,
    num_tokens: int,
    unseen: Seen | None,
    only: Split | None,
    per_document: int,
    draw: np.random.Generator,
) -> tuple[list[Context], int]:
    """Contexts to read, and how many documents were left out."""
    chosen: list[Context] = []
    tokens, left_out = 0, 0
    for _, part in itertools.groupby(corpus.contexts(only), key=lambda c: c.document):
        contexts = list(part)
        if unseen is not None and unseen.has(contexts[0]):
            left_out += 1
            continue
        few = np.sort(draw.permutation(len(contexts))[:per_document])
        chosen += [contexts[i] for i in few]
        tokens += sum(len(contexts[i].tokens) for i in few)
        if tokens >= num_tokens:
            break
    return chosen, left_out


def _batches(contexts: Sequence[Context], progress: bool) -> Iterator[Sequence[Context]]:
    total = sum(len(c.tokens) for c in contexts)
    with tqdm(total=total, desc="reading", unit="token", disable=not progress) as bar:
        for start in range(0, len(contexts), _CONTEXTS_AT_ONCE):
            part = contexts[start : start + _CONTEXTS_AT_ONCE]
            yield part
            bar.update(sum(len(c.tokens) for c in part))


def _read(
    model: HookedModel,
    saes: SaeSet,
    contexts: Sequence[Context],
    wanted: Mapping[str, Sequence[int]],
    progress: bool,
) -> dict[str, Reading]:
    sites = {Site.parse(name): tuple(dict.fromkeys(latents)) for name, latents in wanted.items()}
    values: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    alive = {site: np.zeros(saes.sources[site].d_sae, dtype=bool) for site in sites}
    for part in _batches(contexts, progress):
        tokens, lengths = padded(part)
        real = torch.arange(1, tokens.shape[1])[None] < lengths[:, None]
        found = model.activations(tokens, list(sites))
        for site, latents in sites.items():
            x = found[site].float()[:, 1:][real.to(found[site].device)]
            coefficients = saes[site].coefficients(x)
            values[site].append(coefficients[:, list(latents)].float().cpu().numpy())
            alive[site] |= (coefficients != 0).any(0).cpu().numpy()
    return {
        str(site): Reading(latents, np.concatenate(values[site]), np.flatnonzero(alive[site]))
        for site, latents in sites.items()
    }


def _pieces(
    contexts: Sequence[Context], places: int, length: int, draw: np.random.Generator
) -> tuple[Int[Tensor, "place position"], Int[np.ndarray, " place"]]:
    """The beginnings of contexts, of as many documents as there are, and their documents."""
    groups = coded([c.document for c in contexts])
    longest = np.zeros(groups.max() + 1, dtype=int)
    np.maximum.at(longest, groups, [len(c.tokens) for c in contexts])
    # As long as half of the documents allow, and a dozen of them where there are as many.
    enough = min(len(longest), max(_ENOUGH, len(longest) // 2))
    length = min(length, int(np.sort(longest)[-enough]))
    order = draw.permutation([i for i, c in enumerate(contexts) if len(c.tokens) >= length])
    # The first of each document before the second of any.
    taken: Counter[int] = Counter()
    turns: list[tuple[int, int, int]] = []
    for n, i in enumerate(order.tolist()):
        turns.append((taken[int(groups[i])], n, i))
        taken[int(groups[i])] += 1
    few = sorted(i for *_, i in sorted(turns)[:places])
    tokens = torch.tensor([contexts[i].tokens[:length] for i in few])
    return tokens, groups[few]
