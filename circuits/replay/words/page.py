"""Words as one page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from circuits.plots.base import PlotError
from circuits.report import page
from circuits.report.tables import Html, bullets, interval, number, paragraph, table

if TYPE_CHECKING:
    from circuits.replay.words.result import WordsResult

_FIGURES, _ROWS = 12, 200  # on a page, and of a table
_HEADS = (
    "word",
    "verdict",
    "log odds, 95% interval",
    "z",
    "responses",
    "baseline",
    "p",
    "p (Fisher)",
    "q",
    "random arms",
)


def words_page(result: WordsResult) -> str:
    """Headline, a figure and a table for every arm but the random ones, and how it was tested."""
    sections: list[tuple[str, Any]] = [("", bullets(result.headline()))]
    drawn = 0
    for feature in result.features:
        for arm in result.compared(feature):
            if arm.startswith("random") or drawn == _FIGURES:
                continue
            drawn += 1
            try:
                sections.append((f"{feature}: {arm}", result.figure(feature, arm)))
            except PlotError as error:
                sections.append((f"{feature}: {arm}", paragraph(str(error), "note")))
                continue
            sections += [
                (f"{feature}: {arm}, {kind}", _table(result, feature, arm, kind))
                for kind in result.kinds(feature, arm)
            ]
    sections.append(("The arms", _arms(result)))
    sections.append(("How they were tested", bullets([*result.notes(), _how(result)])))
    return page("Words that a latent adds and removes", sections)


def _table(result: WordsResult, feature: str, arm: str, kind: str) -> Html:
    rows = []
    for row in result.of(feature, arm, kind).head(_ROWS).to_dict("records"):
        shares = [
            f"{row[f'responses{end}']:,} ({row[f'responses{end}'] / max(1, row[f'n{end}']):.0%})"
            for end in ("", "_baseline")
        ]
        chance = interval(row["random_low"], row["random_low"], row["random_high"], "+.2f")
        rows.append(
            (
                row["word"],
                row["verdict"],
                interval(row["log_odds"], row["low"], row["high"], "+.2f"),
                number(row["z"], "+.1f"),
                *shares,
                number(row["p_permutation"], ".2g"),
                number(row["p_fisher"], ".2g"),
                number(row["q"], ".2g"),
                chance.partition(" ")[2].strip("[]"),
            )
        )
    return table(_HEADS, rows, _HEADS[2:])


def _arms(result: WordsResult) -> Html:
    heads = ("feature", "kind", "arm", "responses", "prompts", "words", "words a response")
    rows = [
        (
            *(r["feature"], r["kind"], r["arm"]),
            *(f"{r[name]:,}" for name in ("responses", "prompts", "words")),
            number(r["words_a_response"], ".1f"),
        )
        for r in result.arms.head(_ROWS).to_dict("records")
    ]
    return table(heads, rows, heads[3:])


def _how(result: WordsResult) -> str:
    rules = result.record["rules"]
    prior = "a background log" if result.record["background"] else "both arms together"
    return (
        "Log odds (natural logarithm) have an informative Dirichlet prior (Monroe, Colaresi and "
        f"Quinn 2008) from {prior}, {rules['prior']:g} pseudo-counts for each word written; "
        "intervals are from resampled "
        f"{'prompts' if result.record['unit'] == 'prompt' else 'trials'}. Tests count whether a "
        "response holds a word, never how often. Verdicts rest on p (labels exchanged) and q; "
        "Fisher's takes all responses as independent. Mixed: shares of responses and log odds "
        f"point to different sides. Sign: {result.record['sign_convention']}."
    )
