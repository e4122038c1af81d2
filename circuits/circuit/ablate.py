"""The edit that ablates: nodes of a circuit keep the value they have, all others are set.

At a site, x = offset + sum_i a_i d_i + e is computed from what arrives, which has been ablated at
the sites before, and is replaced by

    x' = x_ref + sum_{i in C} (a_i - a_i,ref) d_i + [e in C] (e - e_ref) + [offset in C] (...)

Sparse from end to end: active latents are looked up, never the dictionary. The first position of a
prompt is never ablated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.circuit.references import Reference, effective
from circuits.circuit.selections import SiteMembers
from circuits.saes import Latents, Sae


@dataclass(frozen=True)
class Rows:
    """What each row of a batch is: a circuit, a reference and a pair, by number."""

    circuit: Int[Tensor, " row"]
    reference: Int[Tensor, " row"]
    pair: Int[Tensor, " row"]

    def of(self, rows: Int[Tensor, " some"]) -> Rows:
        """Some of them."""
        return Rows(self.circuit[rows], self.reference[rows], self.pair[rows])

    def __len__(self) -> int:
        return len(self.circuit)


class Values:
    """Values of the nodes of a site, for every row: those of what is read there.

    latents: active ones, with their effective coefficients as `value`. offset: [row, position,
    width].
    """

    def __init__(self, sae: Sae, read: Float[Tensor, "row position width"]) -> None:
        parts = sae.encode_sparse(read)
        self.latents = replace(parts.latents, value=effective(parts, sae.normalises))
        self.offset = parts.offset
        self._sae, self._read = sae, read

    def errors(self, wanted: Bool[Tensor, "row position"]) -> Float[Tensor, "row position width"]:
        """The errors that are wanted, 0 elsewhere; only these are decoded."""
        there = wanted[self.latents.row, self.latents.position]
        error = self._read - self.offset - self._sae.write(self.latents.part(there))
        return torch.where(wanted[..., None], error, 0.0)


class _Bound:
    """One reference with its entries looked up in the table, by the row of its own."""

    def __init__(
        self,
        reference: Reference,
        of_pair: Int[Tensor, " pair"],
        labels: Int[Tensor, "pair position"],
        members: SiteMembers,
    ) -> None:
        device = reference.base.device
        self.reference, self.of_pair = reference, of_pair.to(device)
        rows, positions = reference.base.shape[:2]
        self._row = reference.token.div(positions, rounding_mode="floor")
        self._position = reference.token - self._row * positions
        # Labels may differ between pairs that share a row; then every pair gets its own entries.
        counts = torch.bincount(self._row, minlength=rows)
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
        pairs = torch.arange(len(labels), device=device)
        self._counts = counts[self.of_pair]
        entry = ranges(first[self.of_pair], self._counts)
        pair = pairs.repeat_interleave(self._counts)
        self.position = self._position[entry]
        self.latent, self.value = reference.latent[entry], reference.value[entry]
        self.place = members.places(labels[pair, self.position], self.latent)
        if not bool(members.rest.any()):  # nothing outside of the table is ever kept
            known = self.place < members.unknown
            self.position, self.latent = self.position[known], self.latent[known]
            self.value, self.place = self.value[known], self.place[known]
            self._counts = torch.bincount(pair[known], minlength=len(labels))
        self._first = self._counts.cumsum(0) - self._counts

    def entries(self, pair: Int[Tensor, " row"]) -> tuple[Tensor, Tensor]:
        """(row, entry) of all entries of the pairs of some rows, row after row."""
        counts = self._counts[pair]
        row = torch.arange(len(pair), device=pair.device).repeat_interleave(counts)
        return row, ranges(self._first[pair], counts)


def ranges(first: Int[Tensor, " some"], counts: Int[Tensor, " some"]) -> Int[Tensor, " all"]:
    """first[0], first[0] + 1, ... (counts[0] of them), then those of the next."""
    before = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum()), device=first.device) + (
        first - before
    ).repeat_interleave(counts)


class SiteAblation:
    """The edit of one site for all rows.

    references: in the order of `Rows.reference`, each with the row that every pair has in it.
    labels: for every pair and position, what it is in the circuits' table (-1: nothing).
    """

    def __init__(
        self,
        sae: Sae,
        members: SiteMembers,
        references: Sequence[tuple[Reference, Int[Tensor, " pair"]]],
        labels: Int[Tensor, "pair position"],
        rows: Rows,
    ) -> None:
        self._sae, self._members, self._rows = sae, members, rows
        self._labels = labels.to(sae.rows.device)
        self._bound = [_Bound(r, of, self._labels, members) for r, of in references]

    def __call__(
        self, x: Float[Tensor, "row position width"], rows: Int[Tensor, " row"], start: int
    ) -> Float[Tensor, "row position width"]:
        """The ablated activations of some rows, whose positions begin at `start`."""
        skip = 1 if start == 0 else 0
        mine = self._rows.of(rows.to(self._rows.pair.device))
        read = x[:, skip:].to(device=self._sae.rows.device, dtype=self._sae.dtype)
        changed = self.compose(mine, start + skip, self._values(rows, read, start + skip))
        return torch.cat([x[:, :skip], changed.to(x)], dim=1)

    def _values(self, rows: Tensor, read: Tensor, start: int) -> Values:
        """The values that kept nodes have."""
        return Values(self._sae, read)

    def compose(
        self, rows: Rows, start: int, values: Values
    ) -> Float[Tensor, "row position width"]:
        """x' of rows from the values of their nodes, whose positions begin at `start`."""
        stop = start + values.offset.shape[1]
        label = self._labels[rows.pair, start:stop]
        latents = values.latents
        place = self._members.places(label[latents.row, latents.position], latents.latent)
        keep = self._members.latents(rows.circuit[latents.row], place)
        change = self._sae.write(latents.part(keep))
        error = self._members.errors(rows.circuit, label)
        offset = self._members.offsets(rows.circuit, label) if self._sae.normalises else None
        if bool(error.any()):
            change = change + values.errors(error)
        if offset is not None:
            change = change + torch.where(offset[..., None], values.offset, 0.0)
        for number, bound in enumerate(self._bound):
            mine = (rows.reference == number).nonzero().squeeze(1)
            if len(mine):
                some = rows.of(mine)
                there = offset[mine] if offset is not None else None
                change[mine] += self._reference(bound, some, start, stop, error[mine], there)
        return change

    def _reference(
        self,
        bound: _Bound,
        rows: Rows,
        start: int,
        stop: int,
        error: Bool[Tensor, "row position"],
        offset: Bool[Tensor, "row position"] | None,
    ) -> Float[Tensor, "row position width"]:
        """x_ref less what the circuit has of it."""
        of = bound.of_pair[rows.pair]
        reference = bound.reference
        found = reference.base[of, start:stop].clone()
        row, entry = bound.entries(rows.pair)
        keep = self._members.latents(rows.circuit[row], bound.place[entry])
        keep &= (bound.position[entry] >= start) & (bound.position[entry] < stop)
        row, entry = row[keep], entry[keep]
        shape = (len(rows), found.shape[1], self._sae.d_sae)
        there = bound.position[entry] - start
        found -= self._sae.write(
            Latents(row, there, bound.latent[entry], bound.value[entry], shape)
        )
        if reference.error is not None and bool(error.any()):
            found -= torch.where(error[..., None], reference.error[of, start:stop], 0.0)
        if offset is not None and reference.offset is not None:
            found -= torch.where(offset[..., None], reference.offset[of, start:stop], 0.0)
        return found
