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
</style>"""


def page(title: str, sections: Sequence[tuple[str, go.Figure | str]]) -> str:
    """A whole page: for each section its heading (none where it is empty) and a figure or HTML.

    Title and headings are plain text. HTML is taken as it is: its maker escapes what is in it.
    plotly's script is in the page once, and not at all without figures.
    """
    parts, drawn = [], 0
    for heading, content in sections:
        if heading:
            parts.append(f"<h2>{html.escape(heading)}</h2>")
        if isinstance(content, str):
            parts.append(content)
            continue
        drawn += 1
        # Numbered, so that the same figures make the same page.
        part = content.to_html(
            include_plotlyjs=drawn == 1,
            full_html=False,
            div_id=f"figure-{drawn}",
            # No button that would send the figure to a server.
            config={"displaylogo": False, "showSendToCloud": False},
        )
        parts.append(part)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title>{_STYLE}</head><body>{''.join(parts)}</body></html>"
    )
