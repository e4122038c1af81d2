"""Figures. Each takes a finished result and returns a plotly figure that opens without a network.

Diverging scales have zero in the middle, red below and blue above; the title states the sign.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from circuits.errors import CircuitsError
from circuits.patch.result import count
from circuits.tokens import visible as plain

if TYPE_CHECKING:
    from circuits.patch.result import PatchResult
    from circuits.prompts import Alignment

_DIVERGING = "RdBu"  # red - white - blue
_MOST_COLUMNS = 48  # more tokens than this are not legible at the width of a notebook
_MOST_HEADS = 40
_WIDTH = 950
_BLUE, _RED = "#2171b5", "#cb181d"
_TOKENS_SHOWN = 8  # raised, and as many lowered
_SMALLEST_FONT = 9.0
_TOKEN_AXIS = (
    "token (clean, below it corrupted where they differ; \u2423 is a space, \u21b5 a new line)"
)


class PlotError(CircuitsError):
    """A figure that a result has no data for."""


def visible(token: str) -> str:
    """A token with its white space made visible and nothing that HTML would swallow."""
    return plain(token).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _alternatives(tokens: tuple[str, ...]) -> str:
    """One token as it is, two with a bar, more as the first and an ellipsis."""
    shown = [visible(t) for t in tokens]
    return "|".join(shown) if len(shown) <= 2 else f"{shown[0]}|\u2026"


def token_labels(
    tokens: list[tuple[tuple[str, ...], tuple[str, ...]]], named: dict[int, str]
) -> list[str]:
    """Axis labels: the clean token, below it the corrupted one where they differ, below that the
    position's name."""
    labels = []
    for position, (clean, corrupted) in enumerate(tokens):
        second = "" if clean == corrupted else f"<b>{_alternatives(corrupted)}</b>"
        first = _alternatives(clean)
        first = f"<b>{first}</b>" if second else first
        name = f"<i>{named[position]}</i>" if position in named else ""
        lines = [first, second or " ", name]
        while lines and not lines[-1].strip():
            lines.pop()
        labels.append("<br>".join(lines))
    return labels


def patch_heatmap(result: PatchResult, alignment: Alignment, value: str | None) -> go.Figure:
    """The picture of a sweep; see `PatchResult.heatmap`."""
    record = result.record
    column = value or result.value
    if column not in ("share", "effect"):
        raise PlotError(f"unknown value {column!r}: expected share or effect.")
    table: Any = result.summary(alignment)  # pandas' stubs know too little of pivots
    heads, each = record["site"] == "z", record["positions_patched"] == "each"
    if heads and each:
        return _head_by_position(result, alignment, table, column)
    across = "head" if heads else "position"
    grid = table.pivot(index="layer", columns=across, values=column)
    low = table.pivot(index="layer", columns=across, values=f"{column}_low")
    high = table.pivot(index="layer", columns=across, values=f"{column}_high")
    note = ""
    if heads:
        labels, title = [str(h) for h in grid.columns], "attention head"
    elif not each:
        labels, title = ["all positions"], ""
    else:
        labels = token_labels(result.tokens(alignment), result.named_positions(alignment))
        title = _TOKEN_AXIS
        kept, note = _columns_to_show(result, alignment)
        grid, low, high = grid.iloc[:, kept], low.iloc[:, kept], high.iloc[:, kept]
        labels = [labels[i] for i in kept]
    return _figure(
        result,
        alignment,
        column,
        grid.to_numpy(dtype=float),
        low.to_numpy(dtype=float),
        high.to_numpy(dtype=float),
        x=labels,
        y=[str(layer) for layer in grid.index],
        x_title=title,
        y_title=f"layer of {record['site']}",
        note=note,
    )


def _columns_to_show(result: PatchResult, alignment: Alignment) -> tuple[list[int], str]:
    """All positions, or without the shared beginning when there are too many to read."""
    tokens = result.tokens(alignment)
    everything = list(range(len(tokens)))
    if len(tokens) <= _MOST_COLUMNS:
        return everything, ""
    pairs = [
        (result.prompts.clean_tokens[i], result.prompts.corrupted_tokens[i])
        for i in alignment.pairs
    ]
    first = min(next(p for p in everything if c[p] != k[p]) for c, k in pairs)
    if first == 0:
        return everything, ""
    return everything[first:], f"; the first {first} tokens are shared and exactly 0, not shown"


def _head_by_position(
    result: PatchResult, alignment: Alignment, table: Any, column: str
) -> go.Figure:
    """The heads with the largest effect anywhere, one row a head, tokens across."""
    strength = table.assign(size=table[column].abs()).groupby(["layer", "head"])["size"].max()
    strongest = strength.nlargest(_MOST_HEADS).sort_index().index
    grids = [
        table.pivot(index=["layer", "head"], columns="position", values=name).loc[strongest]
        for name in (column, f"{column}_low", f"{column}_high")
    ]
    kept, note = _columns_to_show(result, alignment)
    labels = token_labels(result.tokens(alignment), result.named_positions(alignment))
    shown = [g.iloc[:, kept].to_numpy(dtype=float) for g in grids]
    more = len(strength) - len(strongest)
    return _figure(
        result,
        alignment,
        column,
        *shown,
        x=[labels[i] for i in kept],
        y=[".".join(map(str, layer_and_head)) for layer_and_head in strongest.to_list()],
        x_title=_TOKEN_AXIS,
        y_title="layer.head",
        note=note + (f"; {more} heads with smaller effects not shown" if more else ""),
    )


def _figure(
    result: PatchResult,
    alignment: Alignment,
    column: str,
    grid: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    *,
    x: list[str],
    y: list[str],
    x_title: str,
    y_title: str,
    note: str,
) -> go.Figure:
    record = result.record
    bound = float(np.nanmax(np.abs(grid))) if np.isfinite(grid).any() else 1.0
    bound = max(1.0, bound) if column == "share" else (bound or 1.0)
    what = {"share": "share of the clean-corrupted gap", "effect": f"effect on {record['metric']}"}
    hover = np.stack([low, high], axis=-1)
    columns = list(range(len(x)))
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            x=columns,
            y=list(range(len(y))),
            customdata=hover,
            text=np.tile(np.array(x, dtype=object), (len(y), 1)),
            colorscale=_DIVERGING,
            zmid=0,
            zmin=-bound,
            zmax=bound,
            colorbar={"title": {"text": what[column], "side": "right"}, "thickness": 14},
            hovertemplate=(
                f"{y_title} %{{y}}<br>%{{text}}<br>{what[column]} %{{z:.3f}}"
                "<br>95% interval %{customdata[0]:.3f} to %{customdata[1]:.3f}<extra></extra>"
            ),
        )
    )
    if record["direction"] == "denoising":
        done = f"clean {record['site']} put into the corrupted run"
        sign = "positive (blue) = toward clean"
    else:
        done = f"corrupted {record['site']} put into the clean run"
        sign = "positive (blue) = toward clean, lost by the patch"
    answers = html.escape(result.prompts.named_answers(), quote=False)
    template = f", template {alignment.template}" if alignment.template else ""
    contrast = f" {record['contrast']}" if record["contrast"] else ""
    figure.update_layout(
        title={
            "text": (
                f"<b>{record['task']}{contrast}</b>, {record['model']}: {done} "
                f"({record['direction']})<br><sup>{what[column]}, mean of "
                f"{count(len(alignment.pairs), 'pair')}{template}; {sign}{note}<br>{answers}</sup>"
            ),
            "x": 0.01,
            "font": {"size": 15},
        },
        width=_WIDTH,
        height=max(380, 180 + 17 * len(y)),
        margin={"l": 65, "r": 20, "t": 90, "b": 100},
        template="plotly_white",
    )
    ticks, angle, size = _ticks(x)
    if angle:
        x_title = x_title.replace("below it", "then")
    figure.update_xaxes(
        title={"text": x_title, "standoff": 8, "font": {"size": 12}},
        tickmode="array",
        tickvals=columns,
        ticktext=ticks,
        tickangle=angle,
        tickfont={"family": "monospace", "size": size},
        showgrid=False,
        constrain="domain",
    )
    step = 1 if len(y) <= 40 else 2
    figure.update_yaxes(
        title={"text": y_title},
        tickmode="array",
        tickvals=list(range(0, len(y), step)),
        ticktext=y[::step],
        showgrid=False,
    )
    return figure


def _ticks(labels: list[str]) -> tuple[list[str], int, float]:
    """Labels, angle and font size: upright in a size at which neighbours do not touch, or slanted
    on one line when there are too many."""
    widths = [
        max(len(html.unescape(re.sub("</?[bi]>", "", line))) for line in label.split("<br>"))
        for label in labels
    ]
    closest = max((a + b) / 2 for a, b in zip(widths, [*widths[1:], 0], strict=True))
    room = (_WIDTH - 160) / len(labels) - 2
    size = min(12.0, room / (0.6 * closest))  # a character is 0.6 of its size wide
    if size >= _SMALLEST_FONT:
        return labels, 0, size
    lines = [[part for part in label.split("<br>") if part.strip()] for label in labels]
    return [" \u00b7 ".join(parts) for parts in lines], -60, _SMALLEST_FONT


def latent_figure(
    row: Mapping[str, Any], vocabulary: Mapping[int, str], record: Mapping[str, Any]
) -> go.Figure:
    """A latent: how strongly it is active, and the tokens its decoder row raises and lowers."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=1,
        cols=2,
        column_widths=[0.45, 0.55],
        horizontal_spacing=0.16,
        subplot_titles=[
            "activations when active",
            "direct effect on logits, per unit of activation",
        ],
    )
    edges = np.asarray(record["histogram_edges"])
    counts = np.asarray(row["histogram"])
    used = np.flatnonzero(counts)
    bins = range(used[0], used[-1] + 1) if len(used) else range(0)
    figure.add_bar(
        x=[float(np.sqrt(edges[i] * edges[i + 1])) for i in bins],
        width=[float(edges[i + 1] - edges[i]) for i in bins],
        y=[int(counts[i]) for i in bins],
        marker_color=_BLUE,
        hovertemplate="about %{x:.3g}: %{y} positions<extra></extra>",
        row=1,
        col=1,
    )
    figure.update_xaxes(type="log", title="activation (log scale)", row=1, col=1)
    figure.update_yaxes(title="positions", row=1, col=1)
    words = [*zip(row["raised"], row["raised_by"], strict=True)][:_TOKENS_SHOWN]
    words += [*zip(row["lowered"], row["lowered_by"], strict=True)][:_TOKENS_SHOWN][::-1]
    # Numbered, because two tokens can look the same.
    labels = [f"{visible(vocabulary[int(t)])}" for t, _ in words]
    values = [float(v) for _, v in words]
    figure.add_bar(
        x=values,
        y=list(range(len(words))),
        orientation="h",
        marker_color=[_BLUE if v > 0 else _RED for v in values],
        customdata=labels,
        hovertemplate="%{customdata}: %{x:+.3f}<extra></extra>",
        row=1,
        col=2,
    )
    reach = max((abs(v) for v in values), default=1.0) * 1.05
    figure.update_xaxes(
        title="logit against the mean token (positive: raised)",
        range=[-reach, reach],
        zeroline=True,
        zerolinecolor="#444",
        row=1,
        col=2,
    )
    figure.update_yaxes(
        tickvals=list(range(len(words))), ticktext=labels, autorange="reversed", row=1, col=2
    )
    figure.update_layout(
        width=_WIDTH, height=390, showlegend=False, bargap=0.15, margin={"l": 60, "r": 20, "t": 50}
    )
    return figure
