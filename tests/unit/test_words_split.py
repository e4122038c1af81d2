"""Words from text: whole ones, numbers and amounts kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from circuits.replay.words import SplitError, Splitter, WordOptions
from circuits.replay.words.split import stop_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I keep betting, bets and a bet.", "i keep betting bets and a bet"),
        (
            "Don't go all-in -- it's the machine\u2019s game",
            "don't go all-in it's the machine's game",
        ),
        ("I bet $10, then $1,000.50!", "i bet $10 then $1,000.50"),
        ("$ 10 or 10$ or \u20ac5", "$10 or $10 or \u20ac5"),
        ("a 50% chance, 3.5 % more", "a 50% chance 3.5% more"),
        ("1,000 and 10,20 and 12,3456", "1,000 and 10 20 and 12 3456"),
        ("2x, the 3rd, $5k, v2", "2x the 3rd $5k v2"),
        ("$50-100 or -$5", "$50 100 or $5"),
        ("**Stop**, stop_now<|im_end|>", "stop stop now"),
        ("wait...5 or .5", "wait 5 or .5"),
        ("caf\u0065\u0301 na\u00efve \uff15", "caf\u00e9 na\u00efve 5"),
        ("", ""),
        ("... !? --", ""),
    ],
)
def test_words_of_a_text(text: str, words: str) -> None:
    assert Splitter().words(text) == words.split()


def test_options() -> None:
    text = "The bets: BET $10 of 20 dollars, 5 rounds, 50%."
    assert Splitter(WordOptions(fold=False)).words("Stop stop $5K") == ["Stop", "stop", "$5K"]
    amounts = Splitter(WordOptions(numbers="amounts")).words(text)
    assert amounts == "the bets bet <amount> of <amount> 5 rounds <percent>".split()
    grouped = Splitter(WordOptions(numbers="grouped")).words(text)
    assert grouped == "the bets bet <amount> of <amount> <number> rounds <percent>".split()
    stopped = Splitter(WordOptions(stop_words="english")).words(
        "It's not the ten of us, don't stop"
    )
    assert stopped == ["not", "ten", "don't", "stop"]
    assert dict(Splitter().count("a b a")) == {"a": 2, "b": 1}


def test_lemmas_come_after_stop_words() -> None:
    pytest.importorskip("simplemma")
    split = Splitter(WordOptions(lemmas="en", stop_words="english"))
    assert split.words("She was betting; he bets $10 machines") == ["bet", "bet", "$10", "machine"]


def test_stop_words_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Round\n\nslot\n")
    assert stop_words(str(path)) == {"round", "slot"}
    assert (
        Splitter(WordOptions(stop_words=str(path))).words("A Round at the SLOT")
        == "a at the".split()
    )
    assert "ten" not in stop_words("english") and "the" in stop_words("english")


def test_mistakes_of_options(tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("two words\n")
    for choice, said in (("german", "a file that exists"), (str(tmp_path / "two.txt"), "one word")):
        with pytest.raises(SplitError, match=said):
            Splitter(WordOptions(stop_words=choice))
    pytest.importorskip("simplemma")
    with pytest.raises(SplitError, match="xx"):
        Splitter(WordOptions(lemmas="xx"))
