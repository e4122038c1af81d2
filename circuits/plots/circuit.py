"""What a circuit is worth: faithfulness over sizes, what each node's removal costs, edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.circuit.judge import CIRCUIT, COMPLEMENT, ERRORS_IN, ERRORS_OUT, RANDOM
from circuits.circuit.result import CircuitResult
from circuits.circuit.sets import HELD_OUT, UNSEEN
from circuits.patch.ability import forced_line
from circuits.plots.base import BLUE, RED, WIDTH, title, visible
from circuits.report import page

# (variant, set, name, colour, dash, width): what stands in a panel.
_LINES = (
    (CIRCUIT, UNSEEN, "circuit, unseen pairs", BLUE, "solid", 3),
    (CIRCUIT, HELD_OUT, "circuit, held-out pairs", BLUE, "dot", 2),
    (ERRORS_IN, UNSEEN, "all errors kept", "#238b45", "solid", 1.5),
    (ERRORS_OUT, UNSEEN, "no errors kept", "#d94801", "solid", 1.5),
    (COMPLEMENT, UNSEEN, "complement (completeness)", RED, "dash", 1.5),
    (RANDOM, UNSEEN, "random nodes", "#737373", "dot", 1.5),
)
_SHOWN = (-0.6, 1.6)  # beyond this lines leave the panel; the hover text has the numbers
_REMOVALS = 30


def curves(result: CircuitResult) -> go.Figure:
    """One panel a reference: 1 is the whole model, 0 everything set to the reference. Bands are
    95% intervals over pairs."""
    references = result.record["references"]
    titles = [_panel_title(result, reference) for reference in references]
    figure = make_subplots(
        cols=len(references), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03
    )
    for column, reference in enumerate(references, start=1):
        for variant, name, label, colour, dash, width in _LINES:
            if name not in result.sets:
                continue
            table = result.curve(variant, name, reference)
            _line(figure, table, label, colour, dash, width, column, variant == CIRCUIT)
        for level in (0, 1):
            figure.add_hline(level, line={"color": "#bbb", "width": 1}, row=1, col=column)  # pyright: ignore
        share: Any = result.record["nodes"] / result.record["nodes_seen"]
        figure.add_vline(
            share,
            line={"color": "#888", "width": 1, "dash": "dot"},
            row=1,  # pyright: ignore
            col=column,  # pyright: ignore
        )
    ticks = [s for s in result.record["sizes"] if s in (0.001, 0.01, 0.1, 1)]
    figure.update_xaxes(
        type="log",
        tickvals=ticks or result.record["sizes"],
        ticktext=[f"{100 * s:g}%" for s in ticks or result.record["sizes"]],
        title_text="share of all nodes",
    )
    figure.update_yaxes(range=_SHOWN, zeroline=False)
    figure.update_annotations(font_size=13)
    figure.update_yaxes(title_text="(m(C) \u2212 m(0)) / (m(M) \u2212 m(0))", col=1)
    record = result.record
    lines = [
        "1 = the whole model, 0 = everything set to the panel's reference; bands are 95% "
        f"intervals over {len(result.gap(UNSEEN))} pairs that the circuit was not found on. "
        f"Dotted line: the circuit, {record['nodes']:,} of {record['nodes_seen']:,} nodes "
        f"({record['chosen']})."
    ]
    top = title(figure, "Faithfulness over size", f", {_where(result)}", lines, _loud(result))
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + 420,
        margin={"t": top + 30, "l": 70, "r": 20, "b": 110},
        legend={"orientation": "h", "y": -0.28, "x": 0},
        hovermode="closest",
    )
    return figure


def _panel_title(result: CircuitResult, reference: str) -> str:
    _, shares = result.shares(CIRCUIT, UNSEEN, reference)
    if shares.problem:
        return f"{reference}: no ratio"
    areas = result.areas(CIRCUIT, UNSEEN, reference)
    return f"{reference}: CPR {areas['cpr']:.2f}, CMD {areas['cmd']:.2f}"


def _line(
    figure: go.Figure,
    table: Any,
    label: str,
    colour: str,
    dash: str,
    width: float | int,
    column: int,
    band: bool,
) -> None:
    x, y = table["size"], table["value"]
    low, high = table["low"], table["high"]
    text = [
        f"{label}<br>{100 * s:g}% = {n:,} nodes<br>{v:.2f} [{a:.2f}, {b:.2f}]"
        for s, n, v, a, b in zip(x, table["nodes"], y, low, high, strict=True)
    ]
    if band and np.isfinite(low.to_numpy()).all():
        figure.add_trace(
            go.Scatter(
                x=[*x, *x[::-1]],
                y=[*high, *low[::-1]],
                fill="toself",
                fillcolor=_faint(colour),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            ),
            row=1,
            col=column,
        )
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            name=label,
            mode="lines+markers",
            line={"color": colour, "dash": dash, "width": width},
            marker={"size": 5},
            text=text,
            hoverinfo="text",
            legendgroup=label,
            showlegend=column == 1,
        ),
        row=1,
        col=column,
    )


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.12)"


def _where(result: CircuitResult) -> str:
    record = result.record
    contrast = f" ({record['contrast']})" if record.get("contrast") else ""
    return f"{record['task']}{contrast}, {record['model']}"


def _loud(result: CircuitResult) -> str | None:
    kept = result.record.get("saes_keep") or {}
    lines = [forced_line(result.record), kept.get("gate")]
    return " ".join(line for line in lines if line) or None


def removals(result: CircuitResult) -> go.Figure:
    """The nodes whose removal costs most, and those that the circuit is better without."""
    table: Any = result.removals()
    order = table["value"].abs().sort_values(ascending=False, kind="stable").index[:_REMOVALS]
    table = table.loc[order].iloc[::-1]
    labels = [_node_label(result, int(i)) for i in table.index]
    colours = [BLUE if v >= 0 else RED for v in table["value"]]
    spread = {
        "type": "data",
        "symmetric": False,
        "array": (table["high"] - table["value"]).tolist(),
        "arrayminus": (table["value"] - table["low"]).tolist(),
        "thickness": 1,
        "width": 2,
    }
    figure = go.Figure(
        go.Bar(
            x=table["value"],
            y=labels,
            orientation="h",
            marker_color=colours,
            error_x=None if table["low"].isna().any() else spread,
            hovertemplate="%{y}<br>%{x:.3f}<extra></extra>",
        )
    )
    ends = np.nan_to_num(table[["value", "low", "high"]].to_numpy())
    largest = float(np.abs(ends).max()) or 1.0
    lines = [
        "m(C) \u2212 m(C without the node), as a share of m(M) \u2212 m(0), reference "
        f"{result.record['by']}, unseen pairs; blue: the circuit is worse without it, red: better. "
        f"The {len(table)} largest of {len(result.removals())} drawn nodes."
    ]
    top = title(figure, "What each node's removal costs", f", {_where(result)}", lines)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + 90 + 20 * len(table),
        margin={"t": top, "l": 330, "r": 20, "b": 50},
    )
    figure.update_xaxes(range=[-1.05 * largest, 1.05 * largest], zerolinecolor="#444")
    figure.update_yaxes(tickfont={"size": 11})
    return figure


def _node_label(result: CircuitResult, place: int) -> str:
    node = result.circuit.nodes[place].node
    if node.position is None:
        return str(node)
    token = result.circuit.tokens[node.position]
    name = f" {token.name}" if token.name else ""
    return f"{node}{name} {visible(token.clean[0])}"


def edge_curve(result: CircuitResult) -> go.Figure:
    """Faithfulness of the drawn nodes with the strongest of their edges alone."""
    table = result.edge_curve()
    wired, nodes = table.iloc[:-1], table.iloc[-1]
    edges = wired["edges"].astype(int)
    figure = go.Figure(
        go.Scatter(
            x=edges,
            y=wired["value"],
            mode="lines+markers",
            line={"color": BLUE},
            name="with these edges alone",
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (wired["high"] - wired["value"]).tolist(),
                "arrayminus": (wired["value"] - wired["low"]).tolist(),
            },
        )
    )
    figure.add_hline(
        nodes["value"],
        line={"color": "#d94801", "dash": "dash"},
        annotation_text=f"the same nodes, all paths: {nodes['value']:.2f}",
        annotation_position="top right",
    )
    figure.add_hline(0, line={"color": "#bbb", "width": 1})
    lines = [
        f"The {result.record['drawn']} drawn nodes and the metric, each seeing only its wired "
        f"parents, recomputed, and the reference ({result.record['by']}) from all others; "
        "unseen pairs."
    ]
    top = title(figure, "Faithfulness of edges", f", {_where(result)}", lines)
    figure.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=top + 320,
        margin={"t": top, "l": 70, "r": 20, "b": 50},
    )
    figure.update_xaxes(title_text="strongest edges kept", rangemode="tozero")
    figure.update_yaxes(title_text="faithfulness")
    return figure


def figures(result: CircuitResult) -> list[tuple[str, go.Figure | str]]:
    """The figures of a circuit with their headings, for its page and for reports."""
    found: list[tuple[str, go.Figure | str]] = [("Faithfulness", curves(result))]
    if result.record["drawn"]:
        found.append(("Removals", removals(result)))
        found.append(("Edges", edge_curve(result)))
    return found


def page_of(result: CircuitResult) -> str:
    """The page of a circuit."""
    from circuits.report.tables import Html, paragraph
    from circuits.report.worth import worth_of

    loud = _loud(result)
    warned = paragraph(loud, "loud") if loud else Html("")
    about = paragraph(result.headline()) + warned + worth_of(result)
    return page(f"Circuit of {_where(result)}", [("The circuit", about), *figures(result)])
