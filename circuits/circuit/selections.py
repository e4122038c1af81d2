"""Which nodes are kept: many circuits over one table of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from circuits.graph import GraphError, Node
from circuits.sites import Site, forward_order

ROLES = ("latent", "error", "offset")


@dataclass(frozen=True)
class NodeTable:
    """Nodes as arrays, one entry a node. site: its place in `sites`; role: its place in `ROLES`;
    latent: -1 for errors and offsets; position: -1 for all of them together."""

    sites: tuple[Site, ...]
    site: NDArray[np.int64]
    role: NDArray[np.int64]
    latent: NDArray[np.int64]
    position: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.sites != forward_order(self.sites):
            raise GraphError("the sites of a circuit must stand in the order they are computed in.")

    def __len__(self) -> int:
        return len(self.site)

    @classmethod
    def of(cls, nodes: Sequence[Node], sites: Sequence[Site]) -> NodeTable:
        """The table of some nodes, in their order. sites: all there are, in forward order."""
        place = {site: i for i, site in enumerate(sites)}
        columns = [
            (
                place[n.site],
                ROLES.index(n.role),
                n.latent,
                -1 if n.position is None else n.position,
            )
            for n in nodes
        ]
        arrays = np.array(columns, dtype=np.int64).reshape(-1, 4).T
        return cls(tuple(sites), *arrays)

    def node(self, at: int) -> Node:
        """One of them."""
        position = int(self.position[at])
        role = ROLES[int(self.role[at])]
        where = None if position < 0 else position
        return Node(self.sites[int(self.site[at])], role, int(self.latent[at]), where)  # pyright: ignore


@dataclass(frozen=True)
class Selections:
    """Circuits over a table. inside: [circuit, node]; rest: [circuit], whether nodes that are not
    in the table are kept.

    errors: per circuit "chosen" (as any node), "in" or "out" (all of them); errors_out: sites whose
    errors are out whatever else is said.
    """

    table: NodeTable
    inside: Bool[np.ndarray, "circuit node"]
    rest: Bool[np.ndarray, " circuit"]
    errors: tuple[str, ...]
    errors_out: tuple[frozenset[Site], ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.errors_out:
            object.__setattr__(self, "errors_out", (frozenset(),) * len(self.rest))

    def __len__(self) -> int:
        return len(self.rest)

    @classmethod
    def of(
        cls, table: NodeTable, inside: NDArray[np.bool_], rest: bool = False, errors: str = "chosen"
    ) -> Selections:
        """Circuits with the same policy."""
        return cls(table, inside, np.full(len(inside), rest), (errors,) * len(inside))

    @classmethod
    def join(cls, parts: Sequence[Selections]) -> Selections:
        """All circuits of several, one after the other."""
        return cls(
            parts[0].table,
            np.concatenate([p.inside for p in parts]),
            np.concatenate([p.rest for p in parts]),
            tuple(e for p in parts for e in p.errors),
            tuple(e for p in parts for e in p.errors_out),
        )

    def complement(self) -> Selections:
        """Everything that is not in each circuit."""
        swap = {"chosen": "chosen", "in": "out", "out": "in"}
        errors = tuple(swap[e] for e in self.errors)
        return replace(self, inside=~self.inside, rest=~self.rest, errors=errors)

    def without_errors(self, *sites: Site) -> Selections:
        """The same with the errors of some sites out; of all when none is named."""
        if not sites:
            return replace(self, errors=("out",) * len(self))
        return replace(self, errors_out=tuple(out | set(sites) for out in self.errors_out))

    def whole(self) -> Bool[np.ndarray, " circuit"]:
        """Which of them are everything there is: their run is the clean one."""
        errors = np.array([how != "out" for how in self.errors]) & ~np.array(
            [bool(out) for out in self.errors_out]
        )
        return self.inside.all(axis=1) & self.rest & errors

    def part(self, which: Bool[np.ndarray, " circuit"]) -> Selections:
        """Some of them."""
        places = np.flatnonzero(which).tolist()
        return Selections(
            self.table,
            self.inside[which],
            self.rest[which],
            tuple(self.errors[i] for i in places),
            tuple(self.errors_out[i] for i in places),
        )

    def first_sites(self) -> Int[np.ndarray, " circuit"]:
        """For each circuit, the first site at which it keeps something; the number of sites where
        it keeps nothing."""
        none = len(self.table.sites)
        found = np.full(len(self), none)
        for i in range(len(self)):
            if self.rest[i] or self.errors[i] == "in":
                found[i] = 0
            elif self.inside[i].any():
                found[i] = self.table.site[self.inside[i]].min()
        return found


class SiteMembers:
    """Membership at one site, on the model's device.

    label: of a token is the position of the table that it stands for, -1 for none. In tables that
    are summed over positions every token stands for 0.
    """

    def __init__(self, chosen: Selections, site: Site, d_sae: int, device: torch.device) -> None:
        table = chosen.table
        here = table.site == table.sites.index(site)
        position = np.maximum(table.position, 0)
        self._d_sae = d_sae
        self.labels = int(position.max(initial=0)) + 1
        latents = np.flatnonzero(here & (table.role == 0))
        keys = position[latents] * d_sae + table.latent[latents]
        order = np.argsort(keys)
        self._keys = torch.from_numpy(keys[order]).to(device)
        rest = chosen.rest[:, None]
        inside = np.concatenate([chosen.inside[:, latents[order]], rest], axis=1)
        self._inside = torch.from_numpy(inside).to(device)
        self.rest = torch.from_numpy(chosen.rest).to(device)
        vectors = [self._vectors(chosen, here, position, role) for role in (1, 2)]
        for i, how in enumerate(chosen.errors):
            if site in chosen.errors_out[i] or how == "out":
                vectors[0][i] = False
            elif how == "in":
                vectors[0][i] = True
        self._error, self._offset = (torch.from_numpy(v).to(device) for v in vectors)

    def _vectors(
        self, chosen: Selections, here: NDArray[np.bool_], position: NDArray[np.int64], role: int
    ) -> NDArray[np.bool_]:
        """[circuit, label + 1]: the last is for tokens that stand for no position of the table."""
        found = np.repeat(chosen.rest[:, None], self.labels + 1, axis=1)
        nodes = np.flatnonzero(here & (chosen.table.role == role))
        found[:, position[nodes]] = chosen.inside[:, nodes]
        return found

    def places(
        self, label: Int[Tensor, " entry"], latent: Int[Tensor, " entry"]
    ) -> Int[Tensor, " entry"]:
        """Where each latent is in the table; one number for all that are not."""
        count = len(self._keys)
        if not count:
            return torch.zeros_like(label)
        wanted = label * self._d_sae + latent
        found = torch.searchsorted(self._keys, wanted).clamp(max=count - 1)
        known = (self._keys[found] == wanted) & (label >= 0)
        return torch.where(known, found, count)

    @property
    def unknown(self) -> int:
        """What `places` gives for latents that are not in the table."""
        return len(self._keys)

    def latents(
        self, circuit: Int[Tensor, " entry"], place: Int[Tensor, " entry"]
    ) -> Bool[Tensor, " entry"]:
        """Whether each latent is in its circuit."""
        return self._inside[circuit, place]

    def errors(
        self, circuit: Int[Tensor, " row"], label: Int[Tensor, "row position"]
    ) -> Bool[Tensor, "row position"]:
        """Whether the error of each token is in its circuit."""
        return self._error[circuit[:, None], self._column(label)]

    def offsets(
        self, circuit: Int[Tensor, " row"], label: Int[Tensor, "row position"]
    ) -> Bool[Tensor, "row position"]:
        """Whether the offset of each token is in its circuit."""
        return self._offset[circuit[:, None], self._column(label)]

    def _column(self, label: Tensor) -> Tensor:
        known = (label >= 0) & (label < self.labels)
        return torch.where(known, label, self.labels)
