"""Choosing a token: greedily, or by temperature and nucleus with given noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.replay.interventions import ReplayError
from circuits.replay.noise import Noise

_FIRST_LOOK = 256  # most nuclei are smaller; sorting a whole vocabulary costs more than the noise


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 is greedy (the most probable token, no noise). top_p: tokens are drawn from
    the nucleus, the fewest most probable ones that have this much probability together (Holtzman
    et al. 2020); ties with the last of them belong to it."""

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ReplayError(f"temperature {self.temperature}: expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ReplayError(f"top-p {self.top_p}: expected more than 0 and at most 1.")

    @property
    def greedy(self) -> bool:
        """Whether no noise is used."""
        return self.temperature == 0


def nucleus(scaled: Float[Tensor, "row vocab"], top_p: float) -> Bool[Tensor, "row vocab"]:
    """Which tokens can be drawn. scaled: logits over temperature, float64."""
    if top_p >= 1:
        return torch.ones_like(scaled, dtype=torch.bool)
    total = scaled.logsumexp(-1, keepdim=True)
    look = min(_FIRST_LOOK, scaled.shape[1])
    cutoffs = torch.empty_like(total)
    todo = torch.arange(len(scaled), device=scaled.device)
    while len(todo):
        values = scaled[todo].topk(look, dim=-1).values
        reached = (values - total[todo]).exp().cumsum(-1) >= top_p
        if look == scaled.shape[1]:
            reached[:, -1] = True  # rounding
        done = reached.any(-1)
        cutoffs[todo[done]] = values[done].gather(1, reached[done].int().argmax(-1, keepdim=True))
        todo, look = todo[~done], min(16 * look, scaled.shape[1])
    return scaled >= cutoffs


def choose(
    logits: Float[Tensor, "row vocab"],
    sampling: Sampling,
    noise: Noise,
    rows: Int[Tensor, " row"],
    step: int,
) -> Int[Tensor, " row"]:
    """The next token of each row: the argmax over the nucleus of logits / temperature + noise.

    rows: which rows of `noise` these are. Each row's token depends on nothing but its own.
    """
    if sampling.greedy:
        return logits.argmax(-1)
    vocab = logits.shape[1]
    scaled = logits.double() / sampling.temperature
    if sampling.top_p >= 1:
        # Row by row: the sums of one row stay near the processor.
        sums = (
            noise.gumbel(row, step, vocab).to(scaled.device).add_(scaled[i])
            for i, row in enumerate(rows.tolist())
        )
        return torch.stack([one.argmax() for one in sums])
    kept, chosen = nucleus(scaled, sampling.top_p), []
    for i, row in enumerate(rows.tolist()):
        tokens = kept[i].nonzero().squeeze(1)
        drawn = noise.gumbel(row, step, vocab, tokens).to(scaled.device)
        chosen.append(tokens[(scaled[i, tokens] + drawn).argmax()])
    return torch.stack(chosen)
