"""Hypotheses about latents: made from evidence or by a person, tested on other data, judged.

A `Hypothesis` (claims.py) says that a latent fires on a class of examples or raises an output.
Candidates come from exploration (candidates.py) or a file (own.py); `assess` (assess.py) tests them
on `Evidence` (evidence.py) of text (text.py) or vectors (vectors.py), by enrichment
(enrichment.py) and intervention (effects.py), and gives `HypothesesResult` (result.py).
Descriptions in words can be had from an endpoint and scored (endpoint.py, scored.py).
"""

from circuits.hypotheses.assess import Rules, assess
from circuits.hypotheses.candidates import from_bank, from_evidence, most_active
from circuits.hypotheses.claims import Condition, Hypothesis, HypothesisError
from circuits.hypotheses.endpoint import Endpoint, EndpointError
from circuits.hypotheses.evidence import Evidence
from circuits.hypotheses.own import read_hypotheses
from circuits.hypotheses.reading import read_text
from circuits.hypotheses.result import HypothesesResult
from circuits.hypotheses.scored import describe_latents
from circuits.hypotheses.text import TextEvidence
from circuits.hypotheses.vectors import VectorEvidence

__all__ = [
    "Condition",
    "Endpoint",
    "EndpointError",
    "Evidence",
    "HypothesesResult",
    "Hypothesis",
    "HypothesisError",
    "Rules",
    "TextEvidence",
    "VectorEvidence",
    "assess",
    "describe_latents",
    "from_bank",
    "from_evidence",
    "most_active",
    "read_hypotheses",
    "read_text",
]
