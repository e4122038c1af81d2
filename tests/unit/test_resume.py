"""Resumed passes against full forwards, on random models, lengths, batch sizes and sites."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.metrics import logit_difference
from circuits.models.adapters import ModelError
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.models.resume import beginnings, normalise, plan, split
from circuits.patch import patch
from circuits.sites import SITE_KINDS, Site
from tests import tiny
from tests.pairs import token_pairs

SHAPES = st.sampled_from([(1, 2, 16), (2, 4, 32), (3, 4, 16), (5, 2, 32)])
KINDS = st.sampled_from([*tiny.ARCHITECTURES, "hooked_transformer"])


@cache
def model_of(kind: str, shape: tuple[int, int, int], seed: int) -> HookedModel:
    layers, heads, width = shape
    options: dict[str, Any] = {"layers": layers, "heads": heads, "width": width, "seed": seed}
    if kind == "hooked_transformer":
        return tiny.hooked_transformer(**options)
    return tiny.bridge(kind, **options)


def random_patches(
    model: HookedModel, rows: int, length: int, first: int, generator: torch.Generator
) -> list[Patches]:
    """Several patches a row, at several sites, some of them added instead of put."""
    made = []
    kinds = [k for k in SITE_KINDS if model.has(k)]

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    for number in range(4):
        kind = kinds[draw(0, len(kinds))]
        by_head = kind == "z" and draw(0, 2) == 1
        inner = model.n_heads * model.adapter.d_head
        width = model.adapter.d_head if by_head else (inner if kind == "z" else model.d_model)
        chosen = torch.randperm(rows, generator=generator)[: draw(1, rows + 1)]
        count = len(chosen)
        heads = torch.randint(0, model.n_heads, (count,), generator=generator) if by_head else None
        made.append(
            Patches(
                Site(draw(0, model.n_layers), kind),
                chosen,
                torch.randint(first, length, (count,), generator=generator),
                torch.randn(count, width, generator=generator),
                heads,
                add=number % 2 == 1,
            )
        )
    # Two overwrites of one place at one site would depend on their order: keep the sites apart.
    return list({p.site: p for p in normalise(made, model.n_layers)}.values())


@settings(max_examples=60, deadline=None)
@given(
    kind=KINDS,
    shape=SHAPES,
    rows=st.integers(1, 9),
    length=st.integers(2, 14),
    size=st.integers(1, 10),
    seed=st.integers(0, 10_000),
)
def test_resumed_rows_equal_full_forwards(
    kind: str, shape: tuple[int, int, int], rows: int, length: int, size: int, seed: int
) -> None:
    model = model_of(kind, shape, seed % 3)
    generator = torch.Generator().manual_seed(seed)
    first = int(torch.randint(0, length, (1,), generator=generator))
    prompts = torch.randint(3, tiny.VOCAB, (3, length), generator=generator)
    pairs = torch.randint(0, 3, (rows,), generator=generator)
    patches = random_patches(model, rows, length, first, generator)
    full = model.run(prompts[pairs], patches)
    found = torch.full_like(full, float("nan"))
    for part, logits in model.resume(model.baseline(prompts, first), pairs, patches, size):
        assert found[part].isnan().all()  # every row once
        found[part] = logits
    assert (found - full).abs().max() < 1e-4 * max(1.0, float(full.abs().max()))


@settings(max_examples=25, deadline=None)
@given(
    kind=KINDS,
    shape=SHAPES,
    length=st.integers(3, 12),
    count=st.integers(1, 3),
    size=st.integers(1, 40),
    seed=st.integers(0, 1000),
    site=st.sampled_from(SITE_KINDS),
    direction=st.sampled_from(["denoising", "noising"]),
)
def test_properties_of_sweeps(
    kind: str,
    shape: tuple[int, int, int],
    length: int,
    count: int,
    size: int,
    seed: int,
    site: str,
    direction: str,
) -> None:
    model = model_of(kind, shape, seed % 3)
    if not model.has(site):  # pyright: ignore[reportArgumentType]
        return
    first = seed % (length - 1)
    pairs = token_pairs(count, seed=seed, length=length, first=first)
    options = {"site": site, "direction": direction, "force": True, "progress": False}
    each = patch(model, pairs, positions="each", batch_size=size, **options)
    again = patch(model, pairs, positions="each", batch_size=1, **options)
    scores = each.scores["logit_difference"].to_numpy()
    bound = max(1.0, abs(scores).max())
    # the same numbers for every batch size, to float32's rounding (exactly: the next test)
    assert abs(scores - again.scores["logit_difference"].to_numpy()).max() < 1e-5 * bound
    # positions before the first difference: the baseline, exactly
    key = "logit_difference_" + ("corrupted" if direction == "denoising" else "clean")
    early = each.scores[each.scores["position"] < first]
    for row in early.itertuples():
        assert row.logit_difference == each.record[key][row.pair]
    # a whole site of the residual stream carries everything
    if site in ("resid_pre", "resid_mid", "resid_post"):
        whole = patch(model, pairs, positions="all", **options)
        other = "logit_difference_" + ("clean" if direction == "denoising" else "corrupted")
        for row in whole.scores.itertuples():
            assert abs(row.logit_difference - whole.record[other][row.pair]) < 1e-4 * bound


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["gpt2", "pythia"]),  # computed in float64 throughout
    length=st.integers(3, 12),
    count=st.integers(1, 3),
    size=st.integers(1, 40),
    seed=st.integers(0, 1000),
    site=st.sampled_from(["resid_pre", "attn_out", "mlp_out", "z"]),
)
def test_the_batch_size_does_not_matter(
    kind: str, length: int, count: int, size: int, seed: int, site: str
) -> None:
    model = tiny.bridge(kind, torch.float64, layers=3, width=16)
    pairs = token_pairs(count, seed=seed, length=length, first=seed % (length - 1))
    options = {"site": site, "positions": "each", "force": True, "progress": False}
    found = [
        patch(model, pairs, batch_size=n, **options).scores["logit_difference"].to_numpy()
        for n in (size, 1, None)
    ]
    assert abs(found[0] - found[1]).max() < 1e-12 and abs(found[0] - found[2]).max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(kind=KINDS, shape=SHAPES, seed=st.integers(0, 1000))
def test_patching_nothing_changes_nothing(
    kind: str, shape: tuple[int, int, int], seed: int
) -> None:
    """A prompt's own values put into it, and rows without patches."""
    model = model_of(kind, shape, seed % 3)
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(3, tiny.VOCAB, (2, 8), generator=generator)
    sites = [Site(layer, k) for layer in range(model.n_layers) for k in SITE_KINDS if model.has(k)]
    _, values = model.cache(prompts, sites)
    patches = [
        Patches(site, torch.tensor([i]), torch.tensor([5]), values[site][i % 2, 5][None])
        for i, site in enumerate(sites)
    ]
    pairs = torch.arange(len(sites) + 2) % 2
    baseline = model.baseline(prompts, first=2)
    for rows, logits in model.resume(baseline, pairs, patches):
        expected = baseline.logits[pairs[rows]]
        assert (logits - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
        for row, got in zip(rows.tolist(), logits, strict=True):
            if row >= len(sites):
                assert torch.equal(got, baseline.logits[pairs[row]])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11)), min_size=1, max_size=40),
    st.integers(1, 9),
)
def test_a_plan_has_every_row_once_and_computes_all_it_must(
    cells: list[tuple[int, int]], size: int
) -> None:
    rows = torch.arange(len(cells))
    patches = [
        Patches(
            Site(layer, "resid_pre"),
            rows[[i for i, c in enumerate(cells) if c[0] == layer]],
            torch.tensor([c[1] for c in cells if c[0] == layer], dtype=torch.long),
            torch.zeros(sum(c[0] == layer for c in cells), 4),
        )
        for layer in range(6)
    ]
    passes = [
        p for one in plan(*beginnings(patches, len(cells), 12, 6), 12, 6) for p in split(one, size)
    ]
    assert sorted(torch.cat([p.rows for p in passes]).tolist()) == rows.tolist()
    for one in passes:
        assert len(one.rows) <= size
        assert one.layers.tolist() == sorted(one.layers.tolist())
        for row, layer in zip(one.rows.tolist(), one.layers.tolist(), strict=True):
            assert cells[row][0] == layer and one.start <= cells[row][1]


def test_patches_before_the_baseline_are_refused() -> None:
    model = model_of("llama", (2, 4, 32), 0)
    prompts = torch.randint(3, tiny.VOCAB, (1, 8))
    early = Patches(Site(0, "attn_out"), torch.tensor([0]), torch.tensor([2]), torch.zeros(1, 32))
    with pytest.raises(ModelError, match="before position 4"):
        list(model.resume(model.baseline(prompts, first=4), torch.tensor([0]), [early]))


def test_batches_are_halved_when_memory_runs_out_and_the_numbers_stay() -> None:
    model = model_of("llama", (3, 4, 16), 0)
    pairs = token_pairs(2, seed=1)
    reference = patch(model, pairs, force=True, progress=False)
    seen: list[int] = []

    def small_memory(module: Any, args: Any, kwargs: Any) -> None:
        rows = (args[0] if args else kwargs["hidden_states"]).shape[0]
        seen.append(rows)
        if rows > 5:
            raise torch.OutOfMemoryError("not enough memory")

    handle = model.adapter.blocks[2].register_forward_pre_hook(small_memory, with_kwargs=True)
    try:
        found = patch(model, pairs, force=True, progress=False)
    finally:
        handle.remove()
    assert max(seen) > 5 and seen[-1] <= 5
    difference = found.scores["logit_difference"] - reference.scores["logit_difference"]
    assert difference.abs().max() < 1e-5


def test_memory_that_runs_out_elsewhere_is_met_by_fewer_pairs() -> None:
    """In the unpatched runs, the cache, and the metric."""
    model = model_of("llama", (3, 4, 16), 0)
    pairs = token_pairs(4, seed=1)
    reference = patch(model, pairs, force=True, progress=False)

    def small_memory(module: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[0] * hidden.shape[1] > 25:
            raise torch.OutOfMemoryError("not enough memory")

    def greedy(logits: Any, targets: Any) -> Any:
        if len(logits) > 4:
            raise torch.OutOfMemoryError("not enough memory")
        return logit_difference(logits, targets)

    handle = model.adapter.blocks[0].register_forward_pre_hook(small_memory, with_kwargs=True)
    try:
        found = patch(model, pairs, force=True, progress=False, metric=greedy)
    finally:
        handle.remove()
    difference = found.scores["metric"] - reference.scores["metric"]
    assert difference.abs().max() < 1e-5


def test_an_error_that_is_not_about_memory_is_not_swallowed() -> None:
    model = model_of("llama", (3, 4, 16), 1)
    pairs = token_pairs(1)

    def broken(module: Any, args: Any, kwargs: Any) -> None:
        if (args[0] if args else kwargs["hidden_states"]).shape[0] > 2:
            raise RuntimeError("something else")

    handle = model.adapter.blocks[2].register_forward_pre_hook(broken, with_kwargs=True)
    try:
        with pytest.raises(RuntimeError, match="something else"):
            patch(model, pairs, force=True, progress=False)
    finally:
        handle.remove()
