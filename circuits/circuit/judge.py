"""Everything that is measured of a circuit and its ladder, as one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from circuits.circuit.candidates import Candidates
from circuits.circuit.evaluate import metrics_of, wired_metrics_of
from circuits.circuit.references import ReferenceName
from circuits.circuit.selections import Selections
from circuits.circuit.sets import FOUND, HELD_OUT, UNSEEN
from circuits.circuit.wired import Wiring
from circuits.graph import Circuit
from circuits.metrics import Metric
from circuits.models.hooked import HookedModel
from circuits.prompts import PromptPairs
from circuits.runs import Parts
from circuits.saes import SaeSet

# What is run. The first ones on every ladder size and on the circuit itself.
CIRCUIT, COMPLEMENT = "circuit", "complement"
ERRORS_OUT, ERRORS_IN = "errors out", "errors in"
RANDOM = "random"
NOTHING, WHOLE = "nothing", "whole"
WITHOUT, EDGES = "without", "edges"
OF_SET = {
    FOUND: (CIRCUIT,),
    UNSEEN: (CIRCUIT, COMPLEMENT, ERRORS_OUT, ERRORS_IN, RANDOM),
    HELD_OUT: (CIRCUIT, COMPLEMENT, ERRORS_OUT),
}
RANDOM_DRAWS = 3
EDGE_SHARES = (0.1, 0.25, 0.5, 1.0)  # of a circuit's edges


@dataclass(frozen=True)
class Judge:
    """What measurements need. keep: finished tables, against interruptions."""

    model: HookedModel
    saes: SaeSet
    candidates: Candidates
    references: tuple[ReferenceName, ...]
    metric: Metric
    batch_size: int | None
    progress: bool
    keep: Parts | None = None

    def ladder(
        self, name: str, pairs: PromptPairs, sizes: Sequence[float], count: int, part: int
    ) -> pd.DataFrame:
        """All variants of a set of pairs, on the ladder and on the circuit of `count` nodes.

        Columns: `set, variant, detail, size, nodes, reference, pair, m`. size: the share of all
        nodes that were seen, NaN for the circuit itself.
        """
        return self._kept(part, lambda: self._ladder(name, pairs, sizes, count))

    def _ladder(
        self, name: str, pairs: PromptPairs, sizes: Sequence[float], count: int
    ) -> pd.DataFrame:
        candidates = self.candidates
        below = [size for size in sizes if size < 1]
        counts, ladder = candidates.ladder([*below])
        chosen = Selections.join([ladder, Selections.of(candidates.table, candidates.top([count]))])
        shares: list[float] = [*below, float("nan")]
        counts = [*counts, count]
        runs: list[tuple[Selections, list[tuple[str, str, float, int]]]] = []
        for variant in OF_SET[name]:
            if variant == RANDOM:
                runs += [self._random(shares, counts, seed) for seed in range(RANDOM_DRAWS)]
                continue
            rows = [(variant, "", s, n) for s, n in zip(shares, counts, strict=True)]
            runs.append((varied(chosen, variant), rows))
            if variant == ERRORS_OUT and len(below) < len(sizes):
                # Of everything there is: with its errors it is the model, without them it is not.
                most, everything = candidates.ladder([1.0])
                runs.append((varied(everything, variant), [(variant, "", 1.0, most[0])]))
        if name == UNSEEN:  # errors of one site out, of the circuit itself
            itself = Selections.of(candidates.table, candidates.top([count]))
            for site in candidates.table.sites:
                row = (ERRORS_OUT, str(site), float("nan"), count)
                runs.append((itself.without_errors(site), [row]))
        empty = np.zeros((1, len(candidates)), dtype=bool)
        runs.append((Selections.of(candidates.table, empty), [(NOTHING, "", 0.0, 0)]))
        every = Selections.join([part for part, _ in runs])
        m, whole = self._metrics(pairs, every, f"{name}: {len(every)} circuits")
        rows = [row for _, part in runs for row in part]
        return self._table(name, rows, m, whole)

    def _random(
        self, shares: list[float], counts: list[int], seed: int
    ) -> tuple[Selections, list[tuple[str, str, float, int]]]:
        """Random circuits of the same sizes; all but the first draw of the circuit's size alone."""
        which = range(len(counts)) if seed == 0 else [len(counts) - 1]
        sizes = [counts[i] for i in which]
        inside = self.candidates.random(sizes, seed)
        rows = [(RANDOM, str(seed), shares[i], counts[i]) for i in which]
        return Selections.of(self.candidates.table, inside), rows

    def faithfulness(self, pairs: PromptPairs, counts: Sequence[int], by: str) -> NDArray[Any]:
        """Mean metric of the strongest so many nodes, of nothing and of everything: [count + 2]."""
        chosen = Selections.of(self.candidates.table, self.candidates.top([*counts, 0]))
        name = f"size: {len(counts)} circuits"
        alone = replace(self, references=(by,))
        m, whole = alone._metrics(pairs, chosen, name)
        return np.append(m[:, 0].mean(1), whole.mean())

    def removals(
        self, pairs: PromptPairs, count: int, removed: int, by: ReferenceName, part: int
    ) -> pd.DataFrame:
        """The circuit of `count` nodes without each of its strongest `removed` ones."""

        def run() -> pd.DataFrame:
            chosen = Selections.of(self.candidates.table, self.candidates.top([count]))
            alone = replace(self, references=(by,))
            title = f"without each of {removed} nodes"
            m, whole = alone._metrics(pairs, chosen, title, list(range(removed)))
            rows = [(WITHOUT, str(n), float("nan"), count) for n in range(removed)]
            return alone._table(UNSEEN, rows, m, whole)

        return self._kept(part, run)

    def edges(
        self, pairs: PromptPairs, circuit: Circuit, by: ReferenceName, part: int
    ) -> pd.DataFrame:
        """The drawn nodes (the first ones of the table) with the strongest shares of their edges
        alone, and with all of them."""

        def run() -> pd.DataFrame:
            nodes = range(len(circuit))
            edges = sorted(circuit.edges, key=lambda e: -abs(e.weight))
            counts = [max(1, round(share * len(edges))) for share in EDGE_SHARES]
            circuits = [(nodes, [(e.source, e.target) for e in edges[:n]]) for n in counts]
            wiring = Wiring.of(self.candidates.table, circuits)
            alone = replace(self, references=(by,))
            m, whole = wired_metrics_of(
                self.model,
                self.saes,
                pairs,
                wiring,
                self.candidates.places,
                alone.references,
                metric=self.metric,
                batch_size=self.batch_size,
                progress=f"{len(counts)} circuits of edges" if self.progress else None,
            )
            rows = [
                (EDGES, str(n), share, len(circuit))
                for share, n in zip(EDGE_SHARES, counts, strict=True)
            ]
            every = Selections.of(self.candidates.table, self.candidates.top([len(circuit)]))
            itself, _ = alone._metrics(pairs, every, "the drawn nodes")
            rows.append((EDGES, "nodes", float("nan"), len(circuit)))
            return alone._table(UNSEEN, rows, np.concatenate([m, itself]), whole)

        return self._kept(part, run)

    def _metrics(
        self,
        pairs: PromptPairs,
        chosen: Selections,
        title: str,
        removed: Sequence[int] | None = None,
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        return metrics_of(
            self.model,
            self.saes,
            pairs,
            chosen,
            self.candidates.places,
            self.references,
            metric=self.metric,
            removed=removed,
            batch_size=self.batch_size,
            progress=title if self.progress else None,
        )

    def _table(
        self,
        name: str,
        rows: Sequence[tuple[str, str, float, int]],
        m: NDArray[np.floating],
        whole: NDArray[np.floating],
    ) -> pd.DataFrame:
        """[row, reference, pair] as a table, with the whole model's metric at its end."""
        pairs = len(whole)
        many = np.repeat(np.arange(len(rows)), len(self.references) * pairs)
        columns = list(zip(*rows, strict=True))
        found = pd.DataFrame(
            {
                "set": name,
                "variant": np.asarray(columns[0], dtype=object)[many],
                "detail": np.asarray(columns[1], dtype=object)[many],
                "size": np.asarray(columns[2], dtype=np.float64)[many],
                "nodes": np.asarray(columns[3], dtype=np.int64)[many],
                "reference": np.tile(np.repeat(self.references, pairs), len(rows)),
                "pair": np.tile(np.arange(pairs), len(rows) * len(self.references)),
                "m": m.reshape(-1),
            }
        )
        last = pd.DataFrame(
            {
                "set": name,
                "variant": WHOLE,
                "detail": "",
                "size": 1.0,
                "nodes": len(self.candidates),
                "reference": "",
                "pair": np.arange(pairs),
                "m": whole,
            }
        )
        return pd.concat([found, last], ignore_index=True)

    def _kept(self, part: int, work: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        table = self.keep.get(part) if self.keep else None
        if table is None:
            table = work()
            if self.keep:
                self.keep.put(part, table)
        return table


def varied(chosen: Selections, variant: str) -> Selections:
    """Circuits as a variant has them."""
    if variant == COMPLEMENT:
        return chosen.complement()
    if variant == ERRORS_OUT:
        return chosen.without_errors()
    if variant == ERRORS_IN:
        return replace(chosen, errors=("in",) * len(chosen))
    return chosen
