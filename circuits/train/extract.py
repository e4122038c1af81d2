"""One pass of the model over a corpus, storing the activations of all chosen sites.

1. Documents become contexts of tokens (`circuits.corpora`), in an order that is always the same.
2. Contexts gather into shards, those of training and of held-out documents apart; within a shard
   they are sorted by length, so that little is padded.
3. The model runs up to the last site that is asked for; every position but the first is stored.

A shard is written under a temporary name, renamed, and only then entered into the manifest. An
interrupted extraction, given again, goes through the documents again, runs the model only from the
first missing shard on, and ends with the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from circuits.corpora import Context, Corpus, Split
from circuits.models.hooked import HookedModel
from circuits.runs import sha256_of
from circuits.sites import Site
from circuits.train.store import Manifest, Shard, Store, StoreError

CONTEXTS_PER_SHARD = 128  # at most; fewer where that would be more than half a GiB
_SHARD_BYTES = 1 << 29


def extract(
    model: HookedModel,
    corpus: Corpus,
    sites: Sequence[Site],
    folder: Path,
    *,
    num_tokens: int,
    batch_size: int = 8,
    progress: bool = True,
) -> Store:
    """Store the activations of about `num_tokens` positions (whole shards), or resume doing so.

    sites: where; in a folder that is complete already, some of its sites.
    num_tokens: positions stored, training and held-out together; the corpus may end before.
    batch_size: contexts run at once. It is part of what the stored values depend on (rounding).

    Raises `StoreError` when the folder holds the activations of something else, when the corpus
    has nothing to train on or nothing held out, and `SiteError` for sites the model lacks.
    """
    if not sites:
        raise StoreError("no sites were named: there is nothing to store.")
    for site in sites:
        model.require(site.kind)
        model.adapter.hook_point(site)
    if corpus.context > model.adapter.n_ctx:
        raise StoreError(
            f"contexts of {corpus.context} tokens, but {model.name} reads at most "
            f"{model.adapter.n_ctx}: give --context a smaller number."
        )
    key = _key(model, corpus, sites, num_tokens, batch_size)
    found = Manifest.read(folder)
    if found is not None and found.complete and set(key["sites"]) <= set(found.key["sites"]):
        key |= {name: found.key[name] for name in ("sites", "widths")}  # some of those stored
    if found is not None and found.key != key:
        raise StoreError(f"{folder} holds other activations: {_difference(found.key, key)}.")
    manifest = found or Manifest(key)
    folder.mkdir(parents=True, exist_ok=True)
    kept = _intact(folder, manifest.shards, progress)
    if manifest.complete and len(kept) == len(manifest.shards):
        return Store.open(folder)
    manifest = replace(manifest, shards=kept, complete=False)
    lock = filelock.FileLock(folder / ".lock")
    try:
        with lock.acquire(timeout=0):
            return _extract(model, corpus, folder, manifest, num_tokens, batch_size, progress)
    except filelock.Timeout as error:
        raise StoreError(f"another process is extracting into {folder}: wait for it.") from error


def _extract(
    model: HookedModel,
    corpus: Corpus,
    folder: Path,
    manifest: Manifest,
    num_tokens: int,
    batch_size: int,
    progress: bool,
) -> Store:
    manifest.write(folder)
    counts, tokens = Counter[str](), Counter[str]()
    with tqdm(total=num_tokens, desc="extracting", unit="token", disable=not progress) as bar:
        size = int(manifest.key["contexts_per_shard"])
        for number, (split, contexts) in enumerate(_shards(corpus, num_tokens, size)):
            name = f"{split}-{counts[split]:05d}.safetensors"
            counts[split] += 1
            for context in contexts:
                tokens[context.source] += len(context.tokens)
            if number < len(manifest.shards):
                _require_same(folder, manifest.shards[number], contexts)
            else:
                shard = _write(model, manifest.sites, folder, name, split, contexts, batch_size)
                shards = (*manifest.shards, shard)
                manifest = replace(manifest, shards=shards, tokens=dict(tokens))
                manifest.write(folder)
            bar.update(manifest.shards[number].rows)
    if not counts["train"] or (corpus.heldout and not counts["heldout"]):
        raise StoreError(
            f"the corpus gives {counts['train']} shards to train on and {counts['heldout']} held "
            "out: both are needed. Give more text, or another held-out share."
        )
    replace(manifest, complete=True, tokens=dict(tokens)).write(folder)
    return Store.open(folder)


def _key(
    model: HookedModel, corpus: Corpus, sites: Sequence[Site], num_tokens: int, batch_size: int
) -> dict[str, Any]:
    return {
        "model": model.name,
        "model_sha256": model.sha256,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "sites": [str(site) for site in sites],
        "widths": [_width(model, site) for site in sites],
        "corpus": corpus.describe(),
        "num_tokens": num_tokens,
        "batch_size": batch_size,
        "contexts_per_shard": contexts_per_shard(model, corpus, sites),
    }


def contexts_per_shard(model: HookedModel, corpus: Corpus, sites: Sequence[Site]) -> int:
    """How many contexts lie in one shard; a shard is in memory as a whole."""
    a_context = 2 * corpus.context * sum(_width(model, site) for site in sites)
    return max(8, min(CONTEXTS_PER_SHARD, _SHARD_BYTES // a_context))


def _width(model: HookedModel, site: Site) -> int:
    return model.n_heads * model.adapter.d_head if site.kind == "z" else model.d_model


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    flat_old, flat_new = _flat(old), _flat(new)
    names = [k for k in {**flat_new, **flat_old} if flat_old.get(k) != flat_new.get(k)]
    said = ", ".join(
        f"{k} was {str(flat_old.get(k))[:80]}, is {str(flat_new.get(k))[:80]}" for k in names[:4]
    )
    return f"{said}. Give --cache-dir another folder, or remove this one"


def _flat(key: Any, name: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary, `corpus.sources.0.weight`."""
    if isinstance(key, dict):
        parts = [_flat(v, f"{name}.{k}" if name else str(k)) for k, v in key.items()]
    elif isinstance(key, list) and key and isinstance(key[0], dict):
        parts = [_flat(v, f"{name}.{i}") for i, v in enumerate(key)]
    else:
        return {name: key}
    return {k: v for part in parts for k, v in part.items()}


def _intact(folder: Path, shards: Sequence[Shard], progress: bool) -> tuple[Shard, ...]:
    """The shards up to the first that is missing or has another checksum."""
    kept: list[Shard] = []
    for shard in tqdm(shards, desc="verifying", unit="shard", disable=not progress or not shards):
        path = folder / shard.file
        if not path.is_file() or sha256_of(path) != shard.sha256:
            break
        kept.append(shard)
    return tuple(kept)


def _require_same(folder: Path, shard: Shard, contexts: list[Context]) -> None:
    """Raise `StoreError` when a finished shard is not of these contexts: a data set of the hub or a
    tokenizer has changed since."""
    tokens, lengths = padded(contexts)
    stored, stored_lengths, _ = Store(folder, Manifest({})).read_contexts(shard)
    if not (torch.equal(stored, tokens) and torch.equal(stored_lengths, lengths)):
        raise StoreError(
            f"{folder / shard.file} is of other text than the corpus gives now: the corpus or the "
            "tokenizer has changed. Give --cache-dir another folder, or remove this one."
        )


def _shards(corpus: Corpus, num_tokens: int, size: int) -> Iterator[tuple[Split, list[Context]]]:
    """Contexts in shards, until `num_tokens` rows are full or the corpus ends."""
    waiting: dict[Split, list[Context]] = {"train": [], "heldout": []}
    rows = 0
    for context in corpus.contexts():
        waiting[context.split].append(context)
        rows += len(context.tokens) - 1
        if len(waiting[context.split]) == size:
            yield context.split, _by_length(waiting[context.split])
            waiting[context.split] = []
        if rows >= num_tokens:
            break
    for split, contexts in waiting.items():
        if contexts:
            yield split, _by_length(contexts)


def _by_length(contexts: list[Context]) -> list[Context]:
    return sorted(contexts, key=lambda c: -len(c.tokens))


def padded(contexts: Sequence[Context]) -> tuple[Tensor, Tensor]:
    """Tokens [context, position], zeros at the end, and the lengths."""
    lengths = torch.tensor([len(c.tokens) for c in contexts])
    tokens = torch.zeros(len(contexts), int(lengths.max()), dtype=torch.long)
    for row, context in enumerate(contexts):
        tokens[row, : len(context.tokens)] = torch.tensor(context.tokens)
    return tokens, lengths


def _write(
    model: HookedModel,
    sites: Sequence[Site],
    folder: Path,
    name: str,
    split: Split,
    contexts: list[Context],
    batch_size: int,
) -> Shard:
    tokens, lengths = padded(contexts)
    rows = int((lengths - 1).sum())
    # Filled in place: lists of parts and their concatenation would hold everything twice.
    kept = {
        str(site): torch.empty(rows, _width(model, site), dtype=torch.bfloat16) for site in sites
    }
    done = 0
    for start in range(0, len(contexts), batch_size):
        part = lengths[start : start + batch_size]
        longest = int(part.max())
        batch = tokens[start : start + batch_size, :longest]
        values = model.activations(batch, sites)
        real = torch.arange(1, longest)[None] < part[:, None]
        count = int(real.sum())
        for site in sites:
            chosen = values[site][:, 1:][real.to(model.device)]
            kept[str(site)][done : done + count] = chosen.to("cpu", torch.bfloat16)
        done += count
    kept["tokens"] = tokens.to(torch.int32)
    kept["length"] = lengths.to(torch.int32)
    kept["document"] = torch.tensor([c.document for c in contexts], dtype=torch.int32)
    work = folder / f"{name}.partial"
    save_file(kept, work)
    path = folder / name
    work.replace(path)
    return Shard(name, split, len(contexts), rows, sha256_of(path))
