"""Prompt pairs: what is refused, and that nothing is padded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuits.prompts import Mark, Pair, PromptError, PromptPairs, read_pairs, resolve_bos
from tests import tiny
from tests.pairs import from_tokens, token_pairs

CLEAN, CORRUPTED = "the cat sat on the", "the dog sat on the"


def pair(**changes: Any) -> Pair:
    return replace(Pair(CLEAN, CORRUPTED, " mat", " log"), **changes)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


def test_pairs_are_tokenised_and_named(tokenizer: Any) -> None:
    marks = {"animal": Mark(4, 4), "after": Mark(4, 4, shift=1)}
    pairs = PromptPairs.from_texts([pair(marks=marks, template="t")], tokenizer)
    assert pairs.clean_strings[0] == ("the", "cat", "sat", "on", "the")
    assert (pairs.answers, pairs.foils) == (("mat",), ("log",))
    assert pairs.positions[0] == {"animal": 1, "after": 2, "END": 4}
    assert pairs.templates == ("t",) and not pairs.prepend_bos
    [group] = pairs.groups()
    assert group.first_differences().tolist() == [1] and group.clean.shape == (1, 5)


def test_a_beginning_of_text_token_is_put_first_on_request(tokenizer: Any) -> None:
    with_bos = tiny.tokenizer()
    with_bos.bos_token = "."
    pairs = PromptPairs.from_texts([pair(marks={"animal": Mark(4, 4)})], with_bos, True)
    assert pairs.clean_strings[0][0] == "." and pairs.positions[0]["animal"] == 2
    assert resolve_bos(with_bos, None) is False  # what this tokenizer does by itself
    with pytest.raises(PromptError, match="has no beginning-of-text token"):
        PromptPairs.from_texts([pair()], tokenizer, True)


def test_an_answer_of_several_tokens_is_named_by_its_first(tokenizer: Any) -> None:
    pairs = PromptPairs.from_texts([pair(answer=" red mat")], tokenizer)
    assert pairs.answers == ("red",)
    assert pairs.named_answers() == "answer 'red' (first token of ' red mat'), foil 'log'"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupted": "the red dog sat on the"}, "has 5 tokens and the corrupted one 6"),
        ({"corrupted": CLEAN}, "are the same tokens"),
        ({"foil": " mat"}, "answer and foil begin with the same token 'mat'"),
        ({"answer": ""}, "an empty answer or foil"),
        ({"answer": "mat"}, "melts into the last token"),
        ({"clean": "", "corrupted": ""}, "has no tokens"),
        ({"marks": {"x": Mark(0, 4)}}, "position 'x' is token 0 of .* but token 1 of"),
        ({"marks": {"x": Mark(3, 3)}}, "no token of .* holds its character 3"),
        ({"marks": {"x": Mark(0, 0, shift=-1)}}, "named positions outside its 5 tokens"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(
    tokenizer: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        PromptPairs.from_texts([pair(**changes)], tokenizer)


def test_no_pairs_are_refused(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="there are no prompt pairs"):
        PromptPairs.from_texts([], tokenizer)
    with pytest.raises(PromptError, match="there are no prompt pairs"):
        PromptPairs(**{**dict.fromkeys(vars(token_pairs(1)), ()), "prepend_bos": False})


def test_every_problem_is_counted(tokenizer: Any) -> None:
    bad = [pair(foil=" mat")] * 5
    with pytest.raises(PromptError, match=r"pair 0.*pair 2.*\(and 2 more\)"):
        PromptPairs.from_texts(bad, tokenizer)


def test_groups_are_by_length_and_never_padded(tokenizer: Any) -> None:
    longer = pair(clean="then " + CLEAN, corrupted="then " + CORRUPTED)
    pairs = PromptPairs.from_texts([longer, pair(), longer, longer], tokenizer)
    groups = list(pairs.groups(2))
    assert [g.indices for g in groups] == [(1,), (0, 2), (3,)]
    assert [g.clean.shape[1] for g in groups] == [5, 6, 6]
    assert [g.part(slice(1, None)).indices for g in groups] == [(), (2,), ()]


def test_fields_of_unequal_length_are_refused() -> None:
    pairs = token_pairs(2)
    with pytest.raises(PromptError, match="foils has 1 entries for 2 pairs"):
        PromptPairs(**{**vars(pairs), "foils": ("x",)})


def test_first_differences_are_each_pairs_own() -> None:
    clean = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]])
    corrupted = torch.tensor([[5, 6, 9, 8], [5, 9, 7, 8]])
    [group] = from_tokens(clean, corrupted, torch.tensor([3, 3]), torch.tensor([4, 4])).groups()
    assert group.first_differences().tolist() == [2, 1]


def test_a_model_without_a_tokenizer_says_so() -> None:
    with pytest.raises(PromptError, match="has no tokenizer"):
        PromptPairs.from_texts([pair()], None)


def test_a_pairs_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    entry = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " mat", "foil": " log"}
    odd = json.dumps({**entry, "template": "a\u2028b"}, ensure_ascii=False)  # one line all the same
    path.write_text("\ufeff" + json.dumps(entry) + "\n\n" + odd + "\n", encoding="utf-8")
    assert read_pairs(path) == [pair(), pair(template="a\u2028b")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no pairs"),
        ("{", "line 1: not JSON"),
        ('{"clean": "a"}', "line 1: missing or not a text: corrupted, answer, foil"),
        ('["clean"]', "line 1: missing or not a text"),
        ('\n{"clean": 1, "corrupted": "a", "answer": "b", "foil": "c"}', "line 2: .*: clean"),
    ],
)
def test_a_damaged_pairs_file_names_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(PromptError, match=message):
        read_pairs(path)


def test_a_pairs_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes('{"clean": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(PromptError, match="cannot be read as UTF-8"):
        read_pairs(path)


def test_a_missing_pairs_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="does not exist"):
        read_pairs(tmp_path / "none.jsonl")
