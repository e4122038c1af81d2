"""Runs of many circuits on a group of pairs, in shared passes.

A row is a circuit, a reference and a pair. Rows enter the pass where they first differ from the
clean run, so that everything below the first ablated site, and every position before the first
ablated one, is computed once a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.circuit.ablate import Rows, SiteAblation
from circuits.circuit.references import Means, Reference, ReferenceName, references_at
from circuits.circuit.selections import Selections, SiteMembers
from circuits.metrics import Metric, Targets, evaluate
from circuits.models.edited_rows import resume_edited
from circuits.models.edits import Edit
from circuits.models.hooked import HookedModel
from circuits.models.resume import Baseline, earliest
from circuits.prompts import PairGroup
from circuits.saes import SaeSet
from circuits.sites import Site


class GroupRuns:
    """The pairs of one length, ready for circuits to be run on them.

    sites: in forward order. labels: [pair, position], what each token is in the circuits' table.
    """

    def __init__(
        self,
        model: HookedModel,
        saes: SaeSet,
        sites: Sequence[Site],
        group: PairGroup,
        labels: Int[Tensor, "pair position"],
        references: Sequence[ReferenceName],
        means: Means | None,
        metric: Metric,
    ) -> None:
        self.model, self.saes, self.sites, self.group = model, saes, tuple(sites), group
        self.labels, self.references = labels, tuple(references)
        self._metric = metric
        # Position 0 is never ablated; where only corrupted values are put in, nothing differs
        # before the first difference either.
        differ = group.first_differences().clamp(min=1)
        self.start = torch.stack(
            [differ if name == "corrupted" else torch.ones_like(differ) for name in references]
        )
        first = int(self.start.min())
        self.baseline = model.baseline(group.clean, first)
        self._targets = Targets.of(group.answer, group.foil, self.baseline.logits)
        _, corrupted = model.cache(group.corrupted, list(sites))
        self.values: dict[Site, list[tuple[Reference, Tensor]]] = {}
        for site in sites:
            sae = saes[site]
            self.values[site] = [
                references_at(sae, name, corrupted[site], group, means) for name in references
            ]

    @cached_property
    def whole(self) -> Float[np.ndarray, " pair"]:
        """m(M): the metric of the clean runs."""
        pairs = torch.arange(len(self.group.indices))
        return self.metric(pairs, self.baseline.logits)

    def metric(self, pair: Int[Tensor, " row"], logits: Tensor) -> Float[np.ndarray, " row"]:
        """The metric of rows of pairs."""
        targets = self._targets.rows(pair.to(logits.device))
        return evaluate(self._metric, logits, targets).double().cpu().numpy()

    def members(self, chosen: Selections) -> dict[Site, SiteMembers]:
        """Membership in circuits at every site."""
        widths = {site: self.saes.sources[site].d_sae for site in self.sites}
        device = self.model.device
        return {site: SiteMembers(chosen, site, d, device) for site, d in widths.items()}

    def edits(self, chosen: Selections, rows: Rows) -> dict[Site, SiteAblation]:
        """The edits of rows; `Rows.reference` counts `references`."""
        members = self.members(chosen)
        return {
            site: SiteAblation(self.saes[site], members[site], self.values[site], self.labels, rows)
            for site in self.sites
        }

    def rows(self, circuits: int) -> Rows:
        """Every circuit with every reference on every pair."""
        each = (circuits, len(self.references), len(self.group.indices))
        grid = torch.cartesian_prod(*[torch.arange(n) for n in each]).reshape(-1, 3)
        found = [column.contiguous().to(self.model.device) for column in grid.unbind(1)]
        return Rows(*found)

    def run(
        self, chosen: Selections, batch_size: int | None = None
    ) -> Float[np.ndarray, "circuit reference pair"]:
        """The metric of every circuit with every reference on every pair."""
        found = np.empty((len(chosen), len(self.references), len(self.group.indices)))
        whole = chosen.whole()
        found[whole] = self.whole
        if whole.all():
            return found
        some = chosen.part(~whole)
        rows = self.rows(len(some))
        layer = torch.tensor([self._enters(at) for at in some.first_sites().tolist()])
        begins = (
            layer[rows.circuit.cpu()],
            self.start[rows.reference.cpu(), rows.pair.cpu()],
        )
        edits = self.edits(some, rows)
        values = self._metrics(self.baseline, rows, begins, edits, batch_size)
        found[~whole] = values.reshape(len(some), len(self.references), -1)
        return found

    def _enters(self, first: int) -> int:
        """The layer at which a circuit enters whose first kept node is at site number `first`.

        A site that holds the whole stream and keeps nothing is the reference, whatever arrives:
        nothing before the last of those that come before `first` needs to be computed.
        """
        cuts = [i for i, s in enumerate(self.sites[:first]) if s.kind.startswith("resid")]
        site = self.sites[cuts[-1] if cuts else 0]
        return earliest(site, self.model.n_layers).layer

    def without(
        self, chosen: Selections, removed: Sequence[int], batch_size: int | None = None
    ) -> Float[np.ndarray, "node reference pair"]:
        """The metric of one circuit without each of some nodes.

        chosen: the circuit alone. removed: nodes of its table. The circuit itself is run once, and
        each of these from where its node stands.
        """
        table = chosen.table
        whole = self.rows(1)
        base = self._circuit_baseline(chosen, whole)
        inside = np.repeat(chosen.inside, len(removed), axis=0)
        inside[np.arange(len(removed)), list(removed)] = False
        every = Selections.of(table, inside, bool(chosen.rest[0]), chosen.errors[0])
        every = Selections(
            table, every.inside, every.rest, every.errors, chosen.errors_out * len(removed)
        )
        rows = self.rows(len(removed))
        edits = self.edits(every, rows)
        site = torch.tensor(
            [earliest(self.sites[s], self.model.n_layers).layer for s in table.site[list(removed)]]
        )
        node = torch.from_numpy(table.position[list(removed)])
        start = self.start[rows.reference.cpu(), rows.pair.cpu()]
        labels = self.labels[rows.pair.cpu()]
        at = (labels == node[rows.circuit.cpu()][:, None]).int().argmax(1)
        # A node that the prompt has no place for leaves the circuit as it is: any start will do.
        start = torch.where(node[rows.circuit.cpu()] >= 0, at.clamp(min=start), start)
        # The circuit's own run is the baseline: one row of it a reference and pair.
        pairs = len(self.group.indices)
        mine = Rows(rows.circuit, rows.reference, rows.pair)
        entry = rows.reference * pairs + rows.pair
        begins = (site[rows.circuit.cpu()], start)
        found = self._metrics(base, mine, begins, edits, batch_size, entry)
        return found.reshape(len(removed), len(self.references), -1)

    def _circuit_baseline(self, chosen: Selections, rows: Rows) -> Baseline:
        """The circuit's own runs as a baseline, one entry a reference and pair."""
        every = torch.arange(len(rows), device=self.model.device)
        edits = {site: _of_rows(edit, every) for site, edit in self.edits(chosen, rows).items()}
        tokens = self.group.clean[rows.pair.cpu()]
        return self.model.baseline(tokens, int(self.start.min()), edits)

    def _metrics(
        self,
        baseline: Baseline,
        rows: Rows,
        begins: tuple[Tensor, Tensor],
        edits: Mapping[Site, SiteAblation],
        batch_size: int | None,
        entry: Int[Tensor, " row"] | None = None,
    ) -> Float[np.ndarray, " row"]:
        found = np.full(len(rows), np.nan)
        pair = rows.pair.cpu()

        def read(part: Tensor, logits: Tensor, start: int) -> np.ndarray:
            return self.metric(pair[part], logits)

        which = (rows.pair if entry is None else entry).cpu()
        passes = resume_edited(self.model, baseline, which, begins, edits, read, batch_size)
        for part, values in passes:
            found[part.numpy()] = values
        return found


def _of_rows(edit: SiteAblation, rows: Int[Tensor, " row"]) -> Edit:
    def apply(x: Tensor, start: int) -> Tensor:
        return edit(x, rows, start)

    return apply
