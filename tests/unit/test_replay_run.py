"""A run of replay: its arms, its tables, the same bytes after an interruption."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from circuits.models.hooked import HookedModel
from circuits.replay import (
    Change,
    Prompts,
    ReplayError,
    ReplayResult,
    generate,
    keys_of,
    read_prompts,
    replay,
)
from circuits.replay.options import Options
from circuits.replay.run import Run
from circuits.replay.tables import divergences
from circuits.runs import RunError
from circuits.sites import Site
from circuits.task import Prompt, TaskError, load_task
from tests import tiny
from tests.replayed import LATE, POST, random_saes

TEXTS = [
    Prompt("the cat sat on the mat .", "safe"),
    Prompt("a dog ran under the log .", "risky"),
    Prompt("the red dog", "safe"),
]
SITES = [POST, Site(2, "resid_post"), LATE]
CHANGES = [Change(POST, 3, "hold", 8.0, "generated")]
STOP = [5, 6, 7]


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


def prompts(model: HookedModel) -> Prompts:
    return Prompts.of(TEXTS, model.tokenizer)


def run(model: HookedModel, out: Path, changes: Any = CHANGES, **more: Any) -> ReplayResult:
    given = {"trials": 3, "max_new_tokens": 6, "batch_size": 4, "stop": STOP, "randoms": 2}
    memory = more.pop("memory", None)
    saes = random_saes(SITES, memory=memory)
    return replay(
        model, saes, prompts(model), changes, out=out, progress=False, **{**given, **more}
    )


@pytest.fixture(scope="module")
def result(model: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> ReplayResult:
    return run(model, tmp_path_factory.mktemp("run") / "replay", unpatched=True)


def test_arms_and_rows(result: ReplayResult) -> None:
    assert result.arms == ("no-op", "reconstruction", "random-1", "random-2", "latent")
    responses = result.responses
    assert len(responses) == 5 * 3 * 3
    assert list(dict.fromkeys(responses["arm"])) == list(result.arms)
    keys = responses[["arm", "prompt", "trial"]]
    assert not keys.duplicated().any()
    kinds = dict(zip(responses["prompt"], responses["kind"], strict=True))
    assert kinds == {0: "safe", 1: "risky", 2: "safe"}
    steps = result.steps()
    assert len(steps) == responses["length"].sum() == result.record["rows"]["steps"]
    assert set(result.latents()["site"]) == {str(site) for site in SITES}


def test_the_no_op_arm_is_plain_generation(model: HookedModel, result: ReplayResult) -> None:
    tokens = torch.tensor([prompts(model).tokens[2]] * 3)
    plain = generate(
        model, tokens, keys_of(tokens, [0, 1, 2]), max_new_tokens=6, stop=STOP, watch=SITES
    )
    mine = result.responses.query("arm == 'no-op' and prompt == 2").reset_index(drop=True)
    steps: Any = result.steps("no-op").query("prompt == 2")
    for row, length in enumerate(plain.lengths.tolist()):
        ids = plain.tokens[row, :length].tolist()
        assert list(mine["tokens"][row]) == ids
        text = model.tokenizer.decode(ids[:-1] if plain.stopped[row] else ids)
        assert mine["response"][row].strip() == text.strip()
        assert bool(mine["stopped"][row]) == bool(plain.stopped[row])
        part = steps[steps["trial"] == row]
        assert part["step"].tolist() == list(range(length))
        np.testing.assert_array_equal(part["logprob"], plain.logprobs[row, :length])
        np.testing.assert_array_equal(
            np.stack(part["top_logprobs"].tolist()), plain.top_logprobs[row, :length]
        )
        np.testing.assert_array_equal(
            np.stack(part["top_tokens"].tolist()), plain.top_tokens[row, :length]
        )
        assert mine["logprob"][row] == pytest.approx(float(part["logprob"].sum()), abs=1e-5)
        assert mine["unpatched_logprob"][row] == pytest.approx(mine["logprob"][row], abs=1e-4)
    saes = random_saes(SITES)
    for site in SITES:
        found: Any = result.latents("no-op", [site]).query("prompt == 2")
        dense = np.zeros((3, 6, saes[site].d_sae))
        dense[found["trial"], found["step"], found["latent"]] = found["value"]
        x = plain.activations[site]
        expected = saes[site].coefficients(x.reshape(-1, x.shape[2])).view(*x.shape[:2], -1)
        expected = (expected * plain.inside[..., None]).numpy()
        np.testing.assert_allclose(dense[:, : x.shape[1]], expected, atol=1e-5)
        assert ((dense[:, : x.shape[1]] != 0) == (expected != 0)).all()


def test_tokens_agree_up_to_the_first_changed_position(result: ReplayResult) -> None:
    base = result.responses[result.responses["arm"] == "no-op"]
    tokens = {(r["prompt"], r["trial"]): list(r["tokens"]) for r in base.to_dict("records")}
    for row in result.responses.to_dict("records"):
        other, mine = tokens[row["prompt"], row["trial"]], list(row["tokens"])
        assert mine[0] == other[0]  # the change is behind it
        same = [a == b for a, b in zip(mine, other, strict=False)]
        if row["arm"] == "no-op" or mine == other:
            assert np.isnan(row["divergence"])
        else:
            assert row["divergence"] == same.index(False) >= 1
    assert result.table().set_index("arm").loc["latent", "diverged"] > 0.5


def test_divergence_by_hand() -> None:
    assert divergences([[1, 2], [1, 2], [1], [3]], [[1, 2], [1, 3], [1, 2], [4]]) == [None, 1, 1, 0]


def test_it_is_read_back_and_copied(result: ReplayResult, tmp_path: Path) -> None:
    again = ReplayResult.load(result.save(tmp_path / "copy"))
    pd.testing.assert_frame_equal(again.responses, result.responses)
    pd.testing.assert_frame_equal(again.latents("latent"), result.latents("latent"))
    assert again.record == result.record
    assert "Divergence" in (again.folder / "replay.html").read_text(encoding="utf-8")
    assert sorted(p.name for p in result.folder.parent.iterdir()) == ["replay"]  # no parts left
    (again.folder / "latents.parquet").unlink()
    with pytest.raises(RunError, match=r"no latents\.parquet"):
        ReplayResult.load(again.folder)
    with pytest.raises(ReplayError, match="no arm"):
        result.steps("other")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("record", ["latents", "residuals"])
def test_an_interrupted_run_ends_with_the_same_bytes(
    model: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Any
) -> None:
    whole = run(model, tmp_path / "a" / "replay", record=record)
    module = sys.modules["circuits.replay.run"]
    calls = []

    def stopping(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return generate(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(module, "generate", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(model, tmp_path / "b" / "replay", record=record, save_dir=tmp_path / "parts")
    assert not (tmp_path / "b" / "replay").exists()
    [parts] = (tmp_path / "parts").iterdir()
    # A part that was half written is made again.
    (parts / "0-1" / "responses.parquet").write_bytes(b"PAR1")

    def counting(*args: Any, **more: Any) -> Any:
        calls.append(1)
        return generate(*args, **more)

    before = len(calls)
    with monkeypatch.context() as patched:
        patched.setattr(module, "generate", counting)
        again = run(model, tmp_path / "b" / "replay", record=record, save_dir=tmp_path / "parts")
    assert len(calls) - before == 3 * 5 - 7 + 1
    assert not parts.exists()
    assert contents(again.folder) == contents(whole.folder)
    assert ("residuals" in {p.name for p in again.folder.iterdir()}) == (record == "residuals")


def test_encoding_afterwards_and_an_lru_of_saes_give_the_same(
    model: HookedModel, tmp_path: Path
) -> None:
    live = run(model, tmp_path / "live")
    stored = run(model, tmp_path / "stored", record="residuals")
    one = run(model, tmp_path / "one", memory=1)  # one SAE at a time
    for name in ("responses", "steps", "latents"):
        expected = pq.read_table(live.folder / f"{name}.parquet")
        for other in (stored, one):
            assert pq.read_table(other.folder / f"{name}.parquet").equals(expected)


def test_batches_and_trials_do_not_change_tokens(
    model: HookedModel, result: ReplayResult, tmp_path: Path
) -> None:
    other = run(model, tmp_path / "other", batch_size=7, trials=2, randoms=0)
    assert other.arms == ("no-op", "reconstruction", "latent")
    assert "There is no random arm" in other.warnings()[0]
    for arm in other.arms:
        mine = other.responses[other.responses["arm"] == arm]
        theirs = result.responses.query(f"arm == '{arm}' and trial < 2")
        merged: Any = mine.merge(theirs, on=["prompt", "trial"], suffixes=("", "_2"))
        assert len(merged) == 6
        assert [list(t) for t in merged["tokens"]] == [list(t) for t in merged["tokens_2"]]


@dataclass(frozen=True)
class Talk:
    """A task with prompts to answer."""

    name: str = "talk"
    description: str = "talk"
    position_names: tuple[str, ...] = ("END",)

    def load(self, model: str | None = None, **options: Any) -> Any:
        return tiny.bridge("llama")

    def prompts(
        self, model: Any, *, n: int = 12, seed: int = 0, kind: str | None = None
    ) -> list[Prompt]:
        return TEXTS[:n] if kind is None else [Prompt(one.text, kind) for one in TEXTS[:n]]

    def parse(self, response: str, prompt: str) -> Mapping[str, Any]:
        return {"valid": "the" in response.split(), "words": len(response.split())}


def test_a_task_reads_the_responses(model: HookedModel, tmp_path: Path) -> None:
    saes = random_saes([POST])
    found = replay(
        model, saes, Talk(), CHANGES, out=tmp_path / "r", n_prompts=2, trials=2, progress=False
    )
    assert found.record["task"] == "talk" and len(found.responses) == 2 * 2 * 4
    words = found.values("parsed:words", "latent")
    texts: Any = found.responses.query("arm == 'latent'").sort_values(["prompt", "trial"])
    assert words.flatten().tolist() == [len(t.split()) for t in texts["response"]]
    assert 0 <= found.table()["valid"].min() <= 1
    assert found.record["task_options"] == {}


def test_parts_are_of_one_reading_and_one_machine(
    model: HookedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, text in (("__init__", "from .task import task"), ("rules", "WORDS = 1")):
        (folder / f"{name}.py").write_text(text)
    own = ["class Mine:", "    name = description = 'mine'", "    position_names = ('END',)"]
    own += ["    def load(self, model=None, **options): ...", "task = Mine()"]
    (folder / "task.py").write_text("\n".join(own))
    task = load_task(folder)
    saes, given = random_saes([POST]), prompts(model)

    def identity() -> dict[str, Any]:
        options = Options(trials=1)
        return Run(model, saes, given, CHANGES, (POST,), options, None, task).identity()

    before = identity()
    assert before == identity() and before["parsed"][0] == "mine"
    (folder / "rules.py").write_text("WORDS = 2")
    after = identity()
    assert after["parsed"] != before["parsed"] and {**after, "parsed": before["parsed"]} == before
    with monkeypatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 77)
        assert identity()["machine"] != after["machine"]


def test_one_trial_has_differences_and_no_variances(model: HookedModel, tmp_path: Path) -> None:
    found = run(model, tmp_path / "r", trials=1, temperature=0.0, randoms=0, max_new_tokens=4)
    table = found.variance("logprob").set_index("arm")
    mine, base = found.values("logprob", "latent"), found.values("logprob", "no-op")
    assert mine.shape == (3, 1)
    assert table.loc["latent", "difference"] == pytest.approx((mine - base).mean())
    assert table.loc["latent", "pairs"] == 3 and table.loc["latent", "lost"] == 0
    assert np.isnan(table.loc["latent", ["independent", "ratio", "difference_low"]].tolist()).all()
    assert "Log-probability of responses (nats)" in (found.folder / "replay.html").read_text()


def test_tables_are_the_responses(result: ReplayResult) -> None:
    """The arms' table, which is added up from pieces, against all responses at once."""
    responses: Any = result.responses
    for row in result.table().to_dict("records"):
        mine = responses[responses["arm"] == row["arm"]]
        apart = mine["divergence"].dropna()
        assert row["responses"] == len(mine) == 9
        assert row["length"] == pytest.approx(mine["length"].mean())
        assert row["stopped"] == pytest.approx(mine["stopped"].mean())
        assert row["diverged"] == pytest.approx(len(apart) / 9) and np.isnan(row["valid"])
        counts = result.divergences()[row["arm"]]
        assert counts.tolist() == np.bincount(apart.astype(int), minlength=7).tolist()
        if len(apart):
            assert row["divergence"] == apart.median()
    assert sum(row.sum() for row in result.divergences().values()) > 5


def test_options_of_a_task_reach_its_prompts(model: HookedModel, tmp_path: Path) -> None:
    short: Any = {"n_prompts": 2, "trials": 1, "max_new_tokens": 2, "progress": False}
    own = {"kind": "mine"}
    given: Any = (model, random_saes([POST]))
    found = replay(*given, Talk(), CHANGES, task_options=own, out=tmp_path / "r", **short)
    assert found.record["task_options"] == own and set(found.responses["kind"]) == {"mine"}
    with pytest.raises(ReplayError, match="options kind are a task's"):
        replay(*given, prompts(model), CHANGES, task_options=own, out=tmp_path / "s")


def test_what_cannot_be_run_is_refused_before_it_is(model: HookedModel, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Silent:
        name: str = "silent"
        description: str = "silent"
        position_names: tuple[str, ...] = ("END",)

        def load(self, model: str | None = None, **options: Any) -> Any: ...

    saes = random_saes([POST])
    with pytest.raises(TaskError, match="generate"):
        replay(model, saes, Silent(), CHANGES, out=tmp_path / "r")
    for changes, more, said in (
        ([], {}, "no changes"),
        ([Change(LATE, 3, "remove")], {}, "no SAE at"),
        (CHANGES, {"sites": [LATE]}, "no SAE at"),
        (CHANGES, {"temperature": 0.0}, "all the same"),
        (CHANGES, {"max_new_tokens": 64}, "positions"),
        ([Change(POST, 3, "hold", torch.ones(2, 2))], {}, "tensors"),
    ):
        with pytest.raises(ReplayError, match=said):
            replay(model, saes, prompts(model), changes, out=tmp_path / "r", **more)
    with pytest.raises(ReplayError, match="same tokens"):
        Prompts.of([TEXTS[0], TEXTS[0]], model.tokenizer)
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="exists already"):
        replay(model, saes, prompts(model), CHANGES, out=tmp_path / "taken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


def test_files_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "the cat", "kind": "safe"}\n\n{"prompt": "a dog"}\n')
    assert read_prompts(path) == [Prompt("the cat", "safe"), Prompt("a dog", "all")]
    for text, said in (
        ("{", "line 1: not JSON"),
        ('{"text": 1}', "line 1: expected"),
        ("", "no pr"),
    ):
        path.write_text(text)
        with pytest.raises(ReplayError, match=said):
            read_prompts(path)
