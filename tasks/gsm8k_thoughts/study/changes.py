"""What becomes of the answer when thoughts are exchanged, replaced or left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from circuits.metrics import summarise_mean
from circuits.models.hooked import HookedModel
from circuits.sites import Site
from tasks.gsm8k_thoughts.chains import Chains
from tasks.gsm8k_thoughts.model import thoughts_of
from tasks.gsm8k_thoughts.pairs import answers_of, chain_vocabulary, prompts_of
from tasks.gsm8k_thoughts.study.readings import value_names
from tasks.gsm8k_thoughts.study.swaps import MODES, swap

# A model's thoughts are said to help only where its control, trained without, does worse by more
# than this; to be necessary, where it has not half as much right.
SMALLEST_ADVANTAGE = 0.02
_SLOT = Site(0, "resid_pre")


def continued(chains: Chains, step: int, value: NDArray[Any]) -> NDArray[Any]:
    """f(v): the answers if step `step` (from 1) had given `value`."""
    if step == chains.n_steps:
        return value
    numbers = np.concatenate([value[:, None], chains.numbers[:, step + 1 :]], 1)
    rest = Chains(numbers, chains.signs[:, step:], chains.letters[:, step:])
    return rest.answers


def interchange(model: HookedModel, chains: Chains, *, seed: int = 0) -> pd.DataFrame:
    """Put thought i of another problem (or all), whose step j gave v, in: is the answer f(v)?

    One row a mode, thought and step: `follows`, the share of answers that are f(v), with a 95%
    interval over problems, and `chance`, the share for a v of a third problem that was not put in.
    Only couples for which f(v) is a number and not the problem's own answer count.
    """
    rng = np.random.default_rng(seed)
    vocabulary, n = chain_vocabulary(model), len(chains)
    shift = int(rng.integers(1, n - 1))
    source, third = np.roll(np.arange(n), shift), np.roll(np.arange(n), shift + 1)
    tokens = prompts_of(model, chains)
    names, places = _places(model, chains)
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        with model.thinking(mode):
            _, values = model.cache(tokens, [_SLOT])
            logits = swap(model, tokens, places, values[_SLOT][source])
        said = (logits.argmax(-1) - vocabulary.number(0)).numpy()
        for step, name in enumerate(value_names(chains.n_steps), start=1):
            wanted = continued(chains, step, chains.values[source, step - 1])
            other = continued(chains, step, chains.values[third, step - 1])
            counts = _valid(wanted, chains, vocabulary.n_numbers)
            chance = _valid(other, chains, vocabulary.n_numbers) & (other != wanted)
            for i, place in enumerate(names):
                follows = summarise_mean((said[i] == wanted)[counts].astype(float))
                rows.append(
                    {
                        "thoughts": mode,
                        "place": place,
                        "value": name,
                        "follows": float(follows.value),
                        "low": float(follows.low),
                        "high": float(follows.high),
                        "chance": float((said[i] == other)[chance].mean()),
                        "couples": int(counts.sum()),
                    }
                )
    return pd.DataFrame(rows)


def _valid(answer: NDArray[Any], chains: Chains, n_numbers: int) -> NDArray[np.bool_]:
    return (answer >= 0) & (answer < n_numbers) & (answer != chains.answers)


def _places(model: HookedModel, chains: Chains) -> tuple[list[str], list[Sequence[int]]]:
    """Names and positions of every thought, and of all of them together."""
    slots = thoughts_of(model).tokens.lay_out([0] * (6 * chains.n_steps + 2)).slots
    return [*(f"t{i + 1}" for i in range(len(slots))), "all"], [*([s] for s in slots), slots]


def ablations(model: HookedModel, chains: Chains, *, seed: int = 0) -> pd.DataFrame:
    """Accuracy with a thought, or all of them, replaced.

    ablation: "mean", the thought's mean over these problems; "noise", a draw from a normal
    distribution of the thought's own mean and covariance, which leaves norms and directions as they
    are and takes the problem out of it. One row a mode, ablation and place, with 95% intervals.
    """
    draw = torch.Generator().manual_seed(seed)
    vocabulary = chain_vocabulary(model)
    tokens = prompts_of(model, chains)
    names, places = _places(model, chains)
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        with model.thinking(mode):
            _, values = model.cache(tokens, [_SLOT])
            x = values[_SLOT]
            mean = x.mean(0, keepdim=True).expand_as(x)
            for ablation, put in (("mean", mean), ("noise", _noise(x, draw))):
                logits = swap(model, tokens, places, put)
                said = (logits.argmax(-1) - vocabulary.number(0)).numpy()
                for name, answers in zip(names, said, strict=True):
                    right = summarise_mean((answers == chains.answers).astype(float))
                    rows.append(
                        {
                            "thoughts": mode,
                            "ablation": ablation,
                            "place": name,
                            "accuracy": float(right.value),
                            "low": float(right.low),
                            "high": float(right.high),
                        }
                    )
    return pd.DataFrame(rows)


def _noise(x: Tensor, draw: torch.Generator) -> Tensor:
    """Draws with the mean and covariance of x [problem, position, d_model] at every position."""
    mean = x.mean(0, keepdim=True)
    mix = torch.randn(len(x), len(x), generator=draw).to(x) / (len(x) - 1) ** 0.5
    return mean + torch.einsum("nm,mpd->npd", mix, x - mean)


def by_count(model: HookedModel, chains: Chains) -> pd.DataFrame:
    """Accuracy when the model is cut off after 0, 1, ... thoughts, with 95% intervals."""
    kept = thoughts_of(model)
    rows: list[dict[str, Any]] = []
    try:
        for count in range(kept.tokens.thoughts + 1):
            model.thoughts = replace(kept, tokens=replace(kept.tokens, thoughts=count))
            said, _ = answers_of(model, chains)
            right = summarise_mean((said == chains.answers).astype(float))
            rows.append(
                {
                    "count": count,
                    "accuracy": float(right.value),
                    "low": float(right.low),
                    "high": float(right.high),
                }
            )
    finally:
        model.thoughts = kept
    return pd.DataFrame(rows)


def necessity(used: float, with_thoughts: float, control: float | None) -> str:
    """What may be said of the thoughts: "necessary" only against a control.

    used: accuracy with all thoughts replaced by their mean. with_thoughts: of the model as it is.
    control: of a model trained without thoughts; None where there is none.
    """
    if with_thoughts - used < SMALLEST_ADVANTAGE:
        return "not used: replacing all thoughts by their mean costs less than two points"
    if control is None:
        return "used; there is no control that was trained without thoughts, so no more can be said"
    if with_thoughts - control <= SMALLEST_ADVANTAGE:
        return (
            f"used, but the task can be done without: the control trained without thoughts has "
            f"{control:.1%}, this model {with_thoughts:.1%}"
        )
    if control > with_thoughts / 2:
        return (
            f"used, and this model has more right than the control trained without thoughts: "
            f"{with_thoughts:.1%} against {control:.1%}; with one control that may be what seeds "
            f"differ by"
        )
    return (
        f"used, and necessary for this training: the control trained without thoughts has "
        f"{control:.1%}, this model {with_thoughts:.1%}"
    )
