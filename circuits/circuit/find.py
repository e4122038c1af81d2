"""From prompts to a circuit, and to what it is worth.

1. draw pairs to find it on, and others to judge it on (sets.py);
2. attribute the metric to latents and errors (`circuits.attribute`), rank them (candidates.py);
3. choose a size: a count, a threshold on effects, or the smallest that reaches a faithfulness on
   the pairs it is found on;
4. judge the whole ladder of sizes and the circuit on the other pairs (judge.py);
5. draw the edges between its strongest nodes, and measure what each of them, and the edges, are
   worth.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from circuits.attribute import Attribution, attribute
from circuits.circuit.build import build
from circuits.circuit.candidates import SIZES, Candidates
from circuits.circuit.judge import Judge
from circuits.circuit.plan import DRAWN, Plan, choose_size, make_plan
from circuits.circuit.references import REFERENCES, CircuitError
from circuits.circuit.result import CircuitResult
from circuits.circuit.sets import FOUND, UNSEEN, Sets, make_sets, select
from circuits.edges import edge_attribution
from circuits.metrics import find_metric
from circuits.models.hooked import HookedModel
from circuits.patch.ability import baselines
from circuits.patch.draw import draw, thinks
from circuits.prompts import PromptPairs
from circuits.runs import SIGN_CONVENTION, Parts, versions
from circuits.saes import SaeSet
from circuits.sites import Site, forward_order
from circuits.task import Task

_SCORES = 1  # raised when scores are computed in another way: old parts are not mixed with new


def circuit(
    model: HookedModel,
    prompts: Task | PromptPairs,
    *,
    saes: SaeSet,
    sites: Sequence[Site] | None = None,
    attribution: Attribution | None = None,
    pairs: PromptPairs | None = None,
    evaluate_on: PromptPairs | None = None,
    method: str = "atp",
    metric: str = "logit_difference",
    size: int | None = None,
    threshold: float | None = None,
    reach: float | None = None,
    by: str = "corrupted",
    summed: bool = False,
    sizes: Sequence[float] = SIZES,
    references: Sequence[str] = REFERENCES,
    drawn: int = DRAWN,
    contrast: str | None = None,
    n_pairs: int = 12,
    n_eval: int = 32,
    split: Literal["explored", "held_out"] = "explored",
    seed: int = 0,
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    force: bool = False,
    progress: bool = True,
    keep_parts: Path | None = None,
) -> CircuitResult:
    """Find the circuit of a contrast among SAE latents and errors, and judge it on other pairs.

    prompts, pairs, contrast, n_pairs, seed, prepend_bos: the pairs it is found on, as in
        `circuits.patch.patch`. n_eval: on how many other pairs it is judged, of the explored and as
        many held-out ones. evaluate_on: these instead. Pairs of one's own are split
        into two halves.
    saes, sites: whose latents and errors the nodes are; each site is cut into all of its nodes.
    attribution: effects found before, whose pairs are then those it is found on; by default
        `attribute` with `method` ("atp", "ig", "exact") is run.
    size, threshold, reach: the circuit has so many nodes, or those with effects of at least this
        size, or as few as reach this faithfulness on the pairs it is found on (default .8).
    by: the reference that sizes are chosen with, and removals and edges are measured with.
    summed: nodes stand for a latent or error at all positions; otherwise for one position, and in
        prompts of other templates for the position of the same name.
    sizes: of the ladder, shares of all nodes with an effect; 1 is everything there is.
    references: what nodes outside of the circuit are set to; see `circuits.circuit.references`.
    drawn: the strongest so many nodes get edges between them and a cost of removal.
    keep_parts: as in `circuits.attribute.attribute`.

    Raises before any pass: `CircuitError`, `AttributionError`, `SiteError`, `MetricError`,
    `PromptError`, `TaskError`; `CannotDo` when the model does not separate the prompts.
    """
    started = time.perf_counter()
    plan = make_plan(
        sizes=sizes,
        references=references,
        by=by,
        size=size,
        threshold=threshold,
        reach=reach,
        drawn=drawn,
        n_eval=n_eval,
    )
    metric_name, function = find_metric(metric)
    forward_order(sites or saes)  # two SAEs of one tensor are refused before any work
    if attribution is not None:
        _check_attribution(attribution, model, saes, metric_name)
        pairs = attribution.prompts
        sites = [Site.parse(name) for name in attribution.record["sites"]]
        contrast = attribution.record.get("contrast")
        prompts = pairs if isinstance(prompts, PromptPairs) else prompts
        if isinstance(prompts, PromptPairs) and evaluate_on is None:
            raise CircuitError(
                "the attribution used all of its pairs, so a circuit of it is judged on others: "
                "give evaluate_on."
            )
    drawing: dict[str, Any] = {"contrast": contrast, "seed": seed, "prepend_bos": prepend_bos}
    given = draw(
        model,
        prompts,
        None if isinstance(prompts, PromptPairs) else pairs,
        "circuits",
        n_pairs=n_pairs,
        split=split,
        **drawing,
    )
    if attribution is not None and attribution.record["task"] != given.name:
        raise CircuitError(
            f"the attribution is of {attribution.record['task']}, not of {given.name}: give that "
            "task."
        )
    with given.on(model):
        _check_thoughts(thinks(model, given.pairs), attribution, plan, summed)
        sets = make_sets(
            model, given, n_eval=n_eval, seed=seed, evaluate_on=evaluate_on, prepend_bos=prepend_bos
        )
        found = attribution or attribute(
            model,
            prompts if given.task else sets.found,
            saes=saes,
            sites=sites,
            pairs=sets.found if given.task else None,
            method=method,
            metric=metric,
            contrast=given.contrast,
            audit_pairs=0,
            batch_size=batch_size,
            force=force,
            progress=progress,
            keep_parts=keep_parts,
        )
        candidates = Candidates.of(found, summed=summed)
        keep = None
        if keep_parts is not None and given.comparable(model):
            options = (plan, metric_name, method, summed, seed, n_eval)
            keep = Parts(keep_parts, _identity(model, found, sets, options))
        judge = Judge(
            model, saes, candidates, plan.references, function, batch_size, progress, keep
        )
        aligned = _aligned(sets.found, candidates)
        count, why = choose_size(plan, judge, aligned)
        n_drawn = min(plan.drawn, count)
        record = _first_record(found, candidates, plan, count, why, seed)
        record |= {"summed": summed, "missing": sets.missing}
        tables = [judge.ladder(FOUND, aligned, plan.sizes, count, 0)]
        record["sets"] = {FOUND: _set_record(judge, aligned, count)}
        for number, (name, those) in enumerate(sets.judged.items(), start=1):
            tables.append(judge.ladder(name, those, plan.sizes, count, number))
            record["sets"][name] = _set_record(judge, those, count)
        brief = {key: value for key, value in record.items() if key not in _NOT_IN_CIRCUIT}
        brief["attribution"] = found.record["attribution"]
        made = build(candidates, aligned, count, brief)
        unseen = sets.judged[UNSEEN]
        if n_drawn:
            tables.append(judge.removals(unseen, count, n_drawn, plan.by, 3))
            nodes = [one.node for one in made.nodes[:n_drawn]]
            edges = edge_attribution(
                model,
                saes.at(candidates.table.sites),
                sets.found if summed else aligned,
                nodes,
                nodes,
                direction=found.record["direction"],
                metric=metric,
                progress=progress,
            )
            made = replace(made, edges=edges.between(nodes))
            record["edges"] = _edge_record(edges)
            tables.append(judge.edges(unseen, made.strongest(n_drawn), plan.by, 4))
        record["seconds"] = time.perf_counter() - started
        scores = pd.concat(tables, ignore_index=True)
        result = CircuitResult(scores, sets.found, record, made, keep, found)
        return result.with_removals() if n_drawn else result


# What a circuit's file does not repeat of its run.
_NOT_IN_CIRCUIT = (
    "sets",
    "logit_difference_clean",
    "logit_difference_corrupted",
    "metric_clean",
    "metric_corrupted",
)
_FROM_ATTRIBUTION = (
    "task",
    "contrast",
    "model",
    "model_sha256",
    "dtype",
    "device",
    "saes",
    "saes_keep",
    "metric",
    "direction",
    "thoughts",
    "forced",
    "ability",
    "logit_difference_clean",
    "logit_difference_corrupted",
    "metric_clean",
    "metric_corrupted",
)


def _check_thoughts(
    how: str | None, attribution: Attribution | None, plan: Plan, summed: bool
) -> None:
    if attribution is not None and attribution.record.get("thoughts") != how:
        raise CircuitError(
            f"the attribution was made with thoughts {attribution.record.get('thoughts')}, now "
            f"they are {how}."
        )
    if plan.drawn and summed and how == "rerolled":
        raise CircuitError(
            "through thoughts that are made while the model runs, nodes act on later positions of "
            "their own site, so nodes that stand for all positions get no edges: find the circuit "
            'with positions, hold the thoughts with `model.thinking("frozen")` (--thoughts frozen),'
            " or ask for no edges (drawn=0)."
        )


def _first_record(
    found: Attribution, candidates: Candidates, plan: Plan, count: int, why: str, seed: int
) -> dict[str, Any]:
    """What is known when the circuit has been chosen."""
    return {
        **{key: found.record[key] for key in _FROM_ATTRIBUTION if key in found.record},
        "method": "circuit",
        "sites": [str(site) for site in candidates.table.sites],
        "attribution": {k: found.record.get(k) for k in ("attribution", "steps_used", "seconds")},
        "references": list(plan.references),
        "by": plan.by,
        "sizes": list(plan.sizes),
        "nodes_seen": len(candidates),
        "errors_seen": int((candidates.table.role == 1).sum()),
        "nodes": count,
        "drawn": min(plan.drawn, count),
        "chosen": why,
        "stability": candidates.stability(count, seed),
        "seed": seed,
        "sign_convention": SIGN_CONVENTION,
        "versions": versions(),
    }


def _check_attribution(
    found: Attribution, model: HookedModel, saes: SaeSet, metric_name: str
) -> None:
    """Raise `CircuitError` for effects of another model, of other SAEs or of another metric."""
    record = found.record
    problem = None
    if record.get("model_sha256") != model.sha256 or record.get("model") != model.name:
        problem = f"was made with the model {record.get('model')}, this is {model.name}"
    elif not record.get("saes"):
        problem = "was made without SAEs"
    elif record.get("errors") == "removed":
        problem = "is of the model without the SAEs' errors"
    elif record.get("metric") != metric_name:
        problem = f"is of {record.get('metric')}, not of {metric_name}"
    else:
        for one in record["saes"]:
            site = Site.parse(one["site"])
            if site not in saes.sources or saes.describe(site)["sha256"] != one["sha256"]:
                problem = f"has effects at {site} of an SAE that is not given here"
    if problem:
        raise CircuitError(f"the attribution {problem}: make it again, or leave it out.")


def _aligned(pairs: PromptPairs, candidates: Candidates) -> PromptPairs:
    """The pairs that effects are means over."""
    return select(pairs, candidates.pairs)


def _set_record(judge: Judge, pairs: PromptPairs, count: int) -> dict[str, Any]:
    """The pairs of a set, their metric, and how much of the circuit has a place in them."""
    base = baselines(judge.model, pairs, judge.metric)
    places = judge.candidates.places
    record = pairs.as_record()
    same = [places.summed or places.same(pairs, i) for i in range(len(pairs))]
    return {
        "pairs": record,
        "metric_clean": base.clean_metric.tolist(),
        "metric_corrupted": base.corrupted_metric.tolist(),
        "same_template": float(np.mean(same)),
        "carried": places.carried(judge.candidates.table.position[:count], pairs),
    }


def _edge_record(edges: Any) -> dict[str, Any]:
    """What a run keeps of its edges beside their weights."""
    return {
        **edges.record,
        "closed": edges.closed.to_dict("records"),
        "incoming": edges.incoming.to_dict("records"),
        "outside": edges.outside.to_dict("records"),
    }


def _identity(
    model: HookedModel, found: Attribution, sets: Sets, options: tuple[Any, ...]
) -> dict[str, Any]:
    """Everything that the scores depend on."""
    judged = {
        name: [pairs.clean_tokens, pairs.corrupted_tokens] for name, pairs in sets.judged.items()
    }
    return {
        "circuit": _SCORES,
        "options": [str(option) for option in options],
        "model": [model.name, model.sha256, str(model.dtype), str(model.device)],
        "saes": found.record["saes"],
        "found": [sets.found.clean_tokens, sets.found.corrupted_tokens],
        "effects": float(np.abs(found.scores["effect"].to_numpy()).sum()),
        "judged": judged,
        "thoughts": found.record.get("thoughts"),
        "versions": versions(),
    }
