"""The report of runs of every method on a tiny model: what is on the page, and that it is safe."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from circuits import attribute, circuit, direct, patch
from circuits.features import collect_features
from circuits.models.hooked import HookedModel
from circuits.prompts import Pair, PromptPairs
from circuits.report import ReportError, find_runs, page, report
from circuits.report.tables import Html, interval, number, paragraph, table
from circuits.saes import SaeSet, load_saes, measure_fidelity
from tests import corpus, tiny
from tests.chromium import Chromium, find_chromium
from tests.unit.test_saes import make_sae

HOSTILE = "<script>alert('t')</script>"
WORDS = ("cat", "dog", "mat", "log")
METHODS = ("saes", "patch", "attribute", "direct", "circuit", "features")


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("llama")


@pytest.fixture(scope="module")
def prompts(model: HookedModel) -> PromptPairs:
    """With a hostile template and foil."""
    pairs = [
        Pair(f"the {a} sat on the", f"the {b} sat on the", " mat", f" {HOSTILE}", {}, HOSTILE)
        for a, b in combinations(WORDS, 2)
    ]
    return PromptPairs.from_texts(pairs, model.tokenizer)


@pytest.fixture(scope="module")
def saes(model: HookedModel, tmp_path_factory: pytest.TempPathFactory) -> SaeSet:
    path = tmp_path_factory.mktemp("saes")
    for seed, hook in enumerate(("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")):
        make_sae("jumprelu", hook, seed=seed).save_model(path / hook)
    return load_saes(path, model)


@pytest.fixture(scope="module")
def runs(
    model: HookedModel,
    saes: SaeSet,
    prompts: PromptPairs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run of every method, each in the folder of its name; four as of commands."""
    path = tmp_path_factory.mktemp("runs")
    given: dict[str, Any] = {"force": True, "progress": False}
    sized: dict[str, Any] = {"size": 20, "drawn": 6, "references": ["corrupted"], "n_eval": 3}
    made: dict[str, Any] = {
        "patch": patch(model, prompts, layers=[1, 2], **given),
        "attribute": attribute(model, prompts, saes=saes, audit_pairs=2, audit_nodes=5, **given),
        "direct": direct(model, prompts, saes=saes, **given),
        "circuit": circuit(model, prompts, saes=saes, **sized, **given),
    }
    for name, result in made.items():
        result.record["command"] = ["circuits", name, "--pairs-file", "my pairs.jsonl"]
        result.record.update(pairs_file="my pairs.jsonl", pairs_file_sha256="ab" * 32)
    made["saes"] = measure_fidelity(model, saes, prompts, **given)
    texts = corpus.corpus(corpus.write(path / "texts", 6), heldout=0.0)
    made["features"] = collect_features(model, saes, texts, examples=2, progress=False)
    for name, result in made.items():
        result.save(path / "runs" / name)
    return path / "runs"


@pytest.fixture(scope="module")
def text(runs: Path) -> str:
    return report(find_runs([runs]))


class Elements(HTMLParser):
    """Every element's name and attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] not in ("script", "style"):
            self.words.append(data)

    def of(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.found if tag in tags]


def test_every_method_has_its_section_in_order(text: str) -> None:
    titles = [html.unescape(t) for t in re.findall(r"<h2[^>]*>(.*?)</h2>", text)]
    assert titles == [
        "What came out",
        "What was measured",
        "What the SAEs keep",
        "Where it sits: exact patching",
        "Which nodes carry it: attribution",
        "What writes to the logits: direct effects",
        "The circuit",
        "Feature banks",
        "Exact commands",
        "Versions",
        "Signs and words",
    ]
    below = {html.unescape(t) for t in re.findall(r"<h4>(.*?)</h4>", text)}
    assert {"Contrast kept", "Heatmap", "How far to trust it", "Graph", "Edges"} <= below


def test_neither_order_nor_time_matters(runs: Path) -> None:
    backwards = find_runs([*(runs / name for name in reversed(METHODS)), runs])
    assert [run.method for run in backwards.runs] == list(METHODS)
    one = [runs / "patch"]
    assert report(find_runs(one)) == report(find_runs(one))


def test_the_contents_lead_to_every_section(text: str) -> None:
    elements = Elements(text)
    anchors = [a["href"].removeprefix("#") for a in elements.of("a")]
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids)) and set(anchors) <= set(ids)
    assert {"summary", "measured", "circuit", "commands", "signs"} <= set(anchors)


def test_it_loads_nothing(text: str) -> None:
    assert text.count("plotly.js v") == 1
    for part in (text, html.unescape(re.findall(r'srcdoc="([^"]*)"', text)[0])):
        elements = Elements(part)
        assert not elements.of("link", "img", "object", "embed", "base")
        for attributes in elements.of("script", "iframe", "a"):
            assert not attributes.get("src")
            assert attributes.get("href", "#").startswith("#")
        policy = [a["content"] for a in elements.of("meta") if "http-equiv" in a]
        assert len(policy) == 1 and policy[0].startswith("default-src 'none'")
        styles = re.sub(r"<script.*?</script>", "", part, flags=re.S)
        assert not re.search(r"url\((?!#)|@import|https?:", styles)


def test_whatever_stands_in_a_prompt_is_text(text: str, runs: Path) -> None:
    named = report(find_runs([runs / "patch"]), "<b onclick='x'>&")
    assert "<title>&lt;b onclick=&#x27;x&#x27;&gt;&amp;</title>" in named
    for one in (text, named):
        assert "<script>alert" not in one and "&lt;script&gt;alert" in one
        assert not [a for _, a in Elements(one).found if any(name.startswith("on") for name in a)]
    inner = html.unescape(re.findall(r'srcdoc="([^"]*)"', text)[0])
    assert "<script>alert" not in inner and "alert" in inner


def test_the_summary_has_the_key_numbers(text: str, runs: Path) -> None:
    told = " ".join(
        Elements(text.split('id="measured"', maxsplit=1)[0].split('id="summary"')[1]).words
    )
    for words in (
        "The gap to explain",
        "Fidelity: 2 SAEs",
        "Exact patching of resid_pre (denoising): the strongest place is",
        "Estimates against exact interventions on 10 nodes: Spearman",
        "Straight on the logits",
        "Circuit: 20 of",
        "completeness",
    ):
        assert words in told
    record = json.loads((runs / "attribute" / "run.json").read_text())
    assert number(record["audit"]["spearman"], ".3f") in told
    assert number(record["saes_keep"]["kept"], ".0%") in told
    red = [html.unescape(t) for t in re.findall(r'<p class="loud">(.*?)</p>', text)]
    assert any(t.startswith("FORCED: the model cannot do this contrast") for t in red)
    # One model, one task: nothing to warn of.
    assert "of different" not in told


def test_runs_say_how_they_were_made(text: str, runs: Path) -> None:
    end = text.split('id="commands"')[1]
    shown = [html.unescape(t) for t in re.findall(r"<pre>(.*?)</pre>", end)]
    assert len(shown) == 4
    assert shown[0] == "circuits patch --pairs-file 'my pairs.jsonl'"
    assert end.count("Made from Python, not by a command") == 2
    record = json.loads((runs / "patch" / "run.json").read_text())
    for told in (record["pairs_file_sha256"], "torch", record["versions"]["torch"]):
        assert told in end
    assert "Positive means toward clean" in end
    saes = json.loads((runs / "saes" / "run.json").read_text())["saes"]
    assert all(one["sha256"] in text for one in saes)


def test_commands_are_quoted_for_a_shell(runs: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(runs / "patch", tmp_path / "run")
    record = json.loads((copied / "run.json").read_text())
    record["command"] = ["circuits", "patch", "--out", "my runs/it's; rm"]
    (copied / "run.json").write_text(json.dumps(record))
    made = html.unescape(report(find_runs([copied])))
    assert """circuits patch --out 'my runs/it'"'"'s; rm'""" in made


def test_pairs_are_shown_token_by_token(text: str) -> None:
    shown = re.findall(r'<table class="pair">(.*?)</table>', text)
    assert len(shown) == len(set(shown)) >= 3
    rows = [
        re.findall(r'<span class="token([^"]*)">(.*?)</span>', s) for s in shown[0].split("tr>")
    ]
    marks = [[kind.strip() for kind, _ in row] for row in rows if row]
    assert marks == [["", "differs", "", "", "", "after"]] * 2


def test_runs_of_different_models_are_told_apart(runs: Path, tmp_path: Path) -> None:
    other = shutil.copytree(runs / "patch", tmp_path / "other")
    record = json.loads((other / "run.json").read_text())
    record |= {"model": "another", "model_sha256": "0" * 64, "task": "capitals"}
    (other / "run.json").write_text(json.dumps(record))
    made = report(find_runs([runs / "patch", other]))
    [warned] = [p for p in re.findall(r'<p class="loud">(.*?)</p>', made) if "of different" in p]
    assert "different models and tasks: custom on llama; capitals on another" in warned
    heads = re.findall(r'<h3 id="run-\d">(.*?)</h3>', made)
    assert [h.split(": ")[1] for h in heads] == ["custom on llama", "capitals on another"]
    # A run that is given twice is there once.
    assert len(find_runs([runs / "patch", runs, other]).runs) == 7


def test_what_is_no_run_is_left_out_and_named(runs: Path, tmp_path: Path) -> None:
    good = shutil.copytree(runs / "patch", tmp_path / "task" / "good")
    for name, content in (
        ("damaged", "{"),
        ("unknown", '{"format": 1, "method": "train"}'),
        ("older", '{"format": 0, "method": "patch"}'),
        ("partly", '{"format": 1, "method": "patch", "task": "x"}'),
        (".partial-1", "{"),
    ):
        (tmp_path / "task" / name).mkdir()
        (tmp_path / "task" / name / "run.json").write_text(content)
    (tmp_path / "empty").mkdir()
    shutil.copytree(good, tmp_path / "task" / "scoreless")
    (tmp_path / "task" / "scoreless" / "scores.parquet").unlink()
    found = find_runs([tmp_path, tmp_path / "empty"])
    assert [run.folder.name for run in found.runs] == ["good"]
    told = " ".join(found.left_out)
    assert len(found.left_out) == 6 and ".partial" not in told
    for words in (
        "empty is not a run (it has no run.json), and has none in it",
        "damaged/run.json is damaged",
        "holds a run of 'train', which a report does not show",
        "has the format 0",
        "partly is not a whole run of 'patch': model",
        "scores.parquet cannot be read",
    ):
        assert words in told
    assert report(found).count('<p class="loud">Left out: ') == 6


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"none, .*other: no such folder"):
        find_runs([tmp_path / "none", tmp_path, tmp_path / "other"])
    with pytest.raises(ReportError, match=r"no run to report.*has none in it"):
        find_runs([tmp_path])


def test_attributions_without_an_audit_or_without_errors_say_so(
    model: HookedModel, saes: SaeSet, prompts: PromptPairs, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"force": True, "progress": False}
    attribute(model, prompts, audit_pairs=0, **given).save(tmp_path / "plain")
    removed = attribute(model, prompts, saes=saes, errors="removed", audit_pairs=1, **given)
    removed.save(tmp_path / "removed")
    made = report(find_runs([tmp_path]))
    assert made.count("This run has no audit") == 1 and "It has no audit" in made
    assert "SAEs&#x27; errors removed" in made and "Latents alone, without" in made


def test_one_pair_has_no_intervals(model: HookedModel, tmp_path: Path) -> None:
    pair = Pair("the cat sat on the", "the dog sat on the", " log", " mat")
    one = PromptPairs.from_texts([pair], model.tokenizer)
    patch(model, one, force=True, progress=False).save(tmp_path / "run")
    made = report(find_runs([tmp_path / "run"]))
    outside = re.sub(r"<script.*?</script>", "", made, flags=re.S).replace("[+nan, +nan]", "")
    assert not re.search(r"\bnan\b", outside) and "1 pair" in outside and "1 pairs" not in outside


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("no chromium on PATH: install one, or name it in CIRCUITS_CHROMIUM")
    with Chromium(program) as running:
        yield running


def test_it_opens_in_a_browser(browser: Chromium, text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    opened = browser.open(path, width=950)
    assert opened.problems == []
    assert [url for url in opened.requests if not url.startswith(("data:", "about:"))] == [
        path.as_uri()
    ]
    drawn = "[...document.querySelectorAll('.plotly-graph-div')].map(d => !!d.querySelector('svg'))"
    assert all(opened.run(drawn)) and len(opened.run(drawn)) >= 8
    assert opened.run("document.documentElement.scrollWidth <= innerWidth")
    frame = "document.querySelector('iframe').contentDocument"
    assert opened.run(f"{frame}.querySelectorAll('.unit').length") >= 6


def test_numbers_and_tables() -> None:
    assert number(None, ".2f") == number(float("nan"), ".2f") == "\u2013"
    assert number(-0.001, "+.2f") == "+0.00" and number(-1.5, ".1f") == "\u22121.5"
    assert interval(0.5, 0.4, 0.6, ".0%") == "50% [40%, 60%]"
    assert interval(0.5, None, float("nan"), ".0%") == "50%"
    assert paragraph("<a>") + "<b>" + Html("<c>") == "<p>&lt;a&gt;</p>&lt;b&gt;<c>"
    made = table(["<x>", "n"], [["&", 1]], ["n"])
    assert "<th>&lt;x&gt;</th>" in made and '<td class="number">1</td>' in made


def test_pages_of_figures_are_as_they_were() -> None:
    import plotly.graph_objects as go

    figures = [go.Figure(go.Bar(y=pd.Series([1.0, 2.0]))) for _ in range(2)]
    made = page("<t>", [("a & b", figures[0]), ("", "<p>between</p>"), ("c", figures[1])])
    assert made.startswith("<!doctype html>") and "<title>&lt;t&gt;</title>" in made
    assert "<h2>a &amp; b</h2>" in made and made.count("<h2") == 2 and "<p>between</p>" in made
    assert made.count("plotly.js v") == 1 and 'id="figure-2"' in made


def test_elements_are_read_as_a_browser_would() -> None:
    read: Any = Elements('<p class="x">a<script>b</script></p>')
    assert read.of("p") == [{"class": "x"}] and read.words == ["a"]
