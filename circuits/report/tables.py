"""Numbers and tables as HTML in which everything is escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuits.tokens import visible

NONE = "\u2013"  # where there is no number


class Html(str):
    """Text that is HTML already, and is not escaped again; what is added to it is, if it is not."""

    def __add__(self, other: str) -> Html:
        return Html(str.__add__(self, escaped(other)))


def escaped(value: Any) -> Html:
    """Any value as HTML; `Html` stays what it is."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def number(value: Any, form: str) -> str:
    """A number in a format; a dash where there is none (run.json has null for NaN)."""
    if value is None or math.isnan(float(value)):
        return NONE
    text = f"{float(value):{form}}"
    if not any(digit in text for digit in "123456789"):
        text = f"{0.0:{form}}"  # no minus before a zero
    return text.replace("-", "\u2212")


def interval(value: Any, low: Any, high: Any, form: str) -> str:
    """ "0.43 [0.40, 0.46]"; without brackets where one pair gives none."""
    bounds = [number(end, form) for end in (low, high)]
    inside = "" if NONE in bounds else f" [{bounds[0]}, {bounds[1]}]"
    return number(value, form) + inside


def of_row(row: Mapping[str, Any], name: str, form: str) -> str:
    """The interval of the columns `name`, `name_low` and `name_high`."""
    return interval(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"), form)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[str] = ()) -> Html:
    """A table. numbers: the columns that are right-aligned."""
    kinds = [' class="number"' if head in numbers else "" for head in heads]
    top = "".join(f"<th{kind}>{escaped(h)}</th>" for kind, h in zip(kinds, heads, strict=True))
    lines = [
        "".join(f"<td{kind}>{escaped(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return Html(f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>')


def facts(pairs: Iterable[tuple[str, Any]]) -> Html:
    """Names and values below one another; those without a value are left out."""
    lines = "".join(
        f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>"
        for name, value in pairs
        if value not in (None, "")
    )
    return Html(f'<table class="facts">{lines}</table>')


def paragraph(text: Any, kind: str = "") -> Html:
    """A paragraph. kind: its class, such as "loud" or "note"."""
    mark = f' class="{kind}"' if kind else ""
    return Html(f"<p{mark}>{escaped(text)}</p>")


def bullets(lines: Iterable[Any]) -> Html:
    """A list."""
    return Html("<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>")


def link(text: str, anchor: str) -> Html:
    """A link to a place on the page."""
    return Html(f'<a href="#{html.escape(anchor)}">{html.escape(text)}</a>')


def code(text: str) -> Html:
    """Text of a fixed width."""
    return Html(f"<code>{html.escape(text)}</code>")


def token(text: str) -> str:
    """A token, white space made visible."""
    return visible(text)
