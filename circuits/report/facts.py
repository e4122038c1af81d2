"""What runs are of: models, SAEs, prompts; and how they were made: commands, versions."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from circuits.circuit.sets import SETS
from circuits.patch.result import count
from circuits.prompts import PromptPairs
from circuits.report.folders import Run, Subject
from circuits.report.tables import Html, code, escaped, facts, paragraph, table, token

_PAIRS = 3  # shown of a group of pairs
_GROUPS = 2
NOUNS = {
    "saes": "fidelity of SAEs",
    "patch": "patching",
    "attribute": "attribution",
    "direct": "direct effects",
    "circuit": "circuit",
    "predict": "prediction of errors",
    "tracks": "tracks through the layers",
    "tells": "right and wrong answers by their tracks",
    "features": "feature bank",
}


def measured(subject: Subject) -> Html:
    """Task, model, SAEs and runs of a subject, and some of its pairs."""
    records = [run.record for run in subject.runs]
    found = facts(
        [
            ("task", subject.task),
            ("contrast", subject.contrast),
            ("model", subject.model),
            ("SHA-256 of the model", code(subject.sha256) if subject.sha256 != "None" else ""),
            (
                "computed in",
                _all(f"{r['dtype']} on {r['device']}" for r in records if "dtype" in r),
            ),
            ("metric", _all(r["metric"].replace("_", " ") for r in records if "metric" in r)),
        ]
    )
    rows = [
        [
            NOUNS[run.method],
            run.name,
            run.written,
            count(run.n_pairs, "pair"),
            _seconds(run.record.get("seconds")),
        ]
        for run in subject.runs
    ]
    found += table(("run", "folder", "written (UTC)", "pairs", "took"), rows)
    return found + _saes(subject.runs) + _prompts(subject)


def _all(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _seconds(value: Any) -> str:
    return "" if value is None else f"{value:.0f} s"


def _saes(runs: Sequence[Run]) -> Html:
    """The SAEs of all runs, each once."""
    seen = {
        (s["site"], s["name"], s["sha256"]): s for r in runs for s in r.record.get("saes") or ()
    }
    if not seen:
        return Html("")
    rows = [
        [one["site"], one["name"], one.get("trained_on") or "not said", code(str(one["sha256"]))]
        for one in seen.values()
    ]
    return table(("SAE at", "name", "trained on", "SHA-256"), rows)


def _prompts(subject: Subject) -> Html:
    """Some pairs of every set of pairs, no pair twice."""
    sets: dict[Any, list[Run]] = {}
    for run in subject.runs:
        key = [run.record.get("clean_tokens"), run.record.get("corrupted_tokens")]
        sets.setdefault(str(key), []).append(run)
    found, seen = Html(""), set()
    for runs in sets.values():
        with_texts = [run.prompts for run in runs if run.prompts is not None]
        who = ", ".join(f"{NOUNS[run.method]} ({run.name})" for run in runs)
        if not with_texts:
            found += paragraph(f"Pairs of {who}: their records keep numbers of tokens alone.")
            continue
        prompts = with_texts[0]
        bos = f"{'with' if prompts.prepend_bos else 'without'} a beginning-of-text token"
        found += paragraph(f"Pairs of {who}: {count(len(prompts), 'pair')}, {bos}.")
        found += pairs_html(prompts, 1 if seen else _PAIRS, seen)
        for run in runs:
            for name, base in run.record.get("sets", {}).items():
                if name != "found":
                    which = f"{count(len(base['metric_clean']), 'pair')}, {SETS.get(name, name)}."
                    found += paragraph(f"The circuit of {run.name} was judged on {which}")
                    found += pairs_html(run.result.pairs(name), 1, seen)
    return found


def pairs_html(prompts: PromptPairs, most: int, seen: set[Any]) -> Html:
    """At most so many pairs of a group that lines up, token by token, clean above corrupted, with
    answer and foil. seen: pairs that stand on the page already; those shown are added."""
    found, shown = Html(""), 0
    for group in prompts.alignments()[:_GROUPS]:
        keys = {i: (prompts.clean_tokens[i], prompts.corrupted_tokens[i]) for i in group.pairs}
        fresh = [i for i, key in keys.items() if key not in seen][:most]
        if group.template and fresh:
            found += paragraph(f"Template {group.template}:", "note")
        for i in fresh:
            shown += 1
            seen.add(keys[i])
            clean, corrupted = prompts.clean_strings[i], prompts.corrupted_strings[i]
            found += Html(
                '<table class="pair">'
                + _prompt("clean", clean, corrupted, "answer", prompts.answers[i])
                + _prompt("corrupted", corrupted, clean, "foil", prompts.foils[i])
                + "</table>"
            )
    left = len(prompts) - shown
    if left:
        found += paragraph(f"and {count(left, 'other pair')} in run.json.", "note")
    return found


def _prompt(name: str, mine: Sequence[str], other: Sequence[str], word: str, after: str) -> str:
    tokens = "".join(
        f'<span class="token{" differs" if a != b else ""}">{escaped(token(a))}</span>'
        for a, b in zip(mine, other, strict=True)
    )
    end = f'<span class="token after">{escaped(token(after))}</span>'
    return f"<tr><th>{name}</th><td>{tokens} {word} {end}</td></tr>"


def commands(runs: Sequence[Run]) -> Html:
    """How every run was made, word by word."""
    found = Html("")
    for run in runs:
        words = run.record.get("command")
        noun = NOUNS[run.method]
        found += paragraph(f"{noun[0].upper()}{noun[1:]}, {run.name}:")
        if words:
            found += Html(f"<pre>{escaped(shlex.join(map(str, words)))}</pre>")
        else:
            found += paragraph(
                "Made from Python, not by a command: its options are in run.json.", "note"
            )
        if run.record.get("pairs_file_sha256"):
            found += paragraph(
                Html(
                    f"SHA-256 of {escaped(run.record['pairs_file'])}: "
                    f"{code(run.record['pairs_file_sha256'])}"
                ),
                "note",
            )
    return found


def versions(runs: Sequence[Run]) -> Html:
    """Versions of what the numbers depend on, a column for each set of them."""
    kinds: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for run in runs:
        found = run.record["versions"]
        kinds.setdefault(str(found), (found, []))[1].append(run.name)
    names = list(dict.fromkeys(name for found, _ in kinds.values() for name in found))
    heads = ["package"]
    heads += [", ".join(which) for _, which in kinds.values()] if len(kinds) > 1 else ["version"]
    rows = [[name, *(found.get(name, "") for found, _ in kinds.values())] for name in names]
    return table(heads, rows)
