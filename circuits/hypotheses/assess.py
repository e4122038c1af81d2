"""Every hypothesis of a run against held-out data, with verdicts.

`fires_on` holds when the 95% interval of its enrichment over all examples lies at the threshold or
above, and (of text) the enrichment inside documents does; `raises` and `lowers` when the 95%
interval of the mean effect lies beyond the threshold; and each only when its false discovery rate q
(Benjamini and Hochberg 1995), over all hypotheses of the run that have enough data, is at most
`level`. Whether there is enough data is decided by counts of examples, active ones and members, and
never by how many are both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
from tqdm import tqdm

from circuits.hypotheses.claims import Hypothesis, HypothesisError
from circuits.hypotheses.effects import FEWEST_GROUPS, Target, change_of, effects
from circuits.hypotheses.enrichment import enrichment
from circuits.hypotheses.evidence import Evidence, require_disjoint
from circuits.hypotheses.result import HypothesesResult
from circuits.runs import versions

Verdict = Literal["holds", "fails", "not enough data"]


@dataclass(frozen=True)
class Rules:
    """How hypotheses are tested: fixed before the data are seen.

    enrichment: least enrichment of `fires_on`. level: largest q. min_active, min_members: least
    examples that are active, and that are in the class. min_groups: least documents or images in
    which there is something to compare, or into which latents are added.
    dose: in standard deviations of a latent. controls, quantile: of the threshold for effects
    (effects.py). effect: a threshold of one's own instead, logits.
    """

    enrichment: float = 3.0
    level: float = 0.05
    min_active: int = 20
    min_members: int = 5
    min_groups: int = 5
    dose: float = 4.0
    controls: int = 39
    quantile: float = 0.95
    effect: float | None = None

    def __post_init__(self) -> None:
        wrong = [
            text
            for good, text in (
                (self.enrichment >= 1, "the enrichment must be 1 or more"),
                (0 < self.level < 1, "the level must lie between 0 and 1"),
                (self.min_active >= 1, "at least one active example is needed"),
                (self.min_members >= 1, "at least one example of the class is needed"),
                (self.min_groups >= 2, "at least two groups are needed"),
                (0 < self.dose < float("inf"), "the dose must be positive"),
                (0 < self.quantile < 1, "the quantile must lie between 0 and 1"),
                (
                    self.quantile * (self.controls + 1) <= self.controls + 1e-9,
                    f"{self.controls} controls cannot tell the quantile {self.quantile}",
                ),
                (self.effect is None or 0 <= self.effect < float("inf"), "effects count from 0"),
            )
            if not good
        ]
        if wrong:
            raise HypothesisError(f"{'; '.join(wrong)}.")


def assess(
    hypotheses: Sequence[Hypothesis],
    evidence: Evidence,
    explored: Iterable[str],
    rules: Rules | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> HypothesesResult:
    """Test hypotheses on `evidence`.

    explored: names of the documents or images that they were made from (`Evidence.ids`,
        `Seen.digests`); none of them may be in `evidence`.

    Raises `HypothesisError` for shared data, for no hypotheses, and for statements about a site,
    latent, label, token or class that the data do not have.
    """
    explored = frozenset(explored)
    require_disjoint(explored, evidence)
    rules = rules or Rules()
    unique = _unique(hypotheses)
    if not unique:
        raise HypothesisError("there is no hypothesis to test.")
    for one in unique:  # what cannot be tested is said before anything is computed
        evidence.active(one.site, [one.latent])
        (evidence.members if one.claim == "fires_on" else evidence.outputs)(one.about)
    found: dict[Hypothesis, dict[str, Any]] = {}
    with tqdm(total=len(unique), desc="testing", unit="hypothesis", disable=not progress) as bar:
        for one in unique:
            if one.claim == "fires_on":
                found[one] = _fires(one, evidence, rules, seed)
                bar.update()
        for site, latent in dict.fromkeys((h.site, h.latent) for h in unique):
            mine = [
                h for h in unique if (h.site, h.latent) == (site, latent) and h.claim != "fires_on"
            ]
            if mine:
                found |= _moves(mine, evidence, rules, seed)
                bar.update(len(mine))
    table = pd.DataFrame([{**_named(one), **found[one]} for one in unique])
    table["q"] = false_discoveries(table["p"].to_numpy(float))
    judged = [_verdict(row, rules) for row in table.to_dict("records")]
    table["verdict"], table["reason"] = [v for v, _ in judged], [r for _, r in judged]
    record = {
        "method": "hypotheses",
        "evidence": evidence.describe(),
        "explored": len(explored),
        "rules": asdict(rules),
        "seed": seed,
        "sign_convention": SIGN,
        "versions": versions(),
    }
    return HypothesesResult(table, record)


SIGN = (
    "enrichment above 1: active more often in the class than outside; effect above 0: the latent "
    "raises the target's logit against the mean of all logits"
)


def false_discoveries(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's q of those that have a p; NaN for the others."""
    q = np.full(len(p), np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q


def _unique(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Each statement once; a person's goes before one made from evidence."""
    found: dict[tuple[Any, ...], Hypothesis] = {}
    for one in sorted(hypotheses, key=lambda h: h.origin != "person"):
        found.setdefault((one.site, one.latent, one.claim, one.about), one)
    return sorted(found.values(), key=lambda h: (h.origin != "person", h.claim != "fires_on"))


def _named(one: Hypothesis) -> dict[str, Any]:
    return {
        "site": one.site,
        "latent": one.latent,
        "claim": one.claim,
        "kind": one.about.kind,
        "about": str(one.about.value),
        "statement": one.statement,
        "origin": one.origin,
        "note": one.note,
    }


_NOTHING = float("nan")
_FIGURES = ("value", "low", "high", "within", "recall", "precision", "rate_outside", "p")


def _fires(one: Hypothesis, evidence: Evidence, rules: Rules, seed: int) -> dict[str, Any]:
    active = evidence.active(one.site, [one.latent])[:, 0] != 0
    got = enrichment(active, evidence.members(one.about), evidence.groups, seed=seed)
    lacking = [
        f"{what} {number} of {least}"
        for number, least, what in (
            (got.active, rules.min_active, "active examples:"),
            (got.members, rules.min_members, "examples of the class:"),
            (got.examples - got.members, rules.min_members, "examples outside the class:"),
            (got.groups, rules.min_groups, f"{_groups(evidence)} that can tell:"),
        )
        if number < least
    ]
    return {
        "threshold": rules.enrichment if one.threshold is None else one.threshold,
        **{name: getattr(got, name) for name in _FIGURES[:-1]},
        "p": _NOTHING if lacking else got.p,
        "examples": got.examples,
        "active": got.active,
        "members": got.members,
        "both": got.both,
        "groups": got.groups,
        "lacking": "; ".join(lacking),
    }


def _groups(evidence: Evidence) -> str:
    return "documents" if evidence.kind == "text" else "images"


def _moves(
    mine: Sequence[Hypothesis], evidence: Evidence, rules: Rules, seed: int
) -> dict[Hypothesis, dict[str, Any]]:
    """The effects of one latent."""
    first = mine[0]
    active = evidence.active(first.site, [first.latent])[:, 0] != 0
    counts = {"examples": len(active), "active": int(active.sum())}
    lacking = ""
    groups = len(np.unique(evidence.places))
    if counts["active"] < rules.min_active:
        lacking = f"active examples: {counts['active']} of {rules.min_active}"
    elif not change_of(evidence, first.site, first.latent, rules.dose).any():
        lacking = "no dose: it is always equally active, or its decoder row is 0"
    elif groups < FEWEST_GROUPS:
        lacking = f"{_groups(evidence)} that it can be added in: {groups} of {FEWEST_GROUPS}"
    if lacking:
        nothing = {**dict.fromkeys(_FIGURES, _NOTHING), **counts, "groups": 0, "lacking": lacking}
        fixed = {h: rules.effect if h.threshold is None else h.threshold for h in mine}
        return {h: {**nothing, "threshold": _NOTHING if t is None else t} for h, t in fixed.items()}
    targets = [
        Target(
            h.about,
            1 if h.claim == "raises" else -1,
            rules.effect if h.threshold is None else h.threshold,
            chosen=h.origin == "evidence",
        )
        for h in mine
    ]
    got = effects(
        evidence,
        first.site,
        first.latent,
        targets,
        dose=rules.dose,
        controls=rules.controls,
        quantile=rules.quantile,
        seed=seed,
    )
    found = {}
    for one, effect in zip(mine, got, strict=True):
        few = effect.groups < rules.min_groups
        lacking = f"{_groups(evidence)}: {effect.groups} of {rules.min_groups}"
        found[one] = {
            "threshold": effect.threshold,
            "value": effect.value,
            "low": effect.low,
            "high": effect.high,
            "p": _NOTHING if few else effect.p,
            **counts,
            "groups": effect.groups,
            "change": effect.change,
            "lacking": lacking if few else "",
        }
    return found


def _verdict(row: dict[str, Any], rules: Rules) -> tuple[Verdict, str]:
    """A verdict and what decided it."""
    if row["lacking"]:
        return "not enough data", str(row["lacking"])
    short = []
    bound = row["threshold"]
    if row["claim"] == "fires_on":
        for name, what in (("value", "enrichment"), ("within", "enrichment inside documents")):
            # Without an enrichment inside groups there is nothing to compare.
            if row[name] < bound:
                short.append(f"{what} {row[name]:.3g} under {bound:.3g}")
        if row["value"] >= bound and not row["low"] >= bound:
            short.append(f"interval from {row['low']:.3g}, under {bound:.3g}")
    elif row["claim"] == "raises" and not row["low"] > bound:
        short.append(f"interval from {row['low']:+.3g}, not above {bound:+.3g}")
    elif row["claim"] == "lowers" and not row["high"] < -bound:
        short.append(f"interval up to {row['high']:+.3g}, not below {-bound:+.3g}")
    if not row["q"] <= rules.level:
        short.append(f"q {row['q']:.2g} above {rules.level:g}")
    return ("fails", "; ".join(short)) if short else ("holds", f"q {row['q']:.1g}")
