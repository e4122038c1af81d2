"""A small recurrent network over positions behind scikit-learn's interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import nn


class _Net(nn.Module):
    """Project every position, a GRU over positions, a linear read-out of its last state."""

    def __init__(self, width: int, size: int, classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, size)
        self.gru = nn.GRU(size, size, batch_first=True)
        self.read = nn.Linear(size, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.gru(torch.tanh(self.project(x)))[1][-1])


class SequenceClassifier(ClassifierMixin, BaseEstimator):
    """A GRU over positions, all sites of a position being one input.

    sites, positions: layout of a row (sites, positions, width, in this order). size: of its state.
    The same seed gives the same predictions; torch's own generator is left as it was.
    """

    def __init__(
        self,
        sites: int,
        positions: int,
        size: int = 16,
        *,
        epochs: int = 40,
        rate: float = 1e-2,
        decay: float = 1e-1,
        batch: int = 128,
        seed: int = 0,
    ) -> None:
        self.sites = sites
        self.positions = positions
        self.size = size
        self.epochs = epochs
        self.rate = rate
        self.decay = decay
        self.batch = batch
        self.seed = seed

    def _input(self, X: np.ndarray) -> torch.Tensor:
        x = torch.as_tensor(np.ascontiguousarray(X, dtype=np.float32))
        split = x.view(len(x), self.sites, self.positions, -1)
        return split.permute(0, 2, 1, 3).flatten(2)

    def fit(self, X: np.ndarray, y: Any) -> SequenceClassifier:
        """Train with AdamW; X [record, feature], y [record]."""
        self.classes_, codes = np.unique(y, return_inverse=True)
        x, aim = self._input(X), torch.as_tensor(codes)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            self.net_ = _Net(x.shape[2], self.size, len(self.classes_))
            steps = torch.optim.AdamW(self.net_.parameters(), self.rate, weight_decay=self.decay)
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x)).split(self.batch):
                    loss = nn.functional.cross_entropy(self.net_(x[rows]), aim[rows])
                    steps.zero_grad()
                    loss.backward()
                    steps.step()
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probability of every class, [record, class]."""
        with torch.no_grad():
            return self.net_(self._input(X)).softmax(-1).numpy().astype(float)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable class, [record]."""
        return self.classes_[self.predict_proba(X).argmax(1)]
