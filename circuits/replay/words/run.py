"""`find_words`: from logs to a `WordsResult`, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from circuits.replay.log import RESPONSES, is_run
from circuits.replay.words.compare import Comparison, Rules, compare
from circuits.replay.words.corpus import Corpus, paired_by_design, read_corpus
from circuits.replay.words.result import SIGN, WordsResult
from circuits.replay.words.split import Splitter, WordOptions
from circuits.runs import RUN_JSON, read_record, sha256_of, versions


def find_words(
    logs: Sequence[str | Path],
    options: WordOptions | None = None,
    rules: Rules | None = None,
    *,
    paired: bool | None = None,
    background: str | Path | None = None,
    features: Sequence[str] = (),
) -> WordsResult:
    """Which words the arms of logs add and remove.

    logs: JSONL files or folders of replay runs, read as one. paired: whether trials of one number
    were sampled with the same random numbers in every arm; None: in folders of runs, not in files.
    background: a log whose words make the prior. features: only these latents.
    Raises `CircuitsError` for logs that cannot be read or compared.
    """
    options, rules = options or WordOptions(), rules or Rules()
    rules = replace(rules, paired=paired_by_design(logs) if paired is None else paired)
    splitter = Splitter(options)
    other = None if background is None else read_corpus([background], splitter)
    corpus = read_corpus(logs, splitter, features=features)
    found = compare(corpus, rules, other)
    record: dict[str, Any] = {
        "method": "words",
        "task": task_of(logs),
        "logs": [_about(path) for path in logs],
        "background": None if background is None else _about(background),
        "features": list(features),
        "options": asdict(options),
        "rules": asdict(rules),
        "unit": found.unit,
        "difference": found.difference,
        "permutations": found.permutations,
        "responses": len(corpus),
        "different_words": len(corpus.vocabulary),
        "notes": _notes(found, rules, corpus),
        "sign_convention": SIGN,
        "versions": versions(),
    }
    return WordsResult(found.table, found.arms, record)


def task_of(logs: Sequence[str | Path]) -> str:
    """The task that all logs are of, by their records; "custom" where they are files, or of
    several."""
    runs = [Path(path) for path in logs]
    names = {str(read_record(p).get("task", "custom")) for p in runs if is_run(p)}
    return names.pop() if len(names) == 1 and all(map(is_run, runs)) else "custom"


def _about(path: str | Path) -> dict[str, str]:
    path = Path(path)
    if not is_run(path):
        return {"path": str(path), "sha256": sha256_of(path)}
    digests = {name: sha256_of(path / name) for name in (RUN_JSON, RESPONSES)}
    return {"path": str(path), "sha256": digests[RESPONSES], "run_sha256": digests[RUN_JSON]}


def _notes(found: Comparison, rules: Rules, corpus: Corpus) -> list[str]:
    """What a reader of the numbers has to know."""
    arms: Any = found.arms
    fewest, most = int(arms["prompts"].min()), int(arms["prompts"].max())
    many = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    notes = []
    if found.unit == "prompt":
        notes.append(
            f"Labels of whole prompts were exchanged ({many} prompts a kind): the p values also "
            "speak of other prompts of the kind."
        )
        notes += _too_few(found, rules, fewest)
    else:
        how = "pair by pair" if rules.paired else "freely"
        notes.append(
            f"Labels were exchanged within prompts, {how} ({many} prompts a kind): the p values "
            "speak of these prompts and of no others."
        )
    if found.table["low"].isna().to_numpy().any():
        notes.append(
            "Where there is no interval there are too few prompts or trials for one: 5 prompts, or "
            "2 trials of every prompt and 4 more than prompts, are the fewest."
        )
    notes.append(
        f"False discoveries (Benjamini and Hochberg, {rules.level:g}) are counted over all words "
        "and kinds of an arm, differences of kinds apart, "
        + (
            "over all features together."
            if rules.family == "log"
            else "feature by feature: of many features without any effect, up to that share may "
            "show a word."
            if arms["feature"].nunique() > 1
            else "arm by arm."
        )
    )
    notes.append(
        f"Tested are words in at least {rules.min_responses} responses of both arms together: "
        f"{found.table['word'].nunique():,} of {len(corpus.vocabulary):,} different ones."
    )
    return notes


def _too_few(found: Comparison, rules: Rules, prompts: int) -> list[str]:
    """A line where so few prompts are exchanged that a single word could not pass."""
    table: Any = found.table[found.table["p_fisher"].notna()]
    by = ["arm"] if rules.family == "log" else ["feature", "arm"]
    words = int(table.groupby(by, sort=False).size().max()) if len(table) else 0
    drawn = found.permutations[0]
    exact = 2.0 ** (prompts - 1)
    smallest = 1 / exact if exact <= drawn + 1 else 1 / (1 + drawn)
    if words * smallest <= rules.level:
        return []
    together = int(words * smallest / rules.level) + 1
    advice = "more prompts" if exact <= drawn + 1 else "more permutations"
    return [
        f"No p can be under {smallest:.2g}: of {words:,} words at least {together} would have to "
        f"pass together, so that nothing found means little. It takes {advice}."
    ]
