"""Facts, how they are asked, how answers are read, and how they are balanced."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from circuits.task import TaskError, load_task
from tasks.facts.answering import Answer
from tasks.facts.balance import balanced, bins, records, table
from tasks.facts.facts import ARITHMETIC, KINDS, Fact, facts
from tasks.facts.questions import PHRASINGS, QUESTIONS, STATEMENTS, ask, is_example
from tasks.facts.reading import REASONS, is_right, read_answer
from tasks.facts.words import folded
from tests import tiny


def found(kind: str, subject: str) -> Fact:
    return next(fact for fact in facts([kind]) if fact.subject == subject)


def test_tables_hold_what_everybody_can_look_up() -> None:
    assert found("capital", "Peru").accepted[0] == "Lima"
    assert found("country", "Nairobi").entity == "country:KE"
    assert found("city", "Mumbai").entity == found("capital", "India").entity
    assert found("symbol", "tungsten").accepted == ("W",)
    assert found("element", "Al").accepted == ("aluminum", "aluminium")
    assert found("continent", "Turkey").accepted == ("Europe", "Asia")
    assert found("currency", "Japan").answer == "yen"


def test_what_is_disputed_is_not_asked() -> None:
    capitals = {fact.entity for fact in facts(["capital"])}
    assert not capitals & {"country:IL", "country:BO", "country:ZA", "country:NL"}
    # A capital named like its country would give the answer away.
    assert "country:SG" not in capitals and "country:LU" not in capitals


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_sums_are_right(kind: str) -> None:
    some = facts([kind], most=60)
    assert len({fact.subject for fact in some}) == len(some) == 60
    for fact in some:
        assert str(eval(fact.subject)) == fact.answer
        assert fact.entity == f"number:{fact.answer}" and int(fact.answer) > 0


def test_most_takes_common_and_rare_facts_alike_and_is_the_same_again() -> None:
    every = sorted(fact.commonness for fact in facts(["city"]))
    some = [fact.commonness for fact in facts(["city"], most=200, seed=3)]
    middle = every[len(every) // 2]
    assert 0.4 < sum(value < middle for value in some) / len(some) < 0.6
    assert facts(["city"], most=200, seed=3) == facts(["city"], most=200, seed=3)
    assert facts(["capital"], seed=1) != facts(["capital"], seed=2)
    with pytest.raises(TaskError, match=r"kinds capitals: expected some of capital, country"):
        facts(["capitals"])


@pytest.mark.parametrize(
    ("kind", "response", "said"),
    [
        ("capital", " Paris.", "Paris"),
        ("capital", ' the city of "Paris", which', "Paris"),
        ("capital", " Washington, D.C., and", "Washington, D.C."),
        ("capital", " St. John's.", "St. John's"),
        ("capital", " Port-au-Prince is", "Port-au-Prince"),
        ("capital", " Kisama, and the", "Kisama"),  # made up
        ("country", " the United States of America.", "United States of America"),
        ("country", " Guinea-Bissau, a", "Guinea-Bissau"),
        ("country", " CÔTE D’IVOIRE\nand", "CÔTE D’IVOIRE"),
        ("continent", " the continent of South America.", "South America"),
        ("currency", " Mexican Peso (MXN)", "Peso"),
        ("currency", " U.S. dollars.", "dollars"),
        ("symbol", ' "Sb" and', "Sb"),
        ("symbol", " Zm.", "Zm"),  # no element's
        ("element", " the element aluminium.", "aluminium"),
        ("addition", " 1,234.", "1,234"),
        ("subtraction", " 8, which is", "8"),
    ],
)
def test_answers_that_are_read(kind: str, response: str, said: str) -> None:
    reading = read_answer(response, kind, ended=False)
    assert reading.valid and reading.said == said
    assert response[: reading.stop].endswith(said)


@pytest.mark.parametrize(
    ("kind", "response", "reason"),
    [
        ("capital", " ", "empty"),
        ("capital", " located in the north", "no known name"),
        ("capital", " Kisa", "no known name"),  # cut off, or is it?
        ("country", " Niger State", "name goes on"),
        ("country", " Guinea-Conakry", "no known name"),
        ("country", " the Azadai region of", "no known name"),
        ("symbol", " Lutetium.", "no known name"),
        ("symbol", " CO", "no known name"),
        ("currency", " BRL, the real", "no known name"),
        ("currency", " dollar or peso", "several names"),
        ("addition", " unknown", "no number"),
        ("addition", " 12.5", "number unclear"),
        ("addition", " 12-13", "number unclear"),
        ("addition", " 3 + 2 = 5.", "number unclear"),
    ],
)
def test_answers_that_are_not_read_say_why(kind: str, response: str, reason: str) -> None:
    reading = read_answer(response, kind, ended=False)
    assert not reading.valid and reading.said == ""
    assert reading.reason.split(":")[0] == reason and reason in REASONS


def test_right_is_strict_but_for_accents_case_and_aliases() -> None:
    assert is_right(found("capital", "Colombia"), "BOGOTÁ")
    assert not is_right(found("capital", "Colombia"), "Bogota City")
    assert is_right(found("city", "Leeds"), "UK")
    assert not is_right(found("country", "Niamey"), "Nigeria")
    assert is_right(found("symbol", "cobalt"), "Co") and not is_right(
        found("symbol", "cobalt"), "CO"
    )
    assert is_right(found("currency", "Japan"), "Yen")
    assert is_right(Fact("addition", "number:1234", "1000 + 234", ("1234",), 0.0), "1,234")
    assert folded("São  Tomé") == "sao tome" and folded("St. John’s") == "saint johns"


def test_every_phrasing_asks_for_its_subject_and_forms_are_checked() -> None:
    for kind in KINDS:
        assert len(set(STATEMENTS[kind])) == PHRASINGS + 1 == 3
        assert all("{0}" in text for text in (*STATEMENTS[kind], *QUESTIONS[kind]))
    fact = found("capital", "Peru")
    shown = ask(fact, "examples", 0, None)
    assert shown.prompt.endswith("Q: What is the capital of Peru?\nA:")
    assert "A: Paris" in shown.prompt and shown.asked == "What is the capital of Peru?"
    with pytest.raises(TaskError, match="no chat template"):
        ask(fact, "chat", 0, tiny.tokenizer())
    with pytest.raises(TaskError, match="expected one of statement, examples, chat"):
        ask(fact, "haiku", 0, None)
    assert is_example(found("capital", "France")) and not is_example(fact)


def answers_of(kind: str, right: str, start: int = 0) -> list[Answer]:
    """Answers with `right` one letter each: r, w, or u for one that could not be read; the earlier
    the better known."""
    made = []
    for i, letter in enumerate(right):
        fact = Fact(kind, f"e{i // 2}", f"{kind}{start + i}", ("yes",), float(-i))
        said = {"r": " yes.", "w": " no", "u": ""}[letter]
        reading = read_answer(" 5" if letter != "u" else "", "addition")
        question = ask(fact, "statement", 0, None)
        made.append(Answer(question, said, reading, said, letter == "r", 0.5, 0.6, 1.0))
    return made


def test_balance_holds_in_every_kind_and_third_of_commonness() -> None:
    answers = answers_of("capital", "rrrrwwrrwwwwrwwwuu") + answers_of("city", "rw" * 9)
    assert bins(answers)[:18] == [2] * 6 + [1] * 6 + [0] * 6
    chosen = balanced(answers)
    where = bins(answers)
    sides = Counter((answers[i].question.fact.kind, where[i], answers[i].correct) for i in chosen)
    # By hand: capital min(4, 2), min(2, 4), min(1, 3); city 3 in each third.
    assert [sides["capital", b, True] for b in (2, 1, 0)] == [2, 2, 1]
    assert all(sides[kind, b, True] == sides[kind, b, False] for kind, b, _ in sides)
    assert len(chosen) == 2 * (5 + 9) and all(answers[i].reading.valid for i in chosen)
    shown = table(answers, chosen).set_index("kind")
    assert shown.loc["capital", ["asked", "right", "wrong", "not read"]].tolist() == [18, 7, 9, 2]
    assert shown.loc["all", "chosen right"] == shown.loc["all", "chosen wrong"] == 14


def test_phrasings_are_balanced_too() -> None:
    """The first phrasing is answered right, the second wrong: nothing is left to be told by it."""
    right, wrong = answers_of("capital", "rrrr"), answers_of("capital", "wwww", start=4)
    with pytest.raises(TaskError, match="0 balanced answers"):
        balanced([*right, *(_rephrased(one) for one in wrong)])
    mixed = [*right, *wrong, *(_rephrased(one) for one in answers_of("capital", "rw" * 4, 8))]
    where = bins(mixed)
    sides = Counter(
        (mixed[i].question.phrasing, where[i], mixed[i].correct) for i in balanced(mixed)
    )
    assert {which for which, _, _ in sides} == {0, 1}
    assert all(sides[which, b, True] == sides[which, b, False] for which, b, _ in sides)


def _rephrased(one: Answer) -> Answer:
    return replace(one, question=ask(one.question.fact, "statement", 1, None))


def test_fewer_are_taken_from_the_largest_strata_first() -> None:
    answers = answers_of("capital", "rw" * 9) + answers_of("city", "rw" + "ww" * 8)
    chosen = balanced(answers, 8, seed=1)
    kinds = Counter((answers[i].question.fact.kind, answers[i].correct) for i in chosen)
    assert kinds == {
        ("capital", True): 3,
        ("capital", False): 3,
        ("city", True): 1,
        ("city", False): 1,
    }
    assert chosen == balanced(answers, 8, seed=1) != balanced(answers, 8, seed=2)
    with pytest.raises(TaskError, match="20 balanced answers, not 40"):
        balanced(answers, 40)
    with pytest.raises(TaskError, match="an even number"):
        balanced(answers, 7)


def test_records_know_what_can_be_known_from_outside() -> None:
    answers = answers_of("capital", "rrwwww")
    made = records(answers, [0, 2, 3], tiny.tokenizer())
    assert [r.correct for r in made] == [True, False, False]
    assert [r.group for r in made] == ["e0", "e1", "e1"]
    assert made[1].surface["said_share"] == pytest.approx(4 / 6)
    assert made[0].surface["said_rank"] == pytest.approx(
        math.log1p(tiny.tokenizer()(" yes.")["input_ids"][0])
    )
    assert made[0].surface["type_capital"] == 1.0 and made[0].surface["type_city"] == 0.0
    assert made[0].surface["answer_probability"] == 0.5
    assert made[0].labels["type"] == "capital" and made[0].labels["commonness_bin"] == 2


def test_pairs_line_up_and_no_fact_stands_in_two() -> None:
    model, task = tiny.bridge("llama"), load_task("facts")
    known = "Peru Lima Germany Berlin Italy Rome Egypt Cairo Kenya Nairobi Iran Tehran".split()
    model.tokenizer = tiny.tokenizer(*known, "capital", "The", "of", "is")
    pairs = task.pairs(model, n=3)  # type: ignore[attr-defined]
    assert len({*pairs.clean_tokens, *pairs.corrupted_tokens}) >= 4
    named = [text for both in (pairs.answer_texts, pairs.foil_texts) for text in both]
    assert len(set(named)) == 6
    for i, where in enumerate(pairs.positions):
        both = zip(pairs.clean_strings[i], pairs.corrupted_strings[i], strict=True)
        assert [k for k, (a, b) in enumerate(both) if a != b] == [where["subject"]] == [3]
        assert where["END"] == 4
    with pytest.raises(TaskError, match="ask for fewer"):
        task.pairs(model, contrast="continent", n=500)  # type: ignore[attr-defined]


def test_prompts_are_parsed() -> None:
    task = load_task("facts")
    prompts = task.prompts(tiny.bridge("llama"), n=20, seed=1)  # type: ignore[attr-defined]
    assert {p.kind for p in prompts} == set(KINDS)
    one = next(p for p in prompts if p.kind == "addition")
    total = str(sum(int(x) for x in one.text.replace("=", "").split() if x.isdigit()))
    read = task.parse(f" {total}.", one.text)  # type: ignore[attr-defined]
    assert read["valid"] and read["correct"] and read["said"] == total
    assert not task.parse(" I do not know", one.text)["valid"]  # type: ignore[attr-defined]
    with pytest.raises(TaskError, match="no statement of the facts task"):
        task.parse(" 4", "2 and 2 make")  # type: ignore[attr-defined]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tasks.facts.facts as module

    module.elements.cache_clear()
    module._table.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "periodictable", None)
    with pytest.raises(TaskError, match=r"periodictable, which is not installed: pip install"):
        facts(["symbol"])
    module.elements.cache_clear()
    assert facts(["addition"], most=5)
