"""What a report shows of a run, method by method: tables, then figures. Circuits: circuits.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from circuits.features import FeatureBank
from circuits.patch.result import count
from circuits.prompts import PromptPairs
from circuits.report.folders import Run
from circuits.report.tables import (
    Html,
    bullets,
    interval,
    number,
    of_row,
    paragraph,
    table,
    token,
)

Sections = list[tuple[str, Any]]  # headings, and figures or HTML
Describe = Callable[[str, int], str]
HEATMAPS = 6  # groups of pairs of a sweep that are drawn
NARROW = "\u00a0"  # a space at which no line breaks
WORDS = (
    "What a latent is, from a feature bank: on: the tokens it is most often active at; after: "
    "those before it; toward: what it raises directly."
)
_TOP = 12  # rows of a ranking


def fidelity_sections(run: Run) -> Sections:
    """What is kept of the contrast, and how well the SAEs reconstruct."""
    result = run.result
    kept = [
        [
            row["variant"],
            of_row(row, "clean", "+.2f"),
            of_row(row, "corrupted", "+.2f"),
            of_row(row, "kept", ".0%"),
        ]
        for row in result.table().to_dict("records")
    ]
    quality = [
        [row["site"], *(number(row[k], f) for k, f in _QUALITY)]
        for row in result.quality.to_dict("records")
    ]
    heads = ("variant", "LD clean", "LD corrupted", "contrast kept")
    first = table(heads, kept, heads[1:]) + paragraph(
        "LD: logit(answer) minus logit(foil), mean over pairs; contrast kept: LD clean minus LD "
        "corrupted, as a share of the plain model's; 95% intervals over pairs. \u201cWithout "
        "error\u201d: the SAE's reconstruction in place of the activation at that site alone; "
        "\u201call\u201d: at all sites at once. With their errors the plain model comes back, "
        "which is checked. Above 100%: the contrast grows.",
        "note",
    )
    names = ("site", "explained variance", "active latents (L0)", "cross-entropy recovered")
    second = table(names, quality, names[1:]) + paragraph(
        "Over the prompts of all pairs, first position left out. Cross-entropy recovered: 1 where "
        "next tokens are predicted as well as by the plain model, 0 where as badly as with zeros "
        "there; over a few prompts it may lie outside.",
        "note",
    )
    return [("Contrast kept", first), ("Reconstruction", second)]


_QUALITY = (("explained_variance", ".3f"), ("l0", ".1f"), ("ce_recovered", ".3f"))


def patch_sections(run: Run) -> Sections:
    """Where the effect sits and moves, and the heatmaps."""
    result = run.result
    groups = result.alignments()
    record = result.record
    share = result.value == "share"
    form = "+.0%" if share else "+.3f"
    rows = [
        [
            *place(result.prompts, row["position"], row["head"]),
            row["layers"],
            interval(row["peak"], row["low"], row["high"], form),
            row["peak_layer"],
        ]
        for row in result.where().to_dict("records")
    ]
    reach = "20% and more" if share else "a fifth of the largest"
    heads = ("place", "token", f"layers with {reach}", "strongest", "at layer")
    what = "share of the gap" if share else f"effect on {record['metric']}"
    first = table(heads, rows, heads[3:]) + paragraph(
        f"Strongest {what}, of either sign, with 95% intervals over "
        f"{count(len(groups[0].pairs), 'pair')} that line up; positive is toward clean.",
        "note",
    )
    if not rows:
        first = paragraph(f"No place has an effect ({what}) that reaches {reach}.")
    first += bullets(moves(run)) if moves(run) else ""
    if not record["resumed"]:
        first += paragraph(
            "Every pass was a full forward: resuming in the middle of this model did not agree."
        )
    found: Sections = [("Where it sits", first)]
    for index, group in enumerate(groups[:HEATMAPS], start=1):
        which = f", group {index} of {len(groups)}" if len(groups) > 1 else ""
        found.append((f"Heatmap{which}", result.heatmap(group)))
    if len(groups) > HEATMAPS:
        left = sum(len(group.pairs) for group in groups[HEATMAPS:])
        note = f"The heatmaps of {count(left, 'other pair')} are in the run's folder."
        found.append(("", paragraph(note, "note")))
    return found


def moves(run: Run) -> list[str]:
    """Where the effect of a sweep moves, in sentences."""
    result = run.result
    lines = []
    for move in result.moves().to_dict("records"):
        old, new = (
            " ".join(place(result.prompts, move[k], None)) for k in ("from_position", "to_position")
        )
        lines.append(
            f"Between {result.record['site']} of layers {move['before']} and {move['after']} it "
            f"moves from {old} ({number(move['from_share_before'], '.0%')} \u2192 "
            f"{number(move['from_share_after'], '.0%')}) to {new} "
            f"({number(move['to_share_before'], '.0%')} \u2192 "
            f"{number(move['to_share_after'], '.0%')})."
        )
    return lines


def place(prompts: PromptPairs, position: Any, head: Any) -> tuple[str, str]:
    """A position (of the largest group of pairs) or a head, and the tokens there."""
    if pd.isna(position):
        return ("all positions" if pd.isna(head) else f"head {int(head)}"), ""
    group = prompts.alignments()[0]
    clean, corrupted = prompts.tokens_at(group)[int(position)]
    name = prompts.names_at(group).get(int(position), "")
    tokens = _some(clean)
    if clean != corrupted:
        tokens += f" / {_some(corrupted)}"
    where = f"{int(position)} {name}".strip().replace(" ", NARROW)
    return (where if pd.isna(head) else f"{where}, head {int(head)}"), tokens


def _some(tokens: tuple[str, ...]) -> str:
    return "|".join(token(t) for t in tokens[:3]) + ("|\u2026" if len(tokens) > 3 else "")


def attribution_sections(run: Run, describe: Describe | None) -> Sections:
    """The strongest nodes, what errors carry, the audit in numbers; then the figures."""
    result = run.result
    record = result.record
    pairs = result.prompts.alignments()[0].pairs
    rows = [
        [
            node_name(row),
            *place(result.prompts, row["position"], None),
            of_row(row, "effect", "+.3f"),
            of_row(row, "share", "+.0%"),
            describe(str(row["site"]), int(row["latent"]))
            if describe and row["role"] == "latent"
            else "",
        ]
        for row in result.ranking(_TOP).to_dict("records")
    ]
    heads = ("node", "place", "token", "effect", "share of the gap", "what it is")
    first = table(heads, rows, heads[3:5]) + paragraph(
        f"Mean effects on the {unit(record)} over {count(len(pairs), 'pair')} that line up, with "
        f"95% intervals; positive is toward clean.{f' {WORDS}' if describe else ''}",
        "note",
    )
    found: Sections = [("The strongest nodes", first)]
    if record["errors"] == "kept":
        found.append(("What the SAEs' errors carry", _errors(result)))
    elif record["errors"] == "removed":
        found.append(("Latents alone, without the SAEs' errors", _sites(result)))
    found += result.sections(describe)
    if record.get("audit"):
        found.append(("", paragraph(audit_line(record))))
    else:
        found.append(("How far to trust it", paragraph(_NO_AUDIT, "loud")))
    return found


_NO_AUDIT = "This run has no audit: nothing says how close its estimates are to exact effects."


def unit(record: dict[str, Any]) -> str:
    """The metric in words."""
    return str(record["metric"]).replace("_", " ")


def node_name(row: dict[str, Any]) -> str:
    """ "resid_post.22 latent 7", "z.22 error", "attn_out.3"."""
    latent = int(row["latent"])
    role = "" if row["role"] == "component" else f" {row['role']}"
    name = f"{row['site']}{role}{f' {latent}' if latent >= 0 else ''}"
    return name.replace(" ", NARROW)


def _errors(result: Any) -> Html:
    rows = []
    for site, part in result.error_share().groupby("site", sort=False, observed=True):
        size = float(part["size"].sum())
        share = (part["size"] * part["error_share"]).sum() / size if size else None
        sums = [number(part[k].sum(), "+.3f") for k in ("effect", "error_effect")]
        rows.append([site, number(share, ".0%"), *sums])
    heads = ("site", "errors' share of all effects in size", "sum of effects", "of errors")
    return table(heads, rows, heads[1:])


def _sites(result: Any) -> Html:
    totals = result.totals("site")
    gap = float(result.gap.mean())
    rows = [
        [site, number(effect, "+.3f"), number(effect / gap if gap else None, "+.0%")]
        for site, effect in zip(totals["site"], totals["effect"], strict=True)
    ]
    heads = ("site", "sum of effects", "share of the plain model's gap")
    return table(heads, rows, heads[1:])


def audit_line(record: dict[str, Any]) -> str:
    """The audit in one sentence or two."""
    audit = record["audit"]
    own = (
        "effect: the node's share of the joint change"
        if record["attribution"] == "ig"
        else "effect of the node patched by itself"
    )
    line = (
        f"Audit: {len(audit['nodes'])} nodes on {count(audit['pairs'], 'pair')}, each estimate "
        f"against the exact {own}. Spearman {number(audit['spearman'], '.3f')}, Pearson "
        f"{number(audit['pearson'], '.3f')}, same sign {number(audit['sign_agreement'], '.0%')}; "
        "sums over the nodes of a site miss the exact effect of the whole site by at most "
        f"{number(audit['completeness_residual'], '.1%')} of the largest."
    )
    if record["attribution"] == "ig":
        line += (
            " Against single nodes patched, which this method does not estimate: Spearman "
            f"{number(audit['spearman_single'], '.3f')}."
        )
    return line


def direct_sections(run: Run) -> Sections:
    """What each part adds to the logit difference directly, and through later layers."""
    from circuits.direct.result import label

    result = run.result
    record = result.record
    by = "total" if result.has_totals else "exact"
    kinds = [("Components", ("embedding", "head", "component"))]
    if record["saes"]:
        kinds.append(("SAE nodes", ("latent", "error", "offset")))
    columns = ("clean", "corrupted", "exact", "total", "mediated")
    heads = ("part", "clean", "corrupted", "direct", "total", "mediated")
    found: Sections = []
    for title, roles in kinds:
        rows = []
        for row in result.ranking(_TOP, by=by, roles=roles).to_dict("records"):
            cells = [of_row(row, c, "+.3f") if c == by else number(row[c], "+.3f") for c in columns]
            rows.append([label(row), *cells])
        shown = "total" if by == "total" else "direct"
        found.append((f"{title}, the largest by {shown} effect", table(heads, rows, heads[1:])))
    limit = ", of logits before the soft cap" if record.get("soft_cap") else ""
    note = (
        "In logits, mean over pairs; positive is toward clean. Clean and corrupted: what the part "
        "adds to the logit difference in each run; direct: the effect of its change straight on "
        "the logits; total: through everything; mediated: the difference of both, what later "
        f"layers make of it. Contributions add up to the logit difference{limit} (checked: off by "
        f"at most {number(record['sum_error'], '.0e')} of its scale)."
    )
    found.append(("", paragraph(note, "note")))
    last = [site for site in result.sae_sites if site.kind.startswith("resid")][-1:]
    found += result.sections(last)
    if last:
        other = f"Waterfalls from sites other than {last[0]} on are in the run's direct.html."
        found.append(("", paragraph(other, "note")))
    return found


def bank_sections(run: Run) -> Sections:
    """The facts of a feature bank."""
    bank: FeatureBank = run.result
    positions = bank.record["positions"]
    dead: Any = bank.dead()
    rows = []
    for site in map(str, bank.sites):
        part: Any = bank.latents[bank.latents["site"] == site]
        gone = f"{dead.loc[site, 'dead']} ({number(dead.loc[site, 'share'], '.1%')})"
        active = float(np.sum(part["active"])) / positions if positions else None
        rows.append([site, f"{len(part):,}", gone, number(active, ".1f")])
    heads = ("site", "latents", "never active", "active a token (L0)")
    text = (
        f"What every latent does on {positions:,} positions of "
        f"{corpus_name(bank.record['corpus'])}; first positions of contexts left out."
    )
    if bank.record.get("interrupted"):
        text += " The pass was interrupted: this is of its beginning."
    return [("", paragraph(text) + table(heads, rows, heads[1:]))]


def corpus_name(corpus: dict[str, Any]) -> str:
    """The names of a corpus' sources, with their weights where there are several."""
    sources = corpus.get("sources") or []
    names = [str(one.get("name")) for one in sources]
    if len(sources) > 1:
        names = [f"{n} (weight {one.get('weight', 1):g})" for n, one in zip(names, sources)]  # noqa: B905
    return ", ".join(names) or "a corpus"
