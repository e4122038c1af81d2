"""A network whose weights are set by hand, with SAEs for it: which nodes and edges make up its
circuit, and what each of them is worth, is known.

`planted` is a network of three layers in which three features at three tokens make the answer
through attention and MLPs, among features that differ too and do not matter. Features are rows of
a Hadamard matrix, weights are small whole numbers or halves, and attention is uniform over 8
tokens: at the nodes that matter no number is ever rounded. The tools that it is made with also make
the programs of compiled.py.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from circuits.graph import Node
from circuits.models.hooked import HookedModel
from circuits.models.load import load_model
from circuits.prompts import PromptPairs
from circuits.saes import SaeSet
from circuits.saes.collection import SaeSource
from circuits.sites import Site
from tests.by_hand import LD, Graph, Known

_THRESHOLD = 1 / 64  # of JumpReLU latents, smaller than any value that a feature takes


@dataclass(frozen=True)
class Network:
    """words: token ids. features: of each dictionary, in its order."""

    model: HookedModel
    saes: SaeSet
    words: Mapping[str, int]
    features: Mapping[Site, Sequence[str]]

    def node(self, site: str, feature: str, position: int | None) -> Node:
        """That of a feature: its latent, or the error if it is not in the dictionary."""
        here = Site.parse(site)
        known = self.features[here]
        if feature not in known:
            return Node(here, "error", -1, position)
        return Node(here, "latent", list(known).index(feature), position)

    def pairs(
        self,
        clean: Sequence[str],
        corrupted: Sequence[str],
        answers: Sequence[tuple[str, str]],
        marks: Mapping[str, int] = MappingProxyType({}),
        template: str = "by hand",
    ) -> PromptPairs:
        """Prompts given as words with spaces between; answers: (answer, foil) of each pair; marks:
        named positions beside END."""
        texts = [[one.split() for one in prompts] for prompts in (clean, corrupted)]
        ids = [tuple(tuple(self.words[w] for w in one) for one in prompts) for prompts in texts]
        strings = [tuple(map(tuple, prompts)) for prompts in texts]
        answer, foil = (tuple(words) for words in zip(*answers, strict=True))
        return PromptPairs(
            clean_tokens=ids[0],
            corrupted_tokens=ids[1],
            answer_tokens=tuple(self.words[w] for w in answer),
            foil_tokens=tuple(self.words[w] for w in foil),
            answers=answer,
            foils=foil,
            answer_texts=answer,
            foil_texts=foil,
            clean_strings=strings[0],
            corrupted_strings=strings[1],
            positions=tuple({**marks, "END": len(one) - 1} for one in ids[0]),
            templates=(template,) * len(ids[0]),
            prepend_bos=False,
        )


def rows(size: int) -> Tensor:
    """Orthonormal directions; the entries of 16 of them are all 1/4 or -1/4."""
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    return reduce(torch.kron, [square] * (size.bit_length() - 1)) / size**0.5


def empty_model(vocab: int, **more: Any) -> Any:
    """A `HookedTransformer` without norms whose weights are all 0: attention is uniform."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = {"n_ctx": 16, "act_fn": "relu", "normalization_type": None, "device": "cpu"}
    config |= {"d_vocab": vocab, "dtype": torch.float64, "use_attn_scale": False, "seed": 0}
    module: Any = HookedTransformer(HookedTransformerConfig(**(config | more)))
    for parameter in module.parameters():
        parameter.data.zero_()
    return module


def copy(attention: Any, ways: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Let heads write so much of (from, to) as they see of it; through these directions of z."""
    heads = attention.cfg.n_heads
    value = sum(torch.outer(start, inside) for start, inside, _ in ways)
    output = sum(torch.outer(inside, end) for _, inside, end in ways)
    attention.W_V.data[:] = rearrange(value, "d (h e) -> h d e", h=heads)
    attention.W_O.data[:] = rearrange(output, "(h e) d -> h e d", h=heads)


def mlp(block: Any, neurons: Sequence[tuple[Tensor, float, Tensor]]) -> None:
    """Neurons: relu(<what is read, stream> + bias) of what is written."""
    block.mlp.W_in.data[:] = torch.stack([reads for reads, _, _ in neurons], 1)
    block.mlp.b_in.data[:] = torch.tensor([bias for _, bias, _ in neurons])
    block.mlp.W_out.data[:] = torch.stack([writes for _, _, writes in neurons])


def network(
    module: Any,
    words: Sequence[str],
    way: Mapping[str, Tensor],
    known: Mapping[str, Sequence[str]],
    *,
    bias: Tensor | None = None,
    architecture: str = "jumprelu",
) -> Network:
    """With a dictionary at each site of these features, in any order. bias: of residual sites."""
    features: dict[Site, list[str]] = {}
    for number, (name, here) in enumerate(known.items()):
        features[Site.parse(name)] = list(here)
        np.random.default_rng(number).shuffle(features[Site.parse(name)])
    sources = {}
    for site, names in features.items():
        directions = torch.stack([way[name] for name in names])
        offset = torch.zeros_like(directions[0])
        if bias is not None and site.kind.startswith("resid"):
            offset = bias
        sources[site] = dictionary(site, directions, offset, architecture, module.cfg.dtype)
    model = load_model(module, name="by hand")
    ids = {word: number for number, word in enumerate(words)}
    return Network(model, SaeSet(sources, model.device), ids, features)


def dictionary(
    site: Site, directions: Tensor, bias: Tensor, architecture: str, dtype: torch.dtype
) -> SaeSource:
    """An SAE whose latents are these directions, encoder and decoder alike."""

    def load(device: torch.device) -> Any:
        import sae_lens

        kind = {"standard": "Standard", "jumprelu": "JumpReLU"}[architecture]
        config = getattr(sae_lens, f"{kind}SAEConfig")(d_in=len(bias), d_sae=len(directions))
        sae = getattr(sae_lens, f"{kind}SAE")(config)
        weights = {"W_enc": directions.T, "W_dec": directions, "b_dec": bias}
        weights["b_enc"] = torch.zeros(len(directions))
        weights["threshold"] = torch.full((len(directions),), _THRESHOLD)
        for name, parameter in sae.named_parameters():
            parameter.data = weights[name].to(dtype).clone()
        sae.dtype = dtype
        return sae

    size = len(directions), len(bias)
    return SaeSource(site, "by hand", architecture, *size, "by hand", False, "0", load)


# What a token of `planted` may have: u and t, p, d, and, at the end, e, c and k, so much of each.
_LEVELS = {"u": range(5), "t": range(3), "p": range(5), "d": range(4), "e": range(4)}
_LEVELS |= {"c": range(3), "k": range(2)}
_TOKENS = ("ut", "p", "d", "eck")
FEATURES = "O B U P E D T C K Q N U2 Q2 T2 H TH".split()
END = 7

# One number a node: what it is for each unit of its parents.
PLANTED = Graph(
    {
        ("u", "zu"): 2.0,
        ("p", "q"): 3.0,
        ("q", "zq"): 0.5,
        ("zu", "u2"): 3.0,
        ("zq", "q2"): 2.0,
        ("e", "e2"): 1.0,
        ("u2", "h"): 0.5,
        ("q2", "h"): 2.0,
        ("q2", LD): -3.0,
        ("e2", LD): 5.0,
        ("h", LD): 2.0,
    },
    constant=7.0,
)
# Behind the output matrix: what the heads write, not what they hold.
_WRITTEN = {("u", "zu"): 6.0, ("zu", "u2"): 1.0, ("q", "zq"): 1.0, ("zq", "q2"): 1.0}
GRAPHS = {"z": PLANTED, "attn_out": Graph({**PLANTED.weights, **_WRITTEN}, PLANTED.constant)}


def planted(
    *,
    attention: str = "z",
    stream: str = "resid_post.1",
    missing: Sequence[str] = (),
    architecture: str = "jumprelu",
    dtype: torch.dtype = torch.float64,
) -> tuple[Network, dict[str, Node]]:
    """LD = 6 u + 3 p + 5 e + 7 + 10 k, and the nodes of `PLANTED`, which says how.

    Token 1 holds u of direction U and t of T, token 2 p of P, token 3 d of D, token 7, the last, e
    of E, c of C and k of K (`prompt`); every token has 1 of O, which is the SAEs' bias.

    MLP 0    q = relu(3 P) at every token, and a copy N of D, which nobody reads.
    heads 1  are uniform: at the last token, of 8, they see an eighth of the sum over all tokens.
             zu = 2 u, zq = q / 2 and zt = t come of it (spread over all 4 heads), and are written
             as U2 = 3 zu, Q2 = 2 zq, T2 = zt.
    MLP 2    h = relu(U2 / 2 + 2 Q2), and a copy TH of T2, which nobody reads.
    logits   yes 2 H + 5 E + C + 7 O + 10 K, no 3 Q2 + C: what Q2 says directly is for "no", and C
             is for both.

    So d, t and c differ between prompts and matter to nothing, t all the way to the last MLP.

    attention: "z" or "attn_out", where the SAE of layer 1 reads. stream: "resid_mid.1",
    "resid_post.1" or "resid_pre.2", which are all the same, as MLP 1 does nothing. missing: nodes
    whose feature is not in the dictionary of their site: what matters there is the error, which
    then is the node.
    """
    words: dict[str, dict[str, float]] = {"bos": {"B": 1}, "yes": {"B": 1}, "no": {"B": 1}}
    words["filler"] = {"D": 1}
    for features in _TOKENS:
        for amounts in product(*(_LEVELS[f] for f in features)):
            name = "".join(f"{f}{n}" for f, n in zip(features, amounts, strict=True))
            words[name] = {f.upper(): n for f, n in zip(features, amounts, strict=True)}
    way: dict[str, Tensor] = dict(zip(FEATURES, rows(16), strict=True))
    inside = {"zu": rows(16)[5], "zq": rows(16)[9], "zt": rows(16)[14]}
    weight = PLANTED.weights
    size = {"n_layers": 3, "d_model": 16, "n_heads": 4, "d_head": 4, "d_mlp": 2, "dtype": dtype}
    module = empty_model(len(words), **size)
    module.W_E.data[:] = torch.stack([mix(way, word) for word in words.values()])
    module.W_pos.data[:] = way["O"]
    mlp(module.blocks[0], [(weight["p", "q"] * way["P"], 0, way["Q"]), (way["D"], 0, way["N"])])
    copy(
        module.blocks[1].attn,
        [
            (8 * weight["u", "zu"] * way["U"], inside["zu"], weight["zu", "u2"] * way["U2"]),
            (8 * weight["q", "zq"] * way["Q"], inside["zq"], weight["zq", "q2"] * way["Q2"]),
            (8 * way["T"], inside["zt"], way["T2"]),
        ],
    )
    read = mix(way, {"U2": weight["u2", "h"], "Q2": weight["q2", "h"]})
    mlp(module.blocks[2], [(read, 0, way["H"]), (way["T2"], 0, way["TH"])])
    yes = {"H": weight["h", LD], "E": weight["e2", LD], "C": 1, "O": PLANTED.constant, "K": 10}
    module.W_U.data[:, 1] = mix(way, yes)
    module.W_U.data[:, 2] = mix(way, {"Q2": -weight["q2", LD], "C": 1})

    heads, moved = f"{attention}.1", ("zu", "zq", "zt") if attention == "z" else ("U2", "Q2", "T2")
    places = {
        "u": ("resid_pre.0", "U", 1),
        "p": ("resid_pre.0", "P", 2),
        "e": ("resid_pre.0", "E", END),
        "q": ("mlp_out.0", "Q", 2),
        "zu": (heads, moved[0], END),
        "zq": (heads, moved[1], END),
        "u2": (stream, "U2", END),
        "q2": (stream, "Q2", END),
        "e2": (stream, "E", END),
        "h": ("mlp_out.2", "H", END),
    }
    known = {
        "resid_pre.0": "U P E D T C K",
        "mlp_out.0": "Q N",
        heads: " ".join(moved),
        stream: "U P E D T C K Q N U2 Q2 T2",
        "mlp_out.2": "H TH",
    }
    gone = {places[name][:2] for name in missing}
    made = network(
        module,
        list(words),
        way | inside,
        {at: [f for f in names.split() if (at, f) not in gone] for at, names in known.items()},
        bias=way["O"],
        architecture=architecture,
    )
    return made, {name: made.node(*place) for name, place in places.items()}


def prompt(**amounts: int) -> str:
    """A prompt of `planted` with so much of u, t, p, d, e, c and k; 0 of those not given."""
    words = ["".join(f"{f}{amounts.get(f, 0)}" for f in features) for features in _TOKENS]
    return " ".join(["bos", *words[:3], "filler filler filler", words[3]])


def mix(way: Mapping[str, Tensor], amounts: Mapping[str, float]) -> Tensor:
    """So much of each direction, added up."""
    return torch.stack([n * way[name] for name, n in amounts.items()]).sum(0)


Amounts = list[tuple[dict[str, int], dict[str, int]]]  # of clean and corrupted, pair by pair


def amounts(count: int, seed: int) -> Amounts:
    """At random. u and p may rise or fall; LD falls from clean to corrupted in nearly all pairs."""
    draw = random.Random(seed)
    made: Amounts = []
    for _ in range(count):
        clean = {"u": draw.randint(1, 4), "p": draw.randint(2, 4), "e": draw.randint(2, 3)}
        corrupted = {"u": draw.randint(0, 2), "p": draw.randint(1, 3), "e": draw.randint(0, 1)}
        for one in (clean, corrupted):
            one |= {"t": draw.randint(0, 2), "d": draw.randint(0, 3), "c": draw.randint(0, 2)}
        made.append((clean, corrupted))
    return made


def pairs_of(made: Network, given: Amounts) -> PromptPairs:
    """The prompts of these amounts."""
    clean, corrupted = ([prompt(**run) for run in runs] for runs in zip(*given, strict=True))
    return made.pairs(clean, corrupted, [("yes", "no")] * len(given))


def known(given: Amounts, graph: Graph = PLANTED) -> Known:
    """What follows of them."""
    clean, corrupted = (
        {name: np.array([float(one.get(name, 0)) for one in run]) for name in "upe"}
        for run in zip(*given, strict=True)
    )
    return Known(graph, clean, corrupted)
