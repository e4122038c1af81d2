"""Direct effects against their definition: everything later held, and other computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits.direct import DirectEffects, DirectError, direct
from circuits.direct.result import DirectResultError
from circuits.models.hooked import HookedModel
from circuits.models.norms import read_norm
from circuits.models.patches import Patches
from circuits.models.unembed import final_norm
from circuits.runs import RunError
from circuits.sites import Site
from tests import tiny
from tests.pairs import LENGTH, token_pairs
from tests.unit.test_attribute import sae_set

KINDS = [*tiny.ARCHITECTURES, "hooked_transformer"]
HOOKS = ("blocks.1.hook_resid_post", "blocks.2.attn.hook_z", "blocks.2.hook_mlp_out")
SITES = tuple(map(Site.parse, HOOKS))


def tiny_model(kind: str) -> HookedModel:
    if kind == "hooked_transformer":
        return tiny.hooked_transformer()
    return tiny.bridge(kind, torch.float64)


def effects(model: HookedModel, **more: Any) -> DirectEffects:
    return direct(model, token_pairs(3), force=True, progress=False, **more)


def uncapped(kind: str, logits: torch.Tensor) -> torch.Tensor:
    """By the cap of Gemma-2's own configuration."""
    return 30 * torch.atanh(logits.double() / 30) if kind == "gemma2" else logits.double()


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_add_up_to_the_logit_difference(kind: str) -> None:
    model = tiny_model(kind)
    pairs = token_pairs(3)
    found = effects(model, saes=sae_set("topk", HOOKS, model), totals=False)
    answer, foil = torch.tensor(pairs.answer_tokens), torch.tensor(pairs.foil_tokens)
    rows = torch.arange(3)
    wanted = []
    for tokens in (pairs.clean_tokens, pairs.corrupted_tokens):
        logits = uncapped(kind, model.run(torch.tensor(tokens)))
        wanted.append(float((logits[rows, answer] - logits[rows, foil]).mean()))
    for site in (None, SITES[0]):
        parts: Any = found.parts(site)
        for run, value in zip(("clean", "corrupted"), wanted, strict=True):
            assert parts[run].sum() == pytest.approx(value, abs=2e-6)
        assert parts["gap"].sum() == pytest.approx(found.gap.mean(), abs=2e-6)
    # The nodes of other sites add up to the component they are parts of.
    table: Any = found.scores
    by_site = table.groupby(["site", "role"])[["clean", "corrupted", "frozen"]].sum()
    mlp = by_site.loc[str(SITES[2])]
    assert np.allclose(mlp.drop("component").sum(), mlp.loc["component"], atol=1e-6)
    heads = by_site.loc[str(SITES[1])]
    assert np.allclose(heads.drop("head").sum(), heads.loc["head"], atol=1e-6)
    both = heads.loc["head"] + by_site.loc[("attn_out.2", "bias")]
    whole = by_site.loc[("attn_out.2", "component")]
    # Behind Gemma-2's attention is a norm, whose scale changes between the runs.
    numbers = ["clean", "corrupted"] if kind == "gemma2" else list(both.index)
    assert np.allclose(both[numbers], whole[numbers], atol=1e-6)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_direct_effect_is_the_patch_with_all_that_follows_held(
    kind: str, direction: str
) -> None:
    """Its definition: put the node in, overwrite every later attention and MLP output with the base
    run's; and the total effect is the same patch with nothing held."""
    model = tiny_model(kind)
    pairs = token_pairs(3)
    found = effects(model, saes=sae_set("jumprelu", HOOKS, model), direction=direction)
    base = pairs.corrupted_tokens if direction == "denoising" else pairs.clean_tokens
    sign = 1 if direction == "denoising" else -1
    kinds: tuple[Any, ...] = ("attn_out", "mlp_out")
    every = [Site(i, k) for i in range(model.n_layers) for k in kinds]
    table: Any = found.scores
    seen = set()
    for role, part in table.groupby("role"):
        if role in ("bias", "offset"):
            continue  # the same in both runs
        row = part.loc[part["total"].abs().idxmax()]
        seen.add(role)
        site, pair = Site.parse(row["site"]), int(row["pair"])
        tokens = torch.tensor([base[pair]])
        _, held = model.cache(tokens, every, first=LENGTH - 1)
        node = Patches(
            site,
            torch.tensor([0]),
            torch.tensor([LENGTH - 1]),
            sign * change(model, found, row),
            add=True,
        )
        after = [
            Patches(s, torch.tensor([0]), torch.tensor([LENGTH - 1]), held[s][:, 0])
            for s in every
            if follows(s, site)
        ]
        answer, foil = pairs.answer_tokens[pair], pairs.foil_tokens[pair]
        values = []
        for patches in ([], [node, *after], [node]):
            there = uncapped(kind, model.run(tokens, patches)[0])
            values.append(float(there[answer] - there[foil]))
        assert sign * (values[1] - values[0]) == pytest.approx(row["exact"], abs=3e-6)
        assert sign * (values[2] - values[0]) == pytest.approx(row["total"], abs=3e-6)
    assert {"head", "component", "latent", "error"} <= seen


def follows(later: Site, site: Site) -> bool:
    """Whether an attention or MLP output comes after a site."""
    order = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
    places = [(s.layer, order.index(s.kind)) for s in (later, site)]
    if site.kind == "z" and later == Site(site.layer, "attn_out"):
        return False
    return places[0] > places[1]


def change(model: HookedModel, found: DirectEffects, row: Any) -> torch.Tensor:
    """Clean write less corrupted write of a node, by SAELens' own functions."""
    site, pair = Site.parse(row["site"]), int(row["pair"])
    pairs = found.prompts
    runs = [
        model.cache(torch.tensor([t[pair]]), [site])[1][site][0, -1]
        for t in (pairs.clean_tokens, pairs.corrupted_tokens)
    ]
    if row["role"] in ("component", "embedding"):
        return (runs[0] - runs[1])[None]
    if row["role"] == "head":
        parts = [torch.zeros_like(x).view(model.n_heads, -1) for x in runs]
        for part, x in zip(parts, runs, strict=True):
            part[int(row["latent"])] = x.view(model.n_heads, -1)[int(row["latent"])]
        return (parts[0] - parts[1]).flatten()[None]
    sae: Any = sae_set("jumprelu", HOOKS, model)[site].module
    acts = [sae.encode(x[None]) for x in runs]
    if row["role"] == "error":
        errors = [x[None] - sae.decode(a) for x, a in zip(runs, acts, strict=True)]
        return errors[0] - errors[1]
    delta = (acts[0] - acts[1])[:, int(row["latent"])]
    return delta[:, None] * sae.W_dec[int(row["latent"])]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_contributions_are_those_of_the_hugging_face_model(kind: str) -> None:
    """An MLP output through the final norm and the unembedding of the model itself, by hand."""
    model = tiny.bridge(kind, torch.float64)
    pairs = token_pairs(3)
    found = effects(model, totals=False)
    plain = tiny.hugging_face(kind).double()
    norm, head = (
        (plain.transformer.ln_f, plain.lm_head)
        if kind == "gpt2"
        else (plain.model.norm, plain.lm_head)
    )
    _, values = model.cache(
        torch.tensor(pairs.clean_tokens), [Site(2, "mlp_out"), Site(3, "resid_post")]
    )
    x, part = values[Site(3, "resid_post")][:, -1], values[Site(2, "mlp_out")][:, -1]
    if kind == "gpt2":
        scale = (x.var(dim=-1, unbiased=False) + norm.eps).sqrt()
        part = part - part.mean(-1, keepdim=True)
    else:
        scale = (x.square().mean(-1) + norm.variance_epsilon).sqrt()
    logits = (part / scale[:, None] * norm.weight) @ head.weight.T
    rows = torch.arange(3)
    wanted = logits[rows, list(pairs.answer_tokens)] - logits[rows, list(pairs.foil_tokens)]
    table: Any = found.scores
    mine = table[table["site"] == "mlp_out.2"].sort_values("pair")["clean"]
    assert np.allclose(mine, wanted.detach(), rtol=1e-6, atol=1e-8)


def test_contributions_are_those_of_transformer_lens() -> None:
    """`ActivationCache.logit_attrs` on a model with folded norms, which is where it is right."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    from circuits.models.load import load_model

    settings: dict[str, Any] = {
        "n_layers": 3,
        "d_model": 32,
        "n_ctx": 64,
        "d_head": 8,
        "n_heads": 4,
    }
    config = HookedTransformerConfig(
        **settings,
        d_vocab=tiny.VOCAB,
        act_fn="gelu",
        normalization_type="LNPre",
        seed=0,
        initializer_range=0.2,
        device="cpu",
    )
    raw = HookedTransformer(config)
    pairs = token_pairs(3)
    _, cache = raw.run_with_cache(torch.tensor(pairs.clean_tokens))
    stack, _ = cache.decompose_resid(return_labels=True, mode="all")
    wanted = cache.logit_attrs(
        stack,
        tokens=torch.tensor(pairs.answer_tokens)[:, None].expand(-1, LENGTH),
        incorrect_tokens=torch.tensor(pairs.foil_tokens)[:, None].expand(-1, LENGTH),
    )[:, :, -1]
    found = effects(load_model(raw, name="folded"), totals=False)
    table: Any = found.scores
    parts = wanted.shape[0] - 6
    mine = [wanted[:parts].sum(0)]  # embedding and position embedding are one part here
    mine += list(wanted[parts:])
    named = ["resid_pre.0"] + [f"{k}.{i}" for i in range(3) for k in ("attn_out", "mlp_out")]
    for name, value in zip(named, mine, strict=True):
        rows = table[(table["site"] == name) & table["role"].isin(["embedding", "component"])]
        assert np.allclose(rows.sort_values("pair")["clean"], value.detach(), atol=1e-5)


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_a_norm_is_read_as_it_is(kind: str) -> None:
    model = tiny.bridge(kind)
    module = final_norm(model)
    norm = read_norm(module, model)
    # Small vectors too, at which epsilon counts.
    x = torch.randn(5, 32) * torch.tensor([1e-3, 1e-2, 1, 10, 100])[:, None] + 0.01
    wanted = module(x[None])[0]
    assert torch.allclose(norm(x.double()).float(), wanted, rtol=1e-4, atol=1e-5)


def test_a_norm_with_small_gains_is_read_as_it_is() -> None:
    model = tiny.bridge("llama")
    module: Any = final_norm(model)
    for parameter in module.parameters():
        parameter.data = torch.full_like(parameter, 0.01)
    norm = read_norm(module, model)
    assert not norm.centred
    assert torch.allclose(norm.gain, torch.full((32,), 0.01, dtype=torch.float64), rtol=1e-5)


def test_numbers_that_are_not_finite_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    from circuits.direct import effects as module

    model = tiny.bridge("gpt2")
    monkeypatch.setattr(module, "before_cap", lambda logits, cap: logits.double() * float("nan"))
    with pytest.raises(DirectError, match="not their sum"):
        effects(model, totals=False)


def test_sixteen_bit_says_by_how_much_sums_are_off() -> None:
    model = tiny.bridge("llama", torch.bfloat16)
    found = effects(model)
    assert 1e-5 < found.record["sum_error"] < 0.25


def test_rankings_sums_and_what_is_kept_on_disk(tmp_path: Path) -> None:
    model = tiny.bridge("gpt2")
    found = effects(model, saes=sae_set("topk", HOOKS, model, double=False))
    table: Any = found.scores
    first = found.ranking(5, roles=("head",)).iloc[0]
    mine = table[(table["role"] == "head") & (table["site"] == first["site"])]
    mine = mine[mine["latent"] == first["latent"]]
    assert first["exact"] == pytest.approx(mine["exact"].mean())
    assert first["mediated"] == pytest.approx(mine["total"].mean() - mine["exact"].mean())
    assert first["exact_low"] <= first["exact"] <= first["exact_high"]
    against: Any = found.ranking(None, by="total", sign=-1)
    assert (against["total"] < 0).all() and against["total"].is_monotonic_increasing
    layers = found.by_layer()
    assert len(layers) == 2 * model.n_layers
    last = layers[(layers["layer"] == 3) & (layers["kind"] == "mlp_out")].iloc[0]
    assert last["mediated"] == pytest.approx(0, abs=1e-5)  # nothing comes after it
    again = DirectEffects.load(found.save(tmp_path / "run"))
    assert again.ranking(20).equals(found.ranking(20))
    assert again.parts(SITES[0]).equals(found.parts(SITES[0]))
    assert (tmp_path / "run" / "direct.html").is_file()
    with pytest.raises(RunError, match="direct"):
        from circuits.attribute import Attribution

        Attribution.load(tmp_path / "run")


def test_without_totals_what_is_mediated_is_missing() -> None:
    found = effects(tiny.bridge("gpt2"), totals=False)
    ranking: Any = found.ranking(3)
    assert ranking[["total", "mediated"]].isna().all(axis=None)
    assert not found.has_totals


def test_bad_input_is_refused() -> None:
    model = tiny.bridge("gpt2")
    with pytest.raises(DirectError, match="unknown direction"):
        effects(model, direction="both")
    found = effects(model, totals=False)
    with pytest.raises(DirectResultError, match="unknown by"):
        found.ranking(3, by="size")
    with pytest.raises(DirectResultError, match="there are none"):
        found.parts(Site(1, "resid_post"))


def test_a_stream_that_is_not_a_sum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the model scales its stream between layers."""
    model = tiny.bridge("gpt2")
    block: Any = model.adapter.blocks[1]
    handle = block.register_forward_hook(
        lambda module, args, output: (
            (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5
        )
    )
    try:
        with pytest.raises(DirectError, match="not their sum"):
            effects(model, totals=False)
    finally:
        handle.remove()
