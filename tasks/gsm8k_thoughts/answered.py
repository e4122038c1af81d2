"""Problems that the model answers, rightly or wrongly, and its thoughts while it does so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.labelled import Labelled
from circuits.models.hooked import HookedModel
from circuits.sites import Site
from circuits.task import TaskError
from tasks.gsm8k_thoughts.chains import draw_different
from tasks.gsm8k_thoughts.model import require_thoughts, thoughts_of
from tasks.gsm8k_thoughts.pairs import answers_of, chain_vocabulary, layout_text

_AT_ONCE = 256


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
    if temperature < 0:
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
    questions = vocabulary.questions(chains)
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
        )
        for i, key in enumerate(chains.keys())
    ]


def thought_vectors(
    model: HookedModel, records: Sequence[Labelled], sites: Sequence[Site]
) -> Float[Tensor, "record site position d_model"]:
    """The activations at `sites` and every thought; see `AnsweredTask.vectors`."""
    vocabulary, thoughts = chain_vocabulary(model), thoughts_of(model)
    texts = [layout_text(thoughts, record.prompt, vocabulary) for record in records]
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    by_length: dict[int, list[int]] = {}
    for i, one in enumerate(ids):
        by_length.setdefault(len(one), []).append(i)
    shape = (len(records), len(sites), thoughts.tokens.thoughts, model.d_model)
    found = torch.empty(shape)
    for rows in by_length.values():
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            tokens = torch.tensor([ids[i] for i in part])
            slots = list(thoughts.inputs(tokens).slots)
            _, values = model.cache(tokens, sites, slots[0])
            held = torch.stack([values[s][:, : len(slots)] for s in sites], 1)
            found[part] = held.float().cpu()
    return found
