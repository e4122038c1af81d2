"""`circuits replay pathways` on a tiny model, from the arguments to the files."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from circuits.replay.pathways_result import PathwaysResult
from circuits.runs import read_record
from tests import tiny
from tests.unit.test_cli import run
from tests.unit.test_saes import make_sae

WORDS = ["the cat sat on", "a dog ran", "then it was red", "one two three", "the log and the"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, SAEs, other SAEs, prompts and another model."""
    path = tmp_path_factory.mktemp("pathways")
    for name, seed in (("tiny", 0), ("other", 1)):
        tiny.hugging_face("llama", seed=seed).save_pretrained(path / name)
        tiny.tokenizer().save_pretrained(path / name)
    for name, first in (("saes", 0), ("others", 5)):
        for i, hook in enumerate(("blocks.1.hook_resid_post", "blocks.3.hook_resid_post")):
            make_sae("jumprelu", hook, seed=first + i).save_model(path / name / hook)
    lines = [json.dumps({"prompt": text, "kind": f"k{i % 2}"}) for i, text in enumerate(WORDS)]
    (path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return path


def given(folder: Path, model: str = "tiny", saes: str = "saes") -> list[object]:
    return ["--model", folder / model, "--saes", folder / saes, "--device", "cpu"]


def test_a_replay_and_its_pathways(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompts", folder / "prompts.jsonl", "--latent", "resid_post.1:3", "--value", 4]
    options += ["--trials", 3, "--max-new-tokens", 5, "--dtype", "float64", "--out", folder / "run"]
    status, _, said = run(capsys, "replay", "run", *given(folder), *options)
    assert status == 0, said
    command = ["replay", "pathways", folder / "run"]
    more = ["--outcome", "difference:cat//dog", "--mediators", 2, "--out", folder / "found"]
    status, shown, said = run(capsys, *command, *given(folder), *more)
    assert status == 0, said
    saved = PathwaysResult.load(folder / "found")
    assert saved.record["outcome"] == "log odds of 'cat' against 'dog' (nats)"
    assert (saved.record["unit"], saved.record["units"], saved.record["run"]) == (
        "trial",
        15,
        str(folder / "run"),
    )
    assert set(saved.pathways["site"]) == {"resid_post.3"}
    assert saved.record["dtype"] == "float64"  # the run's own
    # A large change of a random network moves some latents for sure.
    assert len(saved.found()) and len(saved.mediators()) == 2
    assert "With 5 prompts, tests and intervals are over trials" in " ".join(shown.split())
    _, again, _ = run(capsys, "show", folder / "found")
    assert again.splitlines()[:5] == shown.splitlines()[:5]
    assert read_record(folder / "found")["command"][1:3] == ["replay", "pathways"]
    split = {row["name"]: row["value"] for row in saved.effects.to_dict("records")}
    parts = [split[f"seen_{part}"] for part in ("direct", "by_tokens", "interaction")]
    assert sum(parts) == pytest.approx(split["seen"], abs=1e-6)
    trials: pd.DataFrame = saved.trials
    assert trials["confirms"].sum() == 10 and trials["total"].notna().sum() == 10
    confirmed = trials[trials["confirms"]]
    assert (confirmed["m10"] - confirmed["m00"]).to_numpy() == pytest.approx(
        confirmed["total"].to_numpy(), abs=1e-5
    )

    never = folder / "never"
    for model, saes, out, arguments, message in (
        ("other", "saes", never, [], "has other weights: give --model as the run"),
        ("tiny", "others", never, [], "of the run: give --saes as the run was given it"),
        ("tiny", "saes", never, ["--outcome", "odds:cat"], "unknown outcome 'odds:cat'"),
        ("tiny", "saes", never, ["--outcome", "logit:cat dog"], "is 2 tokens of this model"),
        # Told before an SAE is looked at.
        ("tiny", "none", never, ["--outcome", "logit:#9999"], "the model has 0 to"),
        ("tiny", "saes", never, ["--sites", "resid_post.1"], "do not come after it"),
        ("tiny", "saes", never, ["--kind", "risky"], "it has k0, k1"),
        ("tiny", "saes", folder / "found", [], "exists already"),
    ):
        status, _, said = run(
            capsys, *command, *given(folder, model, saes), *arguments, "--out", out
        )
        assert status == 2 and message in said, said
    status, _, said = run(capsys, "replay", "pathways", folder / "found", *given(folder))
    assert status == 2 and "'pathways'" in said
    assert not never.exists()


OWN = """
from circuits.models.load import load_model
from circuits.task import Prompt

class Own:
    name = description = "own"
    position_names = ("END",)
    outcome = "difference:cat//dog"

    def load(self, model=None, **options):
        return load_model(model, **options)

    def prompts(self, model, *, n, seed=0):
        return [Prompt(text, "k") for text in {WORDS}][:n]

    def parse(self, response, prompt):
        return {"valid": True}

task = Own()
"""


def test_a_run_of_a_task_of_ones_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A task that was given by its path is not known by its name."""
    own = folder / "own.py"
    own.write_text(OWN.replace("{WORDS}", repr(WORDS)))
    options = ["--task", own, "--latent", "resid_post.1:3", "--value", 4, "--trials", 1]
    options += ["--max-new-tokens", 2, "--random-arms", 0, "--out", folder / "own"]
    status, _, said = run(capsys, "replay", "run", *given(folder), *options, "--n-prompts", 5)
    assert status == 0, said
    assert read_record(folder / "own")["task"] == "own"
    command = ["replay", "pathways", folder / "own", *given(folder), "--mediators", 0]
    status, _, said = run(capsys, *command, "--out", folder / "never")
    assert status == 2 and "the task 'own'" in said and "--task with the path" in said
    status, _, said = run(capsys, *command, "--task", "ioi", "--out", folder / "never")
    assert status == 2 and "is of 'own', and --task ioi is 'ioi'" in said
    for name, more, outcome in (
        ("stated", ["--outcome", "logit:cat"], "logit of 'cat' (logits)"),
        ("known", ["--task", own], "log odds of 'cat' against 'dog' (nats)"),
    ):
        status, _, said = run(capsys, *command, *more, "--out", folder / name)
        assert status == 0, said
        assert PathwaysResult.load(folder / name).record["outcome"] == outcome
