"""Finished runs as one page for a reader without Python: what came out, in plain words; what was
measured; every result with its figures; the exact commands. It opens without a network."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from circuits.features import FeatureBank
from circuits.features.bank import EMBEDDED
from circuits.patch.result import count
from circuits.report.circuits import bank_for, circuit_sections
from circuits.report.facts import commands, measured, versions
from circuits.report.folders import (
    ALONE,
    METHODS,
    Found,
    ReportError,
    Run,
    Subject,
    find_runs,
    subjects,
)
from circuits.report.methods import (
    Sections,
    attribution_sections,
    bank_sections,
    direct_sections,
    fidelity_sections,
    patch_sections,
    unit,
)
from circuits.report.page import Parts, document
from circuits.report.predict import predict_sections, predict_summary
from circuits.report.style import STYLE
from circuits.report.summary import summary, warnings
from circuits.report.tables import Html, bullets, escaped, link, paragraph
from circuits.report.tells import tells_sections
from circuits.runs import read_record

__all__ = ["Found", "ReportError", "Run", "find_runs", "report"]

_TITLES = {
    "saes": "What the SAEs keep",
    "patch": "Where it sits: exact patching",
    "attribute": "Which nodes carry it: attribution",
    "direct": "What writes to the logits: direct effects",
    "circuit": "The circuit",
    "predict": "Predicting errors",
    "tracks": "Tracks through the layers",
    "tells": "Right and wrong answers by their tracks",
    "features": "Feature banks",
}
# Nothing may be fetched, whatever stands in a prompt or a name.
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "frame-src 'self'\">"
)
_WORDS = (
    ("Pair", "a clean and a corrupted prompt of as many tokens, which differ at few of them."),
    ("Answer, foil", "the token that should follow the clean and the corrupted prompt."),
    ("Logit difference (LD)", "logit(answer) \u2212 logit(foil) at the last token."),
    ("Gap", "LD after the clean less LD after the corrupted prompts; what there is to explain."),
    (
        "Patching",
        "a value of one run is put into the other. Denoising: clean into corrupted. Noising: the "
        "reverse. Share of the gap: how much of it this brings back, or takes away.",
    ),
    (
        "SAE, latent, error",
        "a sparse autoencoder writes activations at a site as a sum of few latents; the error is "
        "what it does not reconstruct. Either is a node.",
    ),
    (
        "Site",
        "a place in the model: kind and layer. resid_pre, resid_mid and resid_post are the "
        "residual stream before, within and after a layer (resid_pre of a layer is resid_post of "
        "the one before), z the heads' outputs, attn_out and mlp_out what attention and MLP write.",
    ),
    (
        "Interval",
        "[low, high] has the mean of 95 in 100 draws of as many pairs, with replacement, from "
        "these pairs. One pair has none.",
    ),
)


def report(found: Found, title: str | None = None) -> str:
    """The page of the runs that `find_runs` found, as HTML.

    title: plain text; by default what the runs are of. The same runs make the same page.
    """
    runs = found.runs
    mine = subjects(runs)
    name = title or _title(mine, runs)
    anchors = {run: f"run-{i}" for i, run in enumerate(runs, start=1)}
    body = Parts()
    _add_summary(body, found, mine, anchors)
    body.heading("What was measured", 2, "measured")
    for subject in mine:
        if len(mine) > 1:
            body.heading(subject.name, 3)
        body.add(measured(subject))
    banks = _banks(runs)
    for method in METHODS:
        those = [run for run in runs if run.method == method]
        if those:
            body.heading(_TITLES[method], 2, method)
        for run in those:
            _add_run(body, run, mine, anchors[run], banks)
    body.heading("Exact commands", 2, "commands")
    body.add(commands(runs))
    body.heading("Versions", 2, "versions")
    body.add(versions(runs))
    body.heading("Signs and words", 2, "signs")
    body.add(_signs(runs))
    written = [run.written for run in runs]
    when = f"{min(written)} to {max(written)}" if min(written) < max(written) else written[0]
    told = f"{count(len(runs), 'run')}, written {when} (UTC, by the dates of their files)"
    head = f"<h1>{html.escape(name)}</h1>{paragraph(told, 'note')}"
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    contents = _contents(body.contents)
    return document(
        name,
        f"{_POLICY}{view}{STYLE}",
        f"<main>{head}{contents}{body.html()}</main>",
    )


def _title(mine: Sequence[Subject], runs: Sequence[Run]) -> str:
    if len(mine) == 1:
        return f"Report: {mine[0].name}"
    tasks = list(dict.fromkeys(subject.task for subject in mine))
    if tasks:
        return f"Report: {', '.join(tasks)}"
    return f"Report: {', '.join(dict.fromkeys(str(run.record['model']) for run in runs))}"


def _contents(headings: Sequence[tuple[int, str, str]]) -> str:
    """The table of contents: sections, and in brackets their runs where there are several."""
    lines: list[list[Html]] = []
    for level, anchor, text in headings:
        if level == 2:
            lines.append([link(text, anchor)])
        else:
            lines[-1].append(link(text, anchor))
    items = [Html(first + (bullets(rest) if len(rest) > 1 else "")) for first, *rest in lines]
    return f'<nav aria-label="Contents">{bullets(items)}</nav>'


def _add_summary(
    body: Parts, found: Found, mine: Sequence[Subject], anchors: dict[Run, str]
) -> None:
    body.heading("What came out", 2, "summary")
    body.add(warnings(mine, found.runs))
    for line in found.left_out:
        body.add(paragraph(f"Left out: {line}", "loud"))
    for subject in mine:
        if len(mine) > 1:
            body.heading(subject.name, 3)
        body.add(summary(subject, anchors))
    for run in found.runs:
        if run.method == "predict":
            text = predict_summary(run)
            body.add(paragraph(Html(f"{escaped(text)} {link('More', anchors[run])}")))
        if run.method in ("tracks", "tells"):
            text = f"{_TITLES[run.method]}: {run.result.headline()}"
            body.add(paragraph(Html(f"{escaped(text)} {link('More', anchors[run])}")))
        if run.method == "features":
            text = f"A feature bank of {run.record['model']}: {len(run.record['saes'])} SAEs."
            body.add(paragraph(Html(f"{escaped(text)} {link('More', anchors[run])}")))


def _add_run(
    body: Parts, run: Run, mine: Sequence[Subject], anchor: str, banks: Sequence[FeatureBank]
) -> None:
    """One run: what it is of, what must not be missed, its sections."""
    of = [subject.name for subject in mine if run in subject.runs] or [run.record["model"]]
    # Where all runs are of one task and model, the page's title says which.
    whose = f": {of[0]}" if len(mine) != 1 or run.method in ALONE else ""
    body.heading(f"{_what(run)}{whose}", 3, anchor)
    pairs = f", {run.n_pairs} pairs" if run.n_pairs > 1 else ", 1 pair" * run.n_pairs
    body.add(paragraph(f"Run {run.name}, written {run.written}{pairs}", "note"))
    for line in run.loud:
        body.add(paragraph(line, "loud"))
    for heading, content in _sections(run, banks):
        if heading:
            body.heading(heading, 4)
        body.add(content)


def _what(run: Run) -> str:
    record = run.record
    if run.method == "patch":
        how = "" if record["positions_patched"] == "each" else ", all positions at once"
        return f"{record['site']}, {record['direction']}, {unit(record)}{how}"
    if run.method == "attribute":
        from circuits.plots.attribution import method_of

        errors = ", SAEs' errors removed" if record["errors"] == "removed" else ""
        return f"{method_of(record)}, {record['direction']}{errors}".capitalize()
    if run.method == "circuit":
        return f"{record['nodes']:,} of {record['nodes_seen']:,} nodes"
    if run.method in _OF_ANSWERS:
        return f"{record.get('task')}: {_OF_ANSWERS[run.method](record)}"
    if run.method == "direct":
        return f"Direct effects, {record['direction']}"
    return f"{len(record['saes'])} SAEs"


_OF_ANSWERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "predict": lambda record: f"{record['records']} records in {record['groups']} groups",
    "tracks": lambda record: f"{record['answers']['count']} answers",
    "tells": lambda record: f"{record['answers']} answers in {record['groups']} groups",
}


def _sections(run: Run, banks: Sequence[FeatureBank]) -> Sections:
    if run.method == "attribute":
        bank = bank_for(run.record, banks)
        return attribution_sections(run, partial(_describe, bank) if bank else None)
    if run.method == "circuit":
        return circuit_sections(run, banks)
    if run.method == "tracks":
        from circuits.tracks.page import tracks_sections

        bank = bank_for(run.record, banks)
        drawn = [("", run.result.picture(bank=bank))] if len(run.result.nodes) else []
        return [*drawn, *tracks_sections(run.result, bank)]
    makers: dict[str, Any] = {
        "saes": fidelity_sections,
        "patch": patch_sections,
        "direct": direct_sections,
        "features": bank_sections,
        "predict": predict_sections,
        "tells": tells_sections,
    }
    return makers[run.method](run)


def _describe(bank: FeatureBank, site: str, latent: int) -> str:
    """What a bank says of a latent; nothing at sites that it does not have."""
    return bank.describe(site, latent) if site in map(str, bank.sites) else ""


def _banks(runs: Sequence[Run]) -> list[FeatureBank]:
    """The banks among the runs, and the one that comes with the package where it is of SAEs that a
    run was made with."""
    banks = [run.result for run in runs if run.method == "features"]
    used = {one["sha256"] for run in runs for one in run.record.get("saes") or ()}
    own = {one["sha256"] for one in read_record(EMBEDDED)["saes"]}
    return [*banks, FeatureBank.load()] if used & own else banks


def _signs(runs: Sequence[Run]) -> Html:
    said = dict.fromkeys(run.record.get("sign_convention") for run in runs)
    lines = [paragraph(f"{line[0].upper()}{line[1:]}.") for line in said if line]
    colours = (
        "In heatmaps, bars and graphs of effects blue is positive, toward clean, and red negative, "
        "away from it; colours of lines and points are those of their legends."
    )
    words = "".join(f"<dt>{escaped(word)}</dt><dd>{escaped(text)}</dd>" for word, text in _WORDS)
    return Html("".join(lines) + paragraph(colours) + f"<dl>{words}</dl>")
