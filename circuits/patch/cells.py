"""The cells of a sweep: which places there are, which must be run, and what is put there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from circuits.metrics import Metric
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.prompts import PairGroup
from circuits.sites import Site, SiteKind
from circuits.task import Inputs

Direction = Literal["denoising", "noising"]
Positions = Literal["each", "all"]


@dataclass(frozen=True)
class Plan:
    """A checked set of options of a sweep."""

    kind: SiteKind
    layers: tuple[int, ...]
    direction: Direction
    positions: Positions
    metric_name: str
    metric: Metric
    batch_size: int | None

    @property
    def sites(self) -> list[Site]:
        """The sites, layer by layer."""
        return [Site(layer, self.kind) for layer in self.layers]


def first_slots(clean: Inputs, corrupted: Inputs) -> NDArray[Any] | None:
    """For each pair, the first position whose overwritten embedding differs (or a large number)."""
    if clean.embeddings is None or corrupted.embeddings is None:
        return None
    differs = (clean.embeddings != corrupted.embeddings).any(-1).cpu().numpy()
    slots = np.where(differs, np.array(clean.slots), np.iinfo(np.int64).max)
    return slots.min(1)


class Cells:
    """The cells of one group of pairs: which pair, layer, position and head each one is, and which
    of them have to be run (the others are exact zeros).

    first_slots: per pair, the first position whose embedding differs though its token may not.
    """

    def __init__(
        self,
        model: HookedModel,
        plan: Plan,
        group: PairGroup,
        first_slots: NDArray[Any] | None = None,
    ) -> None:
        self._plan, self._model = plan, model
        n_pairs, length = group.clean.shape
        differs = group.first_differences().numpy()
        if first_slots is not None:
            differs = np.minimum(differs, first_slots)
        self.first = int(differs.min())
        heads = np.arange(model.n_heads) if plan.kind == "z" else np.array([-1])
        places = np.arange(length) if plan.positions == "each" else np.array([-1])
        grid = np.meshgrid(np.arange(n_pairs), plan.layers, places, heads, indexing="ij")
        self.pair, self.layer, self.position, head = (axis.ravel() for axis in grid)
        self.head = head if plan.kind == "z" else None
        runs = (
            self.position >= differs[self.pair]
            if plan.positions == "each"
            else np.ones(len(self.pair), dtype=bool)
        )
        self.cell_of_row = np.flatnonzero(runs)
        self._first_of_pair, self._length = differs, length

    @property
    def n_rows(self) -> int:
        """How many patched runs there are."""
        return len(self.cell_of_row)

    def row_pairs(self) -> Tensor:
        """For each row, its pair within the group."""
        return torch.from_numpy(self.pair[self.cell_of_row])

    def patches(self, values: dict[Site, Tensor]) -> list[Patches]:
        """One `Patches` a site; `values` are [pair, position - first, width]."""
        found = []
        cells = self.cell_of_row
        for site in self._plan.sites:
            rows = np.flatnonzero(self.layer[cells] == site.layer)
            pair = self.pair[cells[rows]]
            head = None if self.head is None else self.head[cells[rows]]
            if self._plan.positions == "each":
                position = self.position[cells[rows]]
            else:
                rows, pair, head, position = self._spread(rows, pair, head)
            found.append(self._at_site(site, values[site], rows, pair, head, position))
        return found

    def _spread(
        self, rows: NDArray[Any], pair: NDArray[Any], head: NDArray[Any] | None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any]]:
        """Repeat each row over all positions from its pair's first difference on."""
        counts = self._length - self._first_of_pair[pair]
        starts = [int(self._first_of_pair[p]) for p in pair]
        position = np.concatenate([np.arange(start, self._length) for start in starts])
        again = np.repeat(np.arange(len(rows)), counts)
        return rows[again], pair[again], None if head is None else head[again], position

    def _at_site(
        self,
        site: Site,
        values: Tensor,
        rows: NDArray[Any],
        pair: NDArray[Any],
        head: NDArray[Any] | None,
        position: NDArray[Any],
    ) -> Patches:
        device = values.device
        pair_index = torch.from_numpy(pair).to(device)
        place = torch.from_numpy(position - self.first).to(device)
        heads = None if head is None else torch.from_numpy(head).to(device)
        if heads is None:
            picked = values[pair_index, place]
        else:
            by_head = rearrange(
                values,
                "pair position (head d_head) -> pair position head d_head",
                head=self._model.n_heads,
            )
            picked = by_head[pair_index, place, heads]
        return Patches(
            site,
            torch.from_numpy(rows).to(device),
            torch.from_numpy(position).to(device),
            picked,
            heads,
        )
