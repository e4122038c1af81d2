"""Circuits: found among SAE latents and errors, judged on other pairs, applied to other prompts.

`circuit` does it all (find.py). Candidates are ranked by an attribution (candidates.py), run with
everything else set to a reference (references.py, ablate.py, runs.py), node by node or edge by edge
(wired.py), and judged (judge.py, evaluate.py, result.py); `apply_circuit` takes one that was found
before to other pairs (apply.py).
"""

from circuits.circuit.apply import Applied, apply_circuit
from circuits.circuit.find import circuit
from circuits.circuit.references import REFERENCES, CircuitError
from circuits.circuit.result import CircuitResult

__all__ = [
    "REFERENCES",
    "Applied",
    "CircuitError",
    "CircuitResult",
    "apply_circuit",
    "circuit",
]
