"""The digits task and its whole study, small, on scikit-learn's digits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import tasks.digits.study as study_module
from circuits.cli import app
from circuits.cli.show import console
from circuits.cli.show_study import print_study
from circuits.hypotheses import HypothesesResult
from circuits.patch import patch
from circuits.runs import RunError, read_record
from circuits.task import ClassifierTask, TaskError, capabilities, load_task, require
from tasks.digits.__main__ import parse_targets
from tasks.digits.calibrate import CalibrationError
from tasks.digits.network import DigitClassifier, DigitsError, NetworkOptions
from tasks.digits.sae import SaeTraining, load_sae
from tasks.digits.study import StudyOptions, run_study
from tasks.digits.task import DigitImages
from tests import tiny

SMALL = StudyOptions(
    NetworkOptions(hidden=24, min_steps=500),
    SaeTraining(latents=48, min_steps=80, batch_size=128),
    targets=(5.0, 10.0),
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIRCUITS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sklearn_task() -> DigitImages:
    return DigitImages("sklearn")


def test_the_task_has_its_capability_and_others_are_refused() -> None:
    task: Any = load_task("digits")
    assert capabilities(task) == ("classifier",) and task.position_names == ("END",)
    assert require(task, ClassifierTask, "this") is task
    message = "patching needs a task with the capability 'pairs', but task 'digits' has: classifier"
    with pytest.raises(TaskError, match=message):
        patch(tiny.bridge("gpt2"), task, progress=False)


def test_a_classifier_is_trained_once_and_read_back(cache: Path, tmp_path: Path) -> None:
    task = sklearn_task()
    options: dict[str, Any] = {"hidden": 24, "min_steps": 500, "progress": False, "device": "cpu"}
    network = task.load(**options)
    images, labels = task.examples("test")
    right = (task.classifier(network)(images).argmax(1) == labels).double().mean()
    assert right > 0.85
    [folder] = [p for p in (cache / "digits").iterdir() if p.is_dir()]
    (written,) = [(folder / "network.safetensors").stat().st_mtime_ns]
    assert torch.equal(task.load(**options).inward.weight, network.inward.weight)
    assert (folder / "network.safetensors").stat().st_mtime_ns == written
    gated = task.load("geglu", **options)
    assert gated.kind == "geglu" and gated.width == 48
    (folder / "network.json").write_text("damaged")  # is made again
    assert torch.equal(task.load(**options).inward.weight, network.inward.weight)
    network.save(tmp_path / "saved")
    again = task.load(str(tmp_path / "saved"), device="cpu", dtype="float64")
    assert again.inward.weight.dtype == torch.float64
    with pytest.raises(DigitsError, match="give one of them"):
        task.load("geglu", kind="relu")
    with pytest.raises(DigitsError, match="options are device, dtype, kind, hidden"):
        task.load(layers=3)
    with pytest.raises(DigitsError, match="a saved classifier has no options: hidden"):
        task.load(str(tmp_path / "saved"), hidden=3)
    DigitClassifier(784).save(tmp_path / "large")
    with pytest.raises(DigitsError, match="reads images of 784 pixels, those of sklearn have 64"):
        task.load(str(tmp_path / "large"))


def test_an_interrupted_study_goes_on_and_ends_with_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, real = sklearn_task(), study_module.train_standard
    trained: list[float] = []

    def counted(z: Any, lam: float, *rest: Any) -> Any:
        if lam in dying:
            raise KeyboardInterrupt
        trained.append(lam)
        return real(z, lam, *rest)

    monkeypatch.setattr(study_module, "train_standard", counted)
    dying = {1e-3}
    out = tmp_path / "runs" / "one"
    with pytest.raises(KeyboardInterrupt):
        run_study(task, SMALL, out, device="cpu", progress=False)
    assert trained == [1e-6, 1e-5, 1e-4] and not out.exists()
    dying.clear()
    study, folder = run_study(task, SMALL, out, device="cpu", progress=False)
    assert len(trained) == len(set(trained)) > 7  # none of them twice
    assert list(out.parent.glob(".*")) == []  # kept parts are removed
    other, _ = run_study(task, SMALL, tmp_path / "runs" / "two", device="cpu", progress=False)
    assert other.summary == study.summary

    written = json.loads((folder / "summary.json").read_text())
    assert written == study.summary and [one["target_actives"] for one in written] == [5, 10]
    original = "target_actives achieved_actives_val lambda baseline_acc recon_acc_jumprelu "
    original += "recon_acc_boolean delta_acc_jumprelu delta_acc_boolean sae_latents tau normalize_z"
    images, labels = task.examples("test")
    network = DigitClassifier.load(folder / "network")
    x = network.preactivations(images)
    held_out = network.preactivations(task.examples("validation")[0])
    for one in written:
        assert list(one)[:11] == original.split()
        assert abs(one["achieved_actives_val"] - one["target_actives"]) < 0.5
        sae = load_sae(folder / "saes" / f"{one['target_actives']:g}")
        l0 = float((sae.encode(held_out[None]) > 0).sum()) / len(held_out)
        assert abs(l0 - one["target_actives"]) < 0.5
        said = network.readout(sae.reconstruct(x[None])[0]).argmax(1)
        assert one["recon_acc_jumprelu"] == float((said == labels).double().mean())
        assert one["baseline_acc"] == float((network(images).argmax(1) == labels).double().mean())
        assert one["baseline_acc"] > 0.85 and one["recon_acc_boolean"] > 0.4
    assert written[1]["delta_acc_jumprelu"] < 0.05  # ten of 24 dimensions
    table = pd.read_parquet(folder / "fidelity.parquet")
    assert len(table) == 2 * 2 * 2
    assert set(pd.read_parquet(folder / "calibration.parquet")["stage"]) == {
        "coarse",
        "fine",
        "shift",
    }
    record = read_record(folder)
    assert record["data"]["images"] == {"train": 1078, "validation": 359, "test": 360}
    assert record["options"]["sae"]["latents"] == 48 and record["method"] == "study"
    check_shown(folder, record)


def shown(folder: Path) -> str:
    """What `circuits show` prints on a wide terminal."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "_width", 200)
        done = CliRunner().invoke(app, ["show", str(folder)], obj=[])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def check_shown(folder: Path, record: dict[str, Any]) -> None:
    """Every figure of the summary and every count of verdicts, in its row."""
    text = shown(folder)
    lines = [line.split() for line in text.splitlines()]
    assert "relu classifier with 24 hidden units, SAEs of 48 latents; images of sklearn" in text
    for one in record["summary"]:
        target = f"{one['target_actives']:g}"
        keys = ("achieved_actives_val", "achieved_actives_test")
        row = [target, *(f"{one[k]:.2f}" for k in keys), f"{one['lambda']:.3g}"]
        assert [*row, f"{one['explained_variance']:.3f}"] in lines
        before, row = one["baseline_acc"], [target]
        for mode in ("jumprelu", "boolean"):
            right, (low, high) = one[f"recon_acc_{mode}"], one[f"delta_acc_{mode}_95"]
            row += [f"{right:.2%}", f"{100 * (right - before):+.2f}"]
            row += [f"[{-100 * high:+.2f},", f"{-100 * low:+.2f}]"]
        assert row in lines and f"right, {before:.2%} without" in text
        found = HypothesesResult.load(folder / "features" / target / "hypotheses")
        assert [target, *(str(n) for n in found.counts().values())] in lines
    assert "Not within the tolerance" not in text
    path = folder / "run.json"
    record["summary"][0]["within_tolerance"] = False
    path.write_text(json.dumps(record))
    assert "(missed)" in shown(folder) and "validation images: 5." in shown(folder)
    del record["summary"][0]["lambda"]
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"is not a whole study: KeyError\('lambda'\) in run\.json"):
        print_study(folder)


def test_targets_that_cannot_be_are_refused_before_training() -> None:
    with pytest.raises(CalibrationError, match="600 active latents of 512"):
        StudyOptions(targets=(10.0, 600.0))
    with pytest.raises(CalibrationError, match="each once"):
        StudyOptions(targets=(10.0, 10.0))
    assert parse_targets("10, 2.5") == (10.0, 2.5)
    with pytest.raises(Exception, match="expected numbers such as 10,20,40"):
        parse_targets("ten")


def test_the_command_refuses_with_one_message(tmp_path: Path) -> None:
    words = "--data sklearn --targets 10,600 --out".split()
    command = [sys.executable, "-m", "tasks.digits", *words, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Error: 600 active latents of 512 cannot be a target." in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
