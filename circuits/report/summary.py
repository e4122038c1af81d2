"""What came out of runs, in plain words with the key numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuits.circuit.sets import SETS
from circuits.patch.result import count
from circuits.report.circuits import share_of_nodes, worth
from circuits.report.facts import NOUNS
from circuits.report.folders import ALONE, Run, Subject
from circuits.report.methods import moves, node_name, place, unit
from circuits.report.tables import Html, bullets, escaped, interval, link, number, of_row, paragraph


def summary(subject: Subject, anchors: Mapping[Run, str]) -> Html:
    """A few lines about a subject; each says which section has the rest."""
    lines: list[Html] = [_gap(subject)]
    for run in subject.runs:
        text = _LINES[run.method](run)
        lines.append(Html(f"{escaped(text)} {link('More', anchors[run])}"))
    return Html(paragraph(_question(subject)) + bullets(lines))


def _question(subject: Subject) -> str:
    contrast = f", contrast {subject.contrast}" if subject.contrast else ""
    with_texts = [run.prompts for run in subject.runs if run.prompts is not None]
    asked = ""
    if with_texts:
        asked = with_texts[0].named_answers()
        asked = f" {asked[0].upper()}{asked[1:]}."
    return (
        f"Task {subject.task}{contrast}. Which parts of {subject.model}, at which token, make it "
        f"prefer the answer after clean prompts and the foil after corrupted ones?{asked}"
    )


def _gap(subject: Subject) -> Html:
    """Of the run with the most pairs."""
    run = max(subject.runs, key=lambda run: run.n_pairs)
    found: Any = run.ability
    ends = [
        interval(s.value, s.low, s.high, "+.2f") for s in (found.clean, found.corrupted, found.gap)
    ]
    return escaped(
        f"The gap to explain: logit(answer) \u2212 logit(foil) is {ends[0]} after clean and "
        f"{ends[1]} after corrupted prompts, a gap of {ends[2]} logits "
        f"({count(run.n_pairs, 'pair')}, {NOUNS[run.method]}; {number(found.ordered, '.0%')} "
        f"ordered right, the answer of {number(found.flipped, '.0%')} flips)."
    )


def _fidelity(run: Run) -> str:
    from circuits.saes.fidelity import PLAIN, STACKED, WITH_ERROR

    rows = {row["variant"]: row for row in run.result.table().to_dict("records")}
    all_ = of_row(rows[STACKED], "kept", ".0%")
    alone = [row["kept"] for name, row in rows.items() if name not in (PLAIN, STACKED, WITH_ERROR)]
    each = ""
    if len(alone) > 1:
        each = f"; each alone keeps {number(min(alone), '.0%')} to {number(max(alone), '.0%')}"
    return (
        f"Fidelity: {count(len(run.record['saes']), 'SAE')}, put in place of the activations "
        f"without their errors, keep {all_} of the gap{each} "
        f"({count(run.n_pairs, 'pair')})."
    )


def _patch(run: Run) -> str:
    result, record = run.result, run.record
    table: Any = result.where()
    done = f"Exact patching of {record['site']} ({record['direction']})"
    if table.empty:
        return f"{done}: no place has a strong effect."
    row = table.to_dict("records")[0]
    share = result.value == "share"
    size = interval(row["peak"], row["low"], row["high"], "+.0%" if share else "+.3f")
    what = "of the gap" if share else f"on the {unit(record)}"
    where, tokens = place(result.prompts, row["position"], row["head"])
    at = f"{where} {tokens}".strip()
    line = f"{done}: the strongest place is {at} at layer {row['peak_layer']}, {size} {what}"
    return " ".join([f"{line} ({_aligned(run)}).", *moves(run)[:2]])


def _aligned(run: Run) -> str:
    """How many pairs its tables are of: those that line up."""
    return count(len(run.result.prompts.alignments()[0].pairs), "pair")


def _attribution(run: Run) -> str:
    from circuits.plots.attribution import method_of

    result, record = run.result, run.record
    top = result.ranking(1).to_dict("records")
    removed = ", SAEs' errors removed" if record["errors"] == "removed" else ""
    line = f"Attribution ({method_of(record)}, {record['direction']}{removed}): "
    if top:
        row = top[0]
        where, tokens = place(result.prompts, row["position"], None)
        share = (
            "" if row["share"] != row["share"] else f", {number(row['share'], '+.0%')} of the gap"
        )
        line += (
            f"the strongest node is {node_name(row)} at {where} {tokens}, "
            f"{of_row(row, 'effect', '+.3f')}{share} ({_aligned(run)})"
        )
    else:
        line += "no node has an effect"
    audit = record.get("audit")
    if not audit:
        return f"{line}. It has no audit: nothing says how far to trust its estimates."
    return (
        f"{line}. Estimates against exact interventions on {len(audit['nodes'])} nodes: Spearman "
        f"{number(audit['spearman'], '.3f')}; sums over a site's nodes miss its exact effect by up "
        f"to {number(audit['completeness_residual'], '.0%')} of the largest."
    )


def _direct(run: Run) -> str:
    from circuits.direct.result import label

    rows = run.result.ranking(3, by="exact", roles=("embedding", "head", "component"))
    parts = [f"{label(row)} {of_row(row, 'exact', '+.2f')}" for row in rows.to_dict("records")]
    how = run.record["direction"]
    return f"Straight on the logits ({how}) the most is done by {', '.join(parts)} logits."


def _circuit(run: Run) -> str:
    record = run.record
    line = (
        f"Circuit: {record['nodes']:,} of {record['nodes_seen']:,} nodes "
        f"({number(share_of_nodes(run), '.1%')})"
    )
    parts: list[str] = []
    both: list[dict[str, Any]] = []
    for name in ("unseen", "held_out"):
        row = worth(run, name)
        if row is None:
            continue
        which = f"on {count(row['pairs'], 'pair')} ({SETS[name]})"
        if row["problem"]:
            parts.append(f"{which} there is no ratio: {row['problem']}")
            continue
        both.append(row)
        found = [of_row(row, key, ".2f") for key in ("faithfulness", "completeness")]
        parts.append(f"{which} faithfulness {found[0]}, completeness {found[1]}")
    less = ""
    if len(both) == 2 and both[1]["faithfulness_high"] < both[0]["faithfulness_low"]:
        less = " It is less faithful on held-out pairs."
    told = "; ".join(parts) or "it was judged on no other pairs"
    return f"{line}: {told} (reference {record['by']}; 1 and 0 would be perfect).{less}"


_LINES = {
    "saes": _fidelity,
    "patch": _patch,
    "attribute": _attribution,
    "direct": _direct,
    "circuit": _circuit,
}


def warnings(subjects: Sequence[Subject], runs: Sequence[Run]) -> Html:
    """What must be known before any number is read, in red: that runs are of different models or
    tasks, and what runs say of themselves."""
    loud: dict[str, list[str]] = {}
    for run in runs:
        for line in run.loud:
            loud.setdefault(line, []).append(f"{NOUNS[run.method]}, {run.name}")
    found = "".join(paragraph(f"{line} ({'; '.join(who)})", "loud") for line, who in loud.items())
    told = _different(subjects, runs)
    return Html((paragraph(told, "loud") if told else "") + found)


def _different(subjects: Sequence[Subject], runs: Sequence[Run]) -> str:
    tasks = {subject.task for subject in subjects}
    several = {
        "models": len({(r.record["model"], r.record["model_sha256"]) for r in runs}) > 1,
        "tasks": len(tasks) > 1,
        "contrasts": len({(s.task, s.contrast) for s in subjects}) > len(tasks),
    }
    names = [name for name, is_so in several.items() if is_so]
    if not names:
        return ""
    of = [subject.name for subject in subjects]
    of += [f"a {NOUNS[r.method]} of {r.record['model']}" for r in runs if r.method in ALONE]
    return (
        f"These runs are of different {' and '.join(names)}: {'; '.join(dict.fromkeys(of))}. Every "
        "section says which; their numbers do not belong together."
    )
