"""`DirectEffects`: contributions and direct effects, their sums, their place on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.errors import CircuitsError
from circuits.metrics import summarise_mean
from circuits.prompts import PromptPairs
from circuits.runs import (
    default_folder,
    new_run,
    read_pairs_run,
    write_record,
    write_scores,
)
from circuits.sites import Site

NODE = ["site", "layer", "role", "latent"]
NUMBERS = ["clean", "corrupted", "gap", "frozen", "exact", "total", "mediated"]


class DirectResultError(CircuitsError):
    """A question that direct effects cannot answer."""


@dataclass(frozen=True, eq=False)
class DirectEffects:
    """What each part of the last position's stream adds to the logit difference.

    scores: one row a pair and node: `pair, site, layer, position, role, latent, clean, corrupted,
        frozen, exact, total`, all in logits. role: embedding, component (attention or MLP output),
        head, bias (of an attention output), latent, error, offset. clean, corrupted: contribution
        to the logit difference of each run, the norms' scales as they are. frozen, exact: direct
        effect of the node's change, with the scales of the run that is patched, and normalised
        again. total: effect of the node patched at the last position through everything. Effects
        are positive toward clean. Latents that are active in neither run are not there.
    prompts: the pairs. record: what run.json holds; `record["sum_error"]` is the largest miss of a
        sum that must be the logit difference, as a share of its scale.
    """

    scores: pd.DataFrame
    prompts: PromptPairs
    record: dict[str, Any]

    @property
    def gap(self) -> np.ndarray:
        """Logit difference of the clean less that of the corrupted run, one a pair."""
        clean = np.array(self.record["logit_difference_clean"])
        return clean - np.array(self.record["logit_difference_corrupted"])

    @property
    def has_totals(self) -> bool:
        """Whether nodes were patched too."""
        return bool(np.isfinite(self.scores["total"].to_numpy()).any())

    @property
    def sae_sites(self) -> list[Site]:
        """The sites whose latents and errors are nodes, in the order of the model."""
        table: Any = self.scores
        return [Site.parse(s) for s in table.loc[table["role"] == "error", "site"].unique()]

    def _means(self, table: Any, keys: list[str]) -> pd.DataFrame:
        """Mean over all pairs, nodes that are absent in a pair counting 0."""
        numbers = [name for name in NUMBERS if name not in ("gap", "mediated")]
        sums = table.groupby(keys, observed=True, sort=False)[numbers]
        # A total that was not asked for stays missing instead of becoming a sum of nothing.
        found = sums.sum(min_count=1) / len(self.prompts)
        found["gap"] = found["clean"] - found["corrupted"]
        found["mediated"] = found["total"] - found["exact"]
        return found[NUMBERS].reset_index()

    def ranking(
        self,
        top: int | None = 25,
        *,
        by: str = "exact",
        roles: tuple[str, ...] | None = None,
        site: Site | None = None,
        sign: int = 0,
    ) -> pd.DataFrame:
        """The nodes with the largest mean `by` over pairs, by size, both signs together.

        by: exact, frozen, total, mediated, or gap (contribution to the clean run less that to the
            corrupted run). sign: 1 for those toward clean alone, -1 toward corrupted.
        Columns: the node; `clean, corrupted, gap, frozen, exact, total, mediated`, means over pairs
        in logits; the 95% bootstrap interval over pairs of `by` (`_low, _high`).
        """
        if by not in NUMBERS:
            raise DirectResultError(f"unknown by={by!r}: expected one of {', '.join(NUMBERS)}.")
        table: Any = self.scores
        if roles is not None:
            table = table[table["role"].isin(roles)]
        if site is not None:
            table = table[table["site"] == str(site)]
        if not len(table):
            raise DirectResultError("there are no nodes of these roles at this site.")
        means: Any = self._means(table, NODE)
        if sign:
            means = means[np.sign(means[by]) == sign]
        order = means[by].abs().sort_values(ascending=False, kind="stable").index
        found = means.loc[order[:top] if top is not None else order].reset_index(drop=True)
        table = table.assign(
            gap=table["clean"] - table["corrupted"], mediated=table["total"] - table["exact"]
        )
        wide = table.merge(found[NODE].assign(rank=range(len(found))), on=NODE)
        values = np.zeros((len(self.prompts), len(found)))
        np.add.at(values, (wide["pair"].to_numpy(), wide["rank"].to_numpy()), wide[by].to_numpy())
        if len(found):
            summary = summarise_mean(values)
            found[f"{by}_low"], found[f"{by}_high"] = summary.low, summary.high
        return found

    def by_layer(self) -> pd.DataFrame:
        """Attention and MLP output of every layer, at the last position: `layer, kind` and the
        means of `ranking`."""
        table: Any = self.scores
        table = table[table["role"] == "component"]
        kind = table["site"].str.split(".").str[0]
        return self._means(table.assign(kind=kind), ["layer", "kind"])

    def parts(self, site: Site | None = None) -> pd.DataFrame:
        """A decomposition whose parts add up to the logit difference, in each run and in the gap.

        site: a residual site with an SAE: its latents, error and offset, the attention and MLP
            outputs after it, and the constant. Without: embedding, heads, attention biases, MLP
            outputs and the constant.
        Columns: `part` (its label), the node, and the means over pairs of `clean, corrupted, gap`.
        """
        table: Any = self.scores
        if site is None:
            attention = table["site"].str.startswith("attn_out")
            chosen = table["role"].isin(["embedding", "head", "bias"])
            chosen |= (table["role"] == "component") & ~attention
        else:
            if site not in self.sae_sites or not site.kind.startswith("resid"):
                known = ", ".join(str(s) for s in self.sae_sites if s.kind.startswith("resid"))
                raise DirectResultError(
                    f"{site} is not a residual site with an SAE: there are {known or 'none'}."
                )
            after = table["layer"] > site.layer
            if site.kind == "resid_pre":
                after |= table["layer"] == site.layer
            elif site.kind == "resid_mid":
                after |= (table["layer"] == site.layer) & table["site"].str.startswith("mlp_out")
            mine = table["role"].isin(["latent", "error", "offset"])
            chosen = (mine & (table["site"] == str(site))) | (
                (table["role"] == "component") & after
            )
        found = self._means(table[chosen], NODE)
        found.insert(0, "part", [label(row) for row in found.to_dict("records")])
        constants = [
            float(np.mean(self.record[f"constant_{run}"])) for run in ("clean", "corrupted")
        ]
        last: dict[str, Any] = {"part": "constant", "site": "", "layer": -1, "role": "constant"}
        last |= {"latent": -1, "clean": constants[0], "corrupted": constants[1]}
        last["gap"] = constants[0] - constants[1]
        found = pd.concat([found, pd.DataFrame([last])], ignore_index=True)
        every: Any = found[["part", *NODE, "clean", "corrupted", "gap"]]
        return every

    def waterfall(self, site: Site | None = None, *, top: int = 14) -> Any:
        """The gap in logit difference, part by part (`parts`): the largest ones, the rest as one
        bar, and their sum; a plotly figure."""
        from circuits.plots import waterfall

        return waterfall(self, site, top)

    def layers_figure(self) -> Any:
        """Direct and mediated effect of every layer's attention and MLP output."""
        from circuits.plots import layers_figure

        return layers_figure(self)

    def nodes_figure(self, top: int = 20) -> Any:
        """Direct and mediated effect of the latents and errors with the largest total effect."""
        from circuits.plots import nodes_figure

        return nodes_figure(self, top)

    def sections(self, sites: Sequence[Site] | None = None) -> list[tuple[str, Any]]:
        """Headings with the figures below them. sites: the residual sites with an SAE from which on
        there is a waterfall; all of them by default."""
        sections: list[tuple[str, Any]] = [
            ("Where the gap in logit difference comes from", self.waterfall()),
            ("Direct and mediated effects by layer", self.layers_figure()),
        ]
        for site in self.sae_sites if sites is None else sites:
            if site.kind.startswith("resid"):
                sections.append((f"From {site} on", self.waterfall(site)))
        if self.sae_sites:
            sections.append(("Direct and mediated effects of latents", self.nodes_figure()))
        return sections

    def page(self) -> str:
        """All figures as one HTML page that opens without a network."""
        from circuits.report import page

        title = f"Direct effects: {self.record['task']}, {self.record['model']}"
        return page(title, self.sections())

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the run's folder (default `runs/<task>/direct-<time>`) and return its path."""
        target = Path(folder) if folder else default_folder(self.record["task"], "direct")
        with new_run(target) as work:
            write_record(work, {**self.record, **self.prompts.as_record()})
            write_scores(work, self.scores)
            (work / "direct.html").write_text(self.page(), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> DirectEffects:
        """Read a run back; the same object as the one that was saved."""
        return cls(*read_pairs_run(folder, "direct"))


def label(row: dict[str, Any]) -> str:
    """What a node is called in tables and figures."""
    layer, latent = row["layer"], row["latent"]
    if row["role"] == "head":
        return f"head {layer}.{latent}"
    if row["role"] == "embedding":
        return "embedding"
    if row["role"] == "bias":
        return f"attention bias {layer}"
    if row["role"] == "component":
        return f"{'attention' if str(row['site']).startswith('attn') else 'MLP'} {layer}"
    if row["role"] == "latent":
        return f"{row['site']} #{latent}"
    return f"{row['site']} {row['role']}"
