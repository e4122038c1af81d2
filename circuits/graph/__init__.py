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

__all__ = ["Circuit", "CircuitNode", "Edge", "GraphError", "Node", "Profile", "Token"]
