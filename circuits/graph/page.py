"""A circuit as a page: one HTML file that opens without a network.

Tokens go across, sites up in forward order, the metric on top. Edges lead up, or, through thoughts
that are made while the model runs, to later tokens at any height. Nodes are coloured by the sign of
their effect (blue: positive, toward clean; red: negative) and sized by it, errors are hatched
diamonds. The page is page.html with its style and scripts, which are plain files beside this one,
and one piece of JSON: the circuit as its file has it, and the cards of its latents.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from circuits.features.bank import FeatureBank
from circuits.graph.cards import cards_of
from circuits.graph.circuit import Circuit
from circuits.graph.formats import check_finite, metric_name, words_of
from circuits.patch.ability import forced_line
from circuits.tokens import visible

# In the order in which they use one another.
_SCRIPTS = ("page-model.js", "page-layout.js", "page-draw.js", "page-panel.js", "page.js")
_HERE = Path(__file__).parent


def graph_page(
    circuit: Circuit,
    bank: FeatureBank | None = None,
    title: str = "circuit",
    drawn: int | None = None,
) -> str:
    """The whole page as HTML, with everything it needs inside.

    bank: where the cards of latents come from; without one the page says how to make one.
    title: plain text. drawn: how many of the nodes are drawn, the first ones; by default all. The
    others are in the file that the page saves, all the same.

    Effects and weights are in units of the metric, positive toward clean.
    Raises `GraphError` where a number of a node, edge or profile is not finite, and where the bank
    is of other SAEs than the circuit.
    """
    check_finite(circuit)
    shown = circuit if drawn is None else circuit.strongest(drawn)
    told = {
        "file": _file_parts(circuit),
        "groups": [one.group for one in circuit.nodes],
        "drawn": len(shown),
        "record": json.dumps(circuit.record),
        "metric": metric_name(circuit),
        "words": words_of(circuit),
        "tokens": [
            [[visible(t) for t in token.clean], [visible(t) for t in token.corrupted]]
            for token in circuit.tokens
        ],
        "bank": cards_of(shown, bank) if bank is not None else None,
    }
    parts = {
        "title": html.escape(title),
        "style": _file("page.css"),
        "facts": "".join(f"<p>{line}</p>" for line in _facts(shown, len(circuit))),
        "data": _as_script(told),
        "script": "\n".join(_file(name) for name in _SCRIPTS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html"))


def graph_fragment(
    circuit: Circuit,
    bank: FeatureBank | None = None,
    title: str = "circuit",
    height: int = 900,
    drawn: int | None = None,
) -> str:
    """The page as a part of another one: a frame with the whole page in it, so that its names and
    styles meet no others. height: in pixels. All else, errors too, is as for `graph_page`."""
    return (
        f'<iframe title="{html.escape(title)}" style="width: 100%; height: {height}px; border: 0" '
        f'srcdoc="{html.escape(graph_page(circuit, bank, title, drawn))}"></iframe>'
    )


def _file_parts(circuit: Circuit) -> list[str]:
    """The text of the circuit's file, in parts: between them belong the groups of the nodes and
    last the record. So the page saves all else as it was written, digit by digit."""
    flat = circuit.as_json()
    mark = "@"
    while mark in json.dumps(flat):
        mark += "@"
    for node in flat["nodes"]:
        node["group"] = mark
    return json.dumps({**flat, "record": mark}, indent=1).split(json.dumps(mark))


def _as_script(value: Any) -> str:
    """JSON that may stand inside of a script element: it has no character that HTML or JavaScript
    reads as anything else, whatever the tokens are."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _facts(circuit: Circuit, nodes: int) -> list[str]:
    """Lines of HTML below the title: what it was found on and how, and what must not be missed.
    nodes: how many it has with those that are not drawn."""
    record = circuit.record
    found = [
        ("task", record.get("task")),
        ("contrast", record.get("contrast")),
        ("template", circuit.template),
        ("model", record.get("model")),
        ("pairs", _pairs(record)),
        ("method", _method(record)),
        ("direction", record.get("direction")),
        ("thoughts", record.get("thoughts")),
        ("reference", _reference(record)),
    ]
    shown = [f"{name} <b>{html.escape(str(value))}</b>" for name, value in found if value]
    forced = forced_line(record) if record.get("forced") else None
    loud = [forced, (record.get("saes_keep") or {}).get("gate")]
    lines = [" &middot; ".join(shown), _counts(circuit, nodes)]
    lines += [f'<span class="loud">{html.escape(str(line))}</span>' for line in loud if line]
    return [line for line in lines if line]


def _pairs(record: Mapping[str, Any]) -> Any:
    pairs = record.get("n_pairs", record.get("pairs"))
    return len(pairs) if isinstance(pairs, list | tuple) else pairs


def _method(record: Mapping[str, Any]) -> Any:
    names = {"atp": "attribution patching", "ig": "integrated gradients", "exact": "exact patching"}
    estimate = record.get("attribution")
    return names.get(str(estimate), estimate) or record.get("method")


def _reference(record: Mapping[str, Any]) -> Any:
    names = record.get("reference") or record.get("references")
    return ", ".join(map(str, names)) if isinstance(names, list | tuple) else names


def _counts(circuit: Circuit, nodes: int) -> str:
    roles = [one.node.role for one in circuit.nodes]
    parts = [
        f"{roles.count(role)} {role if roles.count(role) == 1 else role + 's'}"
        for role in ("latent", "error", "offset")
        if role in roles
    ]
    # The record of a circuit whose weaker nodes were left out still counts them.
    total = max(nodes, int(circuit.record.get("nodes") or 0))
    left = f" (the strongest {len(circuit):,} of {total:,} nodes)" if total > len(circuit) else ""
    kinds = (" + ".join(parts) or "no nodes") + left
    where = ", summed over positions" if circuit.summed else ""
    metric = html.escape(metric_name(circuit))
    words = {name: html.escape(word) for name, word in words_of(circuit).items()}
    sign = f"positive (blue) = {words['positive']}, negative (red) = {words['negative']}"
    return f"{kinds}{where}, {len(circuit.edges):,} edges &middot; in units of the {metric}: {sign}"
