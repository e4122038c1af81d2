"""A forest plot of hypotheses: enrichments and effects with intervals, thresholds, verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.plots.base import BLUE, RED, WIDTH, PlotError, title, visible

if TYPE_CHECKING:
    from circuits.hypotheses.result import HypothesesResult

_COLOURS = {"holds": BLUE, "fails": RED, "not enough data": "#8c8c8c"}
_SYMBOLS = {"holds": "circle", "fails": "x", "not enough data": "circle-open"}
_ROW, _LABEL = 21, 44  # pixels of a row; characters of a label
_LEAST, _MOST = 0.1, 1000.0  # enrichments that are drawn; others stand at the edge


def hypotheses_figure(result: HypothesesResult, most: int = 60) -> go.Figure:
    """Every hypothesis with its interval; above, what fires on a class, below, what moves an
    output. most: rows of each part at most; those that hold come first.

    Raises `PlotError` when there are none.
    """
    table: Any = result.table
    parts = [
        (fires, _first(table[(table["claim"] == "fires_on") == fires], most))
        for fires in (True, False)
    ]
    parts = [(fires, rows) for fires, rows in parts if rows]
    if not parts:
        raise PlotError("there are no hypotheses to draw.")
    names = {True: "active in the class, times as often", False: "change of the logit when added"}
    heights = [len(rows) * _ROW + 30 for _, rows in parts]
    space = 95 / (sum(heights) + 95 * (len(parts) - 1)) if len(parts) > 1 else 0.0
    figure = make_subplots(
        rows=len(parts), cols=1, row_heights=heights, vertical_spacing=min(0.5, space)
    )
    for number, (fires, rows) in enumerate(parts, 1):
        _draw(figure, rows, number, fires)
        figure.update_xaxes(title=names[fires], row=number, col=1)
        if fires:
            figure.update_xaxes(type="log", row=number, col=1)
        place: dict[str, Any] = {"row": number, "col": 1}
        figure.add_vline(x=1 if fires else 0, line={"color": "#444", "width": 1}, **place)
    left_out = len(table) - sum(len(rows) for _, rows in parts)
    lines = [
        "Blue circles hold, red crosses fail, grey rings had not enough data; lines are 95% "
        "intervals over documents or images, short strokes the threshold of each.",
        *(
            [f"{left_out} that failed or had not enough data are not drawn; the table has them."]
            if left_out
            else []
        ),
    ]
    top = title(figure, "Hypotheses", ": " + result.headline(), lines)
    between = 95 * (len(parts) - 1)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + sum(heights) + between + 70,
        margin={"l": 375, "r": 125, "t": top + 10, "b": 60},
        showlegend=False,
    )
    return figure


def _first(table: Any, most: int) -> list[dict[str, Any]]:
    order = {verdict: i for i, verdict in enumerate(_COLOURS)}
    rows = sorted(table.to_dict("records"), key=lambda r: (order[r["verdict"]], -_size(r)))
    return rows[:most]


def _size(row: dict[str, Any]) -> float:
    return abs(row["value"]) if np.isfinite(row["value"]) else -1.0


def _label(row: dict[str, Any]) -> str:
    name = visible(f"{row['site']} {row['latent']}").replace("\u2423", " ")
    said = str(row["statement"])
    said = said if len(said) <= _LABEL else said[: _LABEL - 1] + "\u2026"
    said = said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{name} {said}"


def _draw(figure: go.Figure, rows: list[dict[str, Any]], number: int, fires: bool) -> None:
    """One trace a verdict; each row at its own height."""
    places = list(range(len(rows)))
    shown = [_inside(row, fires) for row in rows]
    for verdict, colour in _COLOURS.items():
        mine = [i for i in places if rows[i]["verdict"] == verdict]
        if not mine:
            continue
        value, low, high = (np.array([shown[i][k] for i in mine]) for k in range(3))
        figure.add_scatter(
            x=value.tolist(),
            y=mine,
            mode="markers",
            name=verdict,
            marker={"color": colour, "size": 8, "symbol": _SYMBOLS[verdict]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": np.nan_to_num(high - value).clip(0).tolist(),
                "arrayminus": np.nan_to_num(value - low).clip(0).tolist(),
                "color": colour,
                "thickness": 1.5,
                "width": 0,
            },
            text=[_hover(rows[i]) for i in mine],
            hovertemplate="%{text}<extra></extra>",
            row=number,
            col=1,
        )
    figure.add_scatter(
        x=[_bound(row, fires) for row in rows],
        y=places,
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 13, "color": "#444", "line": {"width": 1.5}},
        hovertemplate="threshold %{x:.3g}<extra></extra>",
        row=number,
        col=1,
    )
    for i, row in enumerate(rows):  # the verdict in words, at the right edge
        figure.add_annotation(
            x=1.01,
            xref="x domain" if number == 1 else f"x{number} domain",
            y=i,
            yref="y" if number == 1 else f"y{number}",
            text=str(row["verdict"]),
            font={"size": 12, "color": _COLOURS[row["verdict"]]},
            showarrow=False,
            xanchor="left",
        )
    figure.update_yaxes(
        tickvals=places,
        ticktext=[_label(row) for row in rows],
        tickfont={"size": 11},
        range=[len(rows) - 0.5, -0.5],
        row=number,
        col=1,
    )


def _inside(row: dict[str, Any], fires: bool) -> tuple[float, float, float]:
    """Value, low, high as they are drawn."""
    found = [float(row[name]) for name in ("value", "low", "high")]
    if fires:
        found = [min(max(x, _LEAST), _MOST) if not np.isnan(x) else x for x in found]
    return found[0], found[1], found[2]


def _bound(row: dict[str, Any], fires: bool) -> float:
    bound = float(row["threshold"])
    return -bound if row["claim"] == "lowers" else (min(bound, _MOST) if fires else bound)


def _hover(row: dict[str, Any]) -> str:
    said = f"{_label({**row, 'statement': str(row['statement'])[:_LABEL]})}: {row['verdict']}"
    figures = f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}], q {row['q']:.2g}"
    reason = str(row["reason"]).replace("<", "&lt;")
    return f"{said}<br>{figures}<br>{reason}<br>{row['active']:,} active examples"
