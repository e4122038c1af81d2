"""Prompts compared with one another: duplicates, twins, nearest neighbours."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, Int

_WORD = re.compile(r"\d+(?:\.\d+)?|\w+|[^\w\s]")
NEAR = 0.8  # Jaccard similarity of character 5-grams from which two texts are near-duplicates
_MOST_CHANGED = 1  # words or numbers in which twins differ
_FEWEST_WORDS = 4  # texts below that are too short for one changed word to mean anything


def words(text: str) -> tuple[str, ...]:
    """Words, numbers and signs of a text, lower case."""
    return tuple(_WORD.findall(text.lower()))


def masked(text: str) -> str:
    """A text with its numbers replaced by #."""
    return " ".join("#" if w[0].isdigit() else w for w in words(text))


def duplicate_pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of texts that are the same but for case and white space."""
    return _pairs_of(defaultdict(list), [(words(t),) for t in texts])


def twin_pairs(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs that differ in exactly one word or number, or not at all.

    Found without comparing all pairs: each text with one place left out is a key.
    """
    keys = []
    for text in texts:
        parts = words(text)
        if len(parts) < _FEWEST_WORDS:
            keys.append(((parts, -1),))
            continue
        keys.append(tuple((parts[:i] + parts[i + 1 :], i) for i in range(len(parts))))
    return _pairs_of(defaultdict(list), keys)


def _pairs_of(found: defaultdict, keys: Sequence[Sequence[object]]) -> list[tuple[int, int]]:
    for i, of_text in enumerate(keys):
        for key in of_text:
            found[key].append(i)
    pairs: set[tuple[int, int]] = set()
    for rows in found.values():
        # A long list of equal texts would make a square of pairs: neighbours are enough.
        near = rows if len(rows) <= 50 else []
        pairs.update((a, b) for i, a in enumerate(near) for b in near[i + 1 :] if a != b)
        if not near:
            pairs.update((a, b) for a, b in pairwise(rows) if a != b)
    return sorted(pairs)


def near_across(
    texts: Sequence[str], folds: Int[np.ndarray, " record"], least: float = NEAR
) -> int:
    """How many pairs in different folds have character 5-grams of at least this Jaccard similarity.

    Counted and not kept: problems of one template can all be alike.
    """
    grams = _grams(texts)
    sizes = np.asarray(grams.sum(1)).ravel()
    found = 0
    for start in range(0, len(texts), 500):
        stop = min(start + 500, len(texts))
        common = (grams[start:stop] @ grams.T).toarray()
        near = common >= least * (sizes[start:stop, None] + sizes - common)
        found += int((near & (folds[start:stop, None] < folds)).sum())
    return found


def _grams(texts: Sequence[str]) -> Any:  # a sparse matrix
    from sklearn.feature_extraction.text import CountVectorizer

    short = [t if len(t) >= 5 else t.ljust(5) for t in texts]
    make: Any = CountVectorizer  # whose stubs know no other type of number
    counted = make(analyzer="char", ngram_range=(5, 5), binary=True, dtype=np.float32)
    return counted.fit_transform(short).tocsr()


def nearest(
    texts: Sequence[str], folds: Int[np.ndarray, " record"]
) -> tuple[Int[np.ndarray, " record"], Float[np.ndarray, " record"]]:
    """For every text the most similar one of other folds, its training data: (row, similarity)."""
    grams = _grams(texts)
    sizes = np.asarray(grams.sum(1)).ravel()
    row, best = np.zeros(len(texts), dtype=int), np.zeros(len(texts))
    for start in range(0, len(texts), 500):
        stop = min(start + 500, len(texts))
        common = (grams[start:stop] @ grams.T).toarray()
        share = common / (sizes[start:stop, None] + sizes - common)
        share[folds[start:stop, None] == folds] = -1.0
        row[start:stop] = share.argmax(1)
        best[start:stop] = share.max(1)
    return row, best


def text_components(texts: Sequence[str], most: int = 8) -> Float[np.ndarray, "record component"]:
    """Principal directions of which words, at which place, the texts have: what distinguishes
    prompts, for prompts of any kind. Unit variance; none where all texts are the same."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    if len({words(t) for t in texts}) == 1:
        return np.zeros((len(texts), 0))
    # The place counts for texts of one template, whose words are otherwise the same.
    marked = [" ".join([*words(t), *(f"{i}@{w}" for i, w in enumerate(words(t)))]) for t in texts]
    counted = TfidfVectorizer(token_pattern=r"\S+", min_df=2, max_features=5000)
    try:
        table = counted.fit_transform(marked)
    except ValueError:  # no word stands in two texts
        return np.zeros((len(texts), 0))
    most = min(most, table.shape[1] - 1, len(texts) - 1)
    if most < 1:
        return np.zeros((len(texts), 0))
    found = TruncatedSVD(most, random_state=0).fit_transform(table)
    found = found - found.mean(0)
    scale = found.std(0)
    return found[:, scale > 1e-6] / scale[scale > 1e-6]


def unite(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Groups in which the rows of every pair are in one; each takes the name of its first."""
    above: dict[str, str] = {g: g for g in groups}

    def top(name: str) -> str:
        while above[name] != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for a, b in pairs:
        above[top(groups[b])] = top(groups[a])
    return [top(g) for g in groups]
