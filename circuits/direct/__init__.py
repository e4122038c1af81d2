"""What each part of the last position's stream adds to the logit difference directly.

`direct` (effects.py) splits the stream into parts (parts.py), reads each (readout.py), and returns
`DirectEffects` (result.py).
"""

from circuits.direct.effects import DirectError, direct
from circuits.direct.result import DirectEffects

__all__ = ["DirectEffects", "DirectError", "direct"]
