"""Pathways as figures: what changes, what mediators carry, direct and by tokens at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from circuits.plots.base import BLUE, RED, WIDTH, PlotError, title

if TYPE_CHECKING:
    from circuits.replay.pathways_result import PathwaysResult

_GREY, _GREEN, _ORANGE = "#737373", "#238b45", "#d94801"
_ROW = 24  # pixels of a row
_MOST = 30  # latents that are drawn
_VIEWS = (("", "in the run", _ORANGE, "circle-open"), ("held_", "text held", BLUE, "circle"))
_PARTS = {
    "total": ("total", "#222"),
    "direct": ("direct", BLUE),
    "by_tokens": ("by tokens", _ORANGE),
    "interaction": ("interaction", _GREY),
}


def changes_figure(result: PathwaysResult) -> go.Figure:
    """Standardised differences of the latents that change, in the run and with the text held.

    Raises `PlotError` where none was tested.
    """
    rows = _first(result)
    if not rows:
        raise PlotError("no downstream latent was active often enough to be tested.")
    places = list(range(len(rows)))
    figure = go.Figure()
    for view, name, colour, symbol in _VIEWS:
        value, low, high = (
            np.array([row[f"{view}{c}"] for row in rows], dtype=float)
            for c in ("size", "size_low", "size_high")
        )
        figure.add_scatter(
            x=value.tolist(),
            y=[p + (0.15 if view else -0.15) for p in places],
            mode="markers",
            name=name,
            marker={"color": colour, "size": 8, "symbol": symbol},
            error_x=_bars(value, low, high, colour),
            text=[_hover(row, view) for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
    record = result.record
    lines = [
        "Mean paired difference over its standard deviation (d_z), 95% intervals, over "
        f"{record['units']} {record['unit']}s; positive: the source raises the latent. In the run "
        "the texts differ as well; with the text held they do not.",
    ]
    top = title(figure, "Downstream latents that change", f", {_where(result)}", lines)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + len(rows) * _ROW + 110,
        margin={"l": 210, "r": 30, "t": top + 10, "b": 90},
        legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0},
    )
    figure.add_vline(x=0, line={"color": "#444", "width": 1})
    figure.update_xaxes(title="d_z")
    figure.update_yaxes(
        tickvals=places,
        ticktext=[f"{row['site']} {row['latent']}" for row in rows],
        range=[len(rows) - 0.5, -0.5],
    )
    return figure


def _first(result: PathwaysResult) -> list[dict[str, Any]]:
    """Those with the smallest q in either view, the largest sizes first among equals."""
    table: Any = result.pathways
    q = table[["q", "held_q"]].min(axis=1)
    size = table[["size", "held_size"]].abs().max(axis=1)
    order = np.lexsort((-size.fillna(0).to_numpy(), q.fillna(1).to_numpy()))[:_MOST]
    return table.iloc[order].to_dict("records")


def _hover(row: dict[str, Any], view: str) -> str:
    said = f"{row['site']} {row['latent']}, {'text held' if view else 'in the run'}"
    figures = (
        f"coefficient {row[f'{view}base']:.3g} to {row[f'{view}patched']:.3g}, difference "
        f"{row[f'{view}difference']:+.3g} [{row[f'{view}low']:+.3g}, {row[f'{view}high']:+.3g}], "
        f"q {row[f'{view}q']:.2g}"
    )
    random = "" if view or np.isnan(row["random"]) else f"<br>random arms {row['random']:+.3g}"
    return f"{said}<br>{figures}{random}"


def _bars(value: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": np.nan_to_num(high - value).clip(0).tolist(),
        "arrayminus": np.nan_to_num(value - low).clip(0).tolist(),
        "color": colour,
        "thickness": 1.5,
        "width": 0,
    }


def _where(result: PathwaysResult) -> str:
    source = result.record["source"]
    return f"{source['site']} latent {source['latent']}, {result.record['model']}"


def mediators_figure(result: PathwaysResult) -> go.Figure:
    """What each frozen mediator takes away and what it does by itself, beside the total.

    Raises `PlotError` where none was frozen.
    """
    rows = result.mediators().to_dict("records")
    if not rows:
        raise PlotError("no latent was frozen.")
    figure = go.Figure()
    labels = [
        f"<b>{row['site']} {row['latent']}</b>"
        if row["confirmed"]
        else f"{row['site']} {row['latent']}"
        for row in rows
    ]
    for name, shown, colour in (
        ("mediated", "lost when frozen", BLUE),
        ("alone", "by itself", _GREEN),
    ):
        value, low, high = (
            np.array([row[f"{name}{end}"] for row in rows]) for end in ("", "_low", "_high")
        )
        figure.add_bar(
            x=value.tolist(),
            y=labels,
            orientation="h",
            name=shown,
            marker_color=colour,
            error_x={**_bars(value, low, high, "#444"), "width": 2},
            hovertemplate=f"{shown}: %{{x:.3g}}<extra>%{{y}}</extra>",
        )
    figure.add_vline(x=0, line={"color": "#444", "width": 1})
    total, rest, direct = (result.effect(name) for name in ("total", "rest", "direct"))
    n, apart = sum(row["confirmed"] for row in rows), ""
    drawn = [(total, "#222", "solid"), (direct, RED, "dash")]
    if n < len(rows):
        drawn.append((rest, RED, "dot"))
        apart = f"; red dots: with the confirmed ones (bold, {n}) frozen, {rest['value']:+.3g}"
    for row, colour, dash in drawn:
        figure.add_vline(x=row["value"], line={"color": colour, "dash": dash, "width": 1.5})
    lines = [
        f"On {result.record['outcome']}, with the text held, 95% intervals over "
        f"{result.record['units_confirmed']} {result.record['unit_held']}s that did not choose "
        f"the latents. Black line: the total "
        f"effect, {total['value']:+.3g}; red dashes: what is left with all of them frozen, "
        f"{direct['value']:+.3g}{apart}. Parts of latents that drive each other overlap.",
    ]
    top = title(figure, "What mediators carry", f", {_where(result)}", lines)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + 2 * len(rows) * _ROW + 130,
        margin={"l": 210, "r": 30, "t": top + 10, "b": 110},
        legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0},
        barmode="group",
    )
    unit = result.record["outcome_unit"]
    figure.update_xaxes(
        title=f"effect on the outcome, {unit} (patched - no-op; positive: the change raises it)"
    )
    figure.update_yaxes(autorange="reversed")
    return figure


def steps_figure(result: PathwaysResult) -> go.Figure:
    """The effect that was seen, split at every step into direct and by tokens."""
    table: Any = result.steps
    figure = go.Figure()
    for part, (name, colour) in _PARTS.items():
        mine = table[table["part"] == part]
        known = mine[mine["low"].notna()]
        red, green, blue = (int(_hex(colour)[i : i + 2], 16) for i in (1, 3, 5))
        figure.add_scatter(
            x=[*known["step"], *known["step"][::-1]],
            y=[*known["high"], *known["low"][::-1]],
            mode="lines",
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.12)",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=part,
        )
        figure.add_scatter(
            x=mine["step"].tolist(),
            y=mine["value"].tolist(),
            mode="lines+markers",
            name=name,
            legendgroup=part,
            line={"color": colour, "dash": "dot" if part == "interaction" else "solid"},
            marker={"size": 4},
            text=[f"{n} trials" for n in mine["trials"]],
            hovertemplate=f"{name}: %{{y:.3g}}, step %{{x}}, %{{text}}<extra></extra>",
        )
    record = result.record
    lines = [
        f"On {record['outcome']}; positive: the change raises it. Direct: the change with the "
        "no-op arm's tokens; by tokens: the patched arm's tokens without the change; with the "
        "interaction they add up to the total. A step is over the trials in which neither arm has "
        "stopped before it, fewer and others the later it is. Bands are 95% intervals, where 6 "
        "units or more are left.",
    ]
    top = title(figure, "Direct and by tokens", f", {_where(result)}", lines)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + 380,
        margin={"l": 70, "r": 20, "t": top + 10, "b": 90},
        legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(title="generated step")
    figure.update_yaxes(
        title=f"effect, {record['outcome_unit']} (patched - no-op)", zerolinecolor="#444"
    )
    return figure


def _hex(colour: str) -> str:
    return colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
