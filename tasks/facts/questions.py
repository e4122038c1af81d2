"""Facts as questions: several phrasings, as a statement to go on with, after examples, or in chat.

statement: "The capital of France is", whose continuation is the answer. examples: a few questions
with their answers first, for base models. chat: the question in the tokenizer's chat template, for
instruct models. The facts of the examples are never asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from circuits.prompts import resolve_bos
from circuits.task import TaskError
from tasks.facts.facts import ARITHMETIC, Fact

FORMS = ("statement", "examples", "chat")

# The answer follows what stands here after a space.
STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "capital": (
        "The capital of {0} is",
        "The capital city of {0} is called",
        "{0}'s capital city is",
    ),
    "country": (
        "{0} is the capital of",
        "{0} is the capital city of the country of",
        "The city of {0} is the capital of",
    ),
    "city": (
        "The city of {0} is located in the country of",
        "{0} is a city in the country of",
        "The country that the city of {0} belongs to is",
    ),
    "continent": (
        "{0} is a country on the continent of",
        "The continent on which {0} lies is",
        "{0} is located on the continent of",
    ),
    "currency": (
        "The currency of {0} is the",
        "The official currency used in {0} is the",
        "In {0} people pay with a currency called the",
    ),
    "symbol": (
        "The chemical symbol for {0} is",
        "In the periodic table the element {0} has the symbol",
        "The chemical symbol of the element {0} is",
    ),
    "element": (
        "The chemical symbol {0} stands for the element",
        "{0} is the chemical symbol of the element",
        "In the periodic table {0} is the symbol for",
    ),
    **dict.fromkeys(ARITHMETIC, ("{0} =", "The result of {0} is", "Calculate: {0} =")),
}
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "capital": ("What is the capital of {0}?", "Which city is the capital of {0}?"),
    "country": ("Which country has the capital {0}?", "{0} is the capital of which country?"),
    "city": ("In which country is the city of {0}?", "Which country does the city {0} belong to?"),
    "continent": ("On which continent is {0}?", "Which continent does {0} belong to?"),
    "currency": ("What is the currency of {0} called?", "Which currency is used in {0}?"),
    "symbol": ("What is the chemical symbol for {0}?", "Which symbol has the element {0}?"),
    "element": ("Which element has the chemical symbol {0}?", "What element is {0}?"),
    **dict.fromkeys(ARITHMETIC, ("What is {0}?", "How much is {0}?")),
}
PHRASINGS = min(len(texts) for texts in (*STATEMENTS.values(), *QUESTIONS.values()))
# Entities that examples are about.
EXAMPLES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "capital": (("country:FR", "France", "Paris"), ("country:JP", "Japan", "Tokyo")),
    "country": (("country:FR", "Paris", "France"), ("country:JP", "Tokyo", "Japan")),
    "city": (("country:FR", "Lyon", "France"), ("country:JP", "Osaka", "Japan")),
    "continent": (("country:FR", "France", "Europe"), ("country:JP", "Japan", "Asia")),
    "currency": (("country:FR", "France", "Euro"), ("country:JP", "Japan", "Yen")),
    "symbol": (("element:6", "carbon", "C"), ("element:26", "iron", "Fe")),
    "element": (("element:6", "C", "carbon"), ("element:26", "Fe", "iron")),
    "addition": (("number:16", "12 + 4", "16"), ("number:57", "35 + 22", "57")),
    "subtraction": (("number:8", "12 - 4", "8"), ("number:13", "35 - 22", "13")),
    "multiplication": (("number:48", "12 * 4", "48"), ("number:35", "7 * 5", "35")),
}
_BRIEF = "Answer with the {0} only."
_WANTED = {
    "capital": "name",
    "country": "name",
    "city": "name",
    "continent": "name",
    "currency": "name",
    "symbol": "symbol",
    "element": "name",
    **dict.fromkeys(ARITHMETIC, "number"),
}


@dataclass(frozen=True)
class Question:
    """A fact, asked. prompt: the answer follows it. phrasing: which of the phrasings it is.

    asked: the question by itself, without examples and template; what twins are looked for in.
    """

    fact: Fact
    prompt: str
    asked: str
    form: str
    phrasing: int

    @property
    def id(self) -> str:
        """Its own."""
        return f"{self.fact.id}#{self.phrasing}"


def best_form(tokenizer: Any) -> str:
    """chat where the tokenizer has a template, else examples."""
    return "chat" if getattr(tokenizer, "chat_template", None) else "examples"


def ask(fact: Fact, form: str, phrasing: int, tokenizer: Any) -> Question:
    """Raises `TaskError` for a form that does not exist, and chat without a template."""
    if form not in FORMS:
        raise TaskError(f"form {form!r}: expected one of {', '.join(FORMS)}.")
    texts = (STATEMENTS if form == "statement" else QUESTIONS)[fact.kind]
    text = _first_up(texts[phrasing % len(texts)].format(fact.subject), fact)
    if form == "statement":
        prompt = text
    elif form == "examples":
        shown = [texts[phrasing % len(texts)].format(subject) for _, subject, _ in _examples(fact)]
        pairs = zip(shown, _examples(fact), strict=True)
        lines = [f"Q: {question}\nA: {answer}\n" for question, (_, _, answer) in pairs]
        prompt = "\n".join([*lines, f"Q: {text}\nA:"])
    else:
        prompt = in_chat(f"{text} {_BRIEF.format(_WANTED[fact.kind])}", tokenizer)
    return Question(fact, prompt, text, form, phrasing % len(texts))


def is_example(fact: Fact) -> bool:
    """Whether a fact is, or gives away, an example of its kind."""
    return any(fact.entity == entity for entity, _, _ in EXAMPLES[fact.kind])


def in_chat(text: str, tokenizer: Any) -> str:
    """A user's message with the beginning of the reply, as the chat template has it.

    Raises `TaskError` for a tokenizer without a template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            "form chat: this model's tokenizer has no chat template; take examples or statement."
        )
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    if resolve_bos(tokenizer, None):  # it is put first again when the text is tokenised
        shown = shown.removeprefix(tokenizer.bos_token)
    return shown


def _examples(fact: Fact) -> tuple[tuple[str, str, str], ...]:
    return EXAMPLES[fact.kind]


def _first_up(text: str, fact: Fact) -> str:
    """A sentence begins with a capital; a symbol stays as it is."""
    return text if fact.kind == "element" else text[:1].upper() + text[1:]
