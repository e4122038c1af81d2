"""GSM8K problems: from the hub, from a file, or made from the templates of GSM-Symbolic."""

from tasks.gsm8k_thoughts.gsm8k.pairs import ProblemPair, symbolic_pairs
from tasks.gsm8k_thoughts.gsm8k.problems import (
    HUB,
    SYMBOLIC,
    GsmError,
    Problem,
    gsm8k_problems,
    parse_number,
)

__all__ = [
    "HUB",
    "SYMBOLIC",
    "GsmError",
    "Problem",
    "ProblemPair",
    "gsm8k_problems",
    "parse_number",
    "symbolic_pairs",
]
