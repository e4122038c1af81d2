"""Made data sets of answered problems: clean ones, with and without signal, and ones with a flaw.

Problems are texts with a name, a thing and four numbers, so that one word apart is rarely chance.
Vectors are a random linear code of a prompt's numbers and words plus noise, as a model's would be;
with signal, one direction more tells how likely the answer is wrong.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from circuits.labelled import Labelled
from circuits.predict.vectors import Vectors

_NAMES = "Ann Bob Cleo Dan Eve Finn Gus Hana Ivo Jane Kim Leo Mia Nat Ola Pia".split()
_THINGS = "apples books coins discs eggs forks gems hats inks jars kites lamps".split()
SITES, POSITIONS = ("resid_post.1", "resid_post.3"), ("t1", "t2", "t3")


def problem(rng: np.random.Generator, steps: int) -> tuple[str, list[float]]:
    """A prompt, and numbers that code it."""
    name, thing = int(rng.integers(len(_NAMES))), int(rng.integers(len(_THINGS)))
    numbers = rng.integers(2, 1000, size=4).tolist()
    text = f"{_NAMES[name]} has {numbers[0]} {_THINGS[thing]} and gets {numbers[1]} more."
    text += f" Then {numbers[2]} are lost and {numbers[3]} found" + " again" * steps + ". How many?"
    code = [*np.log(numbers).tolist(), name / 5, thing / 4, steps]
    return text, code


def made(
    n: int = 240,
    *,
    signal: float = 0.0,
    surface: float = 0.0,
    seed: int = 0,
    width: int = 12,
    twins: bool = False,
    sites: tuple[str, ...] = SITES,
    bare: bool = False,
) -> tuple[list[Labelled], Vectors]:
    """`n` records and their vectors.

    signal: how much of the log odds of a wrong answer the vectors know and the prompt does not.
    surface: how much of it the number of steps, which the prompt shows, decides.
    bare: without completions and step counts, which leaves fewer baselines.
    twins: problems in pairs that differ in one number, of which one is wrong, in one group.
    """
    rng = np.random.default_rng(seed)
    texts, codes, groups = [], [], []
    for i in range(n // 2 if twins else n):
        text, code = problem(rng, int(rng.integers(1, 6)))
        texts.append(text)
        codes.append(code)
        groups.append(f"g{i}")
        if twins:
            first = text.split()[2]
            changed = int(rng.integers(2, 1000))
            texts.append(text.replace(first, str(changed), 1))
            codes.append([float(np.log(changed)), *code[1:]])
            groups.append(f"g{i}")
    table = np.array(codes)
    table = (table - table.mean(0)) / table.std(0)
    hidden = rng.standard_normal(len(table))
    odds = signal * hidden + surface * table[:, -1]
    wrong = rng.random(len(table)) < 1 / (1 + np.exp(-odds))
    if twins:
        # Of two twins exactly one is wrong, the one with the larger odds more often.
        flip = rng.random(len(table) // 2) < 1 / (1 + np.exp(-(odds[1::2] - odds[::2])))
        wrong[1::2], wrong[::2] = flip, ~flip
    shape = (len(sites), len(POSITIONS), width)
    mix = rng.standard_normal((table.shape[1] + 1, *shape))
    known = np.concatenate([table, hidden[:, None] * (signal > 0)], axis=1)
    values = np.einsum("nk,kspd->nspd", known, mix) + rng.standard_normal((len(table), *shape))
    records = [
        Labelled(
            id=f"r{i}",
            group=groups[i],
            prompt=texts[i],
            completion="" if bare else f"The answer is {int(rng.integers(10, 99))}.",
            correct=not wrong[i],
            surface={} if bare else {"steps": float(codes[i][-1])},
        )
        for i in range(len(table))
    ]
    return records, vectors_of(records, values.astype(np.float32), sites)


def vectors_of(
    records: list[Labelled], values: np.ndarray, sites: tuple[str, ...] = SITES, **more: Any
) -> Vectors:
    """Vectors of records, in their order."""
    ids, digests = tuple(r.id for r in records), tuple(r.digest for r in records)
    return Vectors(values, ids, digests, sites, POSITIONS, **more)


def apart(records: list[Labelled]) -> list[Labelled]:
    """The same records, each in a group of its own: twins come to stand across splits."""
    return [replace(r, group=r.id) for r in records]
