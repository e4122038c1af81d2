"""Circuits and a feature bank made by hand, for tests of what is drawn and written of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pandas as pd

from circuits.features import FeatureBank
from circuits.graph import Circuit, CircuitNode, Edge, Node, Profile, Token
from circuits.sites import Site, forward_order
from tests.chromium import Page

SITES = forward_order(
    Site.parse(name) for name in ("resid_post.6", "resid_post.12", "z.22", "mlp_out.22")
)
RECORD: dict[str, Any] = {
    "model": "org/tiny-model",
    "task": "error_type",
    "contrast": "ZeroDivisionError/TypeError",
    "metric": "logit_difference",
    "method": "circuit",
    "attribution": "ig",
    "n_pairs": 12,
    "reference": "mean",
    "seed": 2**60 + 1,  # more digits than a number in JavaScript keeps
    "saes": [{"site": str(site), "name": f"made/{site}", "sha256": "ab" * 32} for site in SITES],
}


def tokens(count: int) -> tuple[Token, ...]:
    """Words; position 1 differs between the runs and has a name, position 2 between the pairs."""
    found = [Token((f" w{i}",), (f" w{i}",)) for i in range(count)]
    found[1] = Token((" /",), (" -",), "op")
    found[2] = Token(("4", "5", "6"), ("4", "5", "6"))
    return tuple(found)


def node(site: str, latent: int, position: int | None, effect: float, **more: Any) -> CircuitNode:
    """A latent, or with -1 an error."""
    role = "latent" if latent >= 0 else "error"
    return CircuitNode(Node(Site.parse(site), role, latent, position), effect, **more)


def small() -> Circuit:
    """Six nodes of all kinds at four tokens, seven edges."""
    nodes = (
        node("resid_post.12", 3, 1, 0.5, low=0.4, high=0.6, clean=7.5, removal=0.125, label="on /"),
        node("resid_post.6", -1, 1, -0.3, clean=2.0, corrupted=3.0),
        node("resid_post.6", 7, 1, 0.2, low=0.1, high=0.3, clean=1.0, label="a label"),
        node("z.22", 3, 3, 0.125, clean=0.5),
        node("mlp_out.22", 3, 3, -0.1, corrupted=0.5),
        replace(
            node("mlp_out.22", 0, 3, 0.05), node=Node(Site.parse("mlp_out.22"), "offset", -1, 3)
        ),
    )
    weights = [(0, 3, 0.4), (1, 0, -0.3), (2, 0, 0.2), (3, None, 0.1), (4, None, -0.05)]
    edges = [Edge(*one) for one in [*weights, (0, 4, -0.02), (2, 3, 0.01)]]
    profiles = {
        "resid_post.12/3": Profile((0.0, 7.5, 0.5, 0.25), (0.0, 0.0, 0.5, 0.0)),
        "resid_post.6/7": Profile((0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
    }
    return Circuit(nodes, tuple(edges), SITES, tokens(4), "made", False, RECORD, profiles)


def summed() -> Circuit:
    """`small` with its nodes at all positions."""
    circuit = small()
    nodes = [replace(one, node=replace(one.node, position=None)) for one in circuit.nodes]
    return replace(circuit, nodes=tuple(nodes), tokens=(), summed=True, profiles={})


def large(n_nodes: int = 500, n_edges: int = 5000, length: int = 20, seed: int = 0) -> Circuit:
    """Random nodes, most of them at the last token, and random edges between them."""
    draw = random.Random(seed)
    sites = forward_order(Site(layer, "resid_post") for layer in range(8))
    places: dict[tuple[Site, int, int], float] = {}
    while len(places) < n_nodes:
        position = length - 1 if draw.random() < 0.4 else draw.randrange(length)
        latent = -1 if draw.random() < 0.1 else draw.randrange(4096)
        places[draw.choice(sites), latent, position] = draw.gauss(0, 1) ** 3
    nodes = [node(str(site), k, p, effect) for (site, k, p), effect in places.items()]
    nodes.sort(key=lambda one: -abs(one.effect))
    joined: dict[tuple[int, int | None], float] = {}
    while len(joined) < n_edges:
        source, target = draw.randrange(n_nodes), draw.randrange(n_nodes)
        if nodes[source].node.site.layer < nodes[target].node.site.layer:
            joined[source, target] = draw.gauss(0, 1) ** 3
        elif nodes[source].node.site == sites[-1]:
            joined[source, None] = draw.gauss(0, 1)
    edges = [Edge(source, target, weight) for (source, target), weight in joined.items()]
    edges.sort(key=lambda edge: -abs(edge.weight))
    return Circuit(tuple(nodes), tuple(edges), sites, tokens(length), "made", False, RECORD)


def hostile() -> Circuit:
    """`small` with tokens, labels and groups that would break a page that trusts them."""
    circuit = small()
    ends = "</script><script>window.broken = 1</script>"
    texts = [ends, "<!-- <script x", "</script \u2028\u2029\"'&amp;", "\x00\x1b\ud800"]
    nodes = list(circuit.nodes)
    nodes[0] = replace(nodes[0], label=f"{ends} <img src=x onerror='window.broken = 1'>")
    nodes[1] = replace(nodes[1], group=ends)
    return replace(
        circuit,
        nodes=tuple(nodes),
        tokens=tuple(Token((text,), (text + "!",), ends) for text in texts),
        template=ends,
        record={**RECORD, "task": ends, "metric": ends},
    )


def bank() -> FeatureBank:
    """A bank with the two latents of `small` that have profiles."""
    rows, examples = [], []
    for site, latent in (("resid_post.12", 3), ("resid_post.6", 7)):
        rows.append(
            {
                "site": site,
                "latent": latent,
                "active": 50,
                "rate": 0.05,
                "mean": 2.5,
                "max": 8.0,
                "dead": False,
                "at": [0, 1],
                "at_count": [30, 10],
                "before": [2],
                "before_count": [25],
                "raised": [3, 4],
                "raised_by": [1.25, 0.5],
                "lowered": [5],
                "lowered_by": [-0.75],
            }
        )
        for rank in range(2):
            examples.append(
                {
                    "site": site,
                    "latent": latent,
                    "rank": rank,
                    "value": 8.0 - rank,
                    # One token before the context's beginning: there is none.
                    "tokens": [-1, 2, 0, 1],
                    "activations": [0.0, 2.0, 8.0 - rank, 0.0],
                }
            )
    words = {0: " /", 1: ")", 2: "1", 3: "Zero", 4: " division", 5: "</script>"}
    record = {**RECORD, "positions": 1000, "window": [2, 1]}
    return FeatureBank(pd.DataFrame(rows), pd.DataFrame(examples), record, words)


def nothing() -> Circuit:
    """`small` without nodes."""
    return replace(small(), nodes=(), edges=(), profiles={})


def kinds() -> dict[str, Circuit]:
    """One of every kind that a page or a file can be asked for."""
    return {
        "small": small(),
        "summed": summed(),
        "hostile": hostile(),
        "grouped": small().grouped({"pair": [one.node for one in small().nodes[:2]]}),
        "no edges": replace(small(), edges=()),
        "no nodes": nothing(),
        "no tokens": replace(nothing(), tokens=()),
        "no sites": replace(nothing(), tokens=(), sites=()),
        "bare": replace(small(), record={}),
    }


def unit(at: int) -> str:
    """The selector of a node's mark on a page."""
    return f'[data-id="node:{at}"]'


def boxes(page: Page) -> dict[str, dict[str, float]]:
    """Where on a page the marks of all nodes, groups and the metric are."""
    return page.run(
        "Object.fromEntries([...document.querySelectorAll('.unit')].map((made) => {"
        "const mark = made.querySelector('.pill, .mark').getBoundingClientRect();"
        "return [made.dataset.id, {x: mark.x, y: mark.y, w: mark.width, h: mark.height}]; }))"
    )
