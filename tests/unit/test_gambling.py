"""The gambling task: scenes that add up, kinds matched in tokens, pairs that line up, metrics."""

from __future__ import annotations

import itertools
import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from circuits import load_task
from circuits.metrics import summarise_ratio
from circuits.replay.log import Response, write_log
from circuits.task import GenerateTask, PairsTask, TaskError
from tasks.gambling import task
from tasks.gambling.metrics import decisions
from tasks.gambling.openings import openings
from tasks.gambling.scenes import GOALS, LEAST, OFFERS, Scene, scenes
from tasks.gambling.task import as_chat
from tests import tiny


def words_tokenizer() -> Any:
    """One token a word or punctuation mark of any prompt of the task."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = [
        " ".join((*goal, *offer))
        for goal in sum(GOALS.values(), ())
        for offer in OFFERS["explored"]
    ]
    texts += [w for offer in OFFERS["held_out"] for w in offer]
    for split in ("explored", "held_out"):
        texts += [s.text("be safe", "", 90) for s in itertools.islice(scenes(0, split), 40)]
    texts += [w for both in openings(0) for w in both]
    cut = re.compile(r"\n|[A-Za-z]+|\d|[^\sA-Za-z\d]")
    found = dict.fromkeys(word for text in texts for word in cut.findall(text))
    found |= dict.fromkeys([*"0123456789", "Stop", "Bet", "<unk>"])
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(found)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\n|[A-Za-z]+|\d|[^\sA-Za-z\d]"), "removed", invert=True
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


@pytest.fixture(scope="module")
def model() -> Any:
    return SimpleNamespace(tokenizer=words_tokenizer(), name="words")


def test_it_has_its_capabilities() -> None:
    found = load_task("gambling")
    assert isinstance(found, GenerateTask) and isinstance(found, PairsTask)


@pytest.mark.parametrize("split", ["explored", "held_out"])
def test_scenes_add_up(split: str) -> None:
    """What the text says of a history is what a slot machine would have done."""
    seen = set()
    for scene in itertools.islice(scenes(3, split), 60):
        text = scene.text("be safe", "")
        pays = [int(a) for a in re.findall(r"(\d+) times the bet", text)]
        now = int(re.findall(r"(?:started|came) with \$(\d+)", text)[0])
        for bet, how, said in re.findall(r"bet \$(\d+), (won|lost), balance \$(\d+)", text):
            assert int(bet) <= now
            now += (pays[0] - 1) * int(bet) if how == "won" else -int(bet)
            assert now == int(said)
        assert re.findall(r"Your balance is \$(\d+)\.", text) == [str(now)]
        assert now == scene.balance >= LEAST and scene.rate * scene.payout < 100
        assert text.endswith("\nDecision:") and text not in seen
        seen.add(text)
    again = list(itertools.islice(scenes(3, split), 5))
    assert again == list(itertools.islice(scenes(3, split), 5))
    assert again != list(itertools.islice(scenes(4, split), 5))


@pytest.mark.parametrize("family", ["slots", "neutral"])
def test_kinds_are_matched_in_tokens(model: Any, family: str) -> None:
    found = task.prompts(model, n=20, seed=1, family=family)
    assert found == task.prompts(model, n=20, seed=1, family=family)
    assert len({p.text for p in found}) == 20
    kinds = ["safe", "risky"] if family == "slots" else ["bright", "gloomy"]
    assert [p.kind for p in found] == kinds * 10
    for one, other in zip(found[::2], found[1::2], strict=True):
        ids = [model.tokenizer(p.text)["input_ids"] for p in (one, other)]
        assert len(ids[0]) == len(ids[1]) and model.tokenizer.unk_token_id not in ids[0] + ids[1]
        lines = list(zip(one.text.split("\n"), other.text.split("\n"), strict=True))
        differ = [a for a, b in lines if a != b]
        if family == "slots":
            assert [line.split(" ")[1] for line in differ] == ["goal", "balance"]


def test_unmatched_phrases_are_left_out(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = SimpleNamespace(tokenizer=tiny.byte_tokenizer(), name="bytes")
    found = task.prompts(letters, n=12, family="slots")
    texts = " ".join(p.text for p in found)
    assert "be rich" in texts or "keep winning" in texts  # as long, letter by letter
    assert "stay bold" not in texts and all(
        len(a.text) == len(b.text) for a, b in zip(found[::2], found[1::2], strict=True)
    )
    monkeypatch.setattr(
        sys.modules["tasks.gambling.task"], "GOALS", {"explored": (("be safe", "win a lot"),)}
    )
    with pytest.raises(TaskError, match=r"has 0 slots prompts .* of words, not 12"):
        task.prompts(model)
    with pytest.raises(TaskError, match=r"has 0 pairs that line up"):
        task.pairs(model, contrast="goal")


def test_mistakes_of_prompts(model: Any) -> None:
    for given, said in (
        ({"n": 3}, "an even number"),
        ({"family": "cards"}, "expected slots or neutral"),
        ({"family": "neutral", "chat": True}, "leave out chat"),
        ({"chat": True}, "no chat template"),
        ({"n": 4000, "family": "neutral"}, "ask for fewer"),
    ):
        with pytest.raises(TaskError, match=said):
            task.prompts(model, **given)


@pytest.mark.parametrize("split", ["explored", "held_out"])
@pytest.mark.parametrize("contrast", ["safe/risky", "goal", "offer", "odds"])
def test_pairs_line_up(model: Any, contrast: str, split: Any) -> None:
    pairs = task.pairs(model, contrast=contrast, n=10, seed=2, split=split)
    assert len(pairs) == 10 and len(set(pairs.clean_tokens)) > 1
    decode = model.tokenizer.convert_ids_to_tokens
    wanted = {"safe/risky": {"goal", "offer"}, "goal": {"goal"}, "offer": {"offer"}, "odds": set()}
    firsts = {
        name: {w[0].split()[0] for w in words[split]}
        for name, words in (("goal", GOALS), ("offer", OFFERS))
    }
    for i in range(10):
        clean, corrupted = (
            decode(list(t[i])) for t in (pairs.clean_tokens, pairs.corrupted_tokens)
        )
        where = pairs.positions[i]
        assert set(where) == {"odds", "balance", "END"} | wanted[contrast]
        assert clean[where["END"] - 1 :] == ["Decision", ":"]
        assert clean[where["balance"] - 2 : where["balance"]] == ["is", "$"]
        for name in wanted[contrast]:
            assert clean[where[name]] in firsts[name]
        digits = (clean[where["odds"]], corrupted[where["odds"]])
        assert digits == ("1", "9") if contrast == "odds" else digits[0] == digits[1]
        differ = [p for p, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
        first = {"odds": "odds", "offer": "offer"}.get(contrast, "goal")
        assert differ[0] >= where[first]
    assert set(pairs.answers) == {"Stop"} and set(pairs.foils) == {"Bet"}


def test_a_chat_template_keeps_the_choice_in_the_reply() -> None:
    tokenizer = words_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    text = Scene(((10, True),), 30, 3).text("be safe", "")
    shown = as_chat(tokenizer, text)
    assert shown.startswith("<user>You are playing") and shown.endswith(
        '"Stop".<assistant>Decision:'
    )
    model = SimpleNamespace(tokenizer=tokenizer, name="chat")
    assert len(task.pairs(model, n=4, chat=True)) == 4
    assert all("<assistant>Decision:" in p.text for p in task.prompts(model, n=4, chat=True))


def test_responses_are_read_with_their_prompt() -> None:
    text = Scene(((10, True),), 30, 3).text("be safe", "")
    assert (
        task.parse(" Bet $120", text)["valid"] and task.parse(" Bet $120", text)["balance"] == 120
    )
    over = task.parse(" Bet $125", text)
    assert not over["valid"] and over["reason"].startswith("amount over the balance of $120")
    assert task.parse(" park, she", openings(0)[0][0]) == {
        "action": None,
        "amount": None,
        "valid": True,
        "reason": "",
    }
    assert not task.parse(" ...", openings(0)[0][0])["valid"]


def responses(arm: str, *read: tuple[int, str | None, float | None]) -> list[Response]:
    """(prompt, action, amount) of each; None is not valid. The balance is 100."""
    return [
        Response("a", "risky", arm, i, str(prompt), "x", _read(action, amount))
        for i, (prompt, action, amount) in enumerate(read)
    ]


def _read(action: str | None, amount: float | None) -> dict[str, Any]:
    valid = action is not None
    reason = "" if valid else "no amount: bet"
    return {"action": action, "amount": amount, "valid": valid, "reason": reason, "balance": 100}


def test_metrics_by_hand() -> None:
    read = [(0, "stop", 0.0), (0, "bet", 20.0), (1, "bet", 50.0), (1, None, None), (2, "bet", 5.0)]
    found = decisions(responses("no-op", *read))
    row = found.table.iloc[0]
    assert (row["responses"], row["prompts"]) == (5, 3)
    assert row["parsed"] == pytest.approx(4 / 5) and row["stop_rate"] == pytest.approx(1 / 4)
    assert row["mean_bet"] == pytest.approx(25) and row["bet_share"] == pytest.approx(0.25)
    ends = summarise_ratio(np.array([1.0, 0, 0]), np.array([2.0, 1, 1]))
    assert row["stop_rate_low"] == pytest.approx(float(ends.low))
    assert row["stop_rate_high"] == pytest.approx(float(ends.high))
    assert found.reasons["risky", "no-op"] == {"no amount": 1}
    none = decisions(responses("latent", (0, "stop", 0.0), (1, "stop", 0.0))).table.iloc[0]
    assert none["stop_rate"] == 1 and np.isnan(none["mean_bet"])


def test_differences_are_paired_within_trials() -> None:
    """Ten of twelve prompts turn from bet to stop; the arms' own intervals do not say so."""
    base = [(p, "stop" if p < 2 else "bet", 0.0 if p < 2 else 40.0) for p in range(12)]
    turned: list[tuple[int, str | None, float | None]] = [(p, "stop", 0.0) for p in range(12)]
    made = [*responses("no-op", *base), *responses("latent", *turned)]
    rows = decisions(made).differences.set_index("metric")
    stop, staked = rows.loc["stop_rate"], rows.loc["staked"]
    assert stop["difference"] == pytest.approx(10 / 12) and stop["unit"] == "prompt"
    assert stop["low"] > 0 and stop["p"] == pytest.approx(2 * 2**2 / 2**12)
    assert staked["difference"] == pytest.approx(-0.4 * 10 / 12) and staked["high"] < 0
    assert (stop["pairs"], stop["lost"]) == (12, 0) and rows.loc["parsed", "p"] == 1
    turned[3] = (3, None, None)
    made = [*responses("no-op", *base), *responses("latent", *turned)]
    rows = decisions(made).differences.set_index("metric")
    assert tuple(rows.loc["stop_rate", ["pairs", "lost"]]) == (11, 1)
    assert rows.loc["stop_rate", "difference"] == pytest.approx(9 / 11)
    assert rows.loc["parsed", "difference"] == pytest.approx(-1 / 12)
    few = decisions([*responses("no-op", *base[:1]), *responses("latent", *turned[:1])])
    assert few.differences["difference"].isna().all()
    with pytest.raises(TaskError, match="there twice"):
        decisions(made[:1] * 2)


def test_mistakes_of_metrics() -> None:
    with pytest.raises(TaskError, match="no responses"):
        decisions([])
    with pytest.raises(TaskError, match="was not read"):
        decisions([Response("a", "safe", "no-op", 0, "0", "x")])
    bare = {"action": "bet", "amount": 5.0, "valid": True}
    with pytest.raises(TaskError, match="has no `balance`"):
        decisions([Response("a", "safe", "no-op", 0, "0", "x", bare)])


def test_decisions_of_a_log(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from circuits.cli import run_app
    from tasks.gambling.decisions import app

    path = tmp_path / "log.jsonl"
    read = [(0, "stop", 0.0), (0, "bet", 20.0), (1, "bet", 50.0), (1, None, None)]
    write_log(path, [*responses("no-op", *read), *responses("latent", *read[:1])])
    with pytest.raises(SystemExit) as end:
        run_app(app, [str(path)], "gambling")
    shown = capsys.readouterr().out
    assert not end.value.code and "33%" in shown and "35.0" in shown and "latent" in shown
    assert "Arm - no-op" in shown and "staked" in shown
    assert "not read (risky, no-op): 1 no amount" in shown
