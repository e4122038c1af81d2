"""Figures of attributions: their numbers against sums made by hand, their scales and labels."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from circuits.attribute import Attribution, attribute
from circuits.models.hooked import HookedModel
from circuits.plots import PlotError
from circuits.prompts import PromptPairs
from circuits.report import page
from circuits.sites import Site
from tests.pairs import token_pairs
from tests.unit.test_attribute import HOOKS, model, sae_set

__all__ = ["model"]  # a fixture
FIRST, LENGTH = 3, 10
GATE = "THESE SAEs ERASE THE TASK: without their errors they keep 3.0% of the contrast."


def named_pairs() -> PromptPairs:
    """Four pairs that line up: positions 3 and 5 differ."""
    pairs = token_pairs(4)
    marks = tuple({"before": 1, "changed": 5, "END": LENGTH - 1} for _ in range(4))
    return replace(pairs, positions=marks, templates=("one",) * 4)


@pytest.fixture(scope="module")
def found(model: HookedModel) -> Attribution:
    # layer_norm: with offset nodes.
    saes = sae_set("topk", HOOKS, model, normalize_activations="layer_norm")
    return attribute(model, named_pairs(), saes=saes, audit_nodes=8, force=True, progress=False)


def with_record(result: Attribution, **more: Any) -> Attribution:
    return Attribution(result.scores, result.prompts, {**result.record, **more})


def title_of(figure: Any) -> str:
    """The words of a title: where its lines break is not tested."""
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", figure.layout.title.text))


def heatmaps(figure: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in figure.data if trace.type == "heatmap"}


def by_hand(result: Attribution, role: str, site: str, pairs: int = 4) -> list[float]:
    """Mean over pairs of the summed effects, position by position."""
    scores: Any = result.scores
    return [
        sum(
            row["effect"]
            for row in scores.to_dict("records")
            if (row["role"], row["site"], row["position"]) == (role, site, position)
        )
        / pairs
        for position in range(FIRST, LENGTH)
    ]


def test_cells_are_mean_sums_of_effects(found: Attribution) -> None:
    maps = heatmaps(found.heatmap(value="effect"))
    assert list(maps) == ["latents, added up", "errors", "offsets"]
    rows = ["resid_post.0", "z.1", "mlp_out.2"]
    for name, role in zip(maps, ("latent", "error", "offset"), strict=True):
        wanted = np.array([by_hand(found, role, site) for site in rows])
        assert np.abs(wanted).max() > 0
        assert np.allclose(np.array(maps[name].z), wanted, rtol=1e-9, atol=1e-12)
    gap = float(np.mean(found.record["metric_clean"]) - np.mean(found.record["metric_corrupted"]))
    share = heatmaps(found.heatmap(value="share"))
    assert np.allclose(np.array(share["errors"].z) * gap, np.array(maps["errors"].z))
    with pytest.raises(PlotError, match="expected share or effect"):
        found.heatmap(value="recovery")


def test_sums_at_the_side_are_those_of_the_rows(found: Attribution) -> None:
    figure = found.heatmap(value="effect")
    shown = {t.name: list(t.text) for t in figure.data if t.type == "scatter"}
    total = sum(by_hand(found, "error", "z.1"))
    assert float(shown["errors: sums"][1]) == pytest.approx(total, abs=0.0051)


def test_without_offsets_there_are_two_panels(model: HookedModel) -> None:
    saes = sae_set("topk", HOOKS[:1], model)
    result = attribute(model, named_pairs(), saes=saes, audit_pairs=0, force=True, progress=False)
    assert list(heatmaps(result.heatmap())) == ["latents, added up", "errors"]


def test_removed_errors_have_no_panel_and_are_named(found: Attribution) -> None:
    scores: Any = found.scores
    record = {**found.record, "errors": "removed"}
    result = Attribution(scores[scores["role"] == "latent"], found.prompts, record)
    figure = result.heatmap()
    assert list(heatmaps(figure)) == ["latents, added up"]
    assert "(denoising, SAEs' errors removed)" in title_of(figure)
    assert "errors removed" in title_of(result.audit_figure())
    kept = Attribution(result.scores, found.prompts, found.record)
    assert list(heatmaps(kept.heatmap())) == ["latents, added up", "errors"]  # of 0
    assert "errors removed" not in title_of(kept.heatmap())


def test_one_scale_with_zero_in_its_middle(found: Attribution) -> None:
    figure = found.heatmap()
    scale = figure.layout.coloraxis
    every = np.concatenate([np.ravel(t.z) for t in heatmaps(figure).values()])
    assert scale.cmid == 0 and scale.cmin == -scale.cmax == -np.abs(every).max()
    assert {t.coloraxis for t in heatmaps(figure).values()} == {"coloraxis"}
    colours = [colour for _, colour in scale.colorscale]
    assert colours[0] == "rgb(103,0,31)" and colours[-1] == "rgb(5,48,97)"  # red, blue
    title = title_of(figure)
    assert "positive (blue) = toward clean." in title and "attribution patching" in title
    assert "(denoising)" in title and "mean of 4 pairs" in title
    noising = with_record(found, direction="noising", attribution="ig", steps=7).heatmap()
    assert "toward clean, lost by the patch" in title_of(noising)
    assert "integrated gradients, 7 steps (noising)" in title_of(noising)


def test_axes_are_tokens_from_the_first_difference_and_sites(found: Attribution) -> None:
    figure = found.heatmap()
    labels = list(figure.layout.xaxis.ticktext)
    assert len(labels) == LENGTH - FIRST
    assert "The first 3 tokens are the same in both prompts" in title_of(figure)
    clean, corrupted = (
        [strings[p] for strings in side]
        for p, side in ((5, found.prompts.clean_strings), (5, found.prompts.corrupted_strings))
    )
    first_clean, first_corrupted = (f"&lt;{side[0][1:-1]}&gt;" for side in (clean, corrupted))
    label = labels[5 - FIRST]
    assert first_clean in label and first_corrupted in label and "<i>changed</i>" in label
    assert label.index(first_clean) < label.index(first_corrupted)
    assert "<i>END</i>" in labels[-1] and "<i>" not in labels[1]
    assert list(figure.layout.yaxis.ticktext) == ["resid_post.0", "z.1", "mlp_out.2"]
    assert "do not add up" not in title_of(figure)
    two = with_record(found, sites=[*found.record["sites"], "resid_post.1"]).heatmap()
    assert "holds the whole stream: do not add up" in title_of(two)


def test_too_many_labels_are_thinned_but_not_the_named_ones(model: HookedModel) -> None:
    pairs = token_pairs(2, length=60, first=2)
    pairs = replace(pairs, positions=({"here": 8, "END": 59},) * 2)
    saes = sae_set("topk", HOOKS[:1], model)
    result = attribute(model, pairs, saes=saes, audit_pairs=0, force=True, progress=False)
    figure = result.top_latents("END", top=3)
    labels = list(figure.layout.xaxis.ticktext)
    shown = [i for i, label in enumerate(labels) if label]
    assert len(labels) == 58 and min(np.diff(shown)) == 2 and len(shown) >= 28
    assert "<i>here</i>" in labels[6] and "<i>END</i>" in labels[-1]
    assert list(figure.layout.xaxis.tickvals) == list(range(58))
    # Two panels of so many tokens do not fit side by side.
    heat = result.heatmap()
    assert heat.layout.xaxis.domain == heat.layout.xaxis2.domain
    assert heat.layout.yaxis.domain[0] > heat.layout.yaxis2.domain[1]


def test_sites_stand_in_the_models_order(found: Attribution) -> None:
    sites = ["resid_post.1", "z.1", "mlp_out.1", "attn_out.1", "resid_post.0"]
    result = with_record(found, sites=sites)
    scores = found.scores[found.scores["site"] == "resid_post.0"]
    result = Attribution(scores, result.prompts, result.record)  # pyright: ignore
    shown = list(result.heatmap().layout.yaxis.ticktext)
    assert shown == ["resid_post.0", "z.1", "attn_out.1", "mlp_out.1", "resid_post.1"]


def test_only_the_pairs_of_an_alignment_are_averaged(model: HookedModel) -> None:
    prompts = replace(named_pairs(), templates=("one", "one", "one", "two"))
    saes = sae_set("topk", HOOKS, model)
    result = attribute(model, prompts, saes=saes, audit_pairs=0, force=True, progress=False)
    _, other = prompts.alignments()
    scores: Any = result.scores
    part = Attribution(scores[scores["pair"] == 3], prompts, result.record)
    figure = result.heatmap(other, value="effect")
    grid = np.array(heatmaps(figure)["errors"].z)
    assert np.allclose(grid[1], by_hand(part, "error", "z.1", pairs=1))
    assert "mean of 1 pair, template two" in title_of(figure)
    assert "Where the effects sit, group 2 of 2" in result.html()


def test_components_have_a_panel_a_kind(model: HookedModel) -> None:
    sites = [Site(1, "z"), Site(2, "z"), Site(2, "mlp_out")]
    result = attribute(model, named_pairs(), sites=sites, audit_pairs=0, force=True, progress=False)
    figure = result.heatmap(value="effect")
    maps = heatmaps(figure)
    assert list(maps) == ["z (heads, added up)", "mlp_out"]
    assert list(figure.layout.yaxis.ticktext) == ["layer 1", "layer 2"]
    grid = np.array(maps["z (heads, added up)"].z, dtype=float)
    assert np.allclose(grid, [by_hand(result, "head", site) for site in ("z.1", "z.2")])
    other = np.array(maps["mlp_out"].z, dtype=float)
    assert np.isnan(other[0]).all()  # not looked at, which is not 0
    assert np.allclose(other[1], by_hand(result, "component", "mlp_out.2"))
    with pytest.raises(PlotError, match="no latent has an effect at 'END'"):
        result.top_latents("END")
    assert "The strongest latents" not in result.html()


def test_the_gate_is_loud_in_every_figure(found: Attribution) -> None:
    loud = with_record(found, saes_keep={"kept": 0.03, "gate": GATE}, forced=False)
    quiet = with_record(found, saes_keep={"kept": 0.9, "gate": None}, forced=False)
    forced = with_record(found, saes_keep={"kept": 0.9, "gate": None}, forced=True)
    for make in (
        lambda r: r.heatmap(),
        lambda r: r.top_latents("END"),
        lambda r: r.audit_figure(),
    ):
        title = make(loud).layout.title.text
        assert "#cb181d" in title and "THESE SAEs ERASE THE TASK" in title
        assert "#cb181d" not in make(quiet).layout.title.text
        assert "FORCED: the model cannot do" in make(forced).layout.title.text


def test_top_latents_are_those_of_the_ranking(found: Attribution) -> None:
    scores: Any = found.scores
    here = scores[(scores["role"] == "latent") & (scores["position"] == 5)]
    means = here.groupby(["site", "latent"], observed=True)["effect"].sum() / 4
    wanted = means.loc[means.abs().sort_values(ascending=False).index[:4]]
    figure = found.top_latents("changed", top=4, describe=lambda s, n: f"<{s}|{n}> " + "x" * 60)
    [bars] = [t for t in figure.data if t.type == "bar"]
    gap = found.gap.mean()
    value = "share" if "share" in figure.layout.xaxis2.title.text else "effect"
    assert np.allclose(bars.x, wanted / (gap if value == "share" else 1))
    shown = [label.split("<br>")[0] for label in figure.layout.yaxis.ticktext]
    assert shown == [f"{site} #{latent}" for site, latent in wanted.index]
    assert bars.marker.color[0] == ("#2171b5" if bars.x[0] > 0 else "#cb181d")
    second = figure.layout.yaxis.ticktext[0]
    assert "&lt;" in second and "\u2026" in second and "x" * 45 not in second  # escaped, cut
    # Axes point down: the strongest is on top.
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]
    assert figure.layout.yaxis2.range == figure.layout.yaxis.range


@pytest.mark.parametrize("side", ["clean", "corrupted"])
def test_top_latents_show_mean_coefficients(found: Attribution, side: str) -> None:
    figure = found.top_latents("changed", top=6)
    heat = heatmaps(figure)[side]
    scores: Any = found.scores
    latents = [label.split("<br>")[0].split(" #") for label in figure.layout.yaxis.ticktext]
    means: dict[str, np.ndarray] = {}
    for name in ("clean", "corrupted"):
        means[name] = np.zeros((6, LENGTH - FIRST))
        for i, (site, latent) in enumerate(latents):
            rows = scores[(scores["site"] == site) & (scores["latent"] == int(latent))]
            rows = rows[rows["role"] == "latent"]
            for position, part in rows.groupby("position"):
                means[name][i, position - FIRST] = part[name].sum() / 4
    assert means[side].max() > 0
    assert np.allclose(np.array(heat.customdata), means[side])
    largest = np.maximum(means["clean"].max(1), means["corrupted"].max(1))
    assert np.allclose(np.array(heat.z), means[side] / largest[:, None])
    assert figure.layout.coloraxis.cmin == 0 and figure.layout.coloraxis.cmax == 1
    # Clean stands above corrupted, with its own tokens below it.
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis3.domain[1]
    axis = figure.layout.xaxis if side == "clean" else figure.layout.xaxis3
    strings = getattr(found.prompts, f"{side}_strings")
    assert f"&lt;{strings[0][5][1:-1]}&gt;" in axis.ticktext[5 - FIRST]
    assert f"<b>{side}</b>" in axis.title.text
    # The named position is outlined in both.
    marks = [(s.x0, s.x1) for s in figure.layout.shapes]
    assert marks == [(5 - FIRST - 0.5, 5 - FIRST + 0.5)] * 2


def test_names_without_latents_are_refused(found: Attribution) -> None:
    with pytest.raises(PlotError, match="no position is named 'd7': there are END, before"):
        found.top_latents("d7")
    with pytest.raises(PlotError, match="no latent has an effect at 'before'"):
        found.top_latents("before")


def test_the_audit_shows_every_node_against_its_exact_effect(found: Attribution) -> None:
    figure = found.audit_figure()
    audit = found.record["audit"]
    points = [t for t in figure.data if t.mode == "markers" and t.xaxis == "x"]
    shown = sorted((x, y) for t in points for x, y in zip(t.x, t.y, strict=True))
    assert shown == sorted((n["own"], n["estimate"]) for n in audit["nodes"])
    for trace in points:
        role, group = trace.name.split(", ")
        symbol = "circle" if group == "strongest" else "x"
        assert trace.marker.symbol == symbol
        number = sum(
            (n["role"], n["group"] == "top") == (role, group == "strongest") for n in audit["nodes"]
        )
        assert len(trace.x) == number
    latent = next(n for n in audit["nodes"] if n["role"] == "latent")
    texts = [text for t in points for text in t.text]
    assert any(
        text.startswith(f"{latent['site']} latent {latent['latent']} at {latent['position']}")
        for text in texts
    )
    [line] = [t for t in figure.data if t.mode == "lines" and t.xaxis == "x"]
    assert list(line.x) == list(line.y) and line.x[1] >= max(abs(x) for x, _ in shown)
    title = title_of(figure)
    assert f"Spearman {audit['spearman']:.3f}, Pearson {audit['pearson']:.3f}" in title
    assert f"same sign {audit['sign_agreement']:.0%}" in title
    assert f"Completeness residual {audit['completeness_residual']:.1%}" in title
    assert f"mean of {audit['pairs']} pairs" in title
    assert len({t.xaxis for t in figure.data}) == 2


def test_integrated_gradients_are_shown_against_single_nodes_too(model: HookedModel) -> None:
    saes = sae_set("jumprelu", HOOKS[:1], model)
    result = attribute(
        model, named_pairs(), saes=saes, method="ig", audit_nodes=8, force=True, progress=False
    )
    audit = result.record["audit"]
    figure = result.audit_figure()
    for axis, exact in (("x", "own"), ("x3", "single")):
        points = [t for t in figure.data if t.mode == "markers" and t.xaxis == axis]
        shown = sorted(x for t in points for x in t.x)
        assert shown == sorted(n[exact] for n in audit["nodes"])
    title = title_of(figure)
    assert f"Spearman {audit['spearman_single']:.3f}" in title
    assert "share of the joint change" in figure.layout.xaxis.title.text
    assert "node patched by itself" in figure.layout.xaxis3.title.text


def test_no_audit_no_figure(found: Attribution) -> None:
    record = {k: v for k, v in found.record.items() if k != "audit"}
    bare = Attribution(found.scores, found.prompts, record)
    with pytest.raises(PlotError, match="has no audit"):
        bare.audit_figure()
    assert "How far to trust it" not in bare.html()
    undefined = copy.deepcopy(found.record["audit"])
    undefined["spearman"] = None  # NaN, read back
    title = title_of(with_record(found, audit=undefined).audit_figure())
    assert "Spearman undefined" in title


def test_a_saved_run_has_one_page_and_loads_to_the_same_figures(
    found: Attribution, tmp_path: Path
) -> None:
    folder = found.save(tmp_path / "run", lambda site, latent: f"about {site} {latent}")
    text = (folder / "attribution.html").read_text(encoding="utf-8")
    script = get_plotlyjs()
    assert text.count(script[1000:3000]) == 1 and script in text
    assert text.count('class="plotly-graph-div"') == 4  # heatmap, two named positions, audit
    assert "no latent has an effect at &#x27;before&#x27;" in text
    assert "about resid_post.0" in text or "about z.1" in text or "about mlp_out.2" in text
    rest = text.replace(script, "")
    assert "<script src" not in rest and "<link" not in rest
    again = Attribution.load(folder)
    assert again.heatmap() == found.heatmap()
    assert again.top_latents("changed") == found.top_latents("changed")
    assert again.audit_figure() == found.audit_figure()


def test_pages_escape_titles_and_hold_the_script_once() -> None:
    figure = go.Figure(go.Scatter(x=[1], y=["</script><b>"]))
    text = page("<a & b>", [("x < y", "<em>kept</em>"), ("", figure), ("again", figure)])
    script = get_plotlyjs()
    assert text.count(script[1000:3000]) == 1
    assert "<title>&lt;a &amp; b&gt;</title>" in text and "<h2>x &lt; y</h2>" in text
    assert "<em>kept</em>" in text and text.count("<h2>") == 2
    assert 'id="figure-1"' in text and 'id="figure-2"' in text
    assert "</script><b>" not in text.replace(script, "")
    assert "sendDataToCloud" in script and '"showSendToCloud": false' in text
    assert get_plotlyjs()[1000:3000] not in page("words", [("", "<p>none</p>")])
