"""The sweep: every layer and position (or head) patched, one at a time, exactly.

For each pair of prompts, with c the clean and k the corrupted one (denoising; noising swaps them):

1. run c and keep its activations at the site, from the first differing position on;
2. run k once and keep its residual stream, keys and values (`HookedModel.baseline`);
3. for every cell, overwrite k's activation at that layer and position by c's and read the logits at
   the last position (`HookedModel.resume`, which computes only what can change).

Positions before the first difference have the same activations in both runs; patching them changes
nothing, so their cells are the baseline itself and are not computed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from circuits.errors import CircuitsError
from circuits.metrics import METRICS, Metric, Targets, find_metric, recovery
from circuits.models.hooked import HookedModel
from circuits.patch.ability import assess, baselines, in_halves, score
from circuits.patch.cells import Cells, Direction, Plan, Positions, first_slots
from circuits.patch.draw import Drawn, draw, thinks
from circuits.patch.result import PatchResult
from circuits.prompts import PairGroup, PromptPairs
from circuits.runs import SIGN_CONVENTION, Parts, versions
from circuits.sites import SiteKind, parse_kind
from circuits.task import Task

_PAIRS_AT_ONCE = 8  # bounds what is cached of the two runs, whatever the number of pairs


class SweepError(CircuitsError):
    """Options of a sweep that contradict each other or the model."""


def patch(
    model: HookedModel,
    prompts: Task | PromptPairs,
    *,
    pairs: PromptPairs | None = None,
    site: str = "resid_pre",
    direction: str = "denoising",
    metric: str | Metric = "logit_difference",
    positions: str | None = None,
    layers: Sequence[int] | None = None,
    contrast: str | None = None,
    n_pairs: int = 12,
    split: Literal["explored", "held_out"] = "explored",
    seed: int = 0,
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    force: bool = False,
    progress: bool = True,
    keep_parts: Path | None = None,
) -> PatchResult:
    """Patch every layer and position (or head), one at a time, on every pair.

    prompts: a task, whose pairs are drawn with `contrast`, `n_pairs`, `split`, `seed` and
        `prepend_bos`; or `PromptPairs` of your own, for which those five are not used.
    pairs: with a task, pairs drawn from it before, instead of drawing them here.
    site: resid_pre, resid_mid, resid_post, attn_out, mlp_out or z (attention heads' outputs).
    direction: "denoising" runs the corrupted prompt with clean values put in; "noising" the
        reverse.
    metric: logit_difference, answer_probability, minus_kl_to_clean, or a function
        `(logits [row, vocab], Targets) -> [row]`. Positive must mean toward clean.
    positions: "each" patches one position at a time, "all" every position of a layer (or head) at
        once. Default: "all" for z, "each" for the other sites.
    layers: which layers; all by default.
    batch_size: most patched runs at once; by default what fits into memory.
    force: patch even when the model cannot do the contrast.
    keep_parts: a folder in which finished pairs are kept while the sweep runs, so that the same
        call finds them after an interruption; `PatchResult.save` removes them. Not used with a
        metric of your own, nor with a task that makes embeddings for models without thoughts of
        their own: they cannot be compared.
    A model that thinks is patched with its thoughts rerolled; `model.thinking("frozen")` holds
        them.

    Returns a `PatchResult` with one row a pair and cell. Raises, before any patched run:
    `SiteError` (unknown site, or one that the model lacks), `MetricError`, `SweepError`,
    `PromptError`, and `CannotDo` when the model does not separate clean from corrupted prompts.
    """
    started = time.perf_counter()
    options = _check(model, site, direction, metric, positions, layers, batch_size)
    given = draw(
        model,
        prompts,
        pairs,
        "patching",
        contrast=contrast,
        n_pairs=n_pairs,
        split=split,
        seed=seed,
        prepend_bos=prepend_bos,
    )
    with given.on(model):
        return _patch(model, given, options, force, progress, keep_parts, started)


def _patch(
    model: HookedModel,
    given: Drawn,
    options: Plan,
    force: bool,
    progress: bool,
    keep_parts: Path | None,
    started: float,
) -> PatchResult:
    sweep = _Sweep(model, given.pairs, options)
    ability = assess(sweep.base.clean_ld, sweep.base.corrupted_ld)
    if not force:
        given.require_ability(model, ability, "Patching it")
    parts = None
    if (
        keep_parts is not None
        and METRICS.get(options.metric_name) is options.metric
        and given.comparable(model)
    ):
        parts = Parts(keep_parts, sweep.identity())
    scores = sweep.run(progress, parts)
    record: dict[str, Any] = {
        "method": "patch",
        "task": given.name,
        "contrast": given.contrast,
        "model": model.name,
        "model_sha256": model.sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "site": options.kind,
        "layers": list(options.layers),
        "positions_patched": options.positions,
        "direction": options.direction,
        "metric": options.metric_name,
        "thoughts": thinks(model, given.pairs),
        "batch_size": options.batch_size,
        "split": given.split,
        "seed": given.seed,
        "sign_convention": SIGN_CONVENTION,
        "forced": bool(ability.problem),
        "ability": ability.problem or "can do",
        "metric_clean": sweep.base.clean_metric.tolist(),
        "metric_corrupted": sweep.base.corrupted_metric.tolist(),
        "logit_difference_clean": sweep.base.clean_ld.tolist(),
        "logit_difference_corrupted": sweep.base.corrupted_ld.tolist(),
        "model_check": model.check.as_dict() if model.check else None,
        "resumed": model.can_resume,
        "versions": versions(),
        "seconds": time.perf_counter() - started,
    }
    return PatchResult(scores, given.pairs, record, parts)


def check_words(site: str, direction: str, metric: str | Metric, positions: str | None) -> SiteKind:
    """Raise for options that are wrong whatever the model is; return the kind of site."""
    kind = parse_kind(site)
    find_metric(metric)
    for name, value, known in (
        ("direction", direction, get_args(Direction)),
        ("positions", positions or "each", get_args(Positions)),
    ):
        if value not in known:
            raise SweepError(f"unknown {name} {value!r}: expected {' or '.join(known)}.")
    return kind


def _check(
    model: HookedModel,
    site: str,
    direction: str,
    metric: str | Metric,
    positions: str | None,
    layers: Sequence[int] | None,
    batch_size: int | None,
) -> Plan:
    kind = check_words(site, direction, metric, positions)
    model.require(kind)
    chosen = tuple(range(model.n_layers)) if layers is None else tuple(layers)
    if not chosen or len(set(chosen)) != len(chosen):
        raise SweepError(f"layers {list(chosen)} are empty or repeated.")
    outside = [layer for layer in chosen if not 0 <= layer < model.n_layers]
    if outside:
        raise SweepError(f"layers {outside}: {model.name} has layers 0 to {model.n_layers - 1}.")
    if batch_size is not None and batch_size < 1:
        raise SweepError(f"batch_size {batch_size} must be at least 1.")
    return Plan(
        kind,
        chosen,
        "noising" if direction == "noising" else "denoising",
        "all" if (positions or ("all" if kind == "z" else "each")) == "all" else "each",
        *find_metric(metric),
        batch_size,
    )


class _Sweep:
    """One sweep: baselines of all pairs first, then the cells, a few pairs at a time."""

    def __init__(
        self,
        model: HookedModel,
        pairs: PromptPairs,
        plan: Plan,
    ) -> None:
        self.model, self.pairs, self.plan = model, pairs, plan
        self.base = baselines(model, pairs, plan.metric, _PAIRS_AT_ONCE)

    def identity(self) -> dict[str, Any]:
        """Everything that the scores depend on."""
        return {
            "model": self.model.sha256,
            "dtype": str(self.model.dtype),
            "prompts": asdict(self.pairs),
            "plan": [self.plan.kind, self.plan.layers, self.plan.direction, self.plan.positions],
            "metric": self.plan.metric_name,
            "thoughts": thinks(self.model, self.pairs),
            "pairs_at_once": _PAIRS_AT_ONCE,
            "versions": versions(),
        }

    def run(self, progress: bool, parts: Parts | None = None) -> pd.DataFrame:
        """All cells of all pairs, as the table of `PatchResult`."""
        groups = list(self.pairs.groups(_PAIRS_AT_ONCE))
        total = sum(Cells(self.model, self.plan, group).n_rows for group in groups)
        tables = []
        bar = tqdm(
            total=total,
            desc=f"patching {self.plan.kind}",
            unit="run",
            disable=not progress,
            smoothing=0.05,
        )
        with bar:
            for number, group in enumerate(groups):
                table = parts.get(number) if parts else None
                if table is None:
                    halves = in_halves(group, lambda part: self._run_group(part, bar))
                    table = pd.concat(halves, ignore_index=True)
                    if parts:
                        parts.put(number, table)
                else:
                    bar.update(Cells(self.model, self.plan, group).n_rows)
                tables.append(table)
        order = ["pair", "layer", "position", "head"]
        return pd.concat(tables, ignore_index=True).sort_values(order, ignore_index=True)

    def _run_group(self, group: PairGroup, bar: Any) -> pd.DataFrame:
        noising = self.plan.direction == "noising"
        clean, corrupted = self.model.inputs(group.clean), self.model.inputs(group.corrupted)
        source, target = (corrupted, clean) if noising else (clean, corrupted)
        cells = Cells(self.model, self.plan, group, first_slots(clean, corrupted))
        source_logits, values = self.model.cache(source, self.plan.sites, first=cells.first)
        baseline = self.model.baseline(target, first=cells.first)
        clean_logits = baseline.logits if noising else source_logits
        targets = Targets.of(group.answer, group.foil, clean_logits)
        where = np.array(group.indices)
        if noising:
            metric, difference = self.base.clean_metric[where], self.base.clean_ld[where]
        else:
            metric, difference = self.base.corrupted_metric[where], self.base.corrupted_ld[where]
        # Cells that are not run keep the baseline of the run that is patched.
        metric, difference = metric[cells.pair], difference[cells.pair]
        row_pairs = cells.row_pairs()

        def read(rows: Tensor, logits: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
            mine = row_pairs[rows].to(logits.device)
            return score(self.plan.metric, logits, targets.rows(mine))

        patches = cells.patches(values)
        for rows, found in self.model.resume(
            baseline, row_pairs, patches, self.plan.batch_size, read
        ):
            at = cells.cell_of_row[rows.numpy()]
            metric[at], difference[at] = found
            bar.update(len(rows))
        return self._table(group, cells, metric, difference)

    def _table(
        self,
        group: PairGroup,
        cells: Cells,
        metric: NDArray[Any],
        difference: NDArray[Any],
    ) -> pd.DataFrame:
        pair = np.array(group.indices)[cells.pair]
        clean_tokens = np.array([self.pairs.clean_strings[i] for i in group.indices], dtype=object)
        corrupted = np.array([self.pairs.corrupted_strings[i] for i in group.indices], dtype=object)
        whole = self.plan.positions == "all"
        return pd.DataFrame(
            {
                "pair": pair,
                "site": self.plan.kind,
                "layer": cells.layer,
                "position": pd.array(
                    [pd.NA] * len(pair) if whole else list(cells.position), dtype="Int64"
                ),
                "head": pd.array(
                    [pd.NA] * len(pair) if cells.head is None else list(cells.head), dtype="Int64"
                ),
                "token_clean": None if whole else clean_tokens[cells.pair, cells.position],
                "token_corrupted": None if whole else corrupted[cells.pair, cells.position],
                "metric": metric,
                "logit_difference": difference,
                "recovery": recovery(
                    difference, self.base.clean_ld[pair], self.base.corrupted_ld[pair]
                ),
            }
        )
