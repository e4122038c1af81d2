"""A circuit as a file, in the package's own format and in those of others."""

from circuits.graph.circuit import (
    Circuit,
    CircuitNode,
    Edge,
    GraphError,
    Node,
    Profile,
    Token,
)
from circuits.graph.diff import Difference, difference

__all__ = [
    "Circuit",
    "CircuitNode",
    "Difference",
    "Edge",
    "GraphError",
    "Node",
    "Profile",
    "Token",
    "difference",
]
