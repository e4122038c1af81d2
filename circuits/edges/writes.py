"""What the nodes of one site write, and what a gradient makes of it.

Nodes that are asked for are kept one by one; all others of a role are kept as a sum, which is the
change of the whole activation less its other parts: no dictionary is multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribute.nodes import Block, LatentBlock
from circuits.graph import Node
from circuits.saes import Sae


class SiteWrites:
    """Clean less corrupted write of every node of a site, from position `start` on.

    change: of the whole activation, [pair, position, width], 0 before each pair's first difference.
    blocks: its nodes. nodes: those that are kept one by one, with positions or (summed) without;
        position 0 does not belong to sums over positions.
    """

    def __init__(
        self,
        sae: Sae,
        blocks: Sequence[Block],
        change: Float[Tensor, "pair position width"],
        nodes: Sequence[Node],
        summed: bool,
        start: int,
    ) -> None:
        self._summed, self._start = summed, start
        self._change = change[:, start:]
        vectors = {role: torch.zeros_like(change) for role in ("error", "offset")}
        latents = sorted({node.latent for node in nodes if node.role == "latent"})
        self._rows: Tensor = sae.rows[latents]
        coefficients = change.new_zeros(*change.shape[:2], len(latents))
        place = torch.full((sae.d_sae,), -1, device=change.device)
        place[latents] = torch.arange(len(latents), device=change.device)
        for block in blocks:
            if isinstance(block, LatentBlock):
                kept = (place[block.index] >= 0).nonzero().squeeze(1)
                where = (block.pair[kept], block.position[kept], place[block.index[kept]])
                coefficients[where] = (block.clean - block.corrupted)[kept]
            else:
                every = torch.arange(len(block.pair), device=change.device)
                vectors[block.role][block.pair, block.position] = block.vectors(every)
        self._coefficients = coefficients[:, start:]
        self._error = vectors["error"][:, start:]
        self._offset = vectors["offset"][:, start:] if sae.normalises else None
        self._picks = self._places(nodes, {latent: i for i, latent in enumerate(latents)})
        self._count = len(nodes)

    def _places(
        self, nodes: Sequence[Node], latents: dict[int, int]
    ) -> list[tuple[Int[Tensor, " node"], Int[Tensor, " node"], Int[Tensor, " node"]]]:
        """Per role (numbers of the nodes, positions from `start` on, columns); nodes at positions
        that are before it write nothing."""
        found = []
        for role in ("latent", "error", "offset"):
            rows = [
                (i, (node.position or 0) - self._start, latents.get(node.latent, 0))
                for i, node in enumerate(nodes)
                if node.role == role
                and (node.position is None or node.position >= self._start)
                and (role != "offset" or self._offset is not None)
            ]
            columns = torch.tensor(rows, device=self._change.device).reshape(-1, 3).long().unbind(1)
            found.append((columns[0], columns[1], columns[2]))
        return found

    def along(
        self, gradients: Float[Tensor, "slot pair position width"]
    ) -> tuple[Float[Tensor, "slot pair node"], Float[Tensor, "slot pair role"]]:
        """<write, gradient> of the nodes that are kept, and the sum over all others of each role
        (latents, errors, offsets); float64. gradients: from `start` on, 0 after their end."""
        given, count = gradients.to(self._change.dtype), gradients.shape[2]
        whole = _product(self._change, given)
        errors = _product(self._error, given)
        offsets = torch.zeros_like(errors)
        if self._offset is not None:
            offsets = _product(self._offset, given)
        one_by_one = given @ self._rows.T.to(given) * self._coefficients[:, :count]
        parts = [one_by_one.double(), errors[..., None], offsets[..., None]]
        single = whole.new_zeros(*whole.shape[:2], self._count)
        rest = torch.stack([whole - errors - offsets, errors, offsets], -1).sum(2)
        for role, (part, picks) in enumerate(zip(parts, self._picks, strict=True)):
            there = picks[1] < count
            number, position, column = (pick[there] for pick in picks)
            if self._summed:
                first = 1 if self._start == 0 else 0
                chosen = part[:, :, first:].sum(2)[:, :, column]
            else:
                chosen = part[:, :, position, column]
            single[:, :, number] = chosen
            rest[..., role] -= chosen.sum(-1)
        return single, rest


def _product(
    write: Float[Tensor, "pair longer width"], gradients: Float[Tensor, "slot pair position width"]
) -> Float[Tensor, "slot pair position"]:
    return torch.einsum("ptw,sptw->spt", write[:, : gradients.shape[2]], gradients).double()
