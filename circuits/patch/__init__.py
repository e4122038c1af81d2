"""Exact activation patching: which site, at which token, carries the behaviour.

`patch` runs the sweep (sweep.py) and returns a `PatchResult` (result.py). Method: activation
patching (Meng et al. 2022, "Locating and editing factual associations in GPT"; Zhang and Nanda
2024, "Towards best practices of activation patching").
"""

from circuits.patch.ability import Ability, CannotDo, assess, logit_differences
from circuits.patch.result import PatchResult
from circuits.patch.sweep import check_words, patch

__all__ = [
    "Ability",
    "CannotDo",
    "PatchResult",
    "assess",
    "check_words",
    "logit_differences",
    "patch",
]
