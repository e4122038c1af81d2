"""Contrasts between error types, as templates.

A template is a code form and a question. A form is a clean and a corrupted line of code that differ
in as little as the two errors allow. In a form, `{n}` is a number of two digits, `{k}` one of one
digit and `{v}` a variable's name; the operator that decides (or what stands for it) is inside of
[[ ]], the number that d1 and d2 frame inside of << >>.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from circuits.prompts import Mark, Pair

NAMES = (
    "total value result count price score number amount data item name user text line list1 "
    "table queue stack group limit level index width height weight length speed angle depth "
    "order"
).split()

# Each ends where the name of the error is due; each is a comment, so that the prompt is valid code.
QUESTIONS = {
    "executed": "# When this code is executed, Python will raise a",
    "fails": "# This code fails with a",
    "running": "# Running this code raises a",
    "traceback": "# Output: Traceback (most recent call last):\n#",
    "exception": "# Python stops here with this exception:",
}


@dataclass(frozen=True)
class Form:
    """A clean and a corrupted code, with markers; see the module's docstring."""

    clean: str
    corrupted: str


@dataclass(frozen=True)
class Template:
    """A form with a question."""

    name: str
    form: Form
    question: str


@dataclass(frozen=True)
class Contrast:
    """Two error types with the templates that lead to them.

    answer, foil: the errors of the clean and of the corrupted code. held_out: names of templates
    that are kept for evaluation; the others are explored, in the order given.
    """

    answer: str
    foil: str
    templates: tuple[Template, ...]
    held_out: frozenset[str]

    @property
    def name(self) -> str:
        """ANSWER/FOIL."""
        return f"{self.answer}/{self.foil}"

    def split(self, which: str) -> list[Template]:
        """The explored or the held-out templates."""
        return [t for t in self.templates if (t.name in self.held_out) == (which == "held_out")]


def _contrast(
    answer: str, foil: str, forms: Mapping[str, Form], explored: str, held_out: str
) -> Contrast:
    """`explored` and `held_out` list templates as FORM.QUESTION, separated by spaces."""

    def template(name: str) -> Template:
        form, question = name.split(".")
        return Template(name, forms[form], QUESTIONS[question])

    names = [*explored.split(), *held_out.split()]
    return Contrast(answer, foil, tuple(map(template, names)), frozenset(held_out.split()))


_ALL = [
    _contrast(
        "ZeroDivisionError",
        "TypeError",
        {
            "minus": Form("print({n} [[/]] <<0>>)", 'print({n} [[-]] "<<0>>")'),
            "quotes": Form("print({n} [[/]] <<0>>)", 'print({n} [[/]] "<<0>>")'),
            "modulo": Form("print({n} [[%]] <<0>>)", 'print({n} [[-]] "<<0>>")'),
        },
        "minus.executed minus.fails modulo.fails quotes.traceback",
        "minus.traceback modulo.traceback minus.running",
    ),
    _contrast(
        "TypeError",
        "SyntaxError",
        {
            "bracket": Form('print({n} [[-]] "<<{k}>>")', 'print({n} [[-]] "<<{k}>>"'),
            "square": Form('print({n} [[-]] "<<{k}>>")', 'print({n} [[-]] "<<{k}>>"]'),
        },
        "bracket.executed square.executed bracket.fails",
        "bracket.traceback square.exception",
    ),
    _contrast(
        "AttributeError",
        "IndexError",
        {
            "add": Form(
                "{v} = []\nprint({v}.[[add]](<<{n}>>))", "{v} = []\nprint({v}.[[pop]](<<{n}>>))"
            ),
        },
        "add.executed add.fails add.exception",
        "add.running add.traceback",
    ),
    _contrast(
        "IndexError",
        "KeyError",
        {
            "empty": Form(
                "{v} = [[list]]()\nprint({v}[<<{n}>>])", "{v} = [[dict]]()\nprint({v}[<<{n}>>])"
            ),
        },
        "empty.exception empty.executed empty.fails",
        "empty.running empty.traceback",
    ),
    _contrast(
        "AssertionError",
        "ZeroDivisionError",
        {"equals": Form("assert {n} [[==]] <<0>>", "assert {n} [[/]] <<0>>")},
        "equals.fails equals.exception equals.traceback",
        "equals.executed equals.running",
    ),
    _contrast(
        "ValueError",
        "NameError",
        {"text": Form('print(int("[[{v}]]") + <<{n}>>)', "print(int( [[{v}]] ) + <<{n}>>)")},
        "text.executed text.running text.fails",
        "text.traceback text.exception",
    ),
    _contrast(
        "NameError",
        "TypeError",
        {"missing": Form("print({n} [[-]] x<<0>>)", 'print({n} [[-]] "<<0>>")')},
        "missing.executed missing.running missing.fails",
        "missing.traceback missing.exception",
    ),
    _contrast(
        "ZeroDivisionError",
        "NameError",
        {"missing": Form("print({n} [[/]] <<0>>)", "print({n} [[/]] x<<0>>)")},
        "missing.executed missing.running missing.fails",
        "missing.traceback missing.exception",
    ),
]
CONTRASTS = {contrast.name: contrast for contrast in _ALL}

_MARKS = re.compile(r"\[\[|\]\]|<<|>>")


def _read(code: str) -> tuple[str, int, int, int]:
    """Code without markers, and where operator, number and the number's last character stand."""
    places: dict[str, int] = {}
    plain, at = "", 0
    for match in _MARKS.finditer(code):
        plain += code[at : match.start()]
        at = match.end()
        places[match[0]] = len(plain)
    return plain + code[at:], places["[["], places["<<"], places[">>"] - 1


def make_pairs(contrast: Contrast, template: Template, seed: int) -> Iterator[Pair]:
    """Every pair of a template, shuffled by `seed`."""
    fields = {f for f in ("n", "k", "v") if "{" + f + "}" in template.form.clean}
    values = {"n": [str(n) for n in range(10, 100)], "k": [str(k) for k in range(10)], "v": NAMES}
    fillers: list[dict[str, str]] = [{}]
    for field in sorted(fields):
        fillers = [{**f, field: value} for f in fillers for value in values[field]]
    random.Random(f"{seed} {contrast.name} {template.name}").shuffle(fillers)
    for filler in fillers:
        clean, op, first, last = _read(template.form.clean.format(**filler))
        corrupted, op_k, first_k, last_k = _read(template.form.corrupted.format(**filler))
        yield Pair(
            clean=f"{clean}\n{template.question}",
            corrupted=f"{corrupted}\n{template.question}",
            answer=f" {contrast.answer}",
            foil=f" {contrast.foil}",
            marks={
                "op": Mark(op, op_k),
                "d1": Mark(first, first_k, shift=-1),
                "d2": Mark(last, last_k, shift=1),
            },
            template=template.name,
        )
