"""`PathwaysResult`: which latents change and what they carry, on disk, as a graph and as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from circuits.graph import Circuit
from circuits.runs import RunError, default_folder, new_run, read_method, read_tables, write_record

if TYPE_CHECKING:
    from circuits.features.bank import FeatureBank

TABLES = ("pathways", "effects", "steps", "trials")
GRAPH = "pathways.json"
_REPLAYED = 0.05  # nats a token: more than bfloat16 and another batch make
SIGN = (
    "positive: the change of the source raises the latent or the outcome (patched arm minus no-op "
    "arm); mediated = total - what is left with the mediator held at its no-op values"
)


@dataclass(frozen=True, eq=False)
class PathwaysResult:
    """Pathways of one replay.

    pathways: one row a downstream latent that was tested: `site, latent`; in the run `units` (in
        which it is active), `base` and `patched` (mean coefficient a step in the no-op and the
        patched arm), `difference, low, high, size, size_low, size_high, p, q`, and beside them the
        differences of the `reconstruction` arm and of the `random` arms (their mean, and the
        `random_largest`); the same with the text held as `held_...`; `estimate` (first-order part
        in the outcome, over the trials that choose mediators); over the others, for mediators
        `mediated, mediated_low, mediated_high, mediated_p, mediated_q, share, share_low,
        share_high` of the total, `alone` and `direct` with their intervals, and `confirmed`. NaN
        where a view did not test the latent.
    effects: `name, value, low, high, share, share_low, share_high, problem`: with the text held,
        over the trials that did not choose mediators, the outcome `base`, `total`, `mediated` (by
        all mediators together, confirmed or not), `direct` (left with all of them frozen),
        `confirmed` (by the confirmed ones together), `rest` (left with these frozen) and
        `controls` (by as many latents of their sites that change about as much, NaN without); seen
        in the run, over all trials that were run again, `seen`, split into `seen_direct,
        seen_by_tokens, seen_interaction`. In units of the outcome.
    steps: that split at every step: `step, trials, part, value, low, high`.
    trials: one row a trial that was run again: its outcomes, and whether it `confirms`; what
        confirms is NaN in the trials that chose.
    graph: source, confirmed mediators and the outcome, with edges in units of the outcome.
    record: what run.json holds.
    """

    pathways: pd.DataFrame
    effects: pd.DataFrame
    steps: pd.DataFrame
    trials: pd.DataFrame
    graph: Circuit
    record: dict[str, Any]

    def effect(self, name: str) -> Mapping[str, Any]:
        """One row of `effects`."""
        table: Any = self.effects
        return table[table["name"] == name].iloc[0].to_dict()

    def found(self, view: str = "held_") -> pd.DataFrame:
        """Latents with q at most the level, the largest effects first. view: "" for the run,
        "held_" with the text held."""
        table: Any = self.pathways
        mine = table[table[f"{view}q"] <= self.record["level"]]
        order = mine[f"{view}size"].abs().sort_values(ascending=False, kind="stable").index
        return mine.loc[order].reset_index(drop=True)

    def mediators(self) -> pd.DataFrame:
        """Those that were frozen, the largest mediated effects first."""
        table: Any = self.pathways
        mine = table[table["mediated"].notna()]
        order = mine["mediated"].abs().sort_values(ascending=False, kind="stable").index
        return mine.loc[order].reset_index(drop=True)

    def headline(self) -> str:
        """What was found, in one or two sentences."""
        record, table = self.record, self.mediators()
        every: Any = self.pathways
        counts = [len(self.found(view)) for view in ("", "held_")]
        tested = [int(every[f"{view}p"].notna().sum()) for view in ("", "held_")]
        said = (
            f"{record['source']['site']} latent {record['source']['latent']}: {counts[0]} of "
            f"{tested[0]} downstream latents change in the run, {counts[1]} of {tested[1]} with "
            f"the text held (q at most {record['level']:g}, over {record['units']} "
            f"{record['unit']}s)"
        )
        if not len(table):
            return said + "."
        n, whole = sum(map(bool, table["confirmed"])), self.effect("mediated")
        said += (
            f". {n} of {len(table)} mediators confirmed, over {record['units_confirmed']} "
            f"{record['unit_held']}s that did not choose them"
        )
        if whole["problem"]:
            return f"{said}. No share of the effect is given: {whole['problem']}."
        every, on = _shared(whole), f"of the effect on {record['outcome']}"
        if n == len(table):
            return f"{said}; {'it carries' if n == 1 else 'together they carry'} {every} {on}."
        if n == 0:
            return f"{said}; all {len(table)} together carry {every} {on}, which is not confirmed."
        some = "the confirmed one carries" if n == 1 else f"the {n} confirmed ones together carry"
        return (
            f"{said}; {some} {_shared(self.effect('confirmed'))} {on}, and all {len(table)} "
            f"together, confirmed or not, {every}."
        )

    def warnings(self) -> list[str]:
        """What must not be missed."""
        record, said = self.record, []
        every: Any = self.pathways
        for view, suffix in (("", ""), ("held_", "_held")):
            tested = int(every[f"{view}p"].notna().sum())
            smallest = record[f"smallest_p{suffix}"]
            needed = math.ceil(tested * smallest / record["level"] - 1e-9)
            if needed > 1 and self.found(view).empty:
                where = "with the text held" if view else "in the run"
                said.append(
                    f"{record[f'units{suffix}']} {record[f'unit{suffix}']}s give no p below "
                    f"{smallest:.2g}: of {tested} latents tested {where}, at least {needed} must "
                    "change for any to be found. More prompts would help."
                )
        frozen = self.mediators()
        smallest = record["smallest_p_confirmed"]
        needed = math.ceil(len(frozen) * smallest / record["level"] - 1e-9)
        if needed > 1 and not any(frozen["confirmed"]):
            said.append(
                f"{record['units_confirmed']} {record['unit_held']}s that did not choose mediators "
                f"give no p below {smallest:.2g}: of {len(frozen)}, at least {needed} must carry "
                "something for any to be confirmed. Fewer mediators or more prompts would help."
            )
        if record["replayed_error"] > _REPLAYED:
            said.append(
                "What the run wrote is not as probable as it recorded: off by up to "
                f"{record['replayed_error']:.2g} a token. Model, type or SAEs are not as they were."
            )
        if record.get("run_dtype") not in (None, record["dtype"]):
            said.append(
                f"The model ran in {record['dtype']}, and the run was written in "
                f"{record['run_dtype']}: a little of what differs is rounding."
            )
        if record["plan"]["outcome"].partition("[")[0].strip() == "kl":
            said.append(
                "KL is not linear and has no sign: what mediators carry overlaps, edges do not add "
                "up, and no shares are given. Name an --outcome, such as logprob:TOKENS, for them."
            )
        if record["unit"] == "trial":
            said.append(
                f"With {record['prompts']} prompts, tests and intervals are over trials: they say "
                "nothing of other prompts."
            )
        return said

    def page(self, bank: FeatureBank | None = None) -> str:
        """Graph, figures and tables as one page that opens without a network."""
        from circuits.replay.pathways_page import pathways_page

        return pathways_page(self, bank)

    def save(self, folder: str | Path | None = None, bank: FeatureBank | None = None) -> Path:
        """Write the run's folder (default `runs/<task>/pathways-<time>`) and return it."""
        task = str(self.record.get("task") or "replay")
        target = Path(folder) if folder else default_folder(task, "pathways")
        with new_run(target) as work:
            write_record(work, self.record)
            for name in TABLES:
                getattr(self, name).to_parquet(work / f"{name}.parquet", index=False)
            self.graph.save(work / GRAPH)
            (work / "pathways.html").write_text(self.page(bank), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> PathwaysResult:
        """Read a run back; raises `RunError` when the folder holds another one, or not a whole
        one."""
        record = read_method(folder, "pathways")
        pathways, effects, steps, trials = read_tables(folder, TABLES)
        if "confirmed" not in set(effects["name"]):
            raise RunError(
                f"{folder} was written by an earlier version, which did not tell what confirmed "
                "mediators carry from what all do: run it again."
            )
        graph = Circuit.load(Path(folder) / GRAPH)
        return cls(pathways, effects, steps, trials, graph, record)


def _shared(row: Mapping[str, Any]) -> str:
    """The share of an effect with its interval."""
    return f"{row['share']:.0%} [{row['share_low']:.0%}, {row['share_high']:.0%}]"
