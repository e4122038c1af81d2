"""`Evidence`: what tests ask of data. Images and text differ here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from circuits.hypotheses.claims import Condition, HypothesisError


@runtime_checkable
class Evidence(Protocol):
    """Data on which the latents of one or more SAEs can be looked at.

    Examples are what a latent is active on or not (an image; a position of a document); places are
    where it can be added (an image; the last position of a piece of text).
    """

    @property
    def kind(self) -> Literal["vectors", "text"]: ...

    @property
    def ids(self) -> frozenset[str]:
        """Names of the independent pieces of data (images, documents): none may be in two sets
        that have to be disjoint."""
        ...

    @property
    def groups(self) -> Int[np.ndarray, " example"]:
        """Of each example the piece of data it is from, coded 0, 1, ..."""
        ...

    @property
    def places(self) -> Int[np.ndarray, " place"]:
        """Of each place the piece of data it is from, coded as `groups`."""
        ...

    def sites(self) -> tuple[str, ...]:
        """Where there are SAEs."""
        ...

    def active(self, site: str, latents: Sequence[int]) -> Float[np.ndarray, "example latent"]:
        """Coefficients of latents: what stands before their decoder rows, 0 where not active."""
        ...

    def alive(self, site: str) -> Int[np.ndarray, " latent"]:
        """Latents that are active on some example."""
        ...

    def rows(self, site: str) -> Float[np.ndarray, "latent width"]:
        """Decoder rows."""
        ...

    def members(self, condition: Condition) -> Bool[np.ndarray, " example"]:
        """Which examples are of a class; raises `HypothesisError` for one these data do not
        know."""
        ...

    def outputs(self, condition: Condition) -> Int[np.ndarray, " output"]:
        """Which outputs (classes, tokens of the vocabulary) a condition means; raises
        `HypothesisError` as `members`."""
        ...

    def effect(
        self,
        site: str,
        directions: Float[np.ndarray, "direction width"],
        targets: Sequence[Int[np.ndarray, " _"]],
        places: Int[np.ndarray, " some"],
    ) -> Float[np.ndarray, "some direction target"]:
        """Change of the targets' mean logit less the mean change of all logits, when a direction is
        added at a place."""
        ...

    def mean_effects(
        self,
        site: str,
        directions: Float[np.ndarray, "direction width"],
        places: Int[np.ndarray, " some"],
        weights: Float[np.ndarray, " some"],
    ) -> Float[np.ndarray, "direction output"]:
        """The same of every output by itself, summed over places with weights."""
        ...

    def shown(self, example: int) -> str:
        """An example as text, for whoever is to say what a latent means."""
        ...

    def describe(self) -> dict[str, Any]:
        """For the record: which data these are."""
        ...


def require_disjoint(explored: Iterable[str], evidence: Evidence) -> None:
    """Raise `HypothesisError` when data that hypotheses were made from are among those they are to
    be tested on."""
    shared = evidence.ids & frozenset(explored)
    if shared:
        some = ", ".join(sorted(shared)[:3])
        raise HypothesisError(
            f"{len(shared)} of {len(evidence.ids)} documents or images to test on were used to "
            f"make the hypotheses ({some}{', ...' if len(shared) > 3 else ''}): test on others."
        )


def coded(values: Sequence[Any]) -> Int[np.ndarray, " example"]:
    """Codes 0, 1, ... in the order of first appearance."""
    found: dict[Any, int] = {}
    return np.array([found.setdefault(v, len(found)) for v in values], dtype=np.int64)
