"""Pathways of whole replays: a planted network is found again, a latent without effect is found to
have none, and arms that differ by chance alone give nothing."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from circuits.graph import Circuit
from circuits.replay import Change, ReplayResult, replay
from circuits.replay.changes import changes
from circuits.replay.confirm import Setting, confirm, wire
from circuits.replay.outcomes import Outcome, parse_outcome
from circuits.replay.paired import PathwayError, Units
from circuits.replay.pathways import Plan, Written, pathways
from circuits.replay.pathways_choice import confirmed_of
from circuits.replay.pathways_result import PathwaysResult
from circuits.replay.pathways_tables import tables_of
from circuits.replay.routes import routes
from circuits.runs import RunError
from circuits.sites import Site
from tests.twins import drawn_prompts, written
from tests.writer import FIRST, ODDS, SECOND, SOURCE, STOP, latent, mean_odds, prompts, writer

HELD, TRIALS = 2.5, 3


@cache
def ran(folder: Path, feature: str, chain: bool) -> ReplayResult:
    """A replay of 12 prompts on the planted network."""
    made = writer(chain)
    return replay(
        made.model,
        made.saes,
        prompts(12),
        [Change(SOURCE, latent(made, SOURCE, feature), "hold", HELD)],
        trials=TRIALS,
        max_new_tokens=6,
        stop=[STOP],
        randoms=2,
        out=folder / f"{feature}-{chain}",
        progress=False,
    )


def found(run: ReplayResult, chain: bool = False, outcome: str = ODDS, **more: Any) -> Any:
    made = writer(chain)
    plan = Plan(parse_outcome(outcome, made.model.tokenizer), **({"least": 3} | more))
    return pathways(Written.of(run), made.model, made.saes, plan, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replays")


def row(result: PathwaysResult, site: Site, feature: str, chain: bool = False) -> dict[str, Any]:
    table: Any = result.pathways
    number = latent(writer(chain), site, feature)
    return table[(table["site"] == str(site)) & (table["latent"] == number)].iloc[0].to_dict()


def tokens(run: ReplayResult, arm: str) -> list[tuple[list[int], list[int]]]:
    """Prompts and responses of an arm, in the order of prompts and trials."""
    table: Any = run.responses[run.responses["arm"] == arm].sort_values(["prompt", "trial"])
    given = run.record["prompt_tokens"]
    return [(given[r["prompt"]], list(r["tokens"])) for r in table.to_dict("records")]


def over_prompts(values: list[float], some: list[int] | None = None) -> float:
    """The mean over prompts, in the order of `tokens`, or over some of them."""
    wanted = list(range(12)) if some is None else some
    return float(np.mean(np.reshape(values, (12, TRIALS)).mean(1)[wanted]))


def confirming(result: PathwaysResult) -> list[int]:
    """The prompts that did not choose mediators."""
    return sorted(set(result.trials.loc[result.trials["confirms"], "prompt"]))


def test_the_planted_latent_is_found_with_its_shares(folder: Path) -> None:
    """S drives M alone; the shares are those of the weights, on the texts that were written."""
    run = ran(folder, "S", False)
    result = found(run)
    held = result.found()
    number = latent(writer(), FIRST, "M")
    assert held[["site", "latent"]].to_numpy().tolist() == [[str(FIRST), number]]
    # In the run, what hears of words alone changes too.
    assert row(result, SECOND, "K")["q"] < 0.05 < row(result, SECOND, "K")["held_q"]
    base = [mean_odds(*one) for one in tokens(run, "no-op")]
    half = confirming(result)
    assert len(half) == 6 and result.record["trials_confirmed"] == 18
    changed = [mean_odds(*one, HELD) for one in tokens(run, "no-op")]
    frozen = [mean_odds(*one, HELD, True) for one in tokens(run, "no-op")]
    total = over_prompts(changed, half) - over_prompts(base, half)
    own = over_prompts(frozen, half) - over_prompts(base, half)
    other = [i for i in range(12) if i not in half]
    mine = row(result, FIRST, "M")
    assert mine["confirmed"] and mine["share"] == pytest.approx(1 - own / total, abs=1e-9)
    assert mine["alone"] == pytest.approx(total - own, abs=1e-9)
    through = over_prompts(changed, other) - over_prompts(frozen, other)
    assert mine["estimate"] == pytest.approx(through, abs=1e-9)  # linear
    assert mine["share_low"] <= mine["share"] <= mine["share_high"]
    effects = {name: result.effect(name)["value"] for name in result.effects["name"]}
    assert effects["total"] == pytest.approx(total, abs=1e-9)
    assert effects["direct"] == pytest.approx(own, abs=1e-9)
    assert np.isnan(effects["controls"])  # S reaches no other
    patched = [mean_odds(*one, HELD) for one in tokens(run, "latent")]
    words = [mean_odds(*one) for one in tokens(run, "latent")]
    seen = over_prompts(patched) - over_prompts(base)
    assert effects["seen"] == pytest.approx(seen, abs=1e-9)
    assert effects["seen_by_tokens"] == pytest.approx(
        over_prompts(words) - over_prompts(base), abs=1e-9
    )
    parts = [effects[f"seen_{name}"] for name in ("direct", "by_tokens", "interaction")]
    assert sum(parts) == pytest.approx(seen, abs=1e-9)
    assert result.record["replayed_error"] < 1e-6 and result.warnings() == []
    assert "1 of 1 mediators confirmed, over 6 prompts that did not choose" in result.headline()


def test_a_latent_without_effect_is_found_to_have_none(folder: Path) -> None:
    run = ran(folder, "T", False)
    result = found(run)
    assert result.found("").empty and result.found().empty and result.mediators().empty
    assert (result.pathways["held_p"] == 1).all()
    for name in ("direct", "mediated", "seen_direct", "seen_by_tokens"):
        effect = result.effect(name)
        assert np.isnan(effect["share"]) and "rounding" in effect["problem"]
    assert len(result.graph.edges) == 0
    assert "0 of 3 downstream latents change in the run, 0 of 3 with the text" in result.headline()
    by_kl = found(run, outcome="kl")
    assert "rounding" in by_kl.effect("direct")["problem"]


def test_no_shares_of_kl(folder: Path) -> None:
    result = found(ran(folder, "S", False), outcome="kl")
    assert result.pathways["share"].isna().all() and len(result.mediators()) == 1
    for name in ("direct", "mediated", "seen_direct"):
        assert "not linear" in result.effect(name)["problem"]
    assert any("KL is not linear" in line for line in result.warnings())


def test_the_graph_of_a_chain(folder: Path) -> None:
    """Source to M, M to R, and all three to the outcome: into a mediator goes what comes out."""
    result = found(ran(folder, "S", True), chain=True)
    names = {
        (str(SOURCE), latent(writer(True), SOURCE, "S")): "S",
        (str(FIRST), latent(writer(True), FIRST, "M")): "M",
        (str(SECOND), latent(writer(True), SECOND, "R")): "R",
    }
    nodes = [names[str(one.node.site), one.node.latent] for one in result.graph.nodes]
    edges = {
        (nodes[e.source], "out" if e.target is None else nodes[e.target]): e.weight
        for e in result.graph.edges
    }
    assert set(edges) == {("S", "M"), ("M", "R"), ("S", "out"), ("M", "out"), ("R", "out")}
    close = {"abs": 1e-9}
    mine = {name: row(result, at, name, True) for at, name in ((FIRST, "M"), (SECOND, "R"))}
    assert edges["S", "M"] == pytest.approx(mine["M"]["mediated"], **close)
    assert edges["S", "M"] == pytest.approx(edges["M", "R"] + edges["M", "out"], **close)
    assert edges["M", "R"] == pytest.approx(edges["R", "out"], **close)
    total = edges["S", "out"] + edges["M", "out"] + edges["R", "out"]
    assert total == pytest.approx(result.effect("total")["value"], **close)
    source = result.graph.nodes[0]
    assert source.clean == pytest.approx(HELD) and source.corrupted < 2


def test_what_is_not_confirmed_is_told_apart(folder: Path) -> None:
    """Of M, which carries all that goes by a latent, and R, which M drives, R alone is confirmed:
    what it carries and what both do are two numbers, and the graph leaves nothing out."""
    run, made = ran(folder, "S", True), writer(True)
    whole = found(run, chain=True)
    number = {name: latent(made, at, name) for name, at in (("M", FIRST), ("R", SECOND))}
    table: Any = whole.pathways.copy()
    table.loc[table["latent"].eq(number["M"]) & table["site"].eq(str(FIRST)), "confirmed"] = False
    plan = Plan(parse_outcome(ODDS, made.model.tokenizer), least=3)
    trials: Any = whole.trials[["prompt", "trial", "kind"]]
    rows = np.flatnonzero(whole.trials["confirms"])
    texts = {
        arm: [
            [int(t) for t in one]
            for one in run.responses[run.responses["arm"] == arm]
            .set_index(["prompt", "trial"])
            .loc[list(zip(trials["prompt"], trials["trial"], strict=True)), "tokens"]
        ]
        for arm in ("no-op", "latent")
    }
    prompts = [run.record["prompt_tokens"][p] for p in trials["prompt"]]
    setting = Setting(made.model, made.saes, Written.of(run).source, plan.outcome)
    those = [prompts[i] for i in rows], [texts["no-op"][i] for i in rows]
    both = [(FIRST, number["M"]), (SECOND, number["R"])]
    confirmed = confirm(setting, *those, both, progress=False)
    wired = wire(setting, *those, confirmed, confirmed_of(table, both), progress=False)
    cells = routes(setting, prompts, texts["no-op"], texts["latent"], progress=False)
    units = Units.of(pd.factorize(trials["prompt"])[0].astype(int))
    half = Units.of(units.prompt[rows], units.kind)
    result = tables_of(
        table, trials, confirmed, wired, rows, cells, (units, units, half), setting, plan, 1e-9
    )
    effects = {name: result.effect(name)["value"] for name in result.effects["name"]}
    by_r = row(whole, SECOND, "R", True)["mediated"]
    close = {"abs": 1e-9}
    assert effects["confirmed"] == pytest.approx(by_r, **close)
    assert effects["rest"] == pytest.approx(effects["total"] - by_r, **close)
    assert effects["mediated"] == pytest.approx(row(whole, FIRST, "M", True)["mediated"], **close)
    edges = {(e.source, e.target): e.weight for e in result.graph.edges}
    assert set(edges) == {(0, None), (0, 1), (1, None)}
    assert edges[0, None] == pytest.approx(effects["rest"], **close)
    assert edges[0, 1] == pytest.approx(by_r, **close)  # M passes on what R hears
    assert edges[0, None] + edges[1, None] == pytest.approx(effects["total"], **close)
    record = result.record
    assert (record["mediators"], record["confirmed"]) == (2, 1)
    shares = [by_r / effects["total"], effects["mediated"] / effects["total"]]
    for name, wanted in zip(("carried_by_confirmed", "carried_by_all"), shares, strict=True):
        assert record[name]["share"] == pytest.approx(wanted)
    one, all_of_them = (f"{value:.0%} [" for value in shares)
    said = result.headline()
    assert "1 of 2 mediators confirmed" in said and one != all_of_them
    assert f"the confirmed one carries {one}" in said
    assert f"all 2 together, confirmed or not, {all_of_them}" in said
    result.record["replayed_error"] = 0.0  # is known once a run was read
    assert "left with these frozen" in result.page()
    assert "by no latent that is drawn" in result.graph.nodes[0].label

    none = found(run, chain=True, kind="odd", unit="prompt", level=0.1)
    assert len(none.mediators()) == 2 and not none.mediators()["confirmed"].any()
    assert [(e.source, e.target) for e in none.graph.edges] == [(0, None)]
    assert none.graph.edges[0].weight == pytest.approx(none.effect("total")["value"])
    assert none.effect("mediated")["value"] > 0.1 and none.effect("confirmed")["value"] == 0
    assert "0 of 2 mediators confirmed" in none.headline()


def test_on_disk_and_as_a_page(folder: Path, tmp_path: Path) -> None:
    result = found(ran(folder, "S", False), mediators=2, seed=3)
    saved = result.save(tmp_path / "saved")
    names = {"run.json", "pathways.parquet", "effects.parquet", "steps.parquet", "trials.parquet"}
    assert {p.name for p in saved.iterdir()} == names | {"pathways.json", "pathways.html"}
    again = PathwaysResult.load(saved)
    for name in ("pathways", "effects", "steps", "trials"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name))
    assert again.graph == result.graph == Circuit.load(saved / "pathways.json")
    assert again.headline() == result.headline()
    page = (saved / "pathways.html").read_text(encoding="utf-8")
    assert "https://" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    inner = html.unescape(re.findall(r'srcdoc="(.*?)"', page, flags=re.DOTALL)[0])
    assert "positive (blue) = raises the outcome" in inner and "toward clean" not in inner
    for line in (
        ">What changes</h2>",
        "The pathway graph",
        "Direct and by tokens",
        "by all mediators together, confirmed or not",
    ):
        assert line in page
    with pytest.raises(RunError, match="holds a run of 'replay'"):
        PathwaysResult.load(folder / "S-False")


def test_part_of_a_run(folder: Path) -> None:
    """One kind of prompts, the first trials, the first steps."""
    run = ran(folder, "S", False)
    result = found(run, kind="odd", trials=2, first=3, unit="prompt")
    assert result.record["outcome"].endswith("at the first 3 steps (nats)")
    named = found(run, kind="odd", trials=2, unit="prompt", outcome=ODDS.replace(":", "[3]:", 1))
    pd.testing.assert_frame_equal(named.effects, result.effects)
    assert result.record["units"] == 6 and result.record["trials_held"] == 12
    assert set(result.trials["trial"]) == {0, 1} and set(result.trials["kind"]) == {"odd"}
    texts = [one for i, one in enumerate(tokens(run, "no-op")) if (i // TRIALS) % 2]
    some = [one for i, one in enumerate(texts) if i % TRIALS < 2]

    def early(one: tuple[list[int], list[int]], held: float | None) -> float:
        from tests.writer import odds

        return float(sum(odds(*one, held).values())[:3].mean())  # pyright: ignore

    wanted = np.mean([early(one, HELD) - early(one, None) for one in some])
    assert result.effect("seen_direct")["value"] == pytest.approx(wanted, abs=1e-9)
    assert result.record["units_confirmed"] == 3
    # No bands over fewer than 6 units: 6 prompts have the first steps, and not all the late ones.
    bands: Any = result.steps[result.steps["part"] == "total"].set_index("step")["low"]
    assert bands.notna()[0]
    few_prompts = found(run, kind="odd", trials=1, unit="trial", mediators=0)
    assert few_prompts.steps["low"].isna().all()
    all_of_them = found(run, kind="odd", trials=2, first=3, unit="prompt", mediators=0)
    assert all_of_them.effect("total")["value"] == pytest.approx(wanted, abs=1e-9)
    few = found(run, kind="odd")
    assert few.record["unit"] == "trial" and few.record["units"] == 6 * TRIALS
    assert any("say nothing of other prompts" in line for line in few.warnings())
    none = found(run, least=1000, mediators=0)
    assert none.pathways.empty and none.found().empty and none.graph.edges[0].target is None
    assert (
        "0 of 0 downstream latents" in none.headline() and ">What changes</h2>" not in none.page()
    )


def test_what_cannot_be_done_is_said(folder: Path) -> None:
    run = ran(folder, "S", False)
    for more, said in (
        ({"sites": (SOURCE,)}, "resid_pre.0 do not come after it"),
        ({"sites": (Site.parse("resid_post.1"),)}, "resid_post.1 was not recorded, or has no SAE"),
        ({"kind": "risky"}, "no prompts of the kind 'risky': it has even, odd"),
        ({"outcome": "logit:#99"}, r"the tokens \[99\], the model has 0 to 7"),
        ({"level": 1.5}, "level must lie between 0 and 1"),
        ({"first": 0, "batch_size": 0}, "one step must count; a batch has a row"),
    ):
        with pytest.raises(PathwayError, match=said):
            found(run, **more)
    two = Written.of(run)
    both = replace(two, source=[*two.source, *two.source])
    other = replace(two, source=[replace(two.source[0], value=3.5)])
    wrong = pathways(other, writer().model, writer().saes, Plan(Outcome("kl")), progress=False)
    assert wrong.record["replayed_error"] < 1e-6  # of the no-op arm alone, with kl
    by_odds = Plan(parse_outcome(ODDS, writer().model.tokenizer), mediators=0)
    wrong = pathways(other, writer().model, writer().saes, by_odds, progress=False)
    assert any("not as probable as it recorded" in line for line in wrong.warnings())
    with pytest.raises(PathwayError, match="changes 2 latents"):
        pathways(both, writer().model, writer().saes, Plan(Outcome("kl")), progress=False)


def test_arms_that_differ_by_chance_alone() -> None:
    """Two seeds of one model: what is found is false. The benchmark has 200 runs; fewer here, and
    the bound is passed once in a thousand honest runs at a rate of 5%."""
    alarms, low, runs = [], [], 12
    for seed in range(runs):
        given = drawn_prompts(12, 1000 + seed)
        first, second = (written(given, 3, 8, 2 * seed + i) for i in range(2))
        table: Any = changes(first, second, Units.of(np.repeat(np.arange(12), 3)))
        assert len(table) > 100
        alarms.append(bool((table["q"] <= 0.05).any()))
        low.append(float((table["p"] <= 0.05).mean()))
    assert sum(alarms) <= binom.ppf(0.999, runs, 0.05)
    assert 0.02 < np.mean(low) < 0.08
    same = written(drawn_prompts(12, 1000), 3, 8, 0)
    twice = written(drawn_prompts(12, 1000), 3, 8, 0)
    equal: Any = changes(same, twice, Units.of(np.repeat(np.arange(12), 3)))
    assert (equal["p"] == 1).all() and (equal["difference"] == 0).all()
