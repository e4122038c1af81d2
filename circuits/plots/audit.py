"""Estimated effects of an attribution against exact ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.patch.result import count
from circuits.plots.attribution import heading, loud_line
from circuits.plots.base import BLUE, RED, WIDTH, PlotError, in_line, title, token_labels

if TYPE_CHECKING:
    from circuits.attribute.result import Attribution

_COLOURS = {
    "latent": BLUE,
    "error": RED,
    "offset": "#756bb1",
    "component": "#238b45",
    "head": "#d94801",
}
_MARKERS = {"top": "circle", "random": "x"}
_GROUPS = {"top": "strongest", "random": "random"}
_PANEL = 370  # pixels of a side of a scatter


def audit_figure(result: Attribution) -> go.Figure:
    """Estimates against exact interventions; see `Attribution.audit_figure`."""
    audit = result.record.get("audit")
    if not audit:
        raise PlotError(
            "this attribution has no audit: run it with audit_pairs (--audit) of 1 or more."
        )
    against = {"own": "node patched by itself"}
    if result.record["attribution"] == "ig":
        against = {
            "own": "share of the joint change along the path",
            "single": "node patched by itself",
        }
    nodes = audit["nodes"]
    reach = {exact: _reach(nodes, exact) for exact in against}
    near = {exact: _reach([n for n in nodes if n["group"] == "random"], exact) for exact in against}
    names = [f"all {len(nodes)} nodes", "near zero, where the random nodes lie"]
    figure = make_subplots(
        rows=len(against),
        cols=2,
        horizontal_spacing=70 / (2 * _PANEL + 70),
        vertical_spacing=0 if len(against) == 1 else 95 / (2 * _PANEL + 95),
        subplot_titles=names * len(against),
    )
    for row, (exact, what) in enumerate(against.items(), start=1):
        for column, ends in enumerate((reach[exact], near[exact]), start=1):
            _scatter(figure, result, exact, row, column, ends)
            figure.update_xaxes(title=f"exact: {what}", row=row, col=column)
    head = _audit_title(figure, result, against)
    unit = str(result.record["metric"]).replace("_", " ")
    figure.update_yaxes(title=f"estimated effect on {unit}", col=1)
    figure.update_xaxes(nticks=7, title={"standoff": 6, "font": {"size": 12}}, zerolinecolor="#bbb")
    figure.update_yaxes(nticks=7, title={"standoff": 4, "font": {"size": 12}}, zerolinecolor="#bbb")
    figure.update_layout(
        width=WIDTH,
        height=head + 30 + len(against) * _PANEL + (len(against) - 1) * 95 + 60,
        margin={"l": 65, "r": WIDTH - 65 - 2 * _PANEL - 70, "t": head + 30, "b": 60},
        template="plotly_white",
        legend={"font": {"size": 11}, "x": 1.01, "y": 1, "tracegroupgap": 4},
    )
    return figure


def _reach(nodes: list[dict[str, Any]], exact: str) -> float:
    """Half of the side of a square around zero that holds these nodes."""
    sizes = [abs(float(node[k])) for node in nodes for k in ("estimate", exact)]
    return 1.1 * max(sizes, default=0.0) or 1.0


def _scatter(
    figure: go.Figure, result: Attribution, exact: str, row: int, column: int, reach: float
) -> None:
    """One panel: the identity line, and a trace for each role and group."""
    nodes = result.record["audit"]["nodes"]
    figure.add_trace(
        go.Scatter(
            x=[-reach, reach],
            y=[-reach, reach],
            mode="lines",
            line={"color": "#999", "width": 1, "dash": "dash"},
            name="estimate = exact",
            hoverinfo="skip",
            showlegend=(row, column) == (1, 1),
        ),
        row=row,
        col=column,
    )
    tokens = result.prompts.tokens_at(result.prompts.alignments()[0])
    kinds = dict.fromkeys((str(node["role"]), str(node["group"])) for node in nodes)
    for role, group in sorted(kinds, key=lambda kind: (kind[1] != "top", kind[0])):
        part = [node for node in nodes if (node["role"], node["group"]) == (role, group)]
        figure.add_trace(
            go.Scatter(
                x=[node[exact] for node in part],
                y=[node["estimate"] for node in part],
                mode="markers",
                marker={
                    "color": _COLOURS[role],
                    "symbol": _MARKERS[group],
                    "size": 7,
                    "opacity": 0.75,
                },
                text=[_node(node, tokens) for node in part],
                name=f"{role}, {_GROUPS[group]}",
                legendgroup=f"{role} {group}",
                showlegend=(row, column) == (1, 1),
                hovertemplate="%{text}<br>estimate %{y:+.4f}, exact %{x:+.4f}<extra></extra>",
            ),
            row=row,
            col=column,
        )
    figure.update_xaxes(range=[-reach, reach], row=row, col=column)
    figure.update_yaxes(range=[-reach, reach], row=row, col=column)


def _node(node: dict[str, Any], tokens: list[tuple[tuple[str, ...], tuple[str, ...]]]) -> str:
    """A node's name, such as "resid_post.22 latent 1234 at 5, token a|b"."""
    number = f" {node['latent']}" if node["latent"] >= 0 else ""
    [label] = token_labels([tokens[node["position"]]], {})
    where = f"at {node['position']}, token {in_line(label)}"
    return f"{node['site']} {node['role']}{number} {where}"


def _audit_title(figure: go.Figure, result: Attribution, against: dict[str, str]) -> int:
    record = result.record
    audit = record["audit"]
    random = sum(node["group"] == "random" for node in audit["nodes"])
    lines = [
        f"Audit: estimates against exact interventions, mean of {count(audit['pairs'], 'pair')}; "
        f"the {len(audit['nodes']) - random} strongest nodes and {random} random others."
    ]
    for exact, what in against.items():
        end = "" if exact == "own" else "_single"
        numbers = (
            f"Spearman {_number(audit[f'spearman{end}'], '.3f')}, "
            f"Pearson {_number(audit[f'pearson{end}'], '.3f')}, "
            f"same sign {_number(audit[f'sign_agreement{end}'], '.0%')}"
        )
        other = "" if exact == "own" else ", which is not what this method estimates"
        lines.append(f"Against the {what}{other}: {numbers}.")
    lines.append(
        f"Completeness residual {_number(audit['completeness_residual'], '.1%')}: sums over nodes "
        "against whole sites, of the largest whole-site effect."
    )
    return title(figure, *heading(record), lines, loud_line(record))


def _number(value: float | None, form: str) -> str:
    """A number, or that there is none: a correlation of equal values is not defined."""
    return "undefined" if value is None or math.isnan(value) else f"{value:{form}}"
