"""Tiny models that think, and their runs unrolled by hand: whole forwards without a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from circuits.graph import Node
from circuits.models.hooked import HookedModel
from circuits.models.thoughts import Thoughts
from circuits.prompts import PromptPairs
from circuits.sites import Site
from tests import tiny
from tests.edges import ByHand
from tests.pairs import token_pairs
from tests.unit.test_stepped import projection

SLOT, SLOTS = tiny.VOCAB - 1, (5, 6, 8)


def thinking(kind: str = "gpt2", dtype: torch.dtype = torch.float64) -> HookedModel:
    plain = kind == "hooked_transformer"
    model = tiny.hooked_transformer() if plain else tiny.bridge(kind, dtype)
    model.thoughts = Thoughts(SLOT, projection(model.dtype))
    return model


def with_slots(pairs: PromptPairs, slots: Sequence[int] = SLOTS) -> PromptPairs:
    sides = []
    for side in (pairs.clean_tokens, pairs.corrupted_tokens):
        tokens = torch.tensor(side)
        tokens[tokens == SLOT] = 3
        tokens[:, list(slots)] = SLOT
        sides.append(tuple(map(tuple, tokens.tolist())))
    return replace(pairs, clean_tokens=sides[0], corrupted_tokens=sides[1])


class Unrolled(ByHand):
    """Every thought from a whole forward of all that stands before it, without a cache, and then
    the whole prompt. The sites are set or read in each of them."""

    def __init__(self, model: HookedModel, *args: Any, **more: Any) -> None:
        assert model.thoughts is not None
        self.step: nn.Module = model.thoughts.step
        super().__init__(model, *args, pairs=with_slots(token_pairs(3)), **more)

    def cut(
        self,
        tokens: Tensor,
        leaves: Mapping[Site, Tensor],
        *,
        added: Mapping[Site, Tensor] | None = None,
        hold: bool = True,
    ) -> tuple[dict[Site, Tensor], Tensor]:
        thoughts: list[Tensor] = []
        arriving: dict[Site, Tensor] = {}
        normed: list[Tensor] = []

        def fill(x: Tensor, hook: Any) -> Tensor:
            x = x.clone()
            for slot, thought in zip(SLOTS, thoughts, strict=False):
                if slot < x.shape[1]:
                    x[:, slot] = thought
            return x

        def hook_for(site: Site) -> Any:
            def hook(x: Tensor, hook: Any) -> Tensor:
                arriving[site] = x.flatten(2)[0]
                if site in leaves:
                    return leaves[site][: x.shape[1]].reshape(x.shape)
                if hold:
                    return x.detach().clone()
                return x if added is None else x + added[site][: x.shape[1]].reshape(x.shape)

            return hook

        def read(x: Tensor, hook: Any) -> None:
            normed.append(x)

        hooks = [("embed.hook_out", fill), ("ln_final.hook_out", read)]
        hooks += [(site.hook_name, hook_for(site)) for site in self.sites]
        for slot in SLOTS:
            self.bridge.run_with_hooks(tokens[:, :slot], fwd_hooks=hooks)
            thoughts.append(self.step(normed[-1][:, slot - 1]))
        last = self.bridge.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
        return arriving, last[self.words[0]] - last[self.words[1]]

    @cached_property
    def _blocked(self) -> tuple[dict[Site, Tensor], dict[Site, Tensor], Tensor]:
        """(leaves at all sites, what arrives there, metric)."""
        leaves = {site: x.detach().clone().requires_grad_() for site, x in self.base.items()}
        return leaves, *self.cut(self.tokens, leaves)

    def into(self, target: Node | None, slopes: Mapping[Site, Tensor]) -> dict[Site, Any]:
        """Edges from every node of every site, as `in_order` takes them."""
        leaves, arriving, value = self._blocked
        if target is not None:
            value = self.quantity(target, arriving[target.site], slopes[target.site])
        gradients = [torch.zeros_like(leaf) for leaf in leaves.values()]
        if value.requires_grad:
            gradients = torch.autograd.grad(
                value, list(leaves.values()), retain_graph=True, materialize_grads=True
            )
        found = {}
        for site, gradient in zip(leaves, gradients, strict=True):
            write = self.writes(site)
            found[site] = {role: (write[role] * gradient).sum(-1) for role in ("error", "offset")}
            found[site]["latent"] = write["latent"] * (gradient @ self.saes[site].rows.T)
        return found
