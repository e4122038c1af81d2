"""What latents mean: one pass over a corpus for all latents of all SAEs, and cards made from it.

`collect_features` makes a `FeatureBank` (collect.py, tally.py, bank.py); `bank.card(site, latent)`
is a latent's card (card.py), `bank.describe(...)` one line about it (describe.py).

`collect_vectors` makes the same of vectors with labels, of any torch module (vectors.py), with what
latents do when they are written in and taken out (effects.py) and the inputs that raise them
(patterns.py); gallery.py has their cards and the page of all of them.
"""

from circuits.features.bank import BankError, FeatureBank
from circuits.features.card import Card
from circuits.features.collect import collect_features
from circuits.features.effects import Effects, latent_effects
from circuits.features.gallery import Gallery
from circuits.features.patterns import input_patterns
from circuits.features.vectors import LabelledVectors, collect_vectors

__all__ = [
    "BankError",
    "Card",
    "Effects",
    "FeatureBank",
    "Gallery",
    "LabelledVectors",
    "collect_features",
    "collect_vectors",
    "input_patterns",
    "latent_effects",
]
