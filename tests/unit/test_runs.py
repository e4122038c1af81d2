"""Runs on disk: whole or absent, and read back as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from circuits.metrics import SMALLEST_GAP
from circuits.patch import PatchResult, patch
from circuits.patch.result import COLUMNS
from circuits.runs import (
    Parts,
    RunError,
    check_new,
    default_folder,
    new_run,
    read_record,
    versions,
    write_record,
)
from tests import tiny
from tests.pairs import token_pairs


@pytest.fixture(scope="module")
def result() -> PatchResult:
    model = tiny.bridge("llama")
    return patch(model, token_pairs(3, seed=1), layers=[0, 2], force=True, progress=False)


def test_a_run_read_back_is_the_same(result: PatchResult, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "run")
    again = PatchResult.load(folder)
    pd.testing.assert_frame_equal(again.scores, result.scores)
    assert again.prompts == result.prompts
    assert again.record == json.loads(json.dumps(result.record))
    pd.testing.assert_frame_equal(again.summary(), result.summary())
    assert again.heatmap().to_json() == result.heatmap().to_json()


def test_the_record_and_the_scores_hold_what_they_promise(
    result: PatchResult, tmp_path: Path
) -> None:
    folder = result.save(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    for key in (
        "task contrast model direction metric clean_tokens corrupted_tokens answer_tokens "
        "foil_tokens metric_clean metric_corrupted versions seed model_sha256 seconds "
        "sign_convention named_positions prepend_bos"
    ).split():
        assert key in record, key
    assert len(record["clean_tokens"]) == len(record["metric_clean"]) == 3
    assert record["versions"]["torch"] and record["versions"] == versions()
    scores = pd.read_parquet(folder / "scores.parquet")
    assert tuple(scores.columns) == COLUMNS
    assert len(scores) == 3 * 2 * 10 and not scores.duplicated(["pair", "layer", "position"]).any()
    gap = np.array(record["metric_clean"]) - np.array(record["metric_corrupted"])
    base = np.array(record["metric_corrupted"])
    own = (scores["metric"] - base[scores["pair"]]) / gap[scores["pair"]]
    wide = np.abs(gap[scores["pair"]]) >= SMALLEST_GAP
    assert np.allclose(own[wide], scores["recovery"][wide]) and wide.any()
    assert scores["recovery"][~wide].isna().all()
    page = (folder / "heatmap.html").read_text()
    assert "plotly" in page and 'src="http' not in page  # opens without a network


def test_a_number_that_json_lacks_becomes_null(tmp_path: Path) -> None:
    write_record(tmp_path, {"x": float("nan"), "y": np.float32(1.5), "z": (np.array([1, 2]),)})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record == {"format": 1, "x": None, "y": 1.5, "z": [[1, 2]]}


def test_a_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_run(tmp_path / "run") as work:
        (work / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_folder_and_the_next_run_clears_its_traces(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom circuits.runs import new_run\n"
        "with new_run(Path(sys.argv[1])) as work:\n"
        "    (work / 'half').write_text('half')\n    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
    )
    folder = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"writing\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not folder.exists()
    assert [p.name.startswith(".partial-") for p in tmp_path.iterdir()] == [True]
    with new_run(folder) as work:
        write_record(work, {})
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    model = tiny.bridge("llama")
    pairs = token_pairs(20, seed=4)  # three groups
    options: dict[str, Any] = {"layers": [1, 2], "force": True, "progress": False}
    reference = patch(model, pairs, **options)
    passes: list[int] = []

    def interrupt(module: Any, args: Any, kwargs: Any) -> None:
        passes.append(1)
        if len(passes) == stop:
            raise KeyboardInterrupt

    handle = model.adapter.blocks[3].register_forward_pre_hook(interrupt, with_kwargs=True)
    stop = 10**9
    patch(model, pairs, **options)
    whole, stop = len(passes), len(passes) - 3
    passes.clear()
    with pytest.raises(KeyboardInterrupt):
        patch(model, pairs, keep_parts=tmp_path, **options)
    [kept] = tmp_path.iterdir()
    assert kept.name.startswith(".parts-") and len(list(kept.iterdir())) >= 1
    passes.clear()
    stop = 10**9
    # Another question finds nothing of it; the same one does only what is left.
    other = patch(model, pairs, keep_parts=tmp_path, **{**options, "direction": "noising"})
    assert len(passes) == whole and other.parts is not None
    passes.clear()
    result = patch(model, pairs, keep_parts=tmp_path, **options)
    handle.remove()
    assert 0 < len(passes) < whole
    pd.testing.assert_frame_equal(result.scores, reference.scores)
    result.save(tmp_path / "run")
    assert not kept.exists() and (tmp_path / "run").is_dir()


def test_a_damaged_part_is_computed_again(tmp_path: Path) -> None:
    parts = Parts(tmp_path, {"a": 1})
    table = pd.DataFrame({"x": [1, 2]})
    parts.put(0, table)
    again = parts.get(0)
    assert again is not None and again.equals(table) and parts.get(1) is None
    (parts.folder / "0.parquet").write_bytes(b"PAR1")
    assert parts.get(0) is None
    assert Parts(tmp_path, {"a": 2}).folder != parts.folder


def test_a_folder_that_exists_is_not_overwritten(result: PatchResult, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exists already: give --out another folder"):
        result.save(tmp_path)


def test_a_place_that_cannot_hold_a_run_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is not a folder that you may write to"):
        check_new(tmp_path / "file" / "run")


def test_default_folders_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    first = default_folder("ioi", "patch")
    first.mkdir(parents=True)
    assert str(first) == "runs/ioi/patch-20260101-000000"
    assert default_folder("ioi", "patch").name == "patch-20260101-000000-2"


def _spoil(folder: Path, how: str) -> None:
    if how == "none":
        (folder / "run.json").unlink()
    elif how == "damaged":
        (folder / "run.json").write_text("{")
    elif how == "old":
        record: dict[str, Any] = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "format": 0}))
    else:
        (folder / "scores.parquet").write_bytes(b"PAR1 but no more")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("none", "is not a run: it has no run.json"),
        ("damaged", "is damaged"),
        ("old", "has the format 0, this version reads 1"),
        ("scores", "scores.parquet cannot be read"),
    ],
)
def test_a_spoilt_run_is_noticed(
    result: PatchResult, tmp_path: Path, how: str, message: str
) -> None:
    folder = result.save(tmp_path / "run")
    _spoil(folder, how)
    with pytest.raises(RunError, match=message):
        PatchResult.load(folder)


def test_read_record_wants_a_run() -> None:
    with pytest.raises(RunError, match="is not a run"):
        read_record("/nowhere")
