"""Asking a model: greedy answers in batches, read and labelled; kept on disk where wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from circuits.models.hooked import HookedModel
from circuits.models.unembed import final_norm, soft_cap, unembedding
from circuits.prompts import resolve_bos, tokenise
from circuits.replay.generate import generate
from circuits.replay.prompts import Prompts, batches, count_batches
from circuits.replay.sampling import Sampling
from circuits.replay.tables import text_of, tokens_of
from circuits.sites import Site
from circuits.task import Prompt, TaskError
from tasks.facts.questions import Question
from tasks.facts.reading import Reading, is_right, read_answer

LONGEST = 8  # tokens of an answer
BATCH = 32


@dataclass(frozen=True)
class Answer:
    """A question with the model's answer.

    response: all that was written. said, valid, reason: what was read (reading.Reading).
    correct: whether it is an accepted answer; False where it could not be read.
    completion: the response up to the end of what was read; all of it where nothing was.
    probability: of the completion's tokens, all together; first: of the first of them; entropy: of
    the distribution over the first token, in nats.
    """

    question: Question
    response: str
    reading: Reading
    completion: str
    correct: bool
    probability: float
    first: float
    entropy: float


def answer(
    model: HookedModel,
    questions: Sequence[Question],
    *,
    prepend_bos: bool | None = None,
    batch_size: int = BATCH,
    folder: Path | None = None,
    progress: bool = True,
) -> list[Answer]:
    """The model's greedy answers, in the order of the questions.

    folder: where answers are kept, and read from where the same model was asked the same. Raises
    `TaskError` for two questions with the same prompt.
    """
    if not questions:
        raise TaskError("no questions: there is nothing to answer.")
    if len({q.prompt for q in questions}) < len(questions):
        raise TaskError("two questions have the same prompt: leave one of them out.")
    bos = resolve_bos(model.tokenizer, prepend_bos)
    key = {
        "model": model.name,
        "sha256": model.sha256,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "prepend_bos": bos,
        "longest": LONGEST,
        "batch_size": batch_size,
        "prompts": [q.prompt for q in questions],
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    path = None if folder is None else folder / f"answers-{digest}.json"
    if path is not None and path.is_file():
        written = [_Written(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    else:
        written = _write(model, questions, bos, batch_size, progress)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            work = path.with_suffix(".partial")
            work.write_text(json.dumps([asdict(row) for row in written]), encoding="utf-8")
            work.replace(path)
    return [_read(q, w, model, bos) for q, w in zip(questions, written, strict=True)]


@dataclass(frozen=True)
class _Written:
    """Tokens of a response without the stop token, their log-probabilities, entropy in nats;
    whether there was a stop token."""

    tokens: list[int]
    logprobs: list[float]
    entropy: float
    stopped: bool


def _write(
    model: HookedModel, questions: Sequence[Question], bos: bool, size: int, progress: bool
) -> list[_Written]:
    given = Prompts.of([Prompt(q.prompt) for q in questions], model.tokenizer, bos)
    last = Site(model.n_layers - 1, "resid_post")
    found: dict[int, _Written] = {}
    shown = tqdm(
        batches(given, 1, size),
        total=count_batches(given, 1, size),
        desc="answering",
        disable=not progress,
        delay=2,
    )
    stops = _stops(model.tokenizer)
    for batch in shown:
        made = generate(
            model,
            batch.tokens,
            batch.keys,
            max_new_tokens=LONGEST,
            sampling=Sampling(0.0),
            stop=stops,
            watch=[last],
            top=1,
        )
        entropies = _entropy(model, made.activations[last][:, 0]).tolist()
        lists = (made.logprobs.tolist(), entropies, made.stopped.tolist())
        rows = zip(batch.prompt, tokens_of(made), *lists, strict=True)
        for prompt, ids, logprobs, entropy, stopped in rows:
            kept = ids[:-1] if stopped else ids
            found[prompt] = _Written(kept, logprobs[: len(kept)], entropy, stopped)
    return [found[i] for i in range(len(questions))]


def _stops(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer: the end of text, the end of a turn, line breaks."""
    breaks = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", "\n\n")]
    found = {ids[-1] for ids in breaks if ids and "\n" in tokenizer.decode([ids[-1]])}
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return tuple(sorted(found))


@torch.no_grad()
def _entropy(model: HookedModel, final: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
    """Of the distribution over the next token, nats, from what leaves the last layer."""
    norm: Any = final_norm(model)
    x = final.to(model.device)[:, None]
    x = x if norm is None else norm(x)
    bias = getattr(model.module, "b_U", None)
    logits = (x @ unembedding(model)).float()[:, 0]
    logits = logits if bias is None else logits + bias
    cap = soft_cap(model)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).nan_to_num(0.0).sum(-1).cpu()


def _read(question: Question, written: _Written, model: HookedModel, bos: bool) -> Answer:
    prompt = tokenise(model.tokenizer, question.prompt, bos)
    text = text_of(model.tokenizer, prompt, written.tokens)
    reading = read_answer(text, question.fact.kind, written.stopped)
    n = len(written.tokens)
    if reading.valid:  # the fewest tokens that hold the whole of what was read
        n = next(
            k
            for k in range(1, n + 1)
            if len(text_of(model.tokenizer, prompt, written.tokens[:k])) >= reading.stop
        )
    used = torch.tensor(written.logprobs[:n], dtype=torch.float64)
    return Answer(
        question,
        text,
        reading,
        text[: reading.stop] if reading.valid else text,
        reading.valid and is_right(question.fact, reading.said),
        float(used.sum().exp()),
        float(used[:1].sum().exp()),
        written.entropy,
    )
