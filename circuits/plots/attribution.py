"""Where the effects of an attribution sit: site by site and token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.metrics import SMALLEST_GAP, summarise_mean, summarise_ratio
from circuits.patch.ability import forced_line
from circuits.patch.result import count
from circuits.plots.base import (
    DIVERGING,
    SIGN,
    TOKEN_AXIS,
    WIDTH,
    PlotError,
    first_difference,
    in_line,
    title,
    token_axis,
    token_labels,
)
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.attribute.result import Attribution
    from circuits.prompts import Alignment

_FORWARD = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")  # within a layer
_OF_SAES = ("latent", "error", "offset")
_NAMES = {
    "latent": "latents, added up",
    "error": "errors",
    "offset": "offsets",
    "z": "z (heads, added up)",
}
_SUM, _BAR = 46, 95  # pixels of the column of sums and of the colour bar
_NARROWEST = 15  # pixels of a token's column, so that slanted labels do not touch


@dataclass(frozen=True)
class _Panel:
    """One heatmap: mean effects [row, column] with intervals, and the sum of each row."""

    name: str
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    sums: np.ndarray


def method_of(record: Any) -> str:
    """How the effects were found, such as "integrated gradients, 5 steps"."""
    used = sorted((record.get("steps_used") or {"": record["steps"] or 0}).values())
    steps = count(used[-1], "step")
    if used[0] < used[-1]:
        steps = f"{used[0]} to {steps}"
    return {
        "atp": "attribution patching",
        "ig": f"integrated gradients, {steps}",
        "exact": "exact patching of each node",
    }[record["attribution"]]


def heading(record: Any) -> tuple[str, str]:
    """The large line of a title: the task; the model, the method and the direction."""
    task = f"{record['task']} {record['contrast'] or ''}".strip()
    how = record["direction"]
    if record.get("errors") == "removed":  # effects in another model: said in every title
        how += ", SAEs' errors removed"
    return task, f", {record['model']}: {method_of(record)} ({how})"


def loud_line(record: Any) -> str | None:
    """What must be said of results of a contrast that the model cannot do, or made with SAEs that
    lose it."""
    gate = (record.get("saes_keep") or {}).get("gate")
    return " ".join(line for line in (forced_line(record), gate) if line) or None


def value_of(result: Attribution, pairs: list[int]) -> str:
    """ "share" of the gap for the logit difference, "effect" in units of the metric for other
    metrics and where the gap is too small for shares."""
    is_ld = result.record["metric"] == "logit_difference"
    wide = abs(float(result.gap[pairs].mean())) >= SMALLEST_GAP
    return "share" if is_ld and wide else "effect"


def unit_of(result: Attribution, value: str) -> str:
    """What a number of this value is."""
    metric = str(result.record["metric"]).replace("_", " ")
    return "share of the clean-corrupted gap" if value == "share" else f"effect on {metric}"


def attribution_heatmap(
    result: Attribution, alignment: Alignment, value: str | None = None
) -> go.Figure:
    """The picture of an attribution; see `Attribution.heatmap`."""
    pairs = list(alignment.pairs)
    chosen = value or value_of(result, pairs)
    if chosen not in ("share", "effect"):
        raise PlotError(f"unknown value {chosen!r}: expected share or effect.")
    first = first_difference(result.prompts, alignment)
    rows, panels = _panels(result, pairs, chosen, range(first, alignment.length))
    labels = token_labels(result.prompts.tokens_at(alignment), result.prompts.names_at(alignment))
    labels = labels[first:]
    left = 25 + 7 * max(map(len, rows))
    room = WIDTH - left - _BAR
    across = max(1, min(len(panels), int(room // (_NARROWEST * len(labels) + _SUM))))
    down = math.ceil(len(panels) / across)
    width = room // across - _SUM
    shown, angle, size, under = token_axis(labels, width)
    bottom = 40 + int(under)
    between = bottom + 30
    high = (26 if len(rows) <= 12 else 17) * len(rows)
    figure = make_subplots(
        rows=down,
        cols=across,
        shared_yaxes=True,
        horizontal_spacing=_SUM / (room - _SUM),
        vertical_spacing=between / (down * high + (down - 1) * between) if down > 1 else 0,
        subplot_titles=[panel.name for panel in panels],
    )
    for i, panel in enumerate(panels):
        _draw(figure, panel, rows, labels, unit_of(result, chosen), i // across + 1, i % across + 1)
    top = _title(figure, result, alignment, chosen, first)
    figure.update_layout(
        width=WIDTH,
        height=top + 25 + down * high + (down - 1) * between + bottom,
        margin={"l": left, "r": _BAR + _SUM, "t": top + 25, "b": bottom},
        template="plotly_white",
        coloraxis=_colours(panels, unit_of(result, chosen), _SUM / (room - _SUM), min(high, 300)),
        showlegend=False,
    )
    figure.update_xaxes(
        tickmode="array",
        tickvals=list(range(len(labels))),
        ticktext=shown,
        tickangle=angle,
        tickfont={"family": "monospace", "size": size},
        range=[-0.5, len(labels) - 0.5],
        showgrid=False,
        zeroline=False,
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(rows))),
        ticktext=rows,
        range=[-0.5, len(rows) - 0.5],
        showgrid=False,
        zeroline=False,
    )
    axis = TOKEN_AXIS.replace("below it", "then") if angle else TOKEN_AXIS
    figure.add_annotation(
        text=axis,
        x=0.5,
        y=0,
        xref="paper",
        yref="paper",
        yanchor="top",
        yshift=25 - bottom,
        showarrow=False,
        font={"size": 12},
    )
    return figure


def _panels(
    result: Attribution, pairs: list[int], value: str, columns: range
) -> tuple[list[str], list[_Panel]]:
    """Names of the rows, first ones first, and the panels.

    With SAEs a row is a site and a panel a role; without, a row is a layer and a panel a kind.
    """
    sites = sorted(
        (Site.parse(name) for name in result.record["sites"]),
        key=lambda site: (site.layer, _FORWARD.index(site.kind)),
    )
    scores: Any = result.scores
    scores = scores[scores["pair"].isin(pairs)]
    roles = set(map(str, scores["role"].unique()))
    gap = result.gap[pairs]
    if result.record["saes"] is not None:
        rows = [str(site) for site in sites]
        removed = result.record.get("errors") == "removed"
        always = ("latent",) if removed else ("latent", "error")
        cells = {
            role: {str(site): i for i, site in enumerate(sites)}
            for role in _OF_SAES
            if role in always or role in roles
        }
        parts = {role: scores[scores["role"] == role] for role in cells}
    else:
        layers = sorted({site.layer for site in sites})
        rows = [f"layer {layer}" for layer in layers]
        cells = {
            kind: {str(s): layers.index(s.layer) for s in sites if s.kind == kind}
            for kind in _FORWARD
            if any(s.kind == kind for s in sites)
        }
        parts = {kind: scores[scores["site"].isin(list(cells[kind]))] for kind in cells}
    panels = []
    for name, places in cells.items():
        cube = np.zeros((len(pairs), len(rows), len(columns)))
        part = parts[name]
        where = (
            part["pair"].map({pair: i for i, pair in enumerate(pairs)}).to_numpy(dtype=int),
            part["site"].astype(str).map(places).to_numpy(dtype=int),
            part["position"].to_numpy(dtype=int) - columns.start,
        )
        np.add.at(cube, where, part["effect"].to_numpy(dtype=float))
        # A layer at which this kind was not looked at stays empty: it is not 0.
        cube[:, [i for i in range(len(rows)) if i not in places.values()]] = np.nan
        found = summarise_ratio(cube, gap) if value == "share" else summarise_mean(cube)
        sums = found.value.sum(1)
        panels.append(_Panel(_NAMES.get(name, name), found.value, found.low, found.high, sums))
    return rows, panels


def _draw(
    figure: go.Figure,
    panel: _Panel,
    rows: list[str],
    labels: list[str],
    unit: str,
    row: int,
    column: int,
) -> None:
    figure.add_trace(
        go.Heatmap(
            z=panel.mean,
            x=list(range(len(labels))),
            y=list(range(len(rows))),
            customdata=np.stack([panel.low, panel.high], axis=-1),
            text=[[f"{name}<br>{in_line(label)}" for label in labels] for name in rows],
            coloraxis="coloraxis",
            name=panel.name,
            xgap=0.5,
            ygap=0.5,
            hovertemplate=(
                f"%{{text}}<br>{panel.name}: {unit} %{{z:+.3f}}"
                "<br>95% interval %{customdata[0]:+.3f} to %{customdata[1]:+.3f}<extra></extra>"
            ),
        ),
        row=row,
        col=column,
    )
    figure.add_trace(
        go.Scatter(
            x=[len(labels) - 0.5] * len(rows),
            y=list(range(len(rows))),
            mode="text",
            text=["" if np.isnan(s) else f"{round(s, 2) + 0.0:+.2f}" for s in panel.sums],
            textposition="middle right",
            textfont={"size": 11, "color": "#444"},
            cliponaxis=False,
            hoverinfo="skip",
            name=f"{panel.name}: sums",
        ),
        row=row,
        col=column,
    )
    figure.add_annotation(
        text="<i>sum</i>",
        x=1,
        y=1,
        xref="x domain",
        yref="y domain",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        font={"size": 11, "color": "#444"},
        row=row,
        col=column,
    )


def _colours(panels: list[_Panel], unit: str, shift: float, length: int) -> dict[str, Any]:
    """One scale for all panels, with zero in the middle."""
    every = np.concatenate([panel.mean.ravel() for panel in panels])
    bound = float(np.nanmax(np.abs(every))) if np.isfinite(every).any() else 0.0
    bound = bound or 1.0
    text = unit.replace("share of the ", "share of the<br>").replace("effect on ", "effect on<br>")
    bar = {
        "title": {"text": text, "side": "right", "font": {"size": 12}},
        "thickness": 14,
        "x": 1 + shift,
        "y": 1,
        "yanchor": "top",
        "lenmode": "pixels",
        "len": length,
    }
    return {"colorscale": DIVERGING, "cmid": 0, "cmin": -bound, "cmax": bound, "colorbar": bar}


def _title(
    figure: go.Figure, result: Attribution, alignment: Alignment, value: str, first: int
) -> int:
    record = result.record
    template = f", template {alignment.template}" if alignment.template else ""
    where = "of all nodes at a place, added up" if record["saes"] is not None else "of components"
    lines = [
        f"Effects {where}, as {unit_of(result, value)}; mean of "
        f"{count(len(alignment.pairs), 'pair')}{template}; {SIGN[record['direction']]}."
    ]
    notes = []
    if first:
        notes.append(
            f"The first {count(first, 'token')} are the same in both prompts, without nodes, and "
            "not shown."
        )
    kinds = {Site.parse(name).kind for name in record["sites"]}
    if {"z", "attn_out"} <= kinds:
        notes.append("attn_out is what the heads of z write: do not add them up.")
    if sum(name.startswith("resid_") for name in record["sites"]) > 1:
        notes.append("Each residual site holds the whole stream: do not add up their rows.")
    residual = (record.get("audit") or {}).get("completeness_residual")
    if residual is not None and math.isfinite(residual):
        notes.append(
            f"By the audit a site's sum is off its exact effect by up to {residual:.2%} of the "
            "largest site's."
        )
    lines.append(" ".join(notes))
    lines.append(result.prompts.named_answers())
    return title(figure, *heading(record), lines, loud_line(record))
