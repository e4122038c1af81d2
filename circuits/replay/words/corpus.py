"""A log as counts: which words every response holds, and how often. The texts are not kept.

Six bytes a different word of a response, and a few numbers a response: 500,000 responses of fifty
different words take about 200 MB.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from scipy import sparse
from tqdm import tqdm

from circuits.replay.log import LogError, Response, is_run, read_log
from circuits.replay.words.split import Splitter

_LARGEST = 2**16 - 1  # of a count; a response with one word more often than that counts as this
KEYS = ("feature", "kind", "arm", "prompt")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Responses as counts of words.

    counts: [response, word]. vocabulary: the words of its columns. responses: one row a response,
    `feature, kind, arm, prompt` (categories) and `trial`.
    """

    counts: sparse.csr_matrix
    vocabulary: tuple[str, ...]
    responses: pd.DataFrame

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.responses), len(self.vocabulary)):
            raise LogError(
                f"counts of shape {self.counts.shape} for {len(self.responses)} responses and "
                f"{len(self.vocabulary)} words."
            )

    def __len__(self) -> int:
        return len(self.responses)

    def totals(self) -> Int[np.ndarray, " word"]:
        """How often each word is written in all responses."""
        return np.asarray(self.counts.sum(axis=0, dtype=np.int64)).ravel()


def read_corpus(
    logs: Sequence[str | Path], splitter: Splitter, *, features: Sequence[str] = ()
) -> Corpus:
    """Count the words of logs, read as one. features: only these latents; all where there are none.

    Raises `LogError` where a log cannot be read, holds two responses of one feature, kind, arm,
    prompt and trial, or none of the features.
    """
    if not logs:
        raise LogError("no log was given: at least one is needed.")
    lines = chain.from_iterable(read_log(path) for path in logs)
    shown = tqdm(lines, desc="responses", unit=" lines", delay=2)
    return count(iter(shown), splitter, features=features)


def paired_by_design(logs: Sequence[str | Path]) -> bool:
    """Whether a trial of one arm belongs to the same trial of another: in runs of replay, which
    reuse their random numbers in every arm, and not in files, which do not say."""
    return all(is_run(Path(path)) for path in logs)


def count(
    responses: Iterable[Response], splitter: Splitter, *, features: Sequence[str] = ()
) -> Corpus:
    """Count the words of responses; raises as `read_corpus` does."""
    codes: dict[str, dict[str, int]] = {key: {} for key in KEYS}
    columns = {key: array("i") for key in (*KEYS, "trial")}
    words: dict[str, int] = {}
    starts, places, counts = array("q", [0]), array("i"), array("H")
    wanted, other = set(features), set()
    for one in responses:
        if wanted and one.feature not in wanted:
            other.add(one.feature)
            continue
        for key in KEYS:
            known = codes[key]
            columns[key].append(known.setdefault(getattr(one, key), len(known)))
        columns["trial"].append(one.trial)
        for word, times in splitter.count(one.response).items():
            places.append(words.setdefault(word, len(words)))
            counts.append(min(times, _LARGEST))
        starts.append(len(places))
    lacking = sorted(wanted - set(codes["feature"]))
    if lacking:
        raise LogError(
            f"no responses of {', '.join(lacking)}: the logs have "
            f"{', '.join(sorted([*codes['feature'], *other])[:10]) or 'none'}."
        )
    if len(starts) == 1:
        raise LogError("there are no responses: at least one is needed.")
    ends = _numbers(starts, np.int64)
    if len(places) < 2**31:  # else the places would be widened to match, and copied
        ends = ends.astype(np.int32)
    matrix = sparse.csr_matrix(
        (_numbers(counts, np.uint16), _numbers(places, np.int32), ends),
        shape=(len(ends) - 1, len(words)),
    )
    table = pd.DataFrame(
        {
            key: pd.Categorical.from_codes(
                _numbers(columns[key], np.int32), categories=pd.Index(list(codes[key]), dtype=str)
            )
            for key in KEYS
        }
    )
    table["trial"] = _numbers(columns["trial"], np.int32)
    _check_once(table)
    return Corpus(matrix, tuple(words), table)


def _numbers(values: array[int], kind: Any) -> np.ndarray:
    return np.frombuffer(values, dtype=kind) if len(values) else np.zeros(0, kind)


def _check_once(table: pd.DataFrame) -> None:
    keys = [table[key].cat.codes.to_numpy().astype(np.int64) for key in KEYS]
    keys.append(table["trial"].to_numpy().astype(np.int64))
    code = np.zeros(len(table), np.int64)
    for values in keys:  # one number a different combination so far: never too large
        code = np.unique(code * (int(values.max()) + 1) + values, return_inverse=True)[1]
    seen: Any = pd.Series(code).duplicated().to_numpy()
    if seen.any():
        row = table.iloc[int(np.flatnonzero(seen)[0])]
        prompt = f", prompt {row['prompt']!r}" if row["prompt"] else ""
        raise LogError(
            f"{int(seen.sum())} responses are there twice, the first of them feature "
            f"{row['feature']!r}, condition {row['kind']}:{row['arm']}{prompt}, trial "
            f"{row['trial']}: a response that is counted twice is no second observation, so remove "
            "them. Or are they of several runs of one latent, at different values, modes or "
            "places? A run's feature is the latent alone: compare such runs one at a time."
        )
