"""Two arms that differ in nothing but their random numbers: what pathways find in them is false."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from scipy import sparse

from circuits.models.hooked import HookedModel
from circuits.replay import Generated, Sampling, generate, keys_of
from circuits.replay.changes import Means
from circuits.saes.collection import SaeSet, SaeSource
from circuits.sites import Site
from tests import tiny

SITES = (Site.parse("resid_post.1"), Site.parse("resid_post.2"))
LATENTS = 200
_STOP = 5


@cache
def writing() -> tuple[HookedModel, SaeSet]:
    """A tiny random model, and random SAEs whose latents are active at rates from about 0.2% to
    50%."""
    model = tiny.bridge("llama", layers=3)
    tokens = torch.randint(8, tiny.VOCAB, (40, 12), generator=torch.Generator().manual_seed(0))
    seen = model.activations(tokens, SITES)
    sources = {}
    for number, site in enumerate(SITES):
        x = seen[site].reshape(-1, seen[site].shape[-1])
        draw = torch.Generator().manual_seed(number)
        rows = torch.nn.functional.normalize(
            torch.randn(LATENTS, x.shape[1], generator=draw), dim=1
        )
        share = 0.5 ** torch.linspace(1, 9, LATENTS)
        quantiles = (x @ rows.T).float()
        bias = -torch.stack([quantiles[:, i].quantile(1 - float(s)) for i, s in enumerate(share)])
        sources[site] = _source(site, rows, bias)
    return model, SaeSet(sources, model.device)


def _source(site: Site, rows: torch.Tensor, bias: torch.Tensor) -> SaeSource:
    def load(device: torch.device) -> Any:
        import sae_lens

        width = rows.shape[1]
        sae: Any = sae_lens.StandardSAE(
            sae_lens.StandardSAEConfig(d_in=width, d_sae=len(rows), apply_b_dec_to_input=False)
        )
        weights = {"W_enc": rows.T, "W_dec": rows, "b_enc": bias, "b_dec": torch.zeros(width)}
        for name, parameter in sae.named_parameters():
            parameter.data = weights[name].clone()
        return sae

    return SaeSource(site, "random", "standard", len(rows), rows.shape[1], "tiny", False, "0", load)


def drawn_prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts of four tokens."""
    draw = np.random.default_rng([seed, 1])
    return draw.integers(8, tiny.VOCAB, (count, 4)).tolist()


def written(prompts: Sequence[Sequence[int]], trials: int, steps: int, seed: int) -> Means:
    """Mean coefficients of every response, [prompt x trial, latent], by site; some responses end
    early."""
    return means_of(generated(prompts, trials, steps, seed))


def generated(prompts: Sequence[Sequence[int]], trials: int, steps: int, seed: int) -> Generated:
    """All trials of all prompts, the trials of a prompt one after the other."""
    model, _ = writing()
    rows = torch.tensor([list(p) for p in prompts]).repeat_interleave(trials, 0)
    keys = keys_of(rows, [i % trials for i in range(len(rows))])
    return generate(
        model,
        rows,
        keys,
        max_new_tokens=steps,
        sampling=Sampling(1.5),
        seed=seed,
        stop=[_STOP],
        watch=SITES,
        top=1,
    )


def means_of(made: Generated) -> Means:
    """Mean coefficients of responses."""
    saes, found = writing()[1], {}
    for site in SITES:
        values = saes[site].encode(made.activations[site]) * made.inside[..., None]
        mean = values.sum(1).double() / made.lengths[:, None]
        found[site] = sparse.csr_array(mean.numpy())
    return found
