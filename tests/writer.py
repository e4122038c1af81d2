"""A network that writes, with weights set by hand: what a latent does to its words, directly, by
the one latent that it drives, and by the words themselves, is known.

Words: bos; s0 to s3, with so much of S; yes and no, with 1 of S, yes with 1 of Y; stop.

MLP 0    m = relu(W S), and n = relu(D), which S does not reach.
heads 1  are uniform: at every token they write the mean of M and of Y over the tokens so far, as
         MA and YA.
MLP 1    k = relu(YA), which hears of words alone, and, in a `chain`, r = relu(R M).
logits   yes A S + B M + E MA + C YA (+ G r) - 3, no 0, stop -2, all others -40.

So at a position p, with means over positions 0 to p, the log odds of yes against no are

    A S_p + B W S_p + E mean(W S) + C mean(Y) (+ G R W S_p) - 3

T is in no word; nobody reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuits.replay.prompts import Prompts
from circuits.sites import Site
from tests.planted import Network, copy, empty_model, mix, mlp, network, rows

WORDS = ("bos", "s0", "s1", "s2", "s3", "yes", "no", "stop")
YES, NO, STOP = 5, 6, 7
A, B, C, E, G, R, W = 0.5, 0.5, 1.0, 0.5, 0.25, 0.5, 2.0
SOURCE, FIRST, SECOND = (Site.parse(s) for s in ("resid_pre.0", "mlp_out.0", "mlp_out.1"))
ODDS = f"difference:#{YES}//#{NO}"
# What is in each word.
S = np.array([0, 0, 1, 2, 3, 1, 1, 0], dtype=float)
Y = np.array([0, 0, 0, 0, 0, 1, 0, 0], dtype=float)
_FEATURES = "O S T Y D M N MA YA K R".split()


@cache
def writer(chain: bool = False) -> Network:
    """The network, in float64."""
    way: dict[str, Tensor] = dict(zip(_FEATURES, rows(16), strict=False))
    size = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "d_mlp": 2, "n_ctx": 64}
    module = empty_model(len(WORDS), **size)
    words = [{"O": 1.0, "S": S[i], "Y": Y[i], "D": float(i in (3, NO))} for i in range(len(WORDS))]
    module.W_E.data[:] = torch.stack([mix(way, word) for word in words])
    mlp(module.blocks[0], [(W * way["S"], 0, way["M"]), (way["D"], 0, way["N"])])
    inside = rows(16)
    copy(
        module.blocks[1].attn,
        [(way["M"], inside[5], way["MA"]), (way["Y"], inside[9], way["YA"])],
    )
    driven = R if chain else 0.0
    mlp(module.blocks[1], [(way["YA"], 0, way["K"]), (driven * way["M"], 0, way["R"])])
    yes = {"S": A, "M": B, "MA": E, "YA": C, "O": -3.0}
    module.W_U.data[:] = (-40 * way["O"])[:, None]
    module.W_U.data[:, YES] = mix(way, yes | ({"R": G} if chain else {}))
    module.W_U.data[:, NO] = 0
    module.W_U.data[:, STOP] = -2 * way["O"]
    known = {str(SOURCE): ["S", "T", "Y", "D"], str(FIRST): ["M", "N"], str(SECOND): ["K", "R"]}
    made = network(module, WORDS, way, known, bias=way["O"])
    made.model.tokenizer = speller()
    return made


@cache
def speller() -> Any:
    """A tokenizer of the words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(WORDS)}
    raw = Tokenizer(models.WordLevel(ids, unk_token="bos"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="bos")


def prompts(count: int, seed: int = 0) -> Prompts:
    """Different prompts of two lengths, in two kinds."""
    draw = np.random.default_rng(seed)
    found: list[tuple[int, ...]] = []
    while len(found) < count:
        ids = (0, *draw.integers(1, 5, 4 + len(found) % 2).tolist())
        if ids not in found:
            found.append(ids)
    texts = tuple(" ".join(WORDS[i] for i in ids) for ids in found)
    kinds = tuple("odd" if i % 2 else "even" for i in range(count))
    return Prompts(texts, kinds, tuple(found), False)


def latent(made: Network, site: Site, feature: str) -> int:
    """The number of a feature's latent."""
    return list(made.features[site]).index(feature)


def odds(
    prompt: Sequence[int],
    response: Sequence[int],
    held: float | None = None,
    frozen: bool = False,
    chain: bool = False,
) -> dict[str, np.ndarray]:
    """By hand: the terms of the log odds of yes against no at every step of a response, with S held
    at every token but the first. frozen: M keeps the values that it has without that."""
    ids = [*prompt, *response[:-1]]
    s, plain = S[ids], S[ids]
    if held is not None:
        s = np.where(np.arange(len(ids)) > 0, held, s)
    m = W * (plain if frozen else s)
    until = np.arange(1, len(ids) + 1)
    terms = {
        "S": A * s,
        "M": B * m,
        "MA": E * m.cumsum() / until,
        "YA": C * Y[ids].cumsum() / until,
        "R": G * R * m if chain else 0 * m,
        "O": np.full(len(ids), -3.0),
    }
    return {name: term[len(prompt) - 1 :] for name, term in terms.items()}


def mean_odds(*given: object, **how: object) -> float:
    """The mean over steps of the log odds."""
    return float(sum(odds(*given, **how).values()).mean())  # pyright: ignore
