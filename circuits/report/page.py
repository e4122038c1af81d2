"""One self-contained HTML page of figures and text, which opens without a network."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

_STYLE = """<style>
body { font: 14px/1.45 system-ui, sans-serif; color: #222; background: #fff; }
h2 { font-size: 18px; margin: 28px 0 6px; max-width: 950px; }
p { margin: 4px 0 8px; max-width: 950px; }
.loud { color: #cb181d; font-weight: bold; }
.note { color: #555; font-size: 13px; }
table { border-collapse: collapse; font-size: 13px; margin: 6px 0; }
th, td { text-align: left; padding: 2px 10px 2px 0; border-bottom: 1px solid #eee; }
.number { text-align: right; white-space: nowrap; }
</style>"""


class Parts:
    """The parts of a page in order: headings, figures, HTML.

    Headings are plain text. HTML is taken as it is: its maker escapes what is in it. plotly's
    script is in the page once, and not at all without figures.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._drawn = 0
        self.contents: list[tuple[int, str, str]] = []  # level, anchor and text of listed headings

    def heading(self, text: str, level: int = 2, anchor: str = "") -> None:
        """A heading; with an anchor it is one of the contents."""
        mark = f' id="{html.escape(anchor)}"' if anchor else ""
        self._parts.append(f"<h{level}{mark}>{html.escape(text)}</h{level}>")
        if anchor:
            self.contents.append((level, anchor, text))

    def add(self, content: go.Figure | str) -> None:
        """A figure, or HTML."""
        if isinstance(content, str):
            self._parts.append(content)
            return
        self._drawn += 1
        # Numbered, so that the same figures make the same page.
        part = content.to_html(
            include_plotlyjs=self._drawn == 1,
            full_html=False,
            div_id=f"figure-{self._drawn}",
            # No button that would send the figure to a server.
            config={"displaylogo": False, "showSendToCloud": False},
        )
        self._parts.append(f'<div class="figure">{part}</div>')

    def html(self) -> str:
        """All of them, without a page around them."""
        return "".join(self._parts)


def page(title: str, sections: Sequence[tuple[str, go.Figure | str]]) -> str:
    """A whole page: for each section its heading (none where it is empty) and a figure or HTML.

    Title and headings are plain text. HTML is taken as it is: its maker escapes what is in it.
    plotly's script is in the page once, and not at all without figures.
    """
    parts = Parts()
    for heading, content in sections:
        if heading:
            parts.heading(heading)
        parts.add(content)
    return document(title, _STYLE, parts.html())


def document(title: str, head: str, body: str) -> str:
    """HTML around a body. title: plain text; head: what else stands in the head, HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title>{head}</head><body>{body}</body></html>"
    )
