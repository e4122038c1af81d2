"""Pathways of a finished replay: which downstream latents change, and what they carry.

1. Changes in the run: each downstream latent's mean over a response, patched arm minus no-op arm,
   tested over prompts (changes.py). The texts differ as well, so this is all that the change does.
2. Changes with the text held: the no-op arm's tokens, run with and without the source changed.
   What changes here does so by no other words.
3. Mediators: of the latents that change with the text held, those with the largest estimated part
   in the outcome, sum over positions of (coefficient changed - no-op) <decoder row, gradient>, the
   gradient that of the run with the source changed. The estimate only chooses whom to look at.
4. They are frozen, put in by themselves, and wired to each other by intervention; as many other
   latents of their sites that change about as much are frozen together; and the effect that was
   seen is split into a direct part and one by tokens (confirm.py, routes.py). What all of them
   carry together and what the confirmed ones do are two numbers.

Mediators are chosen by one half of the prompts (or of the trials of each prompt, where trials are
the units) and confirmed on the other (pathways_choice.py): all that is said of what they carry, the
total beside it included, is of that other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from circuits.models.hooked import HookedModel
from circuits.models.unembed import unembedding
from circuits.replay.arms import LATENT
from circuits.replay.changes import LEAST_UNITS, Means, Trials, beside, changes, read_means
from circuits.replay.confirm import Setting, confirm, wire
from circuits.replay.held_changes import held_changes
from circuits.replay.interventions import Change
from circuits.replay.log import NO_OP
from circuits.replay.outcomes import Outcome, check_outcome
from circuits.replay.paired import PathwayError, UnitKind, Units
from circuits.replay.pathways_choice import choose, confirmed_of, draw_controls, halves
from circuits.replay.pathways_result import PathwaysResult
from circuits.replay.pathways_tables import tables_of, with_mediators
from circuits.replay.routes import Routes, routes
from circuits.saes import SaeSet
from circuits.sites import Site, forward_order

if TYPE_CHECKING:
    from circuits.replay.result import ReplayResult

_SPACINGS = 100  # of a type's numbers, float32's at most: what differs by no more is rounding
_HALF_SPACINGS = 4


@dataclass(frozen=True)
class Written:
    """A finished replay, as pathways need it.

    responses: `arm, kind, prompt, trial, tokens` (ids of the response), `length, logprob`. latents:
    its latents.parquet. sites: that it recorded. prompts: token ids by prompt. source: the changes
    of the patched arm. dtype: of the model that wrote it, None where that is not known.
    """

    responses: pd.DataFrame
    latents: Path
    prompts: Mapping[Any, Sequence[int]]
    source: Sequence[Change]
    sites: tuple[Site, ...]
    dtype: str | None = None

    @classmethod
    def of(cls, run: ReplayResult) -> Written:
        """A run that was read back."""
        prompts = dict(enumerate(run.record["prompt_tokens"]))
        source = [change_of(entry) for entry in run.record["changes"]]
        latents = run.folder / "latents.parquet"
        return cls(run.responses, latents, prompts, source, run.sites, run.record.get("dtype"))

    @property
    def others(self) -> list[str]:
        """The arms that are compared with: reconstruction, random-1, ..."""
        found = self.responses["arm"].drop_duplicates()
        return sorted(str(a) for a in found if a not in (NO_OP, LATENT))


@dataclass(frozen=True)
class Plan:
    """How pathways are looked for.

    sites: downstream sites; None takes all that were recorded. kind: of prompts; None for all.
    unit: what is exchanged; None chooses by the number of prompts (paired.py). level: of q.
    mediators: most latents that are frozen. least: units in which a latent must be active.
    first: steps of a response that count for the outcome; None for those that the outcome names.
    trials: of each prompt that are run again with the text held, the first ones; None for all.
    """

    outcome: Outcome
    sites: tuple[Site, ...] | None = None
    kind: str | None = None
    unit: UnitKind | None = None
    level: float = 0.05
    mediators: int = 6
    least: int = LEAST_UNITS
    first: int | None = None
    trials: int | None = None
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            text
            for good, text in (
                (0 < self.level < 1, "the level must lie between 0 and 1"),
                (self.mediators >= 0, "mediators count from 0"),
                (self.least >= 1, "a latent must be active in one unit at least"),
                (self.first is None or self.first >= 1, "at least one step must count"),
                (self.trials is None or self.trials >= 1, "at least one trial must be run"),
                (self.batch_size >= 1, "a batch has a row at least"),
            )
            if not good
        ]
        if wrong:
            raise PathwayError(f"{'; '.join(wrong)}.")


def change_of(entry: Mapping[str, Any]) -> Change:
    """The change that `describe` wrote into a record."""
    names = ("latent", "mode", "value", "where", "skip", "first")
    return Change(Site.parse(entry["site"]), *(entry[name] for name in names))


def pathways(
    written: Written, model: HookedModel, saes: SaeSet, plan: Plan, *, progress: bool = True
) -> PathwaysResult:
    """Look for pathways in a finished replay and confirm them.

    saes: those of the source's site and of the downstream sites.
    Raises `PathwayError` for outcomes, sites, arms and kinds that the run or the model lacks, and
    for too few prompts and trials, before anything is run.
    """
    if plan.first is not None:
        plan = replace(plan, outcome=replace(plan.outcome, first=plan.first))
    sites = downstream(written, saes, plan.sites)
    trials = Trials.of(written.responses, [NO_OP, LATENT, *written.others], plan.kind)
    units = Units.of(_codes(trials.table), plan.unit)
    again = trials.table.groupby("prompt").cumcount() < (plan.trials or len(trials))
    kept: Any = trials.table[again].reset_index(drop=True)
    held_units = Units.of(_codes(kept), plan.unit)
    every = np.arange(len(kept))
    choosing, confirming = halves(kept, held_units, plan.seed) if plan.mediators else (every, every)
    check_outcome(plan.outcome, unembedding(model).shape[1])

    widths = {site: saes.sources[site].d_sae for site in sites}
    means = read_means(written.latents, trials, widths)
    fine, coarse = rounding(model.dtype)
    rules = {"least": plan.least, "seed": plan.seed, "rounding": fine}
    free = changes(means[LATENT], means[NO_OP], units, **rules)
    others = {arm: means[arm] for arm in written.others}
    free = _with_others(free, beside(free, others, means[NO_OP], units), written.others)

    prompts = [list(written.prompts[p]) for p in kept["prompt"]]
    texts = {
        arm: [[int(t) for t in one] for one in _column(written.responses, arm, kept, "tokens")]
        for arm in (NO_OP, LATENT)
    }
    setting = Setting(model, saes, written.source, plan.outcome, plan.outcome.first)
    size = plan.batch_size
    first, second, estimates = held_changes(setting, prompts, texts[NO_OP], sites, size, progress)
    held = changes(first, second, held_units, **rules)
    table = _merged(free, held, estimates, held_units, choosing)
    chosen = choose(table, plan)
    norms = {site: _norms(saes, site) for site, _ in chosen}
    how = {"batch_size": size, "progress": progress}
    those = [prompts[i] for i in confirming], [texts[NO_OP][i] for i in confirming]
    controls = draw_controls(table, chosen, plan.level, norms)
    found = confirm(setting, *those, chosen, controls=controls, **how)
    noise = coarse * max(1.0, float(np.abs(found.base).max()))  # its terms may cancel
    half = Units.of(held_units.prompt[confirming], held_units.kind)
    table = with_mediators(table, found, half, plan, noise)
    wired = wire(setting, *those, found, confirmed_of(table, found.mediators), **how)
    cells = routes(setting, prompts, texts[NO_OP], texts[LATENT], **how)
    every_unit = (units, held_units, half)
    result = tables_of(
        table, kept, found, wired, confirming, cells, every_unit, setting, plan, noise
    )
    result.record["run_dtype"] = written.dtype
    result.record["replayed_error"] = _replayed(written.responses, kept, texts, cells, plan)
    return result


def _replayed(
    responses: pd.DataFrame,
    trials: pd.DataFrame,
    texts: Mapping[str, Sequence[Sequence[int]]],
    cells: Routes,
    plan: Plan,
) -> float:
    """By how much a token's log probability is off, at most, from what the run recorded, on average
    over a response."""
    worst = 0.0
    for arm, name in ((NO_OP, "m00"), (LATENT, "m11")):
        if plan.outcome.kind == "kl" and arm == LATENT:
            continue  # responses are cut there
        recorded = np.array(_column(responses, arm, trials, "logprob"))
        lengths = np.array([len(one) for one in texts[arm]])
        worst = max(worst, float((np.abs(recorded - cells.logprobs[name]) / lengths).max()))
    return worst


def rounding(dtype: torch.dtype) -> tuple[float, float]:
    """The share of a number up to which a difference is rounding: of a mean coefficient, and of an
    outcome.

    In half types an outcome is off by some of their spacings. Their spacings say nothing of whether
    a latent has changed: what is computed from equal numbers is equal in any type.
    """
    own, single = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    fine = _SPACINGS * min(own, single)
    return fine, max(fine, _HALF_SPACINGS * own)


def downstream(written: Written, saes: SaeSet, asked: Sequence[Site] | None) -> tuple[Site, ...]:
    """The sites after the source's, in forward order; raises `PathwayError` for others."""
    sources = {one.site for one in written.source}
    if len(written.source) != 1:
        raise PathwayError(
            f"the patched arm changes {len(written.source)} latents: pathways are those of one."
        )
    there = [s for s in written.sites if s in saes.sources]
    if missing := [str(s) for s in sources if s not in saes.sources]:
        raise PathwayError(f"there is no SAE at {', '.join(missing)}, where the source is.")
    if missing := [str(s) for s in asked or () if s not in there]:
        raise PathwayError(
            f"{', '.join(missing)} was not recorded, or has no SAE: there are "
            f"{', '.join(map(str, there))}."
        )
    order = forward_order([*sources, *(asked or there)])
    after = order[order.index(written.source[0].site) + 1 :]
    before = [str(s) for s in asked or () if s not in after]
    if before or not after:
        said = f"{', '.join(before)} do not come after it" if before else "there is none after it"
        raise PathwayError(
            f"pathways lead from {written.source[0].site} to later sites: {said}. Name later "
            "sites, or run the replay with such sites recorded."
        )
    return after


def _norms(saes: SaeSet, site: Site) -> Float[np.ndarray, " latent"]:
    """Of the decoder rows of a site."""
    return saes[site].rows.float().norm(dim=-1).cpu().numpy().astype(np.float64)


def _codes(table: pd.DataFrame) -> np.ndarray:
    return pd.factorize(table["prompt"])[0].astype(int)


def _column(responses: pd.DataFrame, arm: str, trials: pd.DataFrame, name: str) -> list[Any]:
    """A column of one arm, in the order of trials."""
    mine: Any = responses[responses["arm"] == arm].set_index(["prompt", "trial"])[name]
    return [mine[key] for key in zip(trials["prompt"], trials["trial"], strict=True)]


def _with_others(
    table: pd.DataFrame, found: Float[np.ndarray, "arm latent"], arms: Sequence[str]
) -> pd.DataFrame:
    """Beside each change that of the reconstruction arm, and of the random arms their mean and the
    one that is largest in size; NaN where the run has no such arm."""
    plain = [i for i, arm in enumerate(arms) if arm == "reconstruction"]
    random = [i for i, arm in enumerate(arms) if arm.startswith("random")]
    nan = np.full(len(table), np.nan)
    drawn = found[random]
    largest = nan
    if random and len(table):
        largest = np.take_along_axis(drawn, np.abs(drawn).argmax(0)[None], 0)[0]
    return table.assign(
        reconstruction=found[plain[0]] if plain else nan,
        random=drawn.mean(0) if random else nan,
        random_largest=largest,
    )


def _merged(
    free: pd.DataFrame,
    held: pd.DataFrame,
    estimates: Means,
    units: Units,
    rows: Int[np.ndarray, " chooses"],
) -> pd.DataFrame:
    """One row a latent that was tested in either view; `held_` before the columns of the second.

    rows: trials over which estimates are averaged, prompts alike.
    """
    part_of = Units(np.unique(units.prompt[rows], return_inverse=True)[1].reshape(-1), units.kind)
    names = [c for c in held.columns if c not in ("site", "latent")]
    held = held.rename(columns={name: f"held_{name}" for name in names})
    table = free.merge(held, on=["site", "latent"], how="outer")
    value = np.zeros(len(table))
    for site, part in table.groupby("site"):
        mine = estimates[Site.parse(str(site))][:, part["latent"].to_numpy(int)].toarray()
        value[part.index.to_numpy()] = part_of.mean(mine[rows])
    return table.assign(estimate=value)
