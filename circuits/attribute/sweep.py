"""Attribution of the metric to nodes at sites and positions.

For each batch of pairs, with the base run the one that is patched (corrupted when denoising):

1. run the other prompts once and keep the sites' activations; run the base prompts once forward and
   once backward: values and gradients at all sites;
2. at each site split both activations into nodes (nodes.py) and give each node
   `atp`: <clean write - corrupted write, gradient of the base run> (attribution patching, Nanda
   2023; with SAEs Marks et al. 2024);
   `ig`: the same with the gradient averaged over the path between the runs (gradients.py);
   `exact`: the metric with the node itself patched, less the base run's (exact.py).

Effects are positive toward clean: m(patched) - m(corrupted) when denoising, m(clean) - m(patched)
when noising, so that a node's effect has the same sign in both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from circuits.attribute.audit import audit
from circuits.attribute.batch import Batch, Direction, Sources
from circuits.attribute.exact import patch_nodes
from circuits.attribute.nodes import Block
from circuits.attribute.result import Attribution
from circuits.errors import CircuitsError
from circuits.metrics import Metric, find_metric
from circuits.models.hooked import HookedModel
from circuits.patch.ability import assess, baselines, in_halves
from circuits.patch.draw import draw
from circuits.prompts import PairGroup, PromptPairs
from circuits.runs import SIGN_CONVENTION, Parts, versions
from circuits.saes import SaeSet, contrast_kept
from circuits.saes.quality import reconstruct
from circuits.sites import Site, SiteKind
from circuits.task import InputsTask, Task

Method = Literal["atp", "ig", "exact"]
STEPS = 5  # of the Gauss-Legendre rule
_PAIRS_AT_ONCE = 8
_PAIRS_AT_ONCE_EXACT = 2  # each of them takes long
_COMPONENTS: tuple[SiteKind, ...] = ("z", "attn_out", "mlp_out")


class AttributionError(CircuitsError):
    """Options of an attribution that contradict each other or the model."""


@dataclass(frozen=True)
class Plan:
    """A checked set of options. steps: of integrated gradients."""

    method: Method
    steps: int
    direction: Direction
    metric_name: str
    metric: Metric
    batch_size: int | None
    audit_pairs: int
    audit_nodes: int


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
    audit_pairs, audit_nodes: the strongest nodes, and as many random others, are checked on so many
        pairs against exact interventions; 0 pairs for no audit.
    batch_size: most patched runs at once; by default what fits into memory.
    keep_parts: a folder in which finished pairs are kept while it runs, so that the same call goes
        on after an interruption; not for a metric of one's own. They go when the result is saved.

    Raises before any pass: `AttributionError`, `SiteError`, `MetricError`, `PromptError`; and
    `CannotDo` when the model does not separate the prompts (unless `force`).
    """
    started = time.perf_counter()
    plan = _check(method, steps, direction, metric, batch_size, audit_pairs, audit_nodes)
    sources = _sources(model, saes, sites, errors)
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
    if isinstance(given.task, InputsTask):
        raise AttributionError(
            f"{given.name} makes its own embeddings, which attribution does not use."
        )
    base = baselines(model, given.pairs, plan.metric)
    ability = assess(base.clean_ld, base.corrupted_ld)
    if not force:
        given.require_ability(model, ability, "Attributing it")
    record: dict[str, Any] = {
        "method": "attribute",
        "attribution": plan.method,
        "steps": plan.steps if plan.method == "ig" else None,
        "task": given.name,
        "contrast": given.contrast,
        "model": model.name,
        "model_sha256": model.sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "sites": [str(site) for site in sources.sites],
        "saes": None if saes is None else [saes.describe(site) for site in saes],
        "errors": errors if saes is not None else None,
        "saes_keep": None if saes is None else contrast_kept(model, saes, given.pairs),
        "direction": plan.direction,
        "metric": plan.metric_name,
        "split": split if given.drawn else None,
        "seed": seed if given.drawn else None,
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
        if keep_parts is not None and not callable(metric):
            parts = Parts(keep_parts, _identity(model, sources, plan, given.pairs))
        scores = _scores(model, sources, plan, given.pairs, parts, progress)
        found = Attribution(scores, given.pairs, record, parts)
        if plan.audit_pairs:
            record["audit"] = audit(model, sources, plan, found, progress=progress)
    record["seconds"] = time.perf_counter() - started
    return found


def _model_of(model: HookedModel, sources: Sources) -> AbstractContextManager[None]:
    """The model that effects are of: itself, or with reconstructions in place of activations."""
    if sources.errors or sources.saes is None:
        return nullcontext()
    return model.edited({site: reconstruct(sources.saes, site) for site in sources.sites})


def _identity(
    model: HookedModel, sources: Sources, plan: Plan, pairs: PromptPairs
) -> dict[str, Any]:
    """Everything that the scores depend on."""
    saes = sources.saes
    return {
        "method": [plan.method, plan.steps, plan.direction, plan.metric_name],
        "model": [model.name, model.sha256, str(model.dtype), str(model.device)],
        "sites": [str(site) for site in sources.sites],
        "saes": None if saes is None else [saes.describe(site) for site in sources.sites],
        "errors": sources.errors,
        "clean_tokens": pairs.clean_tokens,
        "corrupted_tokens": pairs.corrupted_tokens,
        "answer_tokens": pairs.answer_tokens,
        "foil_tokens": pairs.foil_tokens,
        "versions": versions(),
    }


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


def _check(
    method: str,
    steps: int,
    direction: str,
    metric: str | Metric,
    batch_size: int | None,
    audit_pairs: int,
    audit_nodes: int,
) -> Plan:
    for name, value, known in (
        ("method", method, get_args(Method)),
        ("direction", direction, get_args(Direction)),
    ):
        if value not in known:
            raise AttributionError(f"unknown {name} {value!r}: expected {', '.join(known)}.")
    if steps < 1:
        raise AttributionError(f"{steps} steps: integrated gradients need at least 1.")
    if batch_size is not None and batch_size < 1:
        raise AttributionError(f"batch_size {batch_size} must be at least 1.")
    if audit_pairs < 0 or audit_nodes < 1:
        raise AttributionError("an audit needs 0 or more pairs and at least 1 node.")
    chosen: Any = method
    return Plan(
        chosen,
        steps,
        "noising" if direction == "noising" else "denoising",
        *find_metric(metric),
        batch_size,
        audit_pairs,
        audit_nodes,
    )


def _sources(
    model: HookedModel, saes: SaeSet | None, sites: Sequence[Site] | None, errors: str
) -> Sources:
    if errors not in ("kept", "removed"):
        raise AttributionError(f"unknown errors {errors!r}: expected kept or removed.")
    if errors == "removed" and saes is None:
        raise AttributionError("errors are those of SAEs: without any, there are none to remove.")
    kept = errors == "kept"
    if saes is not None and sites is not None:
        missing = [str(site) for site in sites if site not in saes.sources]
        if missing:
            raise AttributionError(f"there are no SAEs at {', '.join(missing)}.")
        return Sources(tuple(sites), saes, kept)
    if saes is not None:
        if not len(saes):
            raise AttributionError("there are no SAEs: without any, leave them out.")
        return Sources(tuple(saes), saes, kept)
    chosen = sites or [Site(layer, kind) for layer in range(model.n_layers) for kind in _COMPONENTS]
    for site in chosen:
        model.require(site.kind)
        model.adapter.hook_point(site)
    return Sources(tuple(dict.fromkeys(chosen)), None)


def scores_of(model: HookedModel, sources: Sources, group: PairGroup, plan: Plan) -> pd.DataFrame:
    """The effects of all nodes of a group of pairs, sparse, one row a node and pair."""
    batch = Batch(model, sources, group, plan.metric, plan.direction)
    tables = []
    for site in sources.sites:
        gradient = None
        if plan.method == "atp":
            gradient = batch.gradients[1][site]
        elif plan.method == "ig":
            gradient = batch.mean_gradient(site, plan.steps, plan.batch_size)
        for block in batch.nodes(site):
            if gradient is not None:
                effect = block.project(gradient)
            else:
                effect = exact_effects(batch, site, block, None, plan.batch_size)
            tables.append(_table(site, block, effect, group))
    found = pd.concat(tables, ignore_index=True)
    method = np.zeros(len(found), dtype=np.int8)
    return found.assign(method=pd.Categorical.from_codes(method, [plan.method]))


def exact_effects(
    batch: Batch, site: Site, block: Block, nodes: Tensor | None, batch_size: int | None
) -> Tensor:
    """Effects of nodes patched by themselves; all of a block by default."""
    if nodes is None:
        nodes = torch.arange(len(block.pair), device=block.pair.device)
    patched = patch_nodes(
        batch.model, batch.baseline, site, block, nodes, batch.row_metric, batch.sign, batch_size
    )
    return (patched - batch.base_metric[block.pair[nodes].cpu()]) * batch.sign


def _table(site: Site, block: Block, effect: Tensor, group: PairGroup) -> pd.DataFrame:
    count = len(block.pair)
    return pd.DataFrame(
        {
            "pair": np.array(group.indices, dtype=np.int64)[block.pair.cpu().numpy()],
            "site": pd.Categorical.from_codes(np.zeros(count, dtype=np.int8), [str(site)]),
            "layer": np.full(count, site.layer),
            "position": block.position.cpu().numpy(),
            "role": pd.Categorical.from_codes(np.zeros(count, dtype=np.int8), [block.role]),
            "latent": block.index.cpu().numpy(),
            "clean": block.clean.double().cpu().numpy(),
            "corrupted": block.corrupted.double().cpu().numpy(),
            "effect": effect.double().cpu().numpy(),
        }
    )
