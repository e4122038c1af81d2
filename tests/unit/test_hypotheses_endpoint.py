"""Descriptions from an endpoint on this machine that follows a rule, and what they are worth."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from circuits.hypotheses import Endpoint, EndpointError, describe_latents
from circuits.hypotheses.assess import assess
from circuits.hypotheses.endpoint import KEYS
from circuits.hypotheses.scored import balanced, score, strongest_of
from tests.unit.test_hypotheses import PLANTED, SITE, data, said

Reply = Callable[[dict[str, Any], int], tuple[int, bytes, dict[str, str]]]


@contextmanager
def served(reply: Reply) -> Iterator[tuple[str, list[tuple[dict[str, str], dict[str, Any]]]]]:
    """An endpoint's address, and what it is asked: (headers, body)."""
    asked: list[tuple[dict[str, str], dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(({**self.headers, "path": self.path}, body))
            status, text, headers = reply(body, len(asked))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def answer(text: str) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode(), {}


def ruled(body: dict[str, Any], number: int) -> tuple[int, bytes, dict[str, str]]:
    """Describes by the most frequent label of the examples; judges by the label described."""
    question = body["messages"][1]["content"]
    labels = re.findall(r"label: (class \d)", question)
    if "Example 1:" in question:
        return answer(f"It is active on {max(set(labels), key=labels.count)}.\n")
    described = re.findall(r"Description: .*?(class \d)", question)[0]
    return answer(f"{90 if labels == [described] else 5}")


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def test_a_description_that_says_what_it_is_predicts_and_an_empty_one_is_at_chance(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    explored, held = data(600, 0), data(600, 1)
    shown = strongest_of(explored, [(SITE, PLANTED), (SITE, 30)])
    assert all("label: class 2" in text for text in shown[SITE, PLANTED])
    monkeypatch.setenv("CIRCUITS_LLM_KEY", "sk-secret-1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-2")
    with served(ruled) as (url, asked):
        endpoint = Endpoint(url, "ruler")
        table = describe_latents(endpoint, held, shown, examples=60, progress=False)
    good, other = table.to_dict("records")
    assert good["description"] == "It is active on class 2." and good["verdict"] == "predicts"
    assert good["auc"] > 0.95 and good["auc_low"] > 0.9 and good["examples"] == 60
    # Latent 30 has nothing to do with labels: what was said of it says nothing.
    assert other["verdict"] == "at chance" and other["auc_low"] < 0.5 < other["auc_high"]
    headers, body = asked[0]
    assert headers["Authorization"] == "Bearer sk-secret-1"
    assert headers["path"] == "/v1/chat/completions" and body["model"] == "ruler"
    assert len(asked) == 2 * 61
    # Half of what was judged is active, in an order that tells nothing.
    active = [("label: class 2" in b["messages"][1]["content"]) for _, b in asked[1:61]]
    assert sum(active) == 30 and 5 < sum(active[:30]) < 25
    result = assess([said("fires_on", "class 2")], held, explored.ids, progress=False)
    described = result.described(table, endpoint)
    described.save(tmp_path / "run")
    assert described.record["describe"] == {"url": url, "model": "ruler"}
    for path in (tmp_path / "run").iterdir():
        assert b"sk-secret" not in path.read_bytes()
    assert "It is active on class 2." in (tmp_path / "run" / "hypotheses.html").read_text()
    assert "sk-secret" not in repr(endpoint)


def test_scores_are_scikit_learns_and_intervals_cover_chance() -> None:
    draw = np.random.default_rng(0)
    active = np.arange(60) < 30
    said_ = np.round(draw.random(60) * 0.6 + 0.4 * active, 1)
    got = score(said_, active, np.arange(60), 0)
    assert got["auc"] == pytest.approx(roc_auc_score(active, said_))
    sure = np.where(said_ == 0.5, 0.51, said_)
    exact = score(sure, active, np.arange(60), 0)
    assert exact["accuracy"] == pytest.approx(balanced_accuracy_score(active, sure > 0.5))
    assert score(np.full(60, 0.5), active, np.arange(60), 0)["accuracy"] == 0.5
    chance = sum(
        score(draw.random(40), np.arange(40) < 20, np.arange(40), s)["verdict"] != "at chance"
        for s in range(200)
    )
    assert chance <= 25  # 5% is 10; percentile intervals of 40 examples are a little short
    assert score(1 - said_, active, np.arange(60), 0)["verdict"] == "worse than chance"


def test_balanced_examples_are_of_many_groups() -> None:
    groups = np.repeat(np.arange(10), 100)
    active = np.arange(1000) % 4 == 0
    chosen = balanced(active, groups, 20, 0)
    assert len(set(chosen)) == 20 and active[chosen].sum() == 10
    assert len(set(groups[chosen[active[chosen]]])) == 10  # one of each document
    assert len(balanced(active & (np.arange(1000) < 9), groups, 20, 0)) == 6
    assert (balanced(active, groups, 20, 0) == chosen).all()


def test_what_goes_wrong_is_said_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-very-secret"
    monkeypatch.setenv("OPENAI_API_KEY", key)

    def busy(body: dict[str, Any], number: int) -> tuple[int, bytes, dict[str, str]]:
        return answer(" fine ") if number == 3 else (503, b"busy", {})

    with served(busy) as (url, asked):
        assert Endpoint(url, "m", pause=0.0).ask("s", "q") == "fine" and len(asked) == 3
        with pytest.raises(EndpointError, match="status 503: busy"):
            Endpoint(url, "m", pause=0.0, tries=2).ask("s", "q")
    said_ = f"bad key {key}".encode()
    with served(lambda body, number: (401, said_, {})) as (url, asked):
        with pytest.raises(EndpointError, match="status 401: bad key <OPENAI_API_KEY>") as caught:
            Endpoint(url + "/chat/completions/", "m", pause=0.0).ask("s", "q")
        assert key not in str(caught.value) and len(asked) == 1  # a refusal is not asked again
    for raw, match in (
        (b"<html>", "not in OpenAI's format: '<html>'"),
        (b'{"choices": []}', "not in OpenAI's format"),
        (b'{"choices": [{"message": {"content": null}}]}', "is empty"),
    ):
        with (
            served(lambda body, number, raw=raw: (200, raw, {})) as (url, _),
            pytest.raises(EndpointError, match=match),
        ):
            Endpoint(url, "m").ask("s", "q")
    with pytest.raises(EndpointError, match="gave no answer"):
        Endpoint(url, "m", pause=0.0, tries=1, timeout=2.0).ask("s", "q")
    monkeypatch.setenv("OPENAI_API_KEY", key + "\nx")
    with served(ruled) as (url, _):
        with pytest.raises(EndpointError, match="OPENAI_API_KEY has characters") as broken:
            Endpoint(url, "m").ask("s", "q")
        assert key not in str(broken.value)


def test_a_redirect_is_not_followed_and_takes_no_key_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    with served(ruled) as (other, elsewhere):
        with (
            served(lambda body, number: (302, b"", {"Location": other})) as (url, asked),
            pytest.raises(EndpointError, match="status 302"),
        ):
            Endpoint(url, "m", pause=0.0).ask("s", "q")
        assert len(asked) == 1 and not elsewhere


def test_a_slow_endpoint_is_given_up() -> None:
    done = threading.Event()

    def slow(body: dict[str, Any], number: int) -> tuple[int, bytes, dict[str, str]]:
        done.wait(5)
        return answer("late")

    with served(slow) as (url, _):
        with pytest.raises(EndpointError, match="timed out"):
            Endpoint(url, "m", pause=0.0, tries=1, timeout=0.3).ask("s", "q")
        done.set()


def test_answers_that_are_no_numbers_are_refused() -> None:
    explored, held = data(300, 0), data(300, 1)
    shown = strongest_of(explored, [(SITE, PLANTED)])
    with (
        served(lambda body, number: answer("perhaps")) as (url, _),
        pytest.raises(EndpointError, match="from 0 to 100, m answered 'perhaps'"),
    ):
        describe_latents(Endpoint(url, "m"), held, shown, progress=False)
    # Nothing to describe by: nobody is asked.
    none = describe_latents(Endpoint(url, "m"), held, {(SITE, PLANTED): []}, progress=False)
    assert none["verdict"].tolist() == ["not enough data"]


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("localhost:8000", "is no endpoint"),
        ("ftp://host/v1", "is no endpoint"),
        ("http://me:secret@host/v1", "must have no password"),
        ("http://host/v1?key=secret", "must have no password, query"),
        ("http://[host/v1", "is no address"),
    ],
)
def test_addresses_that_are_none(url: str, match: str) -> None:
    with pytest.raises(EndpointError, match=match) as caught:
        Endpoint(url, "m")
    assert "secret" not in str(caught.value)
    with pytest.raises(EndpointError, match="no model is named"):
        Endpoint("http://host/v1", "")
