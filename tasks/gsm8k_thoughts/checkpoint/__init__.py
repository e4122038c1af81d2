"""Published CODI checkpoints: LoRA merged, new tokens named, the projection beside the model."""

from tasks.gsm8k_thoughts.checkpoint.files import CheckpointError
from tasks.gsm8k_thoughts.checkpoint.load import PUBLISHED, Codi, load_codi
from tasks.gsm8k_thoughts.checkpoint.tokens import CodiTokens, Layout, number_prefix

__all__ = [
    "PUBLISHED",
    "CheckpointError",
    "Codi",
    "CodiTokens",
    "Layout",
    "load_codi",
    "number_prefix",
]
