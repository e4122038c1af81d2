"""Attribution against finite differences, exact interventions, and a network that is known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits.attribute import Attribution, attribute
from circuits.attribute.batch import Batch, Sources
from circuits.attribute.exact import patch_sites
from circuits.metrics import logit_difference
from circuits.models.hooked import HookedModel
from circuits.models.patches import Patches
from circuits.saes import SaeSet
from circuits.saes.collection import SaeSource
from circuits.sites import Site
from tests import tiny
from tests.pairs import from_tokens, token_pairs
from tests.unit.test_saes import make_sae

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "blocks.2.hook_mlp_out")
SITES = (Site(0, "resid_post"), Site(1, "z"), Site(2, "mlp_out"))


def sae_set(
    architecture: str, hooks: tuple[str, ...], model: HookedModel, double: bool = True, **more: Any
) -> SaeSet:
    """SAEs in memory; in float64 for comparisons that float32 would blur."""

    def source(number: int, hook: str) -> SaeSource:
        def load(device: torch.device) -> Any:
            made = make_sae(architecture, hook, seed=number, **more)
            if double:
                made.double().dtype = torch.float64  # to which it converts its input
            return made

        site = Site.parse(hook)
        return SaeSource(site, hook, architecture, 48, 32, "tiny", False, "0", load)

    found = [source(i, hook) for i, hook in enumerate(hooks)]
    return SaeSet({s.site: s for s in found}, model.device)


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return tiny.bridge("gpt2", torch.float64)


def batch_of(
    model: HookedModel, saes: SaeSet | None, sites: tuple[Site, ...], direction: Any = "denoising"
) -> Batch:
    [group] = token_pairs(3).groups(8)
    return Batch(model, Sources(sites, saes), group, logit_difference, direction)


ARCHITECTURES = ["standard", "gated", "topk", "jumprelu"]


NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
CASES: list[tuple[str, dict[str, Any]]] = [
    (architecture, {"normalize_activations": how})
    for architecture in ARCHITECTURES
    for how in NORMALISATIONS
]
CASES.append(("topk", {"rescale_acts_by_decoder_norm": True}))


@pytest.mark.parametrize(("architecture", "more"), CASES)
def test_nodes_add_up_to_the_change_of_the_activation(
    model: HookedModel, architecture: str, more: dict[str, Any]
) -> None:
    saes = sae_set(architecture, HOOKS, model, **more)
    batch = batch_of(model, saes, SITES)
    for site in SITES:
        clean, corrupted = batch.runs(site)
        gradient = batch.gradients[1][site]
        written, effects = torch.zeros_like(clean), torch.zeros(3, dtype=torch.float64)
        for block in batch.nodes(site):
            every = torch.arange(len(block.pair))
            where = (block.pair, block.position)
            written.index_put_(where, block.vectors(every), accumulate=True)
            effects.index_add_(0, block.pair, block.project(gradient))
        assert torch.allclose(written, clean - corrupted, atol=1e-11)
        wanted = ((clean - corrupted) * gradient).sum((1, 2))
        assert torch.allclose(effects, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["gpt2", "pythia"])
def test_gradients_at_latents_and_errors_are_finite_differences(
    kind: str, architecture: str, count: int
) -> None:
    """However many SAEs there are: each node is moved by itself, all else recomputed."""
    model = tiny.bridge(kind, torch.float64)
    hooks = (*HOOKS, "blocks.3.hook_resid_pre")[:count]
    sites = tuple(map(Site.parse, hooks))
    saes = sae_set(architecture, hooks, model)
    batch = batch_of(model, saes, sites)
    step = 1e-5
    for site in sites:
        for block in batch.nodes(site):
            effect = block.project(batch.gradients[1][site])
            chosen = effect.abs().topk(min(6, len(effect))).indices
            rows, places = torch.arange(len(chosen)), block.position[chosen]
            tokens = batch.base_tokens[block.pair[chosen]]
            moved = []
            for sign in (1, -1):
                patch = Patches(site, rows, places, sign * step * block.vectors(chosen), add=True)
                moved.append(batch.row_metric(block.pair[chosen], model.run(tokens, [patch])))
            wanted = (moved[0] - moved[1]) / (2 * step)
            assert torch.allclose(effect[chosen], wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_integrated_gradients_add_up_to_the_whole_site(model: HookedModel, direction: Any) -> None:
    saes = sae_set("topk", HOOKS, model)
    batch = batch_of(model, saes, SITES, direction)
    put_in = 0 if direction == "denoising" else 1
    whole = patch_sites(
        model, batch.baseline, {s: batch.suffixes(s)[put_in] for s in SITES}, batch.row_metric
    )
    for site in SITES:
        exact = (whole[site] - batch.base_metric) * batch.sign
        residuals = []
        for steps in (1, 2, 4, 8):
            gradient = batch.mean_gradient(site, steps, None)
            total = torch.zeros(3, dtype=torch.float64)
            for block in batch.nodes(site):
                total.index_add_(0, block.pair, block.project(gradient))
            residuals.append(float((total - exact).abs().max()))
        assert residuals[-1] < 1e-3 * float(exact.abs().max())
        assert all(later < earlier for earlier, later in pairwise(residuals))


def test_the_exact_patch_of_a_node_is_the_splice_with_that_node_changed(
    model: HookedModel,
) -> None:
    """Against TransformerLens' own hooks and SAELens' own decoder: x' = decode(f') + e."""
    saes = sae_set("jumprelu", HOOKS[:1], model)
    site = SITES[0]
    pairs = token_pairs(3)
    found = attribute(
        model, pairs, saes=saes, method="exact", audit_pairs=0, force=True, progress=False
    )
    sae: Any = saes[site].module
    table: Any = found.scores
    table = table[table["role"] == "latent"]
    table = table.loc[table["effect"].abs().sort_values(ascending=False).index[:10]]
    bridge: Any = model.module
    for row in table.to_dict("records"):
        pair, place = row["pair"], row["position"]
        tokens = [torch.tensor([t[pair]]) for t in (pairs.clean_tokens, pairs.corrupted_tokens)]
        _, cache = bridge.run_with_cache(tokens[0])
        clean = sae.encode(cache[site.hook_name])[0, place, row["latent"]]

        def splice(
            x: Any, hook: Any, row: Any = row, clean: Any = clean, place: Any = place
        ) -> Any:
            latents = sae.encode(x)
            error = x - sae.decode(latents)
            latents[0, place, row["latent"]] = clean
            changed = sae.decode(latents) + error
            x = x.clone()
            x[0, place] = changed[0, place]
            return x

        def difference(logits: Any, pair: int = pair) -> float:
            last = logits[0, -1]
            return float(last[pairs.answer_tokens[pair]] - last[pairs.foil_tokens[pair]])

        base = difference(bridge(tokens[1]))
        spliced = difference(bridge.run_with_hooks(tokens[1], fwd_hooks=[(site.hook_name, splice)]))
        assert row["effect"] == pytest.approx(spliced - base, rel=1e-6, abs=1e-9)


def linear_model() -> HookedModel:
    """One whose metric is linear in the last residual stream: no final norm."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    from circuits.models.load import load_model

    config = HookedTransformerConfig(
        n_layers=2,
        d_model=32,
        n_ctx=64,
        d_head=8,
        n_heads=4,
        d_mlp=64,
        d_vocab=tiny.VOCAB,
        act_fn="gelu",
        normalization_type=None,
        seed=0,
        initializer_range=0.2,
        device="cpu",
        dtype=torch.float64,
    )
    return load_model(HookedTransformer(config), name="linear")


def test_all_methods_agree_where_the_model_is_linear() -> None:
    model = linear_model()
    saes = sae_set("standard", ("blocks.1.hook_resid_post",), model)
    effects = [
        attribute(
            model, token_pairs(3), saes=saes, method=m, audit_pairs=0, force=True, progress=False
        ).scores["effect"]
        for m in ("atp", "ig", "exact")
    ]
    assert float(effects[0].abs().max()) > 0.1
    for other in effects[1:]:
        assert np.allclose(effects[0], other, rtol=1e-8, atol=1e-10)


def planted() -> tuple[HookedModel, SaeSet, int]:
    """A network that copies direction u of all positions to the last one, evenly, and reads it as
    the answer; and an SAE one of whose latents is u."""
    model = linear_model()
    module: Any = model.module
    state = {k: torch.zeros_like(v) for k, v in module.state_dict().items()}
    draw = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=draw, dtype=torch.float64))[0]
    u, v = basis[0], basis[1]
    # Every token has its own mix of other directions; token 7 has u as well, token 9 -u.
    embedding = torch.randn(tiny.VOCAB, 30, generator=draw, dtype=torch.float64) @ basis[2:]
    embedding[7] += u
    embedding[9] -= u
    state["embed.W_E"] = embedding
    state["blocks.1.attn.W_V"][0, :, 0] = u
    state["blocks.1.attn.W_O"][0, 0] = v
    state["unembed.W_U"][:, 3] = 5 * v
    state["unembed.W_U"][:, 4] = -5 * v
    for layer in range(2):
        for name in ("mask", "IGNORE"):
            key = f"blocks.{layer}.attn.{name}"
            if key in state:
                state[key] = module.state_dict()[key]
    module.load_state_dict(state)
    latent = 11

    def load(device: torch.device) -> Any:
        sae = make_sae("standard", "blocks.0.hook_resid_post").double()
        rows = torch.randn(48, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        rows = rows @ basis[2:]  # nothing of u or v
        rows[latent], rows[latent + 1] = u, -u
        rows /= rows.norm(dim=1, keepdim=True)
        sae.W_dec.data, sae.W_enc.data = rows, rows.T.clone()
        sae.b_enc.data.zero_()
        sae.b_dec.data.zero_()
        return sae

    site = Site(0, "resid_post")
    source = SaeSource(site, "planted", "standard", 48, 32, "linear", False, "0", load)
    return model, SaeSet({site: source}, model.device), latent


@pytest.mark.parametrize("method", ["atp", "ig", "exact"])
def test_a_planted_latent_is_ranked_first(method: str) -> None:
    model, saes, latent = planted()
    place = 2
    clean, corrupted = [[5, 8, t, 12, 30] for t in (7, 9)]
    clean[3], corrupted[3] = 40, 41  # differs too, but has nothing of u
    tokens = torch.tensor([clean]), torch.tensor([corrupted])
    pairs = from_tokens(*tokens, torch.tensor([3]), torch.tensor([4]))
    found = attribute(model, pairs, saes=saes, method=method, progress=False)
    ranking = found.ranking(5)
    first = ranking.iloc[0]
    assert (first["position"], first["role"]) == (place, "latent")
    assert set(ranking.iloc[:2]["latent"]) == {latent, latent + 1}
    # A fifth of the attention falls on it; u goes from -1 to 1, half of it by each latent.
    assert ranking.iloc[:2]["effect"].tolist() == pytest.approx([2.0, 2.0])
    assert (
        float(ranking.iloc[2:]["effect"].abs().max()) < 1e-6
    )  # TransformerLens keeps some float32
    audit = found.record["audit"]
    assert audit["completeness_residual"] < 1e-6
    assert audit["pearson"] == pytest.approx(1.0)


def test_components_are_nodes_by_the_same_code(model: HookedModel) -> None:
    """Heads add up to their site, and each head's exact effect is a patch of that head."""
    pairs = token_pairs(3)
    found = attribute(model, pairs, method="exact", force=True, audit_pairs=0, progress=False)
    assert set(found.scores["role"]) == {"component", "head"}
    table: Any = found.scores
    row = table[table["role"] == "head"].iloc[7]
    site, pair = Site.parse(row["site"]), int(row["pair"])
    clean = torch.tensor([pairs.clean_tokens[pair]])
    corrupted = torch.tensor([pairs.corrupted_tokens[pair]])
    _, values = model.cache(clean, [site])
    head = int(row["latent"])
    part = values[site].view(1, -1, 4, 8)[0, int(row["position"]), head]
    patch = Patches(
        site,
        torch.tensor([0]),
        torch.tensor([int(row["position"])]),
        part[None],
        torch.tensor([head]),
    )
    answer, foil = pairs.answer_tokens[pair], pairs.foil_tokens[pair]
    there, base = (model.run(corrupted, patches)[0] for patches in ([patch], []))
    wanted = float((there[answer] - there[foil]) - (base[answer] - base[foil]))
    assert row["effect"] == pytest.approx(wanted, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("method", ["atp", "ig"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_audit_recomputes_what_is_estimated(
    model: HookedModel, method: str, direction: str
) -> None:
    saes = sae_set("jumprelu", HOOKS, model)
    found = attribute(
        model,
        token_pairs(4),
        saes=saes,
        method=method,
        direction=direction,
        audit_pairs=3,
        audit_nodes=15,
        force=True,
        progress=False,
    )
    audit = found.record["audit"]
    assert len(audit["nodes"]) == 30
    assert audit["spearman"] > 0.8 and audit["pearson"] > 0.8
    assert audit["completeness_residual"] < (0.01 if method == "ig" else 2.0)
    if method == "atp":
        assert audit["spearman"] == audit["spearman_single"]
    exact = attribute(
        model,
        token_pairs(4),
        saes=saes,
        method="exact",
        direction=direction,
        audit_pairs=0,
        force=True,
        progress=False,
    )
    keys = ["site", "role", "position", "latent"]
    table: Any = exact.scores[exact.scores["pair"] < 3]
    means = table.groupby(keys, observed=True)["effect"].sum() / 3
    for node in audit["nodes"]:
        assert node["single"] == pytest.approx(means[tuple(node[k] for k in keys)], abs=1e-9)


def test_sums_rankings_and_what_is_kept_on_disk(model: HookedModel, tmp_path: Path) -> None:
    saes = sae_set("topk", HOOKS, model)
    found = attribute(model, token_pairs(4), saes=saes, force=True, progress=False)
    scores: Any = found.scores
    ranking = found.ranking(None)
    assert ranking["effect"].abs().is_monotonic_decreasing
    total = found.totals("site")
    for site, part in ranking.groupby("site", observed=True):
        wanted = total.set_index("site").loc[site, "effect"]
        assert part["effect"].sum() == pytest.approx(wanted)
    one = ranking.iloc[0]
    mine = scores[
        (scores["site"] == one["site"])
        & (scores["role"] == one["role"])
        & (scores["latent"] == one["latent"])
        & (scores["position"] == one["position"])
    ]
    assert one["effect"] == pytest.approx(mine["effect"].sum() / 4)
    assert one["effect_low"] <= one["effect"] <= one["effect_high"]
    assert one["share"] == pytest.approx(one["effect"] / found.gap.mean())
    by_sum = found.ranking(3, by="sum", sign=-1)
    assert (by_sum["effect"] < 0).all()
    named = found.ranking(5, by="named")
    assert set(named["position"]) <= {name for p in found.prompts.positions for name in p}
    original = found.original(lambda site, latent: f"{site}/{latent}")
    first = original["END"][0]
    assert list(first) == ["layer", "feature_idx", "value", "description"]
    shares = found.error_share()
    assert shares["error_share"].between(0, 1).all()
    again = Attribution.load(found.save(tmp_path / "run"))
    assert again.ranking(20).equals(found.ranking(20))
    assert again.record["audit"]["spearman"] == found.record["audit"]["spearman"]
    assert (tmp_path / "run" / "top_25_latents.json").is_file()
