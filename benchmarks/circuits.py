"""Circuits: a ladder of sizes against one spliced forward a circuit, edges against attribution.

    python -m benchmarks.circuits [ladder] [edges] [memory]

The embedded model and its eight SAEs on error_type. ladder: ten sizes with three references on 32
pairs, 960 runs, against what one would write first: for every circuit, reference and pair a forward
of batch one in which every site is encoded, masked and decoded, its error recomputed; and against
as many plain forwards of batch one, without any SAE. Both are timed on some of the pairs, in turns
with ours, and scaled. edges: all edges between 100 nodes against attribution (atp) of the same
pairs. memory: the peak of each, beyond the model and its SAEs.

What was predicted before the first measurement, from counted operations at 170 GFLOP/s:
ladder: 864 runs (of the ten sizes, everything needs none), 18 of 20 positions, 23 of 30 layers,
0.21 GFLOP a token, 2.5 TFLOP, encoding 0.6 TFLOP: 18 s, and a third more for looking up and
decoding: 24 s. A plain forward of batch one reads 0.5 GB of weights for 4 GFLOP: 50 ms, eight
splices as much again: 960 x 0.1 s, 4x; at least 5x was asked for.
edges: 100 backwards through 2.8 of 30 layers on average, at 16 of 20 positions: 7.5 forwards a
pair, attribution is 4.5: 1.7x, and 2.5x with what is done around them.
memory: 8 pairs at a time, 3 references: activations of both runs and of the rows of one pass,
100 to 200 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.attribution import ATP
from benchmarks.attribution_memory import AT_ONCE
from benchmarks.common import memory_growth, report, seconds
from circuits import load_model, load_saes, load_task
from circuits.attribute import attribute
from circuits.attribute.batch import Batch, Sources
from circuits.attribute.scores import scores_of
from circuits.circuit.candidates import Candidates
from circuits.circuit.evaluate import metrics_of
from circuits.circuit.references import REFERENCES
from circuits.circuit.sets import select
from circuits.edges import edge_effects
from circuits.metrics import logit_difference
from circuits.models.edits import Edit
from circuits.models.hooked import HookedModel
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet
from circuits.sites import Site

FOUND, JUDGED, NODES, ROUNDS = 12, 32, 100, 3


@cache
def setting() -> tuple[HookedModel, SaeSet, PromptPairs, PromptPairs, Candidates]:
    """Model, SAEs, pairs to find circuits on, pairs to judge them on, and ranked nodes."""
    model = load_model(device="cpu")
    task: Any = load_task("error_type")
    saes = load_saes("embedded", model)
    pairs = task.pairs(model, n=FOUND + JUDGED, prepend_bos=False)
    found, judged = select(pairs, range(FOUND)), select(pairs, range(FOUND, len(pairs)))
    effects = attribute(model, found, saes=saes, audit_pairs=0, progress=False)
    return model, saes, found, judged, Candidates.of(effects)


def ladder_once() -> Any:
    """Ten sizes, three references, 32 pairs."""
    model, saes, _, judged, candidates = setting()
    _, chosen = candidates.ladder()
    return metrics_of(model, saes, judged, chosen, candidates.places, REFERENCES)[0]


class Naive:
    """One forward of batch one, with dense masks."""

    def __init__(self, pair: int) -> None:
        model, saes, _, judged, candidates = setting()
        self.model, self.saes = model, saes
        self.clean = torch.tensor(judged.clean_tokens[pair])[None]
        self.answer, self.foil = judged.answer_tokens[pair], judged.foil_tokens[pair]
        corrupted = torch.tensor(judged.corrupted_tokens[pair])[None]
        self.references = self._references(corrupted)
        _, chosen = candidates.ladder()
        table, length = candidates.table, self.clean.shape[1]
        self.masks: list[dict[Site, tuple[Tensor, Tensor]]] = []
        for inside, rest in zip(chosen.inside, chosen.rest, strict=True):
            masks = {}
            for place, site in enumerate(table.sites):
                mask = torch.full((length, saes[site].d_sae), bool(rest))
                error = torch.full((length, 1), bool(rest))
                here = inside & (table.site == place)
                latents, errors = here & (table.role == 0), here & (table.role == 1)
                mask[table.position[latents], table.latent[latents]] = True
                error[table.position[errors]] = True
                mask[0] = error[0] = True
                masks[site] = (mask, error)
            self.masks.append(masks)

    def _references(self, corrupted: Tensor) -> list[dict[Site, tuple[Tensor, Tensor]]]:
        """Latents and errors of the corrupted run, of the mean over all prompts, and zero."""
        model, saes, _, judged, _ = setting()

        def parts(tokens: Tensor) -> dict[Site, tuple[Tensor, Tensor]]:
            _, values = model.cache(tokens, list(saes))
            found = {}
            for site, x in values.items():
                latents = saes[site].module.encode(x)  # pyright: ignore
                error = x - saes[site].module.decode(latents)  # pyright: ignore
                found[site] = (latents.mean(0), error.mean(0))
            return found

        every = torch.tensor([*judged.clean_tokens, *judged.corrupted_tokens])
        zero = {s: (torch.zeros_like(f), torch.zeros_like(e)) for s, (f, e) in parts(every).items()}
        return [parts(corrupted), parts(every), zero]

    def plain(self) -> float:
        """Without SAEs."""
        return float(self._difference(self.model.run(self.clean)))

    def spliced(self, circuit: int, reference: int) -> float:
        """With every site encoded, masked and decoded."""
        kept, other = self.masks[circuit], self.references[reference]

        def edit(site: Site) -> Edit:
            sae: Any = self.saes[site].module
            (mask, errors), (latents, error) = kept[site], other[site]

            def apply(x: Tensor, start: int) -> Tensor:
                found = sae.encode(x)
                left = x - sae.decode(found)
                chosen = torch.where(mask, found, latents)
                return sae.decode(chosen) + torch.where(errors, left, error)

            return apply

        with torch.no_grad(), self.model.edited({site: edit(site) for site in self.saes}):
            return float(self._difference(self.model.run(self.clean)))

    def _difference(self, logits: Tensor) -> Tensor:
        return logits[0, self.answer] - logits[0, self.foil]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(what it gives, seconds)."""
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def naive_ladder(one: Naive, runs: int) -> list[float]:
    """Every circuit with every reference on one pair."""
    count = len(REFERENCES)
    return [one.spliced(c, r) for c in range(runs // count) for r in range(count)]


def plain_runs(one: Naive, runs: int) -> list[float]:
    """As many forwards without SAEs."""
    return [one.plain() for _ in range(runs)]


def ladder() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Ours, spliced and plain forwards, in turns."""
    runs = len(setting()[4].ladder()[0]) * len(REFERENCES)
    ours, spliced, plain, apart = [], [], [], 0.0
    for number in range(ROUNDS):
        found, took = timed(ladder_once)
        ours.append(took)
        one = Naive(number)
        one.spliced(0, 0)  # warm
        values, took = timed(partial(naive_ladder, one, runs))
        spliced.append(took)
        plain.append(seconds(partial(plain_runs, one, runs)))
        mine = found[:, :, number].reshape(-1)
        apart = max(apart, float(np.abs(mine - np.array(values)).max()))
    scale = JUDGED  # single forwards are timed on one pair a round
    ratio = [s * scale / o for s, o in zip(spliced, ours, strict=True)]
    bare = [p * scale / o for p, o in zip(plain, ours, strict=True)]
    rows = [
        {"what": f"ladder: {runs * JUDGED} runs", "measured": min(ours), "unit": "s"},
        {
            "what": "against one spliced forward of batch one each",
            "measured": statistics.median(ratio),
            "unit": "x",
            "bar": ">= 5",
        },
        {
            "what": "against as many plain forwards of batch one",
            "measured": statistics.median(bare),
            "unit": "x",
        },
        {"what": "largest difference from spliced forwards", "measured": apart, "unit": "logits"},
    ]
    details = {"ours_s": ours, "spliced_s": spliced, "plain_s": plain}
    return rows, {"ladder": details}


def edges_once() -> Any:
    """All edges between the 100 strongest nodes."""
    model, saes, found, _, candidates = setting()
    nodes = [candidates.table.node(i) for i in range(NODES)]
    [group] = found.groups()
    batch = Batch(model, Sources(tuple(saes), saes), group, logit_difference, "denoising")
    return edge_effects(batch, nodes, nodes)


def attribution_once() -> Any:
    """Effects of all nodes, first order."""
    model, saes, found, _, _ = setting()
    [group] = found.groups()
    return scores_of(model, Sources(tuple(saes), saes), group, ATP)


def edges() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """In turns."""
    setting()
    ours, base = [], []
    for _ in range(2 * ROUNDS):
        base.append(seconds(attribution_once))
        ours.append(seconds(edges_once))
    ratio = statistics.median(e / a for e, a in zip(ours, base, strict=True))
    rows = [
        {
            "what": f"edges between {NODES} nodes, {FOUND} pairs",
            "measured": statistics.median(ours),
            "unit": "s",
        },
        {
            "what": "against attribution of the same pairs",
            "measured": ratio,
            "unit": "x",
            "bar": "<= 3",
        },
    ]
    return rows, {"edges": {"ours_s": ours, "attribution_s": base}}


_MEASURED = {"ladder": ladder_once, "edges": edges_once, "attribution": attribution_once}


def memory() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Each in a process of its own."""
    rows = []
    for name in _MEASURED:
        command = [sys.executable, "-m", "benchmarks.circuits", "--child", name]
        done = subprocess.run(
            command, env={**os.environ, **AT_ONCE}, capture_output=True, text=True, check=True
        )
        peak = json.loads(done.stdout.splitlines()[-1])["peak_mib"]
        what = f"memory of {name} beyond model and SAEs"
        rows.append({"what": what, "measured": peak, "unit": "MiB"})
    return rows, {}


def child(name: str) -> None:
    """One measurement in this process."""
    setting()
    with memory_growth() as found:
        _MEASURED[name]()
    print(json.dumps(found))


PARTS = {"ladder": ladder, "edges": edges, "memory": memory}


def main(names: list[str]) -> None:
    """Measure the parts that are named, all by default; keep the figures of the others."""
    before = Path(__file__).with_suffix(".json")
    kept = json.loads(before.read_text()) if before.is_file() and names else {"rows": []}
    details = {k: v for k, v in kept.items() if k in PARTS}
    rows = [row for row in kept["rows"] if row["part"] not in names]
    for name in names or PARTS:
        found, more = PARTS[name]()
        rows += [{**row, "part": name} for row in found]
        details |= more
    report(__file__, rows, details)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--child", choices=_MEASURED)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
    else:
        main(arguments.parts)
