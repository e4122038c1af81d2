"""One batch of pairs: both runs at all sites, and the nodes between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribute.exact import patch_sites
from circuits.attribute.gradients import RowMetric, path_gradients
from circuits.attribute.nodes import Block, sae_nodes, whole_nodes
from circuits.metrics import Metric, Targets, evaluate
from circuits.models.hooked import HookedModel
from circuits.models.resume import Baseline
from circuits.prompts import PairGroup
from circuits.saes import SaeSet
from circuits.sites import Site

Direction = Literal["denoising", "noising"]


@dataclass(frozen=True)
class Sources:
    """What is attributed to: SAEs at their sites, or whole activations (heads at `z`).

    errors: False for the model in which reconstructions stand in place of activations
    (`HookedModel.edited`, for as long as batches are used): then there are no error nodes.
    """

    sites: tuple[Site, ...]
    saes: SaeSet | None
    errors: bool = True


class Batch:
    """The two runs of a group of pairs of one length.

    The base run is the one that is patched: the corrupted one when denoising, the clean one when
    noising. `metric` values are of the logits at the last position, one a pair.
    """

    def __init__(
        self,
        model: HookedModel,
        sources: Sources,
        group: PairGroup,
        metric: Metric,
        direction: Direction,
    ) -> None:
        self.model, self.sources, self.group = model, sources, group
        self.denoising = direction == "denoising"
        self.sign = 1 if self.denoising else -1
        self._metric = metric
        self.first = group.first_differences()
        self.base_tokens, other = (
            (group.corrupted, group.clean) if self.denoising else (group.clean, group.corrupted)
        )
        logits, self._other = model.cache(other, list(sources.sites))
        self._clean_logits = logits if self.denoising else None

    def _targets(self, logits: Tensor) -> Targets:
        # When noising the clean run is the base: its logits are those just computed.
        clean = logits.detach() if self._clean_logits is None else self._clean_logits
        return Targets.of(self.group.answer, self.group.foil, clean)

    @cached_property
    def gradients(self) -> tuple[dict[Site, Tensor], dict[Site, Tensor]]:
        """(values, gradients) at all sites of the base run: one forward and one backward."""

        def metric(logits: Tensor) -> Tensor:
            return evaluate(self._metric, logits, self._targets(logits))

        found = self.model.gradients(self.base_tokens, list(self.sources.sites), metric)
        return found.values, found.gradients

    @cached_property
    def baseline(self) -> Baseline:
        """The base run, kept for patching it."""
        return self.model.baseline(self.base_tokens, int(self.first.min()))

    @cached_property
    def row_metric(self) -> RowMetric:
        """The metric of patched rows."""
        targets = self._targets(self.baseline.logits)

        def metric(pair: Tensor, logits: Tensor) -> Tensor:
            return evaluate(self._metric, logits, targets.rows(pair.to(logits.device)))

        return metric

    @cached_property
    def base_metric(self) -> Float[Tensor, " pair"]:
        """The metric of the base run."""
        pairs = torch.arange(len(self.group.indices))
        return self.row_metric(pairs, self.baseline.logits).double().cpu()

    @cached_property
    def _base(self) -> dict[Site, Tensor]:
        """Activations of the base run; for methods that need no gradients at it, without."""
        if "gradients" in self.__dict__:
            return self.gradients[0]
        return self.model.cache(self.base_tokens, list(self.sources.sites))[1]

    def runs(self, site: Site) -> tuple[Tensor, Tensor]:
        """(clean, corrupted) activations of a site, [pair, position, width]."""
        base = self._base[site]
        other = self._other[site]
        return (other, base) if self.denoising else (base, other)

    def suffixes(self, site: Site) -> tuple[Tensor, Tensor]:
        """(clean, corrupted) from the first difference of any pair on."""
        clean, corrupted = self.runs(site)
        return clean[:, self.baseline.first :], corrupted[:, self.baseline.first :]

    @cached_property
    def _encoded(self) -> list[dict[Site, Tensor]]:
        """What SAEs read in the (clean, corrupted) run, where reconstructions stand in place of
        it."""
        runs = (self.group.clean, self.group.corrupted)
        return [self.model.cache(x, list(self.sources.sites), unedited=True)[1] for x in runs]

    def nodes(self, site: Site) -> Sequence[Block]:
        """The nodes of a site."""
        if self.sources.saes is None:
            heads = self.model.n_heads if site.kind == "z" else None
            return whole_nodes(*self.runs(site), self.first, heads)
        sae = self.sources.saes[site]
        read = self.runs(site) if self.sources.errors else [x[site] for x in self._encoded]
        clean, corrupted = (x.to(sae.dtype) for x in read)
        return sae_nodes(sae, clean, corrupted, self.first, errors=self.sources.errors)

    def mean_gradient(
        self, site: Site, steps: int, batch_size: int | None
    ) -> Float[Tensor, "pair position width"]:
        """The gradient averaged over the path between the runs; 0 where they do not differ."""
        clean, corrupted = self.suffixes(site)
        mean = path_gradients(
            self.model, self.baseline, site, corrupted, clean, self.row_metric, steps, batch_size
        )
        whole = torch.zeros_like(self.runs(site)[0])
        whole[:, self.baseline.first :] = mean
        return whole

    def whole_effects(self, batch_size: int | None) -> dict[Site, Float[Tensor, " pair"]]:
        """The exact effect of patching each site whole, from the first difference on."""
        put_in = 0 if self.denoising else 1
        values = {site: self.suffixes(site)[put_in] for site in self.sources.sites}
        patched = patch_sites(self.model, self.baseline, values, self.row_metric, batch_size)
        return {site: (x - self.base_metric) * self.sign for site, x in patched.items()}

    @staticmethod
    def select(block: Block, wanted: set[tuple[int, int]]) -> Int[Tensor, " node"]:
        """The nodes of a block whose (position, index) is wanted, in all pairs that have them."""
        keys = zip(block.position.tolist(), block.index.tolist(), strict=True)
        found = [i for i, key in enumerate(keys) if key in wanted]
        return torch.tensor(found, dtype=torch.long, device=block.pair.device)
