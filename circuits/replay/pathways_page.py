"""Pathways as one page: the graph, the figures, all numbers, and how they were made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.report import page
from circuits.report.tables import Html, number, of_row, paragraph, table

if TYPE_CHECKING:
    from circuits.features.bank import FeatureBank
    from circuits.replay.pathways_result import PathwaysResult

_MOST = 200  # latents in the table; the file has all
_EFFECTS = {
    "base": "outcome of the no-op run",
    "total": "total, text held",
    "confirmed": "by the confirmed mediators together",
    "rest": "left with these frozen",
    "mediated": "by all mediators together, confirmed or not",
    "direct": "left with all of them frozen",
    "controls": "by as many other latents that change alike",
    "seen": "seen in the run",
    "seen_direct": "direct: change with the no-op arm's tokens",
    "seen_by_tokens": "by tokens: the patched arm's tokens without the change",
    "seen_interaction": "interaction of both",
}


def pathways_page(result: PathwaysResult, bank: FeatureBank | None = None) -> str:
    """The whole page as HTML. bank: where the cards of latents come from."""
    from circuits.graph.page import graph_fragment
    from circuits.plots.pathways import changes_figure, mediators_figure, steps_figure

    sections: list[tuple[str, Any]] = [("", _about(result))]
    if len(result.graph.edges):
        height = 620 if len(result.graph) < 12 else 900
        sections.append(
            ("The pathway graph", graph_fragment(result.graph, bank, "pathways", height))
        )
    if len(result.mediators()):
        sections.append(("What mediators carry", mediators_figure(result)))
    sections += [("Effects on the outcome", _effects(result))]
    sections += [("Direct and by tokens", steps_figure(result))]
    if len(result.pathways):
        sections += [
            ("What changes", changes_figure(result)),
            ("Latents with the text held", _changed(result, "held_")),
            ("Latents in the run", _changed(result, "")),
        ]
    sections.append(("How it was done", paragraph(_how(result), "note")))
    source = result.record["source"]
    return page(f"Pathways of {source['site']} latent {source['latent']}", sections)


def _about(result: PathwaysResult) -> Html:
    notes = [paragraph(result.headline())]
    notes += [paragraph(line, "loud") for line in result.warnings()]
    return Html("".join(notes))


def _effects(result: PathwaysResult) -> Html:
    rows = [
        [
            said,
            of_row({"v": row["value"], "v_low": row["low"], "v_high": row["high"]}, "v", ".3g"),
            of_row(row, "share", ".0%"),
            row["problem"],
        ]
        for said, row in ((said, dict(result.effect(name))) for name, said in _EFFECTS.items())
    ]
    heads = (f"on {result.record['outcome']}", "mean, 95% interval", "share", "why there is none")
    return table(heads, rows, heads[1:3])


def _changed(result: PathwaysResult, view: str) -> Html:
    """Latents in one view: mediators, then the smallest q, among equals the largest sizes."""
    every: Any = result.pathways
    tested = every[every[f"{view}p"].notna()]
    sizes = tested[f"{view}size"].abs().fillna(0).to_numpy()
    keys = (-sizes, tested[f"{view}q"].to_numpy(), tested["mediated"].isna().to_numpy())
    order = tested.index[np.lexsort(keys)[:_MOST]]
    heads = ["latent", "no-op", "patched", "difference, 95% interval", "d_z", "q"]
    heads += ["mediated", "share"] if view else ["random arms", "reconstruction"]
    rows = []
    for row in every.loc[order].to_dict("records"):
        ends = {"": "difference", "_low": "low", "_high": "high"}
        named = {f"d{end}": row[f"{view}{name}"] for end, name in ends.items()}
        cells = [
            f"{row['site']} {row['latent']}",
            number(row[f"{view}base"], ".3g"),
            number(row[f"{view}patched"], ".3g"),
            of_row(named, "d", "+.3g"),
            of_row(row, f"{view}size", ".2f"),
            number(row[f"{view}q"], ".2g"),
        ]
        if view:
            cells += [of_row(row, "mediated", "+.3g"), of_row(row, "share", ".0%")]
        else:
            cells += [number(row[name], "+.3g") for name in ("random", "reconstruction")]
        rows.append(cells)
    left = len(tested) - len(rows)
    note = paragraph(f"{left:,} more are in pathways.parquet.", "note") if left else Html("")
    return table(heads, rows, heads[1:]) + note


def _how(result: PathwaysResult) -> str:
    record = result.record
    unit = record["unit"]
    flipped = (
        "whole prompts, so that what is found is said of prompts like these"
        if unit == "prompt"
        else "single trials within their prompts, of which there are few: what is found is said of "
        "these prompts alone"
    )
    return (
        f"{record['n_trials']:,} trials of {record['prompts']} prompts. A latent's value in a "
        "response is its mean effective coefficient over that response's own steps, 0 where it is "
        "not active; differences are patched minus no-op arm within trials, averaged over the "
        f"trials of a prompt and then over prompts. Signs are flipped of {flipped}; q is Benjamini "
        f"and Hochberg's over all latents that are active, in either arm, in at least "
        f"{record['plan']['least']} {unit}s. With the text held, the no-op arm's tokens of "
        f"{record['trials_held']:,} trials were run with and without the change. Mediators are the "
        "latents that change there with the largest estimated part in the outcome, chosen by one "
        f"half of the {record['unit_held']}s; what they carry is measured over the other half, "
        f"{record['trials_confirmed']:,} trials of {record['prompts_confirmed']} prompts. Frozen: "
        "held at their no-op values at every position while the source is changed (and so are, for "
        "comparison, as many other latents of their sites that change about as much); by "
        "itself: held at their values of the changed run in a run without the change. Confirmed is "
        "a mediator whose part is not 0 by its interval and its q; where these are some of them "
        "only, they are frozen and wired once more without the others (on the trials that "
        "confirmed them: of few among many the share is, if anything, too large), and the graph "
        "shows what goes by none of them as the source's own part. "
        "Shares are refused where the total may be 0. "
        f"Sign: {record['sign_convention']}."
    )
