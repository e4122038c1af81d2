"""Texts made comparable: accents, case, apostrophes and white space do not count."""

from __future__ import annotations

import re
import unicodedata

# Letters that Unicode does not take apart.
_LETTERS = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ı": "i", "ß": "ss", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th"}
)
_APOSTROPHES = re.compile("['’‘`´ʻʼ]")
_SAINT = re.compile(r"\bst\.?(?=\s)")


def folded(text: str) -> str:
    """Lower case without accents and apostrophes, "St." written out, single spaces.

    Hyphens and full stops stay: "Guinea-Bissau" is not "Guinea".
    """
    plain = unicodedata.normalize("NFKD", text.casefold()).translate(_LETTERS)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = _SAINT.sub("saint", _APOSTROPHES.sub("", plain))
    return " ".join(plain.split())
