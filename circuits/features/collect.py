"""One pass over a corpus for all latents of all SAEs.

1. Contexts come from a corpus, through the model up to the last site, or from activations that
   `circuits train` has stored, without the model.
2. Each batch is encoded by every SAE and taken in by that SAE's tally (tally.py), whose memory does
   not grow with the corpus.
3. What decoder rows do to the logits is added at the end, on the direct path.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from circuits.corpora import Context, Corpus, Split
from circuits.features.bank import FeatureBank, vocabulary_of
from circuits.features.seen import Watch
from circuits.features.tally import BINS, EDGES, Batch, Tally
from circuits.models.hooked import HookedModel
from circuits.models.unembed import direct_logits, unembedding
from circuits.runs import versions
from circuits.saes import SaeSet
from circuits.saes.sae import SaeError
from circuits.sites import Site
from circuits.train.extract import padded
from circuits.train.store import Store

_CONTEXTS_AT_ONCE = 8
_HELD = 1 << 29  # bytes of activations held while SAEs take turns
_TOKENS_KEPT = 10  # of each list
_ROWS_AT_ONCE = 512  # decoder rows through the unembedding


def collect_features(
    model: HookedModel,
    saes: SaeSet,
    corpus: Corpus | Store,
    *,
    num_tokens: int = 1_000_000,
    examples: int = 10,
    before: int = 16,
    after: int = 7,
    limit: int = 64_000_000,
    only: Split | None = None,
    progress: bool = True,
) -> FeatureBank:
    """A bank of what every latent of `saes` does on a corpus.

    corpus: text; or stored activations, which must be of this model and have the SAEs' sites.
    num_tokens: positions to look at, first positions of contexts included.
    examples: the most kept for a latent, at most one a context; before, after: tokens around each.
    limit: entries of the tables of token counts, of all SAEs together (about 50 bytes an entry
        while a table is brought up to date, 24 otherwise).
    only: the side of a corpus' split to look at; both by default.

    The first position of each context is left out: SAEs are not trained on it. Interrupted with
    Ctrl-C it returns the bank of what it has seen, and says so in the record.
    """
    if isinstance(corpus, Store):
        corpus.require(list(saes), model.sha256)
    n_tokens = unembedding(model).shape[1]
    tallies = {
        site: Tally(source.d_sae, n_tokens, examples, before, after, limit // (2 * len(saes)))
        for site, source in saes.sources.items()
    }
    # First, so that what can go wrong with it goes wrong before the long pass.
    effects = {site: _token_effects(model, saes, site) for site in saes}
    seen, interrupted, order = 0, False, list(tallies.items())
    watch = Watch(n_tokens)
    batches = (
        _stored(corpus, saes, model.device)
        if isinstance(corpus, Store)
        else _run(model, watch.of(corpus.contexts(only)), saes)
    )
    bar = tqdm(total=num_tokens, desc="features", unit="token", disable=not progress)
    with bar, interrupts_wait() as asked:
        for some in _rounds(batches, num_tokens, whole=saes.fits):
            for site, tally in order:
                for batch, values in some:
                    tally.add(batch, saes[site].encode(values[site]))
            order.reverse()  # SAEs that are in memory still come first
            for batch, _ in some:
                watch.add(batch)
            new = sum(int(batch.lengths.sum()) for batch, _ in some)
            seen += new
            bar.update(new)
            interrupted = asked()
            if interrupted:
                break
    if not seen:
        raise SaeError("the corpus has no context that is long enough: there is nothing to see.")
    latents = pd.concat(
        [latents_of(site, tally, *effects[site]) for site, tally in tallies.items()],
        ignore_index=True,
    )
    shown = pd.concat(
        [examples_of(site, tally) for site, tally in tallies.items()], ignore_index=True
    )
    record = {
        "method": "features",
        "model": model.name,
        "model_sha256": model.sha256,
        "saes": [
            {**saes.describe(site), "neuronpedia": source.neuronpedia}
            for site, source in saes.sources.items()
        ],
        "corpus": corpus.manifest.key["corpus"] if isinstance(corpus, Store) else corpus.describe(),
        "tokens": seen,
        "split": only,
        "interrupted": interrupted,
        "positions": next(iter(tallies.values())).positions,
        "examples": examples,
        "window": [before, after],
        "histogram_edges": EDGES.tolist(),
        "token_count_error": {
            str(site): max(tally.at.error, tally.ahead.error) for site, tally in tallies.items()
        },
        "versions": versions(),
    }
    words = vocabulary_of(latents, shown, model.tokenizer)
    return FeatureBank(latents, shown, record, words, watch.seen(corpus, model.tokenizer))


@contextmanager
def interrupts_wait() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only raises a flag inside the block, so that nothing is left half counted; a second
    one interrupts at once. Yields whether it was pressed."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def remember(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


Values = dict[Site, Float[Tensor, "context position width"]]


def _rounds(
    batches: Iterator[tuple[Batch, Values]], num_tokens: int, whole: bool
) -> Iterator[list[tuple[Batch, Values]]]:
    """Batches until `num_tokens`, one by one; or, where not all SAEs are in memory at once, as many
    together as half a GiB holds, so that each SAE is loaded once for all of them."""
    waiting: list[tuple[Batch, Values]] = []
    seen, held = 0, 0
    for batch, values in batches:
        waiting.append((batch, values))
        seen += int(batch.lengths.sum())
        held += sum(x.numel() * x.element_size() for x in values.values())
        if whole or held >= _HELD or seen >= num_tokens:
            yield waiting
            waiting, held = [], 0
        if seen >= num_tokens:
            return
    if waiting:
        yield waiting


def _run(
    model: HookedModel, contexts: Iterable[Context], saes: SaeSet
) -> Iterator[tuple[Batch, Values]]:
    """Batches of contexts through the model."""
    waiting: list[Context] = []
    number = 0
    for context in contexts:
        waiting.append(context)
        if len(waiting) == _CONTEXTS_AT_ONCE:
            yield _through(model, waiting, saes, number)
            number += len(waiting)
            waiting = []
    if waiting:
        yield _through(model, waiting, saes, number)


def _through(
    model: HookedModel, contexts: Sequence[Context], saes: SaeSet, number: int
) -> tuple[Batch, Values]:
    tokens, lengths = padded(contexts)
    values = model.activations(tokens, list(saes))
    batch = Batch(
        tokens,
        lengths,
        torch.arange(number, number + len(contexts)),
        torch.tensor([c.document for c in contexts]),
    )
    return batch, {site: x.float() for site, x in values.items()}


def _stored(store: Store, saes: SaeSet, device: torch.device) -> Iterator[tuple[Batch, Values]]:
    """Batches of stored contexts; rows are laid out as the model would have given them."""
    number = 0
    for shard in store.manifest.shards:
        tokens, lengths, documents = store.read_contexts(shard)
        rows = {site: store.read(site, shard) for site in saes}
        done = 0
        for start in range(0, len(tokens), _CONTEXTS_AT_ONCE):
            part = lengths[start : start + _CONTEXTS_AT_ONCE]
            longest = int(part.max())
            real = torch.arange(1, longest)[None] < part[:, None]
            count = int(real.sum())
            values = {}
            for site, x in rows.items():
                laid = torch.zeros(len(part), longest, x.shape[1])
                laid[:, 1:][real] = x[done : done + count].float()
                values[site] = laid.to(device)
            done += count
            batch = Batch(
                tokens[start : start + _CONTEXTS_AT_ONCE, :longest],
                part,
                torch.arange(number, number + len(part)),
                documents[start : start + _CONTEXTS_AT_ONCE],
            )
            number += len(part)
            yield batch, values


Effects = tuple[Tensor, Tensor]  # tokens and what is done to their logits, [latent, rank]


def latents_of(
    site: Site, tally: Tally, raised: Effects, lowered: Effects, kept: int = _TOKENS_KEPT
) -> pd.DataFrame:
    """One row a latent; see `FeatureBank.latents`. kept: tokens in each list of what it is active
    at."""
    at, ahead = tally.at.most(kept), tally.ahead.most(kept)
    rows: list[dict[str, Any]] = []
    for latent in range(tally.d_sae):
        active = int(tally.active[latent])
        here = at[latent] if latent < len(at) else []
        before = ahead[latent] if latent < len(ahead) else []
        rows.append(
            {
                "site": str(site),
                "latent": latent,
                "active": active,
                "rate": active / tally.positions,
                "mean": float(tally.total[latent] / active) if active else 0.0,
                "max": float(tally.largest[latent]),
                "dead": active == 0,
                "histogram": tally.histogram[latent].astype("int32"),
                "at": [t for t, _ in here],
                "at_count": [n for _, n in here],
                "before": [t for t, _ in before],
                "before_count": [n for _, n in before],
                "raised": raised[0][latent].tolist(),
                "raised_by": raised[1][latent].tolist(),
                "lowered": lowered[0][latent].tolist(),
                "lowered_by": lowered[1][latent].tolist(),
            }
        )
    assert len(rows[0]["histogram"]) == BINS
    return pd.DataFrame(rows)


def _token_effects(model: HookedModel, saes: SaeSet, site: Site) -> tuple[Effects, Effects]:
    """Tokens whose logits a latent's decoder row raises and lowers most, relative to the mean over
    tokens, which the softmax takes out."""
    found = []
    for rows in saes[site].rows.split(_ROWS_AT_ONCE):
        logits = direct_logits(model, rows, site)
        logits = logits - logits.mean(dim=-1, keepdim=True)
        up, down = logits.topk(_TOKENS_KEPT), (-logits).topk(_TOKENS_KEPT)
        found.append((up.indices, up.values, down.indices, -down.values))
    indices, values, down_indices, down_values = (
        torch.cat(x).cpu() for x in zip(*found, strict=True)
    )
    return (indices, values), (down_indices, down_values)


def examples_of(site: Site, tally: Tally) -> pd.DataFrame:
    """One row an example; see `FeatureBank.examples`."""
    found = tally.examples
    latent, rank = (found.value > 0).nonzero(as_tuple=True)
    return pd.DataFrame(
        {
            "site": str(site),
            "latent": latent.numpy(),
            "rank": rank.numpy(),
            "value": found.value[latent, rank].numpy(),
            "context": found.number[latent, rank].numpy(),
            "document": found.document[latent, rank].numpy(),
            "position": found.position[latent, rank].numpy(),
            "tokens": list(found.tokens[latent, rank].numpy()),
            "activations": list(found.activations[latent, rank].numpy()),
        }
    )
