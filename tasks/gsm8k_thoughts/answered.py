"""Problems that the model answers, rightly or wrongly, and its thoughts while it does so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.labelled import Labelled
from circuits.models.hooked import HookedModel
from circuits.models.patterns import attention_patterns
from circuits.prompts import tokenise
from circuits.sites import Site
from circuits.task import TaskError
from tasks.gsm8k_thoughts.chains import draw_different
from tasks.gsm8k_thoughts.model import require_thoughts, thoughts_of
from tasks.gsm8k_thoughts.pairs import answers_of, chain_vocabulary, layout_text

_AT_ONCE = 256
Place = TypeVar("Place")


def answer_chains(
    model: HookedModel,
    n: int,
    seed: int,
    *,
    steps: int | None = None,
    temperature: float = 0.0,
) -> list[Labelled]:
    """`n` chains that the model was not trained on, with its answers.

    steps: of every problem; None for the most the model was trained with. temperature: 0 takes the
    likeliest answer; above it answers are drawn. Every problem occurs once, so it is its own group;
    `surface` has its number of steps, the entropy of the answer's distribution (nats) and the
    probability of what was answered.
    """
    vocabulary, thoughts = chain_vocabulary(model), thoughts_of(model)
    assert thoughts.steps is not None
    require_thoughts(model)
    if not 0 <= temperature < float("inf"):
        raise TaskError(f"temperature {temperature}: 0 or more is expected.")
    n_steps = thoughts.steps[1] if steps is None else steps
    room = model.adapter.n_ctx - len(thoughts.tokens.lay_out(()).tokens)
    if 6 * n_steps + 2 > room:
        raise TaskError(f"{model.name} reads questions of {room} tokens: {n_steps} steps are more.")
    rng = np.random.default_rng([seed, n_steps, 7])
    chains = draw_different(rng, n, n_steps, vocabulary.n_numbers, "held_out")
    _, logprobs = answers_of(model, chains)
    probability = logprobs.exp()
    if temperature:
        draw = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial((logprobs / temperature).softmax(-1).cpu(), 1, generator=draw)
        said = drawn[:, 0]
    else:
        said = logprobs.argmax(-1).cpu()
    entropy = -(probability * logprobs).sum(-1)
    words = vocabulary.words
    questions, plain = vocabulary.questions(chains), vocabulary.questions(chains.renamed())
    return [
        Labelled(
            id=key,
            group=key,
            prompt=" ".join(words[t] for t in questions[i]),
            completion=words[int(said[i])],
            correct=int(said[i]) == vocabulary.number(int(chains.answers[i])),
            labels={"truth": words[int(vocabulary.number(int(chains.answers[i])))]},
            surface={
                "steps": float(n_steps),
                "output_entropy": float(entropy[i]),
                "answer_probability": float(probability[i, int(said[i])]),
            },
            compared=" ".join(words[t] for t in plain[i]),
        )
        for i, key in enumerate(chains.keys())
    ]


def thought_vectors(
    model: HookedModel, records: Sequence[Labelled], sites: Sequence[Site]
) -> Float[Tensor, "record site position d_model"]:
    """The activations at `sites` and every thought; see `AnsweredTask.vectors`."""

    def work(tokens: Tensor, slots: list[int]) -> Tensor:
        _, values = model.cache(tokens, sites, slots[0])
        return torch.stack([values[s][:, : len(slots)] for s in sites], 1)

    return _of_every(model, records, work)


def thought_attention(
    model: HookedModel, records: Sequence[Labelled], layers: Sequence[int]
) -> Float[Tensor, "record layer place head"]:
    """Attention weights between thoughts and from the answer's position, in the order of
    `attention_places`; see `AttentionTask.attention`."""

    def work(tokens: Tensor, slots: list[int]) -> Tensor:
        patterns = attention_patterns(model, tokens, layers)
        pairs = torch.tensor(attention_places([*slots, tokens.shape[1] - 1]))
        looks, at = pairs.to(model.device).unbind(1)
        return torch.stack([patterns[layer][:, :, looks, at] for layer in layers], 1).mT

    return _of_every(model, records, work)


def attention_places(places: Sequence[Place]) -> list[tuple[Place, Place]]:
    """(from, to) of attention between the thoughts, each at itself too, and from the answer's
    position, which comes last among `places`, to them."""
    thoughts, answer = places[:-1], places[-1]
    looks = [(a, b) for i, a in enumerate(thoughts) for b in thoughts[: i + 1]]
    return [*looks, *((answer, b) for b in thoughts)]


def _of_every(
    model: HookedModel,
    records: Sequence[Labelled],
    work: Callable[[Tensor, list[int]], Tensor],
) -> Tensor:
    """What `work` makes of prompts of one length and their slots, for all records."""
    thoughts = thoughts_of(model)
    require_thoughts(model)
    ids = [_prompt(model, record) for record in records]
    by_length: dict[int, list[int]] = {}
    for i, one in enumerate(ids):
        by_length.setdefault(len(one), []).append(i)
    found: Tensor | None = None
    for rows in by_length.values():
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            tokens = torch.tensor([ids[i] for i in part])
            made = work(tokens, list(thoughts.inputs(tokens).slots)).float().cpu()
            if found is None:
                found = torch.empty(len(records), *made.shape[1:])
            found[part] = made
    if found is None:
        raise TaskError("no records: there is nothing to extract.")
    return found


def _prompt(model: HookedModel, record: Labelled) -> Sequence[int]:
    """Token ids up to where the answer follows."""
    thoughts = thoughts_of(model)
    if thoughts.vocabulary is not None:
        text = layout_text(thoughts, record.prompt, thoughts.vocabulary)
        return model.tokenizer(text, add_special_tokens=False)["input_ids"]
    question = tokenise(model.tokenizer, record.prompt, thoughts.tokens.prepend_bos)
    return thoughts.tokens.lay_out(question).tokens
