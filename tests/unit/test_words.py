"""Words that an arm adds and removes: planted ones found, none in a null, and what is on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from circuits.replay.log import Response, write_log
from circuits.replay.words import (
    Rules,
    Splitter,
    WordsError,
    WordsResult,
    compare,
    count,
    find_words,
    write_original,
)
from circuits.runs import RunError
from tests.unit.test_cli import run

VOCABULARY = "stop bet again now $10 the slot 50% lose win risk round game next money".split()
ARMS = ("no-op", "random-1", "random-2", "latent")
WHO = "resid_post.3/7"


def responses(
    seed: int,
    *,
    prompts: int = 12,
    trials: int = 6,
    arms: Sequence[str] = ARMS,
    kinds: Sequence[str] = ("safe", "risky"),
    planted: dict[str, float] | None = None,
    feature: str = WHO,
) -> list[Response]:
    """Responses of twelve words; each prompt has words of its own, so that its trials are alike.

    planted: by kind, how often the latent arm writes "betting" and never "stop".
    """
    rng = np.random.default_rng(seed)
    made = []
    for kind in kinds:
        for prompt in range(prompts):
            taste = rng.dirichlet(np.ones(len(VOCABULARY)))
            for arm in arms:
                for trial in range(trials):
                    words = rng.choice(VOCABULARY, 12, p=taste).tolist()
                    if arm == "latent" and rng.random() < (planted or {}).get(kind, 0):
                        words = ["betting" if w == "stop" else w for w in [*words, "betting"]]
                    made.append(Response(feature, kind, arm, trial, str(prompt), " ".join(words)))
    return made


def compared(made: Sequence[Response], **rules: Any) -> Any:
    return compare(count(made, Splitter()), Rules(**{"resamples": 100, **rules}))


@pytest.mark.parametrize("unit", ["prompt", "trial"])
@pytest.mark.parametrize("paired", [True, False])
def test_planted_words_are_found(unit: Any, paired: bool) -> None:
    made = responses(0, planted={"safe": 0.0, "risky": 0.8})
    found = compared(made, unit=unit, paired=paired)
    table = found.table.set_index(["arm", "kind", "word"])
    assert found.difference == ("safe", "risky") and found.unit == unit
    added = table.loc["latent", "risky", "betting"]
    assert added["verdict"] == "added" and added["difference"] > 0.5
    assert 0 < added["low"] < added["log_odds"] < added["high"] and added["z"] > 3
    gone = table.loc["latent", "risky", "stop"]
    assert gone["verdict"] == "removed" and gone["difference"] < 0 and gone["high"] < 0
    assert table.loc["latent", "risky - safe", "betting"]["verdict"] == "added"
    assert table.loc["latent", "risky - safe", "betting"]["log_odds"] > 0
    wrong = table[(table["verdict"] != "no evidence")]
    assert set(wrong.index) <= {
        ("latent", kind, word) for kind in ("risky", "risky - safe") for word in ("betting", "stop")
    }


def test_figures_of_a_row_by_hand() -> None:
    made = responses(1, planted={"safe": 0.3, "risky": 0.3})
    table = compared(made, prior=0.2).table.set_index(["arm", "kind", "word"])
    row = table.loc["latent", "safe", "betting"]
    sides = {
        arm: [r.response.split() for r in made if r.arm == arm and r.kind == "safe"]
        for arm in ("latent", "no-op")
    }
    counts = {arm: sum(words.count("betting") for words in s) for arm, s in sides.items()}
    totals = {arm: sum(map(len, s)) for arm, s in sides.items()}
    held = {arm: sum("betting" in words for words in s) for arm, s in sides.items()}
    assert (row["count"], row["count_baseline"]) == (counts["latent"], counts["no-op"])
    assert (row["total"], row["responses"], row["n"]) == (totals["latent"], held["latent"], 72)
    assert row["difference"] == pytest.approx((held["latent"] - held["no-op"]) / 72)
    a, every = 0.2 * sum(counts.values()), 0.2 * sum(totals.values())
    odds = [
        np.log((counts[k] + a) / (totals[k] + every - counts[k] - a)) for k in ("latent", "no-op")
    ]
    assert row["log_odds"] == pytest.approx(odds[0] - odds[1], abs=1e-12)
    spread = sum(1 / (counts[k] + a) for k in counts)
    assert row["z"] == pytest.approx((odds[0] - odds[1]) / np.sqrt(spread), abs=1e-12)
    assert np.isnan(table.loc["latent", "risky - safe", "betting"]["p_fisher"])


@pytest.mark.parametrize(("unit", "paired"), [("prompt", False), ("trial", True), ("trial", False)])
def test_nothing_is_found_in_nulls(unit: Any, paired: bool) -> None:
    """40 null logs: any word at all in at most a share of .05 (8 of 40 is one in 1,400), and small
    p values, of all words together, no more often than they say."""
    arms = ("no-op", "latent")
    hits, twice, p = 0, 0, [[], []]
    for seed in range(40):
        made = responses(seed, prompts=11, trials=4, arms=arms)
        table = compared(made, unit=unit, paired=paired, permutations=999).table
        effects = table["p_fisher"].notna()
        hits += bool((table[effects]["verdict"] != "no evidence").any())
        twice += bool((table[~effects]["verdict"] != "no evidence").any())
        p[0] += table[effects]["p_permutation"].tolist()
        p[1] += table[~effects]["p_permutation"].tolist()
    assert hits < 8 and twice < 8
    for part in map(np.array, p):
        # 600 or 1,200 p values; they come in steps and are large rather than small, but not so
        # large that nothing could ever be found.
        assert len(part) >= 600 and 0.005 < (part <= 0.05).mean() < 0.06
        assert (part <= 0.005).mean() < 0.01


def test_the_baseline_and_the_kinds_can_be_chosen() -> None:
    made = responses(2, planted={"risky": 0.9}, arms=("no-op", "latent"))
    forward = compared(made, unit="prompt").table.set_index(["kind", "word"])
    back = compared(made, unit="prompt", baseline="latent", difference=("risky", "safe")).table
    back = back.set_index(["kind", "word"])
    assert set(back["arm"]) == {"no-op"}
    for word in ("betting", "stop"):
        there, here = forward.loc["risky", word], back.loc["risky", word]
        assert here["log_odds"] == pytest.approx(-there["log_odds"])
        assert here["p_fisher"] == pytest.approx(there["p_fisher"])
        turned = back.loc["safe - risky", word]["log_odds"]
        assert turned == pytest.approx(forward.loc["risky - safe", word]["log_odds"])


def test_rare_words_are_left_out_by_what_both_arms_hold() -> None:
    made = [
        Response(WHO, "safe", arm, t, str(p), "rare word" if t == 0 and p < 3 else "word")
        for arm in ("no-op", "latent")
        for p in range(4)
        for t in range(2)
    ]
    assert set(compared(made, min_responses=6).table["word"]) == {"rare", "word"}
    assert set(compared(made, min_responses=7).table["word"]) == {"word"}
    assert compared(made, min_responses=6).unit == "trial"  # four prompts are too few


def test_random_arms_stand_beside() -> None:
    table = compared(responses(3, planted={"safe": 0.9, "risky": 0.9})).table
    rows = table.set_index(["arm", "kind", "word"])
    mine = rows.loc["latent", "safe", "stop"]
    chance = [rows.loc[arm, "safe", "stop"]["log_odds"] for arm in ("random-1", "random-2")]
    assert (mine["random_low"], mine["random_high"]) == (min(chance), max(chance))
    assert mine["verdict"] == "removed" and mine["random_same"] == 0
    strong = [
        Response(r.feature, r.kind, "random-1" if r.arm == "latent" else r.arm, *_rest(r))
        for r in responses(3, planted={"safe": 0.9, "risky": 0.9})
        if r.arm != "random-1"
    ]
    strong += [r for r in responses(3, planted={"safe": 0.9, "risky": 0.9}) if r.arm == "latent"]
    rows = compared(strong).table.set_index(["arm", "kind", "word"])
    assert rows.loc["latent", "safe", "stop"]["random_same"] == 1
    assert rows.loc["random-1", "safe", "stop"]["random_same"] == 0  # it is not beside itself


def _rest(r: Response) -> tuple[Any, ...]:
    return r.trial, r.prompt, r.response


def test_mistakes() -> None:
    made = responses(0, prompts=3, trials=2, arms=("no-op", "latent"))
    with pytest.raises(WordsError, match=r"the arms no-op, latent: expected 'plain'"):
        compared(made, baseline="plain")
    with pytest.raises(WordsError, match=r"no-op has none"):
        compared([r for r in made if (r.kind, r.arm) != ("safe", "no-op")])
    with pytest.raises(WordsError, match=r"prompt '2' has responses in one arm only"):
        compared([r for r in made if (r.prompt, r.arm) != ("2", "latent")])
    unlike = [r for r in made if (r.prompt, r.arm, r.trial) != ("2", "latent", 1)]
    assert len(compared(unlike).table)
    with pytest.raises(WordsError, match=r"do not pair, 5 responses and 6"):
        compared(unlike, paired=True)
    with pytest.raises(WordsError, match="one prompt cannot be exchanged"):
        compared([r for r in made if r.prompt == "0"], unit="prompt")
    for text, n in (("stop stop", 1), ("...", 0)):  # the log odds of one word are infinite
        with pytest.raises(WordsError, match=rf"safe: latent .* have {n} different words"):
            compared([replace(r, response=text) for r in made if r.kind == "safe"])
    assert np.isfinite(compared([replace(r, response="stop bet") for r in made]).table["z"]).all()
    with pytest.raises(WordsError, match="no kind 'wild'"):
        compared(made, difference=("safe", "wild"))
    for wrong in ({"level": 1.0}, {"prior": 0.0}, {"permutations": 5}, {"difference": ("a", "a")}):
        with pytest.raises(WordsError, match="expected"):
            Rules(**wrong)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "log.jsonl"
    write_log(path, responses(5, prompts=12, trials=5, planted={"safe": 0.2, "risky": 0.9}))
    return path


def test_from_the_command_line(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    given = ["replay", "words", log, "--out", out, "--format", "original", "--stop-words"]
    status, shown, complaints = run(capsys, *given, "english", "--feature", WHO)
    assert status == 0, complaints
    flat = " ".join(shown.split())
    assert f"{WHO}, latent against no-op" in flat and "betting" in shown and "Sign:" in shown
    assert "Labels of whole prompts were exchanged (12 prompts a kind)" in flat
    result = WordsResult.load(out)
    assert "the" not in set(result.table["word"]) and "$10" in set(result.table["word"])
    assert result.record["command"][:2] == ["circuits", "replay"]
    again = run(capsys, "show", out)[1]
    status, _, complaints = run(capsys, "show", out, "--outcome", "length")
    assert status == 2 and "for runs of replay" in complaints
    assert again.strip() in shown
    files = sorted(p.name for p in (out / "original").iterdir())
    assert len(files) == 6 and files[0] == "resid_post.3-7_risky_latent.csv"
    made = pd.read_csv(out / "original" / files[0]).set_index("word")
    row = result.of(WHO, "latent", "risky").set_index("word").loc["betting"]
    assert made.loc["betting", "patched_count"] == row["count"]
    assert made.loc["betting", "patched_freq"] == pytest.approx(row["count"] / row["total"])
    assert made.loc["betting", "log_odds_ratio"] == pytest.approx(row["log_odds"])
    assert list(made.columns)[:2] == ["baseline_freq", "patched_freq"]
    for wrong, said in (
        (["--difference", "safe"], "expected two kinds"),
        (["--feature", "other"], "no responses of other"),
        (["--stop-words", "nowhere.txt"], "a file that exists"),
    ):
        status, _, complaints = run(capsys, "replay", "words", log, *wrong)
        assert status == 2 and said in complaints
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "replay", "words", tmp_path / "none.jsonl")[0] == 2
    assert not (tmp_path / "runs").exists()


def test_a_result_on_disk_and_drawn(log: Path, tmp_path: Path) -> None:
    result = find_words([log], rules=Rules(resamples=100), background=log)
    assert result.record["background"]["sha256"] == result.record["logs"][0]["sha256"]
    back = WordsResult.load(result.save(tmp_path / "run"))
    pd.testing.assert_frame_equal(back.table, result.table)
    pd.testing.assert_frame_equal(back.arms, result.arms)
    assert back.headline() == result.headline() and back.page() == result.page()
    figure: Any = result.figure()
    names = [a.text for a in figure.layout.annotations]
    assert names == ["safe", "risky", "risky \u2212 safe"]
    for axis in ("xaxis", "xaxis2", "xaxis3"):  # zero stands in the middle
        low, high = figure.layout[axis].range
        assert low == -high
    dots = [t for t in figure.data if t.type == "scatter" and t.name == "added" and t.xaxis == "x2"]
    words = list(figure.layout.yaxis.ticktext)
    assert "betting" in [words[i] for t in dots for i in t.y] and all(
        x > 0 for t in dots for x in t.x
    )
    with pytest.raises(WordsError, match="no arm 'x'"):
        result.figure(WHO, "x")
    with pytest.raises(WordsError, match="no feature 'x'"):
        result.figure("x")
    record = dict(result.record, method="patch")
    WordsResult(result.table, result.arms, record).save(tmp_path / "other")
    with pytest.raises(RunError, match="'patch'"):
        WordsResult.load(tmp_path / "other")


def test_many_features_of_a_log() -> None:
    """The same words are found for a feature whatever else the log holds."""
    one = responses(6, planted={"risky": 0.9}, arms=("no-op", "latent"), feature="a/1")
    two = responses(7, arms=("no-op", "latent"), feature="b/2")
    alone, together = compared(one).table, compared([*two, *one]).table
    mine = together[together["feature"] == "a/1"].sort_values(["kind", "word"])
    alone = alone.sort_values(["kind", "word"])
    columns = ["kind", "word", "log_odds", "low", "high", "p_permutation", "p_fisher", "q"]
    pd.testing.assert_frame_equal(
        mine[columns].reset_index(drop=True), alone[columns].reset_index(drop=True)
    )
    whole = compared([*two, *one], family="log").table
    assert (whole.sort_values(["feature", "kind", "word"])["q"].to_numpy() > 0).all()
    assert not np.allclose(whole["q"], together["q"])


def test_file_names_of_the_original_format_never_meet(tmp_path: Path) -> None:
    made = [
        *responses(
            0, prompts=2, trials=3, arms=("no-op", "latent"), kinds=("safe",), feature="a/1"
        ),
        *responses(
            1, prompts=2, trials=3, arms=("no-op", "latent"), kinds=("safe",), feature="a:1"
        ),
    ]
    path = tmp_path / "log.jsonl"
    write_log(path, made)
    result = find_words([path], rules=Rules(resamples=100))
    written = write_original(result, tmp_path / "original")
    assert [p.name for p in written] == ["a-1_safe_latent.csv", "a-1_safe_latent-2.csv"]
