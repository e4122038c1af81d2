"""`circuits attribute` and `circuits direct` on a tiny model and SAEs in local folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from circuits import cli
from circuits.attribute import Attribution, sweep
from circuits.direct import DirectEffects, effects
from tests.unit.test_cli import run, write_model
from tests.unit.test_saes import make_sae


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_model(tmp_path_factory.mktemp("model"))
    for number, hook in enumerate(("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")):
        make_sae("jumprelu", hook, seed=number).save_model(path / "saes" / hook)
    make_sae("jumprelu", "blocks.1.hook_resid_post", width=16).save_model(path / "narrow")
    make_sae("jumprelu", "blocks.9.hook_resid_post").save_model(path / "elsewhere")
    return path


def options(folder: Path, out: Path) -> list[object]:
    pairs, model = folder / "pairs.jsonl", folder / "tiny"
    return ["--pairs-file", pairs, "--model", model, "--device", "cpu", "--force", "--out", out]


@pytest.mark.parametrize("more", [[], ["--method", "ig", "--steps", 3], ["--errors", "removed"]])
def test_an_attribution_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[object]
) -> None:
    out = tmp_path / "run"
    given = [*options(folder, out), "--saes", folder / "saes", *more]
    status, shown, complaints = run(capsys, "attribute", *given)
    assert status == 0, complaints
    assert "FORCED: the model cannot do this contrast" in shown
    assert "Audit of" in shown and "with their errors" in shown and str(out) in shown
    scores = pd.read_parquet(out / "scores.parquet")
    columns = "pair site layer position role latent clean corrupted effect method".split()
    assert list(scores.columns) == columns
    record = json.loads((out / "run.json").read_text())
    assert record["pairs_file"].endswith("pairs.jsonl") and record["audit"]["spearman"] <= 1
    assert set(json.loads((out / "top_25_latents.json").read_text())) == {"END"}
    page = (out / "attribution.html").read_text()
    assert page.count("<script") and "http://" not in re.sub(
        r"<script.*?</script>", "", page, flags=re.S
    )
    assert not list(tmp_path.glob(".parts-*"))
    status, again, _ = run(capsys, "show", out)
    assert status == 0 and again.splitlines()[0] == shown.splitlines()[0]


def test_components_without_saes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = [*options(folder, out), "--layers", "1-2"]
    assert run(capsys, "attribute", *given)[0] == 0
    found = Attribution.load(out)
    assert set(found.scores["layer"]) == {1, 2} and set(found.scores["role"]) == {
        "component",
        "head",
    }


def test_direct_effects_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    status, shown, complaints = run(
        capsys, "direct", *options(folder, out), "--saes", folder / "saes"
    )
    assert status == 0, complaints
    assert "SAE nodes" in shown and "add up to the logit difference" in shown
    found = DirectEffects.load(out)
    assert found.parts()["gap"].sum() == pytest.approx(found.gap.mean(), abs=1e-4)
    assert (out / "direct.html").is_file()
    assert run(capsys, "show", out)[1].splitlines()[0] == shown.splitlines()[0]


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("attribute", ["--saes", "narrow"], "16"),
        ("attribute", ["--saes", "elsewhere"], "layer"),
        ("attribute", ["--saes", "saes", "--layers", "3"], "3"),
        ("attribute", ["--saes", "saes", "--steps", 0], "at least 1"),
        ("attribute", ["--saes", "saes", "--metric", "loss"], "unknown metric"),
        ("attribute", ["--errors", "removed"], "none to remove"),
        ("attribute", ["--seed", 3], "--seed"),
        ("attribute", ["--l0", 50], "they choose SAEs"),
        ("direct", ["--layers", "2"], "--layers"),
        ("direct", ["--saes", "saes", "--direction", "up"], "unknown direction"),
    ],
)
def test_mistakes_end_with_one_message_before_any_pass(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    more: list[Any],
    message: str,
) -> None:
    for module in (sweep, effects):
        monkeypatch.setattr(module, "baselines", fail)
    named = [folder / m if (folder / str(m)).is_dir() else m for m in more]
    status, _, complaints = run(capsys, command, *options(folder, tmp_path / "run"), *named)
    assert status == 2 and message in complaints
    assert not (tmp_path / "run").exists()


def fail(*args: Any, **more: Any) -> Any:
    raise AssertionError("a pass was run")


def test_ctrl_c_keeps_finished_pairs(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [*options(folder, tmp_path / "run"), "--saes", folder / "saes", "--method", "exact"]
    real, done = sweep.scores_of, []

    def interrupted(*args: Any) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(args)
        return real(*args)

    monkeypatch.setattr(sweep, "scores_of", interrupted)
    status, _, complaints = run(capsys, "attribute", *given)
    assert status == 130 and "the same command" in complaints
    assert len(list(tmp_path.glob(".parts-*/*.parquet"))) == 1
    counted = []
    monkeypatch.setattr(sweep, "scores_of", lambda *args: counted.append(1) or real(*args))
    assert run(capsys, "attribute", *given)[0] == 0
    assert len(counted) == 1  # the other group of pairs, of another length
    assert not list(tmp_path.glob(".parts-*"))
    whole = Attribution.load(tmp_path / "run")
    monkeypatch.setattr(sweep, "scores_of", real)
    given[given.index(tmp_path / "run")] = tmp_path / "again"
    assert run(capsys, "attribute", *given)[0] == 0
    once = Attribution.load(tmp_path / "again")
    assert np.array_equal(whole.scores["effect"], once.scores["effect"])


def test_the_map_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    status, shown, _ = run(capsys, "--help")
    assert status == 0 and "attribute" in shown and "direct" in shown
    assert {"attribute", "direct"} <= {c.name for c in cli.app.registered_commands}
