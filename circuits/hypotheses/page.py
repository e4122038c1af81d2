"""Tested hypotheses as one page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from circuits.report import page
from circuits.report.tables import NONE, Html, escaped, number, of_row, paragraph, table

if TYPE_CHECKING:
    from circuits.hypotheses.result import HypothesesResult

_HEADS = (
    "latent",
    "hypothesis",
    "verdict",
    "why",
    "figure with 95% interval",
    "inside documents",
    "threshold",
    "q",
    "recall",
    "precision",
    "active",
)
_COLOURS = {"holds": "#08519c", "fails": "#cb181d", "not enough data": "#666"}


def hypotheses_page(result: HypothesesResult) -> str:
    """Figure with the headline, all numbers, descriptions, and how it was tested."""
    rules = result.record["rules"]
    sections: list[tuple[str, Any]] = [
        ("", result.figure()),
        ("All of them", _table(result)),
    ]
    if len(result.descriptions):
        sections.append(("Descriptions", _descriptions(result)))
    text = result.record["evidence"]["kind"] == "text"
    what = "documents" if text else "examples"
    inside = " by the whole interval" + (", and inside documents" if text else "")
    how = (
        f"None of the {what} tested on was used to make a hypothesis "
        f"({result.record['explored']:,} were explored). Fires on: active in the class at least "
        f"{rules['enrichment']:g} times as often as outside{inside}. Raises and lowers: "
        f"{rules['dose']:g} standard deviations of the latent are added; the interval of the mean "
        "effect must lie beyond the threshold, under which mixtures of other latents stay in "
        f"{rules['quantile']:.0%} of cases at the same norm of change (on the same output, or, for "
        "an output that was chosen among all, on the best of each), unless another is given. "
        f"All need q (Benjamini and Hochberg) of at most {rules['level']:g} and at least "
        f"{rules['min_active']} active examples. Recall: share of activations in the class; "
        "precision: share of the class that is active."
    )
    sections.append(("How they were tested", paragraph(how, "note")))
    return page("Hypotheses about latents", sections)


def _table(result: HypothesesResult) -> Html:
    rows = []
    for row in result.table.to_dict("records"):
        fires = row["claim"] == "fires_on"
        colour = _COLOURS[str(row["verdict"])]
        verdict = Html(f'<b style="color:{colour}">{escaped(row["verdict"])}</b>')
        said = str(row["statement"]) + (" (own)" if row["origin"] == "person" else "")
        if row["note"]:
            said += f": {row['note']}"
        interval = of_row(
            {"v": row["value"], "v_low": row["low"], "v_high": row["high"]}, "v", ".3g"
        )
        rows.append(
            [
                f"{row['site']} {row['latent']}",
                said,
                verdict,
                row["reason"],
                _with_unit(interval, fires),
                number(row["within"], ".3g") if fires else "",
                number(row["threshold"], ".3g"),
                number(row["q"], ".2g"),
                number(row["recall"], ".0%") if fires else "",
                number(row["precision"], ".0%") if fires else "",
                f"{row['active']:,}",
            ]
        )
    return table(_HEADS, rows, _HEADS[4:])


def _with_unit(interval: str, fires: bool) -> str:
    """An enrichment is a multiple, an effect is in logits."""
    if interval == NONE:
        return NONE
    return f"\u00d7 {interval}" if fires else f"{interval} logits"


def _descriptions(result: HypothesesResult) -> Html:
    about = result.record.get("describe", {})
    heads = ("latent", "description", "verdict", "AUC", "balanced accuracy", "examples")
    rows = [
        [
            f"{row['site']} {row['latent']}",
            row["description"],
            row["verdict"],
            of_row(row, "auc", ".2f"),
            of_row(row, "accuracy", ".0%"),
            row["examples"],
        ]
        for row in result.descriptions.to_dict("records")
    ]
    note = paragraph(
        f"By {about.get('model', 'a model')}, from the strongest examples explored; scored by how "
        "well it tells held-out examples on which the latent is active from others, by the "
        "description alone. At chance: the interval of the AUC reaches one half.",
        "note",
    )
    return table(heads, rows, heads[3:]) + note
