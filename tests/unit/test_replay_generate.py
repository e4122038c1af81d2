"""Generation with interventions against whole forwards without cache, and against Hugging Face."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.models.adapters import ModelError
from circuits.models.hooked import HookedModel
from circuits.models.hooks import hooks_left
from circuits.replay import (
    Change,
    Generated,
    Noise,
    Reconstruction,
    ReplayError,
    Sampling,
    edits_of,
    forced,
    generate,
    keys_of,
)
from circuits.replay.generate import AFTER
from circuits.sites import Site
from tests import tiny
from tests.replayed import LATE, POST, PRE, random_saes, slowly

LENGTH, STEPS, TRIALS = 9, 10, 2
MIDDLE, HEADS, MLP = Site(2, "resid_mid"), Site(1, "z"), Site(2, "mlp_out")


def prompts(n: int = 3, length: int = LENGTH, trials: int = TRIALS) -> tuple[Tensor, list[int]]:
    """Prompts with their trials one after the other."""
    drawn = torch.randint(3, tiny.VOCAB, (n, length), generator=torch.Generator().manual_seed(1))
    return drawn.repeat_interleave(trials, 0), list(range(trials)) * n


def run(model: HookedModel, changes: Sequence[Any] = (), **more: Any) -> Generated:
    tokens, trials = prompts()
    saes = random_saes(sorted({c.site for c in changes}))
    edits = edits_of(saes, changes, LENGTH)
    given = {"max_new_tokens": STEPS, "top": 5, **more}
    return generate(model, tokens, keys_of(tokens, trials), edits=edits, **given)


def same(a: Generated, b: Generated) -> None:
    """Bit for bit."""
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.lengths, b.lengths)
    for x, y in ((a.logprobs, b.logprobs), (a.top_logprobs, b.top_logprobs)):
        assert torch.equal(x.nan_to_num(9), y.nan_to_num(9))
    assert torch.equal(a.top_tokens, b.top_tokens)
    assert set(a.activations) == set(b.activations)
    for site, values in a.activations.items():
        assert torch.equal(values, b.activations[site])


MODELS = [*tiny.ARCHITECTURES, "hooked_transformer"]


def model_of(kind: str) -> HookedModel:
    return tiny.hooked_transformer() if kind == "hooked_transformer" else tiny.bridge(kind)


@pytest.fixture(scope="module")
def llama() -> HookedModel:
    return tiny.bridge("llama")


@pytest.mark.parametrize("where", ["prompt", "generated", "all"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_cache_gives_what_whole_forwards_give(kind: str, where: Any) -> None:
    model = model_of(kind)
    changes = [
        Change(POST, 3, "hold", 6.0, where),
        Change(LATE, 5, "scale", 4.0, where),
        Reconstruction(PRE, where),
    ]
    found = run(model, changes, watch=[LATE])
    assert hooks_left(model.module) == hooks_left(model_of(kind).module)
    tokens, trials = prompts()
    noise = Noise(0, keys_of(tokens, trials))
    edits = edits_of(random_saes([PRE, POST, LATE]), changes, LENGTH)
    assert not torch.equal(found.tokens, run(model).tokens)
    for row in (0, 3):

        def pick(logits: Tensor, step: int, row: int = row) -> int:
            return int((logits.double() + noise.gumbel(row, step, tiny.VOCAB)).argmax())

        written, logits = slowly(model, tokens[row], edits, pick, STEPS)
        assert found.tokens[row].tolist() == written
        logprobs = torch.stack(logits).log_softmax(-1)
        best = logprobs.topk(5)
        torch.testing.assert_close(found.top_logprobs[row], best.values, rtol=0, atol=1e-4)
        assert found.top_tokens[row].tolist() == best.indices.tolist()
        chosen = logprobs.gather(1, found.tokens[row][:, None])[:, 0]
        torch.testing.assert_close(found.logprobs[row], chosen, rtol=0, atol=1e-4)


@pytest.mark.parametrize("site", [MIDDLE, HEADS, MLP])
def test_other_sites_persist_too(llama: HookedModel, site: Site) -> None:
    changes = [Change(site, 3, "hold", 6.0, "all")]
    found = run(llama, changes, sampling=Sampling(0.0))
    edits = edits_of(random_saes([site]), changes, LENGTH)
    tokens, _ = prompts()
    written, logits = slowly(llama, tokens[0], edits, lambda x, step: int(x.argmax()), STEPS)
    assert found.tokens[0].tolist() == written
    best = torch.stack(logits).log_softmax(-1).topk(5).values
    torch.testing.assert_close(found.top_logprobs[0], best, rtol=0, atol=1e-4)
    assert not torch.equal(found.top_logprobs, run(llama, sampling=Sampling(0.0)).top_logprobs)


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_greedy_is_generate_of_hugging_face(kind: str) -> None:
    model = tiny.bridge(kind)
    tokens, trials = prompts()
    first = generate(
        model, tokens, keys_of(tokens, trials), max_new_tokens=STEPS, sampling=Sampling(0.0)
    )
    stop = int(first.tokens[0, 4])
    found = generate(
        model,
        tokens,
        keys_of(tokens, trials),
        max_new_tokens=STEPS,
        sampling=Sampling(0.0),
        stop=[stop],
    )
    theirs = model.module.original_model.generate(  # pyright: ignore
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=0,
    )[:, LENGTH:]
    assert found.lengths[0] <= 5 and found.stopped[0]
    for row, length in enumerate(found.lengths.tolist()):
        assert found.tokens[row, :length].tolist() == theirs[row, :length].tolist()
        assert bool(found.stopped[row]) == (stop in found.tokens[row].tolist())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, 0.9), Sampling(0.0)])
def test_the_no_op_is_plain_generation_bit_for_bit(llama: HookedModel, sampling: Sampling) -> None:
    watch = [LATE, HEADS, Site(MIDDLE.layer, "attn_out")]  # through which MIDDLE is changed
    plain = run(llama, sampling=sampling, watch=watch)
    no_op = [Change(site, 3, "scale", 1.0) for site in (POST, HEADS, MIDDLE)]
    same(run(llama, no_op, sampling=sampling, watch=watch), plain)


@pytest.mark.parametrize("skip", [0, 3])
def test_tokens_before_the_change_are_equal(llama: HookedModel, skip: int) -> None:
    plain = run(llama, watch=[LATE])
    changed = run(llama, [Change(POST, 3, "hold", 20.0, "generated", skip)], watch=[LATE])
    assert torch.equal(changed.tokens[:, : skip + 1], plain.tokens[:, : skip + 1])
    assert torch.equal(changed.logprobs[:, : skip + 1], plain.logprobs[:, : skip + 1])
    before, after = plain.activations[LATE], changed.activations[LATE]
    assert torch.equal(after[:, : skip + 1], before[:, : skip + 1])
    # The next position is changed in every row.
    assert (after[:, skip + 1] != before[:, skip + 1]).any(-1).all()


def test_a_stop_token_ends_its_row_and_no_other(llama: HookedModel) -> None:
    plain = run(llama, watch=[LATE])
    stop = int(plain.tokens[2, 3])
    found = run(llama, watch=[LATE], stop=[stop, tiny.VOCAB - 1])
    assert found.lengths[2] <= 4 and found.stopped[2]
    for row, length in enumerate(found.lengths.tolist()):
        inside = plain.tokens[row].tolist()[:length]
        assert found.tokens[row].tolist() == inside + [AFTER] * (found.tokens.shape[1] - length)
        assert torch.equal(found.logprobs[row, :length], plain.logprobs[row, :length])
        assert found.logprobs[row, length:].isnan().all()
        assert (found.top_tokens[row, length:] == AFTER).all()
        assert found.inside[row].sum() == length


def test_generation_ends_with_the_last_row(llama: HookedModel) -> None:
    plain = run(llama)
    every = plain.tokens[:, :3].flatten().tolist()
    found = run(llama, stop=every)
    assert found.tokens.shape[1] == found.lengths.max() <= 3
    assert found.stopped.all()


def test_a_row_does_not_depend_on_its_batch(llama: HookedModel) -> None:
    """Up to rounding: tokens are the same wherever two are not as good as equal."""
    tokens, trials = prompts()
    together = run(llama, [Change(POST, 3, "hold", 6.0)])
    edits = edits_of(random_saes([POST]), [Change(POST, 3, "hold", 6.0)], LENGTH)
    for row in (0, 3):
        alone = tokens[row : row + 1]
        keys = keys_of(alone, [trials[row]])
        found = generate(llama, alone, keys, edits=edits, max_new_tokens=STEPS, top=5)
        assert torch.equal(found.tokens[0], together.tokens[row])
        torch.testing.assert_close(found.logprobs[0], together.logprobs[row], rtol=0, atol=1e-4)


def test_values_by_row_in_generation(llama: HookedModel) -> None:
    """A prompt is then not shared, and every row has its own values, in the prompt too."""
    tokens, trials = prompts()
    value = torch.full((len(tokens), LENGTH + STEPS), torch.nan)
    value[1, 2:12] = 9.0
    change = Change(POST, 3, "hold", value)
    edits = edits_of(random_saes([POST]), [change], LENGTH)
    found = generate(llama, tokens, keys_of(tokens, trials), edits=edits, max_new_tokens=STEPS)
    plain = run(llama, top=50)
    held = edits_of(random_saes([POST]), [Change(POST, 3, "hold", value[1:2])], LENGTH)
    alone = keys_of(tokens[1:2], [1])
    single = generate(llama, tokens[1:2], alone, edits=held, max_new_tokens=STEPS)
    torch.testing.assert_close(found.logprobs[1], single.logprobs[0], rtol=0, atol=1e-4)
    assert not torch.allclose(found.logprobs[1], plain.logprobs[1], atol=1e-2)
    others = [0, 2, 3, 4, 5]
    torch.testing.assert_close(found.logprobs[others], plain.logprobs[others], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "hooked_transformer"])
def test_given_tokens_are_read_as_they_were_written(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A few positions at a time, as with a large vocabulary.
    module = sys.modules["circuits.replay.generate"]  # the package's attribute is the function
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 3 * 6 * tiny.VOCAB)
    model = model_of(kind)
    changes = [Change(POST, 3, "hold", 6.0)]
    written = run(model, changes, watch=[LATE], stop=[5, 9, 20, 31, 44, 60])
    assert len(set(written.lengths.tolist())) > 1
    tokens, _ = prompts()
    edits = edits_of(random_saes([POST]), changes, LENGTH)
    given = torch.cat([tokens, written.tokens], 1)
    found = forced(model, given, LENGTH, edits=edits, watch=[LATE], top=5)
    assert torch.equal(found.lengths, written.lengths)
    inside = written.inside
    for mine, theirs in (
        (found.logprobs, written.logprobs),
        (found.top_logprobs, written.top_logprobs),
        (found.activations[LATE], written.activations[LATE]),
    ):
        torch.testing.assert_close(mine[inside], theirs[inside], rtol=0, atol=1e-4)
    assert found.logprobs[~inside].isnan().all()
    logits = model.run_all_positions(given.clamp(min=0), edits)[:, LENGTH - 1 : -1]
    best = logits.log_softmax(-1).topk(5).values
    torch.testing.assert_close(found.top_logprobs[inside], best[inside], rtol=0, atol=1e-4)


def test_a_prompt_of_one_token(llama: HookedModel) -> None:
    tokens = torch.tensor([[4], [7]])
    found = generate(llama, tokens, keys_of(tokens, [0, 0]), max_new_tokens=4)
    again = forced(llama, torch.cat([tokens, found.tokens], 1), 1)
    torch.testing.assert_close(again.logprobs, found.logprobs, rtol=0, atol=1e-4)


def test_what_does_not_fit_is_refused(llama: HookedModel) -> None:
    tokens, trials = prompts()
    keys = keys_of(tokens, trials)
    with pytest.raises(ModelError, match="shorten"):
        generate(llama, tokens, keys, max_new_tokens=64)
    with pytest.raises(ReplayError, match="one key a row"):
        generate(llama, tokens, keys[:2])
    gap = torch.cat([tokens, torch.tensor([[5, AFTER, 5]] * len(tokens))], 1)
    with pytest.raises(ReplayError, match="behind a row's end"):
        forced(llama, gap, LENGTH)

    def broken(x: Tensor, start: int) -> Tensor:
        raise RuntimeError("broken")

    before = hooks_left(llama.module)
    edits: Mapping[Site, Any] = {POST: broken}
    with pytest.raises(RuntimeError, match="broken"):
        generate(llama, tokens, keys, edits=edits)
    assert hooks_left(llama.module) == before
