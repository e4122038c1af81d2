"""The leak audit: what would make a prediction of errors look better than it is.

It runs before any headline. A check ends as "ok", "leak" (the headline is refused), "nothing" (what
was found is what chance gives) or "not known" (it could not be looked at; said, not refused).

join: labels and vectors were joined by id, and vectors keep a digest of their prompt.
alignment (alignment.py): vectors predict the surface of their own prompt, and of shuffled ones far
    worse.
labels: where the records hold the true answer, `correct` agrees with it.
duplicates, twins, copying: the same or nearly the same prompt on both sides of a split, and what
    copying the label of the nearest training prompt scores.
fitted: nothing was fitted on rows that are predicted, by the ids that were recorded.
permuted labels: the whole pipeline, refitted on permuted labels, comes out at chance. This is
    what finds a selection of features that saw the labels of all rows.
null features: the largest effect and the AUC exceed what permuted labels give.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from circuits.labelled import Labelled, named
from circuits.predict.folds import Held
from circuits.predict.scores import Truth, auc, permutations
from circuits.predict.surface import numbers_in
from circuits.predict.texts import (
    duplicate_pairs,
    masked,
    near_across,
    nearest,
    twin_pairs,
)
from circuits.predict.vectors import Fitted, Vectors

Verdict = Literal["ok", "leak", "nothing", "not known"]
SURE = 0.01  # p from which on alignment is confirmed, and twins' labels are dependent
SHUFFLES = 499
_AGREE = 0.95  # share of labels that must agree with the true answers
FEWEST = 10  # pairs of twins from which a dependence can be judged
_CHANCE_T = 4.3  # t of 10 permuted runs above chance, about one in a thousand


@dataclass(frozen=True)
class Check:
    """One check: its name, how it ended, why in words, and numbers."""

    name: str
    verdict: Verdict
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """All checks. leaks: those that refuse the headline."""

    checks: tuple[Check, ...]

    @property
    def leaks(self) -> tuple[Check, ...]:
        """The checks that found a leak."""
        return tuple(c for c in self.checks if c.verdict == "leak")

    def __getitem__(self, name: str) -> Check:
        return next(c for c in self.checks if c.name == name)


def check_join(vectors: Vectors, records: Sequence[Labelled]) -> Check:
    """`Vectors.join` has raised for anything wrong; this says what it could look at."""
    known = sum(d != "" for d in vectors.digests)
    assert vectors.ids == tuple(r.id for r in records)
    text = f"{len(records)} records joined to their vectors by id"
    if known < len(records):
        return Check(
            "join",
            "not known",
            f"{text}; {len(records) - known} vectors keep no digest of the prompt they are of.",
            {"digests": known},
        )
    return Check("join", "ok", f"{text}; all digests of prompts agree.", {"digests": known})


def check_truths(records: Sequence[Labelled]) -> Check:
    """`correct` against the true answer, where records have one as the label `truth`, `answer` or
    `ground_truth`; and records with the same prompt and completion but different labels."""
    seen: dict[tuple[str, str], bool] = {}
    torn = [
        r.id
        for r in records
        if r.completion and seen.setdefault((r.prompt, r.completion), r.correct) != r.correct
    ]
    agree = [
        _same(r.completion, str(r.labels[name])) == r.correct
        for r in records
        for name in ("truth", "answer", "ground_truth")
        if name in r.labels and r.completion
    ]
    share = float(np.mean(agree)) if agree else None
    numbers = {"agree": share, "compared": len(agree), "contradictions": len(torn)}
    if torn or (share is not None and share < _AGREE):
        why = f"{len(torn)} records contradict one with the same prompt and completion"
        if share is not None:
            why += f"; `correct` agrees with the true answer in {share:.0%} of {len(agree)}"
        return Check("labels", "leak", f"{why}: labels belong to other records.", numbers)
    if share is None:
        return Check("labels", "not known", "records hold no true answers.", numbers)
    return Check("labels", "ok", f"labels agree with true answers in {share:.0%}.", numbers)


def _same(completion: str, truth: str) -> bool:
    """Whether the last number of both is the same, or, without numbers, the truth is in it."""
    said, true = numbers_in(completion), numbers_in(truth)
    if true:
        return bool(said) and said[-1] == true[-1]
    return truth.strip().lower() in completion.lower()


def check_split(
    records: Sequence[Labelled], truth: Truth, seed: int
) -> tuple[list[Check], Int[np.ndarray, " record"]]:
    """Duplicates, near-duplicates, twins across the split; copying the nearest training prompt.

    Twins are prompts of different groups that differ in one word or number. In a small space of
    problems there are some by chance, and they are a leak when the label of one tells that of the
    other: agreement of their labels against permutations over groups, in either direction.
    Also returns the class of every record's nearest training prompt.
    """
    texts = [r.text for r in records]
    apart = truth.folds
    copies = [(i, j) for i, j in duplicate_pairs(texts) if apart[i] != apart[j]]
    twins = [(i, j) for i, j in twin_pairs(texts) if apart[i] != apart[j]]
    template = _across([masked(text) for text in texts], apart)
    rows, similarity = nearest(texts, apart)
    numbers: dict[str, Any] = {
        "duplicates": len(copies),
        "twins": len(twins),
        "near": near_across(texts, apart),
        "records_with_twin": len({i for pair in twins for i in pair}),
        "same_template": template,
    }
    checks = [_duplicates(copies, records, numbers), _twins(twins, truth, numbers, seed)]
    copied = np.eye(truth.n_classes)[truth.classes[rows]]
    one = np.ones((1, len(texts)), dtype=np.float32)
    scored = float(auc(truth, copied, one)[0])
    right = float((truth.classes[rows] == truth.classes).mean())
    checks.append(
        Check(
            "copying",
            "ok",
            f"copying the label of the nearest training prompt (similarity {similarity.mean():.2f} "
            f"on average) scores AUC {scored:.3f}, accuracy {right:.1%}; it is one of the "
            "baselines.",
            {"auc": scored, "accuracy": right, "similarity": float(similarity.mean())},
        )
    )
    return checks, truth.classes[rows]


def _across(texts: Sequence[str], folds: np.ndarray) -> int:
    """Records with an equal text in another fold."""
    where: dict[str, set[int]] = {}
    for text, fold in zip(texts, folds, strict=True):
        where.setdefault(text, set()).add(int(fold))
    return sum(len(where[text]) > 1 for text in texts)


def _duplicates(
    copies: Sequence[tuple[int, int]], records: Sequence[Labelled], numbers: dict[str, Any]
) -> Check:
    text = (
        f"across the split {numbers['duplicates']} pairs of equal prompts, {numbers['near']} of "
        f"near-duplicates; {numbers['same_template']} records share all but numbers with one there"
    )
    if copies:
        which = named(list(dict.fromkeys(records[i].id for pair in copies for i in pair)))
        return Check(
            "duplicates",
            "leak",
            f"{text}: the same prompt is trained on and predicted ({which}). Give them one group "
            "(merge twins), or drop them.",
            numbers,
        )
    return Check("duplicates", "ok", f"{text}.", numbers)


def _twins(
    twins: Sequence[tuple[int, int]], truth: Truth, numbers: dict[str, Any], seed: int
) -> Check:
    text = f"{len(twins)} pairs that differ in one word or number stand across the split"
    if len(twins) < FEWEST:
        return Check("twins", "ok", f"{text}.", numbers)
    pairs = np.array(twins)
    moved = permutations(truth.groups, truth.folds, SHUFFLES, seed)
    classes = truth.classes
    same = float((classes[pairs[:, 0]] == classes[pairs[:, 1]]).mean())
    null = (classes[moved[:, pairs[:, 0]]] == classes[moved[:, pairs[:, 1]]]).mean(1)
    far = np.abs(null - null.mean()) >= abs(same - null.mean()) - 1e-12
    p = float((1 + far.sum()) / (1 + len(null)))
    numbers = {**numbers, "agree": same, "agree_by_chance": float(null.mean()), "p": p}
    text += f"; their labels agree in {same:.0%} (by chance {null.mean():.0%}, p = {p:.3f})"
    if p <= SURE:
        return Check(
            "twins",
            "leak",
            f"{text}: a model could copy its twin's label. Give them one group (merge twins).",
            numbers,
        )
    return Check("twins", "ok", f"{text}: nothing to copy.", numbers)


def check_fitted(
    held: Iterable[Held],
    ids: Sequence[str],
    folds: Int[np.ndarray, " record"],
    declared: Sequence[Fitted],
) -> Check:
    """Ids that anything was fitted on, against those of the rows it was used to predict."""
    numbers = np.unique(folds)
    everything = frozenset(ids)
    seen: list[str] = []
    for one in held:
        for place, fold in enumerate(numbers):
            test = {i for i, f in zip(ids, folds, strict=True) if f == fold}
            if one.fitted_on[place] & test:
                seen.append(f"{one.name} in fold {fold}")
    for what in declared:
        if what.ids is not None and what.ids & everything:
            how = "and their labels " if what.labels else ""
            seen.append(
                f"{what.name}, fitted before the folds on {len(what.ids & everything)} of the "
                f"records {how}that are predicted"
            )
    unknown = [what.name for what in declared if what.ids is None]
    found = {"unknown": unknown, "seen": seen}
    if seen:
        return Check(
            "fitted", "leak", f"fitted on rows that it predicts: {'; '.join(seen)}.", found
        )
    text = "in every fold, what was fitted saw none of the ids that it predicts"
    if unknown:
        many = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        return Check(
            "fitted",
            "not known",
            f"{text}; what {', '.join(unknown[:3])}{many} were fitted on is not known.",
            found,
        )
    return Check("fitted", "ok", f"{text}.", found)


def check_permuted(runs: dict[str, np.ndarray]) -> Check:
    """AUCs of whole pipelines on permuted labels (`folds.permuted_auc`) against one half."""
    means = {name: float(found.mean()) for name, found in runs.items()}
    errors = {name: float(found.std(ddof=1) / len(found) ** 0.5) for name, found in runs.items()}
    numbers = {"mean": means, "error": errors, "runs": len(next(iter(runs.values())))}
    shown = ", ".join(f"{mean:.3f} ({name})" for name, mean in means.items())
    text = f"refitted on permuted labels {numbers['runs']} times, pipelines score AUC {shown}"
    if any(means[name] - 0.5 > max(_CHANCE_T * errors[name], 0.02) for name in runs):
        return Check(
            "permuted labels",
            "leak",
            f"{text}, above chance: a step outside the folds sees the labels of predicted rows, "
            "such as a selection of features on all of them.",
            numbers,
        )
    return Check("permuted labels", "ok", f"{text}: chance.", numbers)


def check_null(p_auc: float, p_largest: float, largest: float, chance: float) -> Check:
    """Whether features hold anything about the labels: AUC and largest effect against chance."""
    numbers = {"p_auc": p_auc, "p_largest": p_largest, "largest": largest, "chance": chance}
    text = (
        f"AUC p = {p_auc:.3f}; largest effect |d| = {largest:.2f}, by chance up to {chance:.2f} "
        f"(p = {p_largest:.3f})"
    )
    if p_auc >= 0.05 and p_largest >= 0.05:
        return Check("null features", "nothing", f"{text}: what chance gives.", numbers)
    return Check("null features", "ok", f"{text}.", numbers)
