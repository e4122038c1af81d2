"""One run cut at some sites: what arrives at each is a function of the sites before it, and what
goes on from each is a value of its own.

The activation that arrives at a site is kept with its graph, and a leaf of the same value goes on
in its place. Differentiating what arrives at one site with respect to the leaves of others then
follows exactly the paths that cross no third one. Moves of the leaves can be carried along to first
order in the same pass (forward-mode derivatives): they give how far every arriving activation is
moved by all leaves before it together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from circuits.models.adapters import Prefix
from circuits.models.edits import Edit, hook_edit
from circuits.models.hooks import HookSet
from circuits.models.memory import out_of_memory
from circuits.models.resume import earliest
from circuits.sites import Site, forward_order

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel


class _Enough(Exception):
    """The last site has been computed."""


@dataclass(frozen=True)
class Blocked:
    """Per site, in forward order, [pair, position - start, width] (`z` with its heads side by
    side): arriving, with its graph; leaves; moved, what the moves of all earlier leaves add to
    `arriving`, to first order (0 without any).

    logits: at the last position, with their graph; None in runs that end at the last site.
    """

    arriving: dict[Site, Tensor]
    leaves: dict[Site, Tensor]
    moved: dict[Site, Tensor]
    logits: Tensor | None

    def sources(self, of: Tensor) -> tuple[Site, ...]:
        """The sites whose leaves `of` depends on directly; found in the graph, nothing is run."""
        known = {id(leaf): site for site, leaf in self.leaves.items()}
        found, seen, waiting = set(), set(), [of.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            found.add(known.get(id(getattr(node, "variable", None))))
            waiting += [following for following, _ in node.next_functions]
        return tuple(site for site in self.leaves if site in found)

    def pull_back(
        self, of: Tensor, cotangents: Float[Tensor, "slot ..."], sources: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "slot pair position width"]]:
        """Gradients of <of, cotangent> at the leaves of `sources`, for many cotangents at once.

        One after the other where the model has an operation that cannot be batched.
        """
        leaves = [self.leaves[site] for site in sources]

        def differentiate(cotangent: Tensor, together: bool) -> tuple[Tensor, ...]:
            return torch.autograd.grad(
                of, leaves, cotangent, is_grads_batched=together, retain_graph=True
            )

        try:
            found = differentiate(cotangents, True)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            each = [differentiate(cotangent, False) for cotangent in cotangents]
            found = [torch.stack(gradients) for gradients in zip(*each, strict=True)]
        return dict(zip(sources, found, strict=True))


class BlockedRuns:
    """Runs of some prompts, cut at `sites`.

    first: the first position that is asked for. start: the first that there is: where the model can
        be resumed, positions before `first` and layers below the first site are run once, without
        gradients, and not again; otherwise runs are full ones and start at 0.
    known: activations of these prompts that need not be computed for that.

    The middle of the stream is cut through attn_out, as edits of it are. Raises `SiteError` for
    sites that the model lacks, and for two that are one tensor.
    """

    def __init__(
        self,
        model: HookedModel,
        tokens: Int[Tensor, "pair position"],
        first: int,
        sites: Sequence[Site],
        known: Mapping[Site, Float[Tensor, "pair position width"]],
    ) -> None:
        self._model, self.sites = model, forward_order(sites)
        for site in self.sites:
            model.require(site.kind)
        self._tokens = tokens.to(model.device)
        self.start = first if model.can_resume else 0
        if not model.can_resume:
            return
        # Of one position at least, of which nothing is used where there is no prefix.
        self._prefix = model.baseline(tokens[:, : max(first, 1)]).keys_values
        self._layer = earliest(self.sites[0], model.n_layers).layer
        entry = Site(self._layer, "resid_pre")
        found = {earliest(site, model.n_layers): x for site, x in known.items()}
        if entry not in found:
            found = model.activations(tokens, [entry])
        self._entering = found[entry][:, first:].to(model.device)

    def run(
        self,
        stop: int,
        moves: Mapping[Site, Float[Tensor, "pair position width"]] | None = None,
        *,
        to_logits: bool = False,
    ) -> Blocked:
        """The positions before `stop`; later ones do not act on them.

        moves: of the leaves, at all positions of the prompts.
        to_logits: otherwise the run ends at the last site.
        """
        made = Blocked({}, {}, {}, None)
        adapter = self._model.adapter

        def change(hooks: HookSet) -> None:
            # In forward order: attn_out is cut before the middle of the stream is made of it.
            for site in self.sites:
                last = site == self.sites[-1]
                edit = self._cut(site, made, None if last else moves, last and not to_logits)
                hook_edit(hooks, adapter, earliest(site, self._model.n_layers), edit, self.start)

        # Fused attention has no forward-mode derivatives.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), forward_ad.dual_level():
            try:
                logits = self._forward(stop, change)
            except _Enough:
                return made
        return Blocked(made.arriving, made.leaves, made.moved, logits)

    def _cut(
        self, site: Site, made: Blocked, moves: Mapping[Site, Tensor] | None, ends: bool
    ) -> Edit:
        def edit(x: Tensor, start: int) -> Tensor:
            value, tangent = forward_ad.unpack_dual(x)
            leaf = value.detach().requires_grad_()
            made.arriving[site], made.leaves[site] = value, leaf
            made.moved[site] = torch.zeros_like(leaf) if tangent is None else tangent.detach()
            if ends:
                raise _Enough
            if moves is None:
                return leaf
            move = moves[site][:, start : start + x.shape[1]]
            return forward_ad.make_dual(leaf, move.to(leaf))

        return edit

    def _forward(self, stop: int, change: Callable[[HookSet], None]) -> Tensor:
        adapter, tokens = self._model.adapter, self._tokens[:, :stop]
        with HookSet() as hooks:
            if not self._model.can_resume:
                self._model.hook_inputs(hooks, self._model.inputs(tokens))
                change(hooks)
                return adapter.forward(tokens)
            entering = self._entering[:, : stop - self.start]
            block = adapter.blocks[self._layer]
            hooks.on_input(block, f"entry of layer {self._layer}", lambda hidden: entering)
            change(hooks)
            rows = torch.arange(len(tokens), device=tokens.device)
            prefix = Prefix(self._prefix, self.start, [rows] * adapter.n_layers)
            return adapter.forward_from(self._layer, tokens[:1, self.start :], prefix)
