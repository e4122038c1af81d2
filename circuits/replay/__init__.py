"""Replay: what a latent does when the model writes.

Generation with latents held, scaled or removed (interventions.py, generate.py), in arms with common
random numbers (arms.py, noise.py, run.py), recorded step by step (tables.py, store.py, result.py).

Pathways: which downstream latents change (changes.py, paired.py), with the text held as well
(held.py, held_changes.py), what they carry of an outcome (outcomes.py, confirm.py), and how it is
reported (pathways.py, pathways_tables.py, pathways_result.py, pathways_page.py).
"""

from circuits.replay.generate import Generated, forced, generate
from circuits.replay.interventions import (
    Change,
    Other,
    Reconstruction,
    ReplayError,
    edits_of,
)
from circuits.replay.noise import Key, Noise, keys_of, prompt_digest
from circuits.replay.outcomes import Outcome, parse_outcome
from circuits.replay.pathways import Plan, Written, pathways
from circuits.replay.pathways_result import PathwaysResult
from circuits.replay.prompts import Prompts, read_prompts
from circuits.replay.result import ReplayResult
from circuits.replay.sampling import Sampling
from circuits.replay.start import replay

__all__ = [
    "Change",
    "Generated",
    "Key",
    "Noise",
    "Other",
    "Outcome",
    "PathwaysResult",
    "Plan",
    "Prompts",
    "Reconstruction",
    "ReplayError",
    "ReplayResult",
    "Sampling",
    "Written",
    "edits_of",
    "forced",
    "generate",
    "keys_of",
    "parse_outcome",
    "pathways",
    "prompt_digest",
    "read_prompts",
    "replay",
]
