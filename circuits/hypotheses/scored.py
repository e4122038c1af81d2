"""Descriptions in words, from an endpoint, and what they are worth.

A description is made from the strongest examples of exploration. It is scored on held-out examples,
as many active as not, in an order drawn by seed: the endpoint is given the description and one
example, and says from 0 to 100 how surely the latent is active there. The area under the ROC curve
(and the balanced accuracy at 50) has a 95% interval from groups drawn with replacement; a
description whose AUC interval reaches down to one half is at chance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from circuits.features import FeatureBank
from circuits.hypotheses.endpoint import Endpoint, EndpointError
from circuits.hypotheses.enrichment import RESAMPLES
from circuits.hypotheses.evidence import Evidence
from circuits.hypotheses.result import DESCRIBED
from circuits.hypotheses.text import marked
from circuits.hypotheses.vectors import VectorEvidence
from circuits.metrics import bootstrap_weights

_SHOWN = 10  # examples that a description is made from
_ALL_ONE_SENTENCE = 400  # characters
_DESCRIBE = (
    "You look at one unit of a neural network and at the examples on which it is most active. "
    "Say in one short sentence what these have in common. Answer with that sentence only."
)
_JUDGE = (
    "You are given a description of what a unit of a neural network is active on, and one example. "
    "Answer with one number from 0 (surely not active) to 100 (surely active), and nothing else."
)
_WHERE = {
    "text": "The token in question stands between << and >>.",
    "vectors": "Images are given by their label, and as characters where they are known.",
}
Latent = tuple[str, int]


def strongest_in_bank(bank: FeatureBank, site: str, latent: int) -> list[str]:
    """The strongest examples that a bank of text has of a latent."""
    card = bank.card(site, latent)
    peak = int(bank.record["window"][0])
    found = []
    for example in card.examples[:_SHOWN]:
        ids = [int(t) for t in example["tokens"]]
        texts = [bank.vocabulary[t] if t >= 0 else "" for t in ids]
        found.append(marked(texts, peak))
    return found


def strongest_in(evidence: Evidence, site: str, latent: int) -> list[str]:
    """The strongest examples in data that are explored, at most one a group."""
    values = evidence.active(site, [latent])[:, 0]
    taken: dict[int, int] = {}
    for i in np.argsort(-values, kind="stable"):
        if values[i] <= 0 or len(taken) == _SHOWN:
            break
        taken.setdefault(int(evidence.groups[i]), int(i))
    return [evidence.shown(i) for i in taken.values()]


def describe_latents(
    endpoint: Endpoint,
    evidence: Evidence,
    strongest: Mapping[Latent, Sequence[str]],
    *,
    examples: int = 40,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask for a description of each latent and score it; see `HypothesesResult.descriptions`.

    strongest: examples of exploration, by site and latent. examples: held-out ones that are judged,
        half of them active; fewer where there are fewer.

    Raises `EndpointError` when the endpoint gives no answers, or none that are numbers.
    """
    rows = []
    total = len(strongest) * (examples + 1)
    with tqdm(total=total, desc="describing", unit="question", disable=not progress) as bar:
        for (site, latent), shown in strongest.items():
            values = evidence.active(site, [latent])[:, 0]
            chosen = balanced(values != 0, evidence.groups, examples, seed)
            row: dict[str, Any] = {"site": site, "latent": latent, "examples": len(chosen)}
            if not shown or len(chosen) < 8:
                rows.append({**row, "description": "", "verdict": "not enough data"})
                bar.update(examples + 1)
                continue
            text = _describe(endpoint, evidence.kind, shown)
            bar.update()
            scores = []
            for i in chosen:
                scores.append(_judge(endpoint, evidence.kind, text, evidence.shown(int(i))))
                bar.update()
            bar.update(examples - len(chosen))
            figures = score(np.array(scores), values[chosen] != 0, evidence.groups[chosen], seed)
            rows.append({**row, "description": text, **figures})
    return pd.DataFrame(rows, columns=pd.Index(DESCRIBED))


def balanced(
    active: Bool[np.ndarray, " example"],
    groups: Int[np.ndarray, " example"],
    examples: int,
    seed: int,
) -> Int[np.ndarray, " some"]:
    """Numbers of examples, half active and half not, in a random order; of as many groups as there
    are."""
    draw = np.random.default_rng(seed)
    halves = []
    for which in (active, ~active):
        order = draw.permutation(np.flatnonzero(which))
        turn: dict[int, int] = {}
        keyed = []
        for n, i in enumerate(order.tolist()):
            group = int(groups[i])
            turn[group] = turn.get(group, -1) + 1
            keyed.append((turn[group], n, i))
        halves.append([i for *_, i in sorted(keyed)])
    size = min(examples // 2, *(len(half) for half in halves))
    return draw.permutation(np.array(halves[0][:size] + halves[1][:size], dtype=np.int64))


def _describe(endpoint: Endpoint, kind: str, shown: Sequence[str]) -> str:
    listed = "\n\n".join(f"Example {i}:\n{text}" for i, text in enumerate(shown, 1))
    answer = endpoint.ask(_DESCRIBE, f"{_WHERE[kind]}\n\n{listed}")
    return " ".join(answer.split())[:_ALL_ONE_SENTENCE]


def _judge(endpoint: Endpoint, kind: str, description: str, example: str) -> float:
    """0 to 1."""
    question = f"Description: {description}\n\n{_WHERE[kind]}\n\nExample:\n{example}"
    answer = endpoint.ask(_JUDGE, question, tokens=20)
    number = re.search(r"\d+(\.\d+)?", answer)
    if number is None or not 0 <= float(number[0]) <= 100:
        raise EndpointError(
            f"asked for a number from 0 to 100, {endpoint.model} answered {answer[:80]!r}: try "
            "another model."
        )
    return float(number[0]) / 100


def score(
    said: Float[np.ndarray, " example"],
    active: Bool[np.ndarray, " example"],
    groups: Int[np.ndarray, " example"],
    seed: int,
) -> dict[str, Any]:
    """AUC and balanced accuracy (50 counts as half right) with intervals, and the verdict."""
    codes = np.unique(groups, return_inverse=True)[1]
    drawn = bootstrap_weights(int(codes.max()) + 1, RESAMPLES, seed)[:, codes]
    weights = np.concatenate([np.ones((1, len(said))), drawn])
    up, down = weights[:, active], weights[:, ~active]
    wins = np.sign(said[active][:, None] - said[~active]) / 2 + 0.5
    right = np.sign(np.where(active, 1, -1) * (said - 0.5)) / 2 + 0.5
    with np.errstate(invalid="ignore"):
        auc = ((up @ wins) * down).sum(1) / (up.sum(1) * down.sum(1))
        halves = [(w * right[k]).sum(1) / w.sum(1) for w, k in ((up, active), (down, ~active))]
    accuracy = (halves[0] + halves[1]) / 2
    found: dict[str, Any] = {}
    for name, values in (("accuracy", accuracy), ("auc", auc)):
        low, high = np.nanquantile(values[1:], [0.025, 0.975])
        found |= {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    verdict = "predicts" if found["auc_low"] > 0.5 else "at chance"
    return {**found, "verdict": "worse than chance" if found["auc_high"] < 0.5 else verdict}


def strongest_of(
    source: FeatureBank | VectorEvidence, latents: Sequence[Latent]
) -> dict[Latent, list[str]]:
    """The strongest examples of each latent, in a bank or in explored vectors."""
    if isinstance(source, FeatureBank):
        return {(site, k): strongest_in_bank(source, site, k) for site, k in latents}
    return {(site, k): strongest_in(source, site, k) for site, k in latents}
