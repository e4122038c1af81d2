"""Circuits in other tools' formats."""

import json
import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import jsonschema
import networkx
import pytest

from circuits.graph import Circuit, Edge, GraphError, Token
from circuits.graph.formats import neuronpedia_schema, to_graphml, to_neuronpedia
from tests import graphs

CIRCUITS = graphs.kinds() | {"large": graphs.large(60, 200)}


@pytest.mark.parametrize("name", CIRCUITS)
def test_graph_json_fits_its_schema_and_itself(name: str) -> None:
    circuit = CIRCUITS[name]
    graph = json.loads(json.dumps(to_neuronpedia(circuit), allow_nan=False))
    jsonschema.validate(graph, neuronpedia_schema(), jsonschema.Draft7Validator)
    nodes = {one["node_id"]: one for one in graph["nodes"]}
    assert len(nodes) == len(circuit) + 1
    assert len({one["jsNodeId"] for one in graph["nodes"] if one["feature"] < 0}) == sum(
        one.node.role != "latent" for one in circuit.nodes
    )
    assert [one["is_target_logit"] for one in graph["nodes"]] == [False] * len(circuit) + [True]
    assert len(graph["links"]) == len(circuit.edges)
    for link in graph["links"]:
        source, target = nodes[link["source"]], nodes[link["target"]]
        assert (int(source["layer"]), source["ctx_idx"]) <= (int(target["layer"]), math.inf)
    for one in graph["nodes"]:
        assert one["ctx_idx"] < len(graph["metadata"]["prompt_tokens"])
        assert one["node_id"].split("_")[::2] == [one["layer"], str(one["ctx_idx"])]
    for _, *members in graph["qParams"]["supernodes"]:
        assert set(members) <= set(graph["qParams"]["pinnedIds"]) & nodes.keys()


def test_the_schema_is_a_schema_and_refuses_other_things() -> None:
    schema = neuronpedia_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    graph = to_neuronpedia(graphs.small())
    assert jsonschema.Draft7Validator(schema).is_valid(graph)
    for change in (
        {"layer": 6},
        {"feature": "7"},
        {"feature": -1},  # a latent's
        {"feature_type": "head"},
        {"is_target_logit": True},
        {"colour": "red"},
    ):
        nodes = [graph["nodes"][0] | change, *graph["nodes"][1:]]
        assert not jsonschema.Draft7Validator(schema).is_valid(graph | {"nodes": nodes})
    assert not jsonschema.Draft7Validator(schema).is_valid(graph | {"links": [{"source": "a"}]})
    target = graph["nodes"][-1] | {"clerp": "Output"}
    assert not jsonschema.Draft7Validator(schema).is_valid(graph | {"nodes": [target]})


def _unpaired(feature: int) -> tuple[int, int]:
    """Layer and index as Neuronpedia's page reads them, in floating point."""
    diagonal = math.floor((math.sqrt(8 * feature + 1) - 1) / 2)
    index = feature - (diagonal * diagonal + diagonal) // 2
    return diagonal - index, index


def test_nodes_are_numbered_as_the_readers_expect() -> None:
    graph = to_neuronpedia(graphs.small())
    ids = [one["node_id"] for one in graph["nodes"]]
    # Two sites at layer 22: z is the first, mlp_out the second. Their latents 3 are two nodes.
    assert ids == ["12_3_1", "6_-1_1", "6_7_1", "22_3_3", "22_100003_3", "22_-4_3", "24_0_3"]
    settings = graph["metadata"]["generation_settings"]
    assert settings["sites_of_layers"] == {"22": ["z.22", "mlp_out.22"]}
    assert settings["stride"] == 100_000
    kinds = [one["feature_type"] for one in graph["nodes"]]
    assert kinds[1] == kinds[5] == "mlp reconstruction error"
    assert kinds[0] == "cross layer transcoder" and kinds[6] == "logit"
    for one, kind in zip(graph["nodes"], kinds, strict=True):
        layer, index, _ = one["node_id"].split("_")
        if kind == "cross layer transcoder":
            assert _unpaired(one["feature"]) == (int(layer), int(index))
    wide = replace(
        graphs.small(),
        nodes=(graphs.node("mlp_out.22", 2**20, 3, 0.5), graphs.node("z.22", 2**20, 3, 0.5)),
        edges=(),
    )
    features = [one["feature"] for one in to_neuronpedia(wide)["nodes"][:2]]
    assert [_unpaired(feature) for feature in features] == [(22, 2**20 + 10**7), (22, 2**20)]


def test_what_stands_at_a_node() -> None:
    graph = to_neuronpedia(graphs.small(), slug="mine")
    metadata, first, target = graph["metadata"], graph["nodes"][0], graph["nodes"][-1]
    assert (metadata["slug"], metadata["scan"]) == ("mine", "tiny-model")
    assert metadata["prompt_tokens"] == [" w0", " /", "4", " w3"]
    assert metadata["prompt"] == " w0 /4 w3"
    assert metadata["transcoder_list"][0] == "made/resid_post.6"
    assert first["clerp"] == "resid_post.12 latent 3, +0.5 logit difference: on /"
    assert first["activation"] == 7.5
    assert target["clerp"] == 'Output "logit difference" (p=1.000)'
    # Strongest first: 0.5 of 1.275, then 0.8 of it, ...; all of it at the weakest.
    shares = [one["influence"] for one in graph["nodes"][:-1]]
    assert shares[:2] == pytest.approx([0.5 / 1.275, 0.8 / 1.275])
    assert shares[-1] == pytest.approx(1.0) and max(shares) <= 1.0
    assert to_neuronpedia(graphs.small(), n_layers=30)["nodes"][-1]["layer"] == "31"
    assert graph["links"][0] == {"source": "12_3_1", "target": "22_3_3", "weight": 0.4}
    assert graph["links"][3]["target"] == target["node_id"]


def test_groups_are_supernodes_whose_nodes_are_pinned() -> None:
    graph = to_neuronpedia(CIRCUITS["grouped"])["qParams"]
    assert graph["supernodes"] == [["pair", "12_3_1", "6_-1_1"]]
    assert graph["pinnedIds"] == ["12_3_1", "6_-1_1", "24_0_3"]
    assert to_neuronpedia(graphs.small())["qParams"]["pinnedIds"] == []


def test_a_source_set_needs_latents_that_keep_their_numbers() -> None:
    with pytest.raises(GraphError, match=r"the latents of mlp_out\.22 have other numbers"):
        to_neuronpedia(graphs.small(), source_set="res-16k")
    graph = to_neuronpedia(graphs.large(60, 200), source_set="res-16k", scan="gemma-2-2b")
    assert graph["metadata"]["feature_details"] == {"neuronpedia_source_set": "res-16k"}
    jsonschema.validate(graph, neuronpedia_schema(), jsonschema.Draft7Validator)


def test_numbers_that_are_not_finite_are_refused() -> None:
    circuit = graphs.small()
    for changed in (
        replace(circuit, edges=(Edge(0, None, math.nan),)),
        replace(circuit, nodes=(replace(circuit.nodes[0], effect=math.inf),), edges=()),
    ):
        with pytest.raises(GraphError, match="not finite"):
            to_neuronpedia(changed)
        with pytest.raises(GraphError, match="not finite"):
            to_graphml(changed)


@pytest.mark.parametrize("name", CIRCUITS)
def test_graphml_is_read_by_networkx(name: str) -> None:
    circuit = CIRCUITS[name]
    graph: Any = networkx.parse_graphml(to_graphml(circuit))
    assert graph.is_directed() and len(graph) == len(circuit) + 1
    assert graph.nodes["metric"]["role"] == "metric"
    for i, one in enumerate(circuit.nodes):
        read = graph.nodes[f"n{i}"]
        assert read["role"] == one.node.role
        assert (read["site"], read["layer"]) == (str(one.node.site), one.node.site.layer)
        assert read.get("latent", -1) == one.node.latent
        assert read.get("position") == one.node.position
        assert (read["effect"], read.get("low")) == (one.effect, one.low)
        assert read.get("removal") == one.removal
        assert name == "hostile" or read.get("label", "") == one.label
    weights = {
        (f"n{edge.source}", "metric" if edge.target is None else f"n{edge.target}"): edge.weight
        for edge in circuit.edges
    }
    assert {(a, b): data["weight"] for a, b, data in graph.edges(data=True)} == weights


def test_graphml_types_its_attributes_and_says_what_it_is_of() -> None:
    root = ElementTree.fromstring(to_graphml(graphs.small()))
    space = {"g": "http://graphml.graphdrawing.org/xmlns"}
    keys = {key.get("id"): key for key in root.findall("g:key", space)}
    assert {key.get("attr.type") for key in keys.values()} == {"string", "int", "double", "boolean"}
    used = {data.get("key") for data in root.iter(f"{{{space['g']}}}data")}
    assert used <= keys.keys()
    facts = {
        str(data.get("key")): data.text
        for graph in root.findall("g:graph", space)
        for data in graph.findall("g:data", space)
    }
    assert facts["graph_model"] == "org/tiny-model"
    assert facts["graph_summed"] == "false"
    assert facts["graph_sign"] == "positive = toward clean"


def test_graphml_escapes_what_xml_cannot_hold() -> None:
    strange = "\x00\x1b\ufffe\ud800 <&>\n"
    circuit = graphs.small()
    tokens = (circuit.tokens[0], Token((strange,), ("b",)), *circuit.tokens[2:])
    graph: Any = networkx.parse_graphml(to_graphml(replace(circuit, tokens=tokens)))
    assert graph.nodes["n0"]["token"] == "\\x00\\x1b\\ufffe\\ud800 <&>\n"


def test_circuits_of_files_are_the_same_in_other_formats(tmp_path: Any) -> None:
    graphs.small().save(tmp_path / "circuit.json")
    read = Circuit.load(tmp_path)
    assert to_neuronpedia(read) == to_neuronpedia(graphs.small())
    assert to_graphml(read) == to_graphml(graphs.small())
