"""Words of a real run of replay: read from its folder as from a log written of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from circuits.replay import Change, Prompts, ReplayResult, replay
from circuits.replay.log import read_log, write_log
from circuits.replay.words import Rules, find_words
from circuits.task import Prompt
from tests import tiny
from tests.replayed import POST, random_saes
from tests.writer import SOURCE, STOP, latent, prompts, writer


def test_words_of_a_run(tmp_path: Path) -> None:
    model = tiny.bridge("llama")
    texts = ("the cat sat on the mat .", "a dog ran under the log .", "the red dog", "a red cat")
    given = [Prompt(t, kind) for t, kind in zip(texts, ("safe", "risky") * 2, strict=True)]
    changes = [Change(POST, 3, "hold", 40.0, "generated")]
    made = replay(
        model,
        random_saes([POST]),
        Prompts.of(given, model.tokenizer),
        changes,
        out=tmp_path / "run",
        trials=8,
        max_new_tokens=6,
        randoms=1,
        progress=False,
    )
    rules = Rules(resamples=100)
    found = find_words([tmp_path / "run"], rules=rules)
    assert found.features == [f"{POST}/3"] and found.record["task"] == made.record["task"]
    assert found.record["rules"]["paired"] and found.record["unit"] == "trial"
    assert found.compared(f"{POST}/3") == ["latent", "reconstruction", "random-1"]
    assert (found.arms["responses"] == 16).all() and found.record["difference"] == ("safe", "risky")
    log = tmp_path / "log.jsonl"
    write_log(log, read_log(tmp_path / "run"))
    again = find_words([log], rules=rules, paired=True)
    pd.testing.assert_frame_equal(again.table, found.table)


def held(feature: str, folder: Path) -> ReplayResult:
    """A replay of 40 prompts on the planted network, with one of its features held high."""
    made = writer()
    return replay(
        made.model,
        made.saes,
        prompts(40),
        [Change(SOURCE, latent(made, SOURCE, feature), "hold", 2.5)],
        trials=4,
        max_new_tokens=2,
        batch_size=80,
        stop=[STOP],
        randoms=0,
        out=folder,
        progress=False,
    )


@pytest.mark.parametrize("unit", ["prompt", "trial"])
def test_the_word_of_a_planted_latent_is_found(tmp_path: Path, unit: str) -> None:
    """S raises "yes" by construction (tests/writer.py), at the cost of "no", and writes no other
    word; the counts are those of the texts."""
    made = held("S", tmp_path / "run")
    found = find_words([tmp_path / "run"], rules=Rules(unit=unit, resamples=200))  # pyright: ignore
    assert found.record["unit"] == unit
    rows = found.of(f"{SOURCE}/{latent(writer(), SOURCE, 'S')}", "latent")
    of_kinds = rows[rows["p_fisher"].notna()].set_index(["kind", "word"])
    texts = made.responses
    for kind in ("even", "odd"):
        for word, verdict in (("yes", "added"), ("no", "removed")):
            row = of_kinds.loc[kind, word]
            mine = texts[texts["kind"] == kind]
            held_by = {
                arm: [word in text.split() for text in mine[mine["arm"] == arm]["response"]]
                for arm in ("latent", "no-op")
            }
            assert row["verdict"] == verdict
            assert (row["responses"], row["responses_baseline"]) == tuple(
                sum(held_by[arm]) for arm in ("latent", "no-op")
            )
            share = sum(held_by["latent"]) / 80 - sum(held_by["no-op"]) / 80
            assert row["difference"] == pytest.approx(share)
            assert row["low"] < row["log_odds"] < row["high"]
            assert row["low"] > 0 if verdict == "added" else row["high"] < 0
    assert set(rows[rows["verdict"] != "no evidence"]["word"]) <= {"yes", "no"}


@pytest.mark.parametrize("feature", ["T", "D"])
def test_a_latent_without_effect_changes_no_word(tmp_path: Path, feature: str) -> None:
    """Nobody reads T; of D only N hears, which nobody reads."""
    held(feature, tmp_path / "run")
    found = find_words([tmp_path / "run"], rules=Rules(resamples=100))
    rows = found.of(found.features[0], "latent")
    assert len(rows) > 2 and (rows["verdict"] == "no evidence").all()
    assert (rows["difference"] == 0).all() and (rows["p_permutation"] == 1).all()
