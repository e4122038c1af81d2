"""The strongest latents of an attribution at a named position."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.patch.result import count
from circuits.plots.attribution import heading, loud_line, unit_of, value_of
from circuits.plots.base import (
    BLUE,
    RED,
    SIGN,
    WIDTH,
    PlotError,
    first_difference,
    in_line,
    title,
    token_axis,
    token_labels,
)

if TYPE_CHECKING:
    from circuits.attribute.result import Attribution
    from circuits.prompts import Alignment

_ROW = 30  # pixels of a latent's row: its name above a line about it
_SHOWN = 44  # characters of that line
_LEFT, _GAP, _BARS, _RIGHT = 260, 12, 140, 15  # pixels
_MARK = "#d94801"


def top_latents_figure(
    result: Attribution,
    name: str,
    top: int = 10,
    describe: Callable[[str, int], str] | None = None,
) -> go.Figure:
    """The latents that count at a named position; see `Attribution.top_latents`."""
    alignment = _alignment(result, name)
    ranking: Any = result.ranking(top, by="named", name=name, roles=("latent",))
    if ranking.empty:
        raise PlotError(
            f"no latent has an effect at {name!r}: the prompts are the same up to there, or this "
            "attribution has no SAEs."
        )
    latents = [(str(r["site"]), int(r["latent"])) for r in ranking.to_dict("records")]
    means = {s: _coefficients(result, alignment, latents, s) for s in ("clean", "corrupted")}
    largest = np.maximum(means["clean"].max(1), means["corrupted"].max(1))
    seconds = {
        "clean": [describe(*latent) if describe else "" for latent in latents],
        "corrupted": [
            f"1 is a coefficient of {most:.3g}" if most else "not active in these pairs"
            for most in largest
        ],
    }
    first = first_difference(result.prompts, alignment)
    tokens = result.prompts.tokens_at(alignment)
    names = result.prompts.names_at(alignment)
    labels = {
        "clean": _one_side([c for c, _ in tokens], [k for _, k in tokens], names)[first:],
        "corrupted": _one_side([k for _, k in tokens], [c for c, _ in tokens], names)[first:],
    }
    room = WIDTH - _LEFT - _RIGHT
    width = room - _BARS - _GAP
    marks = {side: token_axis(labels[side], width) for side in labels}
    below = 35 + int(max(under for *_, under in marks.values()))
    high = _ROW * len(latents)
    figure = make_subplots(
        rows=2,
        cols=2,
        column_widths=[width, _BARS],
        horizontal_spacing=_GAP / room,
        vertical_spacing=(below + 10) / (2 * high + below + 10),
        specs=[[{}, {}], [{}, None]],
    )
    columns = [p - first for p in _places(result, alignment, name) if p >= first]
    for row, side in enumerate(means, start=1):
        grid = means[side][:, first:]
        _draw_side(figure, row, side, grid, largest, latents, labels[side], marks[side])
        shown = [_label(*pair, text) for pair, text in zip(latents, seconds[side], strict=True)]
        figure.update_yaxes(ticktext=shown, row=row, col=1)
        for column in columns:
            figure.add_shape(
                type="rect",
                x0=column - 0.5,
                x1=column + 0.5,
                y0=-0.5,
                y1=len(latents) - 0.5,
                line={"color": _MARK, "width": 2},
                row=row,
                col=1,
            )
    value = value_of(result, list(range(len(result.prompts))))
    _draw_effects(figure, ranking, value, unit_of(result, value))
    head = _title(figure, result, alignment, name, len(latents), value)
    share = high / (2 * high + below + 10)
    figure.update_layout(
        width=WIDTH,
        height=head + 2 * high + 2 * below + 20,
        margin={"l": _LEFT, "r": _RIGHT, "t": head + 5, "b": below + 5},
        template="plotly_white",
        showlegend=False,
        bargap=0.4,
        coloraxis={
            "colorscale": "Greys",
            "cmin": 0,
            "cmax": 1,
            "colorbar": {
                "title": {
                    "text": "mean coefficient<br>(row's largest: 1)<br> ",
                    "font": {"size": 12},
                },
                "thickness": 14,
                "x": (width + _GAP) / room,
                "xanchor": "left",
                "y": share / 2,
                "len": share,
            },
        },
    )
    return figure


def _draw_side(
    figure: go.Figure,
    row: int,
    side: str,
    grid: np.ndarray,
    largest: np.ndarray,
    latents: list[tuple[str, int]],
    labels: list[str],
    marks: tuple[list[str], int, float, float],
) -> None:
    """The heatmap of one prompt's coefficients, each row as a share of `largest`."""
    shown, angle, size, _ = marks
    whole = np.where(largest > 0, largest, 1.0)[:, None]
    figure.add_trace(
        go.Heatmap(
            z=grid / whole,
            x=list(range(len(labels))),
            y=list(range(len(latents))),
            customdata=grid,
            text=[
                [f"{site} #{latent}<br>{in_line(label)}" for label in labels]
                for site, latent in latents
            ],
            coloraxis="coloraxis",
            xgap=0.5,
            ygap=0.5,
            name=side,
            hovertemplate=(
                f"%{{text}}<br>{side}: mean coefficient %{{customdata:.3g}}<extra></extra>"
            ),
        ),
        row=row,
        col=1,
    )
    figure.update_xaxes(
        title={"text": f"<b>{side}</b> prompts", "standoff": 4, "font": {"size": 12}},
        tickmode="array",
        tickvals=list(range(len(labels))),
        ticktext=shown,
        tickangle=angle,
        tickfont={"family": "monospace", "size": size},
        range=[-0.5, len(labels) - 0.5],
        showgrid=False,
        zeroline=False,
        showline=True,
        mirror=True,
        linecolor="#ccc",
        row=row,
        col=1,
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(latents))),
        tickfont={"size": 11},
        range=[len(latents) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
        showline=True,
        mirror=True,
        linecolor="#ccc",
        row=row,
        col=1,
    )


def _draw_effects(figure: go.Figure, ranking: Any, value: str, unit: str) -> None:
    """Bars of the effects at the named position, beside the upper heatmap's rows."""
    effects, low, high = (ranking[f"{value}{end}"].to_numpy() for end in ("", "_low", "_high"))
    figure.add_trace(
        go.Bar(
            x=effects,
            y=list(range(len(ranking))),
            orientation="h",
            marker_color=[BLUE if effect > 0 else RED for effect in effects],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": high - effects,
                "arrayminus": effects - low,
                "color": "#444",
                "thickness": 1,
                "width": 2,
            },
            customdata=np.stack([low, high], axis=-1),
            name="effect",
            hovertemplate=(
                f"{unit} %{{x:+.3f}}<br>95% interval %{{customdata[0]:+.3f}} to "
                "%{customdata[1]:+.3f}<extra></extra>"
            ),
        ),
        row=1,
        col=2,
    )
    ends = np.abs(np.stack([effects, low, high]))
    reach = 1.1 * float(np.nanmax(ends)) or 1.0
    # One round number on each side.
    size = 10.0 ** np.floor(np.log10(0.8 * reach))
    size *= max(n for n in (1, 2, 5) if n * size <= 0.8 * reach)
    text = "effect, share of gap" if value == "share" else "effect"
    figure.update_xaxes(
        title={"text": text, "standoff": 4, "font": {"size": 12}},
        range=[-reach, reach],
        tickvals=[-size, 0, size],
        tickformat="~g",
        tickangle=0,
        tickfont={"size": 10},
        zeroline=True,
        zerolinecolor="#444",
        row=1,
        col=2,
    )
    figure.update_yaxes(
        range=[len(ranking) - 0.5, -0.5], showticklabels=False, showgrid=False, row=1, col=2
    )


def _title(
    figure: go.Figure, result: Attribution, alignment: Alignment, name: str, number: int, value: str
) -> int:
    record = result.record
    beginning = first_difference(result.prompts, alignment)
    lined, every = len(alignment.pairs), len(result.prompts)
    shaded = count(lined, "pair") if lined == every else f"the {lined} of {every} that line up"
    lines = [
        f"The {count(number, 'latent')} with the largest effects at {name} (outlined), mean of "
        f"{count(every, 'pair')}; {SIGN[record['direction']]}. Bars: effect at {name} alone, as "
        f"{unit_of(result, value)}, with 95% intervals.",
        f"Shading: mean coefficient at each token, over {shaded}, as a share of the row's largest "
        f"in both prompts.{' The shared beginning is not shown.' if beginning else ''}",
        result.prompts.named_answers(),
    ]
    return title(figure, *heading(record), lines, loud_line(record))


def _label(site: str, latent: int, second: str) -> str:
    """Name of a latent above a line about it."""
    if not second:
        return f"{site} #{latent}"
    short = second if len(second) <= _SHOWN else f"{second[: _SHOWN - 1]}\u2026"
    said = html.escape(short, quote=False)
    return f"{site} #{latent}<br><span style='font-size:10px;color:#666'>{said}</span>"


def _one_side(
    tokens: list[tuple[str, ...]], others: list[tuple[str, ...]], names: dict[int, str]
) -> list[str]:
    """Labels of one prompt's tokens, those that differ from the other's in bold."""
    plain = token_labels([(own, own) for own in tokens], {})
    labels = []
    for p, (label, own, other) in enumerate(zip(plain, tokens, others, strict=True)):
        bold = f"<b>{label}</b>" if own != other else label
        labels.append(f"{bold}<br><i>{names[p]}</i>" if p in names else bold)
    return labels


def _places(result: Attribution, alignment: Alignment, name: str) -> list[int]:
    """Where a named position stands: the same place in all pairs of a template, as a rule."""
    positions = [result.prompts.positions[i] for i in alignment.pairs]
    return sorted({where[name] for where in positions if name in where})


def _alignment(result: Attribution, name: str) -> Alignment:
    """The largest group of pairs that line up in which the name stands somewhere."""
    for alignment in result.prompts.alignments():
        if any(name in result.prompts.positions[i] for i in alignment.pairs):
            return alignment
    known = sorted({known for positions in result.prompts.positions for known in positions})
    raise PlotError(f"no position is named {name!r}: there are {', '.join(known)}.")


def _coefficients(
    result: Attribution, alignment: Alignment, latents: list[tuple[str, int]], side: str
) -> np.ndarray:
    """Mean coefficient [latent, position] in the clean or corrupted prompts, 0 where inactive, over
    the pairs that have begun to differ."""
    scores: Any = result.scores
    place = {latent: i for i, latent in enumerate(latents)}
    scores = scores[scores["pair"].isin(alignment.pairs) & (scores["role"] == "latent")]
    scores = scores[scores["latent"].isin([latent for _, latent in latents])]
    total = np.zeros((len(latents), alignment.length))
    for row in scores[["site", "latent", "position", side]].itertuples(index=False, name=None):
        i = place.get((str(row[0]), int(row[1])))
        if i is not None:
            total[i, int(row[2])] += row[3]
    # A pair has no nodes before its own first difference, whatever is active there.
    pairs = [
        (result.prompts.clean_tokens[i], result.prompts.corrupted_tokens[i])
        for i in alignment.pairs
    ]
    begins = [next(p for p, t in enumerate(c) if t != k[p]) for c, k in pairs]
    seen = [sum(begin <= p for begin in begins) for p in range(alignment.length)]
    return total / np.maximum(1, seen)
