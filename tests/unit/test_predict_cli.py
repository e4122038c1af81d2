"""`circuits predict` on a tiny model: extraction, the command, what it keeps, tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from circuits.labelled import Labelled
from circuits.models.hooks import hooks_left
from circuits.models.load import load_model
from circuits.models.patterns import attention_patterns
from circuits.predict import JoinError, PredictError, PredictResult, Vectors, read_original
from circuits.predict.encode import encoded
from circuits.predict.extract import Positions, extract_vectors, in_parts
from circuits.runs import read_record
from circuits.saes import load_saes
from circuits.sites import Site, SiteError
from circuits.task import capabilities, load_task
from tests import tiny
from tests.unit.test_cli import run
from tests.unit.test_saes import make_sae

_WORDS = "the a cat dog sat ran on under mat log and then it was red blue one two three".split()
HOOKS = ("blocks.1.hook_resid_post", "blocks.3.hook_resid_post")
QUICK = ["--estimators", "logistic_l2", "--folds", "3", "--device", "cpu"]


def records_of(n: int, seed: int = 0) -> list[Labelled]:
    """Prompts of several lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        prompt = " ".join(rng.choice(_WORDS, size=rng.integers(6, 12)).tolist())
        completion = " ".join(rng.choice(_WORDS, size=rng.integers(1, 4)).tolist())
        correct = bool(rng.random() < 0.5)
        found.append(Labelled(f"r{i}", f"g{i}", prompt, completion, correct))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny.hugging_face("llama").save_pretrained(path / "tiny")
    tiny.tokenizer().save_pretrained(path / "tiny")
    lines = []
    for i, r in enumerate(records_of(48)):
        entry = {"id": r.id, "group": r.group, "prompt": r.prompt, "completion": r.completion}
        lines.append(json.dumps(entry | {"correct": r.correct, "kind": "ab"[i % 2], "tries": i}))
    (path / "data.jsonl").write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_vectors_are_the_activations_of_each_prompt_by_itself(kind: str) -> None:
    model, records = tiny.bridge(kind), records_of(9)
    sites = [Site(1, "resid_post"), Site(3, "attn_out")]
    places = Positions(2, mean=True, completion=True)
    found = extract_vectors(model, records, sites, places, batch_size=4, progress=False)
    assert found.values.shape == (9, 2, 4, 32) and found.digests[0] == records[0].digest
    assert found.positions == ("p-2", "p-1", "mean", "completion")
    for record, row in zip(records, found.values, strict=True):
        ids = model.tokenizer(f"{record.prompt} {record.completion}")["input_ids"]
        n = len(model.tokenizer(record.prompt)["input_ids"])
        _, values = model.cache(torch.tensor([ids]), sites)
        for site, mine in zip(sites, row, strict=True):
            x = values[site][0].numpy()
            by_hand = [x[n - 2], x[n - 1], x[1:n].mean(0), x[n:].mean(0)]
            assert np.allclose(mine, by_hand, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "hooked"])
def test_attention_is_that_of_the_hook_and_looks_back(kind: str) -> None:
    model = tiny.hooked_transformer() if kind == "hooked" else tiny.bridge(kind)
    tokens = torch.tensor([[3, 4, 5, 6, 7]])
    before = hooks_left(model.module)
    found = attention_patterns(model, tokens, [0, 2])
    assert hooks_left(model.module) == before and set(found) == {0, 2}
    pattern = found[2][0]
    assert pattern.shape == (4, 5, 5) and torch.allclose(pattern.sum(-1), torch.ones(4, 5))
    assert pattern.triu(1).abs().max() == 0 and not torch.allclose(found[0], found[2])
    with pytest.raises(SiteError, match="has layers 0 to 3"):
        attention_patterns(model, tokens, [4])


def test_attention_between_the_last_tokens_is_a_feature() -> None:
    model, records = tiny.bridge("llama"), records_of(5)
    sites = [Site(1, "resid_post"), Site(2, "resid_post")]
    found = extract_vectors(model, records, sites, Positions(2), attention=True, progress=False)
    assert found.kind == "attention" and found.sites == ("attention.1", "attention.2")
    assert found.positions == ("p-2<p-2", "p-1<p-2", "p-1<p-1")
    ids = model.tokenizer(records[3].prompt)["input_ids"]
    [pattern] = attention_patterns(model, torch.tensor([ids]), [2])[2]
    by_hand = [pattern[:, -2, -2], pattern[:, -1, -2], pattern[:, -1, -1]]
    assert np.allclose(found.values[3, 1], torch.stack(by_hand), atol=1e-6)
    with pytest.raises(PredictError, match="give positions last:K alone"):
        extract_vectors(model, records, sites, Positions(2, mean=True), attention=True)


def test_records_that_do_not_fit_are_named_before_any_pass() -> None:
    model, records = tiny.bridge("llama"), records_of(4)
    sites = [Site(1, "resid_post")]
    with pytest.raises(PredictError, match=r"id.*fewer than 20 tokens"):
        extract_vectors(model, records, sites, Positions(20))
    empty = [*records, Labelled("e", "e", "the cat", "", True)]
    with pytest.raises(PredictError, match="id 'e': an empty completion"):
        extract_vectors(model, empty, sites, Positions(1, completion=True))
    long = [*records, Labelled("l", "l", "the " * 70, "cat", True)]
    with pytest.raises(PredictError, match="id 'l': more than the 64 tokens"):
        extract_vectors(model, long, sites, Positions(1))
    for text in ("last", "last:0", "first", ""):
        with pytest.raises(PredictError, match="expected some of last:K"):
            Positions.parse(text)
    assert Positions.parse("last:2, completion") == Positions(2, completion=True)


def test_an_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    records, asked = records_of(300), []

    def work(some: list[Labelled]) -> np.ndarray:
        asked.append(len(some))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return np.array([[[[float(r.id[1:])]]] for r in some], dtype="f")

    key = {"sites": ["a"], "positions": ["b"]}
    with pytest.raises(KeyboardInterrupt):
        in_parts(records, work, key, tmp_path / "v", progress=False)  # pyright: ignore
    found = in_parts(records, work, key, tmp_path / "v", progress=False)  # pyright: ignore
    assert asked == [128, 128, 128, 44] and found.values.ravel().tolist() == list(range(300))
    again = in_parts(records, work, key, tmp_path / "v", progress=False)  # pyright: ignore
    assert len(asked) == 4 and again.ids == found.ids
    with pytest.raises(JoinError, match="records differ"):
        in_parts(records[1:], work, key, tmp_path / "v", progress=False)  # pyright: ignore


def test_a_prediction_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["predict", "--data", folder / "data.jsonl", "--model", folder / "tiny", "--layers"]
    more = ["1,3", "--positions", "last:2,completion", "--surface", "tries", *QUICK]
    out, vectors = tmp_path / "run", tmp_path / "v"
    status, shown, errors = run(capsys, *base, *more, "--out", out, "--cache-dir", vectors)
    assert status == 0, errors
    assert "Leak audit" in shown and "48 records in 48 groups" in shown
    record = read_record(out)
    assert record["task"] == "data" and record["model"] == "tiny" and record["folds"] == 3
    assert record["positions"] == ["p-2", "p-1", "completion"] and len(record["data_sha256"]) == 64
    assert "given" in set(PredictResult.load(out).scores["name"])
    status, again, _ = run(capsys, "show", out)
    assert (
        status == 0
        and again.splitlines()[:3]
        == [line for line in shown.splitlines() if "extracting" not in line][:3]
    )
    page = tmp_path / "report.html"
    status, _, errors = run(capsys, "report", out, "--out", page)
    assert status == 0, errors
    text = page.read_text(encoding="utf-8")
    assert "Predicting errors" in text and "Leak audit" in text and "nearest_prompt" in text
    status, _, errors = run(capsys, *base, "2", *more[1:], "--cache-dir", vectors)
    assert status == 2 and "holds other vectors (sites differ)" in errors


def test_vectors_alone_and_the_originals_format(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["predict", "--data", folder / "data.jsonl", "--model", folder / "tiny", *QUICK]
    made = tmp_path / "original.json"
    options = ["--extract-only", "--cache-dir", tmp_path / "v", "--write-original", made]
    assert run(capsys, *base, "--layers", "0,1,3", *options)[0] == 0
    records, vectors = read_original(made)
    stored = Vectors.load(tmp_path / "v" / "part-00000.safetensors")
    assert len(records) == 48 and vectors.sites == ("early", "middle", "late")
    first = vectors.values[vectors.ids.index("g0-r0")]
    assert np.allclose(first, stored.values[0], atol=1e-6)
    out = tmp_path / "run"
    read = ["predict", "--data", made, "--data-format", "original", "--estimators", "logistic_l2"]
    fit = ["--fit-sae", "8", "--sae-steps", "10", "--active", "2", "--pool", "mean"]
    status, shown, errors = run(capsys, *read, "--folds", "3", *fit, "--out", out)
    assert status == 0, errors
    assert "random_sae" in shown and read_record(out)["features"]["latents"] == 8


def test_attention_and_a_label_of_ones_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["predict", "--data", folder / "data.jsonl", "--model", folder / "tiny", *QUICK]
    options = ["--features", "attention", "--positions", "last:2", "--target", "kind"]
    train = ["--train-data", folder / "data.jsonl"]
    status, _, errors = run(capsys, *base, *options, *train, "--out", tmp_path / "run")
    assert status == 0, errors
    record = read_record(tmp_path / "run")
    assert list(record["targets"]) == ["kind"] and record["features"] == {"kind": "attention"}
    assert record["trained_on"] == 48


@pytest.mark.parametrize(
    ("architecture", "normalise"), [("topk", "none"), ("jumprelu", "layer_norm")]
)
def test_pretrained_saes_encode_as_they_do_in_the_model(
    folder: Path, tmp_path: Path, architecture: str, normalise: str
) -> None:
    for seed, hook in enumerate(HOOKS):
        sae = make_sae(architecture, hook, seed=seed, normalize_activations=normalise)
        sae.save_model(tmp_path / hook)
    model, records = load_model(str(folder / "tiny")), records_of(7)
    saes = load_saes(tmp_path, model)
    sites = list(saes)
    vectors = extract_vectors(model, records, sites, Positions(2), progress=False)
    found, active = encoded(vectors, saes)
    assert found.kind == "latents" and found.width == saes.sources[sites[0]].d_sae
    assert found.sites == vectors.sites and found.ids == vectors.ids
    assert [f.ids for f in found.fitted] == [None, None]  # on what, nobody knows
    assert active == pytest.approx((found.values > 0).sum() / (7 * 2 * 2))
    for record, row in zip(records, found.values, strict=True):
        tokens = torch.tensor([model.tokenizer(record.prompt)["input_ids"]])
        _, values = model.cache(tokens, sites)
        for site, mine in zip(sites, row, strict=True):
            by_hand = saes[site].decompose(values[site]).latents.dense()[0, -2:]
            assert by_hand.any() and np.allclose(mine, by_hand, atol=1e-4)
    other = extract_vectors(model, records, [Site(2, "resid_post")], Positions(2), progress=False)
    with pytest.raises(PredictError, match=r"no SAE at resid_post\.2: there are SAEs at"):
        encoded(other, saes)


def test_pretrained_saes_from_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, hook in enumerate(HOOKS):
        make_sae("topk", hook, seed=seed).save_model(tmp_path / "saes" / hook)
    base = ["predict", "--data", folder / "data.jsonl", "--model", folder / "tiny", *QUICK]
    options = ["--layers", "1,3", "--positions", "last:1", "--saes", tmp_path / "saes"]
    out = tmp_path / "run"
    status, shown, errors = run(capsys, *base, *options, "--out", out)
    assert status == 0, errors
    record = read_record(out)
    assert record["features"]["sae"] == "pretrained" and "random_sae" in shown
    assert [s["site"] for s in record["features"]["saes"]] == ["resid_post.1", "resid_post.3"]
    assert all(len(s["sha256"]) == 64 for s in record["features"]["saes"])


_TASK = """
from dataclasses import dataclass, replace
import torch
from circuits.labelled import Labelled
from tests import tiny
from tests.unit.test_predict_cli import records_of

@dataclass(frozen=True)
class Task:
    name: str = "thoughts"
    description: str = "made up"
    position_names: tuple[str, ...] = ("END",)
    vector_positions: tuple[str, ...] = ("t1", "t2")

    def load(self, model=None, **options):
        return tiny.bridge("gpt2")

    def answered(self, model, *, n, seed=0, shift: int = 0, words: str | None = None):
        return [replace(r, id=f"{words}{r.id}") for r in records_of(n, seed + shift)]

    def vectors(self, model, records, sites):
        rows = []
        for r in records:
            ids = torch.tensor([model.tokenizer(r.prompt)["input_ids"]])
            _, found = model.cache(ids, sites)
            rows.append(torch.stack([found[s][0, -2:] for s in sites]))
        return torch.stack(rows)

task = Task()
"""


def test_a_task_brings_its_own_positions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "thoughts.py"
    path.write_text(_TASK)
    assert capabilities(load_task(path)) == ("answered",)
    out = tmp_path / "run"
    status, shown, errors = run(
        capsys, "predict", "--task", path, "--n", "48", *QUICK, "--out", out
    )
    assert status == 0, errors
    record = read_record(out)
    assert record["task"] == "thoughts" and record["positions"] == ["t1", "t2"]
    assert "thoughts: wrong" in shown and record["task_options"] == {}


def test_options_of_a_task_reach_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "thoughts.py", tmp_path / "run"
    path.write_text(_TASK)
    given = ["--task-option", "shift=3", "--task-option", "words=of it="]
    status, _, errors = run(
        capsys, "predict", "--task", path, "--n", "48", *QUICK, *given, "--out", out
    )
    assert status == 0, errors
    assert read_record(out)["task_options"] == {"shift": 3, "words": "of it="}
    found = PredictResult.load(out).predictions
    right = {f"of it={r.id}": r.correct for r in records_of(48, 3)}
    assert dict(zip(found["id"], found["class"] == "right", strict=True)) == right


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["heat=1"], "the task thoughts has no --task-option heat: its options are shift, words."),
        (["seed=1"], "has no --task-option seed"),
        (["shift"], "expected KEY=VALUE"),
        (["=1"], "expected KEY=VALUE"),
        (["shift=1", "shift=2"], "given twice"),
        (["shift=much"], "expected a whole number"),
        (["shift=true"], "expected a whole number"),
        (["words=1"], "expected text or null"),
    ],
)
def test_options_that_a_task_does_not_have_are_refused_before_its_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    path = tmp_path / "thoughts.py"
    path.write_text(_TASK.replace("return tiny", "raise AssertionError # tiny"))
    options = [text for one in given for text in ("--task-option", one)]
    status, _, errors = run(capsys, "predict", "--task", path, *options)
    assert status == 2 and message in " ".join(errors.split()) and "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --task, or --data"),
        (["--task", "error_type"], "needs a task with the capability 'answered'"),
        (["--data", "none.jsonl"], "the file of labelled records none.jsonl does not exist"),
        (["--data", "x", "--n", "20"], "--n and --data contradict"),
        (["--data", "x", "--task-option", "a=1"], "--task-option and --data contradict"),
        (["--data", "x", "--estimators", "svm"], "unknown estimator 'svm'"),
        (["--data", "x", "--positions", "first"], "expected some of last:K"),
        (["--data", "x", "--extract-only"], "say where with --cache-dir"),
        (["--data", "x", "--saes", "s", "--fit-sae", "8"], "--saes and --fit-sae contradict"),
        (["--data", "x", "--l0", "8"], "--l0 and no --saes contradict"),
        (["--data", "x", "--active", "8"], "--active and no --fit-sae contradict"),
        (["--data", "x", "--train-model", "m"], "--train-model answers --train-data"),
        (
            ["--data", "x", "--data-format", "original", "--model", "m"],
            "the file holds the vectors",
        ),
        (["--data", "x", "--out", "."], "exists already"),
        (["--data", "x", "--site", "resid"], "unknown site kind 'resid'"),
        (["--data", "x", "--target", "kind", "--folds", "1"], "Invalid value for '--folds'"),
    ],
)
def test_mistakes_end_with_one_message_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("circuits.cli.predict_source.Source.load", never)
    status, _, errors = run(capsys, "predict", *arguments)
    assert status == 2 and message in errors and "Traceback" not in errors
