"""Where the features are that differ between right and wrong answers.

The effect of a feature is Cohen's d, mean on rows of the class less mean on all others, in units of
their pooled standard deviation. Positive is higher on wrong answers (for other targets: on rows of
the class that is named). It is a description of all records: nothing is predicted here.

Its interval and p value are cluster robust: the influence of every row on d (delta method, the
standard deviation's share included) is summed over the rows of a group, and t with groups - 1
degrees of freedom is taken. `q` is the false discovery rate of Benjamini and Hochberg (1995).

What chance gives is found by permuting labels over groups: the largest |d| of all features, and of
every site and position, in each permutation (max statistic, Westfall and Young 1993). A feature
stands out when its |d| passes the 95% quantile of that largest one, which holds for all features
together whatever depends on what.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control, t

from circuits.predict.scores import PredictError, permutations

PERMUTATIONS = 200
_AT_ONCE = 4096  # features
LEVEL = 0.05
_FLAT = 1e-7  # a spread below this share of the largest value is rounding


@dataclass(frozen=True, eq=False)
class Localisation:
    """Effects of features, and what chance gives.

    features: `class, site, position, index, d, low, high, p, q, stands_out`, one row a feature (and
        class, where there are several); constant features are left out.
    cells: per class, site and position: `features, discoveries` (q < .05), `stand_out, largest`
        (|d|), `chance` (95% quantile of the largest |d| of this cell by chance), `p` (of the
        largest, for this cell alone).
    largest, chance, p: |d| of all, the 95% quantile of the largest by chance, and its p.
    """

    features: pd.DataFrame
    cells: pd.DataFrame
    largest: float
    chance: float
    p: float

    @property
    def found(self) -> bool:
        """Whether the largest effect is larger than chance gives."""
        return self.p < LEVEL

    def counts(self, by: str) -> pd.DataFrame:
        """Features, discoveries and those that stand out, by "site" or "position"."""
        if by not in ("site", "position"):
            raise PredictError(f"by={by!r}: expected site or position.")
        columns = ["features", "discoveries", "stand_out"]
        cells: Any = self.cells
        found = cells.groupby(by, sort=False)[columns].sum().reset_index()
        found["share_of_discoveries"] = found["discoveries"] / max(1, found["discoveries"].sum())
        return found


def effects(
    x: Float[np.ndarray, "record feature"],
    is_class: Bool[np.ndarray, " record"],
    groups: Int[np.ndarray, " record"],
) -> pd.DataFrame:
    """Cohen's d with its 95% interval and p value: columns d, low, high, p, one row a feature.

    NaN for constant features.
    """
    n_groups = int(groups.max()) + 1
    sums = csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))))
    n, n1 = len(x), int(is_class.sum())
    x = x.astype(np.float64)
    means = np.stack([x[~is_class].mean(0), x[is_class].mean(0)])
    left = x - means[is_class.astype(int)]
    variance = (left**2).sum(0) / (n - 2)
    spread = np.sqrt(variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        d = (means[1] - means[0]) / spread
        share = np.where(is_class, 1 / n1, -1 / (n - n1))[:, None]
        influence = share * left / spread - d * (left**2 / variance - 1) / (2 * n)
        clustered = ((sums @ influence) ** 2).sum(0) * n_groups / (n_groups - 1)
        error = np.sqrt(clustered)
        p = 2 * t.sf(np.abs(d) / error, n_groups - 1)
    reach = t.ppf(0.975, n_groups - 1) * error
    flat = spread <= _FLAT * np.abs(x).max(0)
    found = pd.DataFrame({"d": d, "low": d - reach, "high": d + reach, "p": p})
    found[flat] = np.nan
    return found


def null_effects(
    x: Float[np.ndarray, "record feature"], labels: Bool[np.ndarray, "permutation record"]
) -> Float[np.ndarray, "permutation feature"]:
    """Cohen's d for many labellings with equally many rows of the class; 0 where constant."""
    x = x.astype(np.float64)
    flat = x.std(0) <= _FLAT * np.abs(x).max(0)
    x = x - x.mean(0)
    n, n1 = x.shape[0], int(labels[0].sum())
    first = labels.astype(np.float64) @ x / n1
    second = -first * n1 / (n - n1)  # the mean over all is 0
    squares = (x**2).sum(0) - n1 * first**2 - (n - n1) * second**2
    spread = np.sqrt(np.maximum(squares, 0) / (n - 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (first - second) / spread
    found[:, flat] = 0
    return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)


def localise(
    x: Float[np.ndarray, "record feature"],
    classes: Int[np.ndarray, " record"],
    groups: Int[np.ndarray, " record"],
    sites: Sequence[str],
    positions: Sequence[str],
    *,
    names: Sequence[str] = ("right", "wrong"),
    count: int = PERMUTATIONS,
    seed: int = 0,
) -> Localisation:
    """Effects of all features of `Vectors.flat`, by site and position, against chance.

    names: of the classes; of two, the second is described, of several each against the rest.
    """
    width = x.shape[1] // (len(sites) * len(positions))
    moved = permutations(groups, np.zeros(len(groups), dtype=int), count, seed)
    tables, cells = [], []
    overall = np.zeros(count)
    for which in (1,) if len(names) == 2 else range(len(names)):
        is_class = classes == which
        permuted = is_class[moved]
        for site, position, part in _cells(len(sites), len(positions), width):
            own, null = [], np.zeros(count)
            for start in range(part.start, part.stop, _AT_ONCE):
                some = x[:, start : min(start + _AT_ONCE, part.stop)]
                own.append(effects(some, is_class, groups))
                null = np.maximum(null, np.abs(null_effects(some, permuted)).max(1))
            overall = np.maximum(overall, null)
            found = pd.concat(own, ignore_index=True)
            found.insert(0, "index", range(width))
            found.insert(0, "position", positions[position])
            found.insert(0, "site", sites[site])
            found.insert(0, "class", names[which])
            tables.append(found.dropna())
            cells.append((names[which], sites[site], positions[position], found, null))
    table: Any = pd.concat(tables, ignore_index=True)
    if table.empty:
        raise PredictError("every feature is constant: there is nothing to localise.")
    table["q"] = false_discovery_control(table["p"].to_numpy())
    chance = float(np.quantile(overall, 1 - LEVEL))
    table["stands_out"] = table["d"].abs() > chance
    largest = float(table["d"].abs().max())
    rows = [_cell(table, *cell) for cell in cells]
    return Localisation(table, pd.DataFrame(rows), largest, chance, _p(largest, overall))


def _cells(sites: int, positions: int, width: int) -> Iterator[tuple[int, int, slice]]:
    for site in range(sites):
        for position in range(positions):
            start = (site * positions + position) * width
            yield site, position, slice(start, start + width)


def _cell(
    table: Any, name: str, site: str, position: str, found: pd.DataFrame, null: np.ndarray
) -> dict[str, Any]:
    here: Any = table[
        (table["class"] == name) & (table["site"] == site) & (table["position"] == position)
    ]
    size: Any = here["d"].abs()
    largest = float(size.max()) if len(here) else 0.0
    return {
        "class": name,
        "site": site,
        "position": position,
        "features": len(here),
        "discoveries": int((here["q"] < LEVEL).sum()),
        "stand_out": int(here["stands_out"].sum()),
        "largest": largest,
        "signed": float(here.loc[size.idxmax(), "d"]) if len(here) else 0.0,
        "chance": float(np.quantile(null, 1 - LEVEL)),
        "p": _p(largest, null),
    }


def _p(value: float, null: np.ndarray) -> float:
    return float((1 + (null >= value - 1e-9).sum()) / (1 + len(null)))
