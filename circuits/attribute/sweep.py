"""Attribution of the metric to nodes at sites and positions.

For each batch of pairs, with the base run the one that is patched (corrupted when denoising):

1. run the other prompts once and keep the sites' activations; run the base prompts once forward and
   once backward: values and gradients at all sites;
2. at each site split both activations into nodes (nodes.py) and give each node (scores.py)
   `atp`: <clean write - corrupted write, gradient of the base run> (attribution patching, Nanda
   2023; with SAEs Marks et al. 2024);
   `ig`: the same with the gradient averaged over the path between the runs (gradients.py), at as
   many points as it takes for the effects of a site to add up to that of patching it whole;
   `exact`: the metric with the node itself patched, less the base run's (exact.py).

Effects are positive toward clean: m(patched) - m(corrupted) when denoising, m(clean) - m(patched)
when noising, so that a node's effect has the same sign in both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from tqdm import tqdm

from circuits.attribute.audit import audit
from circuits.attribute.batch import Sources
from circuits.attribute.plan import (
    STEPS,
    TOLERANCE,
    Plan,
    choose_sources,
    make_plan,
)
from circuits.attribute.result import Attribution
from circuits.attribute.scores import scores_of
from circuits.metrics import Metric, check_metric
from circuits.models.hooked import HookedModel
from circuits.models.unembed import unembedding
from circuits.patch.ability import assess, baselines, in_halves
from circuits.patch.draw import draw, thinks
from circuits.prompts import PromptPairs
from circuits.runs import SIGN_CONVENTION, Parts, versions
from circuits.saes import SaeSet, contrast_kept
from circuits.saes.quality import reconstruct
from circuits.sites import Site
from circuits.task import Task

_SCORES = 1  # raised when scores are computed in another way: old parts are not mixed with new
_PAIRS_AT_ONCE = 8
_PAIRS_AT_ONCE_EXACT = 2  # each of them takes long


def attribute(
    model: HookedModel,
    prompts: Task | PromptPairs,
    *,
    saes: SaeSet | None = None,
    sites: Sequence[Site] | None = None,
    errors: str = "kept",
    pairs: PromptPairs | None = None,
    method: str = "atp",
    steps: int = STEPS,
    tolerance: float | int = TOLERANCE,
    direction: str = "denoising",
    metric: str | Metric = "logit_difference",
    contrast: str | None = None,
    n_pairs: int = 12,
    split: Literal["explored", "held_out"] = "explored",
    seed: int = 0,
    prepend_bos: bool | None = None,
    audit_pairs: int = 8,
    audit_nodes: int = 20,
    batch_size: int | None = None,
    force: bool = False,
    progress: bool = True,
    keep_parts: Path | None = None,
) -> Attribution:
    """The effect of every node, for every pair, site and position.

    prompts, pairs, contrast, n_pairs, split, seed, prepend_bos: as in `circuits.patch.patch`.
    saes: their latents, errors and offsets are the nodes, at their sites. Without them `sites` are
        attributed to as wholes (heads at `z`); by default heads, attention and MLP outputs of all
        layers.
    errors: "kept", or "removed" for the model in which the SAEs' reconstructions stand in place of
        the activations, all at once: the same effects without an error term, so that what the
        errors carry can be seen. Effects are then those on that model's metric, and shares are of
        the plain model's gap all the same.
    method: "atp", "ig" with `steps` points of a Gauss-Legendre rule, or "exact".
    tolerance: where the effects of a site miss the exact effect of the whole site by more than this
        share of the largest one (mean over a batch of pairs), integrated gradients are taken again
        with twice the points, up to 80; 0 for the given points alone. What was used stands in the
        scores (`method`, such as "ig-10") and in `record["steps_used"]`.
    audit_pairs, audit_nodes: the strongest nodes, and as many random others, are checked on so many
        pairs against exact interventions; 0 pairs for no audit.
    batch_size: most patched runs at once; by default what fits into memory.
    keep_parts: a folder in which finished pairs are kept while it runs, so that the same call goes
        on after an interruption; not for a metric of one's own. They go when the result is saved.

    Raises before any pass: `AttributionError`, `SiteError`, `MetricError`, `PromptError`; and
    `CannotDo` when the model does not separate the prompts (unless `force`).
    """
    started = time.perf_counter()
    plan = make_plan(
        method, steps, tolerance, direction, metric, batch_size, audit_pairs, audit_nodes
    )
    sources = choose_sources(model, saes, sites, errors)
    if callable(metric):
        vocab = unembedding(model).shape[1]
        trial = torch.zeros(2, vocab, device=model.device, dtype=model.dtype)
        check_metric(metric, trial, differentiated=plan.method != "exact")
    given = draw(
        model,
        prompts,
        pairs,
        "attribution",
        contrast=contrast,
        n_pairs=n_pairs,
        split=split,
        seed=seed,
        prepend_bos=prepend_bos,
    )
    with given.on(model):
        base = baselines(model, given.pairs, plan.metric)
        ability = assess(base.clean_ld, base.corrupted_ld)
        if not force:
            given.require_ability(model, ability, "Attributing it")
        # First, because digests of a release's weights are known once they are loaded.
        kept = None
        if saes is not None:
            kept = contrast_kept(
                model, saes, given.pairs, base.clean_ld - base.corrupted_ld, sources.sites
            )
        record: dict[str, Any] = {
            "method": "attribute",
            "attribution": plan.method,
            "steps": plan.steps if plan.method == "ig" else None,
            "tolerance": plan.tolerance if plan.method == "ig" else None,
            "task": given.name,
            "contrast": given.contrast,
            "model": model.name,
            "model_sha256": model.sha256,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "sites": [str(site) for site in sources.sites],
            "saes": None if saes is None else [saes.describe(site) for site in sources.sites],
            "errors": errors if saes is not None else None,
            "saes_keep": kept,
            "direction": plan.direction,
            "metric": plan.metric_name,
            "thoughts": thinks(model, given.pairs),
            "split": given.split,
            "seed": given.seed,
            "sign_convention": SIGN_CONVENTION,
            "forced": bool(ability.problem),
            "ability": ability.problem or "can do",
            "metric_clean": base.clean_metric.tolist(),
            "metric_corrupted": base.corrupted_metric.tolist(),
            "logit_difference_clean": base.clean_ld.tolist(),
            "logit_difference_corrupted": base.corrupted_ld.tolist(),
            "versions": versions(),
        }
        with _model_of(model, sources):
            parts = None
            if keep_parts is not None and not callable(metric) and given.comparable(model):
                parts = Parts(keep_parts, _identity(model, sources, plan, given.pairs))
            scores = _scores(model, sources, plan, given.pairs, parts, progress)
            record["steps_used"] = _steps_used(scores) if plan.method == "ig" else None
            found = Attribution(scores, given.pairs, record, parts)
            if plan.audit_pairs:
                record["audit"] = audit(model, sources, plan, found, progress=progress)
                record["audit"]["error_share"] = found.error_share().to_dict("records")
        record["seconds"] = time.perf_counter() - started
        return found


def _model_of(model: HookedModel, sources: Sources) -> AbstractContextManager[None]:
    """The model that effects are of: itself, or with reconstructions in place of activations."""
    if sources.errors or sources.saes is None:
        return nullcontext()
    return model.edited({site: reconstruct(sources.saes, site) for site in sources.sites})


def _steps_used(scores: Any) -> dict[str, int]:
    """The most points used at each site."""
    steps = scores["method"].astype(str).str.removeprefix("ig-").astype(int)
    most = steps.groupby(scores["site"], observed=True).max()
    return {str(site): int(count) for site, count in most.items()}


def _identity(
    model: HookedModel, sources: Sources, plan: Plan, pairs: PromptPairs
) -> dict[str, Any]:
    """Everything that the scores depend on."""
    saes = sources.saes
    return {
        "method": [plan.method, plan.steps, plan.tolerance, plan.direction, plan.metric_name],
        "model": [model.name, model.sha256, str(model.dtype), str(model.device)],
        "sites": [str(site) for site in sources.sites],
        "saes": None if saes is None else [_sae_identity(saes, site) for site in sources.sites],
        "errors": sources.errors,
        "scores": _SCORES,
        "thoughts": thinks(model, pairs),
        "clean_tokens": pairs.clean_tokens,
        "corrupted_tokens": pairs.corrupted_tokens,
        "answer_tokens": pairs.answer_tokens,
        "foil_tokens": pairs.foil_tokens,
        "versions": versions(),
    }


def _sae_identity(saes: SaeSet, site: Site) -> list[Any]:
    """Weights and configuration: with another k or normalisation an SAE is another one."""
    sae = saes[site]
    return [saes.describe(site), sae.centred, str(sae.module.cfg)]  # pyright: ignore


def _scores(
    model: HookedModel,
    sources: Sources,
    plan: Plan,
    pairs: PromptPairs,
    parts: Parts | None,
    progress: bool,
) -> pd.DataFrame:
    tables = []
    name = f"attribution ({plan.method})"
    at_once = _PAIRS_AT_ONCE_EXACT if plan.method == "exact" else _PAIRS_AT_ONCE
    bar = tqdm(total=len(pairs), desc=name, unit="pair", disable=not progress)
    with bar:
        for number, group in enumerate(pairs.groups(at_once)):
            table: Any = parts.get(number) if parts else None
            if table is None:
                halves = in_halves(group, lambda part: scores_of(model, sources, part, plan))
                table = pd.concat(halves, ignore_index=True)
                if parts:
                    parts.put(number, table)
            tables.append(table)
            bar.update(len(group.indices))
    # One order, however many pairs were done at once.
    return pd.concat(tables).sort_values("pair", kind="stable", ignore_index=True)
