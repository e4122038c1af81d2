"""The file formats of the original study: a layer's states, SAEs and history by layer number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from circuits.sites import Site
from circuits.train.options import TrainError
from circuits.train.store import Store
from circuits.train.trainer import Trained


def check_sites(sites: Sequence[Site]) -> None:
    """Raise `TrainError` for sites that a name by layer alone cannot tell apart."""
    if len({site.layer for site in sites}) < len(sites):
        raise TrainError("--format original names files by layer: give one site a layer.")


def write_states(store: Store, site: Site, folder: Path) -> Path:
    """`layer_{l}_states.npy`: all training rows [row, width], float32."""
    path = folder / f"layer_{site.layer}_states.npy"
    folder.mkdir(parents=True, exist_ok=True)
    rows = store.manifest.rows("train")
    states = np.lib.format.open_memmap(
        path, "w+", dtype=np.float32, shape=(rows, store.width(site))
    )
    done = 0
    for part in store.rows(site, "train"):
        states[done : done + len(part)] = part.numpy()
        done += len(part)
    states.flush()
    return path


def write_sae(trained: Trained, site: Site, folder: Path) -> None:
    """`sae_layer_{l}_best.safetensors`, `..._final.safetensors` and `..._history.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in (("best", trained.best), ("final", trained.final)):
        target = folder / f"sae_layer_{site.layer}_{name}.safetensors"
        shutil.copyfile(source / "sae_weights.safetensors", target)
    history = folder / f"sae_layer_{site.layer}_history.json"
    history.write_text(json.dumps(original_history(trained.history), indent=1) + "\n")


def original_history(history: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The history under the study's keys.

    Losses on held-out rows are the share of variance that is missed; sparsity is the mean number of
    active latents on held-out rows, under both of the study's names. BatchTopK has no sparsity
    loss: 0.
    """
    missed = [1 - e["explained_variance"] for e in history]
    l0 = [e["l0"] for e in history]
    return {
        "train_loss": [e["train_loss"] for e in history],
        "val_loss": missed,
        "recon_loss": missed,
        "sparsity_loss": [e["sparsity_loss"] for e in history],
        "train_sparsity": l0,
        "sparsity": l0,
        "lr": [e["lr"] for e in history],
    }
