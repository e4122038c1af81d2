"""`VectorEvidence`: vectors with labels, such as images seen by a classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.features import LabelledVectors
from circuits.hypotheses.claims import Condition, HypothesisError
from circuits.saes.sae import Sae

_AT_ONCE = 1 << 14


@dataclass(frozen=True, eq=False)
class VectorEvidence:
    """Vectors that an SAE reads, what they are of, and what the rest of the model makes of them.

    name: of the site, by which hypotheses call it. data: the vectors and their labels; inputs that
        are images [example, height, width] are shown.
    readout: from vectors [vector, width] to logits [vector, class].
    names: of the examples, by which two sets are known to be disjoint; by default a digest of each
        vector (then examples that are alike count as the same).
    most: examples that latents are added to, at most; drawn by seed.

    Raises `HypothesisError` where these do not belong together.
    """

    name: str
    sae: Sae
    data: LabelledVectors
    readout: Callable[[Tensor], Tensor]
    names: tuple[str, ...] = ()
    most: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        n = len(self.data)
        if n < 2 or self.most < 1:
            raise HypothesisError(
                f"{n} vectors, to {self.most} of which latents are added: expected two vectors or "
                "more, and latents added to one at least."
            )
        if len(self.names) not in (0, n) or len(set(self.names)) < len(self.names):
            raise HypothesisError(
                f"{n} vectors and {len(self.names)} names, {len(set(self.names))} of them "
                "different: each example has a name of its own, or none has one."
            )
        width = self.vectors.shape[1]
        if width != self.sae.width:
            raise HypothesisError(
                f"vectors of width {width}, but the SAE reads vectors of width {self.sae.width}."
            )
        with torch.no_grad():
            outputs = tuple(self.readout(self.vectors[:2]).shape)
        if outputs != (2, len(self.classes)):
            raise HypothesisError(
                f"of two vectors the readout makes {outputs}, where [2, {len(self.classes)}] is "
                "expected: one output a class."
            )

    @property
    def vectors(self) -> Float[Tensor, "example width"]:
        """What the SAE reads."""
        return self.data.vectors

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of labels and outputs."""
        return self.data.classes

    @cached_property
    def labels(self) -> Int[np.ndarray, " example"]:
        """Places in `classes`."""
        return self.data.labels.cpu().numpy()

    @property
    def kind(self) -> Literal["vectors"]:
        """What sort of data this is."""
        return "vectors"

    @property
    def ids(self) -> frozenset[str]:
        """The examples' names, or digests of the vectors."""
        return self._ids

    @cached_property
    def _ids(self) -> frozenset[str]:
        if self.names:
            return frozenset(self.names)
        raw = self.vectors.detach().double().cpu().numpy()
        return frozenset(hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in raw)

    @property
    def groups(self) -> Int[np.ndarray, " example"]:
        """Each example by itself."""
        return self._groups

    @cached_property
    def _groups(self) -> Int[np.ndarray, " example"]:
        return np.arange(len(self.vectors))

    @property
    def places(self) -> Int[np.ndarray, " place"]:
        """The examples that latents are added to."""
        return self._places

    @cached_property
    def _places(self) -> Int[np.ndarray, " place"]:
        order = np.random.default_rng(self.seed).permutation(len(self.vectors))
        return np.sort(order[: self.most])

    def sites(self) -> tuple[str, ...]:
        """The one there is."""
        return (self.name,)

    def _require(self, site: str) -> None:
        if site != self.name:
            raise HypothesisError(f"these data are of {self.name}, not of {site}.")

    @cached_property
    def _coefficients(self) -> Float[np.ndarray, "example latent"]:
        parts = [
            self.sae.coefficients(x.to(self.sae.dtype)).cpu() for x in self.vectors.split(_AT_ONCE)
        ]
        return torch.cat(parts).numpy()

    def active(self, site: str, latents: Sequence[int]) -> Float[np.ndarray, "example latent"]:
        """Coefficients of latents."""
        self._require(site)
        check_latents(site, latents, self.sae.d_sae)
        return self._coefficients[:, list(latents)]

    def alive(self, site: str) -> Int[np.ndarray, " latent"]:
        """Latents that are active on some example."""
        self._require(site)
        return np.flatnonzero((self._coefficients != 0).any(0))

    def rows(self, site: str) -> Float[np.ndarray, "latent width"]:
        """Decoder rows."""
        self._require(site)
        return self.sae.rows.detach().cpu().numpy()

    def members(self, condition: Condition) -> Bool[np.ndarray, " example"]:
        """The examples of a label."""
        return self.labels == self.outputs(condition)[0]

    def outputs(self, condition: Condition) -> Int[np.ndarray, " output"]:
        """The class of a label."""
        if condition.kind != "label":
            raise HypothesisError(f"{condition.kind}: of these examples only the label is known.")
        if condition.value not in self.classes:
            raise HypothesisError(
                f"there is no label {condition.value!r}: expected {', '.join(self.classes[:12])}."
            )
        return np.array([self.classes.index(str(condition.value))])

    @torch.no_grad()
    def effect(
        self,
        site: str,
        directions: Float[np.ndarray, "direction width"],
        targets: Sequence[Int[np.ndarray, " _"]],
        places: Int[np.ndarray, " some"],
    ) -> Float[np.ndarray, "some direction target"]:
        """See `Evidence.effect`; `places` are numbers of entries of `self.places`."""
        self._require(site)
        x = self.vectors[torch.from_numpy(self.places[places])]
        plain = self.readout(x)
        found = np.empty((len(places), len(directions), len(targets)))
        for i, direction in enumerate(torch.from_numpy(directions).to(x)):
            change = (self.readout(x + direction) - plain).double()
            change = change - change.mean(-1, keepdim=True)
            for j, target in enumerate(targets):
                found[:, i, j] = change[:, torch.from_numpy(target)].mean(-1).cpu().numpy()
        return found

    @torch.no_grad()
    def mean_effects(
        self,
        site: str,
        directions: Float[np.ndarray, "direction width"],
        places: Int[np.ndarray, " some"],
        weights: Float[np.ndarray, " some"],
    ) -> Float[np.ndarray, "direction output"]:
        """See `Evidence.mean_effects`."""
        self._require(site)
        x = self.vectors[torch.from_numpy(self.places[places])]
        plain, share = self.readout(x), torch.from_numpy(weights).to(x.device)
        found = []
        for direction in torch.from_numpy(directions).to(x):
            change = (self.readout(x + direction) - plain).double()
            found.append(share @ (change - change.mean(-1, keepdim=True)))
        return torch.stack(found).cpu().numpy()

    def shown(self, example: int) -> str:
        """The label, and the image in characters where there is one."""
        text = f"label: {self.classes[self.labels[example]]}"
        images = self.data.inputs
        if images is None or images.ndim != 3:
            return text
        return f"{text}\n{in_characters(images[example].float().cpu().numpy())}"

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {
            "kind": self.kind,
            "site": self.name,
            "examples": len(self.vectors),
            "classes": list(self.classes),
        }


def in_characters(image: Float[np.ndarray, "height width"], size: int = 14) -> str:
    """An image in at most `size` lines of characters, dark to bright in five steps."""
    step = max(1, -(-max(image.shape) // size))
    rows, columns = (n // step * step for n in image.shape)
    small = reduce(image[:rows, :columns], "(h a) (w b) -> h w", "mean", a=step, b=step).astype(
        float
    )
    low, high = float(small.min()), float(small.max())
    level = np.zeros_like(small) if high == low else (small - low) / (high - low)
    return "\n".join("".join(" .:*#"[int(min(4, 5 * x))] for x in line) for line in level)


def check_latents(site: str, latents: Sequence[int], d_sae: int) -> None:
    """Raise `HypothesisError` for latents that an SAE does not have."""
    wrong = [k for k in latents if not 0 <= k < d_sae]
    if wrong:
        raise HypothesisError(f"no latents {wrong} at {site}: its SAE has 0 to {d_sae - 1}.")
