"""A network with known tracks through the real code: births, deaths, a split, a merge, a gap, and
ablations that take away exactly what they should."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from circuits.labelled import Labelled
from circuits.models.hooks import hooks_left
from circuits.plots.base import PlotError
from circuits.runs import RunError
from circuits.tracks import ConstantMetric, Places, TrackError, TrackPlan, Tracks, track
from tests.tracked import FREE, KNOWN, SITES, amounts, answers, part, stream, tracked

NAMES = [str(site) for site in SITES]
PLAN = TrackPlan(permutations=199, rare=3, checked=100, densest=1.0)


@cache
def found() -> Tracks:
    made = tracked()
    return track(made.model, made.saes, answers(), PLAN, progress=False)


def latent(layer: int, feature: str) -> int:
    return list(tracked().features[SITES[layer]]).index(feature)


def named(table: Any, site: str = "site", number: str = "latent") -> list[str]:
    features: dict[str, Any] = {str(s): names for s, names in tracked().features.items()}
    return [features[s][i] for s, i in zip(table[site], table[number], strict=True)]


def words() -> Iterator[tuple[str, int, dict[str, float]]]:
    """(answer, position, amounts) of every token that is followed."""
    every = amounts()
    for one in answers():
        prompt = one.prompt.split()
        yield one.id, len(prompt) - 1, every[int(prompt[-1][1:]) + 1]
        yield one.id, len(prompt), every[int(one.completion[1:]) + 1]


def test_nodes_are_the_latents_that_are_known_to_be_active() -> None:
    nodes: Any = found().nodes
    nodes = nodes.assign(feature=named(nodes))
    for answer, position, word in words():
        mine = nodes[(nodes["answer"] == answer) & (nodes["position"] == position)]
        for layer, site in enumerate(NAMES):
            here = mine[mine["site"] == site].set_index("feature")
            wanted = stream(word, layer)
            assert dict(here["activation"]) == pytest.approx(wanted, abs=1e-12)
            shares = {n: v / sum(wanted.values()) for n, v in wanted.items()}
            assert dict(here["share"]) == pytest.approx(shares, abs=1e-12)
            assert list(here["strength"]) == sorted(here["strength"], reverse=True)


def test_known_tracks_are_recovered() -> None:
    tracks = found()
    links: Any = tracks.links
    assert links["kept"].all() and not tracks.warnings()
    table: Any = tracks.tracks
    nodes: Any = tracks.nodes.assign(feature=named(tracks.nodes))
    first = nodes.sort_values(["track", "layer"]).groupby("track").first()
    table = table.set_index("track").assign(feature=first["feature"])
    for answer, position, word in words():
        mine = table[(table["answer"] == answer) & (table["position"] == position)]
        wanted: dict[str, tuple[str, str, str, str, int, int]] = {}
        for feature in "DX":
            wanted[feature] = (NAMES[0], NAMES[3], "first", "last", 4, 0)
        wanted["A"] = (NAMES[0], NAMES[1], "first", "death", 2, 0)
        wanted["G"] = (NAMES[0], NAMES[3], "first", "last", 3, 1)
        here = {f for f in "ASDXG" if word.get(f)}
        got = {
            row.feature: (row.birth, row.death, row.born, row.died, row.length, row.gaps)
            for row in mine.itertuples()
            if row.feature in wanted
        }
        assert got == {f: w for f, w in wanted.items() if f in here}
        split = mine[mine["feature"].isin(["S", "S1", "S2"])]
        if "S" in here:  # S goes on as one of both, the other one splits from it
            whole, branch = split[split["born"] == "first"], split[split["born"] == "split"]
            assert list(whole["length"]) == [4] and list(branch["length"]) == [2]
            assert list(branch["parent"]) == list(whole.index)
            assert list(branch["birth"]) == [NAMES[2]]
        merged = mine[mine["feature"].isin(["P", "Q"])]
        both = word.get("P", 0) > 0 and word.get("Q", 0) > 0
        assert sorted(merged["died"]) == (["last", "merge"] if both else ["last"] * len(merged))
        if both:
            ends, into = merged[merged["died"] == "merge"], merged[merged["died"] == "last"]
            assert list(ends["into"]) == list(into.index)
            assert list(ends["death"]) == [NAMES[2]]
    kinds = links.groupby("kind").size()
    assert kinds["split"] == sum("S" in w for *_, w in words())
    assert kinds["gap"] == sum("G" in w for *_, w in words())
    assert kinds["merge"] == sum("P" in w and "Q" in w for *_, w in words())


def test_ablation_takes_away_exactly_what_it_should() -> None:
    table: Any = found().confirmed
    ends = list(zip(named(table), named(table, "to_site", "to_latent"), strict=True))
    rows: dict[Any, Any] = {
        (*pair, NAMES.index(site)): row
        for pair, site, (_, row) in zip(ends, table["site"], table.iterrows(), strict=True)
    }
    assert len(rows) == len(table) == found().record["null"]["pairs_kept"]
    for pair in (("A", "A", 0), ("S", "S", 0), ("S", "S1", 1), ("S", "S2", 1), ("G", "G", 1)):
        row = rows[pair]
        assert row["lost"] == pytest.approx(1, abs=1e-12), pair
        assert row["control"] == pytest.approx(0, abs=1e-12) and row["confirmed"]
        assert row["lost_low"] == pytest.approx(1, abs=1e-12)
    # The decoy: an equal decoder row and an equal activation, made anew from X.
    decoy = rows["D", "D", 0]
    assert decoy["similarity"] == pytest.approx(1) and decoy["links"] >= 5
    assert decoy["lost"] == pytest.approx(0, abs=1e-12) and not decoy["confirmed"]
    assert rows["D", "D", 1]["lost"] == pytest.approx(1, abs=1e-12)
    merged = rows["P", "M", 2]  # where there is no Q, all of it; else P's part
    assert 0.3 < merged["lost"] < 1
    causal = found().record["causal"]
    assert causal["tested"] == len(table) and causal["confirmed"] == int(table["confirmed"].sum())
    assert causal["share_low"] < causal["share"] < causal["share_high"]


def test_the_share_lost_is_that_of_the_links_of_the_other_half_by_hand() -> None:
    """P -> M, where the share differs from token to token: P / (P + Q)."""
    made = tracked()
    plan = TrackPlan(permutations=99, rare=3, checked=200, densest=1.0, seed=3)
    tracks = track(made.model, made.saes, answers(40, 5), plan, progress=False)
    at = {"site": NAMES[2], "latent": latent(2, "P"), "to_site": NAMES[3]}
    table: Any = tracks.confirmed
    links: Any = tracks.links
    [row] = table[(table[list(at)] == pd.Series(at)).all(axis=1)].to_dict("records")
    mine = links[(links[list(at)] == pd.Series(at)).all(axis=1)]
    codes = {g: i for i, g in enumerate(sorted({f"g{i}" for i in range(40)}))}
    half = np.random.default_rng([3, 1]).permutation(40) % 2 == 0
    node: Any = tracks.nodes.set_index("node")
    by_group: dict[str, list[tuple[float, float]]] = {}
    for link in mine.to_dict("records"):
        group = f"g{link['answer'][1:]}"
        token = {k: node.loc[link["source"], k] for k in ("answer", "place", "site")}
        here = node[(node[list(token)] == pd.Series(token)).all(axis=1)]
        # A control is a latent there that is linked with M in no answer: neither P nor Q.
        if half[codes[group]] or set(named(here)) <= {"P", "Q"}:
            continue
        p = float(node.loc[link["source"], "activation"]) * 0.5**0.5
        by_group.setdefault(group, []).append((p, float(node.loc[link["target"], "activation"])))
    assert row["links"] == sum(map(len, by_group.values())) <= plan.occurrences
    means = np.array([np.mean(v, axis=0) for v in by_group.values()])
    assert row["lost"] == pytest.approx(means[:, 0].sum() / means[:, 1].sum(), abs=1e-12)
    assert row["activation"] == pytest.approx(means[:, 1].mean(), abs=1e-12)


def test_a_run_leaves_the_model_as_it_was_and_batches_do_not_matter() -> None:
    made = tracked()
    before = hooks_left(made.model.module)
    plan = TrackPlan(permutations=19, rare=3, checked=5, densest=1.0, batch_size=3)
    again = track(made.model, made.saes, answers(), plan, progress=False)
    assert hooks_left(made.model.module) == before
    pd.testing.assert_frame_equal(again.nodes, found().nodes.assign(track=again.nodes["track"]))
    assert again.links["score"].tolist() == found().links["score"].tolist()


def test_latents_that_are_active_nearly_everywhere_are_left_out_and_counted() -> None:
    made = tracked()
    plan = TrackPlan(permutations=19, rare=3, checked=0, densest=0.5)
    tracks = track(made.model, made.saes, answers(), plan, progress=False)
    every = [amounts()[int(w[1:]) + 1] for a in answers() for w in a.prompt.split()[1:]]
    every += [amounts()[int(a.completion[1:]) + 1] for a in answers()]
    for layer, site in enumerate(NAMES):
        rate = {f: np.mean([f in stream(w, layer) for w in every]) for f in KNOWN[layer].split()}
        wanted = sorted(latent(layer, f) for f, r in rate.items() if r > 0.5)
        assert tracks.record["left_out"][site] == wanted
        assert not set(tracks.nodes.loc[tracks.nodes["site"] == site, "latent"]) & set(wanted)
    assert any(tracks.record["left_out"].values())


def test_saved_and_read_back(tmp_path: Path) -> None:
    tracks = found()
    folder = tracks.save(tmp_path / "run")
    back = Tracks.load(folder)
    for name in ("nodes", "links", "tracks", "metrics", "confirmed", "answers"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(tracks, name))
    assert back.headline() == tracks.headline() and back.sites == NAMES
    page = (folder / "tracks.html").read_text()
    assert 'src="http' not in page and "<link" not in page and tracks.headline() in page
    assert "layers apart" in tracks._repr_html_()
    (folder / "links.parquet").unlink()
    with pytest.raises(RunError, match=r"links\.parquet"):
        Tracks.load(folder)


def test_the_picture_has_two_answers_and_dashes_what_is_not_confirmed() -> None:
    tracks = found()
    right, wrong = tracks.pair()
    correct: Any = tracks.answers.set_index("answer")["correct"]
    assert correct[right] and not correct[wrong]
    figure = tracks.picture()
    assert {t.xaxis for t in figure.data} == {"x", "x2"}
    heads = [a.text for a in figure.layout.annotations]
    assert "right" in heads[0] and "wrong" in heads[1]
    dashes = {t.name: t.line.dash for t in figure.data if t.mode == "lines"}
    assert all((d == "solid") == ("not" not in n) for n, d in dashes.items())
    # Each drawn segment is a kept link of the answer at the place; the decoy's is dashed.
    nodes: Any = tracks.nodes.set_index("node")
    mine: Any = tracks.links[tracks.links["answer"] == right]
    mine = mine[(nodes.loc[mine["source"], "place"] == 0).to_numpy()]
    drawn = [t for t in figure.data if t.mode == "lines" and t.xaxis == "x"]
    assert sum(list(t.x).count(None) for t in drawn) == len(mine)
    solid = sum(list(t.x).count(None) for t in drawn if t.line.dash == "solid")
    assert solid == int((mine["causal"] == "confirmed").sum())
    hovers = [h for t in figure.data for h in (t.hovertext or ())]
    shown = nodes[nodes["answer"].isin([right, wrong]) & (nodes["place"] == 0)]
    assert len(hovers) == len(shown)
    words_of = {a.id: a.prompt.split()[-1] for a in answers()}
    assert f"<b>{words_of[right]}</b>" in heads[0]
    assert tracks.picture([right], place=1).data[0].xaxis == "x"
    with pytest.raises(PlotError, match="no answers nobody"):
        tracks.picture(["nobody"])
    with pytest.raises(PlotError, match="no place 7"):
        tracks.picture([right], place=7)


def test_what_cannot_be_followed_is_refused_before_the_model_runs() -> None:
    made = tracked()

    def run(saes: object = None, given: list[Labelled] | None = None, **plan: object) -> None:
        track(made.model, saes or made.saes, given or answers(8), TrackPlan(**plan), progress=False)  # pyright: ignore

    with pytest.raises(TrackError, match="two sites of the residual stream"):
        run(part(made.saes, 1))
    with pytest.raises(TrackError, match="no answers"):
        track(made.model, made.saes, [], progress=False)
    short = [*answers(8), Labelled("bare", "h", "bos", "w1", True)]
    with pytest.raises(TrackError, match="'bare' have not the tokens for last:1"):
        run(given=short)
    with pytest.raises(TrackError, match="'mute'"):
        run(given=[*answers(8), Labelled("mute", "h", "bos w1", "", True)])
    run(
        given=[*answers(8), Labelled("mute", "h", "bos w1", "", True)],
        positions=Places(1, 0),
        permutations=19,
        densest=1.0,
    )
    long = Labelled("long", "h", "bos " + "w1 " * 70, "w2", True)
    with pytest.raises(TrackError, match="'long' are longer than the 64 tokens"):
        run(given=[*answers(8), long])
    one = [Labelled(f"a{i}", "g", "bos w1 w2", "w3", True) for i in range(6)]
    with pytest.raises(TrackError, match="layers cannot be shuffled"):
        run(given=one)
    with pytest.raises(TrackError, match=r"permutations at least.*|19 permutations"):
        run(permutations=5)


def test_metrics_that_are_constant_are_errors() -> None:
    made = tracked()
    same = [Labelled(f"a{i}", f"g{i}", "bos w1 w2", "w3", i % 2 == 0) for i in range(12)]
    tracks = track(made.model, made.saes, same, TrackPlan(permutations=19), progress=False)
    # Every answer has the same latents: nothing is specific, and no metric varies.
    links: Any = tracks.links
    assert not links["kept"].any() and set(tracks.record["constant"]) == set(
        tracks.record["metrics"]
    )
    assert list(tracks.metrics.columns) == ["answer"]
    with pytest.raises(ConstantMetric, match=r"constant over all 12 answers: entropy \(always"):
        tracks.require_metrics()
    with pytest.raises(ConstantMetric, match="density"):
        tracks.metric("density")
    with pytest.raises(TrackError, match="no metric 'speed'"):
        tracks.metric("speed")
    assert any("Constant over all answers" in line for line in tracks.warnings())
    assert "always" in tracks.page() and len(FREE) == 6
