"""Stored activations: extraction against plain runs, interrupted, damaged, and in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from circuits.corpora import parse_corpus
from circuits.models.hooked import HookedModel
from circuits.runs import sha256_of
from circuits.sites import Site
from circuits.train import Store, StoreError, extract
from circuits.train.extract import CONTEXTS_PER_SHARD
from circuits.train.store import Manifest
from tests import corpus, tiny

SITES = [Site(0, "resid_post"), Site(2, "z"), Site(2, "mlp_out")]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


@pytest.fixture(scope="module")
def store(model: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("acts")
    text = corpus.corpus(corpus.write(folder / "texts"))
    return extract(model, text, SITES, folder / "store", num_tokens=10**6, progress=False)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256_of(p) for p in sorted(folder.glob("*.safetensors"))}


def test_rows_are_the_activations_of_all_positions_but_the_first(
    model: HookedModel, store: Store
) -> None:
    shard = store.manifest.shards[0]
    tokens, lengths, _ = store.read_contexts(shard)
    for site in SITES:
        rows, done = store.read(site, shard), 0
        for context, length in zip(tokens, lengths.tolist(), strict=True):
            # One context alone, and a run to the end of the model.
            _, values = model.cache(context[None, :length], [site])
            mine = rows[done : done + length - 1].float()
            wanted = values[site][0, 1:]
            assert torch.allclose(mine, wanted, rtol=2**-7, atol=1e-3)
            done += length - 1
        assert done == shard.rows == len(rows)


def test_nothing_of_the_held_out_documents_is_trained_on(store: Store) -> None:
    sides: dict[str, set[int]] = {"train": set(), "heldout": set()}
    for shard in store.manifest.shards:
        sides[shard.split].update(store.read_contexts(shard)[2].tolist())
    assert sides["train"] and sides["heldout"]
    assert not sides["train"] & sides["heldout"]


@pytest.mark.parametrize("damage", ["killed", "half a shard", "a changed shard"])
def test_an_interrupted_extraction_ends_with_the_same_bytes(
    model: HookedModel,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    text = corpus.corpus(store.folder.parent / "texts")
    folder = tmp_path / "again"
    real, calls = HookedModel.activations, []

    def dies(self: HookedModel, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(HookedModel, "activations", dies)
    with pytest.raises(KeyboardInterrupt):
        extract(model, text, SITES, folder, num_tokens=10**6, progress=False)
    assert 0 < len(Manifest.read(folder).shards) < len(store.manifest.shards)  # pyright: ignore
    with pytest.raises(StoreError, match="is not complete"):
        Store.open(folder)
    first = folder / "train-00000.safetensors"
    if damage == "half a shard":
        first.write_bytes(first.read_bytes()[:1000])
    elif damage == "a changed shard":
        first.write_bytes(first.read_bytes()[:-1] + b"\x07")
    done = len(calls)
    again = extract(model, text, SITES, folder, num_tokens=10**6, progress=False)
    assert digests(folder) == digests(store.folder)
    assert again.manifest.tokens == store.manifest.tokens
    whole = sum(-(-s.contexts // 8) for s in store.manifest.shards)
    redone = whole if damage != "killed" else whole - 16  # the first shard's batches are kept
    assert len(calls) - done == redone


def test_other_activations_in_the_folder_are_an_error(model: HookedModel, store: Store) -> None:
    text = corpus.corpus(store.folder.parent / "texts")
    with pytest.raises(StoreError, match="holds other activations: num_tokens was 1000000, is 5"):
        extract(model, text, SITES, store.folder, num_tokens=5, progress=False)
    some = extract(model, text, SITES[1:2], store.folder, num_tokens=10**6, progress=False)
    assert some.manifest == store.manifest  # some of the sites that are there
    with pytest.raises(StoreError, match=r"and not resid_post\.3"):
        store.require([Site(3, "resid_post")], model.sha256)
    with pytest.raises(StoreError, match="another model"):
        store.require(SITES, "0")


def test_text_that_changed_meanwhile_is_an_error(
    model: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a data set of the hub can, whose contents a manifest does not know."""
    import pandas as pd

    def data(end: str) -> None:
        texts = [f"{p.read_text()} {end}" for p in sorted((tmp_path / "texts").glob("*.txt"))]
        pd.DataFrame({"text": texts}).to_parquet(tmp_path / "hub" / "train.parquet")

    def again() -> Store:
        settings: Any = {"heldout": 0.2, "context": 24, "smallest": 4, "shortest": 20}
        text = parse_corpus([f"hub:{tmp_path / 'hub'}"], tiny.tokenizer(), **settings)
        return extract(model, text, SITES, tmp_path / "s", num_tokens=10**6, progress=False)

    corpus.write(tmp_path / "texts")
    (tmp_path / "hub").mkdir()
    data("dog")
    whole = again()
    lost = whole.manifest.shards[-1]
    (whole.folder / lost.file).unlink()
    settings: Any = {"heldout": 0.2, "context": 24, "smallest": 4, "shortest": 20}
    text = parse_corpus([f"hub:{tmp_path / 'hub'}"], tiny.tokenizer(), **settings)
    # One shard is made again, with all the sites of the folder, though one is asked for.
    extract(model, text, SITES[:1], tmp_path / "s", num_tokens=10**6, progress=False)
    assert again().manifest == whole.manifest
    (whole.folder / lost.file).unlink()
    data("cat")
    with pytest.raises(StoreError, match="is of other text than the corpus gives now"):
        again()


def test_extractions_that_cannot_be(model: HookedModel, tmp_path: Path) -> None:
    text = corpus.corpus(corpus.write(tmp_path / "texts", 3), context=100)
    with pytest.raises(StoreError, match="contexts of 100 tokens, but llama reads at most 64"):
        extract(model, text, SITES, tmp_path / "s", num_tokens=10, progress=False)
    with pytest.raises(StoreError, match="no sites were named"):
        extract(model, text, [], tmp_path / "s", num_tokens=10, progress=False)


def test_a_damaged_store_is_named(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not there"):
        Store.open(tmp_path)
    store.manifest.write(tmp_path)
    with pytest.raises(StoreError, match=r"train-00000\.safetensors cannot be read"):
        Store.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        Store.open(tmp_path)


def test_batches_cover_the_rows_once_an_epoch_and_can_start_anywhere(store: Store) -> None:
    site = SITES[0]
    n = store.n_batches(64)
    stream = store.batches(site, 64, seed=3, buffer_rows=2000)
    first = [next(stream) for _ in range(2 * n)]
    for start in (1, n - 1, n + 3):
        later = store.batches(site, 64, seed=3, start=start, buffer_rows=2000)
        assert torch.equal(next(later), first[start])
    everything = {tuple(r.tolist()) for r in torch.cat(list(store.rows(site, "train")))}
    epoch = torch.cat(first[:n])
    assert {tuple(r.tolist()) for r in epoch} <= everything
    # Small rests of buffers are left out of an epoch, nothing comes twice.
    rows = store.manifest.rows("train")
    distinct = len(everything) / rows
    assert len({tuple(r.tolist()) for r in epoch}) > 0.9 * distinct * len(epoch)
    assert not torch.equal(first[0], first[n])


def test_shards_are_small_files_of_whole_contexts(store: Store) -> None:
    assert all(s.contexts <= CONTEXTS_PER_SHARD for s in store.manifest.shards)
    assert sum(s.rows for s in store.manifest.shards) == (
        sum(store.manifest.tokens.values()) - sum(s.contexts for s in store.manifest.shards)
    )
