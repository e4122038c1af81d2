"""Circuits in the formats of other tools: Neuronpedia's graph JSON and GraphML.

The graph JSON is what circuit-tracer writes and Neuronpedia reads (schema version 1); schema.json
beside this file says what of it is written here, and is stricter than either. It was made for
transcoders, one a layer; a circuit of SAEs is put into it like this:

- Several sites of one layer share its row. The sites of a layer are numbered 0, 1, ... in forward
  order, and the index of a latent is `latent + number * stride`: with one site a layer (as in most
  circuits of residual streams) simply the latent. `stride` is a power of ten above every latent, at
  least 100,000; it and the sites of each layer stand in `metadata.generation_settings`.
- `node_id` is "layer_index_position"; `feature` of a latent is the Cantor pairing of layer and
  index, as readers expect it.
- Errors have index -1 - 2 * number and offsets -2 - 2 * number, in `feature` too, so that the error
  of a layer's only site is circuit-tracer's -1. Both have the type "mlp reconstruction error", the
  one type of nodes without a latent; the label says which it is.
- The metric is the one target logit. It is no token: its index is 0, and its "p=1.000" and
  `token_prob` 1, which readers insist on, are no probability.
- There are no embedding nodes, because a circuit says nothing of embeddings; scores that readers
  compute from them mean nothing.
- Positions are those of the template, with the first of the clean tokens; in circuits that are
  summed over positions all nodes stand at position 0 of two made-up tokens.
- `influence` is the share of the sum of |effect| that this node and all stronger ones have, as in
  circuit-tracer; `activation` the clean coefficient. The signed effect stands in the label,
  `clerp`.
- Groups are `qParams.supernodes`. Readers draw only those whose nodes are pinned: members of groups
  and the metric are, others are not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from circuits.graph.circuit import Circuit, CircuitNode, GraphError
from circuits.sites import Site

# What the two signs and the two runs are called; the record of a graph that is no circuit of prompt
# pairs has `words` of its own.
WORDS = {
    "positive": "toward clean",
    "negative": "away from clean",
    "first": "clean",
    "second": "corrupted",
}
_STRIDE = 100_000  # least distance between the latents of two sites of a layer
_MADE_UP = ["all", " positions"]  # two: readers leave out what is at most of the tokens
# What XML 1.0 cannot hold, escaped or not.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def metric_name(circuit: Circuit) -> str:
    """What the node on top is called."""
    return str(circuit.record.get("metric") or "metric").replace("_", " ")


def words_of(circuit: Circuit) -> dict[str, str]:
    """What its signs and its two runs are called."""
    return {**WORDS, **(circuit.record.get("words") or {})}


def check_finite(circuit: Circuit) -> None:
    """Raise `GraphError` where a number of a node, edge or profile is not finite: JSON has no way
    to write it."""

    def refuse(what: str, numbers: Iterable[float | None]) -> None:
        if any(number is not None and not math.isfinite(number) for number in numbers):
            raise GraphError(
                f"{what} has numbers that are not finite, which cannot be drawn or handed on. "
                "Leave it out, or find the circuit again."
            )

    for one in circuit.nodes:
        values = (one.effect, one.low, one.high, one.clean, one.corrupted, one.removal)
        refuse(f"node {one.node}", values)
    for at, edge in enumerate(circuit.edges):
        refuse(f"edge {at}", [edge.weight])
    for name, profile in circuit.profiles.items():
        refuse(f"the profile of {name}", [*profile.clean, *profile.corrupted])


def neuronpedia_schema() -> dict[str, Any]:
    """The JSON schema (draft 7) of what `to_neuronpedia` returns."""
    return json.loads((Path(__file__).parent / "schema.json").read_text(encoding="utf-8"))


def to_neuronpedia(
    circuit: Circuit,
    *,
    slug: str = "circuit",
    scan: str | None = None,
    source_set: str | None = None,
    n_layers: int | None = None,
) -> dict[str, Any]:
    """The graph JSON that circuit-tracer and Neuronpedia read; see the module's text for how.

    slug: name of the graph. scan: Neuronpedia's name of the model, by default the record's without
        its organisation. source_set: Neuronpedia's name of the set that all of the SAEs are from,
        such as "gemmascope-res-16k": it then shows what it knows of the latents. Without it,
        Neuronpedia takes latents of a model that it has transcoders for as theirs, so give it, or a
        scan that it does not know.
    n_layers: of the model, by default the record's, or as many as the last site needs.

    Raises `GraphError` for a source set when latents cannot keep their numbers, because their site
    is not the first of its layer, and for numbers that are not finite.
    """
    check_finite(circuit)
    places = _Places(circuit)
    if source_set is not None and places.shifted:
        raise GraphError(
            f"the latents of {', '.join(map(str, places.shifted))} have other numbers in the "
            "graph, as their layer has several sites: Neuronpedia would describe other latents. "
            "Leave source_set out, or find the circuit with one site a layer."
        )
    reached = max((site.layer for site in circuit.sites), default=0)
    layers = n_layers or circuit.record.get("n_layers") or reached + 1
    last = 0 if circuit.summed else max(len(circuit.tokens) - 1, 0)
    metric = metric_name(circuit)
    target = _logit(metric, layers, last)
    ids = [places.node_id(one) for one in circuit.nodes]
    shares = _cumulative(circuit)
    groups = {one.group: [] for one in circuit.nodes if one.group}
    for name, one in zip(ids, circuit.nodes, strict=True):
        if one.group:
            groups[one.group].append(name)
    pinned = [name for members in groups.values() for name in members]
    tokens = [token.clean[0] for token in circuit.tokens] or _MADE_UP
    metadata: dict[str, Any] = {
        "slug": slug,
        "scan": scan or str(circuit.record.get("model") or "unknown").rsplit("/", 1)[-1],
        "transcoder_list": _names(circuit),
        "prompt_tokens": tokens,
        "prompt": "".join(tokens),
        "node_threshold": 1.0,
        "schema_version": 1,
        "generation_settings": places.settings(circuit),
    }
    if source_set is not None:
        metadata["feature_details"] = {"neuronpedia_source_set": source_set}
    return {
        "metadata": metadata,
        "qParams": {
            "pinnedIds": [*pinned, target["node_id"]] if pinned else [],
            "supernodes": [[name, *members] for name, members in groups.items()],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            *(
                places.node(one, metric, share)
                for one, share in zip(circuit.nodes, shares, strict=True)
            ),
            target,
        ],
        "links": [
            {
                "source": ids[edge.source],
                "target": target["node_id"] if edge.target is None else ids[edge.target],
                "weight": float(edge.weight),
            }
            for edge in circuit.edges
        ],
    }


class _Places:
    """Numbers of a circuit's nodes in the graph JSON."""

    def __init__(self, circuit: Circuit) -> None:
        by_layer: dict[int, list[Site]] = {}
        for site in circuit.sites:
            by_layer.setdefault(site.layer, []).append(site)
        self._number = {site: i for sites in by_layer.values() for i, site in enumerate(sites)}
        self._by_layer = by_layer
        largest = max((one.node.latent for one in circuit.nodes), default=0)
        self.stride = max(_STRIDE, 10 ** len(str(largest)))
        latents = {one.node.site for one in circuit.nodes if one.node.role == "latent"}
        self.shifted = [site for site in circuit.sites if site in latents and self._number[site]]

    def index(self, one: CircuitNode) -> int:
        """Of a latent, or below zero of an error or offset; one of a kind in its layer."""
        number = self._number[one.node.site]
        if one.node.role == "latent":
            return one.node.latent + number * self.stride
        return -2 * number - (1 if one.node.role == "error" else 2)

    def node_id(self, one: CircuitNode) -> str:
        return f"{one.node.site.layer}_{self.index(one)}_{one.node.position or 0}"

    def node(self, one: CircuitNode, metric: str, share: float) -> dict[str, Any]:
        layer, index, position = one.node.site.layer, self.index(one), one.node.position or 0
        is_latent = one.node.role == "latent"
        kind = f"latent {one.node.latent}" if is_latent else one.node.role
        label = f"{one.node.site} {kind}, {one.effect:+.3g} {metric}"
        return {
            "node_id": self.node_id(one),
            "feature": _cantor(layer, index) if is_latent else index,
            "layer": str(layer),
            "ctx_idx": position,
            "feature_type": "cross layer transcoder" if is_latent else "mlp reconstruction error",
            "token_prob": 0.0,
            "is_target_logit": False,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"{layer}_{index}-{0 if is_latent else position}",
            "clerp": f"{label}: {one.label}" if one.label else label,
            "influence": share,
            "activation": float(one.clean),
        }

    def settings(self, circuit: Circuit) -> dict[str, Any]:
        several = {layer: sites for layer, sites in self._by_layer.items() if len(sites) > 1}
        record = circuit.record
        kept = ("task", "contrast", "method", "reference", "direction", "model_sha256")
        return {
            "generator": "sae-circuits",
            "sign": f"positive = {words_of(circuit)['positive']}",
            "summed_over_positions": circuit.summed,
            "stride": self.stride,
            "sites_of_layers": {str(k): [str(s) for s in sites] for k, sites in several.items()},
            **{name: str(record[name]) for name in kept if record.get(name) is not None},
        }


def _cantor(layer: int, index: int) -> int:
    """Cantor's pairing of two numbers from 0 on, with which Neuronpedia names latents."""
    diagonal = layer + index
    return diagonal * (diagonal + 1) // 2 + index


def _logit(metric: str, n_layers: int, position: int) -> dict[str, Any]:
    layer = n_layers + 1
    return {
        "node_id": f"{layer}_0_{position}",
        "feature": 0,
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": "logit",
        "token_prob": 1.0,
        "is_target_logit": True,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"L_0-{position}",
        "clerp": f'Output "{metric}" (p=1.000)',
        "influence": None,
        "activation": None,
    }


def _cumulative(circuit: Circuit) -> list[float]:
    """For each node the share of the sum of |effect| of it and all stronger ones together."""
    sizes = [abs(one.effect) for one in circuit.nodes]
    total = sum(sizes) or 1.0
    shares, before = [0.0] * len(sizes), 0.0
    for at in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        before += sizes[at]
        shares[at] = min(1.0, before / total)
    return shares


def _names(circuit: Circuit) -> list[str]:
    saes = circuit.record.get("saes")
    if not isinstance(saes, list | tuple):
        return []
    return [str(one["name"]) for one in saes if isinstance(one, Mapping) and one.get("name")]


def to_graphml(circuit: Circuit) -> str:
    """The circuit as GraphML: nodes n0, n1, ... in the circuit's order and "metric", edges with
    their weights, all attributes typed; those that are not known are left out. Effects, weights:
    positive toward clean. What XML cannot hold is written as \\xNN or \\uNNNN. Raises `GraphError`
    for numbers that are not finite."""
    check_finite(circuit)
    root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    nodes = [_graphml_node(one, circuit) for one in circuit.nodes]
    nodes.append({"role": "metric", "label": metric_name(circuit)})
    for name, kind in _NODE_KEYS.items():
        _key(root, "node", name, kind)
    _key(root, "edge", "weight", "double")
    facts = {
        name: circuit.record[name]
        for name in ("model", "task", "contrast", "metric", "method", "reference")
        if circuit.record.get(name) is not None
    } | {"template": circuit.template, "summed": circuit.summed}
    facts["sign"] = f"positive = {words_of(circuit)['positive']}"
    for name, value in facts.items():
        _key(root, "graph", name, "boolean" if isinstance(value, bool) else "string")
    graph = ElementTree.SubElement(root, "graph", id="circuit", edgedefault="directed")
    _data(graph, "graph", facts.items())
    names = [f"n{i}" for i in range(len(circuit.nodes))]
    for name, values in zip([*names, "metric"], nodes, strict=True):
        _data(ElementTree.SubElement(graph, "node", id=name), "node", values.items())
    for edge in circuit.edges:
        target = "metric" if edge.target is None else names[edge.target]
        made = ElementTree.SubElement(graph, "edge", source=names[edge.source], target=target)
        _data(made, "edge", [("weight", float(edge.weight))])
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True).decode() + "\n"


_NODE_KEYS = {
    **dict.fromkeys(("role", "site", "kind", "token", "token_corrupted", "name"), "string"),
    **dict.fromkeys(("label", "group"), "string"),
    **dict.fromkeys(("layer", "latent", "position"), "int"),
    **dict.fromkeys(("effect", "low", "high", "clean", "corrupted", "removal"), "double"),
}


def _graphml_node(one: CircuitNode, circuit: Circuit) -> dict[str, Any]:
    node = one.node
    values: dict[str, Any] = {
        "role": node.role,
        "site": str(node.site),
        "kind": node.site.kind,
        "layer": node.site.layer,
        "latent": node.latent if node.role == "latent" else None,
        "position": node.position,
        "label": one.label or None,
        "group": one.group or None,
    }
    if node.position is not None:
        token = circuit.tokens[node.position]
        values["token"] = "|".join(token.clean)
        values["token_corrupted"] = "|".join(token.corrupted)
        values["name"] = token.name or None
    for name in ("effect", "low", "high", "clean", "corrupted", "removal"):
        number = getattr(one, name)
        values[name] = None if number is None else float(number)
    return {name: value for name, value in values.items() if value is not None}


def _key(root: ElementTree.Element, where: str, name: str, kind: str) -> None:
    given = {"id": f"{where}_{name}", "for": where, "attr.name": name, "attr.type": kind}
    ElementTree.SubElement(root, "key", given)


def _data(parent: ElementTree.Element, where: str, values: Iterable[tuple[str, Any]]) -> None:
    for name, value in values:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        made = ElementTree.SubElement(parent, "data", key=f"{where}_{name}")
        made.text = _NOT_XML.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
