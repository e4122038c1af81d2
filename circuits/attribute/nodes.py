"""The nodes of a site for a batch of pairs: what each writes in the clean and in the corrupted run.

With an SAE, the activations of the two runs are x = offset + sum_i a_i d_i + e, with effective
coefficients a_i = scale * f_i. The nodes are the latents that are active in either run, the error
e, and the offset where it differs between the runs (only with SAEs that normalise their input).
What a node changes is its clean write minus its corrupted one; over all nodes of a position these
add up to x_clean - x_corrupted exactly. Without an SAE the whole activation is one node, at `z` one
a head.

Positions before the first difference of a pair have no nodes: nothing differs there. At the first
position of a prompt, on which SAEs are not trained, everything is error.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.saes import Decomposition, Sae

Role = Literal["latent", "error", "offset", "component", "head"]


@dataclass(frozen=True)
class Nodes:
    """Nodes of one role, without what they write.

    role; pair, position: where each node is; index: its latent or head, -1 for others.
    clean, corrupted: its coefficient in the two runs; the norm of the write where it has none.
    """

    role: Role
    pair: Int[Tensor, " node"]
    position: Int[Tensor, " node"]
    index: Int[Tensor, " node"]
    clean: Float[Tensor, " node"]
    corrupted: Float[Tensor, " node"]


class Block(Nodes, ABC):
    """Nodes with their writes."""

    def without_writes(self) -> Nodes:
        """What scores keep of them."""
        return Nodes(self.role, self.pair, self.position, self.index, self.clean, self.corrupted)

    @abstractmethod
    def project(self, gradient: Float[Tensor, "pair position width"]) -> Float[Tensor, " node"]:
        """<clean write - corrupted write, gradient> of every node; positions from the first."""

    @abstractmethod
    def vectors(self, nodes: Int[Tensor, " some"]) -> Float[Tensor, "some width"]:
        """Clean write - corrupted write of some nodes."""


@dataclass(frozen=True)
class LatentBlock(Block):
    """Latents active in either run, in the order of pairs, positions and latents.

    rows: the SAE's decoder rows.
    """

    rows: Float[Tensor, "latent width"]

    def project(self, gradient: Float[Tensor, "pair position width"]) -> Float[Tensor, " node"]:
        """Never dense: gradient times decoder rows at active latents alone (a sampled product)."""
        pairs, positions, width = gradient.shape
        token = self.pair * positions + self.position  # in order, as `latent_block` makes them
        counts = torch.bincount(token, minlength=pairs * positions)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            active = torch.sparse_csr_tensor(
                torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
                self.index,
                torch.zeros_like(self.clean),
                (pairs * positions, len(self.rows)),
                check_invariants=False,  # costs as much as the product
            )
        flat = gradient.reshape(-1, width).to(self.rows.dtype)
        found = torch.sparse.sampled_addmm(active, flat, self.rows.T, beta=0.0).values()
        return found * (self.clean - self.corrupted)

    def vectors(self, nodes: Int[Tensor, " some"]) -> Float[Tensor, "some width"]:
        """Change of the coefficient times the decoder row."""
        delta = (self.clean - self.corrupted)[nodes]
        return delta[:, None] * self.rows[self.index[nodes]]


@dataclass(frozen=True)
class VectorBlock(Block):
    """Errors, offsets or whole activations. delta: clean write - corrupted write."""

    delta: Float[Tensor, "node width"]

    def project(self, gradient: Float[Tensor, "pair position width"]) -> Float[Tensor, " node"]:
        """One product a node."""
        there = gradient[self.pair, self.position].to(self.delta.dtype)
        return torch.linalg.vecdot(self.delta, there)

    def vectors(self, nodes: Int[Tensor, " some"]) -> Float[Tensor, "some width"]:
        """What is kept."""
        return self.delta[nodes]


@dataclass(frozen=True)
class HeadBlock(Block):
    """Attention heads at `z`. delta: clean write - corrupted write, of the head's own part;
    heads: how many there are."""

    delta: Float[Tensor, "node d_head"]
    heads: int

    def project(self, gradient: Float[Tensor, "pair position width"]) -> Float[Tensor, " node"]:
        """With the head's own part of the gradient."""
        by_head = gradient.unflatten(-1, (self.heads, -1))
        there = by_head[self.pair, self.position, self.index].to(self.delta.dtype)
        return torch.linalg.vecdot(self.delta, there)

    def vectors(self, nodes: Int[Tensor, " some"]) -> Float[Tensor, "some width"]:
        """Zero outside of the head's own part."""
        delta = self.delta[nodes]
        wide = delta.new_zeros(len(delta), self.heads, delta.shape[1])
        wide[torch.arange(len(delta), device=delta.device), self.index[nodes]] = delta
        return wide.flatten(1)


def _places(
    first: Int[Tensor, " pair"], length: int
) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
    """(pair, position) of every position from each pair's first difference on."""
    later = torch.arange(length, device=first.device)[None] >= first[:, None]
    pair, position = later.nonzero(as_tuple=True)
    return pair, position


def whole_nodes(
    clean: Float[Tensor, "pair position width"],
    corrupted: Float[Tensor, "pair position width"],
    first: Int[Tensor, " pair"],
    heads: int | None = None,
) -> Sequence[Block]:
    """Nodes of a site without an SAE; heads: how many, at `z`."""
    pair, position = _places(first.to(clean.device), clean.shape[1])
    values = [x[pair, position] for x in (clean, corrupted)]
    if heads is None:
        return [_vectors("component", pair, position, *values)]
    parts = [x.reshape(len(x) * heads, -1) for x in values]
    index = torch.arange(heads, device=pair.device).repeat(len(pair))
    pair, position = pair.repeat_interleave(heads), position.repeat_interleave(heads)
    norms = [x.norm(dim=-1) for x in parts]
    return [
        HeadBlock("head", pair, position, index, norms[0], norms[1], parts[0] - parts[1], heads)
    ]


def sae_nodes(
    sae: Sae,
    clean: Float[Tensor, "pair position width"],
    corrupted: Float[Tensor, "pair position width"],
    first: Int[Tensor, " pair"],
    *,
    errors: bool = True,
) -> Sequence[Block]:
    """Latents, error and, where it differs, offset of a site with an SAE.

    errors: without, there are error nodes at the first position only, where everything is error.
    """
    first = first.to(clean.device)
    # What comes before the first difference is not encoded; at position 0 everything is error.
    begin = max(1, int(first.min()))
    parts = [sae.decompose(x[:, begin:]) for x in (clean, corrupted)]
    latents = latent_block(sae, parts[0], parts[1], (first - begin).clamp(min=0))
    blocks: list[Block] = [replace(latents, position=latents.position + begin)]
    pair, position = _places(first, clean.shape[1])
    if not errors:
        pair, position = pair[position == 0], position[position == 0]
    begins = (position == 0).nonzero().squeeze(1)
    left = [p.error[pair, position - begin] for p in parts]
    for x, e in zip((clean, corrupted), left, strict=True):
        e[begins] = x[pair[begins], 0]  # not an SAE's business
    if len(pair):
        blocks.append(_vectors("error", pair, position, *left))
    if sae.normalises:
        pair, position = _places(first.clamp(min=1), clean.shape[1])
        offsets = [p.offset[pair, position - begin] for p in parts]
        moved = (offsets[0] != offsets[1]).any(-1).nonzero().squeeze(1)
        if len(moved):
            there = [x[moved] for x in (pair, position, *offsets)]
            blocks.append(_vectors("offset", *there))
    return blocks


def _vectors(
    role: Role, pair: Tensor, position: Tensor, clean: Tensor, corrupted: Tensor
) -> VectorBlock:
    """Nodes that write whole vectors, [node, width] in each run."""
    norms = [x.norm(dim=-1) for x in (clean, corrupted)]
    index = torch.full_like(pair, -1)
    return VectorBlock(role, pair, position, index, norms[0], norms[1], clean - corrupted)


def latent_block(
    sae: Sae, clean: Decomposition, corrupted: Decomposition, first: Int[Tensor, " pair"]
) -> LatentBlock:
    """The latents active in either run from position `first` of a pair on, with their effective
    coefficients in both."""
    length = clean.error.shape[1]
    keys, values = [], []
    for parts in (clean, corrupted):
        found = parts.latents
        kept = found.position >= first[found.row]
        keys.append((found.token * sae.d_sae + found.latent)[kept])
        value = found.value
        if sae.normalises:
            value = value * parts.scale[found.row, found.position, 0]
        values.append(value[kept])
    every = torch.cat(keys).unique()
    coefficients = []
    for key, value in zip(keys, values, strict=True):
        full = value.new_zeros(len(every))
        full[torch.searchsorted(every, key)] = value
        coefficients.append(full)
    token = every.div(sae.d_sae, rounding_mode="floor")
    return LatentBlock(
        role="latent",
        pair=token.div(length, rounding_mode="floor"),
        position=token % length,
        index=every % sae.d_sae,
        clean=coefficients[0],
        corrupted=coefficients[1],
        rows=sae.rows,
    )
