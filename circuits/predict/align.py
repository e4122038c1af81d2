"""Features of two models brought into one space, for training on one and testing on the other.

Equal widths need nothing done, though nothing says that the axes of two models mean the same. With
`Align`, each model's features are projected on their own first principal components, and a ridge
regression from the second model's components to the first one's is fitted on problems that both
have; all of it on training folds only, and no label takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from circuits.predict.folds import Side
from circuits.predict.scores import PredictError

COMPONENTS = 64
_FEWEST = 20  # shared problems an alignment can be fitted on


@dataclass(frozen=True, eq=False)
class Align:
    """A `Bridge` from the test side's model to the training side's.

    keys_train, keys_test: what makes two rows the same problem (their prompts).
    """

    train: Side
    test: Side
    keys_train: Sequence[str]
    keys_test: Sequence[str]

    def __call__(
        self, rows: np.ndarray, here: np.ndarray, fold: int
    ) -> tuple[Float[np.ndarray, "train c"], Float[np.ndarray, "test c"]]:
        """Training rows, and the test rows of a fold, in the training model's components."""
        other = np.flatnonzero(self.test.truth.folds != fold)
        mine = {self.keys_train[i]: i for i in rows.tolist()}
        shared = [(mine[self.keys_test[j]], j) for j in other.tolist() if self.keys_test[j] in mine]
        if len(shared) < _FEWEST:
            raise PredictError(
                f"{len(shared)} problems are in both data sets' training folds: aligning two models"
                f" needs {_FEWEST}. Use models of one width, or give both the same problems."
            )
        a, b = (
            _components(side.features[list(which)])
            for side, which in ((self.train, rows), (self.test, other))
        )
        pairs = np.array(shared)
        x = a(self.train.features)
        z = b(self.test.features)
        ridge = RidgeCV(np.logspace(-2, 4, 7)).fit(z[pairs[:, 1]], x[pairs[:, 0]])
        return x[rows], ridge.predict(z[here])


def _components(x: Float[np.ndarray, "row feature"]) -> Callable[[np.ndarray], np.ndarray]:
    scale = StandardScaler().fit(x)
    pca = PCA(min(COMPONENTS, len(x) // 3, x.shape[1]), random_state=0).fit(scale.transform(x))
    return lambda rows: pca.transform(scale.transform(rows))
