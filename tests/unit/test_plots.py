"""Figures: what stands on their axes and scales."""

from __future__ import annotations

import numpy as np
import pytest

from circuits.patch import PatchResult, patch
from circuits.plots import PlotError, token_labels, visible
from circuits.prompts import Mark, Pair, PromptPairs
from tests import tiny


@pytest.fixture(scope="module")
def result() -> PatchResult:
    model = tiny.bridge("llama")
    marks = {"animal": Mark(4, 4)}
    pairs = [
        Pair("the cat sat on the", "the dog sat on the", " mat", " log", marks),
        Pair("the cat ran on the", "the dog ran on the", " mat", " log", marks),
    ]
    prompts = PromptPairs.from_texts(pairs, model.tokenizer)
    return patch(model, prompts, force=True, progress=False)


def test_axes_carry_the_tokens_and_the_scale_has_zero_in_the_middle(result: PatchResult) -> None:
    figure = result.heatmap()
    heat = figure.data[0]
    assert heat.zmid == 0 and heat.zmin == -heat.zmax <= -1
    labels = figure.layout.xaxis.ticktext
    assert labels[0] == "the" and labels[1] == "<b>cat</b><br><b>dog</b><br><i>animal</i>"
    assert labels[2] == "sat|ran" and labels[4].endswith("<i>END</i>")
    title = figure.layout.title.text
    assert "positive (blue) = toward clean" in title and "mean of 2 pairs" in title
    assert "clean resid_pre put into the corrupted run" in title
    assert list(figure.layout.yaxis.ticktext) == ["0", "1", "2", "3"]
    assert figure.layout.width <= 1000


def test_cells_of_the_picture_are_those_of_the_summary(result: PatchResult) -> None:
    grid = np.array(result.heatmap().data[0].z)
    table = result.summary()
    assert np.array_equal(grid.ravel(), table["share"].to_numpy())
    effects = np.array(result.heatmap(value="effect").data[0].z)
    assert np.array_equal(effects.ravel(), table["effect"].to_numpy())
    with pytest.raises(PlotError, match="expected share or effect"):
        result.heatmap(value="recovery")


def test_the_tables_say_where_it_sits(result: PatchResult) -> None:
    table = result.summary()
    whole = table[(table["layer"] == 0) & (table["position"] == 1)]
    assert abs(float(whole["share"].iloc[0]) - 1) < 1e-5  # the only token that differs
    found = result.where()
    assert set(found["position"]) <= {1, 2, 3, 4} and (found["peak"].abs() >= 0.2).all()
    assert found["peak"].abs().is_monotonic_decreasing
    peak = found.loc[found["position"] == 4].iloc[0]
    best = table.loc[table[table["position"] == 4]["share"].abs().idxmax()]
    assert peak["peak_layer"] == best["layer"] and peak["peak"] == best["share"]
    moves = result.moves()
    assert len(moves) >= 1 and moves.iloc[0]["from_position"] == 1
    html = result._repr_html_()
    assert (
        "denoising resid_pre, logit_difference, 2 pairs, answer 'mat', foil 'log'" in html
        and "<table" in html
    )


def test_noising_shows_what_is_lost() -> None:
    model = tiny.bridge("llama")
    pairs = [Pair("the cat sat on the", "the dog sat on the", " mat", " log")]
    prompts = PromptPairs.from_texts(pairs, model.tokenizer)
    result = patch(model, prompts, direction="noising", force=True, progress=False)
    table = result.summary()
    first = table[(table["layer"] == 0) & (table["position"] == 1)].iloc[0]
    # Everything is lost: recovery 0, share of the gap 1, effect the whole difference.
    assert abs(first["recovery"]) < 1e-5 and abs(first["share"] - 1) < 1e-5
    gap = result.record["metric_clean"][0] - result.record["metric_corrupted"][0]
    assert abs(first["effect"] - gap) < 1e-5
    untouched = table[table["position"] == 0]
    assert (untouched["share"] == 0).all() and (untouched["recovery"] == 1).all()
    assert "corrupted resid_pre put into the clean run" in result.heatmap().layout.title.text


def test_negative_effects_are_listed_and_other_metrics_named() -> None:
    model = tiny.bridge("llama")
    pairs = [Pair("the cat sat on the", "the dog sat on the", " mat", " log")]
    prompts = PromptPairs.from_texts(pairs, model.tokenizer)
    result = patch(model, prompts, metric="kl", force=True, progress=False)
    assert result.value == "effect" and "minus_kl_to_clean" in result.headline()
    table, found = result.summary(), result.where()
    assert found["peak"].abs().max() == table["effect"].abs().max()
    assert result.moves().empty
    components = patch(model, prompts, site="attn_out", force=True, progress=False)
    assert (components.where(threshold=1e-6)["peak"] < 0).any() and components.moves().empty


def test_pairs_that_differ_elsewhere_do_not_line_up() -> None:
    model = tiny.bridge("llama")
    pairs = [
        Pair("the cat sat on the", "the dog sat on the", " mat", " log"),
        Pair("the cat sat on the", "the cat ran on the", " mat", " log"),
        Pair("the red sat on the", "the blue sat on the", " mat", " log"),
    ]
    prompts = PromptPairs.from_texts(pairs, model.tokenizer)
    result = patch(model, prompts, layers=[0], force=True, progress=False)
    assert [a.pairs for a in result.alignments()] == [(0, 2), (1,)]


def test_a_long_shared_beginning_is_not_drawn() -> None:
    model = tiny.bridge("llama")
    start = " ".join(["the"] * 50)
    pairs = [Pair(f"{start} cat sat on", f"{start} dog sat on", " mat", " log")]
    prompts = PromptPairs.from_texts(pairs, model.tokenizer)
    figure = patch(model, prompts, layers=[0], force=True, progress=False).heatmap()
    assert len(figure.layout.xaxis.ticktext) == 3
    assert "the first 50 tokens are shared and exactly 0, not shown" in figure.layout.title.text


def test_white_space_is_made_visible_and_markup_harmless() -> None:
    assert visible(" a") == "\u2423a" and visible("\n") == "\u21b5"
    assert visible("<b>&") == "&lt;b&gt;&amp;" and visible("") == "\u2205"
    labels = token_labels([(("a", "b", "c"), ("a", "b", "c"))], {0: "END"})
    assert labels == ["a|\u2026<br> <br><i>END</i>"]
