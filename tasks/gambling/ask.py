"""Asking a model: responses to prompts, written without any intervention, and read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from circuits.replay.generate import generate
from circuits.replay.log import NO_OP, Response
from circuits.replay.prompts import Prompts, batches, count_batches
from circuits.replay.sampling import Sampling
from circuits.replay.tables import text_of, tokens_of
from circuits.task import GenerateTask, Prompt


def ask(
    task: GenerateTask,
    model: Any,
    prompts: Sequence[Prompt],
    *,
    trials: int = 4,
    sampling: Sampling | None = None,
    max_new_tokens: int = 24,
    seed: int = 0,
    batch_size: int = 16,
    prepend_bos: bool | None = None,
) -> list[Response]:
    """`trials` responses to each prompt, as the no-op arm of a replay would write them.

    Greedy decoding (temperature 0) gives the same response in every trial: take one.
    """
    how = sampling or Sampling()
    given = Prompts.of(prompts, model.tokenizer, prepend_bos)
    end = model.tokenizer.eos_token_id
    found = []
    shown = tqdm(
        batches(given, trials, batch_size),
        total=count_batches(given, trials, batch_size),
        desc="batches",
        delay=2,
    )
    for batch in shown:
        made = generate(
            model,
            batch.tokens,
            batch.keys,
            max_new_tokens=max_new_tokens,
            sampling=how,
            seed=seed,
            stop=() if end is None else (end,),
            top=1,
        )
        rows = zip(batch.prompt, batch.trial, tokens_of(made), made.stopped.tolist(), strict=True)
        for prompt, trial, ids, stopped in rows:
            one = prompts[prompt]
            text = text_of(model.tokenizer, given.tokens[prompt], ids[:-1] if stopped else ids)
            read = task.parse(text, one.text)
            found.append(Response("none", one.kind, NO_OP, trial, str(prompt), text, read))
    return found
