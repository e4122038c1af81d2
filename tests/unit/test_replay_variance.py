"""What common random numbers save, by hand and by simulation; the command line of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from circuits.cli.show import console
from circuits.cli.show_replay import print_replay
from circuits.replay import Change, Prompts, ReplayError, ReplayResult, replay
from circuits.replay.variance import by_trial, mean_difference, outcome_of, variance_ratio
from circuits.task import Prompt
from tests import tiny
from tests.replayed import POST, random_saes
from tests.unit.test_cli import run, write_model
from tests.unit.test_saes import make_sae


def test_the_ratio_by_hand() -> None:
    arm = np.array([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    base = np.array([[0.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    # Differences 1 0 2 and 0 0 3: variances 1 and 3; of the arms 7 and 3, of no-op 4 and 0.
    found = variance_ratio(arm, base)
    assert (found.paired, found.independent) == pytest.approx((2.0, 7.0))
    assert found.value == pytest.approx(2 / 7)
    assert np.isnan([found.low, found.high]).all()  # two prompts say little of others
    assert mean_difference(arm, base).value == pytest.approx(1.0)
    assert mean_difference(arm, base).unit == "trial"


def test_pairs_without_a_value_are_left_out_one_by_one() -> None:
    nan = np.nan
    arm = np.array([[1.0, 2.0, 6.0], [0.0, nan, 3.0], [nan, nan, 5.0], [nan, 1.0, nan]])
    base = np.array([[0.0, 2.0, 4.0], [0.0, 0.0, 1.0], [2.0, 1.0, 3.0], [1.0, nan, 2.0]])
    found = mean_difference(arm, base)
    # Prompts' means 1, 1 and 2 of 3, 2 and 1 pairs; the last prompt has none.
    assert found.value == pytest.approx(4 / 3)
    assert (found.prompts, found.pairs, found.lost) == (3, 6, 6)
    ratio = variance_ratio(arm, base)  # differences 1 0 2 and 0 2: variances 1 and 2
    assert ratio.paired == pytest.approx(1.5)
    assert ratio.independent == pytest.approx(((7 + 4) + (4.5 + 0.5)) / 2)
    one = mean_difference(arm[2:3], base[2:3])  # a single pair
    assert one.value == 2 and np.isnan([one.low, one.high]).all() and one.unit == ""
    none = mean_difference(arm[3:], base[3:])
    assert np.isnan(none.value) and none.lost == 3


def test_the_ratio_of_known_correlations() -> None:
    """V(a - b) / (V(a) + V(b)) = 1 - rho for equal variances."""
    rng = np.random.default_rng(0)
    shared, own, other = rng.standard_normal((3, 60, 50))
    for rho in (0.0, 0.5, 0.9):
        a = np.sqrt(rho) * shared + np.sqrt(1 - rho) * own
        b = np.sqrt(rho) * shared + np.sqrt(1 - rho) * other
        found = variance_ratio(a, b + 3.0)
        assert found.low < 1 - rho < found.high
        assert found.value == pytest.approx(1 - rho, abs=0.1)
        moved = mean_difference(a, b + 3.0)
        low, high = moved.low, moved.high
        assert moved.unit == "prompt" and low < -3 < high and high - low < 0.2


def test_what_has_no_variance() -> None:
    same = np.ones((4, 3))
    found = variance_ratio(same, same)
    assert np.isnan([found.value, found.low, found.high]).all()
    one = variance_ratio(np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]]))
    assert one.value == pytest.approx(0.5 / 2.5) and np.isnan(one.low)
    with pytest.raises(ReplayError, match="at least two"):
        variance_ratio(np.ones((4, 1)), np.ones((4, 1)))


def test_outcomes_of_responses() -> None:
    responses = pd.DataFrame(
        {
            "arm": ["a", "a", "b", "b"],
            "prompt": [1, 0, 0, 1],
            "trial": [0, 0, 0, 0],
            "response": ["Bet $10, bet!", "betting", "I bet.", ""],
            "length": [4, 1, 3, 0],
            "unpatched_logprob": [np.nan] * 4,
            "parsed": ['{"bet": 3, "valid": true}', None, '{"bet": null}', '{"bet": 2.5}'],
        }
    )
    assert outcome_of(responses, "word:bet").tolist() == [2, 0, 1, 0]
    assert outcome_of(responses, "word:$10").tolist() == [1, 0, 0, 0]
    np.testing.assert_array_equal(outcome_of(responses, "parsed:bet"), [3, np.nan, np.nan, 2.5])
    assert by_trial(responses, outcome_of(responses, "length"), "a").tolist() == [[1], [4]]
    for wrong in ("words", "word:", "unpatched_logprob", "parsed:other"):
        with pytest.raises(ReplayError):
            outcome_of(responses, wrong)


def console_of(result: ReplayResult) -> str:
    with console.capture() as shown:
        print_replay(result)
    return " ".join(shown.get().split())


def test_a_small_change_needs_fewer_trials(tmp_path: Path) -> None:
    """Log-probabilities of responses: arms that share their noise differ little."""
    model = tiny.bridge("llama")
    texts = [Prompt(t) for t in ("the cat sat on", "a dog ran under", "one two three .")]
    found = replay(
        model,
        random_saes([POST]),
        Prompts.of(texts, model.tokenizer),
        [Change(POST, 3, "hold", 0.3, "generated")],
        trials=16,
        max_new_tokens=8,
        stop=[],
        out=tmp_path / "r",
        progress=False,
    )
    table = found.variance("logprob").set_index("arm")
    assert table.loc["latent", "ratio"] < 0.8
    shown = console_of(found)
    assert "Length of responses (tokens), arm - no-op: no response's length varies" in shown
    assert "Log-probability of responses (nats), arm - no-op" in shown and "over trials" in shown
    page = (found.folder / "replay.html").read_text()
    assert "no response&#x27;s length varies" in page or "no response's length varies" in page
    mine, base = found.values("logprob", "latent"), found.values("logprob", "no-op")
    assert mine.shape == (3, 16)
    assert "Pairs lost" not in shown
    with pytest.raises(ReplayError, match="make it with --unpatched"):
        found.reports(["unpatched_logprob"])
    paired = (mine - base).var(1, ddof=1).sum()
    both = (mine.var(1, ddof=1) + base.var(1, ddof=1)).sum()
    assert table.loc["latent", "ratio"] == pytest.approx(paired / both)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_model(tmp_path_factory.mktemp("model"))
    for number, hook in enumerate(("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")):
        make_sae("jumprelu", hook, seed=number).save_model(path / "saes" / hook)
    lines = [{"prompt": "the cat sat on", "kind": "safe"}, {"prompt": "a dog ran", "kind": "bold"}]
    (path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def given(folder: Path, out: Path) -> list[object]:
    source = ["--prompts", folder / "prompts.jsonl", "--model", folder / "tiny", "--device", "cpu"]
    return ["replay", "run", *source, "--saes", folder / "saes", "--out", out, "--trials", 2]


def test_a_run_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ["--latent", "resid_post.1:17", "--value", 9, "--max-new-tokens", 4, "--unpatched"]
    status, shown, complaints = run(capsys, *given(folder, out), *more)
    assert status == 0, complaints
    assert "resid_post.1:17 hold 9 (all)" in shown and "reconstruction" in shown
    assert str(out) in shown
    found = ReplayResult.load(out)
    assert set(found.responses["kind"]) == {"safe", "bold"} and len(found.responses) == 4 * 4
    assert found.record["sites"] == ["resid_post.1", "resid_post.2"]
    assert found.record["prompts_file"].endswith("prompts.jsonl")
    assert pq.read_metadata(out / "steps.parquet").num_rows == found.responses["length"].sum()
    assert not found.responses["unpatched_logprob"].isna().any()
    assert "http://" not in (out / "replay.html").read_text().split("<h2>Arms</h2>")[0]
    status, again, _ = run(capsys, "show", out)
    assert status == 0 and again.splitlines()[:5] == shown.splitlines()[:5]


def test_mistakes_end_with_one_message_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--model", tmp_path / "no-model"]
    own: list[Any] = ["--prompts", folder / "prompts.jsonl"]
    for more, said in (
        (["--latent", "resid_post.1"], "expected SITE:LATENT"),
        (["--latent", "resid_post.1:3"], "needs a finite value"),
        (["--latent", "resid_post.1:3", "--mode", "remove", "--value", 2], "contradicts"),
        (["--latent", "resid_post.1:3", "--value", 2, "--task", "ioi"], "either --task"),
        (["--latent", "resid_post.1:3", "--value", 2, "--temperature", 0], "one is enough"),
        (["--latent", "resid_post.1:3", "--value", 2, "--top-p", 0], "top-p"),
        (["--latent", "resid_post.1:3", "--value", 2, "--n-prompts", 3], "--prompts contradict"),
        (["--latent", "resid_post.1:3", "--task-option", "a=1"], "--prompts contradict"),
        (["--latent", "resid_post.1:3", "--value", 2, "--outcome", "words"], "expected one of"),
        (["--latent", "resid_post.1:3", "--value", 2, "--outcome", "parsed:a"], "give --task"),
        (["--latent", "resid_post.1:3", "--value", 2, "--outcome", "unpatched_logprob"], "--unpa"),
    ):
        status, _, complaints = run(capsys, "replay", "run", *own, *source, *more)
        assert status == 2 and said in complaints, (more, complaints)
    of_task: list[Any] = ["--task", "gambling", "--latent", "resid_post.1:3", "--value", 2]
    for option, said in (
        ("family=1", "family=1: expected text"),
        ("hue=red", "the task gambling has no --task-option hue: its options are family, chat."),
        ("seed=1", "has no --task-option seed"),
    ):
        more = [*of_task, "--task-option", option]
        status, _, complaints = run(capsys, "replay", "run", *source, *more)
        assert status == 2 and said in complaints, (more, complaints)


_TASK = """
from circuits import load_model
from circuits.task import Prompt

class Animals:
    name, description, position_names = "animals", "animals", ("END",)

    def load(self, model=None, **options):
        return load_model(model, **options)

    def prompts(self, model, *, n=12, seed=0, animal="cat", family="tame"):
        return [Prompt(f"the {animal} {verb}", family) for verb in ("sat", "ran")][:n]

    def parse(self, response, prompt):
        long = len(response) > 8
        return {"valid": len(response) % 4 > 0, "size": "long" if long else "short"}

    def outcome(self, model, *, animal="cat", family="tame"):
        return f"logit:{animal}"

task = Animals()
"""


def test_options_of_a_task_reach_its_prompts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "animals.py", tmp_path / "run"
    path.write_text(_TASK)
    options = ["--task-option", "animal=dog", "--task-option", "family=wild", "--n-prompts", 2]
    more = ["--latent", "resid_post.1:17", "--value", 9, "--max-new-tokens", 4, "--trials", 6]
    source = ["--model", folder / "tiny", "--saes", folder / "saes", "--device", "cpu"]
    command = ["replay", "run", "--task", path, *source, *options, *more, "--out", out]
    more = ["--outcome", "parsed:size=long", "--outcome", "parsed:size=none"]
    status, shown, complaints = run(capsys, *command, *more)
    assert status == 0, complaints
    found = ReplayResult.load(out)
    record = found.record
    assert record["task"] == "animals" and record["task_from"] == str(path)
    shown, words = " ".join(shown.split()), found.responses
    assert "Share of valid responses with size long, arm - no-op" in shown
    assert "no valid response has parsed:size=none" in shown
    page = (out / "replay.html").read_text()
    assert "Share of valid responses with size long" in page and "no valid response" in page
    valid = words["response"].str.len() % 4 > 0
    pairs = valid.to_numpy()[(words["arm"] == "latent").to_numpy()]
    pairs = pairs & valid.to_numpy()[(words["arm"] == "no-op").to_numpy()]
    lost = f"latent {(~pairs).sum()} of {len(pairs)}."
    assert lost in shown and lost in page and (~pairs).any()
    status, again, complaints = run(capsys, "show", out, "--outcome", "word:a")
    assert status == 0 and "'a' in responses (times), arm - no-op" in " ".join(again.split())
    status, _, complaints = run(capsys, "show", out, "--outcome", "parsed:other")
    assert status == 2 and "the task did not read it" in complaints
    assert record["prompts"] == ["the dog sat", "the dog ran"]
    assert record["kinds"] == ["wild", "wild"]
    assert record["task_options"] == {"animal": "dog", "family": "wild"}


def test_a_text_that_the_task_read_is_an_outcome() -> None:
    read = [
        '{"action": "stop", "valid": true}',
        '{"action": "bet", "valid": true}',
        '{"action": "bet", "valid": false}',
        '{"action": null, "valid": false}',
        None,
    ]
    responses = pd.DataFrame({"parsed": read})
    for text, wanted in (("stop", [1, 0]), ("bet", [0, 1])):
        found = outcome_of(responses, f"parsed:action={text}")
        np.testing.assert_array_equal(found, [*wanted, np.nan, np.nan, np.nan])
    with pytest.raises(ReplayError, match="the texts read as action are bet, stop"):
        outcome_of(responses, "parsed:action=stpo")
    with pytest.raises(ReplayError, match="as in parsed:action=stop"):
        outcome_of(responses, "parsed:action")
