"""Candidates: what the evidence of exploration suggests about a latent, at most one of each kind.

For a class of examples it is the one with the largest signed log-likelihood ratio G = sum of
observed log(observed / expected) over the active examples in and outside of it, among classes in
which the latent is active more often than on average: it grows with the enrichment and with how
much of the latent's activity is covered, so that a rare token that stood there once is not chosen.
Nothing here is a test; a candidate that is a fluke fails on other data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from circuits.features import BankError, FeatureBank
from circuits.features.seen import Seen
from circuits.hypotheses.claims import Condition, Hypothesis, HypothesisError, Kind
from circuits.hypotheses.classes import CLASSES, classes_of
from circuits.hypotheses.vectors import VectorEvidence

LEAST_SHARE = 0.05  # of a latent's activity: a class that covers less is not what it means
MOST_OF_ALL = 0.5  # latents that are active on more than this share say nothing by being active


def likelihood_ratio(
    both: Float[np.ndarray, " class"],
    members: Float[np.ndarray, " class"],
    active: float,
    examples: float,
) -> Float[np.ndarray, " class"]:
    """G of each class; 0 where the latent is active no more often than on average, and where the
    class has under a twentieth of its activity."""
    rest, outside = active - both, examples - members
    rate = active / examples
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.where(both > 0, both * np.log(both / (rate * members)), 0.0)
        other = np.where(rest > 0, rest * np.log(rest / (rate * outside)), 0.0)
    good = (members > 0) & (both > rate * members) & (both >= LEAST_SHARE * active)
    return np.where(good, inside + other, 0.0)


def from_bank(
    bank: FeatureBank, latents: Mapping[str, Sequence[int]], texts: Sequence[str]
) -> list[Hypothesis]:
    """Candidates about latents of a language model: a token, the token before, a class of tokens,
    and the token that the decoder row raises most directly.

    texts: of all tokens of the vocabulary, by id. Raises `HypothesisError` for a bank that does not
    know what it has seen.
    """
    seen = known(bank)
    counts = np.zeros(len(texts))
    counts[seen.tokens["token"].to_numpy(int)] = seen.tokens["count"].to_numpy(float)
    kinds = [classes_of(text) for text in texts]
    member = np.array([[name in of for of in kinds] for name in CLASSES], dtype=float)
    found: list[Hypothesis] = []
    for site, some in latents.items():
        for latent in some:
            row = bank.latent(site, latent)
            if row["dead"]:
                continue
            positions = float(bank.record["positions"])
            if row["active"] <= MOST_OF_ALL * positions:
                found += _fires(site, row, texts, counts, member)
            if len(row["raised"]):
                token = Condition("token", _named(texts, int(row["raised"][0])))
                found.append(Hypothesis(site, latent, "raises", token))
    return found


def _fires(
    site: str,
    row: Mapping[str, Any],
    texts: Sequence[str],
    counts: Float[np.ndarray, " token"],
    member: Float[np.ndarray, "class token"],
) -> list[Hypothesis]:
    active, positions, about = float(row["active"]), float(counts.sum()), []
    lists: dict[Kind, tuple[Any, Any]] = {
        "token": (row["at"], row["at_count"]),
        "before": (row["before"], row["before_count"]),
    }
    for kind, (tokens, both) in lists.items():
        ids = np.asarray(tokens, dtype=int)
        # Tokens before are those one position earlier: over a corpus as frequent.
        ratio = likelihood_ratio(np.asarray(both, dtype=float), counts[ids], active, positions)
        if len(ratio) and ratio.max() > 0:
            about.append(Condition(kind, _named(texts, int(ids[int(ratio.argmax())]))))
    # Of the latent's tokens the bank lists the most frequent; the class is judged by those.
    listed = np.asarray(row["at_count"], dtype=float)
    both = member[:, np.asarray(row["at"], dtype=int)] @ listed
    ratio = likelihood_ratio(both, member @ counts, float(listed.sum()), positions)
    if ratio.max() > 0:
        about.append(Condition("class", CLASSES[int(ratio.argmax())]))
    return [Hypothesis(site, int(row["latent"]), "fires_on", one) for one in about]


def _named(texts: Sequence[str], token: int) -> str | int:
    """A token's text; its id where it is no whole text by itself."""
    text = texts[token]
    return token if not text or "\ufffd" in text else text


def from_evidence(
    evidence: VectorEvidence, latents: Sequence[int], *, dose: float = 4.0
) -> list[Hypothesis]:
    """Candidates about latents that read vectors with labels: the label, and the class that adding
    the latent raises most. evidence: data to explore, which no test may use."""
    classes = [Condition("label", name) for name in evidence.classes]
    members = np.stack([evidence.members(c) for c in classes]).astype(float)
    active = evidence.active(evidence.name, latents)
    every = np.arange(len(evidence.places))
    outputs = [evidence.outputs(c) for c in classes]
    found: list[Hypothesis] = []
    for column, latent in enumerate(latents):
        values = active[:, column]
        on = values != 0
        if not on.any():
            continue
        if on.mean() <= MOST_OF_ALL:
            ratio = likelihood_ratio(
                members @ on, members.sum(1), float(on.sum()), float(len(values))
            )
            if ratio.max() > 0:
                about = classes[int(ratio.argmax())]
                found.append(Hypothesis(evidence.name, latent, "fires_on", about))
        change = dose * values.std() * evidence.rows(evidence.name)[latent]
        if not change.any():
            continue
        moved = evidence.effect(evidence.name, change[None], outputs, every)[:, 0].mean(0)
        about = classes[int(moved.argmax())]
        found.append(Hypothesis(evidence.name, latent, "raises", about))
    return found


def known(bank: FeatureBank) -> Seen:
    """What a bank has seen; raises `HypothesisError` where it does not know."""
    if bank.seen is None:
        raise HypothesisError(
            "this bank does not say which documents it has seen, so that none can be said to be "
            "other ones: collect it again with this version (circuits features --heldout 0.1)."
        )
    return bank.seen


def most_active(bank: FeatureBank, sites: Sequence[str], number: int) -> dict[str, list[int]]:
    """The latents that are active most often at some sites, by site; those that are active on more
    than half of all positions are left out.

    Raises `BankError` where the bank has none of them.
    """
    table: Any = bank.latents
    here = table[table["site"].isin(list(sites)) & ~table["dead"] & (table["rate"] <= MOST_OF_ALL)]
    if here.empty:
        raise BankError(f"the bank has no active latents at {', '.join(sites)}.")
    few = here.sort_values("active", ascending=False, kind="stable").head(number)
    found: dict[str, list[int]] = {}
    for site, latent in zip(few["site"], few["latent"], strict=True):
        found.setdefault(str(site), []).append(int(latent))
    return found
