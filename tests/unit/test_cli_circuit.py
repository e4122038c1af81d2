"""`circuits circuit`, `apply` and `diff` on a tiny model and SAEs in local folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuits.circuit import CircuitResult
from circuits.graph import Circuit
from tests import tiny
from tests.unit.test_cli import PAIR, run
from tests.unit.test_saes import make_sae

WORDS = ("cat", "dog", "mat", "log")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.hugging_face("llama").save_pretrained(path / "tiny")
    tiny.tokenizer().save_pretrained(path / "tiny")
    lines = [
        json.dumps(
            {
                **PAIR,
                "clean": f"the {one} sat on the",
                "corrupted": f"the {other} sat on the",
                "template": "sat",
            }
        )
        for one in WORDS
        for other in WORDS
        if one != other
    ]
    (path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    for number, hook in enumerate(("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")):
        make_sae("jumprelu", hook, seed=number).save_model(path / "saes" / hook)
    return path


def options(folder: Path) -> list[object]:
    pairs, model = folder / "pairs.jsonl", folder / "tiny"
    given = ["--pairs-file", pairs, "--model", model, "--device", "cpu"]
    return [*given, "--saes", folder / "saes"]


def test_a_circuit_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = ["--force", "--size", 30, "--drawn", 8, "--reference", "corrupted", "--out", out]
    status, shown, complaints = run(capsys, "circuit", *options(folder), *given)
    assert status == 0, complaints
    assert "a circuit of 30 of" in shown and "held out: none" in shown and str(out) in shown
    assert "The 8 strongest nodes" in shown and "FORCED" in shown
    result = CircuitResult.load(out)
    assert len(result.circuit) == 30 and result.record["references"] == ["corrupted"]
    assert result.record["pairs_file"].endswith("pairs.jsonl") and result.record["command"]
    assert not list(tmp_path.glob(".parts-*"))
    status, again, _ = run(capsys, "show", out)
    assert status == 0 and again.splitlines()[0] == shown.splitlines()[0]

    status, shown, complaints = run(capsys, "apply", out, *options(folder), "--reference", "zero")
    assert status == 0, complaints
    assert "A circuit of 30 nodes found on custom, on 12 pairs of custom" in shown
    assert "zero" in shown and "corrupted" not in shown

    small = tmp_path / "small.json"
    Circuit.load(out).strongest(10).save(small)
    status, shown, _ = run(capsys, "diff", out, small)
    assert status == 0
    assert "10 nodes shared, 20 in A alone, 0 in B alone: Jaccard index 0.33" in shown


def test_mistakes_are_told_before_anything_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["--model", tmp_path / "no_model"]
    for given, message in (
        (["--reference", "median"], "unknown reference 'median'"),
        (["--size", 3, "--reach", 0.5], "give one of them"),
        (["--attribution", tmp_path], "no run.json"),
    ):
        status, _, complaints = run(capsys, "circuit", *missing, *given)
        assert status == 2 and message in " ".join(complaints.split()), complaints
    (tmp_path / "other.json").write_text("{}")
    status, _, complaints = run(capsys, "apply", tmp_path / "other.json", *options(folder))
    assert status == 2 and "is not a circuit" in " ".join(complaints.split())
    status, _, complaints = run(capsys, "diff", tmp_path, tmp_path)
    assert status == 2 and "give two" in complaints
