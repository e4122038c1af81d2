"""What images and labels must be like, and whether they belong together.

Counts and values can be checked one by one. Labels of *other* images have the right counts and
values: they are found out by a classifier that can learn nothing from them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer, UInt8

from circuits.errors import CircuitsError

CLASSES = 10
_LEAST_AGREEMENT = 0.5  # of held-out images; MNIST has .82, 8x8 digits .90, unmatched labels .1


class DataError(CircuitsError):
    """Files or packages of digits that are missing, damaged, or do not belong together."""


def check_images(images: UInt8[np.ndarray, "image row column"], name: str) -> None:
    """Raise `DataError` for images that cannot be digits: none, not square, or all blank."""
    count, height, width = images.shape
    if count == 0 or height != width or height < 2:
        raise DataError(
            f"{name} holds {count} images of {height} x {width} pixels: expected square images of "
            "digits, such as MNIST's 28 x 28."
        )
    if int(images.min()) == int(images.max()):
        raise DataError(
            f"{name}: every pixel of every image is {int(images.min())}. The file is damaged: get "
            "it again."
        )


def check_labels(labels: Integer[np.ndarray, " label"], n_images: int, name: str) -> None:
    """Raise `DataError` for labels that cannot be those of `n_images` images of the ten digits."""
    if len(labels) != n_images:
        raise DataError(
            f"{name} has {len(labels)} labels for {n_images} images: one label an image is "
            "expected. Images and labels of different sets were put together (train and t10k?): "
            "give the folder both files of each set."
        )
    found = np.unique(labels)
    if int(found[0]) < 0 or int(found[-1]) >= CLASSES:
        outside = int(found[-1]) if int(found[-1]) >= CLASSES else int(found[0])
        raise DataError(
            f"{name} has the label {outside}: expected 0 to 9. The file is damaged, or holds the "
            "labels of something other than digits."
        )
    missing = sorted(set(range(CLASSES)) - {int(label) for label in found})
    if missing:
        words = ", ".join(map(str, missing))
        raise DataError(
            f"{name} has no image labelled {words}: ten digits are expected. The labels are "
            "damaged, or only part of the set is there."
        )


def label_agreement(
    pixels: Float[np.ndarray, "image pixel"], labels: Integer[np.ndarray, " image"], seed: int = 0
) -> float:
    """The share of held-out images whose nearest class centroid is that of their label.

    Centroids are of one half of the images, and the other half is compared with them; chance is
    about 1/10. At most 10,000 images are used.
    """
    order = np.random.default_rng(seed).permutation(len(labels))[:10_000]
    fitted, held_out = order[::2], order[1::2]
    known = np.unique(labels[fitted])
    centroids = np.stack([pixels[fitted][labels[fitted] == label].mean(0) for label in known])
    x = pixels[held_out]
    # |x - c|^2 less |x|^2, which is the same for every centroid.
    distances = (centroids**2).sum(1) - 2 * x @ centroids.T
    return float((known[distances.argmin(1)] == labels[held_out]).mean())


def check_agreement(
    pixels: Float[np.ndarray, "image pixel"],
    labels: Integer[np.ndarray, " image"],
    name: str,
) -> float:
    """`label_agreement`; raises `DataError` where images and labels do not belong together."""
    agreement = label_agreement(pixels, labels)
    if agreement < _LEAST_AGREEMENT:
        raise DataError(
            f"{name}: images and labels do not belong together. Only {agreement:.0%} of held-out "
            "images are nearest to the mean image of their own label; digits have 80% and more, "
            "labels of other images 10%. Get both files again, from one place. If they are meant "
            "to be like this, give --unchecked-labels (check_agreement=False)."
        )
    return agreement
