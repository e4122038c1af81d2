"""Words that an arm adds and removes: log odds with intervals, a column a kind of prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.plots.base import BLUE, RED, WIDTH, PlotError, title, visible
from circuits.report.tables import interval

if TYPE_CHECKING:
    from circuits.replay.words.result import WordsResult

_STYLES = {
    "added": (BLUE, "circle"),
    "removed": (RED, "circle"),
    "mixed": ("#8856a7", "diamond"),
    "no evidence": ("#8c8c8c", "circle-open"),
}
_ROW, _LABEL = 19, 26  # pixels of a row; characters of a label
_CHANCE = "#fdae6b"


def words_figure(result: WordsResult, feature: str, arm: str, most: int = 40) -> go.Figure:
    """One row a word, one column a kind; zero in the middle, words that are added to its right.

    most: words at most, those found first, then by the size of z; at least ten are drawn, found or
    not. Raises `PlotError` when no word was tested.
    """
    kinds = result.kinds(feature, arm)
    words, found = _chosen(result, feature, arm, most)
    if not words:
        raise PlotError(f"{feature}, {arm}: no word is in enough responses to be drawn.")
    names = [k.replace(" - ", " \u2212 ") for k in kinds]
    figure = make_subplots(
        rows=1, cols=len(kinds), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=names
    )
    mine = result.of(feature, arm)
    for column, kind in enumerate(kinds, 1):
        part: Any = mine[mine["kind"] == kind].set_index("word")
        rows = [(i, part.loc[w].to_dict()) for i, w in enumerate(words) if w in part.index]
        reach = _reach(rows)
        _draw(figure, rows, words, column, reach)
        figure.add_vline(x=0, line={"color": "#444", "width": 1}, row=1, col=column)  # pyright: ignore[reportArgumentType]
        figure.update_xaxes(range=[-reach, reach], row=1, col=column)
    figure.update_yaxes(
        tickvals=list(range(len(words))),
        ticktext=[_label(w) for w in words],
        tickfont={"size": 12},
        range=[len(words) - 0.4, -0.6],
    )
    baseline = result.record["rules"]["baseline"]
    figure.update_xaxes(title={"text": "log odds", "font": {"size": 12}})
    lines = [
        f"Log odds against {baseline} (natural logarithm): blue to the right is added, red to the "
        "left removed, grey rings are no evidence; lines are 95% intervals."
        + (" Orange bars are the random arms' range." if _has_random(result, feature, arm) else ""),
    ]
    if result.record["difference"] and len(kinds) > 2:
        last = names[-1].split(" \u2212 ")
        lines.append(
            f"{names[-1]}: the effect in {last[0]} less that in {last[1]}; to the right: added "
            f"more in {last[0]}."
        )
    left_out = found - len(words)
    if left_out > 0:
        lines.append(f"{left_out} more words were found than are drawn; the table has them.")
    loud = None if found else f"No word passes: these are the {len(words)} of the largest z."
    top = title(figure, f"{feature}, {arm}", ": words added and removed", lines, loud)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + 30 + _ROW * len(words) + 75,
        margin={"l": 190, "r": 30, "t": top + 34, "b": 55},
        showlegend=False,
    )
    return figure


def _chosen(result: WordsResult, feature: str, arm: str, most: int) -> tuple[list[str], int]:
    """Words to draw, those added most first, and how many were found."""
    mine: Any = result.of(feature, arm)
    found = list(dict.fromkeys(mine.loc[mine["verdict"] != "no evidence", "word"]))
    rest = [w for w in dict.fromkeys(mine["word"]) if w not in set(found)]
    words = [*found, *rest[: max(0, 10 - len(found))]][:most]
    kept = mine[mine["word"].isin(words) & mine["p_fisher"].notna()]
    mean = kept.groupby("word", sort=False)["log_odds"].mean().to_dict()
    return sorted(words, key=lambda w: -mean.get(w, 0.0)), len(found)


def _has_random(result: WordsResult, feature: str, arm: str) -> bool:
    return not arm.startswith("random") and bool(
        result.of(feature, arm)["random_low"].notna().any()
    )


def _reach(rows: list[tuple[int, dict[str, Any]]]) -> float:
    names = ("low", "high", "log_odds", "random_low", "random_high")
    ends = [abs(row[n]) for _, row in rows for n in names if np.isfinite(row[n])]
    return 1.08 * max([0.5, *ends])


def _draw(
    figure: go.Figure,
    rows: list[tuple[int, dict[str, Any]]],
    words: list[str],
    column: int,
    reach: float,
) -> None:
    """One trace for the random arms, one a verdict."""
    place = {"row": 1, "col": column}
    chance = [(i, r) for i, r in rows if np.isfinite(r["random_low"])]
    if chance:
        # A range of no width, of one random arm, is drawn as a short bar.
        least = 0.012 * reach
        figure.add_bar(
            orientation="h",
            y=[i for i, _ in chance],
            base=[r["random_low"] - least for _, r in chance],
            x=[r["random_high"] - r["random_low"] + 2 * least for _, r in chance],
            width=0.5,
            marker={"color": _CHANCE, "opacity": 0.55},
            hoverinfo="skip",
            **place,
        )
    for verdict, (colour, symbol) in _STYLES.items():
        mine = [(i, r) for i, r in rows if r["verdict"] == verdict]
        if not mine:
            continue
        value = np.array([r["log_odds"] for _, r in mine])
        figure.add_scatter(
            x=value.tolist(),
            y=[i for i, _ in mine],
            mode="markers",
            name=verdict,
            marker={"color": colour, "size": 8, "symbol": symbol},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (np.array([r["high"] for _, r in mine]) - value).clip(0).tolist(),
                "arrayminus": (value - np.array([r["low"] for _, r in mine])).clip(0).tolist(),
                "color": colour,
                "thickness": 1.5,
                "width": 0,
            },
            text=[_hover(words[i], r) for i, r in mine],
            hovertemplate="%{text}<extra></extra>",
            **place,
        )


def _label(word: str) -> str:
    shown = word if len(word) <= _LABEL else word[: _LABEL - 1] + "\u2026"
    return visible(shown)


def _hover(word: str, row: dict[str, Any]) -> str:
    fisher = "" if np.isnan(row["p_fisher"]) else f", Fisher {row['p_fisher']:.2g}"
    return (
        f"{visible(word)}: {row['verdict']}<br>log odds "
        f"{interval(row['log_odds'], row['low'], row['high'], '+.2f')}, z {row['z']:+.1f}<br>in "
        f"{row['responses']} of {row['n']} responses, baseline {row['responses_baseline']} of "
        f"{row['n_baseline']}<br>"
        f"q {row['q']:.2g}, p {row['p_permutation']:.2g}{fisher}"
    )
