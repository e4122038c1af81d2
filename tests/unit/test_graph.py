"""A circuit as a file: what it keeps, and what it refuses."""

import json
from dataclasses import replace
from typing import Any

import pytest

from circuits.graph import Circuit, Edge, GraphError, Node, Token, difference
from circuits.graph.formats import to_graphml, to_neuronpedia
from circuits.graph.page import graph_page
from circuits.sites import Site
from tests import graphs


@pytest.mark.parametrize("circuit", [graphs.small(), graphs.summed(), graphs.hostile()])
def test_a_circuit_is_read_back_as_it_was(circuit: Circuit) -> None:
    text = json.dumps(circuit.as_json())
    assert Circuit.of_json(json.loads(text)) == circuit


def test_a_file_and_a_run_s_folder_are_read(tmp_path: Any) -> None:
    circuit = graphs.small()
    circuit.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path / "circuit.json") == circuit
    assert Circuit.load(tmp_path) == circuit


def test_nodes_positions_and_names() -> None:
    circuit = graphs.small()
    assert len(circuit) == 6
    assert Node(Site(6, "resid_post"), "latent", 7, 1) in circuit.node_set
    assert circuit.names == {1: "op"}
    assert [str(one.node) for one in circuit.nodes[:2]] == [
        "resid_post.12 latent 3 @1",
        "resid_post.6 error @1",
    ]
    assert str(graphs.summed().nodes[0].node) == "resid_post.12 latent 3"


def test_groups_are_kept_and_nodes_that_are_not_named_keep_theirs(tmp_path: Any) -> None:
    circuit = graphs.small()
    first, second = circuit.nodes[0].node, circuit.nodes[1].node
    grouped = circuit.grouped({"one": [first, second]}).grouped({"two": [second]})
    assert [one.group for one in grouped.nodes] == ["one", "two", "", "", "", ""]
    grouped.save(tmp_path / "circuit.json")
    assert Circuit.load(tmp_path) == grouped
    with pytest.raises(GraphError, match=r"not in this circuit: resid_post\.6 latent 1 @1"):
        circuit.grouped({"one": [Node(Site(6, "resid_post"), "latent", 1, 1)]})


def _with_node(**changes: Any) -> dict[str, Any]:
    circuit = graphs.small()
    node = replace(circuit.nodes[0].node)
    for name, value in changes.items():
        # Past the constructor, whose types are checked while tests run but not otherwise.
        object.__setattr__(node, name, value)
    return {"nodes": (replace(circuit.nodes[0], node=node),), "edges": ()}


REFUSED = {
    "stands in the circuit twice": {"nodes": graphs.small().nodes[:1] * 2, "edges": ()},
    "role 'head': expected latent, error, offset": _with_node(role="head"),
    "latent -1 with role latent": _with_node(latent=-1),
    "latent 3 with role error": _with_node(role="error"),
    "its site resid_post.9 is not one of the circuit's": _with_node(site=Site(9, "resid_post")),
    "position 4 of 4 tokens": _with_node(position=4),
    "position -1 of 4 tokens": _with_node(position=-1),
    "summed over positions have nodes without one": _with_node(position=None),
    "edge 0 joins nodes [0, 6]: there are nodes 0 to 5": {"edges": (Edge(0, 6, 1.0),)},
    "edge 0 joins nodes [-1]": {"edges": (Edge(-1, None, 1.0),)},
    "edge 1 leads from resid_post.12 back to resid_post.6": {
        "edges": (Edge(2, 0, 1.0), Edge(0, 2, 1.0))
    },
    "edge 0 leads from mlp_out.22 back to mlp_out.22": {"edges": (Edge(4, 5, 1.0),)},
    "edge 0 leads from mlp_out.22 back to z.22": {"edges": (Edge(4, 3, 1.0),)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(message: str) -> None:
    with pytest.raises(GraphError) as refused:
        replace(graphs.small(), **REFUSED[message])
    assert message in str(refused.value)


def test_edges_lead_back_through_thoughts_alone() -> None:
    """To a later position, where thoughts were made while the model ran; also on the page, in a
    comparison, and in the formats of other tools."""
    small = graphs.small()
    a, b = (replace(small.nodes[0], node=replace(small.nodes[0].node, position=p)) for p in (1, 3))
    more = {"nodes": (a, b), "record": {**small.record, "thoughts": "rerolled"}}
    made = replace(small, **more, edges=(Edge(0, 1, 2.0), Edge(1, None, 1.0)))
    assert Circuit.of_json(made.as_json()).edges == made.edges
    assert len(to_neuronpedia(made)["links"]) == 2 and to_graphml(made).count("<edge ") == 2
    assert "rerolled" in graph_page(made)
    frozen = replace(made, edges=(), record={**small.record, "thoughts": "frozen"})
    assert "thoughts: rerolled and frozen" in difference(made, frozen).notes
    for wrong in ({"edges": (Edge(1, 0, 2.0),)}, {"record": {"thoughts": "frozen"}}):
        with pytest.raises(GraphError, match="back to"):
            replace(made, **wrong)


def test_a_summed_circuit_refuses_positions() -> None:
    with pytest.raises(GraphError, match="summed over positions"):
        replace(graphs.summed(), nodes=graphs.small().nodes, tokens=(Token(("a",), ("a",)),) * 4)


def _changed(**changes: Any) -> dict[str, Any]:
    return graphs.small().as_json() | changes


DAMAGED = {
    "not a circuit: expected the JSON that circuits writes": [],
    "it is not a circuit": {"format": 1, "kind": "bank"},
    "it has format 2, this version reads 1": _changed(format=2),
    "it is not a whole circuit: 'edges'": {
        key: value for key, value in graphs.small().as_json().items() if key != "edges"
    },
    "unknown site 'nowhere'": _changed(sites=["nowhere"]),
    "it is not a whole circuit: 'NoneType' object is not iterable": _changed(nodes=None),
    "it is not a whole circuit: 'latent'": _changed(nodes=[{"role": "latent"}]),
    "unexpected keyword argument 'colour'": _changed(
        edges=[{"source": 0, "target": None, "weight": 1.0, "colour": "red"}]
    ),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_files_are_refused(message: str) -> None:
    with pytest.raises(GraphError) as refused:
        Circuit.of_json(DAMAGED[message], "it")
    assert message in str(refused.value)


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_files_that_cannot_be_read_are_refused(content: bytes | None, tmp_path: Any) -> None:
    if content is not None:
        (tmp_path / "circuit.json").write_bytes(content)
    with pytest.raises(GraphError, match=r"circuit\.json cannot be read as a circuit"):
        Circuit.load(tmp_path)
