"""Words of a real run of replay: read from its folder as from a log written of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from circuits.replay import Change, Prompts, replay
from circuits.replay.log import read_log, write_log
from circuits.replay.words import Rules, find_words
from circuits.task import Prompt
from tests import tiny
from tests.replayed import POST, random_saes


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
