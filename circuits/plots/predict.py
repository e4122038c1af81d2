"""Figures of predicted errors: scores beside baselines, calibration, confusion, confidence, and
where features differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from circuits.plots.base import BLUE, DIVERGING, RED, WIDTH, PlotError, title

if TYPE_CHECKING:
    from circuits.predict.result import PredictResult

_GREY = "#969696"
_ROW = 24  # pixels of a bar with its label
_SIGN = "Positive (blue) = higher on {}."


def _head(
    figure: go.Figure, result: PredictResult, target: str, rest: str, lines: list[str]
) -> int:
    task = str(result.record.get("task", "custom"))
    loud = result.headline(target) if result.verdict(target) == "refused" else None
    return title(figure, f"{task}: {target}", rest, lines, loud)


def _of(result: PredictResult, target: str) -> str:
    """What is higher or more probable: the class that is described."""
    names = result.classes(target)
    if len(names) > 2:
        return "records of the class"
    return "wrong answers" if names[1] == "wrong" else f"{target} = {names[1]}"


def scores_figure(result: PredictResult, target: str) -> go.Figure:
    """AUC of every estimator and baseline with 95% intervals."""
    table = result.table(target)
    colours = [_GREY if row["role"] == "baseline" else BLUE for row in table.to_dict("records")]
    figure = go.Figure(
        go.Scatter(
            x=table["auc"].tolist(),
            y=list(range(len(table))),
            mode="markers",
            marker={"color": colours, "size": 9},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (table["auc_high"] - table["auc"]).tolist(),
                "arrayminus": (table["auc"] - table["auc_low"]).tolist(),
            },
            customdata=table[["brier", "accuracy", "p", "gain"]].to_numpy(float).tolist(),
            hovertemplate=(
                "AUC %{x:.3f}<br>Brier %{customdata[0]:.3f}, accuracy %{customdata[1]:.1%}<br>"
                "permutation p %{customdata[2]:.3f}<br>gain over the best baseline "
                "%{customdata[3]:+.3f}<extra></extra>"
            ),
        )
    )
    height = _head(
        figure,
        result,
        target,
        f", {result.record['records']} records: AUC held out by group",
        [
            "Blue: from inside the model; grey: baselines. 95% intervals, groups resampled, models "
            "as trained. Dotted: chance.",
            *([] if result.verdict(target) == "refused" else [result.headline(target)]),
        ],
    )
    figure.add_vline(x=0.5, line={"dash": "dot", "color": "#444"})
    figure.update_xaxes(title="AUC (pairs of records of the same fold)")
    figure.update_yaxes(
        tickvals=list(range(len(table))), ticktext=table["name"].tolist(), autorange="reversed"
    )
    return _layout(figure, height, _ROW * len(table) + 70, left=150)


def calibration_figure(result: PredictResult, target: str) -> go.Figure:
    """Of what was said with a probability, how much came true."""
    curve, error = result.calibration(target=target)
    used = curve[:, 2] > 0
    figure = go.Figure(
        go.Scatter(
            x=curve[used, 0],
            y=curve[used, 1],
            mode="markers+lines",
            marker={"size": 6 + 14 * np.sqrt(curve[used, 2] / curve[:, 2].max()), "color": BLUE},
            customdata=curve[used, 2],
            hovertemplate="said %{x:.2f}, true %{y:.2f}, %{customdata} records<extra></extra>",
        )
    )
    figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line={"dash": "dot", "color": "#444"})
    several = len(result.classes(target)) > 2
    what = "the most probable class" if several else _of(result, target)
    lines = [f"Expected calibration error {error:.3f}. Size of points: records in the bin."]
    height = _head(figure, result, target, ": calibration of the chosen estimator", lines)
    figure.update_xaxes(title=f"predicted probability of {what}", range=[0, 1])
    figure.update_yaxes(title="share that came true", range=[0, 1])
    return _layout(figure, height, 380)


def confusion_figure(result: PredictResult, target: str) -> go.Figure:
    """Records by true and most probable class."""
    table = result.confusion(target=target)
    counts = table.to_numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=[f"predicted {c}" for c in table.columns],
            y=[str(c) for c in table.index],
            text=[
                [f"{n} ({s:.0%})" for n, s in zip(a, b, strict=True)]
                for a, b in zip(counts, shares, strict=True)
            ],
            texttemplate="%{text}",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
            showscale=False,
        )
    )
    lines = ["Records, and in brackets the share of their row, which is the colour (0 to 1)."]
    height = _head(figure, result, target, ": confusion of the chosen estimator", lines)
    figure.update_yaxes(autorange="reversed", title="true class")
    return _layout(figure, height, 120 + 70 * len(counts), left=120)


def confidence_figure(result: PredictResult, target: str) -> go.Figure:
    """Predicted probabilities, by what was true."""
    truth, proba = result.held(target=target)
    names = result.classes(target)
    two = len(names) == 2
    said = proba[:, 1] if two else proba.max(1)
    labels = truth.classes if two else (proba.argmax(1) == truth.classes).astype(int)
    shown = names if two else ["not predicted rightly", "predicted rightly"]
    figure = go.Figure()
    for code, colour in ((0, BLUE), (1, RED)):
        figure.add_histogram(
            x=said[labels == code],
            name=shown[code],
            marker_color=colour,
            opacity=0.6,
            xbins={"start": 0, "end": 1, "size": 0.05},
        )
    height = _head(figure, result, target, ": confidence of the chosen estimator", [])
    what = _of(result, target) if two else "the most probable class"
    figure.update_xaxes(title=f"predicted probability of {what}", range=[0, 1])
    figure.update_yaxes(title="records")
    legend = {"orientation": "h", "x": 0.96, "xanchor": "right", "y": 1.0, "yanchor": "bottom"}
    figure.update_layout(barmode="overlay", legend=legend)
    return _layout(figure, height, 330)


def effects_heatmap(result: PredictResult, target: str) -> go.Figure:
    """The largest effect of every site and position, against chance."""
    cells: Any = result.localisation(target).cells
    if len(result.classes(target)) > 2:  # the class with the largest effect stands for the cell
        cells = cells.loc[cells.groupby(["site", "position"], sort=False)["largest"].idxmax()]
    sites, positions = list(dict.fromkeys(cells["site"])), list(dict.fromkeys(cells["position"]))
    if not sites:
        raise PlotError("there are no cells to draw.")
    wide = {n: np.full((len(sites), len(positions)), np.nan) for n in ("signed", "chance", "p")}
    text = [["" for _ in positions] for _ in sites]
    for row in cells.to_dict("records"):
        i, j = sites.index(row["site"]), positions.index(row["position"])
        for name, values in wide.items():
            values[i, j] = row[name]
        mark = "*" if row["p"] < 0.05 else ""
        text[i][j] = f"{row['signed']:+.2f}{mark}<br>{row['discoveries']}"
    reach = float(np.nanmax(np.abs(wide["signed"]))) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=wide["signed"],
            x=positions,
            y=sites,
            text=text,
            texttemplate="%{text}",
            colorscale=DIVERGING,
            zmid=0,
            zmin=-reach,
            zmax=reach,
            customdata=np.stack([wide["chance"], wide["p"]], axis=-1),
            hovertemplate=(
                "%{y}, %{x}: largest d %{z:+.2f}<br>by chance up to %{customdata[0]:.2f} (p "
                "%{customdata[1]:.3f})<extra></extra>"
            ),
            colorbar={"title": {"text": "Cohen's d", "side": "right"}, "thickness": 14},
        )
    )
    about = result.record["targets"][target]
    height = _head(
        figure,
        result,
        target,
        ": largest effect of a single feature by site and position",
        [
            f"Cohen's d. {_SIGN.format(_of(result, target))} Below it how many features have a "
            "false discovery rate under .05; * larger than chance gives in that cell (p < .05).",
            f"Of all features the largest |d| is {about['largest_effect']:.2f}; permuted labels "
            f"give up to {about['largest_by_chance']:.2f} (95% of permutations; p = "
            f"{about['p_largest']:.3f}).",
        ],
    )
    figure.update_xaxes(title="position", type="category")
    figure.update_yaxes(title="site", type="category", autorange="reversed")
    return _layout(figure, height, 110 + 46 * len(sites), left=150)


def counts_figure(result: PredictResult, target: str) -> go.Figure:
    """How many features differ, by site and by position."""
    from plotly.subplots import make_subplots

    found = result.localisation(target)
    figure = make_subplots(rows=1, cols=2, subplot_titles=["by site", "by position"])
    for column, by in ((1, "site"), (2, "position")):
        table = found.counts(by)
        for name, label, colour in (
            ("discoveries", "false discovery rate < .05", BLUE),
            ("stand_out", "beyond the largest by chance", "#fdae6b"),
        ):
            figure.add_bar(
                x=table[by].tolist(),
                y=table[name].tolist(),
                name=label,
                legendgroup=name,
                showlegend=column == 1,
                marker_color=colour,
                row=1,
                col=column,
            )
        figure.update_xaxes(type="category", row=1, col=column)
    most = int(found.counts("site")[["discoveries", "stand_out"]].to_numpy().max(initial=0))
    none = (
        "No feature differs: none has a false discovery rate under .05, and none an effect beyond "
        "the largest by chance."
    )
    rest = ": features that differ, by site and position"
    height = _head(figure, result, target, rest, [] if most else [none])
    figure.update_yaxes(rangemode="tozero")
    if most < 5:  # features are counted: no ticks between whole numbers
        figure.update_yaxes(range=[0, max(1, most) * 1.05], dtick=1)
    figure.update_yaxes(title="features", row=1, col=1)
    figure.update_annotations(font_size=12)
    figure.update_layout(legend={"orientation": "h", "y": -0.2})
    return _layout(figure, height + 20, 340)


def _layout(figure: go.Figure, top: int, height: int, left: int = 70) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + height,
        margin={"l": left, "r": 30, "t": top + 10, "b": 60},
    )
    return figure
