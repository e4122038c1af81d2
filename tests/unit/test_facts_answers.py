"""Answering in batches against one prompt at a time, and TruthfulQA."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from circuits.models.hooked import HookedModel
from circuits.task import TaskError, load_task
from tasks.facts.answering import LONGEST, answer
from tasks.facts.balance import halves
from tasks.facts.facts import Fact
from tasks.facts.questions import Question
from tasks.facts.truthful import answer_logprobs, answer_truthful, read_truthful
from tests import tiny

PROMPTS = ["the cat sat on", "a dog ran under the", "two red mat was", "it then log"]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


def question(prompt: str) -> Question:
    fact = Fact("addition", prompt, prompt, ("5",), 0.0)
    return Question(fact, prompt, prompt, "statement", 0)


def test_batched_answers_are_the_plain_models_greedy_ones(model: HookedModel) -> None:
    found = answer(model, [question(p) for p in PROMPTS], batch_size=3, progress=False)
    plain = tiny.hugging_face("llama").double()
    for prompt, one in zip(PROMPTS, found, strict=True):
        ids = list(model.tokenizer(prompt)["input_ids"])
        total, entropy, written = 0.0, None, []
        for _ in range(LONGEST):
            with torch.no_grad():
                logprobs = plain(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            entropy = -(logprobs.exp() * logprobs).sum().item() if entropy is None else entropy
            token = int(logprobs.argmax())
            if token == model.tokenizer.eos_token_id:
                break
            total += logprobs[token].item()
            written.append(token)
            ids.append(token)
        assert one.response.split() == model.tokenizer.decode(written).split()
        assert one.entropy == pytest.approx(entropy, abs=1e-4)
        # Nothing could be read: the probability is that of all that was written.
        assert not one.reading.valid and not one.correct
        assert math.log(one.probability) == pytest.approx(total, abs=1e-3)


def test_answers_are_kept_and_belong_to_their_model(model: HookedModel, tmp_path: Path) -> None:
    asked = [question(p) for p in PROMPTS]
    first = answer(model, asked, folder=tmp_path, progress=False)
    [kept] = tmp_path.glob("*.json")
    rows = json.loads(kept.read_text())
    rows[0]["entropy"] = 99.0
    kept.write_text(json.dumps(rows))
    again = answer(model, asked, folder=tmp_path, progress=False)
    assert again[0].entropy == 99.0 and again[1:] == first[1:]  # it was read, not answered again
    answer(tiny.bridge("llama", seed=1), asked, folder=tmp_path, progress=False)
    answer(model, asked[:2], folder=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(TaskError, match="the same prompt"):
        answer(model, [asked[0], asked[0]])


ROWS = [
    {
        "question": "the cat sat on",
        "mc1_targets": {"choices": ["the mat .", "a log"], "labels": [1, 0]},
    },
    {
        "question": "two dog ran",
        "mc1_targets": {"choices": ["under red", "blue", "it was three"], "labels": [0, 1, 0]},
    },
]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_truthful_files_are_read(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"mc.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    else:
        pd.DataFrame(ROWS).to_parquet(path)
    found = read_truthful(str(path))
    assert [c.question for c in found] == ["the cat sat on", "two dog ran"]
    assert found[1].answers == ("under red", "blue", "it was three") and found[1].true == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": ""}, "row 0: expected a `question`"),
        ({"mc1_targets": {"choices": ["a", "b"], "labels": [1, 1]}}, "MC1 has one true answer"),
        ({"mc1_targets": {"choices": ["a", "b"], "labels": [1]}}, "row 0: expected"),
        ({"mc1_targets": {"choices": ["a", "A"], "labels": [1, 0]}}, "two answers are the same"),
    ],
)
def test_truthful_rows_of_another_format_are_refused(
    change: dict, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mc.jsonl"
    path.write_text(json.dumps({**ROWS[0], **change}))
    with pytest.raises(TaskError, match=message):
        read_truthful(str(path))
    with pytest.raises(TaskError, match="expected hub, or a JSONL or parquet file"):
        read_truthful(str(tmp_path / "none.jsonl"))


def test_the_choice_has_the_largest_log_probability(model: HookedModel, tmp_path: Path) -> None:
    path = tmp_path / "mc.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    choices = read_truthful(str(path))
    made = answer_truthful(model, choices, progress=False)
    plain = tiny.hugging_face("llama").double()
    for choice, record in zip(choices, made, strict=True):
        prompt = list(model.tokenizer(choice.prompt)["input_ids"])
        totals = []
        for text in choice.answers:
            ids = list(model.tokenizer(f" {text}")["input_ids"])
            with torch.no_grad():
                logits = plain(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            steps = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
            totals.append(sum(logits[s, t].item() for s, t in zip(steps, ids, strict=True)))
        ours = answer_logprobs(model, choice).double().nansum(1)
        assert ours.tolist() == pytest.approx(totals, abs=1e-4)
        best = totals.index(max(totals))
        assert record.completion == f" {choice.answers[best]}"
        assert record.correct == (best == choice.true)
        share = math.exp(totals[best]) / sum(map(math.exp, totals))
        assert record.surface["choice_probability"] == pytest.approx(share, abs=1e-4)


def test_the_task_hands_truthful_answers_on(model: HookedModel, tmp_path: Path) -> None:
    path = tmp_path / "mc.jsonl"
    rows = [{**ROWS[1], "question": f"two dog ran w{i}"} for i in range(6)]
    rows += [
        {"question": f"a log w{i}", "mc1_targets": {**ROWS[1]["mc1_targets"], "labels": [1, 0, 0]}}
        for i in range(6)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    every = answer_truthful(model, read_truthful(str(path)), progress=False)
    fewest = min(sum(r.correct for r in every), sum(not r.correct for r in every))
    if fewest:
        task = load_task("facts")
        some = task.answered(model, n=2 * fewest, truthful=str(path))  # type: ignore[attr-defined]
        assert sum(r.correct for r in some) == fewest == len(some) / 2
    with pytest.raises(TaskError, match="balanced answers, not 24"):
        halves(every, 24)
