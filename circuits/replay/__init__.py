"""Replay: what a latent does when the model writes.

Generation with latents held, scaled or removed (interventions.py, generate.py), in arms with common
random numbers (arms.py, noise.py, run.py), recorded step by step (tables.py, store.py, result.py).
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
from circuits.replay.prompts import Prompts, read_prompts
from circuits.replay.result import ReplayResult
from circuits.replay.run import replay
from circuits.replay.sampling import Sampling

__all__ = [
    "Change",
    "Generated",
    "Key",
    "Noise",
    "Other",
    "Prompts",
    "Reconstruction",
    "ReplayError",
    "ReplayResult",
    "Sampling",
    "edits_of",
    "forced",
    "generate",
    "keys_of",
    "prompt_digest",
    "read_prompts",
    "replay",
]
