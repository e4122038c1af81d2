"""Which nodes act through which: edges between SAE latents, errors, offsets and the metric.

`edge_attribution` (attribution.py) averages over pairs what `edge_effects` (graph.py) finds for a
batch of them: the part of each node's effect that goes through each other node. What targets make
of a change is in gates.py, what sources write in writes.py, and which nodes may be asked for in
plan.py.
"""

from circuits.edges.attribution import EdgeAttribution, edge_attribution
from circuits.edges.graph import EdgeTable, edge_effects
from circuits.edges.plan import EdgeError, Gates

__all__ = [
    "EdgeAttribution",
    "EdgeError",
    "EdgeTable",
    "Gates",
    "edge_attribution",
    "edge_effects",
]
