"""What a run of replay does beside its changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from circuits.replay.interventions import ReplayError
from circuits.replay.sampling import Sampling

Record = Literal["latents", "residuals"]


@dataclass(frozen=True)
class Options:
    """What a run does beside its changes; see `replay`."""

    trials: int = 10
    max_new_tokens: int = 48
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    batch_size: int = 16
    randoms: int = 1
    record: Record = "latents"
    unpatched: bool = False
    stop: tuple[int, ...] = ()
    top: int = 50

    def __post_init__(self) -> None:
        for name in ("trials", "max_new_tokens", "batch_size", "top"):
            if getattr(self, name) < 1:
                raise ReplayError(f"{name} is {getattr(self, name)}: at least 1 is needed.")
        if self.randoms < 0:
            raise ReplayError(f"{self.randoms} random arms: 0 or more are expected.")
        if self.record not in get_args(Record):
            raise ReplayError(f"record {self.record!r}: expected latents or residuals.")
        if self.sampling.greedy and self.trials > 1:
            raise ReplayError(
                f"{self.trials} trials at temperature 0 are all the same: one is enough."
            )
