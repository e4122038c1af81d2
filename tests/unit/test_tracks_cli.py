"""`circuits tracks` on a tiny model, from the arguments to the files and the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from circuits.report import find_runs, report
from circuits.runs import read_record
from circuits.tracks import Tracks
from circuits.tracks.tells import Tells
from tests import tiny
from tests.unit.test_cli import run
from tests.unit.test_predict_cli import records_of
from tests.unit.test_saes import make_sae

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.3.hook_resid_post")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, SAEs (one of them not of the stream), answers with and without output numbers."""
    path = tmp_path_factory.mktemp("tracks")
    tiny.hugging_face("llama").save_pretrained(path / "tiny")
    tiny.tokenizer().save_pretrained(path / "tiny")
    for seed, hook in enumerate((*HOOKS, "blocks.2.hook_mlp_out")):
        make_sae("jumprelu", hook, seed=seed).save_model(path / "saes" / hook)
    rng = np.random.default_rng(0)
    for name in ("bare", "data"):
        lines = []
        for r in records_of(40):
            entry = {"id": r.id, "group": r.group, "prompt": r.prompt, "completion": r.completion}
            entry |= {"correct": r.correct, "kind": r.id[-1] in "02468"}
            if name == "data":
                entry |= {"answer_probability": rng.random(), "output_entropy": rng.random()}
            lines.append(json.dumps(entry))
        (path / f"{name}.jsonl").write_text("\n".join(lines))
    return path


def given(folder: Path, data: str = "data") -> list[object]:
    model = ["--model", folder / "tiny", "--saes", folder / "saes", "--device", "cpu"]
    quick = ["--permutations", 39, "--k", 4, "--checked", 4, "--least", 0.2, "--branch", 0.25]
    places = ["--positions", "last:2", "--links", "all", "--rare", 2, "--densest", 1]
    return ["tracks", "--data", folder / f"{data}.jsonl", *model, *quick, *places]


def test_tracks_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, shown, said = run(capsys, *given(folder), "--folds", 3, "--out", folder / "run")
    assert status == 0, said
    found = Tracks.load(folder / "run")
    assert found.record["command"][1:3] == ["tracks", "--data"] and found.record["task"] == "data"
    assert len(found.record["data_sha256"]) == 64 and found.record["plan"]["k"] == 4
    assert found.sites == ["resid_post.0", "resid_post.1", "resid_post.3"]
    assert found.record["saes_left_out"] == ["mlp_out.2"]
    assert len(found.metrics) == 40 and len(found.metrics.columns) == 7
    told = Tells.load(folder / "run-tells")
    assert told.record["tracks"] == str(folder / "run") and told.record["answers"] == 40
    words = " ".join(shown.split())
    assert " ".join(found.headline().split()) in words and "Gains in AUC" in words
    for name in ("run", "run-tells"):
        status, again, said = run(capsys, "show", folder / name)
        assert status == 0, said
        assert set(again.splitlines()) <= set(shown.splitlines())
    page = report(find_runs([folder / "run", folder / "run-tells"]))
    assert "Tracks through the layers" in page and "What a link means" in page
    assert told.headline()[:40] in page and "Leak audit" in page


def test_what_contradicts_itself_is_refused_before_a_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["--model", folder / "nowhere"]
    for options, wanted in (
        (["tracks"], "either --task, or --data"),
        (["tracks", "--task", "error_type"], "answered"),
        ([*given(folder), "--n", 20], "--n and --data contradict"),
        ([*given(folder, "bare")], "give them (--surface names keys of --data), or --no-tell"),
        ([*given(folder), "--folds", 30], "too few groups"),
        ([*given(folder), "--positions", "mean"], "expected some of last:K, completion"),
        ([*given(folder), "--branch", 0.1], "branch must not be below least"),
        ([*given(folder), "--out", folder / "saes"], "exists already"),
    ):
        status, _, said = run(capsys, *options, *missing)
        assert status == 2 and wanted in said, (options, said)


def test_constant_metrics_end_the_command_after_the_tracks_are_saved(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "data.jsonl").read_text().splitlines()
    same = [{**json.loads(line), "prompt": "the cat sat", "completion": "on"} for line in lines]
    (folder / "same.jsonl").write_text("\n".join(map(json.dumps, same)))
    out = folder / "constant"
    command = [*given(folder, "same"), "--no-tell", "--out", out]
    status, _, said = run(capsys, *command)
    assert status == 2 and "constant over all 40 answers: entropy (always" in said
    assert len(read_record(out)["constant"]) == 6
