"""Word problems answered by a CODI checkpoint, against its model unmerged and without a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from circuits.sites import Site
from circuits.task import load_task
from tasks.gsm8k_thoughts.checkpoint import number_prefix
from tasks.gsm8k_thoughts.gsm8k import Problem
from tasks.gsm8k_thoughts.words import LONGEST, answer_problems
from tests.codi import ALPHA, RANK, Made, write


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_word_problems_are_answered_token_by_token(kind: str, tmp_path: Path) -> None:
    made = Made(kind)
    folder = write(made.tensors(), tmp_path / "codi")
    options = {"base": made.base(tmp_path / "base"), "lora_alpha": ALPHA, "lora_rank": RANK}
    model = load_task("gsm8k_thoughts").load(str(folder), device="cpu", **options)
    text = "the cat sat on 3 and 7 mat"
    problems = [
        Problem(id=f"p{i}", question=q, answer=3, steps=("1", "2"), group="g")
        for i, q in enumerate((text, f"{text} then"))
    ]
    found = answer_problems(model, problems, 0)
    assert [r.surface["steps"] for r in found] == [2, 2]
    for record in found:
        tokens = model.thoughts.tokens
        question = model.tokenizer(record.prompt)["input_ids"]
        said: list[int] = []
        total, first = 0.0, None
        for _ in range(LONGEST):  # from the beginning for each token
            after = [*tokens.after, *tokens.answer_prefix_ids, *said]
            logits = made.by_hand([*question, *tokens.before], after)[0][0, -1]
            logprobs = logits.log_softmax(-1)
            first = logprobs if first is None else first
            said.append(int(logprobs.argmax()))
            total += float(logprobs.max())
        assert record.completion == model.tokenizer.decode(said).strip()
        assert record.surface["answer_probability"] == pytest.approx(np.exp(total), rel=1e-2)
        entropy = float(-(first.exp() * first).sum())
        assert record.surface["output_entropy"] == pytest.approx(entropy, abs=1e-3)
        assert record.labels["parsed"] is False and not record.correct

    # Cut at the end of text, and read as a number.
    ends = model.tokenizer.decode(said[1])
    model.tokenizer.add_special_tokens({"eos_token": ends})
    [short] = answer_problems(model, problems[1:], 0)
    assert len(model.tokenizer(short.completion)["input_ids"]) == said.index(said[1])
    drawn = [answer_problems(model, problems, 1, temperature=2.0) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert [r.completion for r in drawn[0]] != [r.completion for r in found]
    [vectors] = load_task("gsm8k_thoughts").vectors(model, found[:1], [Site(1, "resid_post")])
    whole = model.thoughts.tokens.lay_out(model.tokenizer(text)["input_ids"])
    _, values = model.cache(torch.tensor([whole.tokens]), [Site(1, "resid_post")])
    held = values[Site(1, "resid_post")][0, list(whole.slots)]
    assert (vectors[0] - held).abs().max() < 1e-5


def test_the_space_before_a_number() -> None:
    class Words:
        """Gives the space to the number, or takes it as a token, as GPT-2 and Llama 3 do."""

        def __init__(self, apart: bool) -> None:
            self.apart = apart

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            head, number = text[:-1].rstrip(), text[-1]
            return {"input_ids": [len(head), *([220] if self.apart else []), ord(number)]}

    assert number_prefix(Words(True), "is:") == (3, 220)
    assert number_prefix(Words(False), "is:") == (3,)
