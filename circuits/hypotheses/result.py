"""`HypothesesResult`: hypotheses with their figures and verdicts, on disk and as a page."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from circuits.hypotheses.endpoint import Endpoint
from circuits.runs import default_folder, new_run, read_method, read_tables, write_record

_TABLES = ("hypotheses", "descriptions")
VERDICTS = ("holds", "fails", "not enough data")
DESCRIBED = (
    "site",
    "latent",
    "description",
    "examples",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "auc",
    "auc_low",
    "auc_high",
    "verdict",
)


def no_descriptions() -> pd.DataFrame:
    """The table of descriptions where none were asked for."""
    return pd.DataFrame({name: [] for name in DESCRIBED})


@dataclass(frozen=True, eq=False)
class HypothesesResult:
    """Hypotheses that were tested on data not used to make them.

    table: one row a hypothesis: `site, latent, claim` (fires_on, raises, lowers), `kind, about,
        statement, origin` (evidence or person), `note, threshold, value` with `low, high` (95%:
        the enrichment, or the effect in logits), `within` (enrichment inside documents), `recall`
        (share of activations in the class), `precision` (share of the class that is active),
        `rate_outside`, counts `examples, active, members, both, groups`, `change` (norm of what
        was added), `p, q, verdict, reason`.
    record: what run.json holds. descriptions: one row a latent that was described (scored.py).
    """

    table: pd.DataFrame
    record: dict[str, Any]
    descriptions: pd.DataFrame = field(default_factory=no_descriptions)

    def counts(self) -> dict[str, int]:
        """How many hold, fail, and could not be tested."""
        found: Any = self.table["verdict"]
        return {v: int((found == v).sum()) for v in VERDICTS}

    def headline(self) -> str:
        """The counts in words."""
        held, failed, lacking = self.counts().values()
        rest = f", {lacking} had not enough data" if lacking else ""
        about = self.record["evidence"]
        what = f"{about['examples']:,} held-out " + (
            f"positions of {about['documents']} documents"
            if about["kind"] == "text"
            else "examples"
        )
        return f"{held} of {len(self.table)} hypotheses hold, {failed} fail{rest}, on {what}"

    def of(self, site: str, latent: int) -> pd.DataFrame:
        """The hypotheses about one latent."""
        table: Any = self.table
        return table[(table["site"] == str(site)) & (table["latent"] == latent)]

    def described(self, table: pd.DataFrame, endpoint: Endpoint) -> HypothesesResult:
        """The same with descriptions, and where they are from (never with which key)."""
        record = {**self.record, "describe": {"url": endpoint.url, "model": endpoint.model}}
        return replace(self, record=record, descriptions=table)

    def figure(self) -> Any:
        """Enrichments and effects with intervals and verdicts (plotly)."""
        from circuits.plots.hypotheses import hypotheses_figure

        return hypotheses_figure(self)

    def page(self) -> str:
        """The figure and all numbers as one page that opens without a network."""
        from circuits.hypotheses.page import hypotheses_page

        return hypotheses_page(self)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the run's folder (default `runs/hypotheses/hypotheses-<time>`) and return it."""
        target = Path(folder) if folder else default_folder("hypotheses", "hypotheses")
        with new_run(target) as work:
            write_record(work, self.record)
            for table, name in zip((self.table, self.descriptions), _TABLES, strict=True):
                table.to_parquet(work / f"{name}.parquet", index=False)
            (work / "hypotheses.html").write_text(self.page(), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> HypothesesResult:
        """Read a run back; raises `RunError` when the folder holds another one, or not a whole
        one."""
        record = read_method(folder, "hypotheses")
        table, descriptions = read_tables(folder, _TABLES)
        return cls(table, record, descriptions)
