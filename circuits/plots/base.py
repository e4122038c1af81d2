"""What the figures share: token labels, ticks, colours, width.

Diverging scales have zero in the middle, red below and blue above; the title states the sign.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from circuits.errors import CircuitsError
from circuits.prompts import Alignment, PromptPairs
from circuits.tokens import visible as plain

DIVERGING = "RdBu"  # red - white - blue
WIDTH = 950  # pixels: that of a notebook
BLUE, RED = "#2171b5", "#cb181d"
SMALLEST_FONT = 9.0
_LINE = 160  # characters of 12 pixels that fit into the width
TOKEN_AXIS = (
    "token (clean, below it corrupted where they differ; \u2423 is a space, \u21b5 a new line)"
)
_BUTTONS = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]
SIGN = {
    "denoising": "positive (blue) = toward clean",
    "noising": "positive (blue) = toward clean, lost by the patch",
}


class PlotError(CircuitsError):
    """A figure that a result has no data for."""


def visible(token: str) -> str:
    """A token with its white space made visible and nothing that HTML would swallow."""
    return plain(token).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _alternatives(tokens: tuple[str, ...]) -> str:
    """One token as it is, two with a bar, more as the first and an ellipsis."""
    shown = [visible(t) for t in tokens]
    return "|".join(shown) if len(shown) <= 2 else f"{shown[0]}|\u2026"


def token_labels(
    tokens: list[tuple[tuple[str, ...], tuple[str, ...]]], named: dict[int, str]
) -> list[str]:
    """Axis labels: the clean token, below it the corrupted one where they differ, below that the
    position's name."""
    labels = []
    for position, (clean, corrupted) in enumerate(tokens):
        second = "" if clean == corrupted else f"<b>{_alternatives(corrupted)}</b>"
        first = _alternatives(clean)
        first = f"<b>{first}</b>" if second else first
        name = f"<i>{named[position]}</i>" if position in named else ""
        lines = [first, second or " ", name]
        while lines and not lines[-1].strip():
            lines.pop()
        labels.append("<br>".join(lines))
    return labels


def in_line(label: str) -> str:
    """An axis label on one line."""
    return " \u00b7 ".join(part for part in label.split("<br>") if part.strip())


def first_difference(prompts: PromptPairs, alignment: Alignment) -> int:
    """The first position at which some of the pairs differ."""
    pairs = [(prompts.clean_tokens[i], prompts.corrupted_tokens[i]) for i in alignment.pairs]
    return min(next(p for p in range(alignment.length) if c[p] != k[p]) for c, k in pairs)


def ticks(labels: list[str], room: int = WIDTH - 160) -> tuple[list[str], int, float]:
    """Labels, angle and font size: upright in a size at which neighbours do not touch, or slanted
    on one line when there are too many. room: the width of the axis in pixels."""
    widths = [max(len(_without_tags(line)) for line in label.split("<br>")) for label in labels]
    closest = max((a + b) / 2 for a, b in zip(widths, [*widths[1:], 0], strict=True))
    each = room / len(labels) - 2
    size = min(12.0, each / (0.6 * closest))  # a character is 0.6 of its size wide
    if size >= SMALLEST_FONT:
        return labels, 0, size
    return [in_line(label) for label in labels], -60, SMALLEST_FONT


def token_axis(labels: list[str], room: int) -> tuple[list[str], int, float, float]:
    """As `ticks`, slanted ones as large as neighbours allow; and the pixels they take downwards.

    Where there is no room for all of them, named ones go first, then those that differ.
    """
    shown, angle, size = ticks(labels, room)
    if not angle:
        return shown, 0, size, 1.3 * size * max(label.count("<br>") + 1 for label in shown)
    size = min(12.0, max(SMALLEST_FONT, 0.6 * room / len(labels)))
    shown = _spaced(shown, math.ceil(1.2 * size / (room / len(labels))))
    longest = max(len(_without_tags(label)) for label in shown)
    return shown, angle, size, 0.6 * size * longest * abs(math.sin(math.radians(angle))) + size


def _spaced(labels: list[str], apart: int) -> list[str]:
    """Labels with some left out, so that those shown are at least `apart` places apart."""
    kept: list[int] = []
    # Named positions have italics, tokens that differ are bold.
    for i in sorted(
        range(len(labels)), key=lambda i: ("<i>" not in labels[i], "<" not in labels[i])
    ):
        if all(abs(i - k) >= apart for k in kept):
            kept.append(i)
    return [label if i in kept else "" for i, label in enumerate(labels)]


def _without_tags(label: str) -> str:
    return html.unescape(re.sub("</?[bi]>", "", label))


def title(figure: Any, bold: str, rest: str, lines: Sequence[str], loud: str | None = None) -> int:
    """Put a title above the figure and return the height it takes in pixels.

    bold, rest: its large line; lines: small ones below, broken where they are too long; loud: what
    must not be missed, in red. All are plain text.
    """
    small = [part for line in lines for part in textwrap.wrap(line, _LINE, break_on_hyphens=False)]
    shown = [f"<b>{html.escape(bold, quote=False)}</b>{html.escape(rest, quote=False)}"]
    shown += [_span(part, "#444") for part in small]
    warned = textwrap.wrap(loud or "", _LINE - 10)
    shown += [f"<b>{_span(part, RED)}</b>" for part in warned]
    figure.update_layout(
        title={
            "text": "<br>".join(shown),
            "x": 0.01,
            "y": 1,
            "yanchor": "top",
            "yref": "container",
            "pad": {"t": 12},
            "font": {"size": 15},
        },
        # One whose width is known on every system, and buttons that do not cover the title.
        font={"family": "Arial, Helvetica, sans-serif"},
        modebar={"orientation": "v", "remove": _BUTTONS},
    )
    return 40 + 20 * (len(small) + len(warned))


def _span(text: str, colour: str) -> str:
    text = html.escape(text, quote=False)
    return f'<span style="font-size:12px;color:{colour}">{text}</span>'
