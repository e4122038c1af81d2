"""The strongest latents at every site and chosen token of answers: the nodes of tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from circuits.labelled import Labelled, named
from circuits.models.hooked import HookedModel
from circuits.prompts import resolve_bos, tokenise
from circuits.saes import SaeSet
from circuits.sites import Site, forward_order
from circuits.tracks.plan import Places, TrackError, TrackPlan

RESIDUAL = ("resid_pre", "resid_mid", "resid_post")


@dataclass(frozen=True)
class Cell:
    """One token at which tracks are followed. answer: number. place: which of the answer's places.
    position: of the token, from the first one of the prompt on. token: its text."""

    answer: int
    place: int
    position: int
    token: str


@dataclass(frozen=True, eq=False)
class Nodes:
    """The strongest latents at sites and cells; slots by strength, -1 and 0 where there are fewer.

    latent: number. value: effective coefficient. strength: norm of the write, value times norm of
    the decoder row. share: of the writes of all latents active there, those left out not counted.
    left_out: latents that are active nearly everywhere, by site.
    later: for each distance in positions, the cell that is so much later in the same answer, or -1.
    """

    sites: tuple[Site, ...]
    cells: tuple[Cell, ...]
    latent: Int[np.ndarray, "site cell slot"]
    value: Float[np.ndarray, "site cell slot"]
    strength: Float[np.ndarray, "site cell slot"]
    share: Float[np.ndarray, "site cell slot"]
    left_out: tuple[tuple[int, ...], ...]
    later: Int[np.ndarray, "distance cell"]

    @property
    def answer(self) -> Int[np.ndarray, " cell"]:
        """The number of each cell's answer."""
        return np.array([c.answer for c in self.cells])

    @property
    def present(self) -> Bool[np.ndarray, "site cell slot"]:
        """Where there is a node."""
        return self.latent >= 0

    def shuffled(self, donors: Int[np.ndarray, "site cell"]) -> Nodes:
        """Each site's sets replaced by those of other cells."""
        take = np.arange(len(self.sites))[:, None], donors
        found = {n: getattr(self, n)[take] for n in ("latent", "value", "strength", "share")}
        return replace(self, **found)


def residual(saes: SaeSet) -> tuple[Site, ...]:
    """The sites of a set that lie in the stream, in forward order.

    Raises `TrackError` where there are fewer than two.
    """
    sites = forward_order(s for s in saes.sources if s.kind in RESIDUAL)
    if len(sites) < 2:
        raise TrackError(
            f"tracks need SAEs at two sites of the residual stream at least; there are "
            f"{len(sites)} ({', '.join(map(str, saes.sources))} in all). Choose with --saes and "
            "--layers."
        )
    return sites


@dataclass(frozen=True)
class Text:
    """Tokens of an answer. cells: positions of its places."""

    tokens: tuple[int, ...]
    cells: tuple[int, ...]


def texts_of(
    model: HookedModel, answers: Sequence[Labelled], places: Places, prepend_bos: bool | None
) -> list[Text]:
    """Prompt and completion of every answer, and where its places are.

    Raises `TrackError` that names answers without the tokens that are asked for.
    """
    bos = resolve_bos(model.tokenizer, prepend_bos)
    made, short, long = [], [], []
    for one in answers:
        prompt = tokenise(model.tokenizer, one.prompt, bos)
        given = model.tokenizer(one.completion, add_special_tokens=False)["input_ids"]
        kept = given[: places.completion]
        # Never the first token, whose norm is that of a beginning of text.
        if len(prompt) <= places.last or (places.completion != 0 and not kept):
            short.append(one.id)
        elif len(prompt) + len(kept) > model.adapter.n_ctx:
            long.append(one.id)
        cells = range(len(prompt) - places.last, len(prompt) + len(kept))
        made.append(Text((*prompt, *kept), tuple(cells)))
    for bad, what in (
        (short, f"have not the tokens for {places}, the first one of the prompt not counted"),
        (long, f"are longer than the {model.adapter.n_ctx} tokens that {model.name} reads"),
    ):
        if bad:
            raise TrackError(f"{named(bad)} {what}: leave them out, or take other positions.")
    return made


def padded(texts: Sequence[Text], device: torch.device) -> Int[Tensor, "row position"]:
    """Tokens as rows, the last one repeated; attention never looks at what follows."""
    length = max(len(t.tokens) for t in texts)
    made = [[*t.tokens, *[t.tokens[-1]] * (length - len(t.tokens))] for t in texts]
    return torch.tensor(made, device=device)


def read_nodes(
    model: HookedModel,
    saes: SaeSet,
    sites: Sequence[Site],
    texts: Sequence[Text],
    plan: TrackPlan,
    *,
    progress: bool = True,
) -> Nodes:
    """One pass over the answers: what is active at the chosen tokens, and how often everywhere."""
    first = np.cumsum([0, *(len(t.cells) for t in texts)])
    counts = {site: np.zeros(saes.sources[site].d_sae) for site in sites}
    found: dict[Site, list[tuple[np.ndarray, ...]]] = {site: [] for site in sites}
    order = np.array(sorted(range(len(texts)), key=lambda i: len(texts[i].tokens)))
    starts = range(0, len(order), plan.batch_size)
    for start in tqdm(starts, desc="reading latents", unit="batch", disable=not progress):
        rows = order[start : start + plan.batch_size]
        some = [texts[i] for i in rows]
        tokens = padded(some, model.device)
        inside = np.zeros(tuple(tokens.shape), dtype=bool)
        cell = np.full(tuple(tokens.shape), -1)
        for r, i in enumerate(rows):
            inside[r, 1 : len(texts[i].tokens)] = True
            cell[r, list(texts[i].cells)] = np.arange(int(first[i]), int(first[i + 1]))
        for site, x in model.activations(tokens, sites).items():
            sae = saes[site]
            made = sae.encode_sparse(x.to(sae.dtype))
            at = made.latents.row, made.latents.position
            value = (made.latents.value * made.scale[at][:, 0]).double().cpu().numpy()
            at = tuple(a.cpu().numpy() for a in at)
            latent = made.latents.latent.cpu().numpy()
            counts[site] += np.bincount(latent[inside[at]], minlength=len(counts[site]))
            mine = cell[at] >= 0
            found[site].append((cell[at][mine], latent[mine], value[mine]))
    total = sum(len(t.tokens) - 1 for t in texts)
    left_out = tuple(
        tuple(np.flatnonzero(counts[site] / total > plan.densest).tolist()) for site in sites
    )
    sets: list[Any] = [
        _strongest(saes, site, found[site], out, int(first[-1]), plan.k)
        for site, out in zip(sites, left_out, strict=True)
    ]
    latent, value, strength, share = (np.stack(parts) for parts in zip(*sets, strict=True))
    ids = [t.tokens[p] for t in texts for p in t.cells]
    words = model.tokenizer.batch_decode([[i] for i in ids])
    places = [(a, n, p) for a, t in enumerate(texts) for n, p in enumerate(t.cells)]
    cells = tuple(Cell(*at, word) for at, word in zip(places, words, strict=True))
    later = later_cells(cells, plan.reach)
    return Nodes(tuple(sites), cells, latent, value, strength, share, left_out, later)


def later_cells(cells: Sequence[Cell], reach: int) -> Int[np.ndarray, "distance cell"]:
    """The cell so many positions later in the same answer, or -1."""
    at = {(c.answer, c.position): i for i, c in enumerate(cells)}
    made = [[at.get((c.answer, c.position + d), -1) for c in cells] for d in range(reach + 1)]
    return np.array(made, dtype=np.int64)


def _strongest(
    saes: SaeSet,
    site: Site,
    parts: Sequence[tuple[np.ndarray, ...]],
    left_out: Sequence[int],
    cells: int,
    k: int,
) -> tuple[np.ndarray, ...]:
    """latent, value, strength and share at one site."""
    cell, latent, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    keep = ~np.isin(latent, left_out)
    cell, latent, value = cell[keep], latent[keep], value[keep]
    norms = saes[site].rows.norm(dim=-1).double().cpu().numpy()
    strength = np.abs(value) * norms[latent]
    cell, latent, value, strength = (x[strength > 0] for x in (cell, latent, value, strength))
    whole = np.bincount(cell, weights=strength, minlength=cells)
    order = np.lexsort((latent, -strength, cell))  # among equals the smaller number
    cell, latent, value, strength = (x[order] for x in (cell, latent, value, strength))
    begin = np.searchsorted(cell, np.arange(cells))
    rank = np.arange(len(cell)) - begin[cell]
    top = rank < k
    found = (latent, value, strength, strength / whole[cell])
    made = [np.full((cells, k), -1), *(np.zeros((cells, k)) for _ in range(3))]
    for array, column in zip(made, found, strict=True):
        array[cell[top], rank[top]] = column[top]
    return tuple(made)
