"""Programs compiled into transformers by hand, whose way of working is known therefore.

`reversal` reads a word backwards, in one hop or in two; `choice` reads its first or its last
letter, as the last token says. They have attention only: every head looks at one position,
entirely, and copies the letter there. Tokens, positions and letters on their way have axes of their
own in the stream, as in compiled RASP programs (Weiss et al. 2021; Lindner et al. 2023).

`gates` computes AND and OR in an MLP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from circuits.graph import Node
from circuits.prompts import PromptPairs
from tests.planted import END, Network, copy, empty_model, mlp, network, rows

LETTERS, LENGTH = "abcdefgh", 4  # of words
GAIN = 5.0  # logits of the letter that is written
HARD = 1000.0  # an attention score beside which one of 0 gets exactly nothing
_WORDS = [*LETTERS, "bos", "sep", "first", "last"]
_AT = [f"at {q}" for q in range(2 * LENGTH + 1)]
_BEFORE, _NEXT, _Z = ([f"{kind} {c}" for c in LETTERS] for kind in ("BEFORE", "NEXT", "z"))
_AXES = [*_WORDS, *_AT, *_BEFORE, *_NEXT]
_WAY = dict(zip(_AXES, torch.eye(len(_AXES), dtype=torch.float64), strict=True))
_SLOTS = torch.eye(len(_AT), dtype=torch.float64)  # of a head: one a position, or one a letter
_HEADS = dict(zip(_Z, _SLOTS, strict=False))


def reversal(hops: int = 1, sites: Sequence[str] | None = None) -> Network:
    """After "bos a b c d sep" come d, c, b and a: at position q > 4, the letter of 9 - q.

    One hop: the head looks from q to 9 - q and writes the letter there as NEXT, which is what is
    unembedded. Two hops: the first head looks from every position to the one before it and writes
    the letter there as BEFORE; the second looks from q to 10 - q and writes what is BEFORE there as
    NEXT. The same is computed, by way of position 10 - q.

    sites: where SAEs are; by default the stream before and after every layer, and z.
    """
    module = _module(hops)
    looks = {_AT[q]: 2 * LENGTH + hops - q for q in range(LENGTH + 1, 2 * LENGTH + 1)}
    _look(module.blocks[-1].attn, looks)
    _write(module.blocks[-1].attn, LETTERS if hops == 1 else _BEFORE, _NEXT)
    if hops == 2:
        _look(module.blocks[0].attn, {_AT[q]: q - 1 for q in range(1, len(_AT))})
        _write(module.blocks[0].attn, LETTERS, _BEFORE)
    known = {"resid_pre.0": [*_WORDS, *_AT]}
    for layer in range(hops):
        known |= {f"z.{layer}": _Z, f"resid_post.{layer}": _AXES}
    return network(module, _WORDS, _WAY | _HEADS, {site: known[site] for site in sites or known})


def choice() -> Network:
    """After "bos a b c d first" comes a, after "bos a b c d last" d: the head's query is the last
    token, not its position."""
    module = _module(1)
    _look(module.blocks[0].attn, {"first": 1, "last": LENGTH})
    _write(module.blocks[0].attn, LETTERS, _NEXT)
    known = {"resid_pre.0": [*_WORDS, *_AT], "z.0": _Z, "resid_post.0": _AXES}
    return network(module, _WORDS, _WAY | _HEADS, known)


def backwards(
    made: Network, words: Sequence[tuple[str, int]], written: int, template: str = "backwards"
) -> PromptPairs:
    """Pairs for `reversal`. words: each of 4 letters, with the place (1 to 4) of a letter that
    changes places with the one that is asked for in the corrupted prompt, which has the same
    letters therefore. written: how many letters are there already after "sep".

    Named positions: source, of the letter that is asked for; way, the next one; END.
    """
    source = LENGTH - written
    clean, corrupted, answers = [], [], []
    for word, other in words:
        swapped = list(word)
        swapped[source - 1], swapped[other - 1] = word[other - 1], word[source - 1]
        for prompts, letters in ((clean, list(word)), (corrupted, swapped)):
            done = letters[::-1][:written]
            prompts.append(" ".join(["bos", *letters, "sep", *done]))
        answers.append((word[source - 1], swapped[source - 1]))
    marks = {"source": source, "way": source + 1}
    return made.pairs(clean, corrupted, answers, marks=marks, template=template)


def _module(layers: int) -> Any:
    size = {"n_layers": layers, "d_model": len(_AXES), "n_heads": 1, "d_head": len(_SLOTS)}
    module = empty_model(len(_WORDS), attn_only=True, **size)
    module.W_E.data[:] = torch.stack([_WAY[word] for word in _WORDS])
    module.W_pos.data[: len(_AT)] = torch.stack([_WAY[name] for name in _AT])
    for number in range(len(LETTERS)):
        module.W_U.data[:, number] = GAIN * _WAY[_NEXT[number]]
    return module


def _look(head: Any, looks: Mapping[str, int]) -> None:
    """From where the stream has something to a position."""
    for name, position in looks.items():
        head.W_Q.data[0] += HARD * torch.outer(_WAY[name], _SLOTS[position])
    for position, name in enumerate(_AT):
        head.W_K.data[0] += torch.outer(_WAY[name], _SLOTS[position])


def _write(head: Any, reads: Sequence[str], writes: Sequence[str]) -> None:
    """What is read of the letters there as something else."""
    ways: list[tuple[Tensor, Tensor, Tensor]] = [
        (_WAY[a], _HEADS[z], _WAY[b]) for a, z, b in zip(reads, _Z, writes, strict=True)
    ]
    copy(head, ways)


def gates() -> tuple[Network, dict[str, Node]]:
    """LD = 2 AND(a, b) + 3 OR(c, d), for features that are 0 or 1 at tokens 1 to 4; token 5 has x
    of another one, which nobody reads.

    Uniform heads take the features to the last of 8 tokens, where MLP 0 makes of them
    AND = relu(a + b - 1) and OR = relu(c + d) - relu(c + d - 1).
    """
    words = ["bos", "yes", "no", "filler", *(f"{f}{n}" for f in "abcdx" for n in range(4))]
    names = [*"ABCDX", "A2", "B2", "C2", "D2", "AND", "OR", "BOS"]
    way = dict(zip(names, rows(16)[:12], strict=True))
    module = empty_model(len(words), n_layers=1, d_model=16, n_heads=2, d_head=8, d_mlp=3)
    module.W_E.data[:4] = way["BOS"]
    for number, word in enumerate(words[4:], start=4):
        module.W_E.data[number] = int(word[1]) * way[word[0].upper()]
    ways = [(8 * way[f], rows(16)[3 + i], way[f"{f}2"]) for i, f in enumerate("ABCD")]
    copy(module.blocks[0].attn, ways)
    both, either = way["A2"] + way["B2"], way["C2"] + way["D2"]
    neurons = [(both, -1, way["AND"]), (either, 0, way["OR"]), (either, -1, -way["OR"])]
    mlp(module.blocks[0], neurons)
    module.W_U.data[:, 1], module.W_U.data[:, 2] = 2 * way["AND"], -3 * way["OR"]
    known = {"resid_pre.0": list("ABCDX"), "mlp_out.0": ["AND", "OR"]}
    made = network(module, words, way, known)
    nodes = {f: made.node("resid_pre.0", f.upper(), 1 + i) for i, f in enumerate("abcd")}
    return made, nodes | {f: made.node("mlp_out.0", f, END) for f in ("AND", "OR")}
