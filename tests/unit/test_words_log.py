"""Logs of responses: ours, the original study's, runs; and what is wrong with a log."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from circuits.replay.log import LogError, Response, read_log, write_log
from circuits.replay.words import Splitter, count, read_corpus
from circuits.runs import write_record

GOOD = {"feature": "resid_post.3/7", "condition": "safe:no-op", "trial": 0, "prompt": 2}
GOOD["response"] = "stop"


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = [
        Response("a/1", "safe", "no-op", 0, "0", "one\u2028line \u2013 $10", {"action": "stop"}),
        Response("a/1", "risky", "random-1", 3, "prompt: 2", "", None),
    ]
    path = tmp_path / "log.jsonl"
    assert write_log(path, iter(made)) == 2
    assert list(read_log(path)) == made
    entry = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert set(entry) == {"feature", "condition", "trial", "prompt", "response", "parsed"}
    assert entry["condition"] == "safe:no-op"
    with pytest.raises(LogError, match="exists already"):
        write_log(path, made)


def test_a_log_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Response]:
        yield Response("a", "safe", "no-op", 0, "", "x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_log(tmp_path / "log.jsonl", broken())
    assert list(tmp_path.iterdir()) == []


def test_the_original_formats(tmp_path: Path) -> None:
    trials = [
        {
            "feature": "L25-100",
            "condition": condition,
            "trial": 4,
            "response": "I stop",
            "parsed": {"action": "stop", "bet": 0, "valid": True},
        }
        for condition in ("safe_baseline", "risky_with_safe_patch", "safe_with_risky_patch")
    ]
    replays: list[dict[str, Any]] = [
        {
            "target_feature": "L25-100",
            "target_layer": 25,
            "target_feature_id": 100,
            "patch_condition": condition,
            "patch_value": 3.5,
            "prompt_type": "risky",
            "trial": 1,
            "response": "bet $10",
            "all_features": {"25": [1, 2]},
            "generated_tokens": [5, 6],
        }
        for condition in ("baseline", "risky_with_safe_patch", "high", None)
    ]
    replays[2].pop("target_feature")
    found = list(read_log(write(tmp_path / "log.jsonl", *trials, *replays)))
    told = [(r.feature, r.kind, r.arm, r.trial, r.prompt) for r in found]
    assert told[:3] == [
        ("L25-100", "safe", "no-op", 4, ""),
        ("L25-100", "risky", "safe_patch", 4, ""),
        ("L25-100", "safe", "risky_patch", 4, ""),
    ]
    arms = ["no-op", "safe_patch", "high", "no-op"]
    assert told[3:] == [("L25-100", "risky", arm, 1, "") for arm in arms]
    assert found[0].parsed == {"action": "stop", "bet": 0, "valid": True}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"feature": "a"', "line 2: not JSON"),
        ("[1]", "line 2: expected an object"),
        ({"feature": "a"}, "line 2: no condition"),
        ({**GOOD, "condition": "safe"}, "line 2: condition 'safe': expected KIND:ARM"),
        ({**GOOD, "condition": "safe:"}, "line 2: condition 'safe:'"),
        ({**GOOD, "trial": "1"}, "line 2: trial '1'"),
        ({**GOOD, "trial": True}, "line 2: trial True"),
        ({**GOOD, "trial": -1}, "line 2: trial -1"),
        ({**GOOD, "response": None}, "line 2: response is missing"),
        ({**GOOD, "feature": 1.5}, "line 2: feature 1.5: expected a text"),
        ({k: v for k, v in GOOD.items() if k != "prompt"}, "line 2: no prompt"),
        ({**GOOD, "parsed": "stop"}, "line 2: parsed 'stop'"),
        ({"patch_condition": "safe_baseline", "prompt_type": "risky"}, "contradict"),
    ],
)
def test_mistakes_name_their_line(tmp_path: Path, line: Any, said: str) -> None:
    path = write(tmp_path / "log.jsonl", GOOD, line)
    with pytest.raises(LogError, match="line 2") as error:
        list(read_log(path))
    assert said in str(error.value)


def test_mistakes_of_files(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n\xff\n")
    with pytest.raises(LogError, match="line 2: cannot be read as UTF-8"):
        list(read_log(tmp_path / "bad.jsonl"))
    with pytest.raises(LogError, match="holds no responses"):
        list(read_log(write(tmp_path / "empty.jsonl", "", " ")))
    with pytest.raises(LogError, match="is no log"):
        list(read_log(tmp_path / "none.jsonl"))
    twice = write(tmp_path / "twice.jsonl", GOOD, GOOD)
    with pytest.raises(LogError, match=r"there twice.*prompt '2', trial 0"):
        read_corpus([twice], Splitter())
    with pytest.raises(LogError, match=r"no responses of b.*a/1|no responses of b"):
        read_corpus([write(tmp_path / "one.jsonl", GOOD)], Splitter(), features=["b"])


def test_a_run_is_read_like_a_log(tmp_path: Path) -> None:
    rows = [
        {"arm": arm, "kind": "safe", "prompt": p, "trial": t, "response": f"{arm} {p} {t}"}
        for arm in ("no-op", "latent")
        for p in range(3)
        for t in range(2)
    ]
    write_record(tmp_path, {"method": "replay", "task": "gambling", "feature": "resid_post.3/7"})
    pd.DataFrame(rows).to_parquet(tmp_path / "responses.parquet")
    found = list(read_log(tmp_path))
    assert [(r.arm, int(r.prompt), r.trial, r.response) for r in found] == [
        (r["arm"], r["prompt"], r["trial"], r["response"]) for r in rows
    ]
    assert {r.feature for r in found} == {"resid_post.3/7"}
    table = pd.DataFrame(rows).assign(parsed='{"action": "stop"}')
    table.to_parquet(tmp_path / "responses.parquet")
    assert next(read_log(tmp_path)).parsed == {"action": "stop"}
    pd.DataFrame(rows).drop(columns="arm").to_parquet(tmp_path / "responses.parquet")
    with pytest.raises(LogError, match="no column arm"):
        list(read_log(tmp_path))
    (tmp_path / "responses.parquet").write_bytes(b"PAR1")
    with pytest.raises(LogError, match="cannot be read"):
        list(read_log(tmp_path))


def test_runs_of_one_latent_at_two_values_are_not_counted_together(tmp_path: Path) -> None:
    folders = []
    for value in (5.0, 10.0):
        folder = tmp_path / f"hold-{value:g}"
        folder.mkdir()
        change = {"site": "resid_post.3", "latent": 7, "mode": "hold", "value": value}
        write_record(folder, {"method": "replay", "task": None, "changes": [change]})
        rows = [
            {"arm": arm, "kind": "a", "prompt": 0, "trial": 0, "response": "the cat"}
            for arm in ("no-op", "latent")
        ]
        pd.DataFrame(rows).to_parquet(folder / "responses.parquet")
        folders.append(folder)
        assert {r.feature for r in read_log(folder)} == {"resid_post.3/7"}
    with pytest.raises(LogError, match="several runs of one latent, at different values"):
        read_corpus(folders, Splitter())


def test_texts_are_not_kept() -> None:
    """6 bytes a different word and a few numbers a response, however long the texts."""
    words = [f"word{i}" for i in range(50)]

    def responses() -> Iterator[Response]:
        for i in range(500):
            yield Response("a", "safe", "no-op", i, "", " ".join(words * 4) + " " * 2000)

    tracemalloc.start()
    corpus = count(responses(), Splitter())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert corpus.counts.nnz == 500 * 50 and corpus.totals().tolist() == [2000] * 50
    assert peak < 500 * (50 * 6 * 2 + 400)  # arrays grow by copying; the texts would be 1.7 MB
