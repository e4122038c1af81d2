"""Word problems of GSM-Symbolic, for published checkpoints: pairs, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from circuits.labelled import Labelled
from circuits.models.hooked import HookedModel
from circuits.models.hooks import HookSet
from circuits.models.stepped import run_stepped
from circuits.prompts import Mark, Pair, PromptPairs, tokenise
from circuits.task import TaskError
from tasks.gsm8k_thoughts.gsm8k import (
    GsmError,
    Problem,
    gsm8k_problems,
    parse_number,
    symbolic_pairs,
)
from tasks.gsm8k_thoughts.model import require_thoughts, thoughts_of

LONGEST = 12  # tokens of an answer


def word_pairs(
    model: HookedModel, n: int, seed: int, split: Literal["explored", "held_out"]
) -> PromptPairs:
    """`n` pairs that differ in one number, whose answers' first tokens the model puts first on both
    sides; see the task's `pairs`.

    Raises `TaskError` where there are fewer.
    """
    tokens, tokenizer = thoughts_of(model).tokens, model.tokenizer
    inner = (*tokens.before, *[tokens.pad] * tokens.thoughts, *tokens.after)
    between = "".join(tokenizer.convert_ids_to_tokens(list(inner)))
    kept: list[Pair] = []
    tried = 4 * n
    side: Literal["train", "test"] = "train" if split == "explored" else "test"
    for couple in symbolic_pairs(tokenizer, tried, seed=seed, split=side):
        pair = couple.as_pair(tokenizer, f"{between}{tokens.answer_prefix}")
        start = len(couple.clean.question)
        marks = dict(pair.marks)
        marks["bot"] = Mark(
            pair.clean.index(between, start), pair.corrupted.index(between), len(tokens.before) - 1
        )
        bot = marks["bot"]
        names = [*(f"t{i + 1}" for i in range(tokens.thoughts)), "eot"]
        for i, name in enumerate(names, start=1):
            marks[name] = Mark(bot.clean, bot.corrupted, bot.shift + i)
        kept.append(Pair(pair.clean, pair.corrupted, pair.answer, pair.foil, marks, pair.template))
    made = PromptPairs.from_texts(kept, tokenizer, tokens.prepend_bos)
    return _solved_words(model, made, kept, n)


def _solved_words(model: HookedModel, pairs: PromptPairs, texts: list[Pair], n: int) -> PromptPairs:
    """The first `n` pairs whose answers' first tokens the model puts first on both sides."""
    right: list[int] = []
    for group in pairs.groups(8):
        clean = model.run(group.clean).argmax(-1).cpu() == group.answer
        corrupted = model.run(group.corrupted).argmax(-1).cpu() == group.foil
        right += [i for i, ok in zip(group.indices, clean & corrupted, strict=True) if ok]
    if len(right) < n:
        raise TaskError(
            f"{model.name} begins the right answers on both sides of {len(right)} of {len(pairs)} "
            f"pairs of word problems, {n} are asked for: ask for fewer, or take another model."
        )
    chosen = [texts[i] for i in sorted(right)[:n]]
    return PromptPairs.from_texts(chosen, model.tokenizer, pairs.prepend_bos)


def answer_words(
    model: HookedModel, n: int, seed: int, *, temperature: float = 0.0
) -> list[Labelled]:
    """`n` problems of all templates of GSM-Symbolic with the model's answers."""
    require_thoughts(model)
    problems = gsm8k_problems("symbolic", n=n, seed=seed)
    return answer_problems(model, problems, seed, temperature=temperature)


def answer_problems(
    model: HookedModel, problems: Sequence[Problem], seed: int, *, temperature: float = 0.0
) -> list[Labelled]:
    """Word problems with the model's answers.

    temperature: 0 takes the likeliest token; above it tokens are drawn, with `seed`. A template's
    problems are one group. `surface` has the number of steps of the worked solution, the entropy of
    the distribution of the answer's first token (nats), and the probability of the whole answer. An
    answer that is no number is wrong; the label `parsed` says so, and `ended` whether the end of
    the text came within `LONGEST` tokens, without which its probability is not in the answer's.
    """
    require_thoughts(model)
    if not 0 <= temperature < float("inf"):
        raise TaskError(f"temperature {temperature}: 0 or more is expected.")
    tokens = thoughts_of(model).tokens
    draw = torch.Generator().manual_seed(seed)
    found = []
    for problem in problems:
        question = tokenise(model.tokenizer, problem.question, tokens.prepend_bos)
        layout = torch.tensor([tokens.lay_out(question).tokens])
        if layout.shape[1] + LONGEST > model.adapter.n_ctx:
            raise TaskError(
                f"{problem.id} has {layout.shape[1]} tokens, {model.name} reads "
                f"{model.adapter.n_ctx}: take a model with a longer context."
            )
        ids, first, logprob, ended = _written(model, layout, temperature, draw)
        completion = model.tokenizer.decode(ids).strip()
        try:
            said = parse_number(completion)
        except GsmError:
            said = None
        found.append(
            Labelled(
                id=problem.id,
                group=problem.group,
                prompt=problem.question,
                completion=completion,
                correct=said == problem.answer,
                labels={"truth": str(problem.answer), "parsed": said is not None, "ended": ended},
                surface={
                    "steps": float(len(problem.steps)),
                    "output_entropy": float(-(first.exp() * first).nan_to_num(0.0).sum()),
                    "answer_probability": float(torch.tensor(logprob).exp()),
                },
            )
        )
    return found


@torch.no_grad()
def _written(
    model: HookedModel,
    prompt: Int[Tensor, "one position"],
    temperature: float,
    draw: torch.Generator,
) -> tuple[list[int], Tensor, float, bool]:
    """(tokens up to the end of text, log-probabilities [vocab] of the first one, that of all of
    them together, the end included, and whether there was an end)."""
    given = thoughts_of(model).inputs(prompt.to(model.device))
    change = model.change()
    made = run_stepped(model.adapter, given, change)
    logits, cache = made.logits[:, -1], made.cache
    ids: list[int] = []
    first, total, ended = None, 0.0, False
    for at in range(prompt.shape[1], prompt.shape[1] + LONGEST):
        logprobs = logits[0].float().log_softmax(-1).cpu()
        first = logprobs if first is None else first
        if temperature:
            heated = (logprobs / temperature).softmax(-1)
            token = int(torch.multinomial(heated, 1, generator=draw))
        else:
            token = int(logprobs.argmax())
        total += float(logprobs[token])
        if token == model.tokenizer.eos_token_id:
            ended = True
            break
        ids.append(token)
        with HookSet() as hooks:
            change(hooks, at, at + 1)
            _, found = model.adapter.step(torch.tensor([[token]], device=model.device), cache)
        logits = found[:, -1]
    assert first is not None
    return ids, first, total, ended
