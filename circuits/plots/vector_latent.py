"""The card of a latent that reads vectors with labels: its strongest examples, the input that
raises it, its labels, and what writing it in does.

Made as plain JSON, since a page has hundreds of them and plotly checks every value of a figure.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from circuits.features.effects import FEWEST
from circuits.plots.base import BLUE, DIVERGING, RED, WIDTH, title, visible

if TYPE_CHECKING:
    from circuits.features.gallery import Gallery

_COLUMNS = 6  # of strongest examples
_GREY, _PALE = "#969696", "rgba(150, 150, 150, 0.55)"
_BANDS = {BLUE: "rgba(33, 113, 181, 0.2)", RED: "rgba(203, 24, 29, 0.2)"}
_UPPER, _LOWER, _ALONE = (0.5, 1.0), (0.0, 0.37), (0.0, 1.0)
_LEFT, _RIGHT, _PATTERN = (0.0, 0.56), (0.66, 0.97), (0.66, 0.93)
_TALL, _LOW = 590, 270  # pixels of what is drawn, with pictures and without
_FRAME = {"gridcolor": "#eee", "zeroline": True, "zerolinecolor": "#444"}
_HIDDEN = {"visible": False, "constrain": "domain"}


def vector_latent_figure(gallery: Gallery, latent: int) -> go.Figure:
    """One latent of a gallery. Pictures are left out where the gallery has none."""
    return go.Figure(vector_latent_json(gallery, latent))


def vector_latent_json(gallery: Gallery, latent: int) -> dict[str, Any]:
    """The same as plotly's JSON, unchecked and without a template."""
    row = gallery.bank.latent(gallery.site, latent)
    pictures = gallery.images is not None
    data: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    height, line = (_TALL, _LOWER) if pictures else (_LOW, _ALONE)
    # Only for its title: the checks of a figure with traces take ten times as long.
    frame = go.Figure()
    lines = [*_facts(gallery, row), *gallery.verdicts.get(latent, ())]
    top = title(frame, f"latent {latent}", f" of {gallery.record['model']}", lines)
    layout = frame.to_dict()["layout"]
    layout.pop("template", None)
    layout |= {
        "width": WIDTH,
        "height": top + height + 75,
        "margin": {"l": 60, "r": 20, "t": top + 30, "b": 45},
        "showlegend": False,
        "bargap": 0.15,
        "plot_bgcolor": "white",
        "annotations": notes,
    }
    if pictures:
        _examples(data, layout, gallery, latent)
        _pattern(data, layout, gallery, latent)
    _labels(data, layout, gallery, row, line)
    _doses(data, layout, gallery, row, line)
    return {"data": data, "layout": layout}


def _facts(gallery: Gallery, row: dict[str, Any]) -> list[str]:
    examples = gallery.record["positions"]
    facts = f"never active in {examples:,} examples"
    if not row["dead"]:
        facts = (
            f"active in {row['rate']:.1%} of {examples:,} examples, mean {row['mean']:.3g} when "
            f"active, standard deviation {row['std']:.3g}; {_removed(gallery, row)}"
        )
    return [
        gallery.bank.describe(gallery.site, int(row["latent"])),
        facts,
        f"Outputs are less the mean of all outputs, on {gallery.record['held_out']:,} held-out "
        "examples; positive = raised; bands are 95% intervals.",
    ]


def _removed(gallery: Gallery, row: dict[str, Any]) -> str:
    effects, place = gallery.effects, gallery.place(int(row["latent"]))
    removed, active = effects.removed, int(effects.active[place])
    if active < FEWEST:
        return f"active in {active} held-out examples: too few to take it out"
    k = int(row["boosted"])
    low, high = removed.low[place, k], removed.high[place, k]
    return (
        f"taken out of {active:,} held-out examples, output {gallery.classes[k]} changes by "
        f"{removed.mean[place, k]:+.3g} [{low:+.3g}, {high:+.3g}]"
    )


def _heading(text: str, x: tuple[float, float], y: float) -> dict[str, Any]:
    return {
        "text": text,
        "x": (x[0] + x[1]) / 2,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "bottom",
        "yshift": 4,
        "showarrow": False,
        "font": {"size": 12.5},
    }


def _examples(
    data: list[dict[str, Any]], layout: dict[str, Any], gallery: Gallery, latent: int
) -> None:
    shown = gallery.examples(latent)
    assert gallery.images is not None
    height, width = gallery.images.shape[1:]
    gap, head = max(1, width // 14), max(2, height // 4)
    lines = max(1, -(-len(shown) // _COLUMNS))
    grid = np.zeros((lines * (height + head), _COLUMNS * (width + gap)), dtype=np.uint8)
    layout["annotations"].append(_heading("strongest examples: label and activation", _LEFT, 1.0))
    for i, one in enumerate(shown):
        top = (i // _COLUMNS) * (height + head) + head
        left = (i % _COLUMNS) * (width + gap)
        grid[top : top + height, left : left + width] = gallery.pixels(int(one["context"]))
        name = visible(gallery.classes[int(one["tokens"][0])])
        layout["annotations"].append(
            {
                "x": left + width / 2,
                "y": top - 0.5,
                "xref": "x",
                "yref": "y",
                "yanchor": "bottom",
                "text": f"<b>{name}</b> {one['value']:.3g}",
                "showarrow": False,
                "font": {"size": 11},
            }
        )
    data.append(
        {
            "type": "heatmap",
            "z": _numbers(grid),
            "zmin": 0,
            "zmax": 255,
            "colorscale": [[0, "white"], [1, "black"]],
            "showscale": False,
            "hoverinfo": "skip",
            "xaxis": "x",
            "yaxis": "y",
        }
    )
    layout["xaxis"] = {**_HIDDEN, "domain": _LEFT, "anchor": "y"}
    layout["yaxis"] = {**_HIDDEN, "domain": _UPPER, "autorange": "reversed", "scaleanchor": "x"}


def _pattern(
    data: list[dict[str, Any]], layout: dict[str, Any], gallery: Gallery, latent: int
) -> None:
    assert gallery.patterns is not None
    pattern = gallery.patterns[gallery.place(latent)].float().cpu().numpy()
    reach = float(np.abs(pattern).max()) or 1.0
    data.append(
        {
            "type": "heatmap",
            "z": _numbers(pattern),
            "zmin": -reach,
            "zmax": reach,
            "colorscale": _scale(),
            "colorbar": {
                "len": _UPPER[1] - _UPPER[0],
                "x": _PATTERN[1],
                "y": 1.0,
                "yanchor": "top",
                "thickness": 10,
                "tickvals": [-reach, 0, reach],
                "tickformat": "+.2g",
            },
            "hovertemplate": "row %{y}, column %{x}: %{z:+.3g}<extra></extra>",
            "xaxis": "x2",
            "yaxis": "y2",
        }
    )
    layout["annotations"].append(_heading("what raises it, per unit of a pixel", _PATTERN, 1.0))
    layout["xaxis2"] = {**_HIDDEN, "domain": _PATTERN, "anchor": "y2"}
    layout["yaxis2"] = {
        **_HIDDEN,
        "domain": _UPPER,
        "autorange": "reversed",
        "scaleanchor": "x2",
        "anchor": "x2",
    }


def _labels(
    data: list[dict[str, Any]],
    layout: dict[str, Any],
    gallery: Gallery,
    row: dict[str, Any],
    line: tuple[float, float],
) -> None:
    counts = dict(zip(row["at"], row["at_count"], strict=True))
    names = [visible(c) for c in gallery.classes]
    values = [int(counts.get(i, 0)) for i in range(len(names))]
    shares = [v / n if n else 0.0 for v, n in zip(values, gallery.label_counts, strict=True)]
    most = int(np.argmax(values))
    data.append(
        {
            "type": "bar",
            "x": names,
            "y": values,
            "marker": {"color": [BLUE if i == most else _GREY for i in range(len(names))]},
            "customdata": shares,
            "hovertemplate": "label %{x}: %{y} examples, %{customdata:.1%} of all with it"
            "<extra></extra>",
            "xaxis": "x3",
            "yaxis": "y3",
        }
    )
    layout["annotations"].append(_heading("labels of the examples it is active in", _LEFT, line[1]))
    layout["xaxis3"] = {
        "domain": _LEFT,
        "anchor": "y3",
        "type": "category",
        "title": {"text": "label"},
    }
    layout["yaxis3"] = {
        "domain": line,
        "anchor": "x3",
        "gridcolor": "#eee",
        "rangemode": "tozero",
        "title": {"text": "examples"},
    }


def _doses(
    data: list[dict[str, Any]],
    layout: dict[str, Any],
    gallery: Gallery,
    row: dict[str, Any],
    line: tuple[float, float],
) -> None:
    effects, place = gallery.effects, gallery.place(int(row["latent"]))
    below = sum(d < 0 for d in effects.doses)
    x = [*effects.doses[:below], 0.0, *effects.doses[below:]]

    def with_zero(values: np.ndarray) -> list[float]:
        return [*values[:below].tolist(), 0.0, *values[below:].tolist()]

    mean = effects.written.mean[place]
    one = mean[effects.doses.index(1.0)]
    first = int(row["boosted"])
    last = int(np.argmin(np.where(np.arange(len(one)) == first, np.inf, one)))
    rest = [k for k in range(len(gallery.classes)) if k not in (first, last)]
    data += [_line(x, with_zero(mean[:, k]), gallery.classes[k], _PALE) for k in rest]
    # On top of the others, with their intervals and names.
    for k, colour in ((last, RED), (first, BLUE)):
        low, high = (with_zero(getattr(effects.written, b)[place, :, k]) for b in ("low", "high"))
        data.append(
            {
                "type": "scatter",
                "x": [*x, *x[::-1]],
                "y": [*high, *low[::-1]],
                "mode": "lines",
                "fill": "toself",
                "fillcolor": _BANDS[colour],
                "line": {"width": 0},
                "hoverinfo": "skip",
                "xaxis": "x4",
                "yaxis": "y4",
            }
        )
        values = with_zero(mean[:, k])
        data.append(_line(x, values, gallery.classes[k], colour))
        layout["annotations"].append(
            {
                "x": x[-1],
                "y": values[-1],
                "xref": "x4",
                "yref": "y4",
                "text": f"<b>{visible(gallery.classes[k])}</b>",
                "xanchor": "left",
                "xshift": 4,
                "showarrow": False,
                "font": {"color": colour, "size": 12},
            }
        )
    layout["annotations"].append(_heading("written in: change of outputs", _RIGHT, line[1]))
    layout["xaxis4"] = {
        **_FRAME,
        "domain": _RIGHT,
        "anchor": "y4",
        "title": {"text": "dose (the latent's standard deviations)"},
    }
    layout["yaxis4"] = {
        **_FRAME,
        "domain": line,
        "anchor": "x4",
        "title": {"text": "output, less the mean of all"},
    }


def _line(x: list[float], y: list[float], name: str, colour: str) -> dict[str, Any]:
    strong = colour in _BANDS
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "mode": "lines+markers",
        "line": {"color": colour, "width": 2 if strong else 1},
        "marker": {"size": 5 if strong else 3},
        "hovertemplate": f"output {visible(name)}, dose %{{x:+g}}: %{{y:+.3g}}<extra></extra>",
        "xaxis": "x4",
        "yaxis": "y4",
    }


def _numbers(table: np.ndarray) -> dict[str, str]:
    """A table as plotly keeps numbers in JSON."""
    kind = {"uint8": "u1", "float32": "f4"}[table.dtype.name]
    raw = base64.b64encode(np.ascontiguousarray(table).tobytes()).decode()
    return {"dtype": kind, "bdata": raw, "shape": ", ".join(map(str, table.shape))}


def _scale() -> list[list[Any]]:
    """The diverging scale in full: names of scales mean other ones in plotly.js."""
    from plotly.colors import get_colorscale

    return [[float(x), colour] for x, colour in get_colorscale(DIVERGING)]
