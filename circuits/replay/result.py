"""`ReplayResult`: a finished run on disk, its tables and what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from circuits.replay.arms import NO_OP
from circuits.replay.interventions import ReplayError
from circuits.replay.variance import (
    ALWAYS,
    Ratio,
    Report,
    by_trial,
    column_of,
    mean_difference,
    outcome_over,
    title_of,
    variance_ratio,
)
from circuits.runs import RunError, default_folder, new_run, read_method, read_tables
from circuits.sites import Site

_ROWS = 4096  # of a table at once


@dataclass(frozen=True, eq=False)
class ReplayResult:
    """What the model wrote in every arm.

    folder: of the run, from which tables are read when they are asked for.
    record: what run.json holds.
    """

    folder: Path
    record: dict[str, Any]

    @cached_property
    def responses(self) -> pd.DataFrame:
        """One row a response: `arm, kind, prompt, trial, response, tokens, length, stopped,
        divergence, logprob, unpatched_logprob, parsed`.

        prompt: its number in `record["prompts"]`. tokens, length: the stop token included.
        divergence: the first step whose token is not the no-op arm's, NaN where there is none.
        logprob: of the response under the model as it ran, unpatched_logprob under the unchanged
        one (if measured); natural logarithms, temperature 1. parsed: JSON of what the task read.
        """
        (table,) = read_tables(self.folder, ["responses"])
        return table

    def facts(self, *names: str) -> Iterator[Any]:
        """Columns of the responses, some thousand rows at a time."""
        path = self.folder / "responses.parquet"
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS, columns=list(names)):
                    yield batch.to_pandas()
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(f"{path} cannot be read ({error}): run it again.") from error

    @property
    def arms(self) -> tuple[str, ...]:
        """no-op first, latent last."""
        return tuple(self.record["arms"])

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where latents were recorded."""
        return tuple(Site.parse(name) for name in self.record["sites"])

    def _check(self, arm: str | None) -> None:
        if arm is not None and arm not in self.arms:
            raise ReplayError(f"the run has no arm {arm!r}: it has {', '.join(self.arms)}.")

    def steps(self, arm: str | None = None) -> pd.DataFrame:
        """One row a step: `arm, prompt, trial, step, token, logprob, top_tokens, top_logprobs`.

        Step s is made at the position before generated token s.
        """
        self._check(arm)
        return pd.concat([*self._pieces("steps", arm, None)], ignore_index=True)

    def latents(self, arm: str | None = None, sites: Sequence[Site] | None = None) -> pd.DataFrame:
        """One row an active latent: `arm, prompt, trial, step, site, latent, value`; value: its
        effective coefficient. What is not there is 0."""
        self._check(arm)
        missing = [str(site) for site in sites or () if site not in self.sites]
        if missing:
            there = ", ".join(map(str, self.sites))
            raise ReplayError(f"{', '.join(missing)} was not recorded: there are {there}.")
        return pd.concat([*self._pieces("latents", arm, sites)], ignore_index=True)

    def _pieces(
        self, name: str, arm: str | None, sites: Sequence[Site] | None
    ) -> Iterator[pd.DataFrame]:
        """Row group after row group, so that no more than what is asked for is held."""
        path = self.folder / f"{name}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                yield file.schema_arrow.empty_table().to_pandas()
                for i in range(file.num_row_groups):
                    table = file.read_row_group(i)
                    keep = pa.array(np.ones(len(table), dtype=bool))
                    if arm is not None:
                        keep = pc.and_(keep, pc.equal(table["arm"].cast(pa.string()), arm))  # pyright: ignore
                    if sites is not None:
                        names = pa.array([str(site) for site in sites])
                        inside = pc.is_in(table["site"].cast(pa.string()), value_set=names)  # pyright: ignore
                        keep = pc.and_(keep, inside)  # pyright: ignore
                    yield table.filter(keep).to_pandas()
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(f"{path} cannot be read ({error}): run it again.") from error

    def values(self, outcome: str, arm: str) -> np.ndarray:
        """An outcome of every response of an arm, [prompt, trial]; see
        `circuits.replay.variance.outcome_of`."""
        self._check(arm)
        column = column_of(outcome)
        found = outcome_over((piece[column] for piece in self.facts(column)), outcome)
        return by_trial(self._which, found, arm)

    @cached_property
    def _which(self) -> pd.DataFrame:
        """`arm, prompt, trial` of every response."""
        whole = pd.concat([*self.facts("arm", "prompt", "trial")], ignore_index=True)
        return whole.astype({"arm": "category"})

    def variance(self, outcome: str = "length", seed: int = 0) -> pd.DataFrame:
        """What common random numbers save, arm by arm: `arm, outcome, difference` (arm - no-op)
        with its `unit`, `prompts, pairs, lost` (pairs that have no value on one side), `paired` and
        `independent` variance, and their `ratio`, with `_low, _high` (95%; of the difference over
        the unit named, of the ratio over prompts). Below 1 the shared noise helps."""
        base, rows = self.values(outcome, NO_OP), []
        for arm in self.arms[1:]:
            mine = self.values(outcome, arm)
            nan = float("nan")
            found = Ratio(nan, nan, nan, nan, nan)
            if (~np.isnan(mine - base)).sum(axis=1).max() > 1:  # one trial has no variance
                found = variance_ratio(mine, base, seed)
            moved = mean_difference(mine, base, seed)
            rows.append(
                {
                    "arm": arm,
                    "outcome": outcome,
                    "difference": moved.value,
                    "difference_low": moved.low,
                    "difference_high": moved.high,
                    "unit": moved.unit,
                    "prompts": moved.prompts,
                    "pairs": moved.pairs,
                    "lost": moved.lost,
                    "paired": found.paired,
                    "independent": found.independent,
                    "ratio": found.value,
                    "ratio_low": found.low,
                    "ratio_high": found.high,
                }
            )
        return pd.DataFrame(rows)

    def reports(self, outcomes: Sequence[str] = ()) -> list[Report]:
        """`variance` of length and log-probability, of the outcomes that the run was asked for, and
        of others. Raises `ReplayError` for one of the others that the run does not have."""
        kept, found = self.record.get("outcomes", []), []
        for outcome in dict.fromkeys([*ALWAYS, *kept, *outcomes]):
            table, problem = None, f"no response's {outcome} varies"
            try:
                table = self.variance(outcome)
            except ReplayError as error:
                if outcome in outcomes:
                    raise
                problem = str(error)
            if table is not None and (table["independent"].to_numpy() == 0).all():
                table = None
            found.append(Report(title_of(outcome), table, "" if table is not None else problem))
        return found

    def table(self) -> pd.DataFrame:
        """One row an arm: `arm, responses, length` (mean, tokens), `stopped` (share that ended with
        a stop token), `diverged` (share whose tokens are not the no-op arm's), `divergence` (median
        first step at which they are not) and `valid` (share that the task could read, NaN without
        a task)."""
        names = ("arm", "length", "stopped", "divergence", "parsed")
        sums = {arm: np.zeros(5) for arm in self.arms}
        apart = self.divergences()
        for piece in self.facts(*names):
            valid = piece["parsed"].map(_valid)
            columns = [np.ones(len(piece)), piece["length"], piece["stopped"], valid.notna(), valid]
            numbers = np.stack([np.asarray(c, dtype=np.float64) for c in columns])
            for arm, so_far in sums.items():
                mine = numbers[:, (piece["arm"] == arm).to_numpy()]
                sums[arm] = so_far + np.nansum(mine, axis=1)
        rows = []
        for arm, (count, length, stopped, read, valid) in sums.items():
            steps = np.repeat(np.arange(len(apart[arm])), apart[arm])
            rows.append(
                {
                    "arm": arm,
                    "responses": int(count),
                    "length": length / max(1, count),
                    "stopped": stopped / max(1, count),
                    "diverged": len(steps) / max(1, count),
                    "divergence": float(np.median(steps)) if len(steps) else np.nan,
                    "valid": valid / read if read else np.nan,
                }
            )
        return pd.DataFrame(rows)

    def divergences(self) -> dict[str, np.ndarray]:
        """Of each arm, how many trials have each step as the first whose token is not the no-op
        arm's, [step]; those without one are left out."""
        found = {arm: np.zeros(self.record["max_new_tokens"] + 1, int) for arm in self.arms}
        for piece in self.facts("arm", "divergence"):
            first = piece["divergence"].to_numpy(dtype=np.float64)
            for arm, so_far in found.items():
                steps = first[(piece["arm"] == arm).to_numpy() & ~np.isnan(first)].astype(int)
                found[arm] = so_far + np.bincount(steps, minlength=len(so_far))
        return found

    def headline(self) -> str:
        """What was done, in words."""
        record = self.record
        changes = ", ".join(
            f"{c['site']}:{c['latent']} {c['mode']}"
            + ("" if c["value"] is None else f" {c['value']:g}")
            + f" ({c['where']})"
            for c in record["changes"]
        )
        return (
            f"{record['model']}, {record['task']}: {changes}; {len(record['prompts'])} prompts x "
            f"{record['trials']} trials in {len(self.arms)} arms"
        )

    def warnings(self) -> list[str]:
        """What must not be missed: random arms that are no controls, or are not there."""
        found = []
        if not self.record["randoms"]:
            found.append(
                "There is no random arm: whether another latent's write of the same size would do "
                "the same cannot be said."
            )
        for about in self.record["latents"]:
            loose = [
                f"{latent} ({rate:.2%})"
                for latent, rate, matched in zip(
                    about["random"], about["random_rates"], about["random_matched"], strict=True
                )
                if not matched
            ]
            if loose:
                found.append(
                    f"Not matched: {', '.join(loose)} and {about['site']}:{about['latent']} "
                    f"({about['rate']:.2%}) are not as often active within a factor of 2, because "
                    "there are too few such latents."
                )
        return found

    def divergence_figure(self) -> Any:
        """Share of trials whose tokens are still those of the no-op arm, by step."""
        from circuits.plots.replay import divergence_figure

        return divergence_figure(self)

    def page(self) -> str:
        """Arms, divergence and variances as one HTML page that opens without a network."""
        from circuits.plots.replay import sections
        from circuits.report import page

        return page(f"Replay: {self.headline()}", sections(self))

    def save(self, folder: str | Path | None = None) -> Path:
        """Copy the run to a folder (default `runs/<task>/replay-<time>`); returns its path."""
        target = Path(folder) if folder else default_folder(str(self.record["task"]), "replay")
        with new_run(target) as work:
            shutil.copytree(self.folder, work, dirs_exist_ok=True)
        return target

    @classmethod
    def read(cls, folder: str | Path) -> ReplayResult:
        """`load`, of a folder that may not be whole yet."""
        return cls(Path(folder), read_method(folder, "replay"))

    @classmethod
    def load(cls, folder: str | Path) -> ReplayResult:
        """Read a run back. Raises `RunError` when the folder is not a whole run of replay."""
        found = cls.read(folder)
        for name in ("responses", "steps", "latents"):
            if not (found.folder / f"{name}.parquet").is_file():
                raise RunError(f"{folder} is not a whole run of replay: it has no {name}.parquet.")
        return found


def _valid(text: Any) -> float:
    """Whether a task could read a response; NaN where none tried."""
    return float(bool(json.loads(text).get("valid"))) if isinstance(text, str) else float("nan")
