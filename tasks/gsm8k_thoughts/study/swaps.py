"""Whole thoughts put from one run into another, with the later thoughts held or made anew.

A whole thought is the embedding at its slot: the stream before layer 0 there. Swaps are denoising:
the corrupted problem is run with thoughts of the clean one. Recovery 0 is corrupted, 1 clean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.metrics import Targets, logit_difference, summarise_mean, summarise_ratio
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.prompts import PairGroup, PromptPairs
from circuits.sites import Site

MODES = ("rerolled", "frozen")
_SLOT = Site(0, "resid_pre")


def swap(
    model: HookedModel,
    base: Tensor,
    places: Sequence[Sequence[int]],
    values: Float[Tensor, "pair position d_model"],
    site: Site = _SLOT,
) -> Float[Tensor, "place pair vocab"]:
    """Logits of every prompt of `base` with the values of each set of places put in.

    places: sets of positions. values: activations at `site` of the runs they come from.
    """
    pairs, sets = len(base), len(places)
    first = min(min(p) for p in places)
    baseline = model.baseline(base, first)
    row, position = [], []
    for s, where in enumerate(places):
        for p in where:
            row.append(torch.arange(pairs) + s * pairs)
            position.append(torch.full((pairs,), p))
    rows, positions = torch.cat(row), torch.cat(position)
    put = values[(rows % pairs).to(values.device), positions.to(values.device)]
    which = torch.arange(pairs).repeat(sets)
    found = torch.empty(sets * pairs, baseline.logits.shape[1])
    for part, logits in model.resume(baseline, which, [Patches(site, rows, positions, put)]):
        found[part] = logits.float().cpu()
    return found.view(sets, pairs, -1)


def whole_thoughts(model: HookedModel, pairs: PromptPairs) -> pd.DataFrame:
    """Every thought swapped alone, all of them, and the operands, in both modes.

    One row a mode and place: recovery and flip rate (the share of pairs in which the model now
    answers the clean problem) with 95% intervals over pairs.
    """
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        with model.thinking(mode):
            parts = [_swapped(model, pairs, group) for group in pairs.groups(32)]
        names = list(parts[0][0])
        gap = np.concatenate([p[1] for p in parts])
        for name in names:
            moved = np.concatenate([p[0][name][0] for p in parts])
            flips = np.concatenate([p[0][name][1] for p in parts])
            recovered, flipped = summarise_ratio(moved, gap), summarise_mean(flips)
            rows.append(
                {
                    "thoughts": mode,
                    "place": name,
                    "recovery": float(recovered.value),
                    "recovery_low": float(recovered.low),
                    "recovery_high": float(recovered.high),
                    "flips": float(flipped.value),
                    "flips_low": float(flipped.low),
                    "flips_high": float(flipped.high),
                    "pairs": len(moved),
                }
            )
    return pd.DataFrame(rows)


def _swapped(
    model: HookedModel, pairs: PromptPairs, group: PairGroup
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Per place (logit difference above the corrupted run's, whether it flips), and the gap."""
    named = pairs.positions[group.indices[0]]
    slots = {name: p for name, p in named.items() if name[0] == "t" and name[1:].isdigit()}
    differs = (group.clean != group.corrupted).any(0).nonzero().squeeze(1).tolist()
    places = {**{n: [p] for n, p in slots.items()}, "all": list(slots.values())}
    places["operands"] = differs
    clean, values = model.cache(group.clean, [_SLOT])
    corrupted = model.run(group.corrupted)
    targets = Targets.of(group.answer, group.foil, clean)
    start = logit_difference(corrupted.float(), targets).double().cpu().numpy()
    end = logit_difference(clean.float(), targets).double().cpu().numpy()
    logits = swap(model, group.corrupted, list(places.values()), values[_SLOT])
    found = {}
    for name, one in zip(places, logits, strict=True):
        moved = logit_difference(one.to(clean.device), targets).double().cpu().numpy() - start
        found[name] = (moved, (one.argmax(-1) == group.answer).double().numpy())
    return found, end - start


def mediation(model: HookedModel, pairs: PromptPairs) -> dict[str, float]:
    """How much of what the operands do goes through the thoughts.

    total: the operands put in with thoughts rerolled (the whole gap, as nothing else differs).
    direct: with thoughts held as the corrupted problem has them. mediated = (total - direct) /
    total, with a 95% interval over pairs.
    """
    effects: dict[str, list[np.ndarray]] = {mode: [] for mode in MODES}
    for mode in MODES:
        with model.thinking(mode):
            for group in pairs.groups(32):
                effects[mode].append(_swapped(model, pairs, group)[0]["operands"][0])
    total, direct = (np.concatenate(effects[mode]) for mode in MODES)
    share = summarise_ratio(total - direct, total)
    return {
        "total": float(total.mean()),
        "direct": float(direct.mean()),
        "mediated": float(share.value),
        "mediated_low": float(share.low),
        "mediated_high": float(share.high),
    }


def named_slots(pairs: PromptPairs) -> Mapping[str, int]:
    """The thoughts' positions in the first pair."""
    return {n: p for n, p in pairs.positions[0].items() if n[0] == "t" and n[1:].isdigit()}
