"""What latents mean: one pass over a corpus for all latents of all SAEs, and cards made from it.

`collect_features` makes a `FeatureBank` (collect.py, tally.py, bank.py); `bank.card(site, latent)`
is a latent's card (card.py), `bank.describe(...)` one line about it (describe.py).
"""

from circuits.features.bank import BankError, FeatureBank
from circuits.features.card import Card
from circuits.features.collect import collect_features

__all__ = ["BankError", "Card", "FeatureBank", "collect_features"]
