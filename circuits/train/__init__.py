"""Training SAEs from text: one pass that stores activations, SAELens' trainer, cards.

`train_saes` does it all (run.py). `extract` runs the model once over a corpus (extract.py,
store.py); `train_sae` trains one SAE on what is stored (options.py, trainer.py); `write_cards`
measures it on held-out documents (card.py); original.py writes the original study's files.
"""

from circuits.train.card import card_text, write_cards
from circuits.train.extract import extract
from circuits.train.options import SaeOptions, TrainError
from circuits.train.run import train_saes
from circuits.train.store import Store, StoreError
from circuits.train.trainer import Trained, train_sae

__all__ = [
    "SaeOptions",
    "Store",
    "StoreError",
    "TrainError",
    "Trained",
    "card_text",
    "extract",
    "train_sae",
    "train_saes",
    "write_cards",
]
