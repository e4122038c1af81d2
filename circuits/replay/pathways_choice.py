"""Which latents are frozen, and on which trials that is decided.

Mediators are the largest of hundreds of estimates, and the largest of many is too large: tested on
the trials that they were chosen by, latents that carry nothing would be confirmed. So one half of
the units (whole prompts; trials within their prompts, where those are the units) chooses, and the
other half says what the chosen ones carry, with its test and intervals.

Whether a latent changes with the text held is tested over all units. That does not look at the
outcome, and a latent that passes by chance is a false discovery of that test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from circuits.replay.confirm import Mediator
from circuits.replay.paired import PathwayError, Units
from circuits.sites import Site

if TYPE_CHECKING:
    from circuits.replay.pathways import Plan

_FEWEST = 4  # units, two in a half


def halves(
    trials: pd.DataFrame, units: Units, seed: int
) -> tuple[Int[np.ndarray, " chooses"], Int[np.ndarray, " confirms"]]:
    """Rows of `trials` (`prompt, kind`) that choose and rows that confirm, the larger part.

    Prompts are halved at random within their kind, and alike in all kinds: prompts that stand
    together in a task, of one scene in two kinds, are in one half. A prompt's only trial confirms.
    Raises `PathwayError` for fewer than four units.
    """
    if len(units) < _FEWEST:
        raise PathwayError(
            f"{len(units)} {units.kind}s: mediators are chosen on one half and confirmed on the "
            f"other, which takes {_FEWEST}. Run more, or look for no mediators (0)."
        )
    draw = np.random.default_rng([seed, 5])
    alone = int(np.bincount(units.prompt).max()) == 1
    if units.kind == "trial" and not alone:
        first = np.zeros(len(units.prompt), dtype=bool)
        for code in range(units.n_prompts):
            mine = np.flatnonzero(units.prompt == code)
            first[draw.permutation(mine)[: len(mine) // 2]] = True
    else:
        prompts = trials.groupby("prompt")["kind"].first()
        rank: Any = prompts.groupby(prompts).cumcount()
        chosen = draw.permutation(int(rank.max()) + 1)[: (int(rank.max()) + 1) // 2]
        first = trials["prompt"].map(rank.isin(chosen)).to_numpy(bool)
        if not first.any() or len(np.unique(units.prompt[~first])) < 2:  # kinds of one prompt each
            first = units.prompt < units.n_prompts // 2
    return np.flatnonzero(first), np.flatnonzero(~first)


def choose(table: pd.DataFrame, plan: Plan) -> list[Mediator]:
    """The latents that change with the text held, the largest estimated parts first."""
    moved: Any = table[(table["held_q"] <= plan.level) & (table["estimate"] != 0)]
    order = moved["estimate"].abs().sort_values(ascending=False, kind="stable").index
    some = moved.loc[order[: plan.mediators]]
    return [(Site.parse(str(s)), int(k)) for s, k in zip(some["site"], some["latent"], strict=True)]


def confirmed_of(table: pd.DataFrame, mediators: Sequence[Mediator]) -> list[int]:
    """The numbers of the mediators that were confirmed."""
    mine: Any = table[table["confirmed"]]
    known = set(zip(mine["site"], mine["latent"], strict=True))
    return [i for i, (site, latent) in enumerate(mediators) if (str(site), latent) in known]


def draw_controls(
    table: pd.DataFrame,
    mediators: Sequence[Mediator],
    level: float,
    norms: Mapping[Site, Float[np.ndarray, " latent"]],
) -> list[Mediator]:
    """For each mediator another latent of its site that changes with the text held as well, the one
    whose write changes by the most similar amount; fewer where there are not as many.

    norms: of the decoder rows. What is compared is the size of the mean change times the norm, as a
    ratio.
    """
    found: list[Mediator] = []
    for site in dict.fromkeys(site for site, _ in mediators):
        mine = [latent for where, latent in mediators if where == site]
        here: Any = table[(table["site"] == str(site))].set_index("latent")
        sizes = here["held_difference"].abs() * norms[site][here.index.to_numpy(int)]
        moved = (here["held_q"] <= level) & (sizes > 0)
        left = {int(k): float(sizes[k]) for k in here.index[moved] if k not in mine}
        taken: list[int] = []
        for latent in mine:
            if left:
                like = np.log(float(sizes[latent]))
                nearest = min(left, key=lambda k: (abs(np.log(left[k]) - like), k))
                taken.append(nearest)
                del left[nearest]
        found += [(site, latent) for latent in sorted(taken)]
    return found
