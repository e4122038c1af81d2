"""Tracks of answers side by side: sites across, a line a track, wide where it is strong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from circuits.plots.base import BLUE, RED, WIDTH, PlotError, title, visible

if TYPE_CHECKING:
    from circuits.features.bank import FeatureBank
    from circuits.tracks.result import Tracks

_GREY, _SPLIT, _MERGE = "#969696", "#238b45", "#8856a7"
_ROW = 30  # pixels of a lane
_WIDTHS = (1.5, 3.0, 5.0, 8.0, 12.0)  # of lines, pixels
_MARKS = {
    "birth": ("triangle-right", "birth"),
    "split": ("triangle-right", "born by a split"),
    "death": ("x", "death"),
    "merge": ("x", "merged into another"),
}
_DASH = "7px,5px"  # of any width of line


def tracks_figure(
    tracks: Tracks,
    answers: Sequence[str],
    *,
    place: int | None = None,
    bank: FeatureBank | None = None,
) -> go.Figure:
    """One column an answer, its token named above; lines are tracks of two latents or more.

    place: of the answer's chosen tokens; by default the last token of the prompt, the first place
    where none is of the prompt. bank: where hovering finds what latents are.
    Raises `PlotError` for answers that are not there, and places that they do not have.
    """
    known = set(tracks.answers["answer"])
    missing = [a for a in answers if a not in known]
    if missing or not answers:
        raise PlotError(f"no answers {', '.join(missing) or '(none given)'} in these tracks.")
    at = _place(tracks) if place is None else place
    columns = [_Column(tracks, answer, at, bank) for answer in answers]
    widest = max(float(c.nodes["share"].max()) for c in columns)
    figure = make_subplots(
        rows=1,
        cols=len(columns),
        horizontal_spacing=0.05,
        subplot_titles=[c.heading for c in columns],
    )
    shown: set[str] = set()
    for number, column in enumerate(columns, 1):
        column.draw(figure, number, widest, shown)
    lanes = max(c.lanes for c in columns)
    names = [s.replace(".", " ") for s in tracks.sites]
    figure.update_xaxes(
        tickvals=list(range(len(names))),
        ticktext=names,
        range=[-0.35, len(names) - 0.65],
        tickangle=-35,
        showgrid=True,
        gridcolor="#eee",
        zeroline=False,
    )
    figure.update_yaxes(
        range=[lanes - 0.3, -0.7], showticklabels=False, showgrid=False, zeroline=False
    )
    figure.update_yaxes(title={"text": "tracks", "font": {"size": 12}}, col=1)
    lines = [
        "Sites of the residual stream across, in forward order (not to scale). A line is a track: "
        "wide where its latents (by number) write much of what is written there; rings are latents "
        "that no link was kept of.",
        "Solid: links confirmed by ablation. Dashed: kept by the null, not confirmed or not "
        "tested." + (" Links that are not kept are not drawn." if _only_kept(tracks) else ""),
    ]
    loud = None
    if not tracks.record["causal"]["confirmed"]:
        loud = "No link is confirmed."
    top = title(figure, "Tracks", f": {columns[0].where}", lines, loud)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        template="plotly_white",
        width=max(WIDTH, 420 * len(columns)),
        height=top + 75 + _ROW * lanes + 110,
        margin={"l": 45, "r": 20, "t": top + 62, "b": 110},
        legend={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left", "font": {"size": 12}},
    )
    return figure


def _only_kept(tracks: Tracks) -> bool:
    return tracks.record["plan"]["links"] == "kept"


def _place(tracks: Tracks) -> int:
    """The last token of the prompt, or the first place there is."""
    from circuits.tracks.plan import Places

    return max(0, Places.parse(tracks.record["plan"]["positions"]).last - 1)


class _Column:
    """One answer at one token: its nodes with their lanes, and its links."""

    def __init__(self, tracks: Tracks, answer: str, place: int, bank: FeatureBank | None) -> None:
        table: Any = tracks.nodes
        nodes: Any = table[(table["answer"] == answer) & (table["place"] == place)]
        if nodes.empty:
            raise PlotError(f"answer {answer!r} has no place {place} in these tracks.")
        self.bank, self.sites = bank, tracks.sites
        order = {s: i for i, s in enumerate(self.sites)}
        nodes = nodes.assign(x=nodes["site"].map(order)).set_index("node")
        mine: Any = tracks.links[tracks.links["answer"] == answer]
        if _only_kept(tracks):
            mine = mine[mine["kept"]]
        inside = mine["source"].isin(nodes.index) & mine["target"].isin(nodes.index)
        self.links = mine[inside]
        self.elsewhere = int((mine["source"].isin(nodes.index) & ~inside).sum())
        self.tracks: Any = tracks.tracks.set_index("track")
        lane = _lanes(nodes)
        self.nodes = nodes.assign(y=nodes["track"].map(lane))
        self.lanes = max(lane.values()) + 1
        about = tracks.answers.set_index("answer").loc[answer]
        self.where = _where(tracks, place)
        colour, word = (BLUE, "right") if about["correct"] else (RED, "wrong")
        said = visible(_short(str(about["completion"]).strip(), 28))
        asked = visible(_short(str(about["prompt"]).strip().replace("\n", " "), 44, end=True))
        token = visible(str(nodes["token"].iloc[0]))
        self.heading = (
            f'<b><span style="color:{colour}">{word}</span></b>: {asked} <b>{said}</b>'
            f"<br>at token {int(nodes['position'].iloc[0])} <b>{token}</b>"
        ).replace("\u2423", " ", 400)

    def draw(self, figure: go.Figure, column: int, widest: float, shown: set[str]) -> None:
        place = {"row": 1, "col": column}
        self._draw_links(figure, place, widest, shown)
        self._draw_nodes(figure, place, shown)
        self._draw_ends(figure, place, shown)

    def _draw_links(
        self, figure: go.Figure, place: dict[str, int], widest: float, shown: set[str]
    ) -> None:
        """One trace a kind, a width and a dash: a line of plotly has one width."""
        buckets: dict[tuple[str, float, str], tuple[list[Any], list[Any]]] = {}
        for row in self.links.to_dict("records"):
            one, two = self.nodes.loc[row["source"]], self.nodes.loc[row["target"]]
            kind = row["kind"] if row["kind"] in ("split", "merge") else "track"
            size = _width((one["share"] + two["share"]) / 2, widest)
            dash = "solid" if row["causal"] == "confirmed" else _DASH
            x, y = buckets.setdefault((kind, size, dash), ([], []))
            xs, ys = _curve(one, two)
            x += [*xs, None]
            y += [*ys, None]
        colours = {"track": BLUE, "split": _SPLIT, "merge": _MERGE}
        for (kind, size, dash), (x, y) in sorted(buckets.items()):
            told = "confirmed" if dash == "solid" else "not confirmed"
            name = f"{kind}, {told}"
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                line={"color": colours[kind], "width": size, "dash": dash},
                opacity=0.75,
                hoverinfo="skip",
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                **place,
            )
            shown.add(name)

    def _draw_nodes(self, figure: go.Figure, place: dict[str, int], shown: set[str]) -> None:
        linked = set(self.links["source"]) | set(self.links["target"])
        for alone, name in ((False, "latent on a track"), (True, "latent without a link")):
            every = self.nodes.reset_index().to_dict("records")
            some = [r for r in every if (r["node"] not in linked) == alone]
            if not some:
                continue
            figure.add_scatter(
                x=[r["x"] for r in some],
                y=[r["y"] for r in some],
                mode="markers" if alone else "markers+text",
                hovertext=[self._hover(r) for r in some],
                text=None if alone else [str(r["latent"]) for r in some],
                textposition="top center",
                textfont={"size": 9, "color": "#444"},
                marker={
                    "size": 6 if alone else 9,
                    "symbol": "circle-open" if alone else "circle",
                    "color": _GREY if alone else BLUE,
                    "line": {"width": 1, "color": _GREY if alone else "white"},
                },
                hovertemplate="%{hovertext}<extra></extra>",
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                **place,
            )
            shown.add(name)

    def _draw_ends(self, figure: go.Figure, place: dict[str, int], shown: set[str]) -> None:
        """Births and deaths of tracks of two latents or more."""
        ends: dict[str, list[tuple[float, float]]] = {}
        for track, part in self.nodes.groupby("track"):
            about = self.tracks.loc[track]
            if about["length"] < 2:
                continue
            first, last = part["x"].idxmin(), part["x"].idxmax()
            for what, node, shift in ((about["born"], first, -0.13), (about["died"], last, 0.13)):
                if what in _MARKS:
                    at = self.nodes.loc[node]
                    ends.setdefault(what, []).append((at["x"] + shift, at["y"]))
        for what, points in ends.items():
            symbol, name = _MARKS[what]
            colour = {"split": _SPLIT, "merge": _MERGE}.get(what, "#222")
            figure.add_scatter(
                x=[x for x, _ in points],
                y=[y for _, y in points],
                mode="markers",
                marker={"symbol": symbol, "size": 9, "color": colour},
                hoverinfo="skip",
                name=name,
                legendgroup=name,
                showlegend=name not in shown,
                **place,
            )
            shown.add(name)

    def _hover(self, row: dict[str, Any]) -> str:
        from circuits.tracks.page import describe

        about = self.tracks.loc[row["track"]]
        told = [
            f"<b>{row['site']} latent {row['latent']}</b>",
            f"activation {row['activation']:.3g}, {row['share']:.1%} of what is written there",
        ]
        if about["length"] > 1:
            told.append(
                f"track {row['track']}: {about['birth']} ({about['born']}) to {about['death']} "
                f"({about['died']}), {about['length']} latents, {about['gaps']} gaps"
            )
        for row_of, word in ((self._after(row["node"]), "to"), (self._before(row["node"]), "from")):
            told += [
                f"{link['kind']} {word} {link['site' if word == 'from' else 'to_site']} "
                f"{link['latent' if word == 'from' else 'to_latent']}: cosine "
                f"{link['similarity']:.2f}, q {link['q']:.2g}, {link['causal']}"
                for link in row_of
            ]
        card = describe(self.bank, row["site"], int(row["latent"]))
        if card:
            told.append(visible(card).replace("\u2423", " "))
        return "<br>".join(told)

    def _after(self, node: int) -> list[dict[str, Any]]:
        return self.links[self.links["source"] == node].to_dict("records")

    def _before(self, node: int) -> list[dict[str, Any]]:
        return self.links[self.links["target"] == node].to_dict("records")


def _where(tracks: Tracks, place: int) -> str:
    from circuits.tracks.plan import Places

    last = Places.parse(tracks.record["plan"]["positions"]).last
    if place < last:
        back = last - place
        return "at the last token of the prompt" if back == 1 else f"{back} tokens from its end"
    return f"at token {place - last + 1} of the answer"


def _lanes(nodes: Any) -> dict[int, int]:
    """A lane for every track, free of others from its first site to its last; long ones on top."""
    spans = nodes.groupby("track")["x"].agg(["min", "max", "count"])
    spans["share"] = nodes.groupby("track")["share"].sum()
    busy: list[list[tuple[int, int]]] = []
    found: dict[int, int] = {}
    order = spans.sort_values(["count", "share"], ascending=False)
    for track, row in order.iterrows():
        begin, end = int(row["min"]), int(row["max"])
        fits = (i for i, lane in enumerate(busy) if all(e < begin or b > end for b, e in lane))
        lane = next(fits, len(busy))
        if lane == len(busy):
            busy.append([])
        busy[lane].append((begin, end))
        found[int(track)] = lane
    return found


def _width(share: float, widest: float) -> float:
    """By the square root of the share, in a few steps."""
    step = math.ceil(len(_WIDTHS) * math.sqrt(share / widest)) - 1
    return _WIDTHS[min(max(step, 0), len(_WIDTHS) - 1)]


def _curve(one: Any, two: Any) -> tuple[list[float], list[float]]:
    """A straight line in a lane, a bent one between lanes."""
    if one["y"] == two["y"]:
        return [float(one["x"]), float(two["x"])], [float(one["y"]), float(two["y"])]
    t = np.linspace(0, 1, 13)
    smooth = 3 * t**2 - 2 * t**3
    x = one["x"] + t * (two["x"] - one["x"])
    return x.tolist(), (one["y"] + smooth * (two["y"] - one["y"])).tolist()


def _short(text: str, most: int, end: bool = False) -> str:
    """At most so many characters, the first ones or the last."""
    if len(text) <= most:
        return text
    return "\u2026" + text[1 - most :] if end else text[: most - 1] + "\u2026"
