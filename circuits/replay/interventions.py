"""Interventions on latents while a model runs: hold, scale, remove, and what stands beside them.

At a position, an activation is x = offset + sum_i a_i d_i + error with effective coefficients a_i
(`Sae.coefficients`) and decoder rows d_i. A change of latent i to the coefficient `new` replaces x
by x + (new - a_i) d_i: only the latent's own write is changed, so whatever the SAE does not
reconstruct stays as it was and is never an effect. a_i is read from the activation as it arrives,
with all that was changed at the sites before it.

Positions count from the first token of the prompt, which is left alone unless it is asked for: on
it the norm of the stream is a hundred times that of others (an attention sink). With a prompt of P
tokens "prompt" is positions 1 to P - 1 and "generated" position P and later. Position p computes
the logits of the token at p + 1; a change at generated positions only therefore acts from the
second generated token on, and the first one is the same in every arm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.errors import CircuitsError
from circuits.saes import Sae, SaeSet
from circuits.sites import Site

Mode = Literal["hold", "scale", "remove"]
Where = Literal["prompt", "generated", "all"]


class ReplayError(CircuitsError):
    """A replay that cannot be done as asked."""


def check_where(where: str) -> None:
    """Raise `ReplayError` for anything but "prompt", "generated" and "all"."""
    if where not in get_args(Where):
        raise ReplayError(f"where={where!r}: expected one of {', '.join(get_args(Where))}.")


@dataclass(frozen=True, eq=False)
class Change:
    """One latent's effective coefficient changed at a site.

    mode: "hold" sets it to `value`, "scale" multiplies it by `value`, "remove" sets it to 0.
    value: of hold, in units of the effective coefficient, also a tensor [row, position] over the
        positions of the whole sequence from the first one on, NaN where it is left as it is; of
        scale, a factor; of remove, None.
    where: which positions (see the module); those of a tensor's NaN are left out as well.
    skip: generated positions that are left as they are, so that the generated tokens 0 to `skip`
        are the same with and without the change (with where="generated").
    first: whether the first position is changed too.
    """

    site: Site
    latent: int
    mode: Mode
    value: float | int | Float[Tensor, "row position"] | None = None
    where: Where = "all"
    skip: int = 0
    first: bool = False

    def __post_init__(self) -> None:
        check_where(self.where)
        if self.mode not in get_args(Mode):
            raise ReplayError(f"mode {self.mode!r}: expected one of {', '.join(get_args(Mode))}.")
        if self.latent < 0 or self.skip < 0:
            raise ReplayError(f"latent {self.latent} and skip {self.skip} must not be negative.")
        if isinstance(self.value, Tensor):
            if self.mode != "hold":
                raise ReplayError(f"{self.mode} takes one number, only hold takes a tensor.")
        elif self.mode == "remove":
            if self.value not in (None, 0):
                raise ReplayError(f"remove sets a latent to 0: value {self.value} contradicts it.")
        elif self.value is None or not math.isfinite(self.value):
            raise ReplayError(f"{self.mode} needs a finite value, got {self.value}.")

    @property
    def by_row(self) -> bool:
        """Whether it differs from row to row."""
        return isinstance(self.value, Tensor)

    def delta(self, found: Float[Tensor, "row position"], start: int) -> Tensor:
        """new - found, exactly 0 where the coefficient stays as it is."""
        if self.mode == "remove":
            return -found
        if self.mode == "scale":
            return found * float(self.value) - found  # pyright: ignore
        if isinstance(self.value, Tensor):
            rows, count = found.shape
            value = self.value[:, start : start + count].to(found)
            if tuple(value.shape) != (rows, count):
                raise ReplayError(
                    f"{self.site}:{self.latent} is held at values for {tuple(self.value.shape)} "
                    f"[row, position], but {rows} rows are run to position {start + count - 1}: "
                    "give a value (or NaN) for each."
                )
            return torch.where(value.isnan(), 0.0, value - found)
        return float(self.value) - found  # pyright: ignore


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """An activation becomes what its SAE makes of it: the effect of the SAE's error alone."""

    site: Site
    where: Where = "all"
    skip: int = 0
    first: bool = False

    def __post_init__(self) -> None:
        check_where(self.where)

    @property
    def by_row(self) -> bool:
        """Never differs from row to row."""
        return False


@dataclass(frozen=True, eq=False)
class Other:
    """What `change` writes, along another latent's decoder row.

    At every position its norm is that of the change, |new - a| |d|, and its sign that of new - a.
    """

    change: Change
    latent: int

    @property
    def site(self) -> Site:
        """The change's."""
        return self.change.site

    @property
    def where(self) -> Where:
        """The change's."""
        return self.change.where

    @property
    def skip(self) -> int:
        """The change's."""
        return self.change.skip

    @property
    def first(self) -> bool:
        """The change's."""
        return self.change.first

    @property
    def by_row(self) -> bool:
        """As the change."""
        return self.change.by_row


Intervention = Change | Other | Reconstruction


def touched(
    one: Intervention, start: int, count: int, prompt_length: int
) -> Bool[Tensor, " position"]:
    """Which of the positions start .. start + count - 1 an intervention acts at."""
    position = torch.arange(start, start + count)
    inside = position < prompt_length
    late = position >= prompt_length + one.skip
    found = {"prompt": inside, "generated": late, "all": inside | late}[one.where]
    return found if one.first else found & (position > 0)


@dataclass(frozen=True, eq=False)
class SiteEdit:
    """All interventions at one site, as an `Edit` of `HookedModel`: (x, start) -> x.

    Every one of them reads the same x; their writes are added to it, or to its reconstruction at
    positions where that is asked for.
    """

    sae: Sae
    interventions: Sequence[Intervention]
    prompt_length: int
    read: Callable[[Tensor], Tensor]  # [vector, width] -> coefficients [vector, change]
    directions: Float[Tensor, "change width"]

    @property
    def by_row(self) -> bool:
        """Whether rows of one prompt may be changed differently."""
        return any(one.by_row for one in self.interventions)

    def __call__(self, x: Float[Tensor, "row position width"], start: int) -> Tensor:
        masks = [touched(i, start, x.shape[1], self.prompt_length) for i in self.interventions]
        some = torch.stack(masks).any(0)
        if not some.any():
            return x
        every = bool(some.all())
        part = x if every else x[:, some.to(x.device)]
        made = self._changed(part, x, start, masks, some)
        if every:
            return made
        out = x.clone()
        out[:, some.to(x.device)] = made
        return out

    def _changed(
        self, part: Tensor, x: Tensor, start: int, masks: Sequence[Tensor], some: Tensor
    ) -> Tensor:
        rows, width = part.shape[0], part.shape[2]
        made = part
        wide = part.reshape(-1, width).to(self.sae.dtype)
        for one, mask in zip(self.interventions, masks, strict=True):
            if isinstance(one, Reconstruction):
                here = mask[some].to(x.device)
                rebuilt = self.sae.reconstruct(wide[None])[0].reshape(part.shape).to(x.dtype)
                made = torch.where(here[:, None], rebuilt, made)
        changes = [
            (one.change if isinstance(one, Other) else one, mask)
            for one, mask in zip(self.interventions, masks, strict=True)
            if not isinstance(one, Reconstruction)
        ]
        if not changes:
            return made
        found = self.read(wide).reshape(rows, -1, len(changes))
        # Values are given for whole sequences, so coefficients are put back in their places.
        places = torch.zeros(rows, x.shape[1], len(changes), dtype=found.dtype, device=x.device)
        places[:, some.to(x.device)] = found.to(x.device)
        deltas = [
            one.delta(places[..., i], start) * mask.to(x.device)
            for i, (one, mask) in enumerate(changes)
        ]
        delta = torch.stack(deltas, -1)[:, some.to(x.device)]
        write = delta @ self.directions.to(delta)
        return (made + write).to(x.dtype)


def edits_of(
    saes: SaeSet,
    interventions: Sequence[Intervention],
    prompt_length: int,
) -> dict[Site, SiteEdit]:
    """The interventions as edits of `HookedModel` (`run_all_positions`, `generate`, `forced`).

    prompt_length: tokens of the prompts, the same for all rows.
    Raises `ReplayError` for sites without an SAE, latents that an SAE does not have, two changes of
    one latent whose positions overlap, and a latent without a direction to write along.
    """
    by_site: dict[Site, list[Intervention]] = {}
    for one in interventions:
        by_site.setdefault(one.site, []).append(one)
    return {site: _site_edit(saes, site, found, prompt_length) for site, found in by_site.items()}


def _site_edit(
    saes: SaeSet,
    site: Site,
    found: Sequence[Intervention],
    prompt_length: int,
) -> SiteEdit:
    if site not in saes.sources:
        there = ", ".join(map(str, saes))
        raise ReplayError(f"there is no SAE at {site} to change latents of: there are {there}.")
    _check_once(found)
    sae = saes[site]
    changes = [one for one in found if not isinstance(one, Reconstruction)]
    rows = [_direction(sae, one) for one in changes]
    directions = torch.stack(rows) if rows else sae.rows.new_zeros(0, sae.width)
    read = sae.reader([(one.change if isinstance(one, Other) else one).latent for one in changes])
    return SiteEdit(sae, found, prompt_length, read, directions)


def _direction(sae: Sae, one: Change | Other) -> Float[Tensor, " width"]:
    latents = [one.change.latent, one.latent] if isinstance(one, Other) else [one.latent]
    for latent in latents:
        if latent >= sae.d_sae:
            raise ReplayError(
                f"{sae.site} has no latent {latent}: its SAE has latents 0 to {sae.d_sae - 1}."
            )
    row = sae.rows[latents[-1]]
    if float(row.norm()) == 0:
        raise ReplayError(
            f"{sae.site}:{latents[-1]} has a decoder row of zeros: it writes nothing."
        )
    if isinstance(one, Other):
        row = row * (sae.rows[one.change.latent].norm() / row.norm())
    return row


def _check_once(found: Sequence[Intervention]) -> None:
    """Two changes of one latent at one position contradict each other."""
    seen: list[tuple[Any, Intervention]] = []
    for one in found:
        key = "reconstruction" if isinstance(one, Reconstruction) else one.latent
        for other_key, other in seen:
            overlap = "all" in (one.where, other.where) or one.where == other.where
            if other_key == key and overlap and not (one.by_row or other.by_row):
                raise ReplayError(f"{one.site}: {key} is changed twice at the same positions.")
        seen.append((key, one))


def describe(one: Intervention) -> dict[str, Any]:
    """What a run's record says of an intervention."""
    places: Mapping[str, Any] = {"where": one.where, "skip": one.skip, "first": one.first}
    if isinstance(one, Reconstruction):
        return {"what": "reconstruction", "site": str(one.site), **places}
    if isinstance(one, Other):
        return {"what": "other", "latent": one.latent, "of": describe(one.change)}
    value = f"tensor {tuple(one.value.shape)}" if isinstance(one.value, Tensor) else one.value
    return {
        "what": "change",
        "site": str(one.site),
        "latent": one.latent,
        "mode": one.mode,
        "value": value,
        **places,
    }
