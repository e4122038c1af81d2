"""A circuit as a file: nodes, the edges between them, and what they were found on.

A node is a latent, an error or an offset at a site, at one token position or (in circuits that are
summed over positions) at all of them. The file is JSON, is checked when it is read, and holds all
that is needed to draw it and to apply it to other prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from circuits.errors import CircuitsError
from circuits.sites import Site, SiteError

NodeRole = Literal["latent", "error", "offset"]
FORMAT = 1  # of the file


class GraphError(CircuitsError):
    """A circuit file that cannot be read, or a circuit that does not fit what it is used for."""


@dataclass(frozen=True, order=True)
class Node:
    """site; role; latent: its number, -1 for errors and offsets; position: the token's, counted
    from 0, or None for all positions together."""

    site: Site
    role: NodeRole
    latent: int = -1
    position: int | None = None

    def __str__(self) -> str:
        what = f"latent {self.latent}" if self.role == "latent" else self.role
        return f"{self.site} {what}" + ("" if self.position is None else f" @{self.position}")


@dataclass(frozen=True)
class CircuitNode:
    """A node and what was found about it.

    effect: mean effect over the pairs it was found on, positive toward clean, in units of the
        metric; low, high: its 95% interval, None where there is none.
    clean, corrupted: its mean coefficient in the two runs (the norm of the write for errors).
    removal: what m loses, as a share of m(M) - m(0), when it alone is taken out of the circuit;
        None where it was not measured.
    label: what it seems to mean, one line. group: the name it is grouped under, "" for none.
    """

    node: Node
    effect: float
    low: float | None = None
    high: float | None = None
    clean: float = 0.0
    corrupted: float = 0.0
    removal: float | None = None
    label: str = ""
    group: str = ""


@dataclass(frozen=True)
class Edge:
    """source, target: places in `Circuit.nodes`; target None is the metric. weight: the part of the
    source's effect that goes along this edge, positive toward clean."""

    source: int
    target: int | None
    weight: float


@dataclass(frozen=True)
class Token:
    """What stands at a position: the different clean and corrupted tokens of the pairs, and the
    name of the position ("" for none)."""

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    name: str = ""


@dataclass(frozen=True)
class Profile:
    """Mean coefficient of a latent at every position, in the clean and in the corrupted runs."""

    clean: tuple[float, ...]
    corrupted: tuple[float, ...]


@dataclass(frozen=True)
class Circuit:
    """nodes, edges: strongest first. tokens: of the template, empty for circuits that are summed
    over positions. template: its name. summed: whether nodes stand for all positions.

    sites: all that were looked at, in forward order, with or without nodes: the circuit says of
        each what is kept. profiles: by "SITE/LATENT", where they are known.
    record: what it was found on and with (model, model_sha256, task, contrast, metric, saes, ...).

    Edges lead to later sites; where the record says that thoughts were rerolled, also to later
    positions of the same site and of earlier ones.
    """

    nodes: tuple[CircuitNode, ...]
    edges: tuple[Edge, ...]
    sites: tuple[Site, ...]
    tokens: tuple[Token, ...]
    template: str
    summed: bool
    record: Mapping[str, Any]
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[Node] = set()
        for at, one in enumerate(self.nodes):
            _check_node(one.node, self, at)
            if one.node in seen:
                raise GraphError(f"node {at}, {one.node}, stands in the circuit twice.")
            seen.add(one.node)
        order = {site: i for i, site in enumerate(self.sites)}
        for at, edge in enumerate(self.edges):
            ends = [edge.source] + ([] if edge.target is None else [edge.target])
            if any(not 0 <= end < len(self.nodes) for end in ends):
                raise GraphError(
                    f"edge {at} joins nodes {ends}: there are nodes 0 to {len(self.nodes) - 1}."
                )
            if edge.target is None:
                continue
            sites = [self.nodes[end].node.site for end in ends]
            if order[sites[0]] >= order[sites[1]] and not self._by_thoughts(ends):
                raise GraphError(f"edge {at} leads from {sites[0]} back to {sites[1]}.")

    def _by_thoughts(self, ends: Sequence[int]) -> bool:
        """Whether an edge may lead to its own site or a lower one: to a later position, through
        thoughts that are made while the model runs."""
        source, target = (self.nodes[end].node.position for end in ends)
        rolled = self.record.get("thoughts") == "rerolled"
        return rolled and source is not None and target is not None and source < target

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def node_set(self) -> frozenset[Node]:
        """The nodes without what was found about them."""
        return frozenset(one.node for one in self.nodes)

    @property
    def names(self) -> dict[int, str]:
        """The named positions of the template."""
        return {p: token.name for p, token in enumerate(self.tokens) if token.name}

    def grouped(self, groups: Mapping[str, Sequence[Node]]) -> Circuit:
        """The same circuit with nodes under names; nodes that are not given keep theirs."""
        of = {node: name for name, nodes in groups.items() for node in nodes}
        missing = [str(node) for node in of if node not in self.node_set]
        if missing:
            raise GraphError(f"not in this circuit: {', '.join(missing[:3])}.")
        nodes = [replace(one, group=of.get(one.node, one.group)) for one in self.nodes]
        return replace(self, nodes=tuple(nodes))

    def strongest(self, count: int) -> Circuit:
        """The first `count` nodes and the edges between them: what can be drawn of a large one."""
        edges = [e for e in self.edges if max(e.source, e.target or 0) < count]
        kept = {
            f"{one.node.site}/{one.node.latent}" for one in self.nodes[:count]
        } & self.profiles.keys()
        profiles = {key: self.profiles[key] for key in self.profiles if key in kept}
        return replace(self, nodes=self.nodes[:count], edges=tuple(edges), profiles=profiles)

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        nodes = []
        for one in self.nodes:
            flat = asdict(one)
            del flat["node"]
            where = asdict(one.node) | {"site": str(one.node.site)}
            nodes.append(where | flat)
        return {
            "format": FORMAT,
            "kind": "circuit",
            "template": self.template,
            "summed": self.summed,
            "sites": [str(site) for site in self.sites],
            "tokens": [asdict(token) for token in self.tokens],
            "nodes": nodes,
            "edges": [asdict(edge) for edge in self.edges],
            "profiles": {name: asdict(profile) for name, profile in self.profiles.items()},
            "record": dict(self.record),
        }

    @classmethod
    def of_json(cls, data: Any, name: str = "this") -> Circuit:
        """The circuit that `as_json` made; raises `GraphError` that says what is wrong with it."""
        if not isinstance(data, dict) or data.get("kind") != "circuit":
            raise GraphError(f"{name} is not a circuit: expected the JSON that circuits writes.")
        if data.get("format") != FORMAT:
            raise GraphError(
                f"{name} has format {data.get('format')!r}, this version reads {FORMAT}."
            )
        try:
            return cls(
                nodes=tuple(_node_of(entry) for entry in data["nodes"]),
                edges=tuple(Edge(**entry) for entry in data["edges"]),
                sites=tuple(Site.parse(site) for site in data["sites"]),
                tokens=tuple(
                    Token(tuple(t["clean"]), tuple(t["corrupted"]), t["name"])
                    for t in data["tokens"]
                ),
                template=data["template"],
                summed=data["summed"],
                record=data["record"],
                profiles={
                    key: Profile(tuple(p["clean"]), tuple(p["corrupted"]))
                    for key, p in data["profiles"].items()
                },
            )
        except (KeyError, TypeError, SiteError) as error:
            raise GraphError(f"{name} is not a whole circuit: {error}.") from error

    def save(self, path: str | Path) -> None:
        """Write the file."""
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read a file, or `circuit.json` of a run's folder."""
        path = Path(path)
        path = path / "circuit.json" if path.is_dir() else path
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise GraphError(f"{path} cannot be read as a circuit: {error}.") from error
        return cls.of_json(data, str(path))


def _node_of(entry: dict[str, Any]) -> CircuitNode:
    entry = dict(entry)
    where = {key: entry.pop(key) for key in ("role", "latent", "position")}
    return CircuitNode(Node(Site.parse(entry.pop("site")), **where), **entry)


def _check_node(node: Node, circuit: Circuit, at: int) -> None:
    problem = None
    if node.role not in get_args(NodeRole):
        problem = f"role {node.role!r}: expected {', '.join(get_args(NodeRole))}"
    elif (node.latent >= 0) != (node.role == "latent"):
        problem = f"latent {node.latent} with role {node.role}"
    elif node.site not in circuit.sites:
        problem = f"its site {node.site} is not one of the circuit's"
    elif circuit.summed != (node.position is None):
        problem = "circuits summed over positions have nodes without one, all others with one"
    elif node.position is not None and not 0 <= node.position < len(circuit.tokens):
        problem = f"position {node.position} of {len(circuit.tokens)} tokens"
    if problem:
        raise GraphError(f"node {at}: {problem}.")
