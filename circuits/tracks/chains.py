"""Links joined into tracks.

A track is a chain of one-to-one links, gaps bridged. A split is the birth of a track with a parent,
a merge the death of one in another. A track that is there at the first site may have been born
before it, one at the last may live on: their birth or death is not known, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from circuits.tracks.link import GAP, LINK, MERGE, SPLIT, Links
from circuits.tracks.read import Nodes


@dataclass(frozen=True, eq=False)
class Chains:
    """track: of every node, -1 where there is none. count: tracks. links: those that were joined.
    parent, into: of every track the one it split from or merged into, -1 for none. going, coming:
    whether a node's track goes on after it, and was there before."""

    track: Int[np.ndarray, "site cell slot"]
    count: int
    links: Links
    parent: Int[np.ndarray, " track"]
    into: Int[np.ndarray, " track"]
    going: np.ndarray
    coming: np.ndarray


def chains(nodes: Nodes, links: Links) -> Chains:
    """Tracks of links; of each node one at most leads on and one leads to it."""
    track = np.full(nodes.latent.shape, -1)
    chain = (links.kind == LINK) | (links.kind == GAP)
    going, coming = (np.zeros(track.shape, dtype=bool) for _ in range(2))
    going[links.site[chain], links.cell[chain], links.slot[chain]] = True
    coming[links.to_site[chain], links.to_cell[chain], links.to_slot[chain]] = True
    count = 0
    for site in range(len(nodes.sites)):
        fresh = nodes.present[site] & ~coming[site]
        track[site][fresh] = count + np.arange(int(fresh.sum()))
        count += int(fresh.sum())
        mine = chain & (links.to_site == site)
        source = links.site[mine], links.cell[mine], links.slot[mine]
        track[site, links.to_cell[mine], links.to_slot[mine]] = track[source]
    parent, into = (np.full(count, -1) for _ in range(2))
    earlier = track[links.site, links.cell, links.slot]
    later = track[links.to_site, links.to_cell, links.to_slot]
    parent[later[links.kind == SPLIT]] = earlier[links.kind == SPLIT]
    into[earlier[links.kind == MERGE]] = later[links.kind == MERGE]
    return Chains(track, count, links, parent, into, going, coming)


def track_table(nodes: Nodes, made: Chains, ids: list[str]) -> pd.DataFrame:
    """One row a track: `answer, track, position` (of its birth), `birth, death` (sites), `born`
    (first: at the first site, birth, split), `died` (last: at the last site, death, merge),
    `length` (nodes), `gaps`, `strength` (mean share), `parent, into`."""
    site, cell, slot = nodes.present.nonzero()
    track = made.track[site, cell, slot]
    table = pd.DataFrame(
        {"track": track, "site": site, "cell": cell, "share": nodes.share[site, cell, slot]}
    ).sort_values(["track", "site"], kind="stable")
    grouped: Any = table.groupby("track", sort=True)
    birth = grouped["site"].first().to_numpy()
    death, first = grouped["site"].last().to_numpy(), grouped["cell"].first().to_numpy()
    length = grouped.size().to_numpy()
    last = len(nodes.sites) - 1
    names = np.array([str(s) for s in nodes.sites])
    born = np.where(birth == 0, "first", np.where(made.parent >= 0, "split", "birth"))
    died = np.where(death == last, "last", np.where(made.into >= 0, "merge", "death"))
    return pd.DataFrame(
        {
            "answer": [ids[nodes.cells[c].answer] for c in first],
            "track": np.arange(made.count),
            "position": [nodes.cells[c].position for c in first],
            "birth": names[birth],
            "death": names[death],
            "born": born,
            "died": died,
            "length": length,
            "gaps": death - birth + 1 - length,
            "strength": grouped["share"].mean().to_numpy(),
            "parent": made.parent,
            "into": made.into,
        }
    )
