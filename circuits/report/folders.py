"""Folders of finished runs: found, looked at, read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from circuits.errors import CircuitsError
from circuits.patch.ability import Ability, assess, forced_line
from circuits.prompts import PromptPairs
from circuits.runs import RUN_JSON, read_record

_RUNS = ("task", "contrast", "forced", "ability", "sign_convention")
_RUNS += ("logit_difference_clean", "logit_difference_corrupted")
_METRIC = ("metric", "metric_clean", "metric_corrupted")
# In the order in which a report shows them, with what their records must have.
METHODS: dict[str, tuple[str, ...]] = {
    "saes": ("task", "saes", "quality"),
    "patch": (*_RUNS, *_METRIC, "site", "direction", "positions_patched", "resumed"),
    "attribute": (*_RUNS, *_METRIC, "attribution", "steps", "direction", "saes", "errors"),
    "direct": (*_RUNS, "direction", "saes", "sum_error", "constant_clean", "constant_corrupted"),
    "circuit": (
        *(*_RUNS, *_METRIC, "sets", "references", "by", "sizes", "sites", "saes", "nodes"),
        *("nodes_seen", "drawn", "chosen", "stability", "missing"),
    ),
    "predict": ("targets", "records", "groups", "folds", "features", "sign_convention"),
    "tracks": ("answers", "saes", "plan", "null", "layers", "causal", "metrics", "constant"),
    "tells": ("headline", "verdict", "answers", "groups", "metrics", "sign_convention"),
    "features": ("saes", "corpus", "tokens", "positions"),
}
# Of no pairs, and so of no subject.
ALONE = ("predict", "tracks", "tells", "features")
# Shown by a page of their own, which stands in their folder.
_OWN_PAGES = ("replay", "pathways", "words")
_ALWAYS = ("model", "model_sha256", "versions")
_DEEPEST = 2  # folders between the one given and a run: `runs` holds runs/TASK/RUN


class ReportError(CircuitsError):
    """Nothing to report, or nowhere to put it."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run. result: what its method's class reads back; written: the date of its file,
    in UTC."""

    folder: Path
    method: str
    record: dict[str, Any]
    result: Any
    written: str

    @property
    def name(self) -> str:
        """The folder as it was given."""
        return str(self.folder)

    @property
    def prompts(self) -> PromptPairs | None:
        """The pairs, with their texts; None where the run does not keep them."""
        return getattr(self.result, "prompts", None)

    @property
    def n_pairs(self) -> int:
        """How many pairs it is of; 0 for a feature bank."""
        if self.prompts is not None:
            return len(self.prompts)
        return len(self.record.get("clean_tokens", ()))

    @property
    def ability(self) -> Ability | None:
        """How well the plain model separates the pairs; None for what is of no pairs."""
        if self.method in ALONE:
            return None
        if self.method == "saes":
            from circuits.saes.fidelity import PLAIN

            table: Any = self.result.scores
            table = table[table["variant"] == PLAIN].sort_values("pair")
            return assess(table["ld_clean"].to_numpy(), table["ld_corrupted"].to_numpy())
        found = [np.array(self.record[f"logit_difference_{r}"]) for r in ("clean", "corrupted")]
        return assess(*found)

    @property
    def loud(self) -> list[str]:
        """What must not be missed: a forced run, SAEs that erase the contrast."""
        if self.method == "predict":
            refused = [t for t in self.result.targets if self.result.verdict(t) == "refused"]
            return [self.result.headline(target) for target in refused]
        if self.method == "tracks":
            return self.result.warnings()
        if self.method == "tells":
            return [self.result.headline()] * (self.result.verdict() == "refused")
        if self.method == "features":
            return []
        if self.method == "saes":  # its record does not say whether it was forced
            problem = self.ability.problem if self.ability else None
            lines = [forced_line({"forced": bool(problem), "ability": problem}), self.result.gate]
        else:
            kept = self.record.get("saes_keep") or {}
            lines = [forced_line(self.record), kept.get("gate")]
        return [line for line in lines if line]


@dataclass(frozen=True)
class Found:
    """runs: in the order of a report. left_out: folders that are not in it, and why."""

    runs: tuple[Run, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """What runs are of: one task and contrast on one model."""

    task: str
    contrast: str
    model: str
    sha256: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """Task, contrast and model in one line."""
        return f"{self.task}{f' ({self.contrast})' if self.contrast else ''} on {self.model}"


def find_runs(folders: Sequence[str | Path]) -> Found:
    """The runs in folders, each a run or a folder with runs in it (runs/TASK, or runs).

    A run that is there twice is taken once. A folder without a run, and a run that is damaged or of
    an unknown method, is left out, and `Found.left_out` says why.
    Raises `ReportError` for a folder that does not exist, and when nothing is left.
    """
    missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
    if missing:
        raise ReportError(
            f"{', '.join(missing)}: no such folder. Give folders of runs, such as "
            "runs/error_type, or one run of it."
        )
    chosen: dict[Path, Path] = {}
    left_out: list[str] = []
    for folder in map(Path, folders):
        inside = _runs_in(folder)
        for run in inside:
            chosen.setdefault(run.resolve(), run)
        if not inside:
            left_out.append(f"{folder} is not a run (it has no {RUN_JSON}), and has none in it.")
    found = []
    for folder in chosen.values():
        try:
            found.append(_read(folder, _look(folder)))
        except CircuitsError as error:
            left_out.append(str(error))
    if not found:
        raise ReportError(" ".join(["There is no run to report.", *left_out]))
    order = list(METHODS)
    found.sort(key=lambda run: order.index(run.method))  # as they came within a method
    return Found(tuple(found), tuple(left_out))


def subjects(runs: Sequence[Run]) -> list[Subject]:
    """Runs by what they are of, in the order they come; feature banks and predictions are of no
    contrast."""
    keys: dict[tuple[str, str, str, str], list[Run]] = {}
    # Last those that do not name their contrast: they join one that does, where there is just one.
    named = [run for run in runs if run.method not in ALONE]
    for run in sorted(named, key=lambda run: not run.record.get("contrast")):
        record = run.record
        contrast = str(record.get("contrast") or "")
        key = (record["task"], contrast, record["model"], str(record["model_sha256"]))
        like = [k for k in keys if (k[0], *k[2:]) == (key[0], *key[2:])]
        known = "contrast" in record
        keys.setdefault(key if known or len(like) != 1 else like[0], []).append(run)
    made = [Subject(*key, tuple(r for r in runs if r in mine)) for key, mine in keys.items()]
    first = {subject: runs.index(subject.runs[0]) for subject in made}
    return sorted(made, key=lambda subject: first[subject])


def _runs_in(folder: Path) -> list[Path]:
    """The folder itself, or the runs in it, by name; hidden ones are parts of unfinished runs."""
    if (folder / RUN_JSON).exists():
        return [folder]
    found: list[Path] = []
    for depth in range(1, _DEEPEST + 1):
        for path in folder.glob("/".join(["*"] * depth + [RUN_JSON])):
            inner = path.parent.relative_to(folder).parts
            nested = any(parent in found for parent in path.parent.parents)
            if not nested and not any(part.startswith(".") for part in inner):
                found.append(path.parent)
    return sorted(found)


def _look(folder: Path) -> dict[str, Any]:
    """The record of a run that a report can show; raises `CircuitsError` for any other."""
    record = read_record(folder)
    method = record.get("method")
    if method in _OWN_PAGES:
        raise ReportError(
            f"{folder} holds a run of {method!r}, which has a page of its own: open "
            f"{folder / f'{method}.html'}."
        )
    if method not in METHODS:
        raise ReportError(f"{folder} holds a run of {method!r}, which a report does not show.")
    lacking = [key for key in (*_ALWAYS, *METHODS[method]) if key not in record]
    if lacking:
        raise ReportError(
            f"{folder} is not a whole run of {method!r}: {', '.join(lacking)} missing from "
            f"{RUN_JSON}. Run it again with this version."
        )
    return record


def _read(folder: Path, record: dict[str, Any]) -> Run:
    from circuits.attribute import Attribution
    from circuits.circuit import CircuitResult
    from circuits.direct import DirectEffects
    from circuits.features import FeatureBank
    from circuits.patch import PatchResult
    from circuits.predict import PredictResult
    from circuits.saes import Fidelity
    from circuits.tracks import Tracks
    from circuits.tracks.tells import Tells

    classes: dict[str, Any] = {
        "patch": PatchResult,
        "saes": Fidelity,
        "attribute": Attribution,
        "direct": DirectEffects,
        "circuit": CircuitResult,
        "features": FeatureBank,
        "predict": PredictResult,
        "tracks": Tracks,
        "tells": Tells,
    }
    time = datetime.fromtimestamp((folder / RUN_JSON).stat().st_mtime, UTC)
    method = record["method"]
    return Run(folder, method, record, classes[method].load(folder), f"{time:%Y-%m-%d %H:%M}")
