"""Figures of latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from circuits.plots.base import BLUE, RED, WIDTH, visible

_TOKENS_SHOWN = 8  # raised, and as many lowered


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
        marker_color=BLUE,
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
        marker_color=[BLUE if v > 0 else RED for v in values],
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
        width=WIDTH, height=390, showlegend=False, bargap=0.15, margin={"l": 60, "r": 20, "t": 50}
    )
    return figure
