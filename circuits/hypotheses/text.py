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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.corpora import Context
from circuits.features.seen import digest_text
from circuits.hypotheses.claims import Condition, HypothesisError
from circuits.hypotheses.classes import CLASSES, classes_of
from circuits.hypotheses.evidence import coded
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.models.resume import Baseline
from circuits.models.unembed import unembedding
from circuits.saes import SaeSet
from circuits.sites import Site
from circuits.tokens import visible

_PIECES_AT_ONCE = 16
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
