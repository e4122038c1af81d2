"""Context classes: what kind of token a text is. A token may be of several classes, or of none."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping

_OPERATORS = re.compile(r"[+\-*/%=<>!&|^~@:.]+")

# Each is matched by the text without the spaces around it, except for white space itself.
_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "digits": re.compile(r"\d+"),
    "capitalised": re.compile(r"[^\W\d_][\w']*"),
    "upper case": re.compile(r"[^\W\d_]{2,}"),
    "punctuation": re.compile(r"[^\w\s]+"),
    "bracket": re.compile(r"[()\[\]{}]+"),
    "quote": re.compile(r"[\"'`]+"),
    "operator": _OPERATORS,
}
CLASSES: tuple[str, ...] = (
    *_PATTERNS,
    "white space",
    "newline",
    "word begin",
    "word part",
    "python keyword",
)


def classes_of(token: str) -> frozenset[str]:
    """The classes of a token.

    digits, punctuation, bracket, quote, operator: all of it is. capitalised: a word whose first
    letter is upper case; upper case: two letters or more, all of them. white space: nothing else;
    newline: it has one. word begin: letters behind a space; word part: letters without one.
    python keyword: with or without spaces around it.
    """
    bare = token.strip(" ")
    found = {name for name, pattern in _PATTERNS.items() if pattern.fullmatch(bare)}
    if not bare[:1].isupper():
        found.discard("capitalised")
    if not bare.isupper():
        found.discard("upper case")
    if token and not token.strip():
        found.add("white space")
    if "\n" in token:
        found.add("newline")
    if bare.isalpha():
        found.add("word begin" if token.startswith(" ") else "word part")
    if bare in keyword.kwlist:
        found.add("python keyword")
    return frozenset(found)
