"""`Attribution`: the effects of nodes, their sums and rankings, their place on disk."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.errors import CircuitsError
from circuits.metrics import summarise_mean, summarise_ratio
from circuits.prompts import Alignment, PromptPairs
from circuits.runs import (
    Parts,
    default_folder,
    new_run,
    read_pairs_run,
    write_record,
    write_scores,
)

NODE = ["site", "layer", "role", "latent"]
_INTERVALS = 200  # nodes of a ranking whose intervals are bootstrapped at once


class AttributionResultError(CircuitsError):
    """A question that an attribution cannot answer."""


def _nothing(site: str, latent: int) -> str:
    return ""


def _strongest_first(table: Any, keys: list[str], pairs: int) -> Any:
    """Mean effects over pairs of what `keys` tell apart, the largest in size first."""
    means: Any = table.groupby(keys, observed=True)["effect"].sum() / pairs
    return means.reindex(means.abs().sort_values(ascending=False, kind="stable").index)


@dataclass(frozen=True, eq=False)
class Attribution:
    """What an attribution found.

    scores: sparse, one row a pair and node: `pair, site, layer, position, role, latent, clean,
        corrupted, effect, method`. role: latent, error, offset, component or head; latent: its
        number, or the head's, -1 for others. clean, corrupted: coefficient of the decoder row in
        the two runs, the norm of the write where there is none. effect: in units of the metric,
        positive toward clean. Nodes that are not there have the same write in both runs: effect 0.
    prompts: the pairs. record: what run.json holds; `record["audit"]` says how far to trust them.
    parts: what was kept on disk against interruptions, until the result is saved.
    """

    scores: pd.DataFrame
    prompts: PromptPairs
    record: dict[str, Any]
    parts: Parts | None = None

    @property
    def gap(self) -> np.ndarray:
        """Metric of the clean less that of the corrupted run, one a pair."""
        clean = np.array(self.record["metric_clean"])
        return clean - np.array(self.record["metric_corrupted"])

    def ranking(
        self,
        top: int | None = 25,
        *,
        by: str = "position",
        alignment: Alignment | None = None,
        sign: int = 0,
        roles: tuple[str, ...] | None = None,
        name: str | None = None,
    ) -> pd.DataFrame:
        """The strongest nodes, by the size of their mean effect over pairs, both signs together.

        by: "position" keeps positions (of the largest group of pairs that line up, or of
            `alignment`), "sum" adds up over positions and takes all pairs, "named" takes named
            positions, whose name is then in the column `position`.
        sign: 1 for effects toward clean alone, -1 for those toward corrupted, 0 for both.
        roles: which; all by default. name: with "named", this position alone.

        Columns: the node, `effect` with its 95% bootstrap interval over pairs (`_low, _high`),
        `share` of the mean gap, and `pairs` in which it is there.
        """
        table, chosen = self._table(by, alignment)
        if roles is not None:
            table = table[table["role"].isin(roles)]
        if name is not None:
            table = table[table["position"] == name]
        keys = NODE if by == "sum" else [*NODE, "position"]
        means = _strongest_first(table, keys, len(chosen))
        if sign:
            means = means[np.sign(means) == sign]
        kept = means.head(top) if top is not None else means
        found = kept.reset_index()
        cells = table.set_index(keys)["effect"]
        summary: dict[str, list[float]] = {}
        pair_of = table.set_index(keys)["pair"]
        place = {pair: i for i, pair in enumerate(chosen)}
        gap = self.gap[list(chosen)]
        for start in range(0, len(found), _INTERVALS):
            part = found.iloc[start : start + _INTERVALS]
            values = np.zeros((len(chosen), len(part)))
            for column, key in enumerate(part[keys].itertuples(index=False, name=None)):
                rows = [place[p] for p in np.atleast_1d(pair_of.loc[[key]])]
                np.add.at(values[:, column], rows, np.atleast_1d(cells.loc[[key]]))
            mean, share = summarise_mean(values), summarise_ratio(values, gap)
            for label, numbers in (
                ("effect_low", mean.low),
                ("effect_high", mean.high),
                ("share", share.value),
                ("share_low", share.low),
                ("share_high", share.high),
                ("pairs", (values != 0).sum(0)),
            ):
                summary.setdefault(label, []).extend(np.asarray(numbers).tolist())
        return found.assign(**summary)

    def _table(self, by: str, alignment: Alignment | None) -> tuple[Any, list[int]]:
        if by not in ("position", "named", "sum"):
            raise AttributionResultError(f"unknown by={by!r}: expected position, named or sum.")
        scores: Any = self.scores
        if by == "sum":
            pairs = list(range(len(self.prompts)))
            keys = ["pair", *NODE]
            return scores.groupby(keys, observed=True)["effect"].sum().reset_index(), pairs
        if by == "position":
            pairs = list((alignment or self.prompts.alignments()[0]).pairs)
            return scores[scores["pair"].isin(pairs)], pairs
        names = [
            {"pair": i, "position": p, "name": name}
            for i, marks in enumerate(self.prompts.positions)
            for name, p in marks.items()
        ]
        marks = pd.DataFrame(names, columns=["pair", "position", "name"])
        named = scores.merge(marks, on=["pair", "position"])
        named = named.drop(columns="position").rename(columns={"name": "position"})
        return named, list(range(len(self.prompts)))

    def totals(self, *by: str) -> pd.DataFrame:
        """Mean effect over pairs added up over nodes, by columns of the scores.

        by: such as "layer", "role"; by "site", "position" and "role" if not given. Effects of
        residual sites of different layers must not be added up: each site holds the whole stream.
        """
        chosen = list(by or ("site", "position", "role"))
        scores: Any = self.scores
        total = scores.groupby(chosen, observed=True)["effect"].sum() / len(self.prompts)
        return total.reset_index()

    def error_share(self) -> pd.DataFrame:
        """By site and position: the size of the errors' mean effect as a share of that of all
        nodes, sizes added up; and the signed sums."""
        scores: Any = self.scores
        means = scores.groupby(["site", "position", "role", "latent"], observed=True)["effect"]
        table = (means.sum() / len(self.prompts)).reset_index()
        table["size"] = table["effect"].abs()
        wide = table.pivot_table(
            index=["site", "position"],
            columns="role",
            values=["effect", "size"],
            aggfunc="sum",
            observed=True,
        ).fillna(0.0)
        found = pd.DataFrame({"size": wide["size"].sum(axis=1)})
        found["error_share"] = wide["size"].get("error", 0.0) / found["size"]
        found["effect"] = wide["effect"].sum(axis=1)
        found["error_effect"] = wide["effect"].get("error", 0.0)
        return found.reset_index()

    def original(
        self, describe: Callable[[str, int], str] | None = None, top: int = 25
    ) -> dict[str, list[dict[str, Any]]]:
        """The original study's `top_25_latents.json`: per named position the latents with the
        largest effects, of both signs. describe: from site and latent to a line of text."""
        scores, chosen = self._table("named", None)
        scores = scores[scores["role"] == "latent"]
        # No intervals, which would have to be drawn for every latent.
        table = _strongest_first(scores, [*NODE, "position"], len(chosen)).reset_index()
        say = describe or _nothing
        found: dict[str, list[dict[str, Any]]] = {}
        for name, part in table.groupby("position", sort=False):
            found[str(name)] = [
                {
                    "layer": int(row["layer"]),
                    "feature_idx": int(row["latent"]),
                    "value": float(row["effect"]),
                    "description": say(str(row["site"]), int(row["latent"])),
                }
                for row in part.head(top).to_dict("records")
            ]
        return found

    def heatmap(self, alignment: Alignment | None = None, value: str | None = None) -> Any:
        """Where the effects sit, as a plotly figure: sites up, tokens across, zero in the middle.

        With SAEs latents, errors and (where there are any) offsets side by side; without, the kinds
        of sites, heads added up. Mean effects over pairs; positive (blue) = toward clean.
        alignment: by default the largest group of pairs that line up. value: "share" (of the gap;
            default for the logit difference) or "effect" (in units of the metric).
        """
        from circuits.plots import attribution_heatmap

        return attribution_heatmap(self, alignment or self.prompts.alignments()[0], value)

    def top_latents(
        self, name: str, top: int = 10, describe: Callable[[str, int], str] | None = None
    ) -> Any:
        """The latents with the largest effects at a named position, as a plotly figure: how
        strongly each is active at each token, clean above corrupted, and its signed effect there.

        describe: from site and latent to a line of text. Raises `PlotError` for an unknown name and
        where no latent has an effect.
        """
        from circuits.plots import top_latents_figure

        return top_latents_figure(self, name, top, describe)

    def audit_figure(self) -> Any:
        """Estimates against exact interventions, as a plotly figure; raises `PlotError` without an
        audit."""
        from circuits.plots import audit_figure

        return audit_figure(self)

    def sections(self, describe: Callable[[str, int], str] | None = None) -> list[tuple[str, Any]]:
        """Headings with the figures below them, or HTML where there is nothing to draw."""
        from circuits.plots import PlotError

        sections: list[tuple[str, Any]] = []
        groups = self.prompts.alignments()
        for number, group in enumerate(groups, start=1):
            which = f", group {number} of {len(groups)}" if len(groups) > 1 else ""
            sections.append((f"Where the effects sit{which}", self.heatmap(group)))
        if "latent" in set(self.scores["role"]):
            for name in dict.fromkeys(n for where in self.prompts.positions for n in where):
                try:
                    figure = self.top_latents(name, describe=describe)
                except PlotError as error:  # nothing differs up to there: said, not left out
                    figure = f"<p>{html.escape(str(error))}</p>"
                sections.append((f"The strongest latents at {name}", figure))
        if self.record.get("audit"):
            sections.append(("How far to trust it", self.audit_figure()))
        return sections

    def html(self, describe: Callable[[str, int], str] | None = None) -> str:
        """All figures on one page that opens without a network."""
        from circuits.report import page

        title = f"Attribution of {self.record['task']} on {self.record['model']}"
        return page(title, self.sections(describe))

    def save(
        self, folder: str | Path | None = None, describe: Callable[[str, int], str] | None = None
    ) -> Path:
        """Write the run's folder (default `runs/<task>/attribute-<time>`) and return its path.

        describe: from site and latent to a line of text, for `top_25_latents.json` and the figures
            of `attribution.html`.
        """
        target = Path(folder) if folder else default_folder(self.record["task"], "attribute")
        with new_run(target) as work:
            write_record(work, {**self.record, **self.prompts.as_record()})
            write_scores(work, self.scores)
            if "latent" in set(self.scores["role"]):
                text = json.dumps(self.original(describe), indent=1)
                (work / "top_25_latents.json").write_text(text + "\n", encoding="utf-8")
            (work / "attribution.html").write_text(self.html(describe), encoding="utf-8")
        if self.parts:
            self.parts.clear()
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Attribution:
        """Read a run back; the same object as the one that was saved."""
        return cls(*read_pairs_run(folder, "attribute"))
