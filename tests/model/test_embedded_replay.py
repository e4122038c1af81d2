"""Replay on the embedded model and its SAEs."""

from __future__ import annotations

from pathlib import Path

import torch

from circuits import load_saes
from circuits.models.hooked import HookedModel
from circuits.replay import (
    Change,
    Prompts,
    Sampling,
    edits_of,
    generate,
    keys_of,
    replay,
)
from circuits.sites import Site
from circuits.task import Prompt

TEXTS = ["The old man walked to the harbour and", "In the morning the children of the village"]
SOURCE, LATE = Site(12, "resid_post"), Site(22, "resid_post")
STEPS = 8


def frequent(model: HookedModel, tokens: torch.Tensor) -> int:
    """A latent that is active at most of the positions."""
    sae = load_saes("embedded", model)[SOURCE]
    x = model.activations(tokens, [SOURCE])[SOURCE][:, 1:].reshape(-1, model.d_model)
    return int((sae.coefficients(x) > 0).float().mean(0).argmax())


def test_greedy_is_generate_of_hugging_face(model: HookedModel) -> None:
    for text in TEXTS:
        tokens = torch.tensor([model.tokenizer(text)["input_ids"]])
        keys = keys_of(tokens, [0])
        mine = generate(
            model, tokens, keys, max_new_tokens=2 * STEPS, sampling=Sampling(0.0), stop=[2]
        )
        theirs = model.module.original_model.generate(  # pyright: ignore
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=2 * STEPS,
            do_sample=False,
            pad_token_id=0,
        )
        assert (
            mine.tokens[0, : int(mine.lengths[0])].tolist() == theirs[0, tokens.shape[1] :].tolist()
        )


def test_persistent_changes_with_and_without_the_cache(model: HookedModel) -> None:
    """And the no-op, bit for bit."""
    tokens = torch.tensor([model.tokenizer(TEXTS[0])["input_ids"]] * 3)
    saes, keys, length = load_saes("embedded", model), keys_of(tokens, range(3)), tokens.shape[1]
    latent = frequent(model, tokens[:1])
    plain = generate(model, tokens, keys, max_new_tokens=STEPS, watch=[LATE])
    no_op = edits_of(saes, [Change(SOURCE, latent, "scale", 1.0)], length)
    same = generate(model, tokens, keys, max_new_tokens=STEPS, watch=[LATE], edits=no_op)
    assert torch.equal(same.tokens, plain.tokens)
    assert torch.equal(same.logprobs, plain.logprobs)
    assert torch.equal(same.activations[LATE], plain.activations[LATE])
    for where in ("prompt", "generated", "all"):
        change = Change(SOURCE, latent, "scale", 6.0, where)  # pyright: ignore
        edits = edits_of(saes, [change], length)
        made = generate(model, tokens, keys, max_new_tokens=STEPS, edits=edits, top=5)
        # A whole forward over what was written: attention looks back only, so its logits at every
        # position are those that a forward at that step would have given.
        whole = torch.cat([tokens, made.tokens], 1)[:, :-1]
        logits = model.run_all_positions(whole, edits)[:, length - 1 :]
        best = logits.log_softmax(-1).topk(5)
        torch.testing.assert_close(made.top_logprobs, best.values, rtol=0, atol=1e-4)
        unchanged = model.run_all_positions(whole)[:, length - 1 :].log_softmax(-1).topk(5)
        assert (unchanged.values - best.values).abs().max() > 1e-2


def test_a_run_with_its_arms(model: HookedModel, tmp_path: Path) -> None:
    saes = load_saes("embedded", model)
    prompts = Prompts.of([Prompt(text) for text in TEXTS], model.tokenizer, False)
    tokens = torch.tensor([prompts.tokens[0]])
    change = Change(SOURCE, frequent(model, tokens), "scale", 4.0, "generated")
    found = replay(
        model,
        saes,
        prompts,
        [change],
        sites=[SOURCE, LATE],
        trials=2,
        max_new_tokens=STEPS,
        out=tmp_path / "run",
        progress=False,
    )
    assert found.arms == ("no-op", "reconstruction", "random-1", "latent")
    [about] = found.record["latents"]
    assert 0.3 < about["rate"] <= 1 and 0.3 < about["random_rates"][0] <= 1
    first = found.responses["tokens"].map(lambda ids: ids[0])
    same = first.groupby([found.responses["prompt"], found.responses["trial"]]).nunique()
    assert (same == 1).all()
    active = found.latents("no-op", [SOURCE])
    share = active[active["latent"] == change.latent].shape[0] / len(found.steps("no-op"))
    assert share > 0.3
