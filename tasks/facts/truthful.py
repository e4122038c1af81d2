"""TruthfulQA (Lin et al. 2022), MC1: of several answers, one of them true, the model's choice.

Questions come from the hub, or from a JSONL or parquet file in the hub's format, with `question`
and `mc1_targets` = {"choices": [...], "labels": [1, 0, ...]}. The model's choice is the answer with
the largest log-probability behind "Q: ..." and "A:" on a line of its own, all of its tokens
together, as in the paper; the paper's six examples before the question are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from circuits.labelled import Labelled
from circuits.models.hooked import HookedModel
from circuits.prompts import resolve_bos, tokenise
from circuits.replay.generate import AFTER, forced
from circuits.task import TaskError
from tasks.facts.words import folded

HUB = "truthfulqa/truthful_qa"
_CONFIG, _SPLIT = "multiple_choice", "validation"
_FORMAT = 'a `question` and `mc1_targets` = {"choices": [texts], "labels": [1, 0, ...]}, one 1'


@dataclass(frozen=True)
class Choice:
    """A question with its answers. true: the number of the true one."""

    question: str
    answers: tuple[str, ...]
    true: int

    @property
    def prompt(self) -> str:
        """What an answer follows."""
        return f"Q: {self.question}\nA:"


def read_truthful(source: str) -> list[Choice]:
    """Questions of a JSONL or parquet file, or of the hub ("hub").

    Raises `TaskError` for a file that is not there or cannot be read, and naming the first row that
    is not of the format.
    """
    if source == "hub":
        rows = _from_hub()
    else:
        path = Path(source)
        if path.suffix not in (".jsonl", ".parquet") or not path.is_file():
            raise TaskError(
                f"truthful={source}: expected hub, or a JSONL or parquet file in the hub's format."
            )
        try:
            lines = path.suffix == ".jsonl"
            table = pd.read_json(path, lines=True) if lines else pd.read_parquet(path)
        except (ValueError, OSError) as error:
            raise TaskError(f"{path} cannot be read: {error}.") from error
        rows = table.to_dict("records")
    found = [_choice(row, f"{source}, row {i}") for i, row in enumerate(rows)]
    if not found:
        raise TaskError(f"{source} holds no questions.")
    seen: set[str] = set()
    return [c for c in found if not (folded(c.question) in seen or seen.add(folded(c.question)))]


def _from_hub() -> list[Any]:
    import datasets

    try:
        return list(datasets.load_dataset(HUB, _CONFIG, split=_SPLIT))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TaskError(
            f"{HUB} could not be read from the hub: {reason.rstrip('.')}. It needs a network once; "
            "without one, give a JSONL or parquet file in its format."
        ) from error


def _choice(row: Any, where: str) -> Choice:
    question, targets = row.get("question"), row.get("mc1_targets")
    if not isinstance(question, str) or not question.strip() or not isinstance(targets, dict):
        raise TaskError(f"{where}: expected {_FORMAT}.")
    answers, labels = (list(targets.get(k, ())) for k in ("choices", "labels"))
    texts = all(isinstance(a, str) and a.strip() for a in answers)
    if not texts or len(answers) < 2 or len(answers) != len(labels):
        raise TaskError(f"{where}: expected {_FORMAT}.")
    if sorted(labels) != [0] * (len(labels) - 1) + [1]:
        raise TaskError(f"{where}: labels {labels}; MC1 has one true answer.")
    if len({folded(a) for a in answers}) < len(answers):
        raise TaskError(f"{where}: two answers are the same: neither could be chosen.")
    return Choice(question.strip(), tuple(a.strip() for a in answers), labels.index(1))


@torch.no_grad()
def answer_logprobs(
    model: HookedModel, choice: Choice, prepend_bos: bool | None = None
) -> Float[Tensor, "answer token"]:
    """Natural log-probability of every token of every answer behind the question; NaN behind its
    end."""
    bos = resolve_bos(model.tokenizer, prepend_bos)
    prompt = list(tokenise(model.tokenizer, choice.prompt, bos))
    ids = [
        list(model.tokenizer(f" {text}", add_special_tokens=False)["input_ids"])
        for text in choice.answers
    ]
    longest = max(map(len, ids))
    rows = [[*prompt, *one, *[AFTER] * (longest - len(one))] for one in ids]
    return forced(model, torch.tensor(rows), len(prompt), top=1).logprobs


def answer_truthful(
    model: HookedModel,
    choices: Sequence[Choice],
    *,
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> list[Labelled]:
    """The model's choices as records; the completion is the answer that was chosen.

    surface: `answer_probability` of the whole answer, `choice_probability`, its share among the
    answers, and `output_entropy` over the shares, in nats; `choices`, how many there were, and
    `tokens` of the chosen one.
    """
    found = []
    for number, choice in enumerate(tqdm(choices, desc="choosing", disable=not progress, delay=2)):
        logprobs = answer_logprobs(model, choice, prepend_bos).double()
        totals = logprobs.nansum(1)
        best = int(totals.argmax())
        shares = totals.log_softmax(0)
        found.append(
            Labelled(
                id=f"truthful:{number}",
                group=f"truthful:{number}",
                prompt=choice.prompt,
                completion=f" {choice.answers[best]}",
                correct=best == choice.true,
                labels={"type": "truthful", "expected": choice.answers[choice.true]},
                surface={
                    "answer_probability": float(totals[best].exp()),
                    "choice_probability": float(shares[best].exp()),
                    "output_entropy": float(-(shares.exp() * shares).sum()),
                    "choices": float(len(choice.answers)),
                    "tokens": float((~logprobs[best].isnan()).sum()),
                },
                compared=choice.question,
            )
        )
    return found
