"""A network with known tracks, set by hand, and tracks of made sets without a network.

Words have amounts of A, S, D, X, G, P and Q (X as much as D); `bos` has none. Nothing moves between
tokens. The stream after each of the four layers:

    layer 0   A S D X G P Q
    layer 1   A S D X G P Q      D is made anew from X, the old one is taken away: a decoy
    layer 2   S U D X G P Q      A is taken away: its track dies; U = S / 2 is added
    layer 3   the same

and what the dictionaries of resid_post know

    layer 0, 1   A S D X G P Q
    layer 2      S1 S2 D X P Q   G is missing: a gap; S1, S2 = (S + U, S - U) / sqrt 2: a split
    layer 3      S1 S2 D X G M   M = (P + Q) / sqrt 2: a merge
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.labelled import Labelled
from circuits.saes import SaeSet
from circuits.sites import Site
from circuits.tracks.link import Similar
from circuits.tracks.read import Cell, Nodes, later_cells
from tests.planted import Network, empty_model, mix, mlp, network, rows

SITES = tuple(Site(layer, "resid_post") for layer in range(4))
KNOWN = ("A S D X G P Q", "A S D X G P Q", "S1 S2 D X P Q", "S1 S2 D X G M")
FREE = "ASDGPQ"  # amounts that are drawn; X is D's
WORDS = 60
_HALF = 0.5**0.5


def amounts(seed: int = 0) -> list[dict[str, float]]:
    """Of every word; each feature is in about half of them. The first word, bos, has none."""
    draw = np.random.default_rng(seed)
    made: list[dict[str, float]] = [{}]
    for _ in range(WORDS):
        there = draw.random(len(FREE)) < 0.5
        some = {f: float(draw.integers(1, 5)) for f, yes in zip(FREE, there, strict=True) if yes}
        some = some or {"A": 1.0}  # no word without any
        made.append({**some, **({"X": some["D"]} if "D" in some else {})})
    return made


def stream(word: dict[str, float], layer: int) -> dict[str, float]:
    """By hand: the coefficient of every latent of a layer's dictionary at a word, above 0."""
    s = word.get("S", 0.0)
    found = {n: word.get(n, 0.0) for n in "ASDXGPQ"}
    found |= {"S1": 1.5 * s * _HALF, "S2": 0.5 * s * _HALF}
    found["M"] = (found["P"] + found["Q"]) * _HALF
    return {n: found[n] for n in KNOWN[layer].split() if found[n] > 0}


@cache
def tracked() -> Network:
    """The network, in float64, with its dictionaries."""
    way: dict[str, Tensor] = dict(zip("ASDXGPQU", rows(16), strict=False))
    way |= {"S1": (way["S"] + way["U"]) * _HALF, "S2": (way["S"] - way["U"]) * _HALF}
    way["M"] = (way["P"] + way["Q"]) * _HALF
    size = {"n_layers": 4, "d_model": 16, "n_heads": 4, "d_head": 4, "d_mlp": 2, "n_ctx": 64}
    module = empty_model(WORDS + 1, **size)
    module.W_E.data[:] = torch.stack([mix(way, {"A": 0.0, **word}) for word in amounts()])
    mlp(module.blocks[1], [(way["X"], 0, way["D"]), (way["D"], 0, -way["D"])])
    mlp(module.blocks[2], [(way["A"], 0, -way["A"]), (way["S"], 0, way["U"] / 2)])
    words = ["bos", *(f"w{i}" for i in range(WORDS))]
    known = {str(site): names.split() for site, names in zip(SITES, KNOWN, strict=True)}
    made = network(module, words, way, known)
    made.model.tokenizer = speller(tuple(words))
    return made


def speller(words: tuple[str, ...]) -> Any:
    """A tokenizer of the words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel(ids, unk_token="bos"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="bos")


def answers(count: int = 60, seed: int = 0) -> list[Labelled]:
    """Prompts of several lengths whose last word is drawn, answers of one word."""
    draw = np.random.default_rng(seed)
    made = []
    for i in range(count):
        words = [f"w{n}" for n in draw.integers(0, WORDS, 2 + i % 3)]
        prompt, said = " ".join(["bos", *words]), f"w{draw.integers(0, WORDS)}"
        made.append(Labelled(f"a{i}", f"g{i}", prompt, said, bool(draw.random() < 0.5)))
    return made


def nodes_of(latent: np.ndarray, strength: np.ndarray, lengths: list[int], reach: int = 0) -> Nodes:
    """Nodes of made sets, [site, cell, slot]; lengths: cells of every answer."""
    places = [(a, p) for a, n in enumerate(lengths) for p in range(n)]
    cells = tuple(Cell(a, p, 5 + p, f"t{p}") for a, p in places)
    strength = np.where(latent >= 0, strength, 0.0)
    whole = strength.sum(2, keepdims=True)
    share = np.divide(strength, whole, out=np.zeros_like(strength), where=whole > 0)
    sites = tuple(Site(layer, "resid_post") for layer in range(len(latent)))
    out = ((),) * len(sites)
    return Nodes(sites, cells, latent, strength, strength, share, out, later_cells(cells, reach))


def similar_of(cosine: np.ndarray, sites: int) -> Similar:
    """The same cosines between the latents of any two sites."""
    pairs = [(s, t) for s in range(sites) for t in (s + 1, s + 2) if t < sites]
    known = tuple(np.arange(len(cosine)) for _ in range(sites))
    return Similar(known, dict.fromkeys(pairs, cosine))


def groups(count: int, size: int = 1) -> list[Labelled]:
    """Answers in groups of a size."""
    return [Labelled(f"a{i}", f"g{i // size}", "p", "c", i % 2 == 0) for i in range(count)]


def part(saes: SaeSet, *layers: int) -> SaeSet:
    """Those of some layers."""
    return saes.at([SITES[layer] for layer in layers])
