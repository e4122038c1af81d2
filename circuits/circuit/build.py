"""The `Circuit` of the strongest candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from circuits.circuit.candidates import Candidates
from circuits.graph import Circuit, CircuitNode, Profile, Token
from circuits.prompts import PromptPairs


def build(
    candidates: Candidates,
    pairs: PromptPairs,
    count: int,
    record: Mapping[str, Any],
) -> Circuit:
    """The strongest `count` nodes without edges. pairs: those the effects are means over."""
    intervals = candidates.intervals(count)
    nodes = tuple(
        CircuitNode(
            candidates.table.node(i),
            float(candidates.effect[i]),
            _number(intervals.low[i]),
            _number(intervals.high[i]),
            float(candidates.clean[i]),
            float(candidates.corrupted[i]),
        )
        for i in range(count)
    )
    places = candidates.places
    tokens: tuple[Token, ...] = ()
    if not places.summed:
        names = {position: name for name, position in places.names}
        [aligned] = [a for a in pairs.alignments() if len(a.pairs) == len(pairs)]
        tokens = tuple(
            Token(clean, corrupted, names.get(position, ""))
            for position, (clean, corrupted) in enumerate(pairs.tokens_at(aligned))
        )
    return Circuit(
        nodes,
        (),
        candidates.table.sites,
        tokens,
        places.template,
        places.summed,
        {**record, "n_pairs": len(pairs)},
        _profiles(candidates, count, len(tokens)),
    )


def _profiles(candidates: Candidates, count: int, length: int) -> dict[str, Profile]:
    """Mean coefficients of the circuit's latents at every position that differs."""
    if not length:
        return {}
    table = candidates.table
    chosen = table.role[:count] == 0
    mine = zip(table.site[:count][chosen], table.latent[:count][chosen], strict=True)
    wanted = {(int(site), int(latent)) for site, latent in mine}
    found = {key: (np.zeros(length), np.zeros(length)) for key in wanted}
    for i in np.flatnonzero(table.role == 0):
        key = (int(table.site[i]), int(table.latent[i]))
        if key in found:
            position = int(table.position[i])
            found[key][0][position] = candidates.clean[i]
            found[key][1][position] = candidates.corrupted[i]
    return {
        f"{table.sites[site]}/{latent}": Profile(tuple(clean.tolist()), tuple(corrupted.tolist()))
        for (site, latent), (clean, corrupted) in found.items()
    }


def _number(x: float) -> float | None:
    return None if np.isnan(x) else float(x)
