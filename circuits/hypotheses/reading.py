"""`read_text`: documents that no bank has seen, read, and cut into pieces to add latents in."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from circuits.corpora import Context, Corpus, Split
from circuits.features.seen import Seen
from circuits.hypotheses.claims import HypothesisError
from circuits.hypotheses.evidence import coded
from circuits.hypotheses.text import Reading, TextEvidence
from circuits.hypotheses.vectors import check_latents
from circuits.models.hooked import HookedModel
from circuits.saes import SaeSet
from circuits.sites import Site
from circuits.train.extract import padded

_CONTEXTS_AT_ONCE = 8
_ENOUGH = 12  # documents in which latents are added, at least, where there are as many


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
