"""Replay: what a latent does when the model writes.

Generation with latents held, scaled or removed (interventions.py, generate.py), arms with common
random numbers (noise.py).
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
from circuits.replay.sampling import Sampling

__all__ = [
    "Change",
    "Generated",
    "Key",
    "Noise",
    "Other",
    "Reconstruction",
    "ReplayError",
    "Sampling",
    "edits_of",
    "forced",
    "generate",
    "keys_of",
    "prompt_digest",
]
