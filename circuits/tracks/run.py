"""`track`: read, link, test, check, join, measure."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from circuits.labelled import Labelled, check_ids, named
from circuits.models.hooked import HookedModel
from circuits.prompts import resolve_bos
from circuits.runs import versions
from circuits.saes import SaeSet
from circuits.tracks.causal import check
from circuits.tracks.chains import Chains, chains, track_table
from circuits.tracks.link import KINDS, Linker, Links, Similar
from circuits.tracks.metrics import METRICS, constants, metric_table
from circuits.tracks.null import Exchange, Null, shuffle_test
from circuits.tracks.plan import TrackError, TrackPlan
from circuits.tracks.read import Nodes, read_nodes, residual, texts_of
from circuits.tracks.result import Tracks

SIGN_CONVENTION = (
    "share lost = (activation - activation with the earlier latent ablated) / activation: 1 all, "
    "0 nothing, negative where it grows"
)


def track(
    model: HookedModel,
    saes: SaeSet,
    answers: Sequence[Labelled],
    plan: TrackPlan | None = None,
    *,
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> Tracks:
    """Follow the strongest latents of answers through the SAEs of the residual stream.

    saes: those of the residual stream are used, in forward order; others are named in the record.
    prepend_bos: None takes it as the SAEs were trained.

    Raises `TrackError`, before any long work, for fewer than two SAEs, answers without the tokens
    that are asked for, and answers among which nothing can be exchanged.
    """
    plan, begun = plan or TrackPlan(), time.monotonic()
    if not answers:
        raise TrackError("no answers: there is nothing to follow.")
    check_ids((a.id for a in answers), "the answers")
    sites = residual(saes)
    bos = saes.at(sites).prepend_bos if prepend_bos is None else prepend_bos
    texts = texts_of(model, answers, plan.positions, bos)
    Exchange([len(t.cells) for t in texts], answers, plan.within)  # raises early
    nodes = read_nodes(model, saes, sites, texts, plan, progress=progress)
    _check_present(nodes, answers)
    similar = Similar.of(nodes, saes)
    links = Linker(nodes, similar, plan).links()
    read = time.monotonic()
    null = shuffle_test(nodes, links, similar, answers, plan, progress=progress)
    tested = time.monotonic()
    confirmed, causal = check(
        model, saes, nodes, links, null, texts, answers, plan, progress=progress
    )
    used = links.part(null.kept) if plan.links == "kept" else links
    made = chains(nodes, used)
    ids = [a.id for a in answers]
    measured = metric_table(nodes, made, ids)
    constant = constants(measured)
    record: dict[str, Any] = {
        "method": "tracks",
        "model": model.name,
        "model_sha256": model.sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "saes": [saes.describe(site) for site in sites],
        "saes_left_out": [str(s) for s in saes.sources if s not in sites],
        "prepend_bos": resolve_bos(model.tokenizer, bos),
        "plan": plan.told(),
        "answers": _told(answers),
        "tokens": len(nodes.cells),
        "left_out": {str(s): list(x) for s, x in zip(sites, nodes.left_out, strict=True)},
        "null": null.facts,
        "layers": null.layers.to_dict("records"),
        "causal": causal,
        "metrics": {n: {"range": m.range, "what": m.what} for n, m in METRICS.items()},
        "constant": constant,
        "sign_convention": SIGN_CONVENTION,
        "versions": versions(),
        "seconds": {
            "read": read - begun,
            "null": tested - read,
            "causal": time.monotonic() - tested,
        },
    }
    return Tracks(
        node_table(nodes, made, ids),
        link_table(nodes, links, null, confirmed, made, ids),
        track_table(nodes, made, ids),
        measured.drop(columns=list(constant)),
        confirmed,
        pd.DataFrame(_answers(answers)),
        record,
    )


def _check_present(nodes: Nodes, answers: Sequence[Labelled]) -> None:
    there = np.bincount(nodes.answer, weights=nodes.present.any((0, 2)), minlength=len(answers))
    bare = [a.id for a, count in zip(answers, there, strict=True) if not count]
    if bare:
        raise TrackError(
            f"{named(bare)}: no latent is active at any of the tokens that are followed. Leave "
            "them out, take other positions, or raise --densest."
        )


def _told(answers: Sequence[Labelled]) -> dict[str, Any]:
    text = "".join(f"{a.id}\0{a.group}\0{a.prompt}\0{a.completion}\0{a.correct}\0" for a in answers)
    return {
        "count": len(answers),
        "correct": sum(a.correct for a in answers),
        "groups": len({a.group for a in answers}),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _answers(answers: Sequence[Labelled]) -> list[dict[str, Any]]:
    return [
        {
            "answer": a.id,
            "group": a.group,
            "prompt": a.prompt,
            "completion": a.completion,
            "correct": a.correct,
        }
        for a in answers
    ]


def numbered(nodes: Nodes) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """(number of every node, -1 where there is none; cell, site and slot of the nodes in order)."""
    cell, site, slot = nodes.present.transpose(1, 0, 2).nonzero()
    number = np.full(nodes.latent.shape, -1)
    number[site, cell, slot] = np.arange(len(cell))
    return number, (cell, site, slot)


def node_table(nodes: Nodes, made: Chains, ids: list[str]) -> pd.DataFrame:
    """One row a node; see `Tracks`."""
    _, (cell, site, slot) = numbered(nodes)
    cells = [nodes.cells[c] for c in cell]
    at = site, cell, slot
    return pd.DataFrame(
        {
            "node": np.arange(len(cell)),
            "answer": [ids[c.answer] for c in cells],
            "place": [c.place for c in cells],
            "position": [c.position for c in cells],
            "token": [c.token for c in cells],
            "site": np.array([str(s) for s in nodes.sites])[site],
            "layer": np.array([s.layer for s in nodes.sites])[site],
            "latent": nodes.latent[at],
            "activation": nodes.value[at],
            "strength": nodes.strength[at],
            "share": nodes.share[at],
            "track": made.track[at],
        }
    )


def link_table(
    nodes: Nodes,
    links: Links,
    null: Null,
    confirmed: pd.DataFrame,
    made: Chains,
    ids: list[str],
) -> pd.DataFrame:
    """One row a link; see `Tracks`."""
    number, _ = numbered(nodes)
    names = np.array([str(s) for s in nodes.sites])
    source = links.site, links.cell, links.slot
    target = links.to_site, links.to_cell, links.to_slot
    table = pd.DataFrame(
        {
            "answer": [ids[nodes.cells[c].answer] for c in links.cell],
            "source": number[source],
            "target": number[target],
            "kind": np.array(KINDS)[links.kind],
            "site": names[links.site],
            "latent": nodes.latent[source],
            "to_site": names[links.to_site],
            "to_latent": nodes.latent[target],
            "score": links.score,
            "similarity": links.similarity,
            "p": null.of("p", np.nan),
            "q": null.of("q", np.nan),
            "kept": null.kept,
        }
    )
    key = ["site", "latent", "to_site", "to_latent"]
    verdicts = {
        tuple(row[k] for k in key): "confirmed" if row["confirmed"] else "not confirmed"
        for row in confirmed.to_dict("records")
    }
    rows = zip(*(table[k] for k in key), strict=True)
    table["causal"] = [verdicts.get(row, "not tested") for row in rows]
    return table
