"""Scores of held-out predictions, their intervals and their chance levels.

AUC is over pairs of records *of the same fold*: predictions of different folds come from different
models, and stratified folds make the pooled AUC fall below one half on null data.

Intervals resample groups, never rows. They describe the models as they were trained. Folds share
training data, so the scores of folds vary together: `widening` is Nadeau and Bengio's correction
(Inference for the Generalization Error, 2003), sqrt(1 + K/(K-1)) for K folds, by which the interval
of the headline and the null of the permutation test are widened.

Permutations exchange the labels of whole groups of equal size within a fold, so that what rows of
a group share stays together; a group that is the only one of its size keeps its labels, which is
conservative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from circuits.errors import CircuitsError

RESAMPLES, PERMUTATIONS = 2000, 999
BINS = 10  # of a calibration curve, equally wide


class PredictError(CircuitsError):
    """Options or data from which errors cannot be predicted."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What predictions are compared with, one entry a record.

    classes: code of each record's class, 0 to n_classes - 1. groups, folds: codes.
    """

    classes: Int[np.ndarray, " record"]
    groups: Int[np.ndarray, " record"]
    folds: Int[np.ndarray, " record"]
    n_classes: int

    @property
    def n_folds(self) -> int:
        """Folds that have records."""
        return len(np.unique(self.folds))

    @property
    def widening(self) -> float:
        """By how much intervals and nulls are widened because folds share training data."""
        k = self.n_folds
        return (1 + k / (k - 1)) ** 0.5 if k > 1 else 1.0

    def weights(self, resamples: int, seed: int) -> Float[np.ndarray, "resample record"]:
        """How often each record is drawn when groups are drawn with replacement."""
        n = int(self.groups.max()) + 1
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
        return drawn[:, self.groups].astype(np.float32)

    @property
    def scored(self) -> tuple[int, ...]:
        """Classes whose AUC is taken: the second of two, or all of several."""
        return (1,) if self.n_classes == 2 else tuple(range(self.n_classes))


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


Proba = Float[np.ndarray, "record class"]
Weights = Float[np.ndarray, "resample record"]


def auc(truth: Truth, proba: Proba, weights: Weights) -> Float[np.ndarray, " resample"]:
    """AUC over pairs of the same fold, macro one-against-rest for several classes; ties count half.

    0.5 is chance, 1 perfect. NaN for a resample in which no fold has a pair.
    """
    found = []
    for which in truth.scored:
        above, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for fold in np.unique(truth.folds):
            here = truth.folds == fold
            positive = np.flatnonzero(here & (truth.classes == which))
            negative = np.flatnonzero(here & (truth.classes != which))
            p, n = proba[positive, which], proba[negative, which]
            wins = (p[:, None] > n) + 0.5 * (p[:, None] == n)
            up, down = weights[:, positive].astype(np.float64), weights[:, negative]
            above += ((up @ wins) * down).sum(1)
            pairs += up.sum(1) * down.sum(1)
        with np.errstate(invalid="ignore"):
            found.append(above / pairs)
    return np.mean(found, axis=0)


def brier(truth: Truth, proba: Proba, weights: Weights) -> Float[np.ndarray, " resample"]:
    """Mean squared error of probabilities, 0 perfect: of the second class for two classes (0 to 1),
    summed over classes for several (0 to 2)."""
    aim = np.eye(truth.n_classes)[truth.classes]
    squares = (proba - aim) ** 2
    return _mean(squares[:, 1] if truth.n_classes == 2 else squares.sum(1), weights)


def accuracy(truth: Truth, proba: Proba, weights: Weights) -> Float[np.ndarray, " resample"]:
    """Share of records whose most probable class is theirs."""
    return _mean((proba.argmax(1) == truth.classes).astype(float), weights)


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights @ values) / weights.sum(1)


Score = Callable[[Truth, Proba, Weights], np.ndarray]
SCORES: dict[str, Score] = {"auc": auc, "brier": brier, "accuracy": accuracy}


def interval(
    value: float, drawn: Float[np.ndarray, " resample"], widening: float = 1.0, level: float = 0.95
) -> Interval:
    """A percentile interval around a value, its halves `widening` times as long."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    ends = [float(value + widening * (end - value)) for end in (low, high)]
    return Interval(value, ends[0], ends[1])


def permutations(
    groups: Int[np.ndarray, " record"], within: Int[np.ndarray, " record"], count: int, seed: int
) -> Int[np.ndarray, "permutation record"]:
    """Row numbers such that `labels[found[i]]` is the i-th permutation of labels over groups.

    Whole groups change places with groups of as many rows in the same block `within`, row by row
    in the order of rows.
    """
    rng = np.random.default_rng(seed)
    found = np.tile(np.arange(len(groups)), (count, 1))
    order = np.lexsort((np.arange(len(groups)), groups, within))
    keys = np.stack([within[order], groups[order]], axis=1)
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(1)])
    members = np.split(order, starts[1:])
    blocks: dict[tuple[int, int], list[np.ndarray]] = {}
    for rows in members:
        blocks.setdefault((int(within[rows[0]]), len(rows)), []).append(rows)
    for same in blocks.values():
        rows = np.stack(same)
        moved = rng.permuted(np.tile(np.arange(len(rows)), (count, 1)), axis=1)
        found[:, rows.ravel()] = rows[moved].reshape(count, -1)
    return found


def null_auc(
    truth: Truth, proba: Proba, count: int = PERMUTATIONS, seed: int = 0
) -> Float[np.ndarray, " permutation"]:
    """AUC of the same predictions for labels permuted over groups within folds."""
    moved = permutations(truth.groups, truth.folds, count, seed)
    found = []
    for which in truth.scored:
        is_class = (truth.classes == which).astype(float)
        above, pairs = np.zeros(count), 0.0
        for fold in np.unique(truth.folds):
            here = np.flatnonzero(truth.folds == fold)
            n_positive = is_class[here].sum()
            sums = is_class[moved[:, here]] @ rankdata(proba[here, which])
            above += sums - n_positive * (n_positive + 1) / 2
            pairs += n_positive * (len(here) - n_positive)
        found.append(above / pairs)
    return np.mean(found, axis=0)


def permutation_p(value: float, null: np.ndarray, widening: float, centre: float = 0.5) -> float:
    """Share of permutations that reach a score, itself counted.

    The null: given the trained models, held-out predictions say nothing about held-out labels.
    Nothing is refitted. For one fold that test is exact; over folds it is not, because every
    label is in the training data of the other folds and their scores vary together. So the null's
    distances from `centre` are multiplied by `widening`.
    """
    reached = centre + widening * (null - centre) >= value - 1e-12
    return float((1 + reached.sum()) / (1 + len(null)))


def exchange_p(
    truth: Truth, ours: Proba, other: Proba, count: int = PERMUTATIONS, seed: int = 0
) -> float:
    """p of a gain in AUC: share of exchanges that reach it, itself counted; one-sided.

    The null: of two predictors either could have given each group's predictions. Those of whole
    groups change sides, as ranks within their fold, for both have scales of their own; distances
    from no gain are multiplied by `widening`, as in `permutation_p`.
    """
    rng = np.random.default_rng(seed)
    swap = rng.random((count, int(truth.groups.max()) + 1)) < 0.5
    swap = np.concatenate([np.zeros((1, swap.shape[1]), dtype=bool), swap])[:, truth.groups]
    gains = np.zeros(count + 1)  # the first is the one that is seen
    for which in truth.scored:
        above, pairs = np.zeros(count + 1), 0.0
        for fold in np.unique(truth.folds):
            here = truth.folds == fold
            a, b = rankdata(ours[here, which]), rankdata(other[here, which])
            positive = truth.classes[here] == which
            first = rankdata(np.where(swap[:, here], b, a), axis=1)[:, positive]
            second = rankdata(np.where(swap[:, here], a, b), axis=1)[:, positive]
            above += first.sum(1) - second.sum(1)
            pairs += positive.sum() * (~positive).sum()
        gains += above / pairs / len(truth.scored)
    return permutation_p(float(gains[0]), gains[1:], truth.widening, centre=0.0)


def calibration(
    truth: Truth, proba: Proba, bins: int = BINS
) -> tuple[Float[np.ndarray, "bin 3"], float]:
    """(per bin: mean probability, share that came true, records; expected calibration error).

    Of the second class for two classes, of the most probable one for several. Empty bins are NaN.
    """
    if truth.n_classes == 2:
        said, true = proba[:, 1], truth.classes == 1
    else:
        said, true = proba.max(1), proba.argmax(1) == truth.classes
    where = np.minimum((said * bins).astype(int), bins - 1)
    count = np.bincount(where, minlength=bins).astype(float)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(where, said, bins) / count
        share = np.bincount(where, true.astype(float), bins) / count
    error = float(np.nansum(count * np.abs(mean - share)) / len(said))
    return np.stack([mean, share, count], axis=1), error


def confusion(truth: Truth, proba: Proba) -> Int[np.ndarray, "true predicted"]:
    """Records by class and most probable class."""
    found = np.zeros((truth.n_classes, truth.n_classes), dtype=int)
    np.add.at(found, (truth.classes, proba.argmax(1)), 1)
    return found
