"""What the tests of replay share: random SAEs on tiny models, and a slow generation to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from circuits.models.hooked import HookedModel
from circuits.saes import SaeSet
from circuits.saes.collection import SaeSource
from circuits.sites import SITE_KINDS, Site
from tests.unit.test_saes import LATENTS, WIDTH, make_sae

PRE, POST, LATE = Site(1, "resid_pre"), Site(1, "resid_post"), Site(3, "resid_post")


def random_saes(
    sites: Sequence[Site],
    architecture: str = "jumprelu",
    memory: int | None = None,
    dtype: torch.dtype = torch.float32,
    **more: object,
) -> SaeSet:
    """Random SAEs of 48 latents on the streams of a tiny model."""

    def source(site: Site, seed: int) -> SaeSource:
        def load(device: torch.device) -> object:
            made = make_sae(architecture, site.hook_name, seed=seed, **more)  # pyright: ignore
            return made.to(dtype)

        return SaeSource(
            site, f"random-{site}", architecture, LATENTS, WIDTH, "tiny", False, f"sha-{site}", load
        )

    found = {site: source(site, 10 * site.layer + SITE_KINDS.index(site.kind)) for site in sites}
    return SaeSet(found, torch.device("cpu"), memory)


def slowly(
    model: HookedModel,
    prompt: Tensor,
    edits: Mapping[Site, Callable[[Tensor, int], Tensor]],
    choose: Callable[[Tensor, int], int],
    steps: int,
) -> tuple[list[int], list[Tensor]]:
    """One row, every step a whole forward without a cache: its tokens, and the logits chosen
    from."""
    tokens, seen = prompt[None], []
    for step in range(steps):
        logits = model.run_all_positions(tokens, edits)[0, -1]
        seen.append(logits)
        tokens = torch.cat([tokens, torch.tensor([[choose(logits, step)]])], 1)
    return tokens[0, len(prompt) :].tolist(), seen
