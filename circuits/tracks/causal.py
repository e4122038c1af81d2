"""Are links causes? The earlier latent is ablated, and what is left of the later one is read.

Pairs are drawn at random from those that are kept and linked in one half of the groups of answers;
they are tested on links of the other half. At the link's token x becomes x - a d, the earlier
latent's own write taken away and nothing else; the later latent's activation is read where it
stands, at its own token. The share lost is the sum of what is lost over the sum of activations,
each group of answers counting alike, with a 95% interval over groups (circuits.replay.paired).

Control: a change of the same size, |a| |d|, along the decoder row of another latent that is active
at the token and has no kept link to the later one. A link where there is none such does not count.

Confirmed: the lower end of the share lost is above `lost`, and the lower end of what is lost more
than by the control is above 0. What is confirmed is that the later latent stands on the earlier
one's write. Whether layers between have computed it, or the stream has merely carried the write to
a latent that reads in the same direction, ablation does not tell; the closer the sites and the
larger the cosine, the more it is the stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from circuits.labelled import Labelled
from circuits.models.edited_rows import resume_edited
from circuits.models.hooked import HookedModel
from circuits.models.resume import earliest
from circuits.replay.paired import FEWEST_UNITS, Units, share
from circuits.saes import Sae, SaeSet
from circuits.tracks.link import Links
from circuits.tracks.null import Null
from circuits.tracks.plan import TrackPlan
from circuits.tracks.read import Nodes, Text, padded

PLAIN, ABLATED, CONTROL = range(3)
COLUMNS = (
    *("site", "latent", "to_site", "to_latent", "similarity", "links", "groups", "activation"),
    *(f"{name}{end}" for name in ("lost", "control", "more") for end in ("", "_low", "_high")),
    *("confirmed", "problem"),
)


@dataclass(frozen=True)
class Runs:
    """What is run: three rows for each link that is tested.

    pair: number of its pair. answer, group: of the link. site, to_site: numbers. position, to: of
    the tokens. latent, other: that is ablated, and along whose row the control changes; to_latent:
    that is read.
    """

    pair: Int[np.ndarray, " row"]
    answer: Int[np.ndarray, " row"]
    group: Int[np.ndarray, " row"]
    site: Int[np.ndarray, " row"]
    position: Int[np.ndarray, " row"]
    latent: Int[np.ndarray, " row"]
    other: Int[np.ndarray, " row"]
    to_site: Int[np.ndarray, " row"]
    to: Int[np.ndarray, " row"]
    to_latent: Int[np.ndarray, " row"]


def check(
    model: HookedModel,
    saes: SaeSet,
    nodes: Nodes,
    links: Links,
    null: Null,
    texts: Sequence[Text],
    answers: Sequence[Labelled],
    plan: TrackPlan,
    *,
    progress: bool = True,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(one row a pair that was tested, facts): see `COLUMNS` and the module."""
    _, groups = np.unique([a.group for a in answers], return_inverse=True)
    rng = np.random.default_rng([plan.seed, 1])
    half = rng.permutation(groups.max() + 1) % 2 == 0  # groups that choose
    choosing = half[groups[nodes.answer[links.cell]]]
    chosen, able = _choose(links, null, groups[nodes.answer[links.cell]], choosing, plan, rng)
    runs = _runs(nodes, links, null, groups, ~choosing, chosen, plan, rng)
    values = run_rows(model, saes, nodes, runs, texts, plan.batch_size, progress=progress)
    rows = [_judge(nodes, null, runs, values, int(p), plan) for p in chosen]
    table: Any = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    yes = int(table["confirmed"].sum()) if rows else 0
    ends = binomtest(yes, len(rows)).proportion_ci(method="wilson") if rows else None
    facts = {
        "kept": null.facts["pairs_kept"],
        "able": able,
        "tested": len(rows),
        "confirmed": yes,
        "share": yes / len(rows) if rows else None,
        "share_low": float(ends.low) if ends else None,
        "share_high": float(ends.high) if ends else None,
        "median_lost": float(table["lost"].median()) if rows else None,
        "median_control": float(table["control"].median()) if rows else None,
    }
    return table, facts


def _choose(
    links: Links,
    null: Null,
    group: np.ndarray,
    choosing: np.ndarray,
    plan: TrackPlan,
    rng: np.random.Generator,
) -> tuple[np.ndarray, int]:
    """Pairs that are tested, and how many could be: linked in the half that chooses, and in at
    least `FEWEST_UNITS` groups of the other."""
    count = len(null.pairs)
    mine = null.kept
    first = np.bincount(null.pair[mine & choosing], minlength=count) > 0
    both = np.unique(np.stack([null.pair, group])[:, mine & ~choosing], axis=1)
    able = np.flatnonzero(first & (np.bincount(both[0], minlength=count) >= FEWEST_UNITS))
    return np.sort(rng.permutation(able)[: plan.checked]), len(able)


def _runs(
    nodes: Nodes,
    links: Links,
    null: Null,
    groups: np.ndarray,
    testing: np.ndarray,
    chosen: np.ndarray,
    plan: TrackPlan,
    rng: np.random.Generator,
) -> Runs:
    table = null.pairs
    joined = set(
        table.loc[table["kept"], ["site", "latent", "to_site", "to_latent"]].itertuples(
            index=False, name=None
        )
    )
    rows: list[tuple[int, ...]] = []
    for pair in chosen:
        found = rng.permutation(np.flatnonzero(testing & (null.pair == pair)))
        mine = pd.Series(groups[nodes.answer[links.cell[found]]])
        # Of each group its first link, then of each its second.
        order = np.argsort(mine.groupby(mine).cumcount().to_numpy(), kind="stable")
        for i in found[order][: plan.occurrences]:
            s, c, t, d = links.site[i], links.cell[i], links.to_site[i], links.to_cell[i]
            latent = nodes.latent[s, c, links.slot[i]]
            to_latent = nodes.latent[t, d, links.to_slot[i]]
            near = [
                int(o)
                for o in nodes.latent[s, c]
                if o >= 0 and o != latent and (s, o, t, to_latent) not in joined
            ]
            other = int(rng.choice(near)) if near else -1
            one, two = nodes.cells[c], nodes.cells[d]
            where = (s, one.position, latent, other, t, two.position, to_latent)
            rows.append(tuple(map(int, (pair, one.answer, groups[one.answer], *where))))
    table_of = np.array(rows, dtype=np.int64).reshape(len(rows), len(Runs.__dataclass_fields__))
    return Runs(*table_of.T)


@torch.no_grad()
def run_rows(
    model: HookedModel,
    saes: SaeSet,
    nodes: Nodes,
    runs: Runs,
    texts: Sequence[Text],
    batch_size: int,
    *,
    progress: bool = True,
) -> Float[np.ndarray, "row 3"]:
    """The later latent's coefficient in the plain run, with the earlier one ablated, and with the
    control's change (NaN without one)."""
    found = np.full((len(runs.pair), 3), np.nan)
    parts = list(_batches(runs, texts, batch_size))
    for answers, to_site, mine in tqdm(parts, desc="ablating", unit="batch", disable=not progress):
        some = [texts[i] for i in answers]
        baseline = model.baseline(padded(some, model.device), int(runs.position[mine].min()))
        rows = np.repeat(mine, 3)
        kind = np.tile(np.arange(3), len(mine))
        fine = (kind != CONTROL) | (runs.other[rows] >= 0)
        rows, kind = rows[fine], kind[fine]
        entry = np.searchsorted(answers, runs.answer[rows])
        layers = [earliest(s, model.n_layers).layer for s in nodes.sites]
        begins = torch.tensor(layers)[runs.site[rows]], torch.tensor(runs.position[rows])
        edits = {
            nodes.sites[s]: _Ablation(saes[nodes.sites[s]], runs, rows, kind, int(s))
            for s in np.unique(runs.site[rows])
        }
        read = _Reading(saes[nodes.sites[to_site]], runs, rows)
        passes = resume_edited(
            model,
            baseline,
            torch.tensor(entry),
            begins,
            edits,
            read,
            until=nodes.sites[to_site],
        )
        for part, values in passes:
            done = part.cpu().numpy()
            found[rows[done], kind[done]] = values
    return found


def _batches(
    runs: Runs, texts: Sequence[Text], size: int
) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """(answers, ascending; later site; rows) that are run together: answers of about one length."""
    lengths = np.array([len(t.tokens) for t in texts])
    for to_site in np.unique(runs.to_site):
        there = np.unique(runs.answer[runs.to_site == to_site])
        there = there[np.argsort(lengths[there], kind="stable")]
        for start in range(0, len(there), size):
            answers = np.sort(there[start : start + size])
            mine = (runs.to_site == to_site) & np.isin(runs.answer, answers)
            yield answers, int(to_site), np.flatnonzero(mine)


class _Ablation:
    """The edit at one site: x - a d in rows that ablate, as large a change along another latent's
    decoder row in controls, nothing in all other rows."""

    def __init__(self, sae: Sae, runs: Runs, rows: np.ndarray, kind: np.ndarray, site: int) -> None:
        self._sae = sae
        self._acts = torch.tensor((runs.site[rows] == site) & (kind != PLAIN))
        self._position, self._latent = torch.tensor(runs.position[rows]), runs.latent[rows]
        norms = sae.rows.norm(dim=-1)
        latent = torch.tensor(runs.latent[rows], device=sae.rows.device)
        along = np.where(kind == CONTROL, runs.other[rows], runs.latent[rows])
        along = torch.tensor(along, device=sae.rows.device)
        mine = self._acts.to(sae.rows.device)
        latent, along = latent.where(mine, 0), along.where(mine, 0)  # other sites' numbers
        self._read = latent
        self._write = sae.rows[along] * (norms[latent] / norms[along])[:, None]

    def __call__(
        self, x: Float[Tensor, "row position width"], rows: Int[Tensor, " row"], start: int
    ) -> Float[Tensor, "row position width"]:
        numbers = rows.cpu()
        mine = self._acts[numbers].nonzero().squeeze(1)
        if not len(mine):
            return x
        which, device = numbers[mine], self._write.device
        at = mine.to(x.device), (self._position[which] - start).to(x.device)
        before = x[at].to(device=device, dtype=self._sae.dtype)
        which = which.to(device)
        coefficients = self._sae.coefficients(before)
        a = coefficients.gather(1, self._read[which][:, None])
        out = x.clone()
        out[at] = (before - a * self._write[which]).to(x)
        return out


class _Reading:
    """The later latents' coefficients where they stand."""

    def __init__(self, sae: Sae, runs: Runs, rows: np.ndarray) -> None:
        self._sae, self._to = sae, torch.tensor(runs.to[rows])
        self._latent = torch.tensor(runs.to_latent[rows])

    def __call__(self, rows: Tensor, x: Tensor, start: int) -> Float[np.ndarray, " row"]:
        numbers = rows.cpu()
        at = torch.arange(len(numbers), device=x.device), (self._to[numbers] - start).to(x.device)
        read = x[at].to(device=self._sae.rows.device, dtype=self._sae.dtype)
        latent = self._latent[numbers].to(read.device)
        found = self._sae.coefficients(read).gather(1, latent[:, None])
        return found[:, 0].double().cpu().numpy()


def _judge(
    nodes: Nodes, null: Null, runs: Runs, values: np.ndarray, pair: int, plan: TrackPlan
) -> dict[str, Any]:
    row: Any = null.pairs.iloc[pair]
    mine = (runs.pair == pair) & np.isfinite(values).all(1)
    told: dict[str, Any] = {
        "site": str(nodes.sites[int(row["site"])]),
        "latent": int(row["latent"]),
        "to_site": str(nodes.sites[int(row["to_site"])]),
        "to_latent": int(row["to_latent"]),
        "similarity": float(row["similarity"]),
        "links": int(mine.sum()),
        "groups": len(np.unique(runs.group[mine])),
        "confirmed": False,
        "problem": "",
    }
    if told["groups"] < FEWEST_UNITS:
        return {**told, "problem": f"fewer than {FEWEST_UNITS} groups with a control"}
    plain, ablated, control = values[mine].T
    units = Units.of(runs.group[mine], "prompt")
    told["activation"] = float(units.mean(plain))
    parts = {"lost": plain - ablated, "control": plain - control, "more": control - ablated}
    for name, part in parts.items():
        found = share(part, plain, units, seed=plan.seed)
        told |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        told["problem"] = told["problem"] or found.problem
    told["confirmed"] = bool(told["lost_low"] > plan.lost and told["more_low"] > 0)
    return told
