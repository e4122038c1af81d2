"""Changes of latents with the text held, and how much of the outcome each of them may carry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from circuits.replay.changes import Means, summed
from circuits.replay.confirm import Setting
from circuits.replay.held import Pass, Text, batches, run_pass, slopes, step_means, text_of
from circuits.replay.interventions import edits_of
from circuits.replay.outcomes import steps_mean
from circuits.saes.sae import Sae
from circuits.sites import Site

_AT_ONCE = 1 << 22  # numbers of decoder rows that are gathered at once


def held_changes(
    setting: Setting,
    prompts: Sequence[Sequence[int]],
    given: Sequence[Sequence[int]],
    sites: Sequence[Site],
    size: int,
    progress: bool,
) -> tuple[Means, Means, Means]:
    """With the no-op arm's tokens: mean coefficients with the source changed and without, and the
    estimated part of each latent in the outcome, summed over positions, [trial, latent]."""
    model, saes = setting.model, setting.saes
    parts: dict[tuple[str, Site], list[sparse.csr_array]] = {}
    shape = {site: (len(prompts), saes.sources[site].d_sae) for site in sites}
    groups = list(batches(prompts, given, size))
    for rows in tqdm(groups, desc="text held", unit="batch", disable=not progress):
        text = text_of(rows, [prompts[i] for i in rows], [given[i] for i in rows])
        off = run_pass(model, text, {}, sites)
        edits = edits_of(saes, setting.source, text.prompt)
        on = run_pass(model, text, edits, sites)

        def outcome(logits: Tensor, off: Pass = off, text: Text = text) -> Tensor:
            values = setting.outcome.values(logits, off.logits)
            return steps_mean(values, text.lengths, setting.first)

        gradients = slopes(model, text, edits, sites, outcome)
        for site in sites:
            for name, found in (("on", on), ("off", off)):
                row, latent, value = step_means(saes[site], found, text)
                entry = _matrix(rows[row], latent, value, shape[site])
                parts.setdefault((name, site), []).append(entry)
            row, latent, value = estimated(
                saes[site], on.seen[site], off.seen[site], gradients[site]
            )
            entry = _matrix(rows[row], latent, value, shape[site])
            parts.setdefault(("estimate", site), []).append(entry)
    whole = {key: summed(some, shape[key[1]]) for key, some in parts.items()}
    on, off, estimate = ({s: whole[name, s] for s in sites} for name in ("on", "off", "estimate"))
    return on, off, estimate


def _matrix(
    row: np.ndarray, latent: np.ndarray, value: np.ndarray, shape: tuple[int, int]
) -> sparse.csr_array:
    return sparse.csr_array(sparse.coo_array((value, (row, latent)), shape=shape))


@torch.no_grad()
def estimated(
    sae: Sae, on: Tensor, off: Tensor, gradient: Float[Tensor, "row position width"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, latent, value): first-order part of each active latent in what the change does, at
    every position. on, off: activations [row, position, width]."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for sign, x in ((1.0, on), (-1.0, off)):
        parts = sae.encode_sparse(x.to(sae.dtype))
        mine = parts.latents
        slope = gradient.reshape(-1, sae.width)
        step = max(1, _AT_ONCE // sae.width)
        for some in torch.arange(len(mine.value), device=x.device).split(step):
            token = mine.token[some]
            along = (slope[token].to(sae.dtype) * sae.rows[mine.latent[some]]).sum(-1)
            scale = parts.scale.reshape(-1)[token]
            value = sign * mine.value[some] * scale * along
            found.append((mine.row[some], mine.latent[some], value))
    if not found:
        none = np.zeros(0, dtype=int)
        return none, none, np.zeros(0)
    row, latent, value = (torch.cat(list(one)).cpu().numpy() for one in zip(*found, strict=True))
    return row, latent, value.astype(np.float64)
