"""Thoughts made while the model runs, against whole forwards of the plain Hugging Face model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuits.models.adapters import ModelError
from circuits.models.edited_rows import resume_edited
from circuits.models.patches import Patches
from circuits.sites import Site
from circuits.task import Inputs, Recurrence, TaskError
from tests import naive, tiny

KINDS = ["gpt2", "llama", "gemma2", "pythia", "qwen2"]
SLOTS, SOURCES = (5, 6, 7), (4, 5, 6)
LENGTH = 10
Values = Mapping[tuple[int, int], Tensor]  # per layer and position of the stream before the layer


def projection(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 32), nn.LayerNorm(32)).to(
        dtype
    )


def prompts(rows: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> Inputs:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, tiny.VOCAB, (rows, LENGTH), generator=draw)
    return Inputs(tokens, SLOTS, None, Recurrence(SOURCES, projection(dtype)))


@contextmanager
def overwritten(model: Any, values: Values, seen: dict[int, Tensor]) -> Iterator[None]:
    """Whole forwards with the stream overwritten, and the stream that enters each layer."""

    def hook(layer: int) -> Any:
        def change(module: Any, args: Any, kwargs: Any) -> Any:
            x = (args[0] if args else kwargs["hidden_states"]).clone()
            for (at, position), value in values.items():
                if at == layer and position < x.shape[1]:
                    x[:, position] = value
            seen[layer] = x
            if args:
                return (x, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": x}

        return change

    handles = [
        layer.register_forward_pre_hook(hook(i), with_kwargs=True)
        for i, layer in enumerate(naive.layers(model))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def by_hand(model: Any, given: Inputs, values: Values | None = None) -> tuple[Tensor, Tensor]:
    """(logits, thoughts): every thought from a forward of everything before it, without a cache."""
    assert given.recurrence is not None
    embedded = model.get_input_embeddings()(given.tokens)
    thoughts = []
    with overwritten(model, values or {}, {}):
        for slot, source in zip(given.slots, given.recurrence.sources, strict=True):
            out = model(inputs_embeds=embedded[:, :slot], output_hidden_states=True)
            thoughts.append(given.recurrence.step(out.hidden_states[-1][:, source]))
            embedded = torch.cat(
                [embedded[:, :slot], thoughts[-1][:, None], embedded[:, slot + 1 :]], 1
            )
        logits = model(inputs_embeds=embedded).logits[:, -1]
    return logits, torch.stack(thoughts, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_thoughts_are_those_of_whole_forwards(kind: str) -> None:
    model, given = tiny.bridge(kind), prompts()
    with torch.no_grad():
        logits, thoughts = by_hand(tiny.hugging_face(kind), given)
    assert (model.run(given) - logits).abs().max() < 1e-4
    held = model.roll(given)
    assert held.embeddings is not None
    assert (held.embeddings - thoughts).abs().max() < 1e-4
    # Stepped with the cache, and again in one pass with the thoughts written in.
    assert (model.run(held) - logits).abs().max() < 1e-4
    everywhere = model.run_all_positions(given)
    assert (everywhere - model.run_all_positions(held)).abs().max() < 1e-4
    assert (everywhere[:, -2:] - model.run_all_positions(held, last=2)).abs().max() < 1e-4
    assert torch.equal(everywhere[:, -2:], model.run_all_positions(given, last=2))
    sites = [Site(1, "resid_pre"), Site(3, "mlp_out"), Site(2, "z")]
    one, other = model.cache(given, sites, 3)[1], model.cache(held, sites, 3)[1]
    again = model.activations(given, sites)
    for site in sites:
        assert (one[site] - other[site]).abs().max() < 1e-4
        assert torch.equal(one[site], again[site][:, 3:])


def test_thoughts_of_a_hooked_transformer() -> None:
    model, given = tiny.hooked_transformer(), prompts()
    rolled, held = model.run(given), model.roll(given)
    assert (rolled - model.run(held)).abs().max() < 1e-4
    assert held.embeddings is not None and held.embeddings.std() > 0.5


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("edited", [False, True])
def test_patches_reach_the_thoughts_after_them(kind: str, edited: bool) -> None:
    """edited: the model is one that cannot be resumed."""
    model, plain, given = tiny.bridge(kind), tiny.hugging_face(kind), prompts()
    places = [(0, 2), (1, 4), (2, 5), (0, 6), (3, 7), (2, 9)]
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(len(places), 32, generator=draw)
    rows = torch.arange(len(places))
    patches = [
        Patches(
            Site(layer, "resid_pre"), rows[i : i + 1], torch.tensor([position]), values[i][None]
        )
        for i, (layer, position) in enumerate(places)
    ]
    # The last row has two patches, before and after a thought.
    both = Patches(Site(1, "resid_pre"), torch.tensor([5]), torch.tensor([4]), values[1][None])
    pairs = torch.tensor([0, 1, 0, 1, 0, 1])
    found = torch.full((len(places), tiny.VOCAB), torch.nan)
    with model.edited({}) if edited else model.filled(Inputs):
        baseline = model.baseline(given, first=2)
        for part, logits in model.resume(baseline, pairs, [*patches, both]):
            found[part] = logits
    for i, place in enumerate(places):
        put = {place: values[i]} | ({(1, 4): values[1]} if i == 5 else {})
        one = given.of(pairs[i : i + 1])
        with torch.no_grad():
            expected, thoughts = by_hand(plain, one, put)
            before = by_hand(plain, one)[1]
        assert (found[i] - expected[0]).abs().max() < 1e-4
        moved = (thoughts - before).abs().amax((0, 2)) > 1e-3
        # Thoughts behind the patch have moved, those before it have not.
        first = min(position for _, position in put)
        assert moved.tolist() == [source >= first for source in SOURCES]
        local = [replace(patches[i], rows=torch.tensor([0]))]
        if i == 5:
            local.append(replace(both, rows=torch.tensor([0])))
        assert (model.run(one, local) - expected).abs().max() < 1e-4


def difference(logits: Tensor) -> Tensor:
    return logits[:, 7] - logits[:, 11]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gradients_go_through_the_recurrence(kind: str) -> None:
    """Against whole forwards in float64, by autograd and, where a model computes in float64
    throughout (Llama's norms do not), by central differences."""
    model = tiny.bridge(kind, torch.float64)
    plain, given = tiny.hugging_face(kind).double(), prompts(1, dtype=torch.float64)
    sites = [Site(layer, "resid_pre") for layer in range(4)]
    found = model.gradients(given, sites, difference)
    held = model.gradients(model.roll(given), sites, difference)
    draw = torch.Generator().manual_seed(2)
    for layer, position in [(0, 1), (1, 4), (2, 5), (3, 6), (1, 7), (2, 8)]:
        x = found.values[Site(layer, "resid_pre")][:, position]
        way = torch.randn(32, generator=draw, dtype=torch.float64)
        slope = found.gradients[Site(layer, "resid_pre")][:, position] @ way
        leaf = x.clone().requires_grad_()
        difference(by_hand(plain, given, {(layer, position): leaf})[0]).sum().backward()
        assert leaf.grad is not None
        assert (slope - leaf.grad @ way).abs() < 1e-4 * (1 + slope.abs())
        step, ends = 1e-5, []
        for sign in (+1, -1):
            with torch.no_grad():
                logits, _ = by_hand(plain, given, {(layer, position): x + sign * step * way})
            ends.append(difference(logits))
        expected = (ends[0] - ends[1]) / (2 * step)
        if kind == "gpt2":
            assert (slope - expected).abs() < 1e-6 * (1 + expected.abs())
        direct = held.gradients[Site(layer, "resid_pre")][:, position] @ way
        # Behind the last source nothing goes through thoughts; before it something does.
        assert ((slope - direct).abs() < 1e-9) == (position > SOURCES[-1])


def test_gradients_at_what_is_overwritten() -> None:
    model, given = tiny.bridge("gpt2", torch.float64), prompts(dtype=torch.float64)
    site, pairs = Site(1, "resid_pre"), torch.tensor([0, 1])
    baseline = model.baseline(given, first=3)
    values = model.cache(given, [site], 3)[1][site]
    [(_, metric, gradient)] = model.resume_gradients(
        baseline, pairs, site, lambda rows: values[rows], lambda pair, logits: difference(logits)
    )
    # Everything from position 3 on is held at its value: thoughts change nothing any more.
    held = model.gradients(model.roll(given), [site], difference)
    assert (metric - held.metric).abs().max() < 1e-9
    assert (gradient - held.gradients[site][:, 3:]).abs().max() < 1e-9


def test_edits_reach_the_thoughts_after_them() -> None:
    model, given = tiny.bridge("llama"), prompts()
    site = Site(2, "resid_pre")
    starts: list[int] = []

    def double(x: Tensor, start: int) -> Tensor:
        starts.append(start)
        changed = x.clone()
        if start <= 4 < start + x.shape[1]:
            changed[:, 4 - start] *= 2
        return changed

    edited = model.run_all_positions(given, {site: double})[:, -1]
    assert starts == [0, *SLOTS]
    value = model.cache(given, [site])[1][site][:, 4]
    put = Patches(site, torch.arange(2), torch.tensor([4, 4]), 2 * value)
    assert (edited - model.run(given, [put])).abs().max() < 1e-5
    with model.edited({site: double}):
        assert (model.run(given) - edited).abs().max() < 1e-5
        assert (
            model.gradients(given, [site], difference).metric - difference(edited)
        ).abs().max() < 1e-5

    def of_rows(x: Tensor, rows: Tensor, start: int) -> Tensor:
        return torch.where((rows == 1)[:, None, None], double(x, start), x)

    baseline = model.baseline(given, first=4)
    pairs = torch.tensor([0, 1])
    begins = torch.tensor([2, 2]), torch.tensor([4, 4])
    read = lambda rows, logits, start: logits  # noqa: E731
    found = torch.empty(2, tiny.VOCAB)
    for rows, logits in resume_edited(model, baseline, pairs, begins, {site: of_rows}, read):
        found[rows] = logits
    assert (found[0] - baseline.logits[0]).abs().max() < 1e-5
    assert (found[1] - edited[1]).abs().max() < 1e-5
    with pytest.raises(ModelError, match="hold them fixed"):
        list(resume_edited(model, baseline, pairs, begins, {}, read, until=site))


def test_frozen_thoughts_are_the_plain_models() -> None:
    """Whether they are first asked for before, or while, the model is edited."""
    given, site = prompts(), Site(1, "resid_pre")
    found = []
    for early in (True, False):
        model = tiny.bridge("gpt2")
        with (
            model.filled(lambda tokens: replace(given, tokens=tokens)),
            model.thinking("frozen"),
        ):
            if early:
                model.run(given.tokens)
            with model.edited({site: lambda x, start: 2 * x}):
                found.append(model.run(given.tokens))
    assert torch.equal(*found)
    with model.edited({site: lambda x, start: 2 * x}):
        assert (model.run(given) - found[0]).abs().max() > 0.1


def test_filled_completes_bare_tokens() -> None:
    model, given = tiny.bridge("gpt2"), prompts()
    bare = model.run(given.tokens)
    with model.filled(lambda tokens: replace(given, tokens=tokens)):
        assert torch.equal(model.run(given.tokens), model.run(given))
    assert torch.equal(model.run(given.tokens), bare)
    assert (bare - model.run(given)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("slots", "sources", "message"),
    [((5, 4), (3, 3), "ascend"), ((4, 5), (3,), "one before each"), ((4, 5), (3, 5), "one before")],
)
def test_slots_that_cannot_be_filled(
    slots: tuple[int, ...], sources: tuple[int, ...], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        Inputs(torch.zeros(1, 8, dtype=torch.long), slots, None, Recurrence(sources, torch.tanh))
