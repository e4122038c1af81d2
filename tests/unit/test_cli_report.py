"""`circuits report` on the smallest run there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from circuits import cli
from circuits.runs import write_record
from tests.unit.test_cli import PAIR, run, write_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_model(tmp_path_factory.mktemp("model"))
    (path / "pairs.jsonl").write_text(json.dumps(PAIR))
    words = ["patch", "--pairs-file", path / "pairs.jsonl", "--model", path / "tiny", "--layers"]
    words += ["1", "--force", "--out", path / "runs" / "custom" / "patch-1"]
    with pytest.raises(SystemExit) as end:
        cli.run_app(cli.app, [str(word) for word in words])
    assert not end.value.code
    return path / "runs"


def test_a_report_from_the_command_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    (tmp_path / "empty").mkdir()
    given = ["report", runs, tmp_path / "empty", "--out", out, "--title", "Cats & dogs"]
    status, shown, complaints = run(capsys, *given)
    assert status == 0, complaints
    flat = " ".join(shown.split())
    assert "(1 run, " in flat and "open it in a browser" in flat and "has none in it" in flat
    text = out.read_text(encoding="utf-8")
    assert "<h1>Cats &amp; dogs</h1>" in text and "circuits patch --pairs-file" in text
    assert list(tmp_path.glob(".*")) == []
    status, _, complaints = run(capsys, *given)
    assert status == 2 and "exists already" in complaints and "--force" in complaints
    out.write_text("old")
    assert run(capsys, *given, "--force")[0] == 0
    assert out.read_text(encoding="utf-8") == text


def test_it_is_written_to_this_folder_by_default(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "report", runs)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "There is no run to report"),
        ([".", "--out", "."], "is a folder: give --out a file"),
        ([".", "--out", "none/report.html"], "none is no folder you may write to"),
        ([], "Missing argument"),
    ],
)
def test_mistakes_end_with_one_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, complaints = run(capsys, "report", *given)
    assert status == 2 and message in complaints and "Traceback" not in complaints
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["replay", "pathways", "words"])
def test_runs_with_a_page_of_their_own_are_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    folder, out = tmp_path / "one", tmp_path / "page.html"
    folder.mkdir()
    write_record(folder, {"method": method, "model": "tiny"})
    status, shown, _ = run(capsys, "report", runs, folder, "--out", out)
    said = f"has a page of its own: open {folder}/{method}.html"
    assert status == 0 and "".join(said.split()) in "".join(shown.split())
    assert f"{folder}/{method}.html" in out.read_text(encoding="utf-8")
    status, _, complaints = run(capsys, "report", folder, "--out", tmp_path / "no.html")
    assert status == 2 and "There is no run to report" in complaints
    assert f"{method}.html" in "".join(complaints.split())


def test_a_page_that_fails_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("circuits.report.report", broken)
    with pytest.raises(ZeroDivisionError):
        cli.run_app(cli.app, ["report", str(runs), "--out", str(tmp_path / "page.html")])
    assert list(tmp_path.iterdir()) == []
