"""Problems from files, the hub and templates; pairs that differ in one number."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest

from circuits.prompts import PromptPairs
from tasks.gsm8k_thoughts.gsm8k import (
    GsmError,
    Problem,
    ProblemPair,
    gsm8k_problems,
    parse_number,
    symbolic_pairs,
)
from tasks.gsm8k_thoughts.gsm8k import symbolic as templates
from tests import tiny

ROWS = [
    {"question": "Ann has 3 pens and buys 4. How many?", "answer": "3+4=<<3+4=7>>7 pens\n#### 7"},
    {"question": "Ann has 5 pens and buys 12. How many?", "answer": "5+12=17\n\n#### 17"},
    {
        "question": "Bo owes $1,200. What has he?",
        "answer": "He has less than nothing.\n#### -1,200",
    },
    {"question": "How long\u2028is it?", "answer": "#### 2.50"},
]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        (" 1,234,567 ", 1234567),
        ("-5", -5),
        ("\u22125", -5),
        ("0.5", 0.5),
        (".5", 0.5),
        ("12.0", 12),
        ("-1,234.25", -1234.25),
        ("$18", 18),
        ("-$18", -18),
        ("€ 3.20", 3.2),
        ("25%", 25),
        ("30 minutes", 30),
        ("5.", 5),
        ("123456789012345678901", 123456789012345678901),
    ],
)
def test_numbers(text: str, value: int | float) -> None:
    found = parse_number(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["", "seven", "1,00", "1,2345", "1/2", "3 4", "1e3", "--5", "5-3", "5..", "nan", "$"]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(GsmError, match="is no number"):
        parse_number(text)


def jsonl(folder: Path, rows: list[Any], name: str = "problems.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def test_a_file(tmp_path: Path) -> None:
    problems = gsm8k_problems(jsonl(tmp_path, ROWS))
    assert [p.answer for p in problems] == [7, 17, -1200, 2.5]
    assert problems[0] == Problem(
        id="problems/0",
        question=ROWS[0]["question"],
        answer=7,
        steps=("3+4=<<3+4=7>>7 pens",),
        group=problems[1].group,  # twins: the same words with other numbers
    )
    assert len({p.group for p in problems}) == 3
    assert problems[3].steps == ()
    pd.DataFrame(ROWS).to_parquet(tmp_path / "problems.parquet")
    assert gsm8k_problems(tmp_path / "problems.parquet") == problems


def test_own_ids_and_groups(tmp_path: Path) -> None:
    rows = [{**row, "id": f"x{i}", "group": "g"} for i, row in enumerate(ROWS)]
    problems = gsm8k_problems(jsonl(tmp_path, rows))
    assert [p.id for p in problems] == ["x0", "x1", "x2", "x3"]
    assert {p.group for p in problems} == {"g"}
    rows[2]["id"] = "x0"
    with pytest.raises(GsmError, match=r"1 ids stand for more than one problem \(x0\)"):
        gsm8k_problems(jsonl(tmp_path, rows))


def test_drawing(tmp_path: Path) -> None:
    path = jsonl(tmp_path, ROWS)
    some = gsm8k_problems(path, n=3, seed=1)
    assert len(set(some)) == 3 and some == gsm8k_problems(path, n=3, seed=1)
    assert len({gsm8k_problems(path, n=3, seed=s) for s in range(5)}) > 1
    with pytest.raises(GsmError, match="has 4 problems"):
        gsm8k_problems(path, n=5)
    with pytest.raises(GsmError, match="at least one"):
        gsm8k_problems(path, n=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "answer": "17"}, "line 5: the answer has 0 marks"),
        ({"question": "?", "answer": "#### 1\n#### 2"}, "line 5: the answer has 2 marks"),
        ({"question": "?", "answer": "#### many"}, "line 5: 'many' is no number"),
        ({"question": "?"}, "line 5: missing or not a text: answer"),
        ({"question": 3, "answer": "#### 1"}, "line 5: missing or not a text: question"),
        ({"question": " ", "answer": "#### 1"}, "must not be empty"),
        (["?", "#### 1"], "line 5: missing or not a text: question, answer"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(GsmError, match=message):
        gsm8k_problems(jsonl(tmp_path, [*ROWS, row]))


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": \n')
    with pytest.raises(GsmError, match="line 1: not JSON"):
        gsm8k_problems(path)
    path.write_text("")
    with pytest.raises(GsmError, match="holds no problems"):
        gsm8k_problems(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(GsmError, match="cannot be read as UTF-8"):
        gsm8k_problems(path)
    (tmp_path / "a.parquet").write_bytes(b"no such thing")
    with pytest.raises(GsmError, match="cannot be read as parquet"):
        gsm8k_problems(tmp_path / "a.parquet")
    for name in ("nowhere.jsonl", "a.txt"):
        with pytest.raises(GsmError, match="is no file of problems"):
            gsm8k_problems(tmp_path / name)
    with pytest.raises(GsmError, match="is one split"):
        gsm8k_problems(path, split="test")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def answer(*given: Any, **more: Any) -> list[dict[str, str]]:
        asked.append((given, more))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", answer)
    problems = gsm8k_problems()
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]
    assert [p.id for p in problems] == [f"test/{i}" for i in range(4)]
    assert gsm8k_problems("openai/gsm8k", split="train")[0].id == "train/0"

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(GsmError, match=r"no route to the hub\. It needs a network once"):
        gsm8k_problems()


def _shop(rng: Random, difficulty: float) -> dict[str, Any]:
    """A template like those of reasoning-gym: the total follows from two of the numbers."""
    name, price = rng.choice(["Ann", "Bo", "Cy"]), rng.randint(2, 30)
    count, spent = rng.randint(2, 9), rng.randint(1, 3)
    total = price * count - spent
    question = f"{name} sells {count} pens for {price} each, and spends {spent}. What is left?"
    return {
        "question": question,
        "answer": str(total),
        "metadata": {
            "answer_cot": f"{price} * {count} = {price * count}\n{total} is left.\n#### {total}",
            "variables": {"name": name, "price": price, "count": count, "spent": spent},
        },
    }


def _part(rng: Random, difficulty: float) -> dict[str, Any]:
    """Sometimes a fraction nobody would write, or a negative answer; and no operand to change
    without another number changing too."""
    share, a = 1 / rng.randint(2, 4), rng.randint(-3, 9)
    return {
        "question": f"What is {a} and {a} with {share} left?",
        "answer": str(a),
        "metadata": {"answer_cot": f"#### {a}", "variables": {"a": a, "share": share}},
    }


@pytest.fixture
def two_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "all_templates", lambda: {3: _shop, 8: _part})


def test_problems_of_templates(two_templates: None) -> None:
    problems = gsm8k_problems("symbolic", n=8)
    assert problems == gsm8k_problems("symbolic", n=8) != gsm8k_problems("symbolic", n=8, seed=1)
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == 8
    assert sorted(p.group for p in problems) == ["symbolic/3"] * 4 + ["symbolic/8"] * 4
    assert all(p.answer >= 0 and "0.333" not in p.question for p in problems)
    shop = next(p for p in problems if p.group == "symbolic/3")
    assert len(shop.steps) == 2 and shop.steps[1] == f"{shop.answer} is left."
    with pytest.raises(GsmError, match="n= is needed"):
        gsm8k_problems("symbolic")
    with pytest.raises(GsmError, match="gave no new problem"):
        gsm8k_problems("symbolic", n=100)  # the second template has few different ones


def test_a_draw_is_changed_alone() -> None:
    same, other = templates.Draws("s"), templates.Draws("s", changed=1, variant=1)
    left = [same.randint(0, 10**9) for _ in range(4)]
    right = [other.randint(0, 10**9) for _ in range(4)]
    assert [a == b for a, b in zip(left, right, strict=True)] == [True, False, True, True]
    assert same.count == 4


def check_pair(pair: ProblemPair, tokenizer: Any) -> None:
    """What a pair promises, computed another way: put the one number into the other's place."""
    left, right = pair.clean, pair.corrupted
    head, tail = left.question[: pair.start], left.question[pair.start :]
    assert right.question.startswith(head)
    shared = 0
    while tail[::-1][shared] == right.question[::-1][shared]:
        shared += 1
    middles = [p.question[pair.start : len(p.question) - shared] for p in (left, right)]
    assert all(set(m) <= set("0123456789.,") for m in middles)
    assert left.group == right.group and left.id != right.id and left.answer != right.answer
    lengths = {len(tokenizer(p.question)["input_ids"]) for p in (left, right)}
    assert len(lengths) == 1


def test_pairs(two_templates: None) -> None:
    tokenizer = tiny.byte_tokenizer()
    pairs = symbolic_pairs(tokenizer, 10)
    assert pairs == symbolic_pairs(tokenizer, 10) != symbolic_pairs(tokenizer, 10, seed=1)
    assert {p.clean.group for p in pairs} == {"symbolic/3"}  # the other one has no such pairs
    for pair in pairs:
        check_pair(pair, tokenizer)
        assert pair.operand in ("price", "count", "spent")
        values = [p.question.replace(".", "").split() for p in (pair.clean, pair.corrupted)]
        assert f"{pair.was}" in " ".join(values[0]) and f"{pair.now}" in " ".join(values[1])

    prompts = PromptPairs.from_texts([p.as_pair(tokenizer) for p in pairs], tokenizer)
    for i, pair in enumerate(pairs):
        assert "".join(prompts.clean_strings[i]) == f"{pair.clean.question}\nThe answer is: "
        assert prompts.positions[i]["operand"] == pair.start
        assert prompts.answers[i] == str(pair.clean.answer)[0] != prompts.foils[i]


def test_too_few_pairs(two_templates: None) -> None:
    with pytest.raises(GsmError, match="100000 were asked for"):
        symbolic_pairs(tiny.byte_tokenizer(), 100000)
    with pytest.raises(GsmError, match="at least one pair"):
        symbolic_pairs(tiny.byte_tokenizer(), 0)


def test_a_pair_refuses_what_it_is_not() -> None:
    clean = Problem("a", "2 pens and 3 more?", 5, (), "g")
    cases = [
        (Problem("b", "2 pens and 4 more?", 6, (), "h"), "of one template"),
        (Problem("b", "2 pens and 4 more?", 5, (), "g"), "in their answers"),
        (Problem("b", "1 pens and 4 more?", 6, (), "g"), "differ in one number"),
        (Problem("b", "2 cups and 3 more?", 6, (), "g"), "differ in one number"),
    ]
    for corrupted, message in cases:
        with pytest.raises(GsmError, match=message):
            ProblemPair(clean, corrupted, "more", 3, 4, 11)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    templates.all_templates.cache_clear()
    with pytest.raises(GsmError, match=r"pip install 'sae-circuits\[gsm\]'"):
        gsm8k_problems("symbolic", n=1)


def test_all_templates_of_reasoning_gym() -> None:
    pytest.importorskip("reasoning_gym")
    tokenizer = tiny.byte_tokenizer()
    numbers = templates.all_templates()
    assert len(numbers) == 85
    train, test = templates.templates("train"), templates.templates("test")
    assert len(test) == 17 and {*train, *test} == {*numbers} and not {*train} & {*test}
    problems = gsm8k_problems("symbolic", n=170)
    assert len({p.group for p in problems}) == 85 and len({p.question for p in problems}) == 170
    for problem in problems:
        # The worked solution ends at the answer, which the template gives apart from it.
        made, _ = templates.make_problem(int(problem.group.split("/")[1]), problem.id.split("/")[2])
        assert made == problem and problem.steps
    pairs = symbolic_pairs(tokenizer, 85, split="train")
    assert len({p.clean.group for p in pairs}) >= 60
    for pair in pairs:
        check_pair(pair, tokenizer)
    PromptPairs.from_texts([p.as_pair(tokenizer) for p in pairs], tokenizer)
