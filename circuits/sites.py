"""Sites: the places in a model whose activations are read, patched and differentiated.

A site is one hook point of one layer. `resid_pre` of layer l is the same tensor as `resid_post` of
layer l-1; results always say which of the two they mean. Names are strict: an unknown name raises,
because TransformerLens itself ignores hooks on names it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from circuits.errors import CircuitsError

SiteKind = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z"]
SITE_KINDS: tuple[SiteKind, ...] = get_args(SiteKind)

# What TransformerLens calls each kind, after "blocks.{layer}.".
_HOOK_SUFFIX: dict[SiteKind, str] = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
}
# The order in which a layer computes them.
_FORWARD = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
_KIND_OF_SUFFIX: dict[str, SiteKind] = {suffix: kind for kind, suffix in _HOOK_SUFFIX.items()}


class SiteError(CircuitsError):
    """A site name that means nothing, or a site that the model does not have."""


def parse_kind(name: str) -> SiteKind:
    """Return `name` as a site kind; raises `SiteError` that lists the kinds there are."""
    for kind in SITE_KINDS:
        if name == kind:
            return kind
    raise SiteError(
        f"unknown site kind {name!r}: expected one of {', '.join(SITE_KINDS)} "
        "(z is the attention heads' output before the output projection)."
    )


@dataclass(frozen=True, order=True)
class Site:
    """One hook point of one layer.

    layer: 0-based block index.
    kind: one of `SITE_KINDS`. Width is d_model, except `z`: n_heads x d_head.
    """

    layer: int
    kind: SiteKind

    def __post_init__(self) -> None:
        parse_kind(self.kind)
        if self.layer < 0:
            raise SiteError(
                f"layer {self.layer} of site {self.kind!r} is negative: layers count from 0."
            )

    @property
    def hook_name(self) -> str:
        """The TransformerLens name, e.g. `blocks.12.hook_resid_post`."""
        return f"blocks.{self.layer}.{_HOOK_SUFFIX[self.kind]}"

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    @classmethod
    def parse(cls, name: str) -> Site:
        """Read `resid_post.12` or `blocks.12.hook_resid_post`; raises `SiteError` on all else."""
        short = re.fullmatch(r"([a-z_]+)\.(\d+)", name)
        if short:
            return cls(int(short[2]), parse_kind(short[1]))
        hook = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if hook and hook[2] in _KIND_OF_SUFFIX:
            return cls(int(hook[1]), _KIND_OF_SUFFIX[hook[2]])
        raise SiteError(
            f"unknown site {name!r}: expected KIND.LAYER (such as resid_post.12) or a "
            "TransformerLens name (such as blocks.12.hook_resid_post), with KIND one of "
            f"{', '.join(SITE_KINDS)}."
        )


def forward_order(sites: Iterable[Site]) -> tuple[Site, ...]:
    """Sites in the order in which a model computes them, each once.

    Raises `SiteError` where two of them are one tensor: resid_post of a layer and resid_pre of the
    next.
    """
    found = sorted(set(sites), key=lambda site: (site.layer, _FORWARD.index(site.kind)))
    for before, after in pairwise(found):
        if (before.kind, after.kind, after.layer) == ("resid_post", "resid_pre", before.layer + 1):
            raise SiteError(f"{before} and {after} are one tensor: choose one of them.")
    return tuple(found)
