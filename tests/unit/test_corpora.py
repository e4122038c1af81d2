"""Documents, sources, and mixes of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from circuits.corpora import CorpusError, Document, open_source, parse_corpus
from tests import corpus, tiny


def texts(spec: str, **options: Any) -> list[str]:
    return [d.text for d in open_source(spec, **options).documents()]


def test_a_folder_a_glob_and_a_file_give_the_same_documents(tmp_path: Path) -> None:
    folder = corpus.write(tmp_path / "texts", 5)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.txt").write_text("not this")
    wanted = sorted(p.read_text() for p in folder.glob("*.txt"))
    assert sorted(texts(str(folder))) == wanted
    assert sorted(texts(f"{folder}/*.txt")) == wanted
    assert sorted(texts(f"{tmp_path}/**/0*.txt")) == wanted
    assert texts(str(folder / "000.txt")) == [(folder / "000.txt").read_text()]
    assert texts(str(folder)) == texts(str(folder))


def test_jsonl_and_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "one"}\n\n{"body": "two"}\n')
    assert texts(str(path), text_field="body") == ["one", "two"]
    with pytest.raises(
        CorpusError, match=r"line 1: expected a JSON object with the text in 'text'"
    ):
        texts(str(path))
    path.write_text('{"text": 3}\n')
    with pytest.raises(CorpusError, match="line 1: 'text' is no text"):
        texts(str(path))


def test_hub_data_is_streamed(tmp_path: Path) -> None:
    """A folder in the hub's layout is read by the same code as a data set of the hub."""
    pd.DataFrame({"text": ["first one", "second one"], "id": ["a", "b"]}).to_parquet(
        tmp_path / "train.parquet"
    )
    found = list(open_source(f"hub:{tmp_path}").documents())
    assert [d.text for d in found] == ["first one", "second one"]
    assert found[1].name.endswith(":b")
    with pytest.raises(CorpusError, match="no text in the column 'body'; its columns are text, id"):
        texts(f"hub:{tmp_path}", text_field="body")


def test_wikipedia_is_named_by_language_and_date() -> None:
    source: Any = open_source("wikipedia:de:20220301")
    assert (source.path, source.config) == ("wikimedia/wikipedia", "20220301.de")
    assert open_source("wikipedia:en").describe()["config"] == "20231101.en"


def test_what_is_not_there_says_what_there_is() -> None:
    with pytest.raises(
        CorpusError, match=r"is no file, folder or glob with text in it.*django-docs"
    ):
        open_source("nowhere/at/all")


def test_the_standard_library_is_source_without_its_tests() -> None:
    source: Any = open_source("stdlib")
    names = {str(p.relative_to(source.root)) for p in source.paths}
    assert {"json/decoder.py", "argparse.py"} <= names
    assert not any("test" in Path(n).parts or "site-packages" in n for n in names)


def test_shares_of_tokens_follow_weights(tmp_path: Path) -> None:
    one, two = corpus.write(tmp_path / "one"), corpus.write(tmp_path / "two", seed=1)
    mixed = parse_corpus([f"{one}=3", f"{two}=1"], tiny.tokenizer(), context=24, smallest=4)
    counts: Counter[str] = Counter()
    for context in mixed.contexts():
        counts[context.source] += len(context.tokens)
        if sum(counts.values()) > 4000:
            break
    assert counts[str(one)] / counts[str(two)] == pytest.approx(3, rel=0.1)


def test_documents_are_on_one_side_of_the_split_and_copies_are_left_out(tmp_path: Path) -> None:
    folder = corpus.write(tmp_path / "texts")
    (folder / "copy.txt").write_text((folder / "000.txt").read_text())
    made = corpus.corpus(folder)
    sides: dict[int, set[str]] = {}
    for context in made.contexts():
        sides.setdefault(context.document, set()).add(context.split)
        assert 4 <= len(context.tokens) <= 24
    assert len(sides) == 60
    assert all(len(side) == 1 for side in sides.values())
    held = sum(side == {"heldout"} for side in sides.values())
    assert 4 <= held <= 22  # 12 expected
    first = Document("a", "same words")
    assert made.split_of(first) == made.split_of(Document("b", "same words"))
    assert [c.split for c in made.contexts("heldout")] == ["heldout"] * sum(
        c.split == "heldout" for c in made.contexts()
    )


def test_contexts_are_the_text_in_order(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    path = tmp_path / "one.txt"
    path.write_text(" ".join(corpus.WORDS * 5))
    made = parse_corpus([str(path)], tokenizer, context=24, smallest=4, heldout=0.0)
    ids = [t for c in made.contexts() for t in c.tokens]
    assert ids == tokenizer(path.read_text())["input_ids"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heldout": 1.0}, "held-out share is 1.0"),
        ({"context": 8, "smallest": 16}, "contexts of 8 tokens"),
    ],
)
def test_mixes_that_mean_nothing(tmp_path: Path, options: Any, message: str) -> None:
    folder = corpus.write(tmp_path / "texts", 2)
    with pytest.raises(CorpusError, match=message):
        corpus.corpus(folder, **options)
    with pytest.raises(CorpusError, match="named twice"):
        parse_corpus([str(folder), str(folder)], tiny.tokenizer())
    with pytest.raises(CorpusError, match="weights must be positive"):
        parse_corpus([f"{folder}=0"], tiny.tokenizer())
    with pytest.raises(CorpusError, match="no tokenizer"):
        parse_corpus([str(folder)], None)


def test_a_description_changes_with_a_file(tmp_path: Path) -> None:
    folder = corpus.write(tmp_path / "texts", 3)
    before = open_source(str(folder)).describe()
    (folder / "000.txt").write_text("something else")
    assert open_source(str(folder)).describe() != before
    assert json.dumps(before)
