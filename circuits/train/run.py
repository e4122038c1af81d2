"""From text to SAEs with cards, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from circuits.corpora import Corpus
from circuits.models.hooked import HookedModel
from circuits.saes import SaeSet, load_saes
from circuits.sites import Site
from circuits.train.card import write_cards
from circuits.train.extract import extract
from circuits.train.options import SaeOptions, TrainError
from circuits.train.original import check_sites, write_sae, write_states
from circuits.train.store import Store
from circuits.train.trainer import check_folder, check_steps, train_sae


def train_saes(
    model: HookedModel,
    corpus: Corpus | None,
    sites: Sequence[Site],
    options: SaeOptions | None,
    *,
    cache_dir: Path,
    save_dir: Path,
    num_tokens: int = 2_000_000,
    batch_size_extract: int = 8,
    save_dtype: torch.dtype = torch.float32,
    ce_tokens: int = 20_000,
    original: bool = False,
    command: Sequence[str] = (),
    progress: bool = True,
) -> dict[Site, dict[str, Any]]:
    """Extract activations, train one SAE a site, and write their cards, which are returned.

    corpus: None to train on what `cache_dir` has. options: None to extract only; no cards then.
    cache_dir: folder of the stored activations. save_dir: gets `best/SITE` and `final/SITE`.
    original: write the original study's files as well (`circuits.train.original`).

    An interrupted call, made again, goes on where it was. Everything that can be known to be wrong
    is raised before any long work: `TrainError`, `StoreError`, `SiteError`.
    """
    if original:
        check_sites(sites)
    if options is not None:
        check_folder(save_dir, sites, options, save_dtype)
    if corpus is None:
        store = Store.open(cache_dir)
        store.require(sites, model.sha256)
    else:
        if options is not None:
            if not corpus.heldout:
                raise TrainError("a held-out share of 0 leaves nothing to measure SAEs on.")
            check_steps(int(num_tokens * (1 - corpus.heldout)), options)
        store = extract(
            model,
            corpus,
            sites,
            cache_dir,
            num_tokens=num_tokens,
            batch_size=batch_size_extract,
            progress=progress,
        )
    if original:
        for site in sites:
            write_states(store, site, cache_dir)
    if options is None:
        return {}
    for site in sites:
        trained = train_sae(
            store,
            site,
            options,
            save_dir,
            dtype=save_dtype,
            device=str(model.device),
            progress=progress,
        )
        if original:
            write_sae(trained, site, save_dir)
    # One by one: the folder may hold other SAEs too, of other models even.
    found = SaeSet.of([load_saes(save_dir / "best" / str(site), model) for site in sites])
    return write_cards(
        model, store, found, options, ce_tokens=ce_tokens, command=command, progress=progress
    )
