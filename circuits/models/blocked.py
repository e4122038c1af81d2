"""One run cut at some sites: what arrives at each is a function of the sites before it, and what
goes on from each is a value of its own.

The activation that arrives at a site is kept with its graph, and a leaf of the same value goes on
in its place. Differentiating what arrives at one site with respect to the leaves of others then
follows exactly the paths that cross no third one. Moves of the leaves can be carried along to first
order in the same pass (forward-mode derivatives): they give how far every arriving activation is
moved by all leaves before it together.

Where thoughts are made while the model runs (`circuits.models.stepped`), the run is cut at all
sites in every piece of it. What arrives at a site in a piece is then a function of the leaves below
it in this piece, and of those in earlier pieces that are seen through keys and values or through a
thought: of lower and of higher sites.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from circuits.models.stepped import Change, Known, pieces, run_stepped
from circuits.sites import Site, forward_order

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel


Place = tuple[Site, int]  # a site, and the number of a piece of the run


class _Enough(Exception):
    """The last site has been computed."""


@dataclass(frozen=True)
class Blocked:
    """Per site, in forward order, one tensor a piece [pair, position - its start, width] (`z` with
    its heads side by side): arriving, with its graph; leaves; moved, what the moves of all earlier
    leaves add to `arriving`, to first order (0 without any).

    bounds: start and stop of every piece; one piece where no thoughts are made on the way.
    logits: at the last position, with their graph; None in runs that end at the last site.
    """

    bounds: tuple[tuple[int, int], ...]
    arriving: dict[Site, list[Tensor]]
    leaves: dict[Site, list[Tensor]]
    moved: dict[Site, list[Tensor]]
    logits: Tensor | None

    def piece(self, position: int) -> int:
        """The number of the piece that a position is in; -1 before the first."""
        return bisect_right([start for start, _ in self.bounds], position) - 1

    def sources(self, of: Tensor) -> tuple[Place, ...]:
        """The places whose leaves `of` depends on directly; found in the graph, nothing is run."""
        known = {id(leaf): (s, i) for s, each in self.leaves.items() for i, leaf in enumerate(each)}
        found, seen, waiting = set(), set(), [of.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            found.add(known.get(id(getattr(node, "variable", None))))
            waiting += [following for following, _ in node.next_functions]
        return tuple(place for place in known.values() if place in found)

    def pull_back(
        self, of: Tensor, cotangents: Float[Tensor, "slot ..."], sources: Sequence[Place]
    ) -> dict[Site, Float[Tensor, "slot pair position width"]]:
        """Gradients of <of, cotangent> at the leaves of `sources`, for many cotangents at once: per
        site from the run's start on, until the end of its last piece in `sources`, and 0 in pieces
        that are not.

        One after the other where the model has an operation that cannot be batched.
        """
        leaves = [self.leaves[site][piece] for site, piece in sources]

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
        by_site: dict[Site, dict[int, Tensor]] = {}
        for (site, piece), gradient in zip(sources, found, strict=True):
            by_site.setdefault(site, {})[piece] = gradient
        return {site: self._joined(site, parts) for site, parts in by_site.items()}

    def _joined(self, site: Site, parts: Mapping[int, Tensor]) -> Tensor:
        if list(parts) == [0]:
            return parts[0]
        some = next(iter(parts.values()))
        every = [
            parts[i] if i in parts else some.new_zeros(len(some), *self.leaves[site][i].shape)
            for i in range(max(parts) + 1)
        ]
        return torch.cat(every, 2)


class BlockedRuns:
    """Runs of some prompts, cut at `sites`.

    first: the first position that is asked for. start: the first that there is: where the model can
        be resumed, positions before `first` and layers below the first site are run once, without
        gradients, and not again; otherwise runs are full ones and start at 0.
    rolled: whether thoughts are made on the way. Then all layers are run, as thoughts need them.
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
        self._given = model.inputs(tokens)
        self.rolled = self._given.rolled
        if self.rolled:
            self._known = self._before(first) if self.start else None
            return
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

    @torch.no_grad()
    def _before(self, first: int) -> Known:
        """What a run that makes its thoughts takes over of the positions before its start."""
        adapter = self._model.adapter
        made = run_stepped(adapter, self._given, self._model.change())
        rows = torch.arange(len(self._tokens), device=self._tokens.device)
        return Known(first, adapter.cut(adapter.kept(made.cache), first, rows), made.thoughts)

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

        Runs that make their thoughts are whole ones whatever `stop` and `to_logits` say: the last
        site acts on lower ones at later positions.
        """
        bounds = pieces(self._given, self.start) if self.rolled else [(self.start, stop)]
        arriving, leaves, moved = ({site: [] for site in self.sites} for _ in range(3))
        made = Blocked(tuple(bounds), arriving, leaves, moved, None)
        adapter, whole = self._model.adapter, to_logits or self.rolled

        def change(hooks: HookSet, start: int, stop: int) -> None:
            # In forward order: attn_out is cut before the middle of the stream is made of it.
            for site in self.sites:
                last = site == self.sites[-1]
                moving = None if last and not self.rolled else moves
                edit = self._cut(site, made, moving, last and not whole)
                hook_edit(hooks, adapter, earliest(site, self._model.n_layers), edit, start)

        # Fused attention has no forward-mode derivatives.
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), forward_ad.dual_level():
            try:
                logits = self._forward(stop, change)
            except _Enough:
                return made
        return replace(made, logits=logits)

    def _cut(
        self, site: Site, made: Blocked, moves: Mapping[Site, Tensor] | None, ends: bool
    ) -> Edit:
        def edit(x: Tensor, start: int) -> Tensor:
            value, tangent = forward_ad.unpack_dual(x)
            leaf = value.detach().requires_grad_()
            made.arriving[site].append(value)
            made.leaves[site].append(leaf)
            moved = torch.zeros_like(leaf) if tangent is None else tangent.detach()
            made.moved[site].append(moved)
            if ends:
                raise _Enough
            if moves is None:
                return leaf
            move = moves[site][:, start : start + x.shape[1]]
            return forward_ad.make_dual(leaf, move.to(leaf))

        return edit

    def _forward(self, stop: int, change: Change) -> Tensor:
        adapter, tokens = self._model.adapter, self._tokens[:, :stop]
        if self.rolled:
            cut = self._model.change(change)
            return run_stepped(adapter, self._given, cut, known=self._known).logits[:, -1]
        with HookSet() as hooks:
            if not self._model.can_resume:
                self._model.hook_inputs(hooks, self._model.inputs(tokens))
                change(hooks, self.start, stop)
                return adapter.forward(tokens)
            entering = self._entering[:, : stop - self.start]
            block = adapter.blocks[self._layer]
            hooks.on_input(block, f"entry of layer {self._layer}", lambda hidden: entering)
            change(hooks, self.start, stop)
            rows = torch.arange(len(tokens), device=tokens.device)
            prefix = Prefix(self._prefix, self.start, [rows] * adapter.n_layers)
            return adapter.forward_from(self._layer, tokens[:1, self.start :], prefix)
