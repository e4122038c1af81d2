"""`PatchResult`: the scores of a sweep, their summaries, their pictures, their place on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.errors import CircuitsError
from circuits.metrics import SMALLEST_GAP, summarise_mean, summarise_ratio
from circuits.prompts import Alignment, PromptPairs
from circuits.runs import (
    Parts,
    default_folder,
    new_run,
    read_pairs_run,
    write_record,
    write_scores,
)

COLUMNS = (
    "pair",
    "site",
    "layer",
    "position",
    "head",
    "token_clean",
    "token_corrupted",
    "metric",
    "logit_difference",
    "recovery",
)


class ResultError(CircuitsError):
    """A question that a result cannot answer."""


@dataclass(frozen=True, eq=False)
class PatchResult:
    """What a sweep found.

    scores: one row a pair and cell with the columns `pair, site, layer, position, head,
        token_clean, token_corrupted, metric, logit_difference, recovery`. `metric` is the chosen
        metric in the patched run; `logit_difference` is answer minus foil there; `recovery` is the
        pair's own (LD - LD_corrupted) / (LD_clean - LD_corrupted), NaN where that gap is under
        0.1 logits. `position` is missing where all positions were patched at once, `head` where no
        heads were.
    prompts: the pairs. record: what run.json holds (options, baselines, versions, ...).
    parts: what was kept on disk against interruptions, until the result is saved.
    """

    scores: pd.DataFrame
    prompts: PromptPairs
    record: dict[str, Any]
    parts: Parts | None = None

    def alignments(self) -> list[Alignment]:
        """Groups of pairs that may be averaged position by position, largest first."""
        return self.prompts.alignments()

    def _chosen(self, alignment: Alignment | None) -> Alignment:
        return self.alignments()[0] if alignment is None else alignment

    def cube(
        self, column: str, alignment: Alignment | None = None
    ) -> tuple[np.ndarray, pd.DataFrame]:
        """A column of the scores as [pair, cell], and the cells' layer, position and head.

        alignment: which pairs; by default the largest group that lines up.
        """
        pairs = self._chosen(alignment).pairs
        part = self.scores.loc[self.scores["pair"].isin(pairs)]
        # Rows are sorted by pair, layer, position, head; pairs that line up have the same cells.
        values = part[column].to_numpy(dtype=float).reshape(len(pairs), -1)
        return values, part.iloc[: values.shape[1]][["layer", "position", "head"]]

    def summary(self, alignment: Alignment | None = None, *, seed: int = 0) -> pd.DataFrame:
        """One row a cell: means over the pairs with 95% bootstrap intervals over pairs.

        recovery: mean(LD - LD_corrupted) / mean(LD_clean - LD_corrupted), 0 corrupted, 1 clean.
        share: the cell's effect as a share of the gap: recovery when denoising, 1 - recovery when
            noising; positive means toward clean.
        effect: mean effect in units of the metric, m(patched) - m(corrupted) when denoising and
            m(clean) - m(patched) when noising.
        alignment: which pairs; by default the largest group that lines up.
        """
        chosen = list(self._chosen(alignment).pairs)
        clean_ld = np.array(self.record["logit_difference_clean"])[chosen]
        corrupted_ld = np.array(self.record["logit_difference_corrupted"])[chosen]
        difference, cells = self.cube("logit_difference", alignment)
        metric, _ = self.cube("metric", alignment)
        denoising = self.record["direction"] == "denoising"
        gained = difference - corrupted_ld[:, None]
        moved = gained if denoising else clean_ld[:, None] - difference
        if denoising:
            effect = metric - np.array(self.record["metric_corrupted"])[chosen, None]
        else:
            effect = np.array(self.record["metric_clean"])[chosen, None] - metric
        table = cells.reset_index(drop=True)
        gap = clean_ld - corrupted_ld
        for name, summary in (
            ("recovery", summarise_ratio(gained, gap, seed=seed)),
            ("share", summarise_ratio(moved, gap, seed=seed)),
            ("effect", summarise_mean(effect, seed=seed)),
        ):
            table[name] = summary.value
            table[f"{name}_low"], table[f"{name}_high"] = summary.low, summary.high
        table["pairs"] = len(chosen)
        return table

    def named_positions(self, alignment: Alignment | None = None) -> dict[int, str]:
        """Names of positions that are the same in all pairs of the group, e.g. {19: "END"}."""
        return self.prompts.names_at(self._chosen(alignment))

    def tokens(
        self, alignment: Alignment | None = None
    ) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """For each position the different clean and corrupted tokens that stand there."""
        return self.prompts.tokens_at(self._chosen(alignment))

    @property
    def value(self) -> str:
        """What tables and pictures show: "share" of the gap for the logit difference, "effect" in
        units of the metric for other metrics and where the gap is too small for shares."""
        gap = np.array(self.record["logit_difference_clean"])
        gap = (gap - np.array(self.record["logit_difference_corrupted"])).mean()
        is_ld = self.record["metric"] == "logit_difference"
        return "share" if is_ld and abs(gap) >= SMALLEST_GAP else "effect"

    def where(self, threshold: float = 0.2, alignment: Alignment | None = None) -> pd.DataFrame:
        """Where the effect sits: one row a place (position or head), strongest first.

        A place is listed when somewhere |share| reaches `threshold` (for effects: `threshold` of
        the largest one), with the layers at which it does. `peak`, with its interval, is its
        strongest value, of either sign; positive means toward clean.
        """
        table: Any = self.summary(alignment)  # pandas' stubs know too little of columns
        value = self.value
        strength = table[value].abs()
        bound = threshold * (1.0 if value == "share" else float(strength.max()))
        rows = []
        for _, part in table.groupby(["position", "head"], dropna=False):
            strong = part.loc[strength[part.index] >= max(bound, 1e-12)]
            if strong.empty:
                continue
            best = strength[part.index].idxmax()
            rows.append(
                {
                    "position": part["position"].iloc[0],
                    "head": part["head"].iloc[0],
                    "layers": _ranges([int(layer) for layer in strong["layer"]]),
                    "peak_layer": int(part.at[best, "layer"]),
                    "peak": float(part.at[best, value]),
                    "low": float(part.at[best, f"{value}_low"]),
                    "high": float(part.at[best, f"{value}_high"]),
                }
            )
        columns = "position head layers peak_layer peak low high".split()
        found = pd.DataFrame(rows, columns=pd.Index(columns))
        found = found.astype({"position": "Int64", "head": "Int64"})
        return found.sort_values("peak", key=abs, ascending=False, ignore_index=True)

    def moves(self, alignment: Alignment | None = None) -> pd.DataFrame:
        """Where the effect moves: the layers between which another position comes to hold the
        largest share, with both positions' shares before and after.

        `before` is the last layer at which the old position still holds its typical share (at least
        half of its own largest one), `after` the first at which the new one holds at least half of
        its largest. Empty unless the residual stream was patched position by position: the other
        sites hold contributions, which do not travel.
        """
        columns = "before after from_position to_position from_share_before from_share_after "
        columns += "to_share_before to_share_after"
        empty = pd.DataFrame(columns=pd.Index(columns.split()))
        stream = str(self.record["site"]).startswith("resid_")
        if self.record["positions_patched"] == "all" or not stream or self.value != "share":
            return empty
        grid = self.summary(alignment).pivot(index="layer", columns="position", values="share")
        layers = [int(layer) for layer in grid.index]
        best = grid.idxmax(axis=1)
        rows = []
        for i in range(1, len(layers)):
            old, new = best.iloc[i - 1], best.iloc[i]
            if old == new:
                continue
            held = [k for k in range(i) if grid[old].iloc[k] >= grid[old].max() / 2]
            reached = [k for k in range(i, len(layers)) if grid[new].iloc[k] >= grid[new].max() / 2]
            before, after = (held or [i - 1])[-1], (reached or [i])[0]
            shares = [grid[p].iloc[k] for p in (old, new) for k in (before, after)]
            rows.append([layers[before], layers[after], int(old), int(new), *map(float, shares)])
        return pd.DataFrame(rows, columns=empty.columns) if rows else empty

    def heatmap(self, alignment: Alignment | None = None, *, value: str | None = None) -> Any:
        """The sweep as a plotly figure: layers up, tokens (or heads) across, zero in the middle.

        value: "share" (of the gap; default for the logit difference) or "effect" (in units of the
        metric; default for the others). alignment: by default the largest group that lines up.
        """
        from circuits.plots import patch_heatmap

        return patch_heatmap(self, self._chosen(alignment), value)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the run's folder (default `runs/<task>/patch-<time>`) and return its path.

        Raises `RunError` when the folder exists or cannot be written.
        """
        from circuits.report import page

        target = Path(folder) if folder else default_folder(self.record["task"], "patch")
        with new_run(target) as work:
            write_record(work, {**self.record, **self.prompts.as_record()})
            write_scores(work, self.scores)
            for i, alignment in enumerate(self.alignments()):
                name = "heatmap.html" if i == 0 else f"heatmap-{i + 1}.html"
                text = page(self.headline(), [("", self.heatmap(alignment))])
                (work / name).write_text(text, encoding="utf-8")
        if self.parts:
            self.parts.clear()
        return target

    @classmethod
    def load(cls, folder: str | Path) -> PatchResult:
        """Read a run back; the same object as the one that was saved."""
        return cls(*read_pairs_run(folder, "patch"))

    def _repr_html_(self) -> str:
        shown = self.where()
        html = shown.to_html(index=False, float_format="{:.2f}".format)
        return f"<p>{self.headline()}</p>{html}"

    def headline(self) -> str:
        """What was patched, on what, in one line."""
        record = self.record
        what = f"{record['task']}{in_brackets(record['contrast'])}"
        return (
            f"{what} on {record['model']}: {record['direction']} {record['site']}, "
            f"{record['metric']}, {count(len(self.prompts), 'pair')}, "
            f"{self.prompts.named_answers()}"
        )


def _ranges(layers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def count(number: int, thing: str) -> str:
    """ "1 pair", "2 pairs"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def in_brackets(text: str | None) -> str:
    """ " (text)", or nothing."""
    return f" ({text})" if text else ""
