"""Snippets are run in a process of their own, and what they raise is what counts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tasks.error_type.templates import CONTRASTS, make_pairs
from tasks.error_type.verify import SnippetError, check_labels, raised_errors


def test_errors_are_named() -> None:
    snippets = {
        "print(1 / 0)": "ZeroDivisionError",
        'print(1 - "0")': "TypeError",
        "print(1 - (": "SyntaxError",
        "x = 1": "",
        "raise SystemExit": "SystemExit",
        "def f(): return f()\nf()": "RecursionError",
    }
    assert raised_errors(list(snippets)) == list(snippets.values())
    assert raised_errors(["print(1 / 0)"] * 3) == ["ZeroDivisionError"] * 3
    assert raised_errors([]) == []


def test_nothing_runs_in_the_host_process(tmp_path: Path) -> None:
    code = "import sys\nsys.circuits_was_here = True\nraise KeyError(1)"
    assert raised_errors([code]) == ["KeyError"]
    assert not hasattr(sys, "circuits_was_here")
    assert raised_errors(["import os\nos.environ['PATH']"]) == ["KeyError"]
    assert "PATH" in os.environ


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://localhost:1')",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "open('made', 'w')",
        "import os\nos.remove('/nonexistent')",
        "import os\nos.mkdir('made')",
    ],
)
def test_network_processes_and_writing_are_refused(code: str) -> None:
    assert raised_errors([code])[0] in ("PermissionError", "URLError")


def test_time_and_memory_are_limited() -> None:
    assert raised_errors(["while True: pass", "x = 'a' * 10 ** 10"]) == [
        "TimeoutError",
        "MemoryError",
    ]


def test_a_snippet_that_ends_the_process_is_named() -> None:
    with pytest.raises(SnippetError, match=r"stopped at 'import os\\nos._exit\(0\)'"):
        raised_errors(["x = 1", "import os\nos._exit(0)", "x = 2"])


def test_a_wrong_label_is_noticed() -> None:
    check_labels(["1 / 0"], ["ZeroDivisionError"])
    with pytest.raises(SnippetError, match="labelled TypeError but raises ZeroDivisionError"):
        check_labels(["1 / 0"], ["TypeError"])
    with pytest.raises(SnippetError, match="labelled TypeError but raises nothing"):
        check_labels(["x = 1"], ["TypeError"])


@pytest.mark.parametrize("name", CONTRASTS)
def test_every_template_raises_what_it_is_labelled_with(name: str) -> None:
    contrast = CONTRASTS[name]
    assert len(contrast.templates) >= 5
    assert contrast.split("explored") and contrast.split("held_out")
    for template in contrast.templates:
        pairs = list(make_pairs(contrast, template, seed=0))
        assert len({(p.clean, p.corrupted) for p in pairs}) == len(pairs) >= 90
        assert len({len(p.clean) - len(p.clean.strip()) for p in pairs}) == 1
        chosen = pairs[:12]
        check_labels([p.clean for p in chosen], [contrast.answer] * 12)
        check_labels([p.corrupted for p in chosen], [contrast.foil] * 12)
    explored = sum(len(list(make_pairs(contrast, t, 0))) for t in contrast.split("explored"))
    assert explored >= 200


def test_pairs_are_shuffled_by_their_seed() -> None:
    contrast = CONTRASTS["IndexError/KeyError"]
    template = contrast.templates[0]
    draws = [[p.clean for p in make_pairs(contrast, template, seed)][:20] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
