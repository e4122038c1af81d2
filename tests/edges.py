"""Edges by hand: TransformerLens' hooks, one leaf at a time, SAEs' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from circuits.attribute.batch import Batch, Sources
from circuits.edges import EdgeTable
from circuits.graph import Node
from circuits.metrics import logit_difference
from circuits.models.hooked import HookedModel
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet
from circuits.sites import Site
from tests.pairs import token_pairs

HOOKS = (
    "blocks.0.hook_resid_post",
    "blocks.1.attn.hook_z",
    "blocks.1.hook_mlp_out",
    "blocks.2.hook_resid_post",
    "blocks.3.hook_mlp_out",
)


SITES = tuple(map(Site.parse, HOOKS))


LATENTS, FIRST, LENGTH = 48, 3, 10


PLACES = (5, 9)


def batch_of(
    model: HookedModel, saes: SaeSet, direction: Any = "denoising", count: int = 3, **more: Any
) -> Batch:
    [group] = token_pairs(count, **more).groups(8)
    return Batch(model, Sources(tuple(saes), saes), group, logit_difference, direction)


def nodes_at(
    saes: SaeSet, positions: Sequence[int | None], sites: Sequence[Site] | None = None
) -> list[Node]:
    """All there are."""
    found = []
    for site, position in product(sites or list(saes), positions):
        if position != 0:
            found += [Node(site, "latent", j, position) for j in range(LATENTS)]
            if saes[site].normalises:
                found.append(Node(site, "offset", -1, position))
        found.append(Node(site, "error", -1, position))
    return found


class ByHand:
    """One pair. clean, base, other: activations of the plain runs, [position, width]; gradients: of
    the metric in the base run."""

    def __init__(
        self,
        model: HookedModel,
        saes: SaeSet,
        pair: int,
        denoising: bool = True,
        pairs: PromptPairs | None = None,
    ) -> None:
        self.bridge: Any = model.module
        self.saes, self.sites = saes, list(SITES if set(saes) == set(SITES) else saes)
        pairs = pairs or token_pairs(3)
        texts = [torch.tensor([t[pair]]) for t in (pairs.clean_tokens, pairs.corrupted_tokens)]
        self.words = pairs.answer_tokens[pair], pairs.foil_tokens[pair]
        self.clean, self.corrupted = (self.cut(t, {}, hold=False)[0] for t in texts)
        self.tokens = texts[1] if denoising else texts[0]
        both = self.clean, self.corrupted
        self.base, self.other = reversed(both) if denoising else both
        leaves = {site: torch.zeros_like(x).requires_grad_() for site, x in self.base.items()}
        _, metric = self.cut(self.tokens, {}, added=leaves, hold=False)
        found = torch.autograd.grad(metric, list(leaves.values()))
        self.gradients = dict(zip(leaves, found, strict=True))

    def cut(
        self,
        tokens: Tensor,
        leaves: Mapping[Site, Tensor],
        *,
        added: Mapping[Site, Tensor] | None = None,
        hold: bool = True,
    ) -> tuple[dict[Site, Tensor], Tensor]:
        """What arrives at each site, and the metric. leaves: what goes on instead; where there is
        none, a fixed copy does (hold), or the activation itself plus `added`."""
        arriving: dict[Site, Tensor] = {}

        def hook_for(site: Site) -> Any:
            def hook(x: Tensor, hook: Any) -> Tensor:
                arriving[site] = x.flatten(2)[0]
                if site in leaves:
                    return leaves[site].reshape(x.shape)
                if hold:
                    return x.detach().clone()
                return x if added is None else x + added[site].reshape(x.shape)

            return hook

        hooks = [(site.hook_name, hook_for(site)) for site in self.sites]
        last = self.bridge.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
        return arriving, last[self.words[0]] - last[self.words[1]]

    @cache  # noqa: B019
    def writes(self, site: Site) -> dict[str, Tensor]:
        """Clean less corrupted: coefficients of latents [position, latent], errors and offsets."""
        found: dict[str, list[Tensor]] = {"latent": [], "error": [], "offset": []}
        for x in (self.clean[site], self.corrupted[site]):
            read = x.detach()
            coefficient, offset = self.coefficients(site, read), self.offset(site, read)
            found["latent"].append(coefficient)
            found["offset"].append(offset)
            found["error"].append(read - offset - coefficient @ self.saes[site].rows)
        later = (torch.arange(LENGTH) >= FIRST)[:, None]
        return {role: (clean - corrupted) * later for role, (clean, corrupted) in found.items()}

    def _scale(self, site: Site, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(what the encoder reads, scale, mean)."""
        module: Any = self.saes[site].module
        mean, scale, eps = torch.zeros(1), torch.ones(1), 0.0
        if module.cfg.normalize_activations == "layer_norm":
            mean, scale, eps = x.mean(-1, keepdim=True), x.std(-1, keepdim=True), 1e-5
        elif module.cfg.normalize_activations == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return (x - mean) / (scale + eps) - module.b_dec, scale, mean

    def preactivations(self, site: Site, x: Tensor) -> Tensor:
        """Effective ones, differentiable."""
        module: Any = self.saes[site].module
        read, scale, _ = self._scale(site, x)
        if module.cfg.architecture() == "gated":
            return (read @ (module.W_enc * module.r_mag.exp()) + module.b_mag) * scale
        return (read @ module.W_enc + module.b_enc) * scale

    def coefficients(self, site: Site, x: Tensor) -> Tensor:
        """By SAELens' own encoder."""
        module: Any = self.saes[site].module
        return module.encode(x[None])[0].detach() * self._scale(site, x)[1]

    def offset(self, site: Site, x: Tensor) -> Tensor:
        module: Any = self.saes[site].module
        _, scale, mean = self._scale(site, x)
        return module.b_dec * scale + mean + torch.zeros_like(x)

    def through(self, site: Site, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """<what each node writes, g>, of what arrives: [position] or [position, latent]."""
        coefficients, offset = self.coefficients(site, x), self.offset(site, x)
        rows = self.saes[site].rows
        return {
            "latent": coefficients * (g @ rows.T),
            "offset": (offset * g).sum(-1),
            "error": ((x - offset - coefficients @ rows) * g).sum(-1),
        }

    def moved(self, site: Site, step: float = 1e-4) -> Tensor:
        """What all earlier sites' changes add to what arrives, to first order: a central difference
        of the run in which every site has a leaf."""
        ends = []
        for sign in (1, -1):
            leaves = {}
            for s in self.sites:
                change = self.other[s] - self.base[s]
                leaves[s] = (self.base[s] + sign * step * change).detach()
            ends.append(self.cut(self.tokens, leaves)[0][site])
        return ((ends[0] - ends[1]) / (2 * step)).detach()

    def slopes(self, site: Site, gates: str) -> Tensor:
        """[position, latent]."""
        x = self.base[site].detach()
        before = self.coefficients(site, x)
        local = (before != 0).double()
        if gates == "local":
            return local
        move = self.moved(site)
        step = 1e-5
        up, down = (self.preactivations(site, x + sign * step * move) for sign in (1, -1))
        along = (up - down) / (2 * step)
        after = self.coefficients(site, x + move)
        return torch.where(along.abs() > 1e-9, (after - before) / along, local)

    def quantity(self, node: Node, x: Tensor, slopes: Tensor) -> Tensor:
        """What of the metric goes through a node, as a function of what arrives at its site."""
        q, g = node.position, self.gradients[node.site]
        assert q is not None
        shares = self.saes[node.site].rows @ g[q]
        made = self.preactivations(node.site, x)[q] * slopes[q] * shares
        offset = (self.offset(node.site, x)[q] * g[q]).sum()
        if node.role == "latent":
            return made[node.latent]
        return offset if node.role == "offset" else (x[q] * g[q]).sum() - made.sum() - offset

    def edges(
        self, target: Node | None, slopes: Mapping[Site, Tensor]
    ) -> dict[Site, dict[str, Tensor]]:
        """From every node of every earlier site: by role [position] or, of latents, [position,
        latent]."""
        found = {}
        ends = len(self.sites) if target is None else self.sites.index(target.site)
        for site in self.sites[:ends]:
            leaf = self.base[site].detach().requires_grad_()
            arriving, metric = self.cut(self.tokens, {site: leaf})
            value = metric
            if target is not None:
                value = self.quantity(target, arriving[target.site], slopes[target.site])
            gradient = torch.zeros_like(leaf)
            if value.requires_grad:
                [got] = torch.autograd.grad(value, leaf, allow_unused=True)
                gradient = gradient if got is None else got
            writes = self.writes(site)
            found[site] = {
                "latent": writes["latent"] * (gradient @ self.saes[site].rows.T),
                "error": (writes["error"] * gradient).sum(-1),
                "offset": (writes["offset"] * gradient).sum(-1),
            }
        return found


def in_order(
    edges: Mapping[Site, Mapping[str, Tensor]], saes: SaeSet, sites: Sequence[Site]
) -> Tensor:
    """From all nodes of `sites` at positions from FIRST on, in the order of `nodes_at`; 0 from
    sites that are not before the target's."""
    found = []
    for site in sites:
        roles = ["latent", "offset", "error"] if saes[site].normalises else ["latent", "error"]
        count = LATENTS + len(roles) - 1
        part = torch.zeros(LENGTH, count, dtype=torch.float64)
        if site in edges:
            part = torch.cat([edges[site][role].reshape(LENGTH, -1) for role in roles], 1)
        found.append(part[FIRST:].flatten())
    return torch.cat(found)


def some_targets(hand: ByHand, table: EdgeTable, gates: str) -> list[Node]:
    """At each later site and place the two strongest latents that are open in the base run and the
    strongest closed one, the error, and the offset if there is one."""
    found: list[Node] = []
    weight = table.dense()[:, :-1].abs().sum((0, 2))
    strength = dict(zip(table.targets, weight.tolist(), strict=False))
    for site, place in product(hand.sites[1:], PLACES):
        open_now = hand.coefficients(site, hand.base[site].detach())[place] != 0
        latents = [Node(site, "latent", j, place) for j in range(LATENTS)]
        latents.sort(key=lambda node: -strength[node])
        found += [n for n in latents if open_now[n.latent]][:2]
        found += [n for n in latents if not open_now[n.latent]][:1]
        found.append(Node(site, "error", -1, place))
        if hand.saes[site].normalises:
            found.append(Node(site, "offset", -1, place))
    return found
