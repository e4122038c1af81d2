"""Figures of a replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from circuits.plots.base import BLUE, RED, WIDTH

if TYPE_CHECKING:
    from circuits.replay import ReplayResult

_GREYS = ("#969696", "#bdbdbd", "#737373")


def _colour(arm: str) -> tuple[str, str]:
    """Colour and dash of an arm."""
    if arm == "latent":
        return BLUE, "solid"
    if arm == "reconstruction":
        return RED, "dash"
    number = arm.rpartition("-")[2]
    return _GREYS[(int(number) if number.isdigit() else 1) % len(_GREYS)], "dot"


def divergence_figure(result: ReplayResult) -> go.Figure:
    """Share of trials whose tokens are still those of the no-op arm, by step, an arm a line."""
    figure = go.Figure()
    steps = int(result.record["max_new_tokens"])
    first = result.divergences()
    trials = len(result.record["prompts"]) * int(result.record["trials"])
    for arm in result.arms[1:]:
        together = 1 - first[arm].cumsum()[:steps] / trials
        colour, dash = _colour(arm)
        figure.add_scatter(
            x=np.arange(steps),
            y=together,
            name=arm,
            mode="lines",
            line={"color": colour, "dash": dash, "shape": "hv"},
        )
    figure.update_layout(
        title="Trials whose tokens are still those of the no-op arm",
        xaxis_title="step (token written)",
        yaxis={"title": "share of trials", "range": [0, 1.02], "tickformat": ".0%"},
        width=WIDTH,
        height=380,
        template="simple_white",
    )
    return figure


def sections(result: ReplayResult) -> list[tuple[str, Any]]:
    """Headings with what stands below them on a run's page."""
    from circuits.report.tables import number, paragraph, table

    record = result.record
    arms = [
        (
            row["arm"],
            row["responses"],
            number(row["length"], ".1f"),
            number(row["stopped"], ".0%"),
            number(row["diverged"], ".0%"),
            number(row["divergence"], ".0f"),
            number(row["valid"], ".0%"),
        )
        for row in result.table().to_dict("records")
    ]
    heads = ["arm", "responses", "mean length", "stopped", "diverged", "median step", "valid"]
    others = [
        (
            f"{row['site']}:{row['latent']}",
            number(row["rate"], ".2%"),
            ", ".join(map(str, row["random"])) or "none",
            ", ".join(
                number(rate, ".2%") + ("" if matched else " (not matched)")
                for rate, matched in zip(row["random_rates"], row["random_matched"], strict=True)
            ),
            ", ".join(number(cosine, "+.2f") for cosine in row["random_cosines"]),
        )
        for row in record["latents"]
    ]
    found: list[tuple[str, Any]] = [
        ("", paragraph(f"{result.headline()}. Step: {record['step']}.")),
        *(("", paragraph(line)) for line in result.warnings()),
        ("Arms", table(heads, arms, heads[1:])),
        (
            "Latents that stand for the changed ones in the random arms",
            table(["latent", "active at", "random", "active at", "cosine"], others),
        ),
        ("Divergence", result.divergence_figure()),
    ]
    return found + _variances(result)


def _variances(result: ReplayResult) -> list[tuple[str, Any]]:
    from circuits.report.tables import number, of_row, paragraph, table

    about = (
        "Intervals are 95%: of differences over the units named, of ratios over prompts (none with "
        "fewer than 5, or with one trial a prompt). A ratio below 1 is what the shared random "
        "numbers save."
    )
    found: list[tuple[str, Any]] = [("Common random numbers", paragraph(about))]
    heads = ["arm", "difference", "over", "variance, independent", "paired", "ratio"]
    for report in result.reports():
        if report.table is None:
            found.append(("", paragraph(f"{report.title}: {report.problem.rstrip('.')}.")))
            continue
        rows = [
            (
                row["arm"],
                of_row(row, "difference", "+.2f"),
                f"{row['unit']}s" if row["unit"] else "",
                number(row["independent"], ".3g"),
                number(row["paired"], ".3g"),
                of_row(row, "ratio", ".2f"),
            )
            for row in report.table.to_dict("records")
        ]
        found += [("", paragraph(f"{report.title}.")), ("", table(heads, rows, heads[1:]))]
        if report.lost:
            found.append(("", paragraph(report.lost)))
    return found
