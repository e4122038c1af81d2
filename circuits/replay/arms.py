"""The arms of a run: what is done to the model in each, random numbers being the same in all.

- no-op: every change scales its latent by 1. The whole machinery runs and nothing is changed.
- reconstruction: activations at the changed sites and positions become their reconstructions, which
  is what would be mixed up with the latent's effect if the SAE were spliced in.
- random-1, random-2, ...: the latent's write along another latent's decoder row, of the same norm
  at every position. The other latent is drawn from those that are about as often active: within a
  factor of 2 where there are enough, and the record says where there are not.
- latent: the changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from circuits.models.hooked import HookedModel
from circuits.replay.generate import generate
from circuits.replay.interventions import (
    Change,
    Intervention,
    Other,
    Reconstruction,
    ReplayError,
    edits_of,
    touched,
)
from circuits.replay.log import NO_OP
from circuits.replay.prompts import Prompts, batches, count_batches
from circuits.replay.sampling import Sampling
from circuits.saes import SaeSet
from circuits.sites import Site

RECONSTRUCTION, LATENT = "reconstruction", "latent"
_NEAREST = 50  # latents of about the same rate, among which random ones are drawn
_FACTOR = 2.0  # rates that are no further apart are matched
_ALIKE = 0.5  # cosine of decoder rows from which on a latent is no control for another


@dataclass(frozen=True)
class Rates:
    """How often latents are active where a run changes them. counts: per site [latent]; positions:
    per site how many were looked at, which are those where any latent of it is changed."""

    counts: Mapping[Site, np.ndarray]
    positions: Mapping[Site, int]

    def apart(self, site: Site, latent: int) -> np.ndarray:
        """|log ratio| of every latent's count to one's, [latent]; half a count is added to each."""
        counts = self.counts[site] + 0.5
        return np.abs(np.log(counts / counts[latent]))

    def matched(self, site: Site, latent: int) -> np.ndarray:
        """Which latents are as often active as one within a factor of 2, [latent]."""
        return self.apart(site, latent) <= np.log(_FACTOR) + 1e-9


def no_op(changes: Sequence[Change]) -> list[Change]:
    """The same reads and writes, of nothing."""
    return [replace(change, mode="scale", value=1.0) for change in changes]


def reconstructions(changes: Sequence[Change]) -> list[Reconstruction]:
    """One a changed site; exactly where any latent of it is changed."""
    return [_united(site, [c for c in changes if c.site == site]) for site in _sites(changes)]


def _sites(changes: Sequence[Change]) -> list[Site]:
    return list(dict.fromkeys(change.site for change in changes))


def _united(site: Site, changes: Sequence[Change]) -> Reconstruction:
    # What a change says of positions that it leaves alone (skip of a prompt's) must not count.
    prompt = [c for c in changes if c.where != "generated"]
    generated = [c for c in changes if c.where != "prompt"]
    first, skip = any(c.first for c in prompt), min((c.skip for c in generated), default=0)
    if prompt and generated:
        return Reconstruction(site, "all", skip, first)
    return Reconstruction(site, "prompt" if prompt else "generated", skip, first)


def arms_of(changes: Sequence[Change], randoms: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Interventions by arm. randoms: of each random arm, the latent that stands for each change."""
    found: dict[str, list[Intervention]] = {
        NO_OP: [*no_op(changes)],
        RECONSTRUCTION: [*reconstructions(changes)],
    }
    for i, latents in enumerate(randoms, start=1):
        others = zip(changes, latents, strict=True)
        found[f"random-{i}"] = [Other(change, latent) for change, latent in others]
    return {**found, LATENT: [*changes]}


def measure_rates(
    model: HookedModel,
    saes: SaeSet,
    prompts: Prompts,
    changes: Sequence[Change],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    stop: Sequence[int],
    batch_size: int,
    progress: bool = False,
) -> Rates:
    """How often each latent is active at the positions that are changed, in prompts and in what the
    unchanged model writes (trial 0 of every prompt)."""
    sites = sorted({change.site for change in changes})
    counts = {site: np.zeros(saes[site].d_sae, dtype=np.int64) for site in sites}
    positions = dict.fromkeys(sites, 0)
    count = count_batches(prompts, 1, batch_size)
    every = batches(prompts, 1, batch_size)
    for batch in tqdm(every, total=count, desc="rates", disable=not progress):
        length = batch.tokens.shape[1]
        edits = edits_of(saes, no_op(changes), length)
        written = generate(
            model,
            batch.tokens,
            batch.keys,
            edits=edits,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            stop=stop,
            watch=sites,
            top=1,
        )
        before = model.activations(batch.tokens, sites)
        for site in sites:
            # Step 0 is made at the prompt's last position, which is counted with the prompt.
            values = torch.cat([before[site].cpu(), written.activations[site][:, 1:]], 1)
            ended = torch.ones(before[site].shape[:2], dtype=torch.bool)
            there = torch.cat([ended, written.inside[:, 1:]], 1)
            masks = [touched(c, 0, values.shape[1], length) for c in changes if c.site == site]
            chosen = there & torch.stack(masks).any(0)
            counts[site] += _active(saes, site, values[chosen].to(model.device))
            positions[site] += int(chosen.sum())
    return Rates(counts, positions)


def _active(saes: SaeSet, site: Site, x: Tensor) -> np.ndarray:
    if not len(x):
        return np.zeros(saes[site].d_sae, dtype=np.int64)
    latents = saes[site].encode_sparse(x[None].to(saes[site].dtype)).latents
    return np.bincount(latents.latent.cpu().numpy(), minlength=saes[site].d_sae)


def draw_others(
    saes: SaeSet, rates: Rates, changes: Sequence[Change], arms: int, seed: int
) -> list[list[int]]:
    """For each random arm, a latent for each change: drawn from the 50 whose rates are closest and
    within a factor of 2, ties in any order. Where these are fewer than the arms, the closest ones
    stand in, which `record_of` calls not matched.

    Changed latents themselves, latents with decoder rows of zeros and those that write nearly the
    same (cosine above 0.5 either way) are left out. No latent is drawn twice at a site.
    Raises `ReplayError` when there are not as many.
    """
    drawn: list[list[int]] = []
    for number, change in enumerate(changes):
        rows = saes[change.site].rows.float()
        norms = rows.norm(dim=1)
        cosines = (rows @ rows[change.latent]) / (norms * norms[change.latent]).clamp(min=1e-20)
        excluded = (norms == 0) | (cosines.abs() > _ALIKE)
        excluded[[c.latent for c in changes if c.site == change.site]] = True
        before = zip(changes, drawn, strict=False)
        excluded[[i for c, latents in before if c.site == change.site for i in latents]] = True
        candidates = (~excluded).nonzero().squeeze(1).cpu().numpy()
        rng = np.random.default_rng([seed, number, change.latent])
        # Many latents have the same count: in the order of numbers the low ones would be drawn.
        candidates = rng.permutation(candidates)
        apart = rates.apart(change.site, change.latent)[candidates]
        matched = int(rates.matched(change.site, change.latent)[candidates].sum())
        nearest = candidates[np.argsort(apart, kind="stable")]
        nearest = nearest[: max(min(_NEAREST, matched), arms)]
        if len(nearest) < arms:
            raise ReplayError(
                f"{change.site} has {len(nearest)} latents that could stand for {change.latent}, "
                f"{arms} random arms need {arms}: ask for fewer."
            )
        drawn.append(rng.choice(nearest, size=arms, replace=False).tolist())
    return [[latents[arm] for latents in drawn] for arm in range(arms)]


def record_of(
    saes: SaeSet, rates: Rates, changes: Sequence[Change], randoms: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """What a run's record says of the changed latents and of those that stand for them."""
    found = []
    for i, change in enumerate(changes):
        rows, counts = saes[change.site].rows.float(), rates.counts[change.site]
        own = rows[change.latent]
        others, looked = [latents[i] for latents in randoms], max(1, rates.positions[change.site])
        matched = rates.matched(change.site, change.latent)
        found.append(
            {
                "site": str(change.site),
                "latent": change.latent,
                "rate": float(counts[change.latent]) / looked,
                "norm": float(own.norm()),
                "random": others,
                "random_matched": [bool(matched[o]) for o in others],
                "random_rates": [float(counts[o]) / looked for o in others],
                "random_cosines": [
                    float(rows[o] @ own / (rows[o].norm() * own.norm())) for o in others
                ],
            }
        )
    return found
