"""Where the digits come from, and the checks that they pass before anything is trained on them."""

from tasks.digits.data.checks import DataError, check_images, check_labels, label_agreement
from tasks.digits.data.idx import find_idx, read_idx
from tasks.digits.data.sources import SOURCES, load_digits
from tasks.digits.data.split import Digits, Split

__all__ = [
    "SOURCES",
    "DataError",
    "Digits",
    "Split",
    "check_images",
    "check_labels",
    "find_idx",
    "label_agreement",
    "load_digits",
    "read_idx",
]
