"""Which nodes (latents, errors, heads, MLPs), at which token, carry the behaviour: attribution.

`attribute` (sweep.py; its options in plan.py) gives every node an effect: attribution patching,
integrated gradients, or the exact intervention (scores.py). It returns an `Attribution`
(result.py), whose audit (audit.py) checks it against exact interventions (exact.py).
"""

from circuits.attribute.plan import AttributionError
from circuits.attribute.result import Attribution
from circuits.attribute.sweep import attribute

__all__ = ["Attribution", "AttributionError", "attribute"]
