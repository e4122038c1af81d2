"""Reading an answer, strictly: it has to begin with one name that can be an answer, or one number.

1. What is read is the first line, without quotation marks, an opening phrase ("the answer is",
   "It is called", "a city named") and articles.
2. Places and elements: the longest known name that the text begins with, as whole words. What
   follows must not go on with the name ("Guinea-Bissau" is not Guinea, "Niger State" not Niger):
   no hyphen, and no further capitalised word but one after a comma. Where no name is known, a name
   of a place that a full stop, comma or the end closes ("Kisama.") is read too: it is made up, or
   too small to be a capital, and wrong.
3. Symbols: a capital letter with at most one small one behind it ("Co"; not "CO", not "cobalt").
4. Currencies: the one unit that is named before the first full stop, comma or bracket ("the
   Japanese yen (JPY)"); two different ones are not read.
5. Numbers: whole, with thousands separators at most; "12.5", "12-13" and "12 or 13" are not read.

An answer is right when what was read is one of the accepted ones, compared without accents, case
and apostrophes (words.py); symbols keep their case. What cannot be read is neither right nor wrong:
`valid` is False and `reason` says why; how many there are is counted beside right and wrong.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from tasks.facts.facts import ARITHMETIC, Fact
from tasks.facts.names import names_of
from tasks.facts.words import folded

# Why an answer could not be read; `reason` begins with one of these.
REASONS = ("empty", "no known name", "name goes on", "several names", "no number", "number unclear")

_OPENING = re.compile(
    r"^[\s\"'“”‘’*_:]*(?:(?:the\s+)?(?:correct\s+)?answer\s*(?:is|:)\s*)?"
    r"(?:(?:it|this|that)\s+(?:is|was)\s+)?(?:called\s+|named\s+|known\s+as\s+)?"
    r"(?:the\s+)?(?:(?:capital\s+)?city\s+of\s+|(?:country|continent|element|nation|republic)\s+of\s+|"
    r"(?:country|continent|element|city)\s+(?:called\s+|named\s+)?)?(?:the\s+)?[\"'“”‘’*_]*",
    re.I,
)
_NUMBER = re.compile(r"(?P<n>[-−]?(?:\d{1,3}(?:,\d{3})+|\d+))(?P<after>.*)", re.S)
_NUMBER_GOES_ON = re.compile(
    r"\.\d|,\d|\d|\s*(?:[-–—/*x×+^%=]|or\b|to\b|and\b|point\b|remainder\b)"
)
_SYMBOL = re.compile(r"[A-Z][a-z]?(?![\w'’-])")
_PLACES = ("capital", "country", "city")
_PART = r"[^\W\d_a-z][\w'’-]*"
_MADE_UP = re.compile(
    rf"({_PART}(?:\s+(?:(?:of|de|del|la|el|al|and|the)\s+)*{_PART})*)(?=\.(?!\w)|[,;)\n\"]|$)"
)
_CLAUSE = re.compile(r"\.(?!\w|\s+[a-z])|[,;:(\[]")  # "U.S. dollar" goes on
_NAME_GOES_ON = re.compile(r"^(?:-\w|['’]s?\s*[A-Z]|\s+[A-Z]\w)")


@dataclass(frozen=True)
class Reading:
    """What a response answers.

    said: the name or number that was read, as it stands in the response; "" where none was.
    stop: the character of the response behind it. valid: whether it could be read. reason: why not.
    known: whether it is a name that the data has; a made-up one is not.
    """

    said: str
    stop: int
    valid: bool
    reason: str = ""
    known: bool = True

    def as_dict(self) -> dict[str, Any]:
        """As it stands in logs."""
        return asdict(self)


def read_answer(response: str, kind: str, ended: bool = True) -> Reading:
    """The answer in a response that begins where one was due; `kind` is the fact's.

    ended: whether the response came to its end, and was not cut at so many tokens.
    """
    lead = len(response) - len(response.lstrip())
    line, broken, _ = response[lead:].partition("\n")
    closed = ended or bool(broken)
    if not line.strip():
        return Reading("", 0, False, "empty")
    opening = _OPENING.match(line)
    start = opening.end() if opening else 0
    text = line[start:]
    if kind in ARITHMETIC:
        found = _number(text)
    elif kind == "symbol":
        found = _symbol(text)
    elif kind == "currency":
        found = _currency(text)
    else:
        found = _name(text, kind)
    known = True
    if isinstance(found, str) and found.startswith("no known name") and kind in _PLACES:
        made_up = _MADE_UP.match(text)
        if made_up and (closed or made_up.end() < len(text)):
            found, known = made_up.span(), False
    if isinstance(found, str):
        return Reading("", 0, False, found)
    begin, stop = found
    said = text[begin:stop]
    if kind == "symbol":
        known = said in names_of(kind)
    return Reading(said, lead + start + stop, True, known=known)


def is_right(fact: Fact, said: str) -> bool:
    """Whether what was read is an accepted answer."""
    if fact.kind == "symbol":
        return said in fact.accepted
    if fact.kind in ARITHMETIC:
        return said.replace(",", "").replace("−", "-") in fact.accepted
    names = {folded(name) for name in fact.accepted}
    plain = folded(said)
    return plain in names or (fact.kind == "currency" and plain.removesuffix("s") in names)


Found = tuple[int, int] | str  # characters of the text, or why there is nothing


@cache
def _known(kind: str) -> tuple[frozenset[str], int]:
    """Known names, folded, and the most words that one has."""
    names = frozenset(folded(name) for name in names_of(kind))
    return names, max(len(name.split()) for name in names)


def _name(text: str, kind: str) -> Found:
    names, most = _known(kind)
    ends = [m.end() for m in re.finditer(r"[^\s,;:!?()\"“”]+", text)][:most]
    for end in reversed(ends):
        for stop in (end, end - 1) if text[end - 1] == "." else (end,):  # "St. John's", "U.S."
            if folded(text[:stop]) in names:
                after = text[stop:]
                if _NAME_GOES_ON.match(after):
                    return f"name goes on: {_shown(text)}"
                return 0, stop
    return f"no known name: {_shown(text)}"


def _symbol(text: str) -> Found:
    match = _SYMBOL.match(text)
    if match is None:
        return f"no known name: {_shown(text)}"
    return 0, match.end()


def _currency(text: str) -> Found:
    names, _ = _known("currency")
    end = _CLAUSE.search(text)
    clause = text[: end.start()] if end else text
    found = {}
    for match in re.finditer(r"[^\W\d_]+(?:['’][^\W\d_]+)?", clause):
        word = folded(match.group())
        single = word if word in names else word.removesuffix("s")
        if single in names and single not in found:
            found[single] = match
    if not found:
        return f"no known name: {_shown(text)}"
    if len(found) > 1:
        return f"several names: {_shown(clause)}"
    [match] = found.values()
    return match.start(), match.end()


def _number(text: str) -> Found:
    match = _NUMBER.match(text)
    if match is None:
        return f"no number: {_shown(text)}"
    if _NUMBER_GOES_ON.match(match.group("after")):
        return f"number unclear: {_shown(text)}"
    return 0, match.end("n")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
