"""`CircuitResult`: a circuit, what it is worth, its place on disk."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.attribute import Attribution
from circuits.circuit.evaluate import Shares, area
from circuits.circuit.judge import (
    CIRCUIT,
    COMPLEMENT,
    EDGES,
    ERRORS_IN,
    ERRORS_OUT,
    NOTHING,
    RANDOM,
    WHOLE,
    WITHOUT,
)
from circuits.circuit.references import CircuitError
from circuits.circuit.sets import UNSEEN
from circuits.features import FeatureBank
from circuits.graph import Circuit
from circuits.prompts import PromptPairs
from circuits.runs import (
    Parts,
    default_folder,
    new_run,
    read_pairs_run,
    write_record,
    write_scores,
)

DRAWN = 100  # nodes of a picture
_ENDS = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class CircuitResult:
    """What `circuit` found.

    scores: one row a run and pair: `set` (found, unseen, held_out), `variant` (circuit, complement,
        errors out, errors in, random, nothing, whole, without, edges), `detail`, `size` (share of
        all nodes seen, missing for the circuit itself), `nodes`, `reference`, `pair`, `m` (the
        metric).
    prompts: the pairs it was found on. record: what run.json holds.
    circuit: its nodes, the strongest first; the first `record["drawn"]` of them with edges and
        with what their removal costs.
    parts: what was kept on disk against interruptions, until the result is saved.
    attribution: the effects it was chosen by; not kept on disk.
    """

    scores: pd.DataFrame
    prompts: PromptPairs
    record: dict[str, Any]
    circuit: Circuit
    parts: Parts | None = None
    attribution: Attribution | None = None

    @property
    def sets(self) -> list[str]:
        """The sets of pairs it was run on."""
        return list(self.record["sets"])

    def gap(self, name: str) -> np.ndarray:
        """Metric of the clean less that of the corrupted run, one a pair of a set."""
        base = self.record["sets"][name]
        return np.array(base["metric_clean"]) - np.array(base["metric_corrupted"])

    def pairs(self, name: str) -> PromptPairs:
        """The pairs of a set."""
        return PromptPairs.of_record(json.loads(json.dumps(self.record["sets"][name]["pairs"])))

    def shares(
        self, variant: str, name: str = UNSEEN, reference: str | None = None
    ) -> tuple[pd.DataFrame, Shares]:
        """(runs of a variant: `detail, size, nodes`; their shares of m(M) - m(0))."""
        table: Any = self.scores
        by = reference or self.record["by"]
        table = table[table["set"] == name]
        mine = table[(table["variant"] == variant) & (table["reference"] == by)]
        if not len(mine):
            raise CircuitError(
                f"nothing was measured of {variant!r} on {name!r} with reference {by!r}."
            )
        whole = table[table["variant"] == WHOLE].drop_duplicates("pair").sort_values("pair")["m"]
        nothing = table[(table["variant"] == NOTHING) & (table["reference"] == by)]
        keys = ["detail", "size", "nodes"]
        count = len(whole)
        runs = mine[mine["pair"] == 0][keys].reset_index(drop=True)
        m = mine["m"].to_numpy().reshape(len(runs), count)
        below = nothing.sort_values("pair")["m"].to_numpy()
        return runs, Shares(m, below, whole.to_numpy(), self.gap(name))

    def curve(
        self, variant: str = CIRCUIT, name: str = UNSEEN, reference: str | None = None
    ) -> pd.DataFrame:
        """Faithfulness over sizes: `size, nodes, value, low, high`, with 95% intervals over pairs.

        variant: "circuit", "complement" (completeness), "errors out", "errors in" or "random".
        """
        runs, shares = self.shares(variant, name, reference)
        found = shares.summary()
        table: Any = runs.assign(value=found.value, low=found.low, high=found.high)
        table = table[table["size"].notna() & table["detail"].isin(["", "0"])]
        if self.record["sizes"][-1] == 1 and variant != ERRORS_OUT:
            end = 0.0 if variant == COMPLEMENT else 1.0  # everything, or nothing
            end = float("nan") if shares.problem else end
            last = {"size": 1.0, "nodes": self.record["nodes_seen"]}
            last |= {"value": end, "low": end, "high": end}
            table = pd.concat([table, pd.DataFrame([last])], ignore_index=True)
        return table[["size", "nodes", "value", "low", "high"]].reset_index(drop=True)

    def of_circuit(
        self, variant: str = CIRCUIT, name: str = UNSEEN, reference: str | None = None
    ) -> pd.DataFrame:
        """What the circuit itself has: `detail, value, low, high`. With "errors out" one row for
        all and one for each site, with "random" one a draw."""
        runs, shares = self.shares(variant, name, reference)
        found = shares.summary()
        table: Any = runs.assign(value=found.value, low=found.low, high=found.high)
        mine = table[table["size"].isna()]
        return mine[["detail", "value", "low", "high"]].reset_index(drop=True)

    def areas(
        self, variant: str = CIRCUIT, name: str = UNSEEN, reference: str | None = None
    ) -> dict[str, float]:
        """CPR, the area under faithfulness over sizes, and CMD, that of |1 - faithfulness|, with
        95% intervals over pairs (`cpr_low`, ...); NaN where there is no ratio."""
        runs, shares = self.shares(variant, name, reference)
        ladder = runs["size"].notna().to_numpy() & runs["detail"].isin(["", "0"]).to_numpy()
        sizes = runs["size"][ladder].tolist()
        drawn = shares.drawn()
        values = shares.summary().value[ladder][None]
        values = values if drawn is None else np.concatenate([values, drawn[:, ladder]])
        if self.record["sizes"][-1] == 1 and variant != ERRORS_OUT:
            end = 0.0 if variant == COMPLEMENT else 1.0
            sizes = [*sizes, 1.0]
            values = np.concatenate([values, np.full((len(values), 1), end)], axis=1)
        found: dict[str, float] = {}
        for label, shape in (("cpr", lambda x: x), ("cmd", lambda x: np.abs(1 - x))):
            areas = area(sizes, shape(values))
            low, high = (np.nan, np.nan) if drawn is None else np.quantile(areas[1:], _ENDS)
            found[label] = float(areas[0])
            found[f"{label}_low"], found[f"{label}_high"] = float(low), float(high)
        return found

    def summary(self) -> pd.DataFrame:
        """One row a set and reference: `faithfulness, completeness, errors_out, errors_in, random`
        of the circuit with intervals (`_low`, `_high`), `cpr, cmd` of its ladder, `problem` where
        there is no ratio."""
        rows = []
        for name in self.sets:
            for reference in self.record["references"]:
                row: dict[str, Any] = {"set": name, "reference": reference}
                row["problem"] = self.shares(CIRCUIT, name, reference)[1].problem or ""
                for label, variant in _SUMMARY.items():
                    if not self._has(variant, name):
                        continue
                    table: Any = self.of_circuit(variant, name, reference)
                    table = table[~table["detail"].isin(self.record["sites"])]
                    for end in ("", "_low", "_high"):
                        row[label + end] = float(table[end.strip("_") or "value"].mean())
                rows.append(row | self.areas(CIRCUIT, name, reference))
        return pd.DataFrame(rows)

    def _has(self, variant: str, name: str) -> bool:
        table = self.scores
        return bool(((table["set"] == name) & (table["variant"] == variant)).any())

    def removals(self) -> pd.DataFrame:
        """What the removal of each drawn node costs, as a share of m(M) - m(0): `node, value, low,
        high`, in the circuit's order. Positive: the circuit is worse without it."""
        if not self._has(WITHOUT, UNSEEN):
            raise CircuitError("no removals were measured: draw nodes (drawn above 0).")
        runs, without = self.shares(WITHOUT)
        itself, circuit = self.shares(CIRCUIT)
        row = int(np.flatnonzero(itself["size"].isna())[0])
        lost = replace(without, m=circuit.m[row] - without.m + without.nothing)
        found = lost.summary()
        nodes = [str(self.circuit.nodes[int(n)].node) for n in runs["detail"]]
        return pd.DataFrame(
            {"node": nodes, "value": found.value, "low": found.low, "high": found.high}
        )

    def with_removals(self) -> CircuitResult:
        """The same, what removals cost written into the circuit's nodes."""
        costs = self.removals()["value"].tolist()
        nodes = list(self.circuit.nodes)
        for i, cost in enumerate(costs):
            nodes[i] = replace(nodes[i], removal=None if np.isnan(cost) else cost)
        return replace(self, circuit=replace(self.circuit, nodes=tuple(nodes)))

    def edge_curve(self) -> pd.DataFrame:
        """Faithfulness of the drawn nodes with the strongest of their edges alone: `edges, value,
        low, high`; in the last row `edges` is "nodes": the same nodes, not wired."""
        if not self._has(EDGES, UNSEEN):
            raise CircuitError("no edges were measured: draw nodes (drawn above 0).")
        runs, shares = self.shares(EDGES)
        found = shares.summary()
        return pd.DataFrame(
            {"edges": runs["detail"], "value": found.value, "low": found.low, "high": found.high}
        )

    def described(self, bank: FeatureBank | None) -> Circuit:
        """The circuit with a line about each latent, of a feature bank."""
        if bank is None:
            return self.circuit
        known = set(map(str, bank.sites))
        nodes = [
            replace(one, label=bank.describe(one.node.site, one.node.latent))
            if one.node.role == "latent" and str(one.node.site) in known
            else one
            for one in self.circuit.nodes
        ]
        return replace(self.circuit, nodes=tuple(nodes))

    def curves_figure(self) -> Any:
        """Faithfulness over sizes as a plotly figure: references side by side, the circuit with
        and without errors, its complement, and random circuits."""
        from circuits.plots.circuit import curves

        return curves(self)

    def removals_figure(self) -> Any:
        """What the removal of the drawn nodes costs, the largest first, as a plotly figure."""
        from circuits.plots.circuit import removals

        return removals(self)

    def edges_figure(self) -> Any:
        """Faithfulness of the drawn nodes over the number of edges kept, as a plotly figure."""
        from circuits.plots.circuit import edge_curve

        return edge_curve(self)

    def graph(self, bank: FeatureBank | None = None) -> str:
        """The interactive page of the circuit's drawn nodes, a whole HTML document."""
        from circuits.graph.page import graph_page

        title = f"Circuit: {self.record['task']}"
        return graph_page(self.described(bank), bank, title, drawn=self.record["drawn"] or DRAWN)

    def headline(self) -> str:
        """One line about it."""
        record = self.record
        contrast = f" ({record['contrast']})" if record.get("contrast") else ""
        return (
            f"{record['model']} on {record['task']}{contrast}: a circuit of {record['nodes']:,} of "
            f"{record['nodes_seen']:,} nodes at {len(record['sites'])} sites"
        )

    def save(self, folder: str | Path | None = None, bank: FeatureBank | None = None) -> Path:
        """Write the run: circuit.json, graph.html, circuit.html, circuit.graphml, neuronpedia.json,
        scores.parquet, run.json. Returns the folder."""
        from circuits.graph.formats import to_graphml, to_neuronpedia
        from circuits.plots.circuit import page_of

        target = Path(folder) if folder else default_folder(self.record["task"], "circuit")
        whole = self.described(bank)
        drawn = whole.strongest(self.record["drawn"] or DRAWN)
        with new_run(target) as work:
            write_scores(work, self.scores)
            whole.save(work / "circuit.json")
            (work / "graph.html").write_text(self.graph(bank), encoding="utf-8")
            (work / "circuit.html").write_text(page_of(self), encoding="utf-8")
            (work / "circuit.graphml").write_text(to_graphml(drawn), encoding="utf-8")
            text = json.dumps(to_neuronpedia(drawn), ensure_ascii=False)
            (work / "neuronpedia.json").write_text(text + "\n", encoding="utf-8")
            write_record(work, {**self.record, **self.prompts.as_record()})
        if self.parts:
            self.parts.clear()
        if self.attribution is not None and self.attribution.parts:
            self.attribution.parts.clear()
        return target

    @classmethod
    def load(cls, folder: str | Path) -> CircuitResult:
        """Read a run back."""
        return cls(*read_pairs_run(folder, "circuit"), Circuit.load(folder))

    def _repr_html_(self) -> str:
        table: Any = self.summary()
        return f"<p>{html.escape(self.headline())}</p>{table.to_html(index=False)}"


_SUMMARY: Mapping[str, str] = {
    "faithfulness": CIRCUIT,
    "completeness": COMPLEMENT,
    "errors_out": ERRORS_OUT,
    "errors_in": ERRORS_IN,
    "random": RANDOM,
}
