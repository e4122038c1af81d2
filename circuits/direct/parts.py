"""The parts of the last position's stream in both runs of some pairs.

The stream after the last block is the sum of the embedding and of every attention and MLP output;
attention outputs are the sum of their heads and a bias; and a site with an SAE is the sum of its
latents, its error and its offset. A part keeps what it writes at its own site; `Streams.carried`
takes that to the final stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.attribute.nodes import latent_block
from circuits.models.hooked import HookedModel
from circuits.models.norms import Norm, read_norm
from circuits.models.unembed import norm_after_attention, output_projection
from circuits.prompts import PairGroup
from circuits.saes import SaeSet
from circuits.sites import Site

RUNS: tuple[Literal["clean", "corrupted"], ...] = ("clean", "corrupted")


@dataclass(frozen=True)
class Part:
    """Nodes of one role at one site.

    role: embedding, component, head, bias, latent, error, offset or constant.
    pair, index: the pair of each node; its head or latent, -1 for others.
    writes: per run, what each node writes at `site`, in float64.
    """

    site: Site
    role: str
    pair: Int[Tensor, " node"]
    index: Int[Tensor, " node"]
    writes: dict[str, Float[Tensor, "node width"]]

    @property
    def change(self) -> Float[Tensor, "node width"]:
        """Clean write less corrupted write."""
        return self.writes["clean"] - self.writes["corrupted"]


class Streams:
    """The last position of both runs of a group of pairs, at all components and SAE sites."""

    def __init__(self, model: HookedModel, saes: SaeSet | None, group: PairGroup) -> None:
        self.model, self.saes, self.group = model, saes, group
        self.final = Site(model.n_layers - 1, "resid_post")
        self.embedding = Site(0, "resid_pre")
        sites = [self.embedding, self.final]
        sites += [Site(i, k) for i in range(model.n_layers) for k in ("attn_out", "mlp_out", "z")]
        sites += list(saes or ())
        self.values: dict[str, dict[Site, Tensor]] = {}
        self.logits: dict[str, Tensor] = {}
        for run, tokens in zip(RUNS, (group.clean, group.corrupted), strict=True):
            self.logits[run], values = model.cache(tokens, sites, first=tokens.shape[1] - 1)
            self.values[run] = {site: x[:, 0].double() for site, x in values.items()}
        self._norms: dict[int, Norm | None] = {}

    def whole(self, site: Site, role: str) -> Part:
        """A whole activation as one node a pair."""
        return self._vectors(site, role, {run: self.values[run][site] for run in RUNS})

    def _vectors(self, site: Site, role: str, writes: dict[str, Tensor]) -> Part:
        pair = torch.arange(len(self.group.indices), device=self.model.device)
        return Part(site, role, pair, torch.full_like(pair, -1), writes)

    def components(self) -> Iterator[Part]:
        """The embedding, and every layer's attention and MLP output."""
        yield self.whole(self.embedding, "embedding")
        for layer in range(self.model.n_layers):
            yield self.whole(Site(layer, "attn_out"), "component")
            yield self.whole(Site(layer, "mlp_out"), "component")

    def later(self, site: Site) -> Iterator[Part]:
        """The attention and MLP outputs that are added to the stream after a residual site."""
        for part in self.components():
            if part.role != "component":
                continue
            begins = part.site.layer > site.layer or (
                part.site.layer == site.layer
                and (
                    site.kind == "resid_pre"
                    or (site.kind == "resid_mid" and part.site.kind == "mlp_out")
                )
            )
            if begins:
                yield part

    def heads(self, layer: int) -> Part:
        """The heads of a layer, each writing at `z` where the others write nothing."""
        site, heads = Site(layer, "z"), self.model.n_heads
        n_pairs = len(self.group.indices)
        writes = {}
        for run in RUNS:
            parts = self.values[run][site].unflatten(1, (heads, -1))
            alone = torch.eye(heads, device=parts.device, dtype=parts.dtype)
            writes[run] = (parts[:, :, None] * alone[None, :, :, None]).flatten(2).flatten(0, 1)
        pair = torch.arange(n_pairs, device=self.model.device).repeat_interleave(heads)
        index = torch.arange(heads, device=self.model.device).repeat(n_pairs)
        return Part(site, "head", pair, index, writes)

    def bias(self, layer: int) -> Part:
        """What an attention output holds beside its heads, at attn_out."""
        site = Site(layer, "attn_out")
        every = torch.arange(len(self.group.indices), device=self.model.device)
        writes = {}
        for run in RUNS:
            z = self.values[run][Site(layer, "z")]
            writes[run] = self.values[run][site] - self.carried(Site(layer, "z"), run, z, every)
        return self._vectors(site, "bias", writes)

    def nodes(self, site: Site) -> Sequence[Part]:
        """Latents, error and offset of a site with an SAE."""
        assert self.saes is not None
        sae = self.saes[site]
        parts = {run: sae.decompose(self.values[run][site].to(sae.dtype)[:, None]) for run in RUNS}
        first = torch.zeros(len(self.group.indices), dtype=torch.long, device=self.model.device)
        block = latent_block(sae, parts["clean"], parts["corrupted"], first)
        rows = block.rows[block.index].double()
        coefficients = {"clean": block.clean.double(), "corrupted": block.corrupted.double()}
        writes = {run: coefficients[run][:, None] * rows for run in RUNS}
        found = [Part(site, "latent", block.pair, block.index, writes)]
        errors = {run: parts[run].error[:, 0].double() for run in RUNS}
        offsets = {run: parts[run].offset[:, 0].double() for run in RUNS}
        found.append(self._vectors(site, "error", errors))
        found.append(self._vectors(site, "offset", offsets))
        return found

    def carried(
        self,
        site: Site,
        run: str,
        vectors: Float[Tensor, "node width"],
        pair: Int[Tensor, " node"],
    ) -> Float[Tensor, "node d_model"]:
        """Vectors of `site` as they arrive in the final stream of a run, all scales as they are."""
        if site.kind != "z":
            return vectors
        written = vectors @ output_projection(self.model, site.layer).to(vectors)
        norm = self._after(site.layer)
        if norm is None:
            return written
        return norm.linear(written) / norm.scale(self._attended(site.layer, run))[pair, None]

    def carried_exactly(
        self,
        site: Site,
        run: str,
        vectors: Float[Tensor, "node width"],
        pair: Int[Tensor, " node"],
    ) -> Float[Tensor, "node d_model"]:
        """What is added to the final stream of a run when vectors are added at `site`: as
        `carried`, with a norm behind the attention computed again."""
        norm = self._after(site.layer) if site.kind == "z" else None
        if norm is None:
            return self.carried(site, run, vectors, pair)
        written = vectors @ output_projection(self.model, site.layer).to(vectors)
        there = self._attended(site.layer, run)[pair]
        return norm(there + written) - norm(there)

    def _after(self, layer: int) -> Norm | None:
        if layer not in self._norms:
            found = norm_after_attention(self.model, layer)
            self._norms[layer] = None if found is None else read_norm(found, self.model)
        return self._norms[layer]

    def _attended(self, layer: int, run: str) -> Float[Tensor, "pair d_model"]:
        """What goes into the norm behind the attention."""
        z = self.values[run][Site(layer, "z")]
        written = z @ output_projection(self.model, layer).to(z)
        bias = getattr(self.model.module.blocks[layer].attn, "b_O", None)  # pyright: ignore
        return written if bias is None else written + bias.to(written)
