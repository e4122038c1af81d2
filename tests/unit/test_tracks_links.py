"""Linking, its null and the metrics on made sets, against slow computations by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom, false_discovery_control

from circuits.labelled import LabelError
from circuits.tracks import link as linking
from circuits.tracks.chains import chains
from circuits.tracks.link import GAP, KINDS, LINK, MERGE, SPLIT, Linker, Links
from circuits.tracks.metrics import METRICS, metric_table
from circuits.tracks.null import Exchange, shuffle_test
from circuits.tracks.plan import Places, TrackError, TrackPlan
from circuits.tracks.read import Nodes
from tests.tracked import groups, nodes_of, similar_of

LATENTS = 10


def drawn(
    seed: int, cells: int = 30, sites: int = 4, k: int = 4, reach: int = 0, length: int = 2
) -> tuple[Nodes, np.ndarray]:
    """Random sets, some not full, and cosines of which many would do."""
    draw = np.random.default_rng(seed)
    latent = np.stack(
        [np.stack([draw.permutation(LATENTS)[:k] for _ in range(cells)]) for _ in range(sites)]
    )
    latent = np.where(draw.random(latent.shape) < 0.15, -1, latent)
    strength = draw.exponential(1.0, latent.shape) + 0.05
    cosine = draw.uniform(-0.2, 1.0, (LATENTS, LATENTS))
    return nodes_of(latent, strength, [length] * (cells // length), reach), cosine


def scores(
    nodes: Nodes, cosine: np.ndarray, plan: TrackPlan, s: int, t: int, c: int, d: int
) -> Any:
    """By hand, -inf for what may not be linked."""
    k = nodes.latent.shape[2]
    found = np.full((k, k), -np.inf)
    for i in range(k):
        for j in range(k):
            a, b = nodes.latent[s, c, i], nodes.latent[t, d, j]
            if a < 0 or b < 0:
                continue
            one, two = nodes.share[s, c, i], nodes.share[t, d, j]
            near = min(one, two) / max(one, two)
            score = (plan.decoder * cosine[a, b] + plan.activation * near) / (
                plan.decoder + plan.activation
            ) - plan.distance * (d - c)
            if score >= plan.least:
                found[i, j] = score
    return found


def of(links: Links, kind: int, s: int, c: int) -> set[tuple[int, ...]]:
    mine = (links.kind == kind) & (links.site == s) & (links.cell == c)
    columns = (links.slot, links.to_site, links.to_cell, links.to_slot)
    return set(zip(*(x[mine].tolist() for x in columns), strict=True))


@pytest.mark.parametrize("least", [0.2, 0.5, 0.75])
def test_links_are_the_best_assignment_gaps_and_branches_follow(  # noqa: PLR0912
    least: float,
) -> None:
    plan = TrackPlan(least=least, branch=max(0.6, least))
    nodes, cosine = drawn(0)
    links = Linker(nodes, similar_of(cosine, 4), plan).links()
    seen = set()
    for c in range(len(nodes.cells)):
        out, inn = (np.zeros((4, 4), dtype=bool) for _ in range(2))
        for s in range(3):
            table = scores(nodes, cosine, plan, s, s + 1, c, c)
            worth = np.where(np.isfinite(table), table, 0)
            mine = of(links, LINK, s, c)
            got = sum(table[i, j] for i, _, _, j in mine)
            assert got == pytest.approx(worth[linear_sum_assignment(-worth)].sum(), abs=1e-12)
            if c < 5:  # and of all assignments there are
                best = max(
                    sum(worth[i, p] for i, p in enumerate(q)) for q in permutations(range(4))
                )
                assert got == pytest.approx(best, abs=1e-12)
            for i, to_site, to_cell, j in mine:
                assert (to_site, to_cell) == (s + 1, c) and not out[s, i] and not inn[s + 1, j]
                out[s, i] = inn[s + 1, j] = True
        for s in range(2):
            table = scores(nodes, cosine, plan, s, s + 2, c, c)
            free = np.where(out[s][:, None] | inn[s + 2][None], -np.inf, table)
            worth = np.where(np.isfinite(free), free, 0)
            mine = of(links, GAP, s, c)
            got = sum(free[i, j] for i, _, _, j in mine)
            assert got == pytest.approx(worth[linear_sum_assignment(-worth)].sum(), abs=1e-12)
            for i, _, _, j in mine:
                out[s, i] = inn[s + 2, j] = True
                seen.add("gap")
        for s in range(3):
            table = scores(nodes, cosine, plan, s, s + 1, c, c)
            table = np.where(table >= plan.branch, table, -np.inf)
            wanted: dict[int, set[tuple[int, ...]]] = {SPLIT: set(), MERGE: set()}
            for j in range(4):
                column = np.where(out[s], table[:, j], -np.inf)
                if not inn[s + 1, j] and np.isfinite(column.max()):
                    wanted[SPLIT].add((int(column.argmax()), s + 1, c, j))
            for i in range(4):
                row = np.where(inn[s + 1], table[i], -np.inf)
                if not out[s, i] and np.isfinite(row.max()):
                    wanted[MERGE].add((i, s + 1, c, int(row.argmax())))
            for kind, found in wanted.items():
                assert of(links, kind, s, c) == found
                seen |= {KINDS[kind]} if found else set()
    assert seen == {"gap", "split", "merge"} or least > 0.6
    rows = zip(links.site, links.cell, links.slot, strict=True)
    for n, (s, c, i) in enumerate(rows):
        t, d, j = links.to_site[n], links.to_cell[n], links.to_slot[n]
        assert links.similarity[n] == cosine[nodes.latent[s, c, i], nodes.latent[t, d, j]]


def test_a_reach_lets_what_is_left_over_go_on_later_at_a_cost() -> None:
    """Latents 0 and 1 stand at the first token; later 0 stands there and 1 at the next one."""
    latent = np.array([[[0, 1], [-1, -1]], [[0, -1], [1, -1]]])
    strength = np.ones(latent.shape)
    cosine = np.eye(LATENTS)
    for reach, distance, wanted in ((0, 0.1, 1), (1, 0.1, 2), (1, 0.7, 1)):
        nodes = nodes_of(latent, strength, [2], reach)
        plan = TrackPlan(reach=reach, distance=distance)
        links = Linker(nodes, similar_of(cosine, 2), plan).links()
        assert len(links) == wanted
        assert (links.cell[0], links.to_cell[0], links.to_slot[0]) == (0, 0, 0)
        if wanted == 2:
            assert (links.cell[1], links.slot[1], links.to_cell[1]) == (0, 1, 1)
            assert links.score[1] == pytest.approx((1 + 0.25 * 0.5) / 1.25 - 0.1)
    # Not into another answer.
    apart = nodes_of(latent, strength, [1, 1], 1)
    assert len(Linker(apart, similar_of(cosine, 2), TrackPlan(reach=1)).links()) == 1


def test_work_grows_with_positions_and_assignments_stay_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes, cosine = drawn(1, cells=20, reach=2, length=20)
    sizes: list[tuple[int, ...]] = []

    def counted(worth: np.ndarray, **more: Any) -> Any:
        sizes.append(worth.shape)
        return linear_sum_assignment(worth, **more)

    monkeypatch.setattr(linking, "linear_sum_assignment", counted)
    counts = []
    for times in (1, 2, 4):
        many = np.tile(nodes.latent, (1, times, 1)), np.tile(nodes.strength, (1, times, 1))
        sizes.clear()
        longer = nodes_of(*many, [20 * times], 2)
        Linker(longer, similar_of(cosine, 4), TrackPlan(reach=2)).links()
        assert set(sizes) == {(4, 4)}
        assert len(sizes) <= 20 * times * (3 * 3 + 2)
        counts.append(len(sizes))
    # The seams between copies and the end differ by the reach alone.
    assert abs(counts[1] - 2 * counts[0]) <= 20 and abs(counts[2] - 2 * counts[1]) <= 40


def independent(seed: int, count: int, sites: int, size: int = 1) -> tuple[Nodes, np.ndarray]:
    """Layers that know nothing of each other: latents of several rates, one of them everywhere,
    answers of a group alike."""
    draw = np.random.default_rng(seed)
    rates = np.array([1.0, 0.7, 0.5, 0.5, 0.3, 0.2])
    on = draw.random((sites, count // size, 6)) < rates
    on = np.repeat(on, size, axis=1)
    latent = np.where(on, np.arange(6), -1)
    strength = draw.exponential(1.0, latent.shape) + 0.1
    cosine = np.where(np.eye(6) > 0, 0.8, 0.0) + 0.5 * np.eye(6, k=1)
    return nodes_of(latent, strength, [1] * count), cosine


@pytest.mark.parametrize("size", [1, 2])
def test_with_shuffled_layers_links_are_kept_at_the_stated_rate(size: int) -> None:
    level, runs = 0.5, 60
    plan = TrackPlan(permutations=39, level=level, rare=2, least=0.3, branch=0.35)
    any_kept, small, shares = 0, [], []
    for seed in range(runs):
        nodes, cosine = independent(seed, 24 * size, sites=2, size=size)
        similar = similar_of(cosine, 2)
        links = Linker(nodes, similar, plan).links()
        null = shuffle_test(nodes, links, similar, groups(24 * size, size), plan, progress=False)
        any_kept += bool(null.kept.any())
        shares.append(null.kept.mean())
        p = null.pairs[null.pairs["latent"] > 0]
        small.append([(p["p"] <= a).mean() for a in (0.1, 0.25, 0.5)])
    # A run keeps anything with a probability of at most the level, and so the mean share of links
    # that are kept is at most the level.
    assert any_kept <= binom.ppf(0.9995, runs, level) and np.mean(shares) <= level
    assert any_kept >= 3  # the rate could be missed: some runs do keep something
    found = np.array(small)
    error = found.std(0, ddof=1) / np.sqrt(runs)
    assert (found.mean(0) <= np.array([0.1, 0.25, 0.5]) + 3.5 * error).all()
    assert (found.mean(0) >= 0.5 * np.array([0.1, 0.25, 0.5])).all()  # and it is not empty


def test_linked_layers_are_found_and_what_is_everywhere_is_not_specific() -> None:
    draw = np.random.default_rng(0)
    on = np.repeat((draw.random((1, 40, 6)) < 0.4), 3, axis=0)
    on[..., 0] = True
    nodes = nodes_of(np.where(on, np.arange(6), -1), np.ones(on.shape), [1] * 40)
    similar, plan = similar_of(np.eye(6), 3), TrackPlan(permutations=199, rare=3, activation=0.0)
    links = Linker(nodes, similar, plan).links()
    null = shuffle_test(nodes, links, similar, groups(40), plan, progress=False)
    pairs = null.pairs[null.pairs["to_site"] == null.pairs["site"] + 1].set_index(
        ["site", "latent"]
    )
    for s in range(2):
        assert pairs.loc[(s, 0), "p"] == 1 and not pairs.loc[(s, 0), "kept"]
        for i in range(1, 6):
            assert pairs.loc[(s, i), "p"] == 1 / 200 and pairs.loc[(s, i), "kept"]
            # The sum of scores of a pair, and how often layers shuffled by chance have it.
            n = int(on[0, :, i].sum())
            assert pairs.loc[(s, i), "sum"] == pytest.approx(n)
            assert pairs.loc[(s, i), "shuffled"] == pytest.approx(n * n / 40, rel=0.2)
    assert (null.pairs["q"].to_numpy() == false_discovery_control(null.pairs["p"].to_numpy())).all()
    assert (
        null.layers["similarity"].iloc[0] == 1
        and null.facts["links_kept"] == on[0, :, 1:].sum() * 2
    )
    rare = shuffle_test(nodes, links, similar, groups(40), replace(plan, rare=30), progress=False)
    assert rare.facts["links_rare"] == on[0, :, 1:].sum() * 2 and not rare.kept.any()
    assert np.isnan(rare.of("p", np.nan)[links.slot > 0]).all()
    # Within halves of answers that have latent 1 or not, latent 1 is not specific any more.
    labelled = [replace(a, labels={"has": bool(on[0, i, 1])}) for i, a in enumerate(groups(40))]
    inside = replace(plan, within="has")
    half = shuffle_test(nodes, links, similar, labelled, inside, progress=False).pairs
    half = half.set_index(["site", "latent", "to_site"])
    assert half.loc[(0, 1, 1), "p"] == 1 and half.loc[(0, 2, 1), "p"] == 1 / 200
    with pytest.raises(LabelError, match="no label 'kind'"):
        Exchange([1] * 40, groups(40), "kind")


def test_whole_groups_are_exchanged_between_answers_of_one_length() -> None:
    counts = [2, 2, 3, 3, 2, 2, 3, 3, 2, 2]
    answers = [replace(a, group=f"g{i // 2}") for i, a in enumerate(groups(10))]
    exchange = Exchange(counts, answers, None)
    first = np.cumsum([0, *counts])
    owner = np.repeat(np.arange(10), counts)
    seen = set()
    for seed in range(50):
        donor = exchange.cells(np.random.default_rng(seed))
        for a in range(10):
            mine = donor[first[a] : first[a + 1]]
            other = int(owner[mine[0]])
            assert mine.tolist() == list(range(first[other], first[other + 1]))
            seen.add((a, other))
        groups_of = [owner[donor[first[a]]] // 2 for a in range(10)]
        assert groups_of[::2] == groups_of[1::2] and sorted(donor) == list(range(len(owner)))
    assert {counts[a] for a, _ in seen} == {2, 3} and all(counts[a] == counts[b] for a, b in seen)
    assert {b for a, b in seen if a == 0} == {0, 1, 4, 5, 8, 9}
    with pytest.raises(TrackError, match="layers cannot be shuffled"):
        Exchange([1, 2, 3], groups(3), None)


def slow_metrics(nodes: Nodes, links: Links, c: int) -> dict[str, float]:
    """Of one cell, from the definitions."""
    sites, k = len(nodes.sites), nodes.latent.shape[2]
    there = [(s, i) for s in range(sites) for i in range(k) if nodes.latent[s, c, i] >= 0]
    whole = {s: sum(nodes.strength[s, c, i] for t, i in there if t == s) for s in range(sites)}
    w = {(s, i): nodes.strength[s, c, i] / whole[s] for s, i in there}
    track = {one: {one} for one in there}
    joins, after, before = 0, set(), set()
    rows = zip(
        links.site, links.cell, links.slot, links.to_site, links.to_slot, links.kind, strict=True
    )
    for s, cell, i, t, j, kind in rows:
        if cell != c:
            continue
        joins += kind != GAP
        if kind in (LINK, GAP):
            after.add((s, i))
            before.add((t, j))
            both = track[s, i] | track[t, j]
            for one in both:
                track[one] = both
    m = sorted(sum(w[o] for o in t) / sites for t in {frozenset(t) for t in track.values()})[::-1]
    ends = [
        (
            sum(w[s, i] for t, i in there if t == s and (s, i) not in after)
            + sum(w[s + 1, i] for t, i in there if t == s + 1 and (t, i) not in before)
        )
        / 2
        for s in range(sites - 1)
    ]
    count = [sum(t == s for t, _ in there) for s in range(sites)]
    return {
        "entropy": -sum(x * np.log(x) for x in m) / np.log(len(there)),
        "churn": float(np.mean(ends)),
        "competition": m[1] / m[0],
        "stability": sum(w[o] * len(track[o]) for o in there) / sites / sites,
        "dominance": m[0],
        "density": joins / sum(a * b for a, b in pairwise(count)),
    }


def test_metrics_by_brute_force() -> None:
    nodes, cosine = drawn(5, cells=12)
    plan = TrackPlan(least=0.5, branch=0.6)
    links = Linker(nodes, similar_of(cosine, 4), plan).links()
    ids = [f"a{i}" for i in range(6)]
    table = metric_table(nodes, chains(nodes, links), ids)
    assert list(table.columns) == ["answer", *METRICS]
    for a in range(6):
        cells = [slow_metrics(nodes, links, c) for c in (2 * a, 2 * a + 1)]
        for name in METRICS:
            wanted = np.mean([one[name] for one in cells])
            assert table.loc[a, name] == pytest.approx(wanted, abs=1e-12), name
            assert 0 <= wanted <= 1


def test_metrics_reach_their_ends() -> None:
    """One latent all the way; and equal ones of which none is linked."""
    one = nodes_of(np.zeros((3, 1, 1), dtype=int), np.ones((3, 1, 1)), [1])
    links = Linker(one, similar_of(np.eye(1), 3), TrackPlan()).links()
    got = metric_table(one, chains(one, links), ["a"]).iloc[0]
    wanted = {"entropy": 0, "churn": 0, "competition": 0, "stability": 1, "dominance": 1}
    assert {n: got[n] for n in wanted} == wanted and got["density"] == 1
    latent = np.arange(9).reshape(3, 1, 3)
    many = nodes_of(latent, np.ones(latent.shape), [1])
    links = Linker(many, similar_of(np.eye(9), 3), TrackPlan()).links()
    got = metric_table(many, chains(many, links), ["a"]).iloc[0]
    wanted = {"entropy": 1, "churn": 1, "competition": 1, "stability": 1 / 3, "dominance": 1 / 9}
    assert {n: float(got[n]) for n in wanted} == pytest.approx(wanted) and got["density"] == 0


def test_places_and_plans_are_read_and_refused() -> None:
    for text in ("last:1,completion", "last:4", "completion:3", "last:2,completion:1"):
        assert str(Places.parse(text)) == text
    assert Places.parse("completion") == Places(0, None)
    for text in ("mean", "last", "last:0", "", "completion:0", "completion:x"):
        with pytest.raises(TrackError, match="expected some of last:K, completion"):
            Places.parse(text)
    for wrong, said in (
        ({"k": 0}, "k counts from 1"),
        ({"least": 0.6, "branch": 0.5}, "branch must not be below"),
        ({"decoder": 0.0, "activation": 0.0}, "one of the weights"),
        ({"level": 1.0}, "between 0 and 1"),
    ):
        with pytest.raises(TrackError, match=said):
            TrackPlan(**wrong)
    assert isinstance(pd.DataFrame([TrackPlan().told()]), pd.DataFrame)
