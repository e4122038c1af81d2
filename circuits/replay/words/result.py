"""`WordsResult`: words that latents add and remove, on disk, as figures and as a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from circuits.replay.words.odds import WordsError
from circuits.runs import RunError, default_folder, new_run, read_method, read_tables, write_record

SIGN = (
    "positive means that the arm writes the word more than the baseline does; in a difference of "
    "kinds, that this effect is larger in the kind that is named first"
)
_TABLES = ("words", "arms")
_ORIGINAL = (
    "word",
    "baseline_freq",
    "patched_freq",
    "log_odds_ratio",
    "p_value",
    "baseline_count",
    "patched_count",
)
_LINES = 12  # of a headline


@dataclass(frozen=True, eq=False)
class WordsResult:
    """Which words each arm adds to the baseline's responses and removes from them.

    table: one row a tested word of a `feature, kind, arm`; a kind such as "risky - safe" is the
        difference of two kinds' effects. `word, verdict` (added, removed, mixed, no evidence; of a
        difference, added means added more), `log_odds` (natural logarithm, against the baseline)
        with `low, high` (95%, over the unit; NaN where there are too few) and `z`; `difference`
        (share of responses that hold the word, arm less baseline: mean over prompts, which count
        alike where the unit is the prompt, and by their trials where it is the trial); `p_fisher`
        (NaN for differences), `p_permutation`, `q`; `count, responses` (that hold it), `total`
        (words), `n` (responses), each also with `_baseline`; `random_low, random_high` (log odds of
        that word in the random arms, NaN without any) and `random_same` (how many other random arms
        have the same verdict).
    arms: one row a `feature, kind, arm`: `responses, prompts, words, words_a_response`.
    record: what run.json holds.
    """

    table: pd.DataFrame
    arms: pd.DataFrame
    record: dict[str, Any]

    @property
    def features(self) -> list[str]:
        """The latents, in the order of the log."""
        return list(dict.fromkeys(self.arms["feature"]))

    def compared(self, feature: str) -> list[str]:
        """Arms of a feature that were compared with the baseline, random ones last."""
        mine: Any = self.arms[self.arms["feature"] == feature]
        names = [a for a in dict.fromkeys(mine["arm"]) if a != self.record["rules"]["baseline"]]
        order = {"latent": -1}
        return sorted(names, key=lambda a: (a.startswith("random"), order.get(a, 0)))

    def kinds(self, feature: str, arm: str) -> list[str]:
        """Kinds of prompts of an arm, then the difference of two of them."""
        mine: Any = self.arms[(self.arms["feature"] == feature) & (self.arms["arm"] == arm)]
        found = list(dict.fromkeys(mine["kind"]))
        pair = self.record["difference"]
        if pair and set(pair) <= set(found):
            found = [*pair, *(k for k in found if k not in pair), f"{pair[1]} - {pair[0]}"]
        return found

    def of(self, feature: str, arm: str, kind: str | None = None) -> pd.DataFrame:
        """The words of one arm, found ones first, then by the size of z."""
        table: Any = self.table
        mine = table[(table["feature"] == feature) & (table["arm"] == arm)]
        if kind is not None:
            mine = mine[mine["kind"] == kind]
        order = mine.assign(none=mine["verdict"] == "no evidence", size=-mine["z"].abs())
        return mine.loc[order.sort_values(["none", "size"], kind="stable").index]

    def counts(self, feature: str, arm: str, kind: str) -> dict[str, int]:
        """How many words have each verdict."""
        found: Any = self.of(feature, arm, kind)["verdict"].value_counts()
        return {str(name): int(n) for name, n in found.items()}

    def headline(self) -> list[str]:
        """In words: what each arm does; of many features, how many change any word."""
        lines = []
        for feature in self.features:
            for arm in self.compared(feature):
                said = "; ".join(self._said(feature, arm, k) for k in self.kinds(feature, arm))
                lines.append(f"{feature}, {arm} against {self._baseline}: {said}")
        if len(lines) <= _LINES:
            return lines
        table: Any = self.table
        found = table[(table["verdict"] != "no evidence")]
        some = found.groupby("arm", sort=False)["feature"].nunique()
        every: Any = self.arms.groupby("arm", sort=False)["feature"].nunique()
        return [
            f"{arm} against {self._baseline}: a word changes for {int(some.get(arm, 0)):,} of "
            f"{int(n):,} features"
            for arm, n in every.items()
            if arm != self._baseline
        ]

    @property
    def _baseline(self) -> str:
        return str(self.record["rules"]["baseline"])

    def _said(self, feature: str, arm: str, kind: str) -> str:
        found = self.counts(feature, arm, kind)
        tested = sum(found.values())
        if " - " in kind and kind == self._difference:
            changed = tested - found.get("no evidence", 0)
            return f"{kind}: the effect differs for {changed} of {tested} words"
        mixed = f", {found['mixed']} mixed" if found.get("mixed") else ""
        return (
            f"{kind}: {found.get('added', 0)} added, {found.get('removed', 0)} removed{mixed} of "
            f"{tested} words"
        )

    @property
    def _difference(self) -> str:
        pair = self.record["difference"]
        return f"{pair[1]} - {pair[0]}" if pair else ""

    def notes(self) -> list[str]:
        """What the numbers rest on, and what they cannot say."""
        return list(self.record["notes"])

    def figure(self, feature: str | None = None, arm: str | None = None) -> Any:
        """Words of one arm with log odds and intervals, a column a kind (plotly)."""
        from circuits.plots.words import words_figure

        which = self.features[0] if feature is None else feature
        if which not in self.features:
            raise WordsError(f"no feature {which!r}: there are {', '.join(self.features[:10])}.")
        arms = self.compared(which)
        if arm is not None and arm not in arms:
            raise WordsError(f"no arm {arm!r}: there are {', '.join(arms)}.")
        return words_figure(self, which, arm or arms[0])

    def page(self) -> str:
        """Headline, figures and tables as one page that opens without a network."""
        from circuits.replay.words.page import words_page

        return words_page(self)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the run's folder (default `runs/<task>/words-<time>`) and return its path."""
        target = Path(folder) if folder else default_folder(str(self.record["task"]), "words")
        with new_run(target) as work:
            write_record(work, self.record)
            for table, name in zip((self.table, self.arms), _TABLES, strict=True):
                table.to_parquet(work / f"{name}.parquet", index=False)
            (work / "words.html").write_text(self.page(), encoding="utf-8")
        return target

    @classmethod
    def load(cls, folder: str | Path) -> WordsResult:
        """Read a run back; raises `RunError` when the folder holds another one, or not a whole
        one."""
        record = read_method(folder, "words")
        lacking = [k for k in ("rules", "difference", "notes", "unit") if k not in record]
        if lacking:
            raise RunError(f"{folder} is not a whole run of words: {lacking[0]} is missing.")
        table, arms = read_tables(folder, _TABLES)
        return cls(table, arms, record)


def write_original(result: WordsResult, folder: Path) -> list[Path]:
    """Write the study's word effects, `FEATURE_KIND_ARM.csv` in a folder, one file an arm and kind.

    `log_odds_ratio` is the one with a prior, and `p_value` that of exchanged labels; frequencies
    are shares of all words. Differences of kinds have no place in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for feature in result.features:
        for arm in result.compared(feature):
            for kind in result.kinds(feature, arm):
                if kind == result._difference:
                    continue
                table: Any = result.of(feature, arm, kind)
                columns = (
                    table["word"],
                    table["count_baseline"] / table["total_baseline"].clip(lower=1),
                    table["count"] / table["total"].clip(lower=1),
                    table["log_odds"],
                    table["p_permutation"],
                    table["count_baseline"],
                    table["count"],
                )
                path = folder / f"{_file_name((feature, kind, arm), written)}.csv"
                made = pd.DataFrame(dict(zip(_ORIGINAL, columns, strict=True)))
                made.to_csv(path, index=False)
                written.append(path)
    return written


def _file_name(parts: Sequence[str], written: Sequence[Path]) -> str:
    """A name without characters that file systems refuse; a number behind it where it is taken."""
    name = "_".join(re.sub(r"[^\w.\-]+", "-", part) for part in parts)
    taken = {path.stem for path in written}
    found, number = name, 2
    while found in taken:
        found, number = f"{name}-{number}", number + 1
    return found
