"""Figures of patching sweeps."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from circuits.patch.result import count
from circuits.plots.base import (
    DIVERGING,
    SIGN,
    TOKEN_AXIS,
    WIDTH,
    PlotError,
    first_difference,
    token_axis,
    token_labels,
)

if TYPE_CHECKING:
    from circuits.patch.result import PatchResult
    from circuits.prompts import Alignment

_MOST_COLUMNS = 48  # more tokens than this are not legible at the width of a notebook
_MOST_HEADS = 40


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
        title = TOKEN_AXIS
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
    first = first_difference(result.prompts, alignment)
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
        x_title=TOKEN_AXIS,
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
            colorscale=DIVERGING,
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
    else:
        done = f"corrupted {record['site']} put into the clean run"
    if record.get("thoughts"):
        done += f", thoughts {record['thoughts']}"
    answers = html.escape(result.prompts.named_answers(), quote=False)
    template = f", template {alignment.template}" if alignment.template else ""
    contrast = f" {record['contrast']}" if record["contrast"] else ""
    shown, angle, size, down = token_axis(x, WIDTH - 160)
    below = max(0, round(down) - 60)  # what slanted labels take more than upright ones
    figure.update_layout(
        title={
            "text": (
                f"<b>{record['task']}{contrast}</b>, {record['model']}: {done} "
                f"({record['direction']})<br><sup>{what[column]}, mean of "
                f"{count(len(alignment.pairs), 'pair')}{template}; "
                f"{SIGN[record['direction']]}{note}<br>{answers}</sup>"
            ),
            "x": 0.01,
            "font": {"size": 15},
        },
        width=WIDTH,
        height=max(380, 180 + 17 * len(y)) + below,
        margin={"l": 65, "r": 20, "t": 90, "b": 100 + below},
        template="plotly_white",
    )
    if angle:
        x_title = x_title.replace("below it", "then")
    figure.update_xaxes(
        title={"text": x_title, "standoff": 8, "font": {"size": 12}},
        tickmode="array",
        tickvals=columns,
        ticktext=shown,
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
