"""Circuits run a second time, as plainly as possible: one full forward a circuit, reference and
pair, dense encodings, no sharing of anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from circuits.models.edits import Edit
from circuits.models.hooked import HookedModel
from circuits.saes import Sae, SaeSet
from circuits.sites import Site

# Whether a node is kept: (site, role, latent, position).
Keep = Callable[[Site, str, int, int], bool]
Parts = tuple[Tensor, Tensor, Tensor]  # coefficients [position, latent], error, offset


def parts_of(sae: Sae, x: Tensor) -> Parts:
    """The parts of activations [position, width] from SAELens' own encode and decode."""
    module = sae.module
    x = x[None]
    features = module.encode(x)  # pyright: ignore
    rebuilt = module.decode(features)[0]  # pyright: ignore
    scale = torch.ones_like(x[0, :, :1])
    kind = module.cfg.normalize_activations  # pyright: ignore
    if kind == "layer_norm":
        scale = x[0].std(-1, keepdim=True)
    elif kind == "constant_norm_rescale":
        scale = x[0].norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    coefficients = features[0] * scale
    offset = rebuilt - coefficients @ sae.rows
    return coefficients, x[0] - rebuilt, offset


def joined(sae: Sae, parts: Parts) -> Tensor:
    return parts[0] @ sae.rows + parts[1] + parts[2]


def mixed(sae: Sae, site: Site, now: Parts, other: Parts, keep: Keep, start: int = 0) -> Tensor:
    """Activations with kept nodes as they are and others as in `other`; position 0 untouched.
    start: the position of the first in `now`."""
    length = len(now[1])
    latents, error, offset = (part[start : start + length].clone() for part in other)
    for i in range(length):
        position = start + i
        if position == 0:
            latents[0], error[0], offset[0] = now[0][0], now[1][0], now[2][0]
            continue
        # A constant offset is the same in both.
        for role, into, source in (("error", error, now[1]), ("offset", offset, now[2])):
            if keep(site, role, -1, position):
                into[i] = source[i]
        for latent in range(latents.shape[1]):
            if keep(site, "latent", latent, position):
                latents[i, latent] = now[0][i, latent]
    return joined(sae, (latents, error, offset))


def reference_parts(
    model: HookedModel, saes: SaeSet, name: str, corrupted: Tensor, prompts: Sequence[Tensor]
) -> dict[Site, Parts]:
    """corrupted: tokens of the corrupted prompt; prompts: all over which the mean is taken."""

    def run(tokens: Tensor) -> dict[Site, Parts]:
        _, values = model.cache(tokens[None], list(saes))
        return {site: parts_of(saes[site], values[site][0]) for site in saes}

    if name == "corrupted":
        return run(corrupted)
    runs = [run(tokens) for tokens in prompts]
    found: dict[Site, Parts] = {}
    for site in saes:
        means = [torch.stack([r[site][k] for r in runs]).mean(0) for k in range(3)]
        if name == "zero":
            means[0], means[1] = torch.zeros_like(means[0]), torch.zeros_like(means[1])
            if saes[site].normalises:
                means[2] = torch.zeros_like(means[2])
        found[site] = (means[0], means[1], means[2])
    return found


def run_circuit(
    model: HookedModel, saes: SaeSet, tokens: Tensor, other: dict[Site, Parts], keep: Keep
) -> Tensor:
    """Logits at the last position of one prompt."""

    def edit(site: Site) -> Edit:
        def apply(x: Tensor, start: int) -> Tensor:
            sae = saes[site]
            return mixed(sae, site, parts_of(sae, x[0]), other[site], keep, start)[None]

        return apply

    edits = {site: edit(site) for site in saes}
    return model.run_all_positions(tokens[None], edits)[0, -1]
