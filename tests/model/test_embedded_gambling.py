"""What the embedded model can do with the gambling task: choose, but not answer."""

from __future__ import annotations

from circuits.models.hooked import HookedModel
from circuits.patch import logit_differences
from circuits.replay.sampling import Sampling
from tasks.gambling import task
from tasks.gambling.ask import ask
from tasks.gambling.metrics import decisions


def test_safe_words_raise_stop(model: HookedModel) -> None:
    pairs = task.pairs(model, n=6)
    clean, corrupted = logit_differences(model, pairs)
    assert (clean - corrupted).mean() > 0.1  # measured: +0.40, standard error 0.14


def test_prompts_are_matched_and_answers_read(model: HookedModel) -> None:
    prompts = task.prompts(model, n=2, seed=1)
    found = ask(task, model, prompts, trials=1, sampling=Sampling(0.0), max_new_tokens=6)
    lengths = {len(model.tokenizer(p.text)["input_ids"]) for p in prompts}
    assert len(lengths) == 1 and [r.kind for r in found] == ["safe", "risky"]
    assert all(r.parsed is not None and "reason" in r.parsed for r in found)
    assert decisions(found).table["responses"].tolist() == [1, 1]


def test_openings_are_continued(model: HookedModel) -> None:
    prompts = task.prompts(model, n=2, family="neutral")
    found = ask(task, model, prompts, trials=2, max_new_tokens=8)
    assert [(r.kind, r.trial) for r in found] == [
        ("bright", 0),
        ("bright", 1),
        ("gloomy", 0),
        ("gloomy", 1),
    ]
    assert all(r.parsed is not None and r.parsed["action"] is None for r in found)
    again = ask(task, model, prompts, trials=2, max_new_tokens=8)
    assert found == again
