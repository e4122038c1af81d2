"""Whether vectors are of the records they are joined to, by what they predict of their prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from circuits.labelled import Labelled
from circuits.predict.audit import FEWEST, SHUFFLES, SURE, Check
from circuits.predict.scores import permutations
from circuits.predict.surface import question_numbers
from circuits.predict.texts import text_components
from circuits.predict.vectors import Vectors


def check_alignment(
    vectors: Vectors,
    records: Sequence[Labelled],
    groups: Int[np.ndarray, " record"],
    folds: Int[np.ndarray, " record"],
    seed: int,
) -> Check:
    """Whether the vectors are of their prompts, by what they predict.

    Ridge regression of every number of the prompt (surface, principal directions of its words) on
    the vectors, held out by group; the statistic is the largest correlation, against the same with
    prompts permuted over groups. Within groups of several prompts, what differs must not be read
    the wrong way round: it is where twins were swapped.
    """
    aims = _aims(records)
    if not aims.shape[1]:
        return Check("alignment", "not known", "all prompts look the same: nothing to predict.")
    x = _scaled(vectors.flat())
    predictor = _ridge(x, folds, x, folds)
    moved = _shuffles(groups, seed)
    found = _largest(predictor @ aims, aims)
    null = np.array([_largest(predictor @ aims[rows], aims[rows]) for rows in moved])
    p = float((1 + (null >= found - 1e-12).sum()) / (1 + SHUFFLES))
    numbers = {"correlation": found, "shuffled": float(np.quantile(null, 0.95)), "p": p}
    if p > SURE and vectors.kind == "table":
        return Check(
            "alignment",
            "not known",
            f"a few numbers of each answer need not tell its prompt (correlation {found:.2f}, "
            f"shuffled {numbers['shuffled']:.2f}, p = {p:.3f}); they were joined by id.",
            numbers,
        )
    if p > SURE:
        return Check(
            "alignment",
            "leak",
            f"vectors predict their own prompts no better (correlation {found:.2f}) than shuffled "
            f"ones do ({numbers['shuffled']:.2f}, p = {p:.3f}): they belong to other records, or "
            "hold nothing of their prompts. In either case no prediction from them can be read.",
            numbers,
        )
    inside, p_swapped, n = _within(x, aims, groups, folds, seed)
    numbers |= {"within_groups": inside, "p_swapped": p_swapped}
    text = (
        f"vectors predict their own prompts (correlation {found:.2f}; shuffled "
        f"{numbers['shuffled']:.2f}, p = {p:.3f})"
    )
    if n >= FEWEST and inside < 0 and p_swapped <= SURE:
        return Check(
            "alignment",
            "leak",
            f"{text}, but within groups the wrong way round ({inside:.2f}, p = {p_swapped:.3f}): "
            "vectors of twins are swapped.",
            numbers,
        )
    return Check("alignment", "ok", f"{text}.", numbers)


def _shuffles(groups: np.ndarray, seed: int) -> np.ndarray:
    """Permutations over groups; over rows where most groups are nearly the only ones of their size,
    which then would stay where they are."""
    sizes = np.bincount(groups)
    alike = np.bincount(sizes)[sizes]
    movable = sizes[alike >= 5].sum() >= len(groups) / 2
    own = groups if movable else np.arange(len(groups))
    return permutations(own, np.zeros(len(groups), dtype=int), SHUFFLES, seed)


def _aims(records: Sequence[Labelled]) -> Float[np.ndarray, "record aim"]:
    texts = [r.prompt for r in records]
    plain = np.array([question_numbers(text) for text in texts], dtype=float)
    plain = plain[:, plain.std(0) > 1e-9]
    plain = (plain - plain.mean(0)) / plain.std(0) if plain.shape[1] else plain
    return np.concatenate([plain, text_components(texts)], axis=1)


def _ridge(
    x: np.ndarray, folds: np.ndarray, ask: np.ndarray, ask_folds: np.ndarray
) -> Float[np.ndarray, "asked row"]:
    """The matrix from aims of rows `x` to predictions for rows `ask` of other folds. The penalty is
    a tenth of the mean squared norm of a row times the square root of the rows: no aim takes part
    in it."""
    penalty = 0.1 * float((x**2).sum(1).mean()) * len(x) ** 0.5
    found = np.zeros((len(ask), len(x)))
    for fold in np.unique(ask_folds):
        fit, here = np.flatnonzero(folds != fold), np.flatnonzero(ask_folds == fold)
        inside = x[fit] @ x[fit].T + penalty * np.eye(len(fit))
        found[np.ix_(here, fit)] = np.linalg.solve(inside, x[fit] @ ask[here].T).T
    return found


def _scaled(x: Float[np.ndarray, "record feature"]) -> Float[np.ndarray, "record feature"]:
    x = x.astype(np.float64)
    x = x - x.mean(0)
    return x / np.where(x.std(0) > 1e-12, x.std(0), 1.0)


def _largest(said: np.ndarray, aims: np.ndarray) -> float:
    a, b = said - said.mean(0), aims - aims.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return float(((a * b).sum(0) / np.where(scale > 1e-12, scale, np.inf)).max())


def _within(
    x: np.ndarray, aims: np.ndarray, groups: np.ndarray, folds: np.ndarray, seed: int
) -> tuple[float, float, int]:
    """Whether what differs within a group is read as what differs between groups is.

    Ridge regression is fitted on the means of groups, and asked about rows less their group's mean.
    Returns the correlation with the aims less theirs, its one-sided p for being negative by turning
    whole groups' signs, and how many groups have several different prompts.
    """
    size = np.bincount(groups)[:, None]
    x_mean, mean = (np.stack([np.bincount(groups, c) for c in v.T], 1) / size for v in (x, aims))
    left, aim = x - x_mean[groups], aims - mean[groups]
    fold_of = np.zeros(len(size), dtype=int)
    fold_of[groups] = folds
    said = _ridge(x_mean, fold_of, left, folds) @ mean
    scale = np.sqrt((said**2).sum() * (aim**2).sum())
    if scale < 1e-9:
        return 0.0, 1.0, 0
    each = np.bincount(groups, (said * aim).sum(1)) / scale
    several = int((np.bincount(groups, (aim**2).sum(1)) > 1e-9).sum())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(SHUFFLES, len(each)))
    p = float((1 + ((signs @ each) <= each.sum()).sum()) / (1 + SHUFFLES))
    return float(each.sum()), p, several
