"""Text into words: whole ones, with numbers and amounts among them.

Words are cut from the decoded text and never from tokens, so "betting" is one word however a
tokenizer cuts it. A word is a run of letters and digits that begins with a letter, with apostrophes
and hyphens inside it ("don't", "all-in"); a number keeps its separators and what is attached to it
("1,000", "3rd", "2x"); an amount its currency ("$10", also from "$ 10" and "10$"); a percentage its
sign ("50%"). A minus sign is not kept: "-$5" is "$5". Scripts without spaces come out as one word a
run. Special tokens such as <|im_end|> are no words.

Stop words are scikit-learn's English list less its words of number and negation ("ten", "no"),
which carry what a study of choices is about. Lemmas are simplemma's (tables, no model), an extra.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from circuits.errors import CircuitsError

AMOUNT, PERCENT, NUMBER = "<amount>", "<percent>", "<number>"
_KEPT = frozenset(
    "one two three four five six eight nine ten eleven twelve fifteen twenty forty fifty sixty "
    "hundred no nor not never none nothing cannot cant".split()
)
_CURRENCY = "$€£¥₩₹"
# Thousands are set off by commas in groups of three, or not at all.
_NUM = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
_LETTERS = r"[^\W\d_]"
_PATTERN = re.compile(
    rf"(?P<special><\|[^|<>\s]*\|>)"
    rf"|(?P<amount>[{_CURRENCY}]\s?{_NUM}{_LETTERS}*|{_NUM}\s?[{_CURRENCY}](?!\s?\d))"
    rf"|(?P<percent>{_NUM}\s?%)"
    rf"|(?P<number>{_NUM}{_LETTERS}*)"
    rf"|(?P<word>{_LETTERS}[^\W_]*(?:['\u2019\-\u2010\u2011][^\W_]+)*)"
)
_SPELT = re.compile(
    rf"(?<![\w,.])(?P<number>{_NUM})[\s-]?(?:dollars?|bucks?|cents?|usd|euros?)\b", re.I
)
_PLAIN = str.maketrans({"\u2019": "'", "\u2010": "-", "\u2011": "-"})


class SplitError(CircuitsError):
    """Options of splitting that cannot be met: a list that is missing, an extra not installed."""


@dataclass(frozen=True)
class WordOptions:
    """How text becomes words.

    fold: "Stop" and "stop" are one word. stop_words: "none", "english", or the path of a file with
    one word a line. lemmas: a language of simplemma such as "en", or None. numbers: "kept" as
    written; "amounts" turns sums of money into <amount> and percentages into <percent>; "grouped"
    also turns all other numbers into <number>.
    """

    fold: bool = True
    stop_words: str = "none"
    lemmas: str | None = None
    numbers: Literal["kept", "amounts", "grouped"] = "kept"

    def __post_init__(self) -> None:
        if self.numbers not in ("kept", "amounts", "grouped"):
            raise SplitError(f"numbers {self.numbers!r}: expected kept, amounts or grouped.")


class Splitter:
    """`count(text)` is how often each word of a text is in it.

    Raises `SplitError` when a list of stop words or a language of lemmas is not there.
    """

    def __init__(self, options: WordOptions | None = None) -> None:
        self.options = options or WordOptions()
        self._stop = stop_words(self.options.stop_words)
        self._lemma = _lemmatizer(self.options.lemmas)
        self._known: dict[str, str | None] = {}  # a word as written -> as counted, None if left out

    def count(self, text: str) -> Counter[str]:
        """Words with their counts, in order of first appearance."""
        return Counter(self.words(text))

    def words(self, text: str) -> list[str]:
        """The words in their order."""
        text = unicodedata.normalize("NFKC", text)
        if self.options.numbers != "kept":
            text = _SPELT.sub(r"$\g<number>", text)
        found = []
        for match in _PATTERN.finditer(text):
            written, kind = match.group(), match.lastgroup
            if written not in self._known:
                self._known[written] = self._counted(written, str(kind))
            word = self._known[written]
            if word is not None:
                found.append(word)
        return found

    def _counted(self, written: str, kind: str) -> str | None:
        if kind == "special":
            return None
        if kind == "word":
            return self._of_letters(written.translate(_PLAIN))
        if kind in ("amount", "percent") and self.options.numbers != "kept":
            return AMOUNT if kind == "amount" else PERCENT
        if kind == "number" and self.options.numbers == "grouped":
            return NUMBER
        joined = "".join(written.split())
        if kind == "amount" and joined[-1] in _CURRENCY:
            joined = joined[-1] + joined[:-1]
        return joined.casefold() if self.options.fold else joined

    def _of_letters(self, word: str) -> str | None:
        if self._is_stop(word):
            return None
        word = word.casefold() if self.options.fold else word
        if self._lemma is not None:
            word = self._lemma(word)
            word = word.casefold() if self.options.fold else word
            if self._is_stop(word):
                return None
        return word

    def _is_stop(self, word: str) -> bool:
        low = word.casefold()
        return low in self._stop or low.replace("'", "") in self._stop


def stop_words(choice: str) -> frozenset[str]:
    """The words that "none", "english" or the path of a file stands for, in lower case.

    Raises `SplitError` for a file that is not there or holds no words.
    """
    if choice == "none":
        return frozenset()
    if choice == "english":
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return frozenset(ENGLISH_STOP_WORDS) - _KEPT
    path = Path(choice)
    if not path.is_file():
        raise SplitError(f"stop words {choice!r}: expected none, english, or a file that exists.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SplitError(f"stop words {choice}: cannot be read as UTF-8 ({error}).") from error
    words = frozenset(word.casefold() for line in lines if (word := line.strip()))
    if not words or any(len(word.split()) > 1 for word in words):
        raise SplitError(f"stop words {choice}: expected one word a line.")
    return words


def _lemmatizer(language: str | None) -> Callable[[str], str] | None:
    if language is None:
        return None
    try:
        import simplemma
    except ImportError as error:
        raise SplitError(
            "lemmas need simplemma: pip install 'sae-circuits[lemmas]', or leave them out."
        ) from error
    try:
        simplemma.lemmatize("words", lang=language)
    except ValueError as error:
        raise SplitError(f"lemmas {language!r}: {error}") from error
    return lambda word: simplemma.lemmatize(word, lang=language)
