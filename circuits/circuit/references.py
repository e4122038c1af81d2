"""What nodes outside of a circuit are set to.

`corrupted`: their value in the pair's corrupted run. `mean`: their mean over the clean and the
corrupted prompts of all pairs that line up with the pair, position by position (over clean prompts
alone the model's own answer would be in it). `zero`: nothing; of the activation the SAE's constant
bias is left. Where an SAE normalises its input, the offset that goes with it is a node, zero too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.errors import CircuitsError
from circuits.models.hooked import HookedModel
from circuits.prompts import PairGroup, PromptPairs
from circuits.saes import Encoded, Sae, SaeSet
from circuits.sites import Site

ReferenceName = Literal["corrupted", "mean", "zero"]
REFERENCES: tuple[ReferenceName, ...] = get_args(ReferenceName)
_PROMPTS_AT_ONCE = 16


class CircuitError(CircuitsError):
    """A circuit that cannot be found, evaluated or applied as asked."""


def check_references(names: Sequence[str]) -> tuple[ReferenceName, ...]:
    """The names; raises `CircuitError` for an unknown one or none."""
    unknown = [name for name in names if name not in REFERENCES]
    if unknown or not names:
        raise CircuitError(
            f"unknown reference {', '.join(map(repr, unknown)) or 'None'}: expected some of "
            f"{', '.join(REFERENCES)}."
        )
    return tuple(name for name in REFERENCES if name in names)


@dataclass(frozen=True)
class Reference:
    """Reference values at one site, one row for each prompt (or group of them) that has its own.

    base: the whole activation, [row, position, width]. error, offset: its parts, None where they
        are 0 (a constant offset counts as 0: it is in `base`, whatever is kept).
    token, latent, value: effective coefficients that are not 0, ordered by row and position;
        token = row * positions + position.
    """

    base: Float[Tensor, "row position width"]
    error: Float[Tensor, "row position width"] | None
    offset: Float[Tensor, "row position width"] | None
    token: Int[Tensor, " entry"]
    latent: Int[Tensor, " entry"]
    value: Float[Tensor, " entry"]

    @classmethod
    def of_runs(cls, sae: Sae, x: Float[Tensor, "row position width"]) -> Reference:
        """The values of runs."""
        parts = sae.decompose(x)
        values = effective(parts, sae.normalises)
        offset = parts.offset if sae.normalises else None
        return cls(x, parts.error, offset, parts.latents.token, parts.latents.latent, values)

    @classmethod
    def zero(cls, sae: Sae, rows: int, positions: int) -> Reference:
        """Nothing but the constant bias."""
        width = sae.rows.shape[1]
        base = torch.zeros(rows, positions, width, dtype=sae.dtype, device=sae.rows.device)
        offset = base if sae.normalises else None
        if not sae.normalises:
            base = base + sae.constant_offset
        none = torch.zeros(0, dtype=torch.long, device=base.device)
        return cls(base, None, offset, none, none, base.new_zeros(0))


def effective(parts: Encoded, scaled: bool) -> Float[Tensor, " entry"]:
    """Coefficients of the decoder rows: activations times the token's scale."""
    latents = parts.latents
    if not scaled:
        return latents.value
    return latents.value * parts.scale[latents.row, latents.position, 0]


class _Sums:
    """Sums of decompositions over prompts, sparse."""

    def __init__(self) -> None:
        self.count = 0
        self.x: Tensor | float = 0.0
        self.error: Tensor | float = 0.0
        self.offset: Tensor | float = 0.0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def add(self, sae: Sae, x: Float[Tensor, "row position width"]) -> None:
        """Take in the runs of some prompts."""
        parts = sae.decompose(x)
        self.count += len(x)
        self.x = self.x + x.sum(0)
        self.error = self.error + parts.error.sum(0)
        self.offset = self.offset + parts.offset.sum(0)
        keys = parts.latents.position * sae.d_sae + parts.latents.latent
        self.keys.append(keys)
        self.values.append(effective(parts, sae.normalises))
        if len(self.keys) > 8:
            self._merge()

    def _merge(self) -> None:
        keys, back = torch.cat(self.keys).unique(return_inverse=True)
        values = torch.cat(self.values)
        total = torch.zeros(len(keys), dtype=values.dtype, device=values.device)
        self.keys, self.values = [keys], [total.index_add_(0, back, values)]

    def mean(self, sae: Sae) -> Reference:
        """Their mean, as one row."""
        self._merge()
        [keys], [values] = self.keys, self.values
        position = keys.div(sae.d_sae, rounding_mode="floor")
        x, error, offset = (
            torch.as_tensor(part / self.count)[None] for part in (self.x, self.error, self.offset)
        )
        kept = offset if sae.normalises else None
        latent = keys - position * sae.d_sae
        return Reference(x, error, kept, position, latent, values / self.count)


class Means:
    """Means over the clean and corrupted prompts of pairs that line up, for every site.

    alignment: for each pair, the number of its mean.
    """

    def __init__(self, model: HookedModel, saes: SaeSet, pairs: PromptPairs) -> None:
        aligned = pairs.alignments()
        self.alignment = {i: number for number, a in enumerate(aligned) for i in a.pairs}
        sums = [{site: _Sums() for site in saes} for _ in aligned]
        for group in pairs.groups(_PROMPTS_AT_ONCE):
            numbers = torch.tensor([self.alignment[i] for i in group.indices])
            for tokens in (group.clean, group.corrupted):
                _, values = model.cache(tokens, list(saes))
                for site in saes:  # outermost: an SAE may have to be loaded for it
                    sae = saes[site]
                    for number in numbers.unique().tolist():
                        mine = (numbers == number).nonzero().squeeze(1).to(model.device)
                        sums[number][site].add(sae, values[site][mine].to(sae.dtype))
        self._found = [
            {site: total.mean(saes[site]) for site, total in one.items()} for one in sums
        ]

    def of(self, site: Site, group: PairGroup) -> tuple[Reference, Int[Tensor, " pair"]]:
        """The means at a site for a group of pairs, and for each pair its row of them."""
        numbers = [self.alignment[i] for i in group.indices]
        used = sorted(set(numbers))
        row = torch.tensor([used.index(n) for n in numbers])
        return _stack([self._found[number][site] for number in used]), row


def _stack(parts: Sequence[Reference]) -> Reference:
    """References of equally long prompts as the rows of one."""
    if len(parts) == 1:
        return parts[0]
    positions = parts[0].base.shape[1]
    tokens, rows = [], 0
    for part in parts:
        tokens.append(part.token + rows * positions)
        rows += len(part.base)

    def joined(values: Sequence[Tensor | None]) -> Tensor | None:
        present = [v for v in values if v is not None]
        return torch.cat(present) if present else None

    return Reference(
        torch.cat([p.base for p in parts]),
        joined([p.error for p in parts]),
        joined([p.offset for p in parts]),
        torch.cat(tokens),
        torch.cat([p.latent for p in parts]),
        torch.cat([p.value for p in parts]),
    )


def references_at(
    sae: Sae,
    name: ReferenceName,
    corrupted: Float[Tensor, "pair position width"],
    group: PairGroup,
    means: Means | None,
) -> tuple[Reference, Int[Tensor, " pair"]]:
    """Reference values at a site for a group of pairs, and for each pair its row of them.

    corrupted: the site's activations in the corrupted runs. means: for `mean`.
    """
    pairs = len(group.indices)
    if name == "corrupted":
        return Reference.of_runs(sae, corrupted.to(sae.dtype)), torch.arange(pairs)
    if name == "zero":
        return Reference.zero(sae, 1, corrupted.shape[1]), torch.zeros(pairs, dtype=torch.long)
    assert means is not None
    return means.of(sae.site, group)
