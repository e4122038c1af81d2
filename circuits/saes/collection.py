"""Many SAEs, of which a bounded number is in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError

from circuits.models.load import sha256_of_weights
from circuits.saes.sae import Sae, SaeError
from circuits.sites import Site


@dataclass(frozen=True)
class SaeSource:
    """One SAE before it is loaded.

    site: where it reads. name: its id in a release, or its folder. architecture, d_sae, width: as
    its configuration says. model_name: the model it was trained on, when that is recorded.
    prepend_bos: whether it was trained with a beginning-of-text token, None when not recorded.
    sha256: of its weights, "" for a release that is not downloaded yet.
    load: makes the SAELens object on a device, in float32. neuronpedia: its id there, when known.
    centred: whether it reads activations less their mean over the width.
    """

    site: Site
    name: str
    architecture: str
    d_sae: int
    width: int
    model_name: str | None
    prepend_bos: bool | None
    sha256: str
    load: Callable[[torch.device], Any] = field(repr=False, compare=False)
    neuronpedia: str | None = None
    centred: bool = False


class SaeSet:
    """SAEs by site, `saes[site]`, loaded when first asked for and dropped when memory is short.

    Not a Mapping, whose values one may look through freely: looking at an SAE loads it.

    memory: most bytes of SAE weights on the device at once (at least one SAE is always held);
        results do not depend on it.
    """

    def __init__(
        self, sources: Mapping[Site, SaeSource], device: torch.device, memory: int | None = None
    ) -> None:
        self.sources = dict(sorted(sources.items()))
        self._device, self._memory = device, memory
        self._held: OrderedDict[Site, Sae] = OrderedDict()
        self._digests: dict[Site, str] = {}

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, site: Site) -> Sae:
        if site not in self._held:
            self._make_room(self.sources[site])
            self._held[site] = self._load(self.sources[site])
        self._held.move_to_end(site)
        return self._held[site]

    @classmethod
    def of(cls, sets: Sequence[SaeSet]) -> SaeSet:
        """Several sets as one, with the memory bound of the first."""
        sources = {site: source for one in sets for site, source in one.sources.items()}
        return cls(sources, sets[0]._device, sets[0]._memory)

    def at(self, sites: Iterable[Site]) -> SaeSet:
        """Those at some sites; what is loaded is shared."""
        part = SaeSet({site: self.sources[site] for site in sites}, self._device, self._memory)
        part._held, part._digests = self._held, self._digests
        return part

    def sha256(self, site: Site) -> str:
        """Of the weights at a site: their file, or, for a release, the tensors once loaded."""
        return self.sources[site].sha256 or self._digests.get(site, "")

    def describe(self, site: Site) -> dict[str, Any]:
        """What a record says of the SAE at a site."""
        source = self.sources[site]
        return {
            "site": str(site),
            "name": source.name,
            "sha256": self.sha256(site),
            "trained_on": source.model_name,
            "prepend_bos": source.prepend_bos,
        }

    @property
    def prepend_bos(self) -> bool | None:
        """Whether they were trained with a beginning-of-text token; None where they differ, or do
        not say."""
        said = {source.prepend_bos for source in self.sources.values()}
        return said.pop() if len(said) == 1 else None

    @property
    def fits(self) -> bool:
        """Whether all of them are in memory at once when they have been used."""
        whole = sum(4 * 2 * s.d_sae * s.width for s in self.sources.values())
        return self._memory is None or whole <= self._memory

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are held now."""
        return sum(sae.nbytes for sae in self._held.values())

    def _make_room(self, source: SaeSource) -> None:
        # Encoder and decoder are nearly all of it; float32.
        expected = 4 * 2 * source.d_sae * source.width
        while self._memory is not None and self._held and self.nbytes + expected > self._memory:
            self._held.popitem(last=False)

    def _load(self, source: SaeSource) -> Sae:
        try:
            sae = Sae(source.load(self._device), source.site, centred=source.centred)
        except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SaeError(f"the SAE {source.name} could not be loaded: {reason}") from error
        for name, weight in sae.named_weights():
            if not torch.isfinite(weight).all():
                raise SaeError(f"the SAE {source.name} has non-finite values in {name}.")
        if not source.sha256 and source.site not in self._digests:
            self._digests[source.site] = sha256_of_weights(sae.module)
        return sae
