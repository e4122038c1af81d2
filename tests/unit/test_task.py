"""Tasks: the protocol holds what later tasks need, and commands name what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuits.patch import patch
from circuits.prompts import PromptPairs
from circuits.task import (
    ClassifierTask,
    GenerateTask,
    Inputs,
    InputsTask,
    PairsTask,
    Recurrence,
    TaskError,
    capabilities,
    load_task,
    require,
    task_names,
)
from tests import tiny
from tests.pairs import token_pairs


@dataclass(frozen=True)
class Thoughts:
    """Prompts whose positions 4 and 5 hold thoughts instead of tokens."""

    name: str = "thoughts"
    description: str = "continuous thoughts"
    position_names: tuple[str, ...] = ("t1", "t2", "END")
    default_contrast: str = "only"

    @property
    def contrasts(self) -> Mapping[str, str]:
        return {"only": "the one there is"}

    def load(self, model: str | None = None, **options: Any) -> Any:
        return tiny.bridge("gpt2")

    def pairs(self, model: Any, **options: Any) -> PromptPairs:
        return token_pairs(options["n"], seed=options["seed"], first=2)

    def inputs(self, model: Any, tokens: Tensor) -> Inputs:
        table = torch.sin(torch.arange(tiny.VOCAB * 64.0)).view(tiny.VOCAB, 2, 32)
        recurrence = Recurrence(sources=(3, 4), step=torch.tanh)
        return Inputs(tokens, (4, 5), table[tokens[:, 2]], recurrence)


@dataclass(frozen=True)
class Digits:
    name: str = "digits"
    description: str = "an image classifier"
    position_names: tuple[str, ...] = ()

    def load(self, model: str | None = None, **options: Any) -> nn.Module:
        return nn.Linear(64, 10)

    def classifier(self, model: Any) -> nn.Module:
        return self.load()

    def examples(self, split: str) -> tuple[Tensor, Tensor]:
        return torch.zeros(3, 64), torch.zeros(3, dtype=torch.long)


@dataclass(frozen=True)
class Gambling:
    name: str = "gambling"
    description: str = "a slot machine"
    position_names: tuple[str, ...] = ("END",)

    def load(self, model: str | None = None, **options: Any) -> Any:
        return None

    def prompts(self, model: Any, *, n: int = 12, seed: int = 0) -> list[str]:
        return ["bet or stop?"] * n

    def parse(self, response: str, prompt: str) -> Mapping[str, Any]:
        return {"valid": response in ("bet", "stop")}


def test_each_kind_of_task_has_its_capabilities() -> None:
    assert capabilities(Thoughts()) == ("pairs", "inputs")
    assert capabilities(Digits()) == ("classifier",)
    assert capabilities(Gambling()) == ("generate",)
    assert capabilities(load_task("error_type")) == ("pairs",)
    assert capabilities(load_task("ioi")) == ("pairs",)


def test_a_command_names_the_capability_that_is_missing() -> None:
    message = "patching needs a task with the capability 'pairs', but task 'digits' has: classifier"
    with pytest.raises(TaskError, match=message):
        patch(tiny.bridge("gpt2"), Digits(), progress=False)
    assert require(Gambling(), GenerateTask, "replay").name == "gambling"
    for protocol in (PairsTask, InputsTask, ClassifierTask):
        with pytest.raises(TaskError, match="needs a task with the capability"):
            require(Gambling(), protocol, "this")


def test_a_task_with_embeddings_of_its_own_is_patched_with_them() -> None:
    task = Thoughts()
    model = task.load()
    result = patch(model, task, n_pairs=2, force=True, progress=False, site="resid_post")
    pairs = result.prompts
    clean = task.inputs(model, torch.tensor(pairs.clean_tokens))
    corrupted = task.inputs(model, torch.tensor(pairs.corrupted_tokens))
    assert not torch.equal(clean.embeddings, corrupted.embeddings)  # pyright: ignore
    logits = model.run(corrupted)
    expected = logits[torch.arange(2), list(pairs.answer_tokens)]
    expected = expected - logits[torch.arange(2), list(pairs.foil_tokens)]
    assert torch.allclose(torch.tensor(result.record["metric_corrupted"]).float(), expected)
    # The last layer at the last position carries the whole clean run.
    last = result.scores.query("layer == 3 and position == 9")["recovery"]
    assert abs(last - 1).max() < 1e-4
    # The prompts first differ at position 2, the thoughts at 4 and 5: both are patched.
    assert result.summary().groupby("position")["effect"].apply(lambda e: abs(e).max())[4] > 1e-3


def test_pairs_drawn_before_keep_the_tasks_embeddings() -> None:
    task = Thoughts()
    model = task.load()
    drawn = task.pairs(model, n=2, seed=0)
    one = patch(model, task, n_pairs=2, force=True, progress=False)
    two = patch(model, task, pairs=drawn, force=True, progress=False)
    assert one.scores.equals(two.scores) and two.record["task"] == "thoughts"
    assert two.record["seed"] is None
    without = patch(model, drawn, force=True, progress=False)
    assert without.record["task"] == "custom"
    assert without.record["metric_clean"] != one.record["metric_clean"]


@dataclass(frozen=True)
class EarlyThoughts(Thoughts):
    """Embeddings that differ before any token does."""

    def pairs(self, model: Any, **options: Any) -> PromptPairs:
        return token_pairs(options["n"], seed=options["seed"], first=7)

    def inputs(self, model: Any, tokens: Tensor) -> Inputs:
        table = torch.cos(torch.arange(tiny.VOCAB * 64.0)).view(tiny.VOCAB, 2, 32)
        return Inputs(tokens, (4, 5), table[tokens[:, 7]])


def test_embeddings_that_differ_before_the_tokens_are_patched_too() -> None:
    task = EarlyThoughts()
    model = task.load()
    whole = patch(model, task, n_pairs=3, positions="all", force=True, progress=False)
    base = whole.record["logit_difference_clean"]
    for row in whole.scores.itertuples():
        assert abs(row.logit_difference - base[row.pair]) < 1e-4
    each = patch(model, task, n_pairs=3, force=True, progress=False).scores
    for position, moved in ((3, False), (4, True), (5, True)):
        values = each[(each["position"] == position) & (each["layer"] == 0)]["metric"].to_numpy()
        assert (abs(values - whole.record["metric_corrupted"]) > 1e-6).all() == moved


@pytest.mark.parametrize(
    ("slots", "embeddings", "message"),
    [
        ((1,), None, r"\[row, slot\] = \(2, 1\) expected, got None"),
        ((1, 2), torch.zeros(2, 1, 4), r"\(2, 2\) expected, got \(2, 1\)"),
        ((9,), torch.zeros(2, 1, 4), "outside 3 positions"),
        ((), torch.zeros(2, 1, 4), "None expected"),
    ],
)
def test_inputs_that_contradict_themselves(
    slots: tuple[int, ...], embeddings: Tensor | None, message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        Inputs(torch.zeros(2, 3, dtype=torch.long), slots, embeddings)


def test_tasks_are_found_by_folder() -> None:
    assert {"error_type", "ioi"} <= set(task_names())


def test_a_misspelt_task_gets_the_nearest_name() -> None:
    with pytest.raises(TaskError, match=r"unknown task 'eror_type'.* Did you mean error_type\?"):
        load_task("eror_type")


@pytest.mark.parametrize("name", ["error_type", "ioi"])
def test_an_unknown_contrast_gets_the_known_ones(name: str) -> None:
    task = require(load_task(name), PairsTask, "this")
    with pytest.raises(TaskError, match=f"unknown contrast 'x': {name} has"):
        task.pairs(tiny.bridge("gpt2"), contrast="x")


OWN_TASK = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Own:
    name: str = "own"
    description: str = "a task of one's own"
    position_names: tuple[str, ...] = ("END",)

    def load(self, model=None, **options):
        return None

task = Own()
"""


def test_a_task_of_ones_own_is_loaded_from_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_TASK)
    assert load_task(tmp_path / "own.py").name == "own"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .inner import task\n")
    (folder / "inner.py").write_text(OWN_TASK)
    assert load_task(folder).name == "own"


def test_a_file_without_a_task_says_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(TaskError, match="its module needs a `task`"):
        load_task(tmp_path / "empty.py")
    with pytest.raises(TaskError, match="does not exist"):
        load_task(tmp_path / "absent.py")
