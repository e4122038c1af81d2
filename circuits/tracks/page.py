"""Tracks as one page: the picture, what links mean between layers, all numbers, how it was done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from circuits.report import page
from circuits.report.tables import Html, number, of_row, paragraph, table
from circuits.sites import Site
from circuits.tracks.plan import TrackError

if TYPE_CHECKING:
    from circuits.features.bank import FeatureBank
    from circuits.tracks.result import Tracks

_MOST = 100  # pairs in the table; the file has all


def tracks_page(tracks: Tracks, bank: FeatureBank | None = None) -> str:
    """The whole page as HTML. bank: where the descriptions of latents come from."""
    sections: list[tuple[str, Any]] = [("", _about(tracks))]
    if len(tracks.nodes):
        sections.append(("Tracks of answers", tracks.picture(bank=bank)))
    sections += tracks_sections(tracks, bank)
    return page("Tracks through the layers", sections)


def tracks_sections(tracks: Tracks, bank: FeatureBank | None = None) -> list[tuple[str, Any]]:
    """Headings with what stands below them, without the picture."""
    found: list[tuple[str, Any]] = [
        ("What a link means between two sites", _layers(tracks)),
        ("Pairs of latents checked by ablation", _confirmed(tracks, bank)),
        ("Metrics", _metrics(tracks)),
        ("How it was done", paragraph(_how(tracks), "note")),
    ]
    return found


def summary(tracks: Tracks) -> str:
    """Headline and what links mean, as HTML."""
    return _about(tracks) + _layers(tracks)


def _about(tracks: Tracks) -> Html:
    notes = [paragraph(tracks.headline())]
    notes += [paragraph(line, "loud") for line in tracks.warnings()]
    notes += [paragraph(line, "note") for line in tracks.notes()]
    return Html("".join(notes))


def apart(row: dict[str, Any]) -> int:
    """Layers between the two sites of a row."""
    return Site.parse(row["to_site"]).layer - Site.parse(row["site"]).layer


def _layers(tracks: Tracks) -> Html:
    heads = ("between", "layers apart", "similarity", "shuffled", "links", "shuffled ")
    heads = (*heads, "kept", "pairs tested", "pairs kept")
    rows = [
        [
            f"{row['site']} \u2192 {row['to_site']}",
            apart(row),
            number(row["similarity"], ".2f"),
            number(row["similarity_shuffled"], ".2f"),
            row["links"],
            number(row["links_shuffled"], ",.0f"),
            row["kept"],
            row["pairs"],
            row["pairs_kept"],
        ]
        for row in tracks.record["layers"]
    ]
    note = (
        "Similarity: median, over latents of the earlier site, of the largest cosine of decoder "
        "rows with what stands at the later site at the same token; shuffled: the same where the "
        "later site's latents are another answer's. Where both are alike a link says nothing. Rows "
        "without a similarity are gaps: the site between is passed over."
    )
    return table(heads, rows, heads[1:]) + paragraph(note, "note")


def _confirmed(tracks: Tracks, bank: FeatureBank | None) -> Html:
    causal, plan = tracks.record["causal"], tracks.record["plan"]
    if not causal["tested"]:
        return paragraph("No pair was ablated.", "note")
    rows = []
    some: Any = tracks.confirmed.sort_values("lost", ascending=False).head(_MOST)
    for row in some.to_dict("records"):
        ends = [(row["site"], row["latent"]), (row["to_site"], row["to_latent"])]
        rows.append(
            [
                " \u2192 ".join(f"{s} {latent}" for s, latent in ends),
                *([describe(bank, *ends[0])] if bank else []),
                number(row["similarity"], ".2f"),
                row["groups"],
                of_row(row, "lost", ".0%"),
                of_row(row, "control", ".0%"),
                "yes" if row["confirmed"] else row["problem"] or "no",
            ]
        )
    heads = ("pair", *(["earlier latent"] if bank else []), "similarity", "groups")
    heads = (*heads, "activation lost", "by the control", "confirmed")
    note = (
        f"{causal['tested']} of {causal['able']} pairs that could be tested, of {causal['kept']} "
        "kept, drawn at random among those linked in one half of the groups of answers and tested "
        f"in the other. Confirmed: more than {plan['lost']:.0%} is lost, and more than by a change "
        "of the same size along another active latent, both with 95% intervals over groups: the "
        "later latent stands on the earlier one's write. Whether layers between computed with it "
        "or the stream merely carried it, ablation does not tell. "
        f"Confirmed share: {causal['share']:.0%} [{causal['share_low']:.0%}, "
        f"{causal['share_high']:.0%}] (Wilson)."
    )
    return paragraph(note) + table(heads, rows, heads[2 if bank else 1 : -1])


def check_bank(tracks: Tracks, bank: FeatureBank | None) -> None:
    """Raise `TrackError` where a bank is of other SAEs than the tracks."""
    theirs = {} if bank is None else {one["site"]: one["sha256"] for one in bank.record["saes"]}
    other = [
        one["site"]
        for one in tracks.record["saes"]
        if theirs.get(one["site"], one["sha256"]) != one["sha256"]
    ]
    if other:
        raise TrackError(
            f"the bank is of another SAE at {', '.join(other)} than the tracks: its descriptions "
            "would be of other latents. Give --bank one that was collected with --saes."
        )


def describe(bank: FeatureBank | None, site: str, latent: int) -> str:
    """One line about a latent; empty without a bank that knows it."""
    if bank is None or site not in {str(s) for s in bank.sites}:
        return ""
    return bank.describe(site, latent)


def _metrics(tracks: Tracks) -> Html:
    heads = ("metric", "what", "range", "right answers, mean", "wrong answers, mean")
    return table(heads, metric_rows(tracks), heads[3:])


def metric_rows(tracks: Tracks) -> list[list[str]]:
    """Name, what it is, range, and means over right and over wrong answers."""
    correct = tracks.answers.set_index("answer")["correct"]
    rows = []
    for name, about in tracks.record["metrics"].items():
        if name in tracks.record["constant"]:
            value = tracks.record["constant"][name]
            rows.append([name, about["what"], about["range"], f"always {value:.3g}: refused", ""])
            continue
        values: Any = tracks.metrics.set_index("answer")[name]
        side_of: Any = correct[values.index]
        ends = [values[side_of.to_numpy() == side] for side in (True, False)]
        means = [number(x.mean() if len(x) else None, ".3f") for x in ends]
        rows.append([name, about["what"], about["range"], *means])
    return rows


def _how(tracks: Tracks) -> str:
    record = tracks.record
    plan, null = record["plan"], record["null"]
    dense = sum(len(x) for x in record["left_out"].values())
    return (
        f"At {plan['positions']} of each answer the {plan['k']} latents of each site that write "
        f"most (coefficient times norm of the decoder row); {dense} latents active at more than "
        f"{plan['densest']:.0%} of all tokens are left out. Score of a link: ({plan['decoder']:g} "
        f"x cosine of decoder rows + {plan['activation']:g} x closeness of shares) / "
        f"{plan['decoder'] + plan['activation']:g} - {plan['distance']:g} x positions between, at "
        f"least {plan['least']:g}; one to one by the Hungarian method, then gaps of one site, then "
        f"splits and merges of at least {plan['branch']:g}; reach {plan['reach']}. Null: the sets "
        "of every site exchanged between answers with as many tokens "
        + (f"and the same {plan['within']} " if plan["within"] else "")
        + f"{plan['permutations']} times, and everything done again; p by pair of latents, "
        f"{null['pairs_tested']} pairs of which each latent occurs in {plan['rare']} groups at "
        f"least; q of Benjamini and Hochberg over all of them; {null['links_rare']} links of rarer "
        f"pairs have no p and are not kept. Tracks go along {plan['links']} links. "
        f"Sign: {record['sign_convention']}."
    )
