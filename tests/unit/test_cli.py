"""The command line on a tiny model in a local folder, from the arguments to the files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from circuits import cli
from circuits.cli.options import parse_layers
from circuits.errors import CircuitsError
from circuits.runs import Parts
from tests import tiny

PAIR = {
    "clean": "the cat sat on the",
    "corrupted": "the dog sat on the",
    "answer": " mat",
    "foil": " log",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def write_model(path: Path) -> Path:
    """A tiny model and a file of pairs of one's own, of two lengths."""
    tiny.hugging_face("llama").save_pretrained(path / "tiny")
    tiny.tokenizer().save_pretrained(path / "tiny")
    other = {**PAIR, "clean": "a cat ran on a", "corrupted": "a dog ran on a"}
    longer = {**PAIR, "clean": "then the cat sat on the", "corrupted": "then the dog sat on the"}
    lines = [json.dumps(p) for p in (PAIR, other, longer)]
    (path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, output and errors of `circuits ARGUMENTS`."""
    status = 0
    try:
        cli.run_app(cli.app, [str(a) for a in arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, re.sub(r"\s+", " ", captured.err)


def test_a_run_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--pairs-file", folder / "pairs.jsonl", "--model", folder / "tiny", "--device"]
    status, shown, _ = run(capsys, "patch", *options, "cpu", "--out", out, "--force")
    assert (
        status == 0
        and "denoising resid_pre, logit_difference, 3 pairs" in shown
        and str(out) in shown
    )
    scores = pd.read_parquet(out / "scores.parquet")
    assert len(scores) == 4 * (5 + 5 + 6)
    record = json.loads((out / "run.json").read_text())
    assert record["task"] == "custom" and record["model"] == "tiny" and record["seed"] is None
    assert record["pairs_file"].endswith("pairs.jsonl") and len(record["pairs_file_sha256"]) == 64
    assert record["command"][:2] == ["circuits", "patch"]
    # Two lengths, two pictures.
    assert {p.name for p in out.iterdir()} == {
        "run.json",
        "scores.parquet",
        "heatmap.html",
        "heatmap-2.html",
    }
    status, again, _ = run(capsys, "show", out)
    assert status == 0 and again.splitlines()[:3] == shown.splitlines()[:3]


def test_one_pair_is_shown_without_intervals(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({**PAIR, "answer": " red mat"}))
    options = ["--pairs-file", one, "--model", folder / "tiny", "--force"]
    status, shown, _ = run(capsys, "patch", *options, "--out", tmp_path / "run")
    assert status == 0 and "1 pair," in shown and "nan" not in shown
    assert "answer 'red' (first token of ' red mat'), foil 'log'" in " ".join(shown.split())


def test_options_that_draw_pairs_contradict_a_pairs_file(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--pairs-file", folder / "pairs.jsonl", "--n-pairs", "3", "--contrast", "x"]
    status, _, errors = run(capsys, "patch", *options)
    assert status == 2 and "--contrast, --n-pairs draw pairs" in errors


@pytest.mark.parametrize("site", ["z", "resid_mid", "mlp_out"])
@pytest.mark.parametrize("positions", ["each", "all"])
def test_every_kind_of_sweep_prints_and_draws(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], site: str, positions: str
) -> None:
    options = ["--pairs-file", folder / "pairs.jsonl", "--model", folder / "tiny", "--site", site]
    more = ["--positions", positions, "--direction", "noising", "--layers", "1-2", "--force"]
    out = tmp_path / "run"
    assert run(capsys, "patch", *options, *more, "--metric", "kl", "--out", out)[0] == 0
    assert (out / "heatmap.html").stat().st_size > 1_000_000


def test_module_and_command_are_the_same() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-W", "error::RuntimeWarning", *arguments, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for arguments in (["-m", "circuits.patch"], ["-m", "circuits", "patch"])
    ]
    assert found[0] == found[1] and "--pairs-file" in found[0]


def test_help_is_a_map(capsys: pytest.CaptureFixture[str]) -> None:
    status, shown, _ = run(capsys, "--help")
    assert status == 0 and "patch" in shown and "show" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["patch", "--task", "eror_type"], "unknown task 'eror_type'"),
        (["patch", "--contrast", "TypeError"], "Did you mean"),
        (["patch", "--site", "resid"], "unknown site kind 'resid'"),
        (["patch", "--metric", "x"], "unknown metric 'x'"),
        (["patch", "--direction", "x"], "unknown direction 'x'"),
        (["patch", "--pairs-file", "none.jsonl"], "the pairs file none.jsonl does not exist"),
        (["patch", "--out", "."], "exists already"),
        (["patch", "--model", "./none"], "the model folder ./none does not exist"),
        (["patch", "--layers", "a-b"], "expected numbers and ranges such as 0,6,12-18"),
        (["patch", "--n-pairs", "0"], "Invalid value for '--n-pairs'"),
        (["show", "nowhere"], "nowhere is not a run"),
    ],
)
def test_mistakes_end_with_one_message_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, _, errors = run(capsys, *arguments)
    assert status == 2 and message in errors and "Traceback" not in errors


def test_mistakes_about_the_model_come_before_any_pass(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["patch", "--pairs-file", folder / "pairs.jsonl", "--model", folder / "tiny"]
    out = ["--out", tmp_path / "run", "--force"]
    for option, value, message in (
        ("--layers", "7", "has layers 0 to 3"),
        ("--dtype", "int8", "unknown dtype 'int8'"),
    ):
        status, _, errors = run(capsys, *base, *out, option, value)
        assert status == 2 and message in errors
    assert not (tmp_path / "run").exists()


def test_what_the_model_cannot_do_stops_with_that_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = {**PAIR, "clean": PAIR["corrupted"], "corrupted": PAIR["clean"]}
    both = tmp_path / "both.jsonl"
    both.write_text(json.dumps(PAIR) + "\n" + json.dumps(swapped))
    options = ["patch", "--model", folder / "tiny", "--pairs-file", both, "--out", tmp_path / "r"]
    status, _, errors = run(capsys, *options)
    assert status == 2 and "tiny cannot do custom" in errors and "or force it" in errors
    status, shown, _ = run(capsys, *options, "--force")
    assert status == 0 and "FORCED" in shown


def test_ctrl_c_keeps_what_is_finished(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = tmp_path / "many.jsonl"
    animals = ["cat", "dog", "mat", "log", "red", "blue", "one", "two", "three"]
    lines = [
        json.dumps({**PAIR, "clean": f"the {a} sat on the", "corrupted": f"the {b} sat on the"})
        for a in animals
        for b in animals
        if a != b
    ]
    many.write_text("\n".join(lines))
    options = ["patch", "--model", folder / "tiny", "--pairs-file", many, "--force", "--out"]
    with pytest.MonkeyPatch.context() as patcher:
        calls: list[int] = []

        def interrupted(*args: object, **kwargs: object) -> None:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            keep(*args, **kwargs)

        keep = Parts.put
        patcher.setattr(Parts, "put", interrupted)
        status, _, errors = run(capsys, *options, tmp_path / "run")
    assert status == 130 and "give the same command to go on" in errors
    assert not (tmp_path / "run").exists()
    [kept] = [p for p in tmp_path.iterdir() if p.name.startswith(".parts-")]
    assert len(list(kept.iterdir())) == 3
    assert run(capsys, *options, tmp_path / "run")[0] == 0
    assert not kept.exists() and len(pd.read_parquet(tmp_path / "run" / "scores.parquet")) == 1440


def test_show_knows_its_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text('{"format": 1, "method": "other"}')
    status, _, errors = run(capsys, "show", tmp_path)
    assert status == 2 and "holds a run of 'other', which this version cannot show" in errors
    (tmp_path / "run.json").write_text('{"format": 1, "method": "patch"}')
    status, _, errors = run(capsys, "show", tmp_path)
    assert status == 2 and "is not a whole patching run" in errors
    (tmp_path / "run.json").write_text("[]")
    status, _, errors = run(capsys, "show", tmp_path)
    assert status == 2 and "is damaged" in errors


def test_layers_are_read() -> None:
    assert parse_layers("0,6,12-14") == [0, 6, 12, 13, 14]
    with pytest.raises(CircuitsError):
        parse_layers("1-")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("circuits.task.load_task", broken)
    with pytest.raises(ZeroDivisionError):
        cli.run_app(cli.app, ["patch"])
