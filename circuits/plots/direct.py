"""Figures of direct effects: where the gap in logit difference comes from, and what is mediated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from circuits.patch.ability import forced_line
from circuits.plots.attribution import loud_line
from circuits.plots.base import BLUE, RED, WIDTH, PlotError, title

if TYPE_CHECKING:
    from circuits.direct.result import DirectEffects
    from circuits.sites import Site

_GREY, _DIRECT, _MEDIATED = "#969696", "#08519c", "#fdae6b"
_ROW = 21  # pixels of a bar with its label


def waterfall(result: DirectEffects, site: Site | None, top: int) -> go.Figure:
    """See `DirectEffects.waterfall`."""
    if top < 1:
        raise PlotError(f"top {top}: at least one part must be shown.")
    parts: Any = result.parts(site)
    numbers = ["gap", "clean", "corrupted"]
    order = parts["gap"].abs().sort_values(ascending=False).index
    shown, rest = parts.loc[order[:top]], parts.loc[order[top:]]
    rows = [
        (row["part"], row["gap"], row["clean"], row["corrupted"]) for _, row in shown.iterrows()
    ]
    if len(rest):
        rows.append((f"{len(rest)} other parts", *rest[numbers].sum()))
    total = parts[numbers].sum().tolist()
    rows.append(("gap in logit difference", *total))
    steps = np.array([row[1] for row in rows[:-1]])
    starts = np.concatenate([[0.0], np.cumsum(steps)[:-1]])
    heights = [*steps.tolist(), total[0]]
    colours = [BLUE if step > 0 else RED for step in steps] + [_GREY]
    figure = go.Figure(
        go.Bar(
            x=heights,
            base=[*starts.tolist(), 0.0],
            y=list(range(len(rows))),
            orientation="h",
            marker_color=colours,
            text=[f"{h:+.3f}" for h in heights],
            textposition="outside",
            cliponaxis=False,
            customdata=[[row[0], row[2], row[3]] for row in rows],
            hovertemplate=(
                "%{customdata[0]}: %{text}<br>contribution clean %{customdata[1]:+.3f}, corrupted "
                "%{customdata[2]:+.3f}<extra></extra>"
            ),
        )
    )
    # A thin line from the end of each bar to the beginning of the next.
    for i, end in enumerate(np.cumsum(steps)):
        figure.add_shape(
            type="line", x0=end, x1=end, y0=i + 0.4, y1=i + 0.6, line={"color": "#888", "width": 1}
        )
    edges = np.concatenate([starts, np.cumsum(steps), [0.0, total[0]]])
    room = 0.14 * (edges.max() - edges.min() or 1.0)
    what = f"from {site} on" if site else "embedding, heads, MLPs, biases"
    record = result.record
    height = title(
        figure,
        f"{record['task']}{_contrast(record)}",
        f", {record['model']}: direct contributions, {what}",
        [
            "Contribution of each part of the last token's stream to the clean logit difference, "
            f"less that to the corrupted one; mean of {len(result.prompts)} pairs.",
            f"Positive (blue) = toward clean. The parts add up to the gap of {total[0]:+.3f} "
            f"logits (checked to {record['sum_error']:.0e} of the logit difference's scale).",
        ],
        _loud(record, saes=site is not None),
    )
    figure.update_xaxes(
        title="logits (each bar begins where the last one ends)",
        range=[edges.min() - room, edges.max() + room],
        zeroline=True,
        zerolinecolor="#444",
    )
    figure.update_yaxes(
        tickvals=list(range(len(rows))),
        ticktext=[row[0] for row in rows[:-1]] + [f"<b>{rows[-1][0]}</b>"],
        autorange="reversed",
        showgrid=False,
    )
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=height + 70 + _ROW * len(rows),
        margin={"l": 170, "r": 30, "t": height, "b": 60},
        bargap=0.2,
    )
    return figure


def layers_figure(result: DirectEffects) -> go.Figure:
    """See `DirectEffects.layers_figure`."""
    from plotly.subplots import make_subplots

    table: Any = result.by_layer()
    kinds = {"attn_out": "attention outputs", "mlp_out": "MLP outputs"}
    together: Any = "all"  # which the stubs do not know
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        shared_yaxes=together,
        vertical_spacing=0.09,
        subplot_titles=list(kinds.values()),
    )
    for row, kind in enumerate(kinds, 1):
        part = table[table["kind"] == kind]
        _pairs_of_bars(figure, part["layer"].tolist(), part, row, vertical=True)
    height = title(
        figure,
        f"{result.record['task']}{_contrast(result.record)}",
        f", {result.record['model']}: direct and mediated effects of layers",
        _lines(result),
        _loud(result.record, saes=False),
    )
    figure.update_yaxes(title="effect, logits", zeroline=True, zerolinecolor="#444")
    figure.update_xaxes(title="layer", dtick=1 if len(table) <= 80 else 5, row=2, col=1)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=height + 480,
        margin={"l": 65, "r": 20, "t": height + 25, "b": 60},
        barmode="group",
        legend={"orientation": "h", "x": 0.96, "xanchor": "right", "y": 1.0, "yanchor": "bottom"},
    )
    return figure


def nodes_figure(result: DirectEffects, top: int) -> go.Figure:
    """See `DirectEffects.nodes_figure`."""
    from circuits.direct.result import label

    if not result.sae_sites:
        raise PlotError("these direct effects were made without SAEs: they have no latents.")
    table = result.ranking(
        top, by="total" if result.has_totals else "exact", roles=("latent", "error", "offset")
    )
    labels = [label(row) for row in table.to_dict("records")]
    figure = go.Figure()
    _pairs_of_bars(figure, labels, table, None, vertical=False)
    height = title(
        figure,
        f"{result.record['task']}{_contrast(result.record)}",
        f", {result.record['model']}: direct and mediated effects of SAE nodes",
        _lines(result),
        _loud(result.record, saes=True),
    )
    figure.update_xaxes(title="effect, logits", zeroline=True, zerolinecolor="#444")
    figure.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=labels, autorange="reversed", showgrid=False
    )
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=height + 110 + _ROW * len(labels),
        margin={"l": 170, "r": 20, "t": height + 25, "b": 60},
        barmode="group",
        legend={"orientation": "h", "x": 0.96, "xanchor": "right", "y": 1.0, "yanchor": "bottom"},
    )
    return figure


def _pairs_of_bars(
    figure: go.Figure, places: list[Any], table: Any, row: int | None, *, vertical: bool
) -> None:
    """Direct beside mediated, one pair of bars a place."""
    where: dict[str, Any] = {} if row is None else {"row": row, "col": 1}
    for column, name, colour in (
        ("exact", "direct", _DIRECT),
        ("mediated", "mediated = total - direct", _MEDIATED),
    ):
        values = table[column].tolist()
        along = places if vertical else list(range(len(places)))
        figure.add_bar(
            **({"x": along, "y": values} if vertical else {"x": values, "y": along}),
            orientation="v" if vertical else "h",
            name=name,
            marker_color=colour,
            showlegend=row in (None, 1),
            legendgroup=column,
            customdata=[[str(p), float(t)] for p, t in zip(places, table["total"], strict=True)],
            hovertemplate=(
                f"%{{customdata[0]}}: {name.split(' ')[0]} %{{{'y' if vertical else 'x'}:+.3f}}"
                "<br>total %{customdata[1]:+.3f}<extra></extra>"
            ),
            **where,
        )


def _lines(result: DirectEffects) -> list[str]:
    put_in = (
        "clean into corrupted"
        if result.record["direction"] == "denoising"
        else ("corrupted into clean")
    )
    return [
        f"Effect of the change between the runs at the last token ({put_in}), mean of "
        f"{len(result.prompts)} pairs. Positive = toward clean.",
        "Direct: straight to the logits, all later layers held. Mediated: what later layers add to "
        "it, total effect less direct effect.",
    ]


def _contrast(record: dict[str, Any]) -> str:
    return f" {record['contrast']}" if record["contrast"] else ""


def _loud(record: dict[str, Any], *, saes: bool) -> str | None:
    return loud_line(record) if saes else forced_line(record)
