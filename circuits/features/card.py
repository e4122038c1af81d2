"""A latent's card: its strongest examples highlighted, its activations, its tokens."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuits.features.describe import describe
from circuits.tokens import visible

_STYLE = """<style>
.card { font: 14px/1.45 system-ui, sans-serif; color: #222; max-width: 950px; }
.card h2 { font-size: 18px; margin: 12px 0 2px; }
.card .facts { color: #555; margin: 0 0 10px; }
.card .example { font: 12.5px/1.7 ui-monospace, monospace; white-space: pre-wrap; margin: 3px 0;
  padding: 2px 6px; border-left: 3px solid #ddd; }
.card .example b { font: 11px system-ui, sans-serif; color: #777; margin-right: 8px; }
.card .peak { outline: 1.5px solid #08519c; }
</style>"""
_COLOUR = "33, 113, 181"  # blue: activations are never negative


@dataclass(frozen=True)
class Card:
    """One latent. row: of `FeatureBank.latents`; examples: of `FeatureBank.examples`, by rank."""

    row: dict[str, Any]
    examples: list[dict[str, Any]]
    vocabulary: dict[int, str]
    record: dict[str, Any]

    @property
    def title(self) -> str:
        """Site, latent and model."""
        return f"latent {self.row['latent']} at {self.row['site']} of {self.record['model']}"

    @property
    def description(self) -> str:
        """One line about it."""
        return describe(self.row, self.vocabulary, self.record["positions"])

    def contexts_html(self) -> str:
        """Title, facts and highlighted examples."""
        row = self.row
        facts = f"never active at {self.record['positions']:,} positions"
        if not row["dead"]:
            facts = (
                f"active at {row['rate']:.3%} of {self.record['positions']:,} positions; mean "
                f"{row['mean']:.3g} when active, largest {row['max']:.3g}"
            )
        link = _neuronpedia_link(self)
        blocks = "".join(self._example(one) for one in self.examples)
        return (
            f'{_STYLE}<div class="card"><h2>{html.escape(self.title)}</h2>'
            f'<p class="facts">{html.escape(self.description)}<br>{facts}{link}</p>{blocks}</div>'
        )

    def _example(self, example: dict[str, Any]) -> str:
        peak, spans = self.record["window"][0], []
        pairs = zip(example["tokens"], example["activations"], strict=True)
        for i, (token, activation) in enumerate(pairs):
            if token < 0:
                continue
            text = html.escape(visible(self.vocabulary[int(token)]).replace("\u2423", " "))
            strength = min(1.0, float(activation) / float(self.row["max"])) * 0.85
            mark = ' class="peak"' if i == peak else ""
            spans.append(
                f'<span{mark} style="background: rgba({_COLOUR}, {strength:.2f})" '
                f'title="{float(activation):.3g}">{text}</span>'
            )
        return f'<div class="example"><b>{example["value"]:.3g}</b>{"".join(spans)}</div>'

    def figure(self) -> Any:
        """Histogram of activations, and the tokens its decoder row raises and lowers (plotly)."""
        from circuits.plots import latent_figure

        return latent_figure(self.row, self.vocabulary, self.record)

    def html(self) -> str:
        """A page that opens without a network."""
        from circuits.report import page

        return page(self.title, [("", self.contexts_html()), ("", self.figure())])

    def save(self, path: str | Path) -> Path:
        """Write the page."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.html(), encoding="utf-8")
        return target

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(HTML(self.contexts_html()))
        display(self.figure())


def _neuronpedia_link(card: Card) -> str:
    from circuits.features.neuronpedia import page

    ids = {one["site"]: one.get("neuronpedia") for one in card.record["saes"]}
    known = ids.get(card.row["site"])
    if not known:
        return ""
    return f'; <a href="{html.escape(page(known, int(card.row["latent"])))}">Neuronpedia</a>'
