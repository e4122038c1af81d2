"""A bank of latents that read the vectors of any model: images with labels, say.

The same bank as for text, with examples in place of contexts: each is one position, its "token" is
its label, and what a latent raises and lowers is what writing it in does to the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.errors import CircuitsError
from circuits.features.bank import FeatureBank
from circuits.features.collect import examples_of, latents_of
from circuits.features.effects import Effects, Readout, latent_effects, spread
from circuits.features.tally import EDGES, Batch, Tally
from circuits.runs import versions
from circuits.saes.sae import Sae

_AT_ONCE = 4096
DOSE = 1.0  # standard deviations, of what a latent is said to raise


class VectorError(CircuitsError):
    """Vectors and labels that do not belong together."""


@dataclass(frozen=True, eq=False)
class LabelledVectors:
    """Vectors of a model and what they are of.

    vectors: what the SAE reads, in its units. labels: one an example, places in `classes`.
    inputs: what the model was given, such as images [example, height, width].

    Raises `VectorError` where these do not belong together.
    """

    vectors: Float[Tensor, "example width"]
    labels: Int[Tensor, " label"]
    classes: tuple[str, ...]
    inputs: Tensor | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.labels.ndim != 1:
            raise VectorError(
                f"vectors {tuple(self.vectors.shape)} and labels {tuple(self.labels.shape)}: "
                "expected [example, width] and [example]."
            )
        if self.labels.is_floating_point() or len(set(self.classes)) < len(self.classes):
            raise VectorError("labels are whole numbers, and every class has its own name.")
        n = len(self.vectors)
        if len(self.labels) != n or (self.inputs is not None and len(self.inputs) != n):
            raise VectorError(
                f"{n} vectors, {len(self.labels)} labels"
                + (f", {len(self.inputs)} inputs" if self.inputs is not None else "")
                + ": as many of each are needed."
            )
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise VectorError(
                f"labels {int(self.labels.min())} to {int(self.labels.max())}, but there are "
                f"{len(self.classes)} classes, numbered from 0."
            )
        if not n:
            raise VectorError("there are no vectors.")
        if not torch.isfinite(self.vectors).all():
            raise VectorError("some vectors are not finite: look at the model they come from.")

    def __len__(self) -> int:
        return len(self.vectors)


def collect_vectors(
    sae: Sae,
    explored: LabelledVectors,
    held_out: LabelledVectors,
    readout: Readout,
    *,
    examples: int = 16,
    doses: Sequence[float] = (-2.0, -1.0, 1.0, 2.0),
    model: str = "model",
    source: str = "SAE",
    seed: int = 0,
) -> tuple[FeatureBank, Effects]:
    """A bank of what every latent of `sae` does on vectors, and all effects, on outputs less the
    mean of all outputs (which a softmax takes out).

    explored: where examples, rates and labels come from, and the latents' standard deviations.
    held_out: other vectors, into which latents are written, and out of which they are taken
        (`latent_effects`). readout: the rest of the model, from vectors to outputs, one a class.
    examples: the most kept of a latent. doses: in standard deviations; 1 is always among them.

    The bank's latents have further columns: `std`, the standard deviation of the coefficient;
    `purity`, the share of its most frequent label among the examples it is active in; `boosted`,
    the class whose output a dose of one standard deviation raises most on explored examples (which
    `raised` and `lowered` are of too, per standard deviation), with `effect` by how much on
    held-out ones, and `effect_low`, `effect_high`, its interval. Sorted by latent.

    Raises `VectorError` where the two sets have other classes, `EffectError` for doses and vectors
    that cannot be used.
    """
    if explored.classes != held_out.classes:
        raise VectorError("explored and held-out vectors have different classes.")
    given = sorted({*map(float, doses), DOSE})
    wide = spread(sae, explored.vectors)

    def centred(x: Tensor) -> Tensor:
        outputs = readout(x)
        return outputs - outputs.mean(-1, keepdim=True)  # which a softmax takes out

    effects = latent_effects(centred, sae, held_out.vectors, doses=given, scale=wide, seed=seed)
    # Which output it is comes from other examples than by how much.
    before = latent_effects(
        centred, sae, explored.vectors, doses=[DOSE], scale=wide, resamples=0, seed=seed
    )
    outputs = effects.written.mean.shape[-1]
    if outputs != len(explored.classes):
        raise VectorError(f"{outputs} outputs for {len(explored.classes)} classes: one each.")
    tally = Tally(sae.d_sae, len(explored.classes), examples, 0, 0, skip=0)
    numbers = torch.arange(len(explored))
    for part in numbers.split(_AT_ONCE):
        tokens = explored.labels[part].cpu()[:, None]
        batch = Batch(tokens, torch.ones_like(part), part, part)
        found = sae.coefficients(explored.vectors[part].to(sae.dtype))
        tally.add(batch, found[:, None].float())
    at_dose = effects.at(DOSE)
    guess = before.at(DOSE).mean
    order = np.argsort(-guess, axis=1, kind="stable")
    ranked = np.take_along_axis(guess, order, 1)
    up = torch.from_numpy(order.copy()), torch.from_numpy(ranked.copy())
    down = torch.from_numpy(order[:, ::-1].copy()), torch.from_numpy(ranked[:, ::-1].copy())
    latents = latents_of(sae.site, tally, up, down, kept=len(explored.classes))
    best = order[:, 0]
    rows = np.arange(sae.d_sae)
    latents["std"] = wide.numpy()
    latents["purity"] = [c[0] / a if a else 0.0 for c, a in _counts(latents)]
    latents["boosted"] = best
    latents["effect"] = at_dose.mean[rows, best]
    latents["effect_low"] = at_dose.low[rows, best]
    latents["effect_high"] = at_dose.high[rows, best]
    record: dict[str, Any] = {
        "method": "features",
        "kind": "vectors",
        "model": model,
        "saes": [{"site": str(sae.site), "name": source, "neuronpedia": None}],
        "positions": tally.positions,
        "held_out": effects.examples,
        "doses": given,
        "classes": list(explored.classes),
        "examples": examples,
        "window": [0, 0],
        "histogram_edges": EDGES.tolist(),
        "token_count_error": {str(sae.site): tally.at.error},
        "versions": versions(),
    }
    words = dict(enumerate(explored.classes))
    return FeatureBank(latents, examples_of(sae.site, tally), record, words), effects


def _counts(latents: Any) -> list[tuple[list[int], int]]:
    return list(zip(latents["at_count"], latents["active"], strict=True))
