"""From a target number of active latents to the SAE that has it.

1. Coarse: an SAE for each lambda of 1e-6, 1e-5 .. 1. All targets share them.
2. Fine: four more, evenly spaced in log lambda between the neighbours whose L0 on validation data
   lie to both sides of the target; without such neighbours, on both sides of the nearest.
3. Of all SAEs whose own L0 is within a factor 1.5 of the target (or else the nearest alone), the
   one with the best score once its thresholds are shifted to the target. Far shifts are left out
   because they would make up the count with latents that training never used.
4. The shift: one number, in standard deviations, added to all thresholds (which stay at 0 or
   above), found by bisection until L0 on validation data is the target.

L0 falls as thresholds rise, so bisection finds the shift wherever there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from tasks.digits.network import DigitsError
from tasks.digits.sae import StandardSae

COARSE = tuple(10.0**k for k in range(-6, 1))
FINE = 4
TOLERANCE = 0.5  # latents, on validation data
_CLOSE = 1.5  # factor of the target within which an SAE's own L0 makes it a candidate
_BISECTIONS, _EXACT = 60, 0.01


class CalibrationError(DigitsError):
    """A target number of active latents that cannot be reached."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The SAE for a target. lam: what it was trained with. shift: of its thresholds.

    l0_before, l0: active latents on validation data, without the shift and with it.
    score: with the shift.
    """

    target: float
    lam: float
    shift: float
    l0_before: float
    l0: float
    score: float
    sae: StandardSae


class Trainings:
    """SAEs by lambda: each is trained once, kept in memory, and in a folder if one is given.

    train: makes the SAE of a lambda. told: called with each lambda before it is trained.
    """

    def __init__(
        self,
        train: Callable[[float], StandardSae],
        folder: Path | None = None,
        told: Callable[[float], None] | None = None,
    ) -> None:
        self._train, self._folder, self._told = train, folder, told
        self._kept: dict[float, StandardSae] = {}
        self.made = 0  # in this process

    def __call__(self, lam: float) -> StandardSae:
        """The SAE of a lambda, which is rounded to six digits so that it is found again."""
        lam = float(f"{lam:.6g}")
        if lam not in self._kept:
            path = None if self._folder is None else self._folder / f"{lam:.6g}.safetensors"
            found = None if path is None else StandardSae.load(path)
            if found is None:
                if self._told is not None:
                    self._told(lam)
                found = self._train(lam)
                self.made += 1
                if path is not None:
                    found.save(path)
            self._kept[lam] = found
        return self._kept[lam]


class Calibration:
    """The search, for one target after another.

    z: standardised validation vectors. score: of an SAE and a shift, larger is better.
    path: what was tried: stage (coarse, fine, shift), target, lambda, shift, l0, score. Rows of
        stage coarse belong to all targets; rows of stage shift are the candidates with their
        thresholds shifted, `chosen` the one that was taken.
    """

    def __init__(
        self,
        trainings: Trainings,
        z: Float[Tensor, "row width"],
        score: Callable[[StandardSae, float], float],
        coarse: Sequence[float] = COARSE,
    ) -> None:
        if not coarse or sorted(set(coarse)) != list(coarse) or coarse[0] <= 0:
            raise CalibrationError(f"the coarse grid {list(coarse)}: positive, ascending numbers.")
        self.trainings, self.z, self.score, self.coarse = trainings, z, score, tuple(coarse)
        self._l0: dict[float, float] = {}
        self.rows: list[dict[str, object]] = []

    @property
    def path(self) -> pd.DataFrame:
        """One row a trial, in their order."""
        return pd.DataFrame(self.rows)

    def __call__(self, target: float) -> Calibrated:
        """The SAE whose L0 on validation data is `target`, within `TOLERANCE`.

        Raises `CalibrationError` when it cannot be reached, and says what was.
        """
        latents = self.trainings(self.coarse[0]).threshold.shape[0]
        if not 0 < target < latents:
            raise CalibrationError(f"{target:g} active latents of {latents} cannot be a target.")
        found = {lam: self._measure(lam, "coarse", None) for lam in self.coarse}
        for lam in self._fine(found, target):
            found[lam] = self._measure(lam, "fine", target)
        near = sorted(found, key=lambda lam: _distance(found[lam], target))
        close = [lam for lam in near if _distance(found[lam], target) <= math.log(_CLOSE)]
        tried: list[Calibrated] = []
        refused: list[str] = []
        # Those farther off are tried only where the near ones cannot be brought to the target.
        for candidates in (close or near[:1], near):
            for lam in candidates:
                try:
                    tried.append(self._shift(lam, found[lam], target))
                except CalibrationError as error:
                    refused.append(str(error))
            if tried:
                break
        if not tried:
            raise CalibrationError(
                f"{target:g} active latents cannot be reached. {refused[0]} Lambda between "
                f"{self.coarse[0]:g} and {self.coarse[-1]:g} gave L0 {max(found.values()):.2f} to "
                f"{min(found.values()):.2f}: take another target or more latents."
            )
        best = max(tried, key=lambda one: one.score)
        for one in tried:
            self._note("shift", target, one.lam, one.shift, one.l0, one.score, one is best)
        return best

    def _measure(self, lam: float, stage: str, target: float | None) -> float:
        if lam not in self._l0:
            sae = self.trainings(lam)
            self._l0[lam] = active(sae.preactivations(self.z), sae.threshold)
            self._note(stage, target, lam, 0.0, self._l0[lam], self.score(sae, 0.0), False)
        return self._l0[lam]

    def _note(
        self,
        stage: str,
        target: float | None,
        lam: float,
        shift: float,
        l0: float,
        score: float,
        chosen: bool,
    ) -> None:
        row: dict[str, object] = {"stage": stage, "target": math.nan if target is None else target}
        row |= {"lambda": lam, "shift": shift, "l0": l0, "score": score, "chosen": chosen}
        self.rows.append(row)

    def _fine(self, found: dict[float, float], target: float) -> Iterable[float]:
        below = [lam for lam in self.coarse if found[lam] >= target]
        above = [lam for lam in self.coarse if found[lam] < target]
        nearest = min(self.coarse, key=lambda lam: _distance(found[lam], target))
        low, high = max(below, default=nearest / 10), min(above, default=nearest * 10)
        if low > high:  # L0 does not fall everywhere
            low, high = nearest / 10**0.5, nearest * 10**0.5
        inside = np.geomspace(low, high, FINE + 2)[1:-1]
        return [float(f"{lam:.6g}") for lam in inside]

    def _shift(self, lam: float, before: float, target: float) -> Calibrated:
        sae = self.trainings(lam)
        shift, l0 = shift_to(sae.preactivations(self.z), sae.threshold, target)
        return Calibrated(target, lam, shift, before, l0, self.score(sae, shift), sae)


def _distance(l0: float, target: float) -> float:
    return abs(math.log(max(l0, 1e-3) / target))


def active(
    pre: Float[Tensor, "row latent"], threshold: Float[Tensor, " latent"], shift: float = 0.0
) -> float:
    """Mean number of latents above their thresholds, shifted and not below 0."""
    return float((pre > (threshold + shift).clamp(min=0)).sum()) / len(pre)


def shift_to(
    pre: Float[Tensor, "row latent"], threshold: Float[Tensor, " latent"], target: float
) -> tuple[float, float]:
    """(shift, L0): the shift of all thresholds that gives the target, and what it gives.

    0 where L0 is the target already, to a hundredth. Raises `CalibrationError` where L0 stays more
    than `TOLERANCE` off: even thresholds of 0 let fewer through, or L0 jumps over it.
    """
    if abs(active(pre, threshold) - target) <= _EXACT:
        return 0.0, active(pre, threshold)
    low = -float(threshold.max()) - 1.0  # every threshold is 0
    high = float((pre - threshold).max().clamp(min=0)) + 1.0  # nothing passes
    most = active(pre, threshold, low)
    if most < target - TOLERANCE:
        raise CalibrationError(
            f"With thresholds of 0 there are {most:.2f} active latents, fewer than the target of "
            f"{target:g}."
        )
    shift, l0 = low, most
    for _ in range(_BISECTIONS):
        if abs(l0 - target) <= _EXACT:
            break
        shift = (low + high) / 2
        l0 = active(pre, threshold, shift)
        low, high = (shift, high) if l0 > target else (low, shift)
    if abs(l0 - target) > TOLERANCE:
        raise CalibrationError(f"L0 jumps over the target of {target:g}: {l0:.2f} was reached.")
    return shift, l0


@torch.no_grad()
def divergence(logits: Float[Tensor, "row label"], changed: Float[Tensor, "row label"]) -> float:
    """Mean KL(p || q) in nats, p and q being the softmax of `logits` and of `changed`."""
    p, q = logits.double().log_softmax(-1), changed.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())
