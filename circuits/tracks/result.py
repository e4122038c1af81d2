"""`Tracks`: nodes, links, tracks, metrics, what was confirmed; its picture and place on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from circuits.runs import RunError, default_folder, new_run, read_record, read_tables, write_record
from circuits.tracks.metrics import METRICS, refuse
from circuits.tracks.plan import TrackError

if TYPE_CHECKING:
    from circuits.features.bank import FeatureBank

TABLES = ("nodes", "links", "tracks", "metrics", "confirmed", "answers")


@dataclass(frozen=True, eq=False)
class Tracks:
    """Tracks of answers.

    nodes: `node, answer, place` (of the answer's chosen tokens), `position, token, site, layer,
        latent, activation` (effective coefficient), `strength` (norm of the write), `share` (of the
        writes of all latents active there), `track`.
    links: `answer, source, target` (nodes), `kind` (link, gap, split, merge), `site, latent,
        to_site, to_latent, score, similarity` (cosine of decoder rows), `p, q` (of the pair of
        latents; NaN for one too rare to test), `kept, causal` (confirmed, not confirmed, not
        tested).
    tracks: see `circuits.tracks.chains.track_table`.
    metrics: `answer` and one column a metric (`METRICS`); those that are constant over the answers
        are not there, and asking for one raises.
    confirmed: pairs of latents tested by ablation; see `circuits.tracks.causal`.
    answers: `answer, group, prompt, completion, correct`.
    record: what run.json holds.
    """

    nodes: pd.DataFrame
    links: pd.DataFrame
    tracks: pd.DataFrame
    metrics: pd.DataFrame
    confirmed: pd.DataFrame
    answers: pd.DataFrame
    record: dict[str, Any]

    @property
    def sites(self) -> list[str]:
        """In forward order."""
        return [one["site"] for one in self.record["saes"]]

    @property
    def layers(self) -> pd.DataFrame:
        """What links mean between two sites; see `circuits.tracks.null.Null`."""
        return pd.DataFrame(self.record["layers"])

    def metric(self, name: str) -> Any:
        """One metric by answer. Raises `ConstantMetric` where it is the same for all answers."""
        if name not in METRICS:
            raise TrackError(f"no metric {name!r}: expected one of {', '.join(METRICS)}.")
        if name in self.record["constant"]:
            refuse({name: self.record["constant"][name]}, len(self.answers))
        return self.metrics.set_index("answer")[name]

    def require_metrics(self) -> pd.DataFrame:
        """`metrics`. Raises `ConstantMetric` that names those that are the same for all answers."""
        refuse(self.record["constant"], len(self.answers))
        return self.metrics

    def headline(self) -> str:
        """What came out, in a sentence or two."""
        null, causal, about = (self.record[k] for k in ("null", "causal", "answers"))
        said = (
            f"{about['count']} answers ({about['correct']} right), {len(self.sites)} sites, "
            f"{self.record['tokens']} tokens: {null['links']:,} links between "
            f"{len(self.nodes):,} latents ({null['links_shuffled']:,.0f} with shuffled layers), "
            f"{null['links_kept']:,} kept at a false discovery rate of "
            f"{self.record['plan']['level']:g} ({null['pairs_kept']} of {null['pairs_tested']} "
            "pairs of latents)."
        )
        if causal["tested"]:
            said += (
                f" By ablation {causal['confirmed']} of {causal['tested']} pairs are confirmed: "
                f"{causal['share']:.0%} [{causal['share_low']:.0%}, {causal['share_high']:.0%}]."
            )
        return said

    def warnings(self) -> list[str]:
        """What must not be missed."""
        null, causal, plan, said = (
            self.record["null"],
            self.record["causal"],
            self.record["plan"],
            [],
        )
        needed = null["pairs_tested"] * null["smallest_p"] / plan["level"]
        if not null["pairs_kept"] and needed > 1:
            said.append(
                f"{plan['permutations']} permutations give no p below {null['smallest_p']:.2g}: of "
                f"{null['pairs_tested']} pairs, {needed:.0f} at least must be linked for any to be "
                "kept. More permutations would help."
            )
        if null["answers_not_exchanged"]:
            said.append(
                f"{null['answers_not_exchanged']} answers have no other group with as many tokens: "
                "their layers are not shuffled, which makes the test cautious."
            )
        if causal["tested"] == 0 and plan["checked"]:
            said.append(
                "No pair is linked in both halves of the answers often enough to be ablated: no "
                "link is confirmed."
            )
        if self.record["constant"]:
            names = ", ".join(self.record["constant"])
            said.append(f"Constant over all answers, and so no metrics: {names}.")
        return said

    def notes(self) -> list[str]:
        """What else is worth knowing."""
        said = []
        if self.record["saes_left_out"]:
            left = ", ".join(self.record["saes_left_out"])
            said.append(f"SAEs that are not in the residual stream are left out: {left}.")
        uneven = self.record["null"]["answers_of_uneven_groups"]
        if uneven:
            said.append(
                f"{uneven} answers are exchanged with groups of other sizes, whose answers "
                "are then repeated or left out."
            )
        return said

    def pair(self) -> list[str]:
        """A right and a wrong answer whose strongest tracks are longest; one of them where all are
        alike."""
        tracks: Any = self.tracks
        worth = (tracks["length"] - 1) * tracks["strength"]
        best = worth.groupby(tracks["answer"]).sum()
        table = self.answers.assign(worth=self.answers["answer"].map(best).fillna(0.0))
        chosen = []
        for correct in (True, False):
            part: Any = table[table["correct"] == correct]
            if len(part):
                chosen.append(str(part.sort_values("worth", ascending=False)["answer"].iloc[0]))
        return chosen

    def picture(
        self,
        answer_ids: Sequence[str] | None = None,
        *,
        place: int | None = None,
        bank: FeatureBank | None = None,
    ) -> Any:
        """Tracks of answers side by side (plotly), by default of a right and a wrong one.

        place: of the answer's chosen tokens; by default the last token of the prompt. bank: where
        hovering finds what latents are.
        """
        from circuits.plots.tracks import tracks_figure

        return tracks_figure(self, answer_ids or self.pair(), place=place, bank=bank)

    def page(self, bank: FeatureBank | None = None) -> str:
        """The picture and all numbers as one page that opens without a network."""
        from circuits.tracks.page import check_bank, tracks_page

        check_bank(self, bank)
        return tracks_page(self, bank)

    def _repr_html_(self) -> str:
        from circuits.tracks.page import summary

        return summary(self)

    def save(self, folder: str | Path | None = None, bank: FeatureBank | None = None) -> Path:
        """Write the run's folder (default `runs/<task>/tracks-<time>`) and return it."""
        from circuits.tracks.page import check_bank

        check_bank(self, bank)
        task = str(self.record.get("task") or "custom")
        target = Path(folder) if folder else default_folder(task, "tracks")
        with new_run(target) as work:
            write_record(work, self.record)
            for name in TABLES:
                getattr(self, name).to_parquet(work / f"{name}.parquet", index=False)
            (work / "tracks.html").write_text(self.page(bank), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Tracks:
        """Read a run back; raises `RunError` when the folder holds another one, or not a whole
        one."""
        record = read_record(folder)
        record.pop("format")
        if record.get("method") != "tracks":
            raise RunError(f"{folder} holds a run of {record.get('method')!r}.")
        nodes, links, tracks, metrics, confirmed, answers = read_tables(folder, TABLES)
        return cls(nodes, links, tracks, metrics, confirmed, answers, record)
