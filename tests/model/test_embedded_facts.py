"""What the embedded model knows, and that its answers are balanced."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from circuits.models.hooked import HookedModel
from circuits.patch import assess, logit_differences
from tasks.facts import task
from tasks.facts.answering import answer
from tasks.facts.balance import balanced, bins, records


def test_a_country_turns_the_capital(model: HookedModel) -> None:
    pairs = task.pairs(model, n=8)
    able = assess(*logit_differences(model, pairs))
    assert not able.problem
    assert able.gap.value > 3  # logits


def test_answers_are_read_balanced_and_grouped(
    model: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = task.questions(model, pool=14, kinds="continent,symbol")
    answers = answer(model, asked, folder=tmp_path, progress=False)
    assert sum(a.correct for a in answers) >= 4
    chosen = balanced(answers)
    where = bins(answers)
    sides = Counter((answers[i].question.fact.kind, where[i], answers[i].correct) for i in chosen)
    assert sides and all(sides[k, b, True] == sides[k, b, False] for k, b, _ in sides)
    made = records(answers, chosen, model.tokenizer)
    for one in made:
        assert one.group.split(":")[0] in ("country", "element")
        assert 0 < one.surface["answer_probability"] <= one.surface["first_token_probability"] <= 1
        assert one.surface["output_entropy"] > 0 and one.completion.startswith(" ")
