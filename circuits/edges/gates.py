"""What the nodes of one site make of a change of its activation: their cotangents.

With x the activation of the base run at a position, g the gradient of the metric there, and a_j,
z_j the effective coefficient and pre-activation of latent j (a_j = z_j where its gate is open), a
change of x by v changes the metric

    through latent j by    <d_j, g> s_j <c_j, v>        c_j = dz_j / dx
    through the offset by  <g, offset'(x) v>            SAEs that normalise their input
    through the error by   <g, v> less all of these

so that all nodes of a position together have the cotangent g, whatever the slopes s_j. Those are

    local   1 where the gate is open and 0 where it is closed: the derivative of a_j;
    secant  (a_j(x + m) - a_j(x)) / <c_j, m> with m the change of x that all earlier sites' changes
            cause to first order: then what comes in at a latent adds up to <d_j, g> times the
            change of a_j that m makes. Where the quotient means nothing (<c_j, m> is rounding), the
            local slope is taken.

At position 0 SAEs are not used, everything is error: its cotangent is g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from circuits.edges.plan import Gates
from circuits.graph import Node
from circuits.saes import Sae

_DENSE_AT_ONCE = 1 << 22  # latents, zeros included, that are held at once
# Of |c_j| |m|, under which <c_j, m> is taken for rounding; by bytes of the coarser type.
_SMALLEST = {8: 1e-6, 4: 1e-4, 2: 1e-2}
_ERROR, _OFFSET = -1, -2  # in place of a latent's column


@dataclass(frozen=True)
class Run:
    """The base run at a site, [pair, position, width]. x: the activation; gradient: of the metric;
    move: what all earlier sites' changes add to x to first order, from base to the other run.

    first: the first position of each pair at which the runs differ. itemsize: bytes of a number in
    the coarser of the model's and the SAE's type.
    """

    x: Float[Tensor, "pair position width"]
    gradient: Float[Tensor, "pair position width"]
    move: Float[Tensor, "pair position width"]
    first: Int[Tensor, " pair"]
    itemsize: int


class SiteTargets:
    """What some nodes of a site make of a change there.

    unsteady: |<d_j, g> (change of a_j)| of latents that had to take the local slope, and of all
        latents among the nodes, [pair, 2], float64.
    """

    def __init__(self, sae: Sae, nodes: Sequence[Node], run: Run, gates: Gates) -> None:
        self.sae, self.run, self.gates = sae, run, gates
        device = run.x.device
        latents = sorted({node.latent for node in nodes if node.role == "latent"})
        column = {latent: i for i, latent in enumerate(latents)}
        special = {"error": _ERROR, "offset": _OFFSET}
        self.latents = torch.tensor(latents, device=device, dtype=torch.long)
        columns = [special.get(node.role, column.get(node.latent, 0)) for node in nodes]
        self.columns = torch.tensor(columns, device=device)
        positions = [-1 if node.position is None else node.position for node in nodes]
        self._positions = torch.tensor(positions, device=device)
        self._roles = {node.role for node in nodes}
        self.pair, self.place = self._needed().nonzero(as_tuple=True)
        self.betas, sizes, self.errors, self.offsets = self._all_rows()
        self.there = self._there(sizes)

    def _needed(self) -> Bool[Tensor, "pair position"]:
        """Where a node is asked for and there is something to change."""
        pairs, length, _ = self.run.x.shape
        wanted = torch.zeros(length, dtype=torch.bool, device=self.run.x.device)
        wanted[self._positions[self._positions >= 0]] = True
        if (self._positions < 0).any():
            wanted[1:] = True
        later = torch.arange(length, device=wanted.device) >= self.run.first[:, None]
        return wanted.expand(pairs, length) & later

    def _all_rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """At every needed place: <d_j, g> s_j of the latents that are asked for; |<d_j, g> (change
        of a_j)| of those without a secant, and of all; cotangents of error and of offset."""
        found = []
        rows = torch.arange(len(self.pair), device=self.pair.device)
        for part in rows.split(max(1, _DENSE_AT_ONCE // self.sae.d_sae)):
            where = (self.pair[part], self.place[part])
            run, dtype = self.run, self.sae.dtype
            x, g, move = (t[where].to(dtype) for t in (run.x, run.gradient, run.move))
            found.append(self._rows(x, g, move, self.place[part] == 0))
        if not found:
            empty = self.run.x.new_zeros(0, len(self.latents), dtype=self.sae.dtype)
            vectors = self.run.x.new_zeros(0, self.sae.width, dtype=self.sae.dtype)
            return empty, torch.stack([empty, empty], -1), vectors, vectors
        parts = [torch.cat(each) for each in zip(*found, strict=True)]
        return parts[0], parts[1], parts[2], parts[3]

    def _rows(
        self, x: Tensor, g: Tensor, move: Tensor, begins: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sae, asked = self.sae, self.latents
        leaf = x.detach().requires_grad_()
        with torch.enable_grad(), forward_ad.dual_level():
            dual = sae.preactivations(forward_ad.make_dual(leaf, move))
            before, tangent = forward_ad.unpack_dual(dual)
        along = torch.zeros_like(before) if tangent is None else tangent.detach()
        slope, change, unsteady = self._slopes(x, move, along)
        amount = (g @ sae.rows[asked].T) * ~begins[:, None]
        betas = amount * slope[:, asked]
        sizes = (amount * change[:, asked]).abs()
        sizes = torch.stack([sizes * unsteady[:, asked], sizes], -1)
        error, offset = torch.zeros_like(g), torch.zeros_like(g)
        if sae.normalises and self._roles & {"error", "offset"}:
            with torch.enable_grad():
                [offset] = torch.autograd.grad(sae.offsets(leaf), leaf, g)
            offset = offset * ~begins[:, None]
        if "error" in self._roles:
            weights = (g @ sae.rows.T) * slope * ~begins[:, None]
            [through] = torch.autograd.grad(before, leaf, weights)
            error = g - through - offset
        return betas, sizes, error, offset

    def _slopes(self, x: Tensor, move: Tensor, along: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(slopes, changes of coefficients, whether a latent that changes has no secant), each
        [row, latent]. along: <c_j, move>."""
        before = self.sae.coefficients(x)
        local = (before != 0).to(before)
        if self.gates == "local":
            return local, local * along, torch.zeros_like(local, dtype=torch.bool)
        change = self.sae.coefficients(x + move) - before
        size = move.norm(dim=-1, keepdim=True) * self.sae.encoder_norms
        small = along.abs() <= _SMALLEST[self.run.itemsize] * size
        secant = change / torch.where(small, torch.ones_like(along), along)
        return torch.where(small, local, secant), change, small

    def _there(self, sizes: Float[Tensor, "row latent 2"]) -> Bool[Tensor, "node row"]:
        """Which rows each node has something to do with."""
        every = self._positions[:, None] < 0
        here = torch.where(every, self.place > 0, self._positions[:, None] == self.place)
        latent = self.columns >= 0
        node, row = (here & latent[:, None]).nonzero(as_tuple=True)
        self.unsteady = sizes.new_zeros(len(self.run.x), 2, dtype=torch.float64)
        self.unsteady.index_add_(0, self.pair[row], sizes[row, self.columns[node]].double())
        here[latent] &= (self.betas[:, self.columns[latent]] != 0).T
        return here


class Slots:
    """Cotangents of some of the nodes, in slots: a slot has at most one node a pair, so that pairs,
    which do not see each other, share a backward pass whatever their nodes.

    nodes: which of those of `made`. node: [slot, pair], places in them (-1 for none). Nodes through
    which nothing goes in a pair have no slot there.
    """

    def __init__(self, made: SiteTargets, nodes: Int[Tensor, " some"]) -> None:
        self._made = made
        nodes = nodes.to(made.columns.device)
        node, row = made.there[nodes].nonzero(as_tuple=True)
        pairs = len(made.run.x)
        keys, which = (made.pair[row] * len(nodes) + node).unique(return_inverse=True)
        pair = keys.div(max(len(nodes), 1), rounding_mode="floor")
        begins = torch.searchsorted(pair, torch.arange(pairs, device=pair.device))
        slot = torch.arange(len(keys), device=pair.device) - begins[pair]
        count = int(slot.max()) + 1 if len(slot) else 0
        self.node = torch.full((count, pairs), -1, device=pair.device)
        self.node[slot, pair] = keys - pair * len(nodes)
        order = slot[which].argsort(stable=True)
        self._slot, self._row = slot[which][order], row[order]
        self._column = made.columns[nodes[node]][order]

    def __len__(self) -> int:
        return len(self.node)

    def cotangents(
        self, slots: range, positions: range
    ) -> Float[Tensor, "slot pair position width"]:
        """Of some slots at some positions, outside of which they are 0; in the model's type."""
        made, run = self._made, self._made.run
        bounds = torch.tensor([slots.start, slots.stop], device=self._slot.device)
        begin, end = torch.searchsorted(self._slot, bounds).tolist()
        slot, row, column = (t[begin:end] for t in (self._slot, self._row, self._column))
        is_offset = (column == _OFFSET)[:, None]
        vectors = torch.where(is_offset, made.offsets[row], made.errors[row])
        latent = (column >= 0).nonzero().squeeze(1)
        if len(latent):
            at, which = row[latent], column[latent]
            x = run.x[made.pair[at], made.place[at]].to(made.sae.dtype)
            leaf = x.detach().requires_grad_()
            with torch.enable_grad():
                taken = made.sae.preactivations(leaf, made.latents[which])
                [directions] = torch.autograd.grad(taken.sum(), leaf)
            vectors[latent] = made.betas[at, which][:, None] * directions
        shape = (len(slots), len(run.x), len(positions), run.x.shape[-1])
        places = (slot - slots.start, made.pair[row], made.place[row] - positions.start)
        return run.x.new_zeros(shape).index_put_(places, vectors.to(run.x))
