"""Attribution: its time against the bare passes, SAELens' splice, and full forwards.

    python -m benchmarks.attribution [atp] [splice] [exact]

SAEs are random ones of SAELens' own classes in memory, TopK if not said otherwise, with 50 latents
active at a token (JumpReLU: on average); prompts are random tokens that differ from position 1 on,
so that nearly all positions have nodes. The bare passes are what no attribution can do without: one
forward of the clean prompts, one forward and one backward of the corrupted ones, parameter
gradients off, no site kept. All ratios are of medians over rounds in which both sides take turns.

What was predicted before the first measurement, from counted operations at 150 GFLOP/s (two cores),
4 pairs of 128 tokens:

atp: bare 3 x 512 tokens x 0.27 GFLOP, 2.8 s; 30 sites x 1,024 tokens x one product with an encoder
of 4,096 latents, 0.145 TFLOP, 1.0 s; the table of 1.5 million nodes and what is gathered for them,
about 0.7 s: 1.6x.
splice: both runs encode, decode, and encode and decode again for the error term, and the gradient
is carried through two more such products: ten products, taken to be ten times ours: 3.5x. That was
miscounted: ours are two (both runs encode), which with the passes gives 2x.
exact: a patch at layer l and position p needs (1 - l/30) (1 - p/128) of a forward: nodes spread
evenly over layers 4 to 28 and all positions, a quarter of it: 4x, and up to 5x because batches are
larger. On 20 tokens, where one forward is bound by reading the weights, about 15x.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import product_rate, report, seconds
from circuits import load_model, load_task
from circuits.attribute.batch import Batch, Sources
from circuits.attribute.plan import Plan
from circuits.attribute.scores import exact_effects, scores_of
from circuits.metrics import logit_difference
from circuits.models.embedded import EMBEDDED_NAME, embedded_model_folder
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.prompts import PairGroup
from circuits.saes import SaeSet, load_saes
from circuits.saes.collection import SaeSource
from circuits.sites import Site
from circuits.task import PairsTask, require

LENGTH, PAIRS, ROUNDS = 128, 4, 5
LATENTS, ACTIVE = 4096, 50
EXACT_LAYERS, NODES = (4, 10, 16, 22, 28), 100
ATP = Plan("atp", 5, 0.0, "denoising", "logit_difference", logit_difference, None, 0, 1)


def main(names: list[str]) -> None:
    """Measure the named parts (all by default), print a table, write attribution.json.

    Rows of parts that are not run are kept from the last time.
    """
    target = Path(__file__).with_suffix(".json")
    rows: list[dict[str, Any]] = []
    if names and target.is_file():
        rows = [r for r in json.loads(target.read_text())["rows"] if r["part"] not in names]
    for name in names or PARTS:
        rows += [{"part": name, **row} for row in PARTS[name]()]
    report(__file__, rows, {"product_gflops": product_rate() / 1e9})


def layers(model: HookedModel, count: int) -> list[Site]:
    """`count` sites of the residual stream, evenly from the first to the last layer."""
    chosen = torch.linspace(0, model.n_layers - 1, count).round().long().tolist()
    return [Site(layer, "resid_post") for layer in chosen]


def random_saes(
    model: HookedModel, sites: Sequence[Site], latents: int, shared: bool = False
) -> SaeSet:
    """Random TopK SAEs, made here and now. shared: one set of weights for all of them, where
    memory is measured without weights."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    generator = torch.Generator().manual_seed(0)
    first: list[Any] = []

    def source(site: Site) -> SaeSource:
        def load(device: torch.device) -> Any:
            config = TopKSAEConfig(d_in=model.d_model, d_sae=latents, k=ACTIVE)
            config.metadata = SAEMetadata(hook_name=site.hook_name, model_name=model.name)
            with torch.device("meta" if shared and first else device):
                sae = TopKSAE(config)
            if shared and first:
                for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
                    setattr(sae, name, getattr(first[0], name))
                return sae
            rows = torch.randn(latents, model.d_model, generator=generator)
            sae.W_dec.data = rows.div_(rows.norm(dim=1, keepdim=True))
            sae.W_enc.data = rows.T.contiguous()
            first.append(sae)
            return sae

        hook = site.hook_name
        return SaeSource(site, hook, "topk", latents, model.d_model, model.name, False, "0", load)

    saes = SaeSet({site: source(site) for site in sites}, model.device)
    for site in saes:
        _ = saes[site]
    return saes


def jumprelu_saes(model: HookedModel, saes: SaeSet, group: PairGroup) -> SaeSet:
    """The same dictionaries with one threshold each, over which there are 50 latents a token on
    average."""
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    _, values = model.cache(group.clean, list(saes), first=1)

    def source(site: Site) -> SaeSource:
        def load(device: torch.device) -> Any:
            topk: Any = saes[site].module
            latents = topk.cfg.d_sae
            config = JumpReLUSAEConfig(d_in=model.d_model, d_sae=latents)
            config.metadata = topk.cfg.metadata
            sae = JumpReLUSAE(config)
            sae.W_enc.data, sae.W_dec.data = topk.W_enc.data, topk.W_dec.data
            before = (values[site] @ topk.W_enc).flatten()
            count = len(before) * ACTIVE // latents
            sae.threshold.data.fill_(float(before.topk(count).values[-1]))
            return sae

        return replace(saes.sources[site], architecture="jumprelu", load=load)

    made = SaeSet({site: source(site) for site in saes}, model.device)
    for site in made:
        _ = made[site]
    return made


def random_pairs(model: HookedModel, count: int, length: int) -> PairGroup:
    """Random tokens; the two prompts of a pair share the first one and no other."""
    generator = torch.Generator().manual_seed(0)
    vocab = len(model.tokenizer)
    clean = torch.randint(vocab, (count, length), generator=generator)
    shift = torch.randint(1, vocab, (count, length), generator=generator)
    shift[:, 0] = 0
    answer = torch.randint(vocab, (count,), generator=generator)
    foil = (answer + 1) % vocab
    return PairGroup(tuple(range(count)), clean, (clean + shift) % vocab, answer, foil)


def bare(model: HookedModel, group: PairGroup) -> None:
    """Two forwards and one backward, down to the input of the first layer."""
    model.run(group.clean)
    model.gradients(
        group.corrupted, [Site(0, "resid_pre")], lambda logits: _difference(logits, group)
    )


def _difference(logits: Tensor, group: PairGroup) -> Tensor:
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, group.answer] - logits[rows, group.foil]


def in_turns(what: str, *sides: Callable[[], Any]) -> list[float]:
    """The median seconds of each side over rounds in which they take turns, after one of each."""
    for side in sides:
        side()
    taken = [
        [seconds(side) for side in sides] for _ in tqdm(range(ROUNDS), desc=what, unit="round")
    ]
    return [statistics.median(times) for times in zip(*taken, strict=True)]


def _atp() -> list[dict[str, Any]]:
    model = load_model(device="cpu")
    group = random_pairs(model, PAIRS, LENGTH)
    topk = random_saes(model, layers(model, 30), LATENTS)
    rows = []
    for name, saes in (("TopK", topk), ("JumpReLU", jumprelu_saes(model, topk, group))):
        rows += _against_bare(model, name, saes, group)
    return rows


def _against_bare(
    model: HookedModel, name: str, saes: SaeSet, group: PairGroup
) -> list[dict[str, Any]]:
    sources = Sources(tuple(saes), saes)
    table = scores_of(model, sources, group, ATP)
    ours, alone = in_turns(
        "atp", lambda: scores_of(model, sources, group, ATP), lambda: bare(model, group)
    )
    what = f"AtP, {len(saes)} {name} SAEs of {LATENTS}, {PAIRS} pairs of {LENGTH} tokens"
    return [
        {
            "what": f"{what}, against two forwards and one backward",
            "measured": ours / alone,
            "unit": "x",
            "bar": "at most 1.6",
            "predicted": 1.6,
        },
        {"what": what, "measured": ours, "unit": "s"},
        {"what": "its bare passes", "measured": alone, "unit": "s"},
        {"what": "its nodes", "measured": len(table)},
    ]


def spliced(bridge: Any, saes: list[Any], group: PairGroup) -> list[Tensor]:
    """Effects of latents and errors by SAELens' own splice, the way it is meant to be used.

    Gradients of what is below another SAE are wrong this way (its error is cut off); this is for
    the time alone. The gradient at an error is that at the SAE's output.
    """
    kinds = ("acts_post", "error", "output")
    names = {
        kind: [bridge.get_sae_hook_name(sae, f"hook_sae_{kind}") for sae in saes] for kind in kinds
    }
    wanted = {name for kind in kinds for name in names[kind]}
    with torch.no_grad():
        _, clean = bridge.run_with_cache_with_saes(
            group.clean,
            saes=saes,
            use_error_term=True,
            names_filter=lambda name: name in wanted,
            return_cache_object=False,
            logits_to_keep=1,
        )
    kept: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any) -> None:
        kept[hook.name] = x

    def begin(x: Tensor, hook: Any) -> Tensor:
        return x.detach().requires_grad_()

    hooks = [("embed.hook_out", begin), *((name, keep) for name in wanted)]
    with bridge.saes(saes, use_error_term=True), bridge.hooks(fwd_hooks=hooks):
        value = _difference(bridge(group.corrupted, logits_to_keep=1)[:, -1], group).sum()
        inner = [kept[name] for name in names["acts_post"] + names["output"]]
        gradients = torch.autograd.grad(value, inner)
    with torch.no_grad():
        latents = [
            (clean[name] - kept[name]) * gradient
            for name, gradient in zip(names["acts_post"], gradients[: len(saes)], strict=True)
        ]
        errors = [
            ((clean[name] - kept[name]) * gradient).sum(-1)
            for name, gradient in zip(names["error"], gradients[len(saes) :], strict=True)
        ]
    return latents + errors


def _splice() -> list[dict[str, Any]]:
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
    from transformers import AutoModelForCausalLM

    model = load_model(device="cpu")
    group = random_pairs(model, PAIRS, LENGTH)
    saes = random_saes(model, layers(model, 30), LATENTS)
    hf_model = AutoModelForCausalLM.from_pretrained(
        str(embedded_model_folder()), dtype=torch.float32, attn_implementation="eager"
    )
    bridge = SAETransformerBridge.boot_transformers(
        EMBEDDED_NAME, hf_model=hf_model, tokenizer=model.tokenizer, device="cpu"
    )
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    theirs = [saes[site].module for site in saes]
    sources = Sources(tuple(saes), saes)
    ours, splice = in_turns(
        "splice",
        lambda: scores_of(model, sources, group, ATP),
        lambda: spliced(bridge, theirs, group),
    )
    return [
        {
            "what": f"{type(bridge).__name__} with error terms, {len(saes)} SAEs, against ours",
            "measured": splice / ours,
            "unit": "x",
            "bar": "at least 1.5",
            "predicted": 3.5,
        },
        {"what": f"{type(bridge).__name__}", "measured": splice, "unit": "s"},
        {"what": "ours", "measured": ours, "unit": "s"},
    ]


def _exact() -> list[dict[str, Any]]:
    model = load_model(device="cpu")
    spread = random_pairs(model, 1, LENGTH)
    sites = [Site(layer, "resid_post") for layer in EXACT_LAYERS]
    pairs = require(load_task("error_type"), PairsTask, "this benchmark").pairs(model, n=1)
    [short] = pairs.groups()
    random = random_saes(model, sites, LATENTS)
    rows = _patched(model, f"{LENGTH} tokens, all positions", spread, random, 5.0)
    name = f"error_type, {short.clean.shape[1]} tokens, embedded SAEs"
    rows += _patched(model, name, short, load_saes("embedded", model), 15.0)
    return rows


def _patched(
    model: HookedModel, name: str, group: PairGroup, saes: SaeSet, predicted: float
) -> list[dict[str, Any]]:
    """Nodes evenly over the latents of each site, in the order of their positions."""
    batch = Batch(model, Sources(tuple(saes), saes), group, logit_difference, "denoising")
    shares = torch.arange(NODES).tensor_split(len(saes))
    chosen = []
    for site, share in zip(saes, shares, strict=True):
        block = batch.nodes(site)[0]
        nodes = torch.linspace(0, len(block.pair) - 1, len(share)).round().long()
        chosen.append((site, block, nodes))

    def ours() -> Tensor:
        # The run that is patched is run anew each time.
        batch.__dict__.pop("baseline", None)
        return torch.cat(exact_effects(batch, chosen, None))

    def forwards() -> Tensor:
        values = []
        for site, block, nodes in chosen:
            for node in nodes:
                there = block.position[node][None]
                vector = block.vectors(node[None])
                patch = Patches(site, torch.tensor([0]), there, vector, add=True)
                values.append(_difference(model.run(group.corrupted, [patch]), group))
        return torch.cat(values).double() - batch.base_metric

    worst = float((ours() - forwards()).abs().max())
    taken = in_turns("exact", ours, forwards)
    places = torch.cat([block.position[nodes] for _, block, nodes in chosen])
    covered = float((model.n_layers - torch.tensor([s.layer for s, *_ in chosen])).float().mean())
    return [
        {
            "what": f"exact patching of {len(places)} nodes against as many forwards, {name}",
            "measured": taken[1] / taken[0],
            "unit": "x",
            "bar": "at least 10",
            "predicted": predicted,
            "mean_position": float(places.float().mean()),
            "mean_layers_to_run": covered,
        },
        {"what": f"{name}, ours", "measured": taken[0], "unit": "s"},
        {"what": f"{name}, full forwards", "measured": taken[1], "unit": "s"},
        {"what": f"{name}, largest difference", "measured": worst, "bar": "1e-4"},
    ]


PARTS = {"atp": _atp, "splice": _splice, "exact": _exact}

if __name__ == "__main__":
    main(sys.argv[1:])
