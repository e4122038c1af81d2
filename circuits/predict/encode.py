"""Vectors as SAE latents: of SAEs that exist, of ones fitted on training folds, of random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from circuits.predict.scores import PredictError
from circuits.predict.vectors import POOL_AXES, Fitted, Vectors
from circuits.saes import SaeSet
from circuits.saes.sae import Sae
from circuits.sites import Site

_MOST_NUMBERS = 1 << 31  # of a dense table of latents


def encoded(vectors: Vectors, saes: SaeSet) -> tuple[Vectors, float]:
    """Latents of every site's SAE as it is: (vectors of kind latents, mean number active a vector).

    What such SAEs were fitted on is not known here, and the result says so in `fitted`.
    Raises `PredictError` for sites without an SAE, and SAEs of different widths.
    """
    sites = [_site(name) for name in vectors.sites]
    missing = [str(site) for site in sites if site not in saes.sources]
    if missing:
        have = ", ".join(str(s) for s in saes)
        raise PredictError(f"no SAE at {', '.join(missing)}: there are SAEs at {have}.")
    widths = {saes.sources[site].d_sae for site in sites}
    if len(widths) > 1:
        raise PredictError(f"the SAEs have {sorted(widths)} latents: give SAEs of one width.")
    n, s, p, _ = vectors.values.shape
    width = widths.pop()
    if n * s * p * width > _MOST_NUMBERS:
        raise PredictError(
            f"{n} records x {s} sites x {p} positions x {width} latents do not fit into memory: "
            "take fewer layers or positions, or narrower SAEs."
        )
    found = np.zeros((n, s, p, width), dtype=np.float32)
    for i, site in enumerate(sites):
        for part in np.array_split(np.arange(n), max(1, n // 256)):
            x = torch.as_tensor(vectors.values[part, i]).to(saes[site].dtype)
            device = next(saes[site].module.parameters()).device
            found[part, i] = saes[site].encode(x.to(device)).float().cpu().numpy()
    fitted = tuple(Fitted(f"SAE {saes.sources[site].name} (pretrained)", None) for site in sites)
    active = float((found > 0).sum() / (n * s * p))
    latents = replace(vectors, values=found, kind="latents", fitted=(*vectors.fitted, *fitted))
    return latents, active


def _site(name: str) -> Site:
    try:
        return Site.parse(name)
    except Exception as error:
        raise PredictError(f"the vectors' site {name!r} is none that an SAE could read.") from error


class Kept:
    """SAEs that were trained already, by the rows they were trained on: every estimator of a fold
    asks for the same ones. Copies of estimators share it."""

    def __init__(self) -> None:
        self._found: dict[str, list[Sae]] = {}

    def __deepcopy__(self, memo: Any) -> Kept:
        return self

    def get(self, key: str, make: Callable[[], list[Sae]]) -> list[Sae]:
        """What is kept under a key, made when it is not there."""
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]


class PoolSteps(TransformerMixin, BaseEstimator):
    """`Vectors.pooled` for rows in a pipeline; nothing is fitted."""

    def __init__(self, sites: int, positions: int, how: str, over: str) -> None:
        self.sites = sites
        self.positions = positions
        self.how = how
        self.over = over

    def fit(self, X: np.ndarray, y: Any = None) -> PoolSteps:
        """Nothing."""
        self.axes_ = POOL_AXES[self.over]
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Mean or maximum over positions, sites, or both."""
        x = X.reshape(len(X), self.sites, self.positions, -1)
        function = np.mean if self.how == "mean" else np.max
        return function(x, axis=self.axes_).reshape(len(X), -1)


class FoldSae(TransformerMixin, BaseEstimator):
    """An SAE a site, trained on the rows it is fitted on; all positions of a site train one.

    sites, positions: layout of a row. latents, active: width of the dictionary and latents active
    at a vector. steps: of training, in batches of 256. Gives latents in the same layout, sites x
    positions x latents.
    """

    def __init__(
        self,
        sites: int,
        positions: int,
        latents: int,
        active: int,
        steps: int = 400,
        seed: int = 0,
        kept: Kept | None = None,
    ) -> None:
        self.sites = sites
        self.positions = positions
        self.latents = latents
        self.active = active
        self.steps = steps
        self.seed = seed
        self.kept = kept

    def _split(self, X: np.ndarray) -> Float[Tensor, "record site position width"]:
        x = torch.as_tensor(np.ascontiguousarray(X, dtype=np.float32))
        return x.view(len(x), self.sites, self.positions, -1)

    def fit(self, X: np.ndarray, y: Any = None) -> FoldSae:
        """Train; y is not looked at."""
        from circuits.train.options import SaeOptions
        from circuits.train.rows import train_rows

        rows_of_one = len(X) * self.positions
        size = min(256, rows_of_one)
        options = SaeOptions(
            width=self.latents,
            sparsity=self.active,
            epochs=self.steps / max(1, rows_of_one // size),
            batch_size=size,
            seed=self.seed,
        )
        x = self._split(X)

        def train() -> list[Sae]:
            return [
                train_rows(x[:, i].flatten(0, 1), options, Site(i, "resid_post"))
                for i in range(self.sites)
            ]

        rows = hashlib.sha256(x.numpy().tobytes()).hexdigest()
        key = f"{rows} {self.latents} {self.active} {self.steps} {self.seed}"
        self.saes_ = train() if self.kept is None else self.kept.get(key, train)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Latents, [record, sites x positions x latents]."""
        x = self._split(X)
        parts = [sae.encode(x[:, i]) for i, sae in enumerate(self.saes_)]
        return torch.stack(parts, dim=1).flatten(1).numpy()


class RandomSae(TransformerMixin, BaseEstimator):
    """An untrained SAE of the same shape: random unit directions, the largest `active` projections
    of each vector (less the training rows' mean) kept where they are positive. What a dictionary
    gives without having learned anything."""

    def __init__(
        self, sites: int, positions: int, latents: int, active: int, seed: int = 0
    ) -> None:
        self.sites = sites
        self.positions = positions
        self.latents = latents
        self.active = active
        self.seed = seed

    def fit(self, X: np.ndarray, y: Any = None) -> RandomSae:
        """Take the mean of the rows given, and draw the directions."""
        x = X.reshape(len(X), self.sites, self.positions, -1)
        rng = np.random.default_rng(self.seed)
        drawn = rng.standard_normal((self.sites, x.shape[3], self.latents))
        self.rows_ = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        self.mean_ = x.mean(axis=(0, 2), keepdims=True)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Latents in the same layout."""
        x = X.reshape(len(X), self.sites, self.positions, -1) - self.mean_
        found = np.einsum("nspd,sdl->nspl", x, self.rows_, optimize=True)
        limit = np.partition(found, -self.active, axis=-1)[..., -self.active, None]
        return np.where((found >= limit) & (found > 0), found, 0).reshape(len(X), -1)
