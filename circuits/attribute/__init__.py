"""Which nodes (latents, errors, heads, MLPs), at which token, carry the behaviour: attribution.

`attribute` gives every node an effect (sweep.py: attribution patching, integrated gradients, or the
exact intervention) and returns an `Attribution` (result.py), whose audit (audit.py) checks it
against exact interventions (exact.py).
"""

from circuits.attribute.result import Attribution
from circuits.attribute.sweep import AttributionError, attribute

__all__ = ["Attribution", "AttributionError", "attribute"]
