"""Circuits as wiring: every node, and the metric, sees its own parents and nothing else.

Each node's input is computed in a run of its own, in which every chosen site upstream is set: the
node's parents to the values they have in the circuit, all else to the reference. What leads from
one of them to the node then crosses no other chosen site: that is what an edge is. Nodes of a site
that have the same parents share a run. With all edges this is the clean run, with none the
reference's.

Where thoughts are made while the model runs, upstream goes by piece of the run first and then by
site, as edges do: all sites are set in the pieces before the node's, and in its own those before
its site. The thoughts themselves are made of what the sites are set to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.circuit.ablate import Rows, SiteAblation, Values, ranges
from circuits.circuit.runs import GroupRuns
from circuits.circuit.selections import NodeTable, Selections, SiteMembers
from circuits.models.edited_rows import resume_edited
from circuits.models.resume import earliest
from circuits.models.stepped import pieces
from circuits.saes import Latents, Sae
from circuits.sites import Site


@dataclass(frozen=True)
class Wiring:
    """Circuits with edges over one table of nodes.

    circuit: the number of the circuit each group belongs to. site: the place of its site in
        `table.sites`; their number for the metric.
    targets: [group, node], the nodes of the group, all of one site. parents: [group, node], what
        they see. rest: [group], whether targets and parents include what is not in the table.
    """

    table: NodeTable
    circuit: Int[np.ndarray, " group"]
    site: Int[np.ndarray, " group"]
    targets: Bool[np.ndarray, "group node"]
    parents: Bool[np.ndarray, "group node"]
    rest: Bool[np.ndarray, " group"]

    @property
    def circuits(self) -> int:
        """How many there are."""
        return int(self.circuit.max()) + 1

    @classmethod
    def of(
        cls,
        table: NodeTable,
        circuits: Sequence[tuple[Iterable[int], Iterable[tuple[int, int | None]]]],
    ) -> Wiring:
        """From (nodes, edges) of every circuit; edges from source to target, None the metric."""
        groups: list[tuple[int, int, set[int], frozenset[int]]] = []
        end = len(table.sites)
        for number, (nodes, edges) in enumerate(circuits):
            parents: dict[int | None, set[int]] = {node: set() for node in nodes}
            parents[None] = set()
            for source, target in edges:
                parents[target].add(source)
            same: dict[tuple[int, frozenset[int]], set[int]] = {}
            for node, seen in parents.items():
                site = end if node is None else int(table.site[node])
                same.setdefault((site, frozenset(seen)), set()).update(
                    [] if node is None else [node]
                )
            groups += [(number, site, targets, seen) for (site, seen), targets in same.items()]
        size = (len(groups), len(table))
        targets, seen = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
        for row, (_, _, members, wired) in enumerate(groups):
            targets[row, list(members)] = True
            seen[row, list(wired)] = True
        return cls(
            table,
            np.array([g[0] for g in groups]),
            np.array([g[1] for g in groups]),
            targets,
            seen,
            np.zeros(len(groups), dtype=bool),
        )

    @classmethod
    def everything(cls, table: NodeTable) -> Wiring:
        """All nodes there are, in the table or not, with all edges between them."""
        groups = len(table.sites) + 1
        every = np.ones((groups, len(table)), dtype=bool)
        site = np.arange(groups)
        here = table.site[None] == site[:, None]
        circuit, rest = np.zeros(groups, dtype=np.int64), np.ones(groups, dtype=bool)
        return cls(table, circuit, site, here, every, rest)


class _Held(Values):
    """Values of nodes that were computed before, for rows that each have their own."""

    def __init__(
        self,
        latents: Latents,
        error: Float[Tensor, "row position width"],
        offset: Float[Tensor, "row position width"],
    ) -> None:
        self.latents, self.offset, self._error = latents, offset, error

    def errors(self, wanted: Bool[Tensor, "row position"]) -> Float[Tensor, "row position width"]:
        """Those that are wanted, 0 elsewhere."""
        return torch.where(wanted[..., None], self._error, 0.0)


class _State:
    """Values of the circuits' nodes at one site: one row a circuit, reference and pair."""

    def __init__(self, sae: Sae, rows: int, positions: int) -> None:
        self._sae = sae
        self._shape = (rows, positions, sae.d_sae)
        size = (rows, positions, sae.rows.shape[1])
        self.error = torch.zeros(size, dtype=sae.dtype, device=sae.rows.device)
        self.offset = torch.zeros_like(self.error)
        none = torch.zeros(0, dtype=torch.long, device=sae.rows.device)
        self._found = [Latents(none, none, none, self.error.new_zeros(0), self._shape)]

    def put(
        self,
        to: Int[Tensor, " row"],
        start: int,
        circuit: Int[Tensor, " row"],
        label: Int[Tensor, "row position"],
        members: SiteMembers,
        values: Values,
    ) -> None:
        """Take in the values of those nodes that are in `members`. to: the rows here of rows
        there; start: the first position there."""
        latents = values.latents
        place = members.places(label[latents.row, latents.position], latents.latent)
        kept = latents.part(members.latents(circuit[latents.row], place))
        there = kept.position + start
        self._found.append(Latents(to[kept.row], there, kept.latent, kept.value, self._shape))
        # Several groups of a circuit have their part of one row: add up what is 0 elsewhere.
        wanted = members.errors(circuit, label)
        later = slice(start, start + label.shape[1])
        if bool(wanted.any()):
            self.error[:, later].index_add_(0, to, values.errors(wanted))
        if self._sae.normalises:
            there = members.offsets(circuit, label)
            self.offset[:, later].index_add_(
                0, to, torch.where(there[..., None], values.offset, 0.0)
            )

    def close(self) -> None:
        """Order what has been put in by row and position; more may be put in after that."""
        every = Latents(
            torch.cat([one.row for one in self._found]),
            torch.cat([one.position for one in self._found]),
            torch.cat([one.latent for one in self._found]),
            torch.cat([one.value for one in self._found]),
            self._shape,
        )
        self._latents = every.part(every.token.argsort(stable=True))
        counts = torch.bincount(self._latents.row, minlength=self._shape[0])
        self._counts, self._first = counts, counts.cumsum(0) - counts

    def rows(self, which: Int[Tensor, " row"], start: int, stop: int) -> _Held:
        """The values of some rows at positions from `start` to before `stop`."""
        counts = self._counts[which]
        entry = ranges(self._first[which], counts)
        row = torch.arange(len(which), device=which.device).repeat_interleave(counts)
        held = self._latents
        some = (held.position[entry] >= start) & (held.position[entry] < stop)
        row, entry = row[some], entry[some]
        shape = (len(which), stop - start, self._shape[2])
        there = held.position[entry] - start
        latents = Latents(row, there, held.latent[entry], held.value[entry], shape)
        return _Held(latents, self.error[which, start:stop], self.offset[which, start:stop])


class _WiredSite(SiteAblation):
    """Sets a site to the values that parents have in the circuit, whatever arrives there."""

    state: _State
    of_row: Int[Tensor, " row"]

    def _values(self, rows: Tensor, read: Tensor, start: int) -> Values:
        which = self.of_row[rows.to(self.of_row.device)]
        return self.state.rows(which, start, start + read.shape[1])


class WiredRuns:
    """Wirings on a group of pairs."""

    def __init__(self, runs: GroupRuns, wiring: Wiring) -> None:
        self._runs, self._wiring = runs, wiring
        self._sites = wiring.table.sites
        self._references = len(runs.references)
        self._pairs = len(runs.group.indices)
        errors = ("chosen",) * len(wiring.rest)
        self._parents = Selections(wiring.table, wiring.parents, wiring.rest, errors)
        self._targets = Selections(wiring.table, wiring.targets, wiring.rest, errors)
        self._states: dict[Site, _State] = {}
        self._rolled = runs.baseline.inputs.rolled
        # One start for all rows: values must be there wherever a later run reads them.
        self._start = int(runs.start.min())

    def metrics(self, batch_size: int | None = None) -> Float[np.ndarray, "circuit reference pair"]:
        """The metric of every circuit with every reference on every pair."""
        positions = self._runs.group.clean.shape[1]
        count = self._wiring.circuits * self._references * self._pairs
        for site in self._sites:
            self._states[site] = _State(self._runs.saes[site], count, positions)
            self._states[site].close()
        bounds = [(0, positions)]
        if self._rolled:
            first = self._start if self._runs.model.can_resume else 0
            bounds = pieces(self._runs.baseline.inputs, first)
            bounds[0] = (0, bounds[0][1])
        for begin, end in bounds:
            for place, site in enumerate(self._sites):
                groups = self._groups(place, begin, end)
                if len(groups):
                    self._fill(place, groups, begin, end, batch_size)
                    self._states[site].close()
        end = np.flatnonzero(self._wiring.site == len(self._sites))
        rows, of_row = self._rows(end)
        found = np.full(len(rows), np.nan)
        pair = rows.pair.cpu()

        def read(part: Tensor, logits: Tensor, start: int) -> None:
            found[part.numpy()] = self._runs.metric(pair[part], logits)

        self._run(len(self._sites), rows, of_row, None, None, read, batch_size)
        order = np.argsort(self._wiring.circuit[end])
        return found.reshape(len(end), self._references, self._pairs)[order]

    def _groups(self, place: int, begin: int, end: int) -> Int[np.ndarray, " group"]:
        """Those of a site that have nodes between two positions."""
        wiring = self._wiring
        labels = self._runs.labels[:, begin:end].cpu().numpy()
        there = np.isin(np.maximum(wiring.table.position, 0), labels)
        some = (wiring.targets & there).any(1) | wiring.rest
        return np.flatnonzero((wiring.site == place) & some)

    def _rows(self, groups: Int[np.ndarray, " group"]) -> tuple[Rows, Int[Tensor, " row"]]:
        """(every group with every reference on every pair, the row of the states of each)."""
        rows = self._runs.rows(len(groups))
        device = rows.pair.device
        group = torch.from_numpy(groups).to(device)[rows.circuit]
        circuit = torch.from_numpy(self._wiring.circuit).to(device)[group]
        of_row = (circuit * self._references + rows.reference) * self._pairs + rows.pair
        return Rows(group, rows.reference, rows.pair), of_row

    def _fill(
        self,
        place: int,
        groups: Int[np.ndarray, " group"],
        begin: int,
        end: int,
        batch_size: int | None,
    ) -> None:
        """Compute the values of the nodes of a site between two positions, which are those of a
        piece of the run."""
        site = self._sites[place]
        sae, state = self._runs.saes[site], self._states[site]
        rows, of_row = self._rows(groups)
        device = rows.pair.device
        members = SiteMembers(self._targets, site, sae.d_sae, device)

        def read(part: Tensor, x: Tensor, start: int) -> None:
            skip = 1 if start == 0 else 0
            there = x[:, skip:].to(device=sae.rows.device, dtype=sae.dtype)
            mine = part.to(device)
            some = rows.of(mine)
            label = self._runs.labels.to(device)[some.pair, start + skip : start + x.shape[1]]
            state.put(of_row[mine], start + skip, some.circuit, label, members, Values(sae, there))

        # Nothing chosen lies before the first site: its input is that of the clean run.
        if place == 0 and begin == 0:
            _, values = self._runs.model.cache(self._runs.group.clean, [site])
            for part in torch.arange(len(rows)).split(batch_size or 64):
                read(part, values[site][rows.pair[part.to(device)], :end], 0)
            return
        self._run(place, rows, of_row, site, end if self._rolled else None, read, batch_size)

    def _run(
        self,
        place: int,
        rows: Rows,
        of_row: Int[Tensor, " row"],
        until: Site | None,
        end: int | None,
        read: object,
        batch_size: int | None,
    ) -> None:
        """Run rows whose chosen sites before number `place` are all set; where thoughts are made on
        the way all sites, as those from `place` on are not reached in the piece that is read."""
        runs = self._runs
        cuts = [i for i in range(place) if self._sites[i].kind.startswith("resid")]
        upstream = self._sites[cuts[-1] if cuts else 0 : place]
        upstream = self._sites if self._rolled else upstream
        edits = self._edits(upstream, rows, of_row)
        layer = earliest(upstream[0], runs.model.n_layers).layer
        start = torch.full((len(rows),), self._start)
        begins = (torch.full_like(start, layer), start)
        passes = resume_edited(
            runs.model,
            runs.baseline,
            rows.pair.cpu(),
            begins,
            edits,
            read,  # pyright: ignore
            batch_size,
            until,
            end,
        )
        for _ in passes:
            pass

    def _edits(
        self, sites: Sequence[Site], rows: Rows, of_row: Int[Tensor, " row"]
    ) -> Mapping[Site, SiteAblation]:
        found = {}
        for site in sites:
            sae = self._runs.saes[site]
            members = SiteMembers(self._parents, site, sae.d_sae, rows.pair.device)
            values = self._runs.values[site]
            edit = _WiredSite(sae, members, values, self._runs.labels, rows)
            edit.state, edit.of_row = self._states[site], of_row
            found[site] = edit
        return found
