"""Which downstream latents change: response by response, in two arms of a replay.

1. The value of a latent in a response is its mean effective coefficient over *that response's own*
   steps, 0 at steps where it is not active. Arms share their random numbers but not their texts:
   once the tokens of a trial have diverged, its steps no longer correspond, and one arm may stop
   earlier than the other. Each mean is over all steps of its own arm, so that a longer response
   does not count more, and what is compared is the latent's activity per generated token:
   everything that the change does, other words included. Where the tokens are held (held.py), the
   steps of both correspond.
2. A latent is tested when it is active, in either of the two arms, in at least `LEAST_UNITS` units
   (paired.py). That does not look at the difference and stays as it is when the arms change
   places, so it keeps the level of the test. With fewer than 6 active units no p is below .05.
3. q is the false discovery rate of Benjamini and Hochberg (1995) over all tested latents of all
   sites together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from jaxtyping import Float, Int
from scipy import sparse

from circuits.hypotheses.assess import false_discoveries
from circuits.replay.paired import PathwayError, Units, sign_flips, sizes, summarise
from circuits.sites import Site

LEAST_UNITS = 6
_AT_ONCE = 4096  # latents whose trials are dense at once
Means = Mapping[Site, sparse.csr_array]  # [trial, latent] of every site


@dataclass(frozen=True)
class Trials:
    """The trials that all arms have, in one order.

    table: `prompt, trial, kind`, one row a trial. lengths: steps of each response, by arm.
    """

    table: pd.DataFrame
    lengths: Mapping[str, Int[np.ndarray, " trial"]]

    def __len__(self) -> int:
        return len(self.table)

    @classmethod
    def of(cls, responses: pd.DataFrame, arms: Sequence[str], kind: str | None = None) -> Trials:
        """Those of the table of responses. kind: of prompts; None takes all.

        Trials in which an arm wrote nothing at all are left out: nothing can be active there.
        Raises `PathwayError` for an arm or kind that the run does not have, and for no trials.
        """
        known = {name: set(responses[name]) for name in ("arm", "kind")}
        missing = [arm for arm in arms if arm not in known["arm"]]
        if missing:
            raise PathwayError(
                f"the run has no arm {', '.join(missing)}: it has {_listed(known['arm'])}."
            )
        if kind is not None and kind not in known["kind"]:
            raise PathwayError(
                f"the run has no prompts of the kind {kind!r}: it has {_listed(known['kind'])}."
            )
        if kind is not None:
            responses = responses.loc[responses["kind"] == kind]
        wide: Any = responses.pivot(index=["kind", "prompt", "trial"], columns="arm")["length"]
        wide = wide[list(arms)].dropna()
        wide = wide[(wide > 0).all(axis=1)].sort_index()
        if wide.empty:
            raise PathwayError(f"no trial has a response in each of the arms {', '.join(arms)}.")
        lengths = {arm: wide[arm].to_numpy().astype(int) for arm in arms}
        table = wide.index.to_frame(index=False)[["prompt", "trial", "kind"]]
        return cls(table, lengths)


def _listed(names: set[Any]) -> str:
    return ", ".join(sorted(map(str, names))) or "none"


def read_means(path: Path, trials: Trials, widths: Mapping[Site, int]) -> dict[str, Means]:
    """Mean coefficients of every latent in every response, by arm.

    path: latents.parquet, read piece by piece: memory grows with the trials and not with their
        steps. widths: latents of the dictionaries of the sites that are wanted.
    """
    known = {name: np.unique(trials.table[name]) for name in ("prompt", "trial")}
    number = np.full([len(some) + 1 for some in known.values()], -1)  # the last for all others
    number[*(_codes(trials.table[name], some) for name, some in known.items())] = trials.table.index
    named = [(arm, str(site)) for arm in trials.lengths for site in widths]
    shapes = [(len(trials), width) for _ in trials.lengths for width in widths.values()]
    parts: list[list[sparse.csr_array]] = [[] for _ in named]
    columns = ["arm", "site", "prompt", "trial", "latent", "value"]
    file = pq.ParquetFile(path, read_dictionary=["arm", "site"])
    for batch in file.iter_batches(1 << 20, columns=columns):
        values = {name: batch[name].to_numpy(zero_copy_only=False) for name in columns[2:]}
        rows = number[*(_codes(values[name], some) for name, some in known.items())]
        pair = np.where(rows >= 0, _pairs(batch["arm"], batch["site"], named), -1)
        for one in np.flatnonzero(np.bincount(pair[pair >= 0], minlength=1)):
            mine = pair == one
            entries = values["value"][mine].astype(np.float64)
            at = rows[mine], values["latent"][mine]
            parts[one].append(sparse.coo_array((entries, at), shape=shapes[one]).tocsr())
    found: dict[str, Means] = {arm: {} for arm in trials.lengths}
    for (arm, name), some, shape in zip(named, parts, shapes, strict=True):
        each = sparse.diags_array(1 / trials.lengths[arm])
        found[arm] = {**found[arm], Site.parse(name): sparse.csr_array(each @ summed(some, shape))}
    return found


def _codes(values: Any, known: Any) -> Int[np.ndarray, " row"]:
    """The place of each value among the sorted `known` ones, -1 for others."""
    values = np.asarray(values)
    at = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[at] == values, at, -1)


def _pairs(arms: Any, sites: Any, named: Sequence[tuple[str, str]]) -> Int[np.ndarray, " row"]:
    """The place of each row's arm and site, which are dictionaries, in `named`, -1 for others."""
    places = {pair: i for i, pair in enumerate(named)}
    arm, site = (column.dictionary.to_pylist() for column in (arms, sites))
    table = np.array([[places.get((a, s), -1) for s in site] for a in arm])
    return table[arms.indices.to_numpy(), sites.indices.to_numpy()]


def summed(parts: Sequence[sparse.csr_array], shape: tuple[int, int]) -> sparse.csr_array:
    """The sum of sparse matrices of one shape, in one step."""
    if not parts:
        return sparse.csr_array(shape, dtype=np.float64)
    some = [part.tocoo() for part in parts]
    at = tuple(np.concatenate([one.coords[axis] for one in some]) for axis in (0, 1))
    values = np.concatenate([one.data for one in some])
    return sparse.csr_array(sparse.coo_array((values, at), shape=shape))


def active_units(
    first: sparse.csr_array, second: sparse.csr_array, units: Units
) -> Int[np.ndarray, " latent"]:
    """In how many units a latent is active in one of two arms or both."""
    either = (abs(first) + abs(second)) > 0
    if units.kind == "trial":
        return np.asarray(either.sum(0)).reshape(-1).astype(int)
    of_prompt = sparse.csr_array(
        (np.ones(len(units.prompt)), (units.prompt, np.arange(len(units.prompt)))),
        shape=(units.n_prompts, len(units.prompt)),
    )
    found = (of_prompt @ either.astype(np.float64)) > 0
    return np.asarray(found.sum(0)).reshape(-1).astype(int)


def changes(
    first: Means,
    second: Means,
    units: Units,
    *,
    least: int = LEAST_UNITS,
    seed: int = 0,
    rounding: float = 0.0,
) -> pd.DataFrame:
    """Latents in the arm `first` against the arm `second`, tested.

    rounding: differences of a response up to this share of the latent's largest mean are taken for
        0. (What is only computed in another order is no change, however regular it is.)
    least: units in which a latent must be active, as the module says.

    Columns: `site, latent, units` (active ones), `base` (mean coefficient in `second`), `patched`
    (in `first`), `difference` with `low, high`, `size` with `size_low, size_high` (d_z), `p, q`.
    Positive: the latent is higher in `first`. Coefficients are per step.
    """
    tables = []
    for site in first:
        count = active_units(first[site], second[site], units)
        chosen = np.flatnonzero(count >= least)
        for start in range(0, len(chosen), _AT_ONCE):
            some = chosen[start : start + _AT_ONCE]
            a, b = (_columns(arm[site], some) for arm in (first, second))
            same = np.abs(a - b) <= rounding * np.maximum(np.abs(a), np.abs(b)).max(0)
            a = np.where(same, b, a)
            tables.append(_tested(str(site), some, count[some], a, b, units, seed))
    if not tables:
        none, empty = np.zeros(0, dtype=int), np.zeros((len(units.prompt), 0))
        tables = [_tested("", none, none, empty, empty, units, seed)]
    table = pd.concat(tables, ignore_index=True)
    table["q"] = false_discoveries(table["p"].to_numpy(float))
    return table


def _columns(
    means: sparse.csr_array, latents: Int[np.ndarray, " some"]
) -> Float[np.ndarray, "trial some"]:
    return means[:, latents].toarray()


def _tested(
    site: str,
    latents: Int[np.ndarray, " some"],
    count: Int[np.ndarray, " some"],
    first: Float[np.ndarray, "trial some"],
    second: Float[np.ndarray, "trial some"],
    units: Units,
    seed: int,
) -> pd.DataFrame:
    differences = first - second
    mean = summarise(differences, units, seed=seed)
    size = sizes(differences, units)
    return pd.DataFrame(
        {
            "site": site,
            "latent": latents,
            "units": count,
            "base": units.mean(second),
            "patched": units.mean(first),
            "difference": mean.value,
            "low": mean.low,
            "high": mean.high,
            "size": size.value,
            "size_low": size.low,
            "size_high": size.high,
            "p": sign_flips(differences, units, seed=seed),
        }
    )


def beside(
    table: pd.DataFrame, arms: Mapping[str, Means], base: Means, units: Units
) -> Float[np.ndarray, "arm latent"]:
    """The mean differences of other arms from `base`, at the latents of a table of changes."""
    found = np.zeros((len(arms), len(table)))
    for site, part in table.groupby("site", sort=False):
        here, latents = Site.parse(str(site)), part["latent"].to_numpy()
        for row, means in enumerate(arms.values()):
            moved = _columns(means[here], latents) - _columns(base[here], latents)
            found[row, part.index.to_numpy()] = units.mean(moved)
    return found
