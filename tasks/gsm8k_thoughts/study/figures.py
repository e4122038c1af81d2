"""Figures of a study of thoughts, and its page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.plots.base import BLUE, DIVERGING, RED, WIDTH, title
from circuits.report.page import page
from circuits.report.tables import interval, paragraph, table
from tasks.gsm8k_thoughts.pairs import FAMILIES

if TYPE_CHECKING:
    from tasks.gsm8k_thoughts.study.result import ThoughtStudy

_COLOURS = {"rerolled": BLUE, "frozen": "#d94801"}
_NAMES = {
    "rerolled": "later thoughts made anew (total)",
    "frozen": "later thoughts held (direct)",
}


def swaps_figure(study: ThoughtStudy) -> go.Figure:
    """What each whole thought carries: recovery when it alone is exchanged, by family."""
    data: Any = study.tables["swaps"]
    families = [f for f in FAMILIES if f in set(data["family"])]
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_yaxes=True,
        subplot_titles=[f"<b>{f}</b>: {FAMILIES[f]}" for f in families],
        vertical_spacing=0.2,
        horizontal_spacing=0.04,
    )
    for i, family in enumerate(families):
        for mode, colour in _COLOURS.items():
            part = data[(data["family"] == family) & (data["thoughts"] == mode)]
            bar = go.Bar(
                x=part["place"],
                y=part["recovery"],
                error_y=_ends(part, "recovery"),
                name=_NAMES[mode],
                marker_color=colour,
                showlegend=i == 0,
                customdata=part[["flips", "flips_low", "flips_high"]],
                hovertemplate="%{x}: recovery %{y:.3f}<br>answers that become the clean one: "
                "%{customdata[0]:.1%} [%{customdata[1]:.1%}, %{customdata[2]:.1%}]",
            )
            figure.add_trace(bar, row=i // 2 + 1, col=i % 2 + 1)
    pairs = int(data["pairs"].iloc[0])
    lines = [
        "The corrupted problem is run with whole thoughts (the embeddings at t1 to t6) of the "
        "clean one. 0: nothing changes, 1: the clean answer's logit difference; positive is toward "
        f"clean. 95% intervals over {pairs} pairs; hover for flip rates."
    ]
    top = title(figure, "What each thought carries", f", {study.record['model']}", lines)
    figure.update_yaxes(range=[-0.15, 1.12], zeroline=True, zerolinecolor="#888")
    figure.update_yaxes(title_text="recovery", col=1)
    figure.update_annotations(font_size=12)
    return _sized(figure, top, 560)


def readings_figure(study: ThoughtStudy) -> go.Figure:
    """Legible beside used: lens, probe and patch per layer and place."""
    value, family = _last_value(study)
    lens: Any = study.tables["lens"]
    probe: Any = study.tables["probes"]
    moved = _patched(study, family)
    places = list(dict.fromkeys(lens["place"]))
    panels = [
        ("numbers under the lens", lens[lens["reading"] == "numbers"], "probability"),
        (f"{value} under the lens", lens[lens["reading"] == value], "probability"),
        (f"{value} by a probe", probe[probe["value"] == value], "accuracy"),
        (f"recovery when patched ({family})", moved, "share"),
    ]
    figure = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=[name for name, _, _ in panels],
        vertical_spacing=0.2,
        horizontal_spacing=0.1,
    )
    for i, (_, data, column) in enumerate(panels):
        grid = data.pivot_table(index="layer", columns="place", values=column)
        grid = grid.reindex(index=sorted(set(lens["layer"])), columns=places)
        heat = go.Heatmap(
            z=grid.to_numpy(),
            x=places,
            y=[_layer(layer) for layer in grid.index],
            zmin=-1,
            zmax=1,
            zmid=0,
            colorscale=DIVERGING,
            showscale=i == 0,
            text=[["" if np.isnan(x) else f"{x:z.2f}" for x in row] for row in grid.to_numpy()],
            texttemplate="%{text}",
            hovertemplate="%{x}, %{y}: %{z:.3f}<extra></extra>",
            hoverongaps=False,
        )
        figure.add_trace(heat, row=i // 2 + 1, col=i % 2 + 1)
    share = float(probe[probe["value"] == value]["majority"].max())
    lines = [
        f"{value} is the last value before the answer. Lens: probability through final norm and "
        "unembedding. Probe: accuracy on other problems of a linear probe; always saying the "
        f"commonest value has {share:.2f}. Recovery: the thought, or the stream behind a layer "
        "there, patched, later thoughts made anew. Scale: -1 to 1."
    ]
    top = title(figure, "Legible is not the same as used", f", {study.record['model']}", lines)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    figure.update_annotations(font_size=12)
    return _sized(figure, top, 460)


def interchange_figure(study: ThoughtStudy) -> go.Figure:
    """Does the answer follow the value that a foreign thought carries?"""
    data: Any = study.tables["interchange"]
    figure = make_subplots(
        cols=2, shared_yaxes=True, subplot_titles=list(_NAMES.values()), horizontal_spacing=0.04
    )
    for i, mode in enumerate(_NAMES):
        part = data[data["thoughts"] == mode]
        grid = part.pivot(index="value", columns="place", values="follows")
        grid = grid.reindex(
            index=study.record["values"], columns=list(dict.fromkeys(part["place"]))
        )
        heat = go.Heatmap(
            z=grid.to_numpy(),
            x=list(grid.columns),
            y=list(grid.index),
            zmin=0,
            zmax=1,
            colorscale="Blues",
            showscale=i == 0,
            text=grid.to_numpy().round(2),
            texttemplate="%{text:.2f}",
            hovertemplate="%{x}, %{y}: %{z:.3f}<extra></extra>",
        )
        figure.add_trace(heat, row=1, col=i + 1)
    lines = [
        "A thought of another problem (or all of them), in which a step gave v, is put in: the "
        "share of answers that are f(v), what the rest of the problem makes of v. For a v that was "
        f"not put in it is at most {float(data['chance'].max()):.2f}."
    ]
    top = title(figure, "Values exchanged", f", {study.record['model']}", lines)
    figure.update_annotations(font_size=12)
    return _sized(figure, top, 260)


def accuracy_figure(study: ThoughtStudy) -> go.Figure:
    """Accuracy by number of thoughts, and with thoughts replaced."""
    counts: Any = study.tables["counts"]
    replaced: Any = study.tables["ablations"]
    figure = make_subplots(
        cols=2,
        shared_yaxes=True,
        subplot_titles=["cut off after so many thoughts", "a thought replaced, later ones held"],
        horizontal_spacing=0.04,
    )
    line = go.Scatter(
        x=counts["count"],
        y=counts["accuracy"],
        error_y=_ends(counts, "accuracy", ""),
        mode="lines+markers",
        line_color=BLUE,
        name="this model",
    )
    figure.add_trace(line, row=1, col=1)
    control = study.record["control_accuracy"]
    if control is not None:
        ends = [counts["count"].min(), counts["count"].max()]
        line = go.Scatter(
            x=ends,
            y=[control, control],
            mode="lines",
            line={"color": RED, "dash": "dash"},
            name="control, trained without thoughts",
        )
        figure.add_trace(line, row=1, col=1)
    for ablation, colour in (("mean", "#6baed6"), ("noise", "#fd8d3c")):
        part = replaced[(replaced["ablation"] == ablation) & (replaced["thoughts"] == "frozen")]
        bar = go.Bar(
            x=part["place"],
            y=part["accuracy"],
            error_y=_ends(part, "accuracy", ""),
            marker_color=colour,
            name=f"by {'their mean' if ablation == 'mean' else 'a draw'}",
        )
        figure.add_trace(bar, row=1, col=2)
    lines = [
        f"Share of {study.record['n_problems']} held-out problems answered right, 95% intervals. "
        f"The thoughts are {study.record['verdict']}."
    ]
    top = title(figure, "How much depends on thoughts", f", {study.record['model']}", lines)
    figure.update_yaxes(range=[0, 1.05])
    figure.update_yaxes(title_text="accuracy", col=1)
    figure.update_xaxes(dtick=1, zeroline=False, col=1)
    figure.update_annotations(font_size=12)
    return _sized(figure, top, 320)


def study_page(study: ThoughtStudy) -> str:
    """One page with all of it, which opens without a network."""
    data: Any = study.tables["mediation"]
    rows = [
        [
            row["family"],
            f"{row['total']:+.2f}",
            f"{row['direct']:+.2f}",
            interval(row["mediated"], row["mediated_low"], row["mediated_high"], ".2f"),
        ]
        for row in data.to_dict("records")
    ]
    heads = ("family", "total effect of the operands", "with thoughts held", "share mediated")
    text = paragraph(
        "Effects on the logit difference (answer less foil) of putting the clean operands into the "
        "corrupted problem; the share of them that goes through thoughts, with its 95% interval "
        "over pairs.",
        "note",
    )
    sections: list[tuple[str, Any]] = [
        ("", swaps_figure(study)),
        ("How much goes through thoughts", table(heads, rows, heads[1:]) + text),
        ("", readings_figure(study)),
        ("", interchange_figure(study)),
        ("", accuracy_figure(study)),
    ]
    return page(f"Thoughts of {study.record['model']}", sections)


def _patched(study: ThoughtStudy, family: str) -> pd.DataFrame:
    """Recovery per layer and place: the stream patched, and below it whole thoughts exchanged."""
    stream: Any = study.tables["patches"]
    whole: Any = study.tables["swaps"]
    whole = whole[(whole["family"] == family) & (whole["thoughts"] == "rerolled")]
    whole = whole.assign(layer=-1, share=whole["recovery"])
    columns = ["layer", "place", "share"]
    return pd.concat([stream[stream["family"] == family][columns], whole[columns]])


def _last_value(study: ThoughtStudy) -> tuple[str, str]:
    """The last value before the answer, and the family that changes it."""
    values = study.record["values"]
    families = set(study.tables["swaps"]["family"])
    return values[-2], "later" if "later" in families else "first"


def _layer(layer: int) -> str:
    return "the thought" if layer < 0 else f"layer {layer}"


def _ends(data: Any, name: str, prefix: str | None = None) -> dict[str, Any]:
    start = f"{name}_" if prefix is None else prefix
    return {
        "type": "data",
        "symmetric": False,
        "array": data[f"{start}high"] - data[name],
        "arrayminus": data[name] - data[f"{start}low"],
        "thickness": 1,
        "width": 2,
    }


def _sized(figure: go.Figure, top: int, height: int) -> go.Figure:
    figure.update_xaxes(tickangle=0)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + height,
        margin={"t": top + 40, "l": 80, "r": 20, "b": 60},
        legend={"orientation": "h", "y": -0.08, "x": 0},
        barmode="group",
    )
    return figure
