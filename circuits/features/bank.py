"""The feature bank: what every latent of a set of SAEs does on a corpus, on disk and in memory.

On disk it is a folder: `latents.parquet` (one row a latent), `examples.parquet` (one row an
example), `vocabulary.parquet` (the text of the tokens that occur), `documents.parquet` and
`tokens.parquet` (seen.py), `run.json`. It is read without the model or its tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from circuits.errors import CircuitsError
from circuits.features.card import Card
from circuits.features.describe import describe
from circuits.features.neuronpedia import fetch_description
from circuits.features.seen import Seen
from circuits.runs import RunError, default_folder, new_run, read_method, write_record
from circuits.sites import Site

_LATENTS, _EXAMPLES, _VOCABULARY = "latents.parquet", "examples.parquet", "vocabulary.parquet"
_TOKEN_LISTS = ("at", "before", "raised", "lowered")
EMBEDDED = Path(__file__).parent / "embedded"


class BankError(CircuitsError):
    """A bank that is damaged, or has not what it is asked for."""


@dataclass(frozen=True, eq=False)
class FeatureBank:
    """What latents do.

    latents: `site, latent, active` (positions), `rate` (share of positions), `mean` (when active),
        `max, dead, histogram` (counts between `record["histogram_edges"]`), `at` and `before`
        (token ids, most frequent first, where it is active and just before) with `at_count` and
        `before_count`, `raised` and `lowered` (token ids by what the decoder row does to their
        logits directly, relative to the mean) with `raised_by` and `lowered_by`, per unit of
        activation and with the final norm's scale at 1.
    examples: `site, latent, rank, value, context, document, position, tokens, activations`: the
        strongest, at most one a context; tokens and the latent's activations around the position,
        token -1 beyond the ends of the context.
    vocabulary: the text of each token id that occurs.
    seen: documents and counts of tokens; None where they are not known.
    """

    latents: pd.DataFrame
    examples: pd.DataFrame
    record: dict[str, Any]
    vocabulary: dict[int, str]
    seen: Seen | None = None

    @property
    def sites(self) -> list[Site]:
        """The sites of the SAEs."""
        return [Site.parse(name) for name in dict.fromkeys(self.latents["site"])]

    def latent(self, site: Site | str, latent: int) -> dict[str, Any]:
        """The row of one latent; raises `BankError` when there is none."""
        table: Any = self.latents
        found = table[(table["site"] == str(site)) & (table["latent"] == latent)]
        if len(found) != 1:
            raise BankError(
                f"the bank has no latent {latent} at {site}; it has "
                + ", ".join(f"{s} ({int((table['site'] == str(s)).sum())})" for s in self.sites)
                + "."
            )
        return {str(k): v for k, v in found.iloc[0].to_dict().items()}

    def describe(self, site: Site | str, latent: int, *, online: bool = False) -> str:
        """One line about a latent, for tables.

        online: Neuronpedia's description instead, where it has one and answers in time.
        """
        known = {one["site"]: one.get("neuronpedia") for one in self.record["saes"]}
        if online and (sae := known.get(str(site))):
            found = fetch_description(sae, latent)
            if found:
                return found
        return describe(self.latent(site, latent), self.vocabulary, self.record["positions"])

    def descriptions(self) -> pd.DataFrame:
        """`site, latent, description` of every latent."""
        rows = self.latents.to_dict("records")
        texts = [describe(row, self.vocabulary, self.record["positions"]) for row in rows]
        return self.latents[["site", "latent"]].assign(description=texts)

    def find(self, text: str) -> pd.DataFrame:
        """Latents whose one-line description has `text` in it, the most active first."""
        table: Any = self.descriptions().merge(
            self.latents[["site", "latent", "rate", "max"]], on=["site", "latent"]
        )
        hits = table[table["description"].str.contains(text, case=False, regex=False)]
        return hits.sort_values("rate", ascending=False, ignore_index=True)

    def card(self, site: Site | str, latent: int) -> Card:
        """The card of a latent: examples, histogram, tokens.

        Raises `BankError` for a bank of vectors, whose cards need what the vectors are of.
        """
        if self.record.get("kind") == "vectors":
            raise BankError(
                "this bank is of vectors with labels: their cards are those of a "
                "circuits.features.Gallery, which has the inputs and effects too."
            )
        row = self.latent(site, latent)
        table: Any = self.examples
        shown = table[(table["site"] == str(site)) & (table["latent"] == latent)]
        return Card(row, shown.sort_values("rank").to_dict("records"), self.vocabulary, self.record)

    def dead(self) -> pd.DataFrame:
        """Per site the number and the share of latents that were never active."""
        grouped: Any = self.latents.groupby("site", sort=False)["dead"]
        return grouped.agg(["sum", "mean"]).rename(columns={"sum": "dead", "mean": "share"})

    def compact(
        self, examples: int = 3, before: int = 9, after: int = 3, tokens: int = 5
    ) -> FeatureBank:
        """A smaller bank: fewer examples with less around them, fewer tokens, activations around
        an example in steps of 1/255 of the strongest."""
        wide = self.record["window"]
        narrow = [min(wide[0], before), min(wide[1], after)]
        start, stop = wide[0] - narrow[0], wide[0] + narrow[1] + 1
        table: Any = self.examples
        shown = table[table["rank"] < examples].copy()
        shown["tokens"] = [x[start:stop] for x in shown["tokens"]]
        shown["activations"] = [
            np.round(x[start:stop] / v * 255) / 255 * v
            for x, v in zip(shown["activations"], shown["value"], strict=True)
        ]
        latents = self.latents.copy()
        for name in _TOKEN_LISTS:
            latents[name] = [list(x)[:tokens] for x in latents[name]]
            count = f"{name}_count" if name in ("at", "before") else f"{name}_by"
            latents[count] = [list(x)[:tokens] for x in latents[count]]
        record = {**self.record, "window": narrow, "examples": examples}
        used = _used(latents, shown)
        vocabulary = {i: t for i, t in self.vocabulary.items() if i in used}
        return FeatureBank(latents, shown, record, vocabulary, self.seen)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the bank (default `runs/features/features-<time>`) and return its path."""
        target = Path(folder) if folder else default_folder("features", "features")
        with new_run(target) as work:
            write_record(work, self.record)
            latents = self.latents.copy()
            for name in latents.columns:
                if isinstance(latents[name].iloc[0], (list, np.ndarray)):
                    kind = np.float32 if name.endswith("_by") else np.int32
                    latents[name] = [np.asarray(x, dtype=kind) for x in latents[name]]
            shown = self.examples.copy()
            shown["tokens"] = [np.asarray(x, dtype=np.int32) for x in shown["tokens"]]
            # As shares of the strongest in 255 steps: what colours and hover texts need.
            shown["activations"] = [
                np.round(np.asarray(x) / v * 255).clip(0, 255).astype(np.uint8)
                for x, v in zip(shown["activations"], shown["value"], strict=True)
            ]
            words = pd.DataFrame({"token": list(self.vocabulary), "text": self.vocabulary.values()})
            for table, name in ((latents, _LATENTS), (shown, _EXAMPLES), (words, _VOCABULARY)):
                table.to_parquet(work / name, index=False, compression="zstd", compression_level=19)
            if self.seen is not None:
                self.seen.save(work)
        return target

    @classmethod
    def load(cls, folder: str | Path = "embedded") -> FeatureBank:
        """Read a bank; "embedded" is the one of the embedded SAEs."""
        path = EMBEDDED if str(folder) == "embedded" else Path(folder)
        record = read_method(path, "features")
        try:
            latents, shown, words = (
                pd.read_parquet(path / name) for name in (_LATENTS, _EXAMPLES, _VOCABULARY)
            )
            seen = Seen.load(path)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error}): collect it again.") from error
        shown["activations"] = [
            np.asarray(x, dtype=np.float32) / 255 * v
            for x, v in zip(shown["activations"], shown["value"], strict=True)
        ]
        vocabulary = dict(zip(words["token"], words["text"], strict=True))
        return cls(latents, shown, record, vocabulary, seen)


def _used(latents: Any, examples: Any) -> set[int]:
    """Token ids that occur in a bank."""
    found: set[int] = set()
    for name in _TOKEN_LISTS:
        found.update(int(t) for row in latents[name] for t in row)
    for row in examples["tokens"]:
        found.update(int(t) for t in row)
    return found - {-1}


def vocabulary_of(latents: Any, examples: Any, tokenizer: Any) -> dict[int, str]:
    """The text of every token that occurs in a bank."""
    used = sorted(_used(latents, examples))
    if tokenizer is None:
        return {i: f"<{i}>" for i in used}
    return dict(zip(used, tokenizer.batch_decode([[i] for i in used]), strict=True))
