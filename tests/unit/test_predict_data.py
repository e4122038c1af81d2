"""Records and vectors: files of them, joins by id, the original study's data set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from circuits.labelled import (
    LabelError,
    Labelled,
    check_labels,
    read_labelled,
    write_labelled,
)
from circuits.predict import JoinError, Vectors, read_original, stream_original, write_original
from circuits.predict.surface import QUESTION, question_numbers, surface_groups
from circuits.predict.texts import (
    duplicate_pairs,
    masked,
    near_across,
    nearest,
    text_components,
    twin_pairs,
    unite,
)
from circuits.predict.vectors import Fitted
from tests.answers import made, vectors_of

LINE = {"id": "a", "group": "g", "prompt": "1 + 1 =", "completion": "2", "correct": True}


def write(path: Path, *entries: Any) -> Path:
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries))
    return path


def test_a_file_is_read_with_its_labels_and_surface_numbers(tmp_path: Path) -> None:
    more = {"kind": "carry", "late": True, "tries": 3, "entropy": 0.5, "gone": None}
    path = write(
        tmp_path / "d.jsonl",
        {**LINE, **more, "surface": {"steps": 2}},
        "",
        {**LINE, "id": 7, "group": 1, "correct": False},
    )
    first, second = read_labelled(path, ["tries"])
    assert first.labels == {"kind": "carry", "late": True}
    assert first.surface == {"steps": 2.0, "entropy": 0.5, "tries": 3.0}
    assert (second.id, second.group) == ("7", "1")
    assert first.target() is False and second.target() is True and first.target("kind") == "carry"
    with pytest.raises(LabelError, match="record '7' has no label 'kind': it has wrong"):
        second.target("kind")
    write_labelled(tmp_path / "e.jsonl", [first, second])
    assert read_labelled(tmp_path / "e.jsonl") == [first, second]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{k: v for k, v in LINE.items() if k != "group"}], "line 1: missing or of another type"),
        ([LINE, {**LINE, "id": "b", "correct": "yes"}], "line 2: .*correct as true or false"),
        ([LINE, {**LINE, "id": "b", "correct": 1}], "line 2: .*correct"),
        ([LINE, LINE], "id 'a' more than once"),
        ([LINE, "{"], "line 2: not JSON"),
        ([[1]], "line 1: expected an object"),
        ([{**LINE, "prompt": ""}], "line 1: a record has an empty prompt"),
        ([{**LINE, "x": [1]}], "line 1: x is neither a text"),
        ([{**LINE, "surface": {"steps": "two"}}], "line 1: surface numbers that are none: steps"),
        ([{**LINE, "surface": {"steps": float("nan")}}], "line 1: .*no finite number"),
        ([""], "holds no records"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, entries: list[Any], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        read_labelled(write(tmp_path / "d.jsonl", *entries))


def test_labels_from_which_nothing_can_be_learned_are_refused() -> None:
    records, _ = made(30)
    assert check_labels(records, "wrong", 3) == [False, True]
    with pytest.raises(LabelError, match="have wrong = False: two classes"):
        check_labels([r for r in records if r.correct], "wrong", 3)
    with pytest.raises(LabelError, match=r"too few groups: wrong = True in 2; 3 folds need 6"):
        few = [r for r in records if r.correct] + [r for r in records if not r.correct][:2]
        check_labels(few, "wrong", 3)
    # Rows of one group are one group, however many they are.
    with pytest.raises(LabelError, match="too few groups"):
        check_labels([replace(r, group="g") for r in records], "wrong", 2)


def test_vectors_are_joined_by_id_and_the_join_is_asserted() -> None:
    records, vectors = made(12)
    turned = vectors.join(records[::-1])
    assert turned.ids == tuple(r.id for r in records[::-1])
    assert np.array_equal(turned.values[0], vectors.values[11])
    with pytest.raises(JoinError, match="vectors of no record: id 'r11'"):
        vectors.join(records[:-1])
    with pytest.raises(JoinError, match="records without vectors: id 'new'"):
        vectors.join([*records[:-1], replace(records[-1], id="new")])
    with pytest.raises(LabelError, match="the records: id 'r0' more than once"):
        vectors.join([*records, records[0]])
    with pytest.raises(LabelError, match="the vectors: id 'r0' more than once"):
        replace(vectors, ids=("r0", *vectors.ids[:-1]))
    broken = vectors.values.copy()
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(JoinError, match="vectors of id 'r3' hold numbers"):
        replace(vectors, values=broken)


def test_a_join_by_place_is_caught_by_digests() -> None:
    records, vectors = made(12)
    shifted = replace(vectors, ids=(*vectors.ids[1:], vectors.ids[0]))
    with pytest.raises(JoinError, match="12 of 12 vectors were made from another prompt"):
        shifted.join(records)


def test_vectors_are_written_and_read(tmp_path: Path) -> None:
    _, vectors = made(6)
    fitted = (Fitted("SAE", frozenset({"r1"}), True), Fitted("other", None))
    whole = replace(vectors, fitted=fitted, source={"model": "tiny"})
    whole.save(tmp_path / "v.safetensors")
    again = Vectors.load(tmp_path / "v.safetensors")
    assert np.array_equal(again.values, whole.values) and again.fitted == fitted
    assert again.ids == whole.ids and again.source == {"model": "tiny"}
    (tmp_path / "bad").write_bytes(b"no")
    with pytest.raises(JoinError, match="is no file of vectors"):
        Vectors.load(tmp_path / "bad")
    two = Vectors.together([again, replace(again, ids=tuple(f"s{i}" for i in range(6)))])
    assert len(two) == 12 and two.values.shape[0] == 12
    pooled = vectors.pooled("mean", "both")
    assert pooled.values.shape == (6, 1, 1, 12) and pooled.positions == ("mean",)
    assert np.allclose(pooled.values[:, 0, 0], vectors.values.mean((1, 2)), atol=1e-6)
    assert np.array_equal(vectors.pooled("max").values[:, :, 0], vectors.values.max(2))


def original(n: int = 6) -> tuple[list[Labelled], Vectors]:
    """Records and vectors in the original's shape: three layers."""
    records, _ = made(n, twins=True)
    records = [
        replace(r, labels={"variant": "clean" if i % 2 else "corrupted"}, surface={})
        for i, r in enumerate(records)
    ]
    rng = np.random.default_rng(0)
    sites = ("early", "middle", "late")
    return records, vectors_of(records, rng.normal(size=(n, 3, 3, 4)).astype("f"), sites)


def test_the_originals_data_set_makes_a_round_trip(tmp_path: Path) -> None:
    records, vectors = original()
    path = tmp_path / "data.json"
    write_original(path, records, vectors, source="tiny")
    plain = json.loads(path.read_text())
    wrong = sum(not r.correct for r in records)
    assert plain["metadata"]["n_incorrect"] == wrong == len(plain["incorrect_solutions"])
    assert plain["metadata"]["n_latent_tokens"] == 3
    item = plain["correct_solutions"][0]
    assert set(item["continuous_thoughts"]) == {"early", "middle", "late"}
    assert np.shape(item["continuous_thoughts"]["late"]) == (3, 4)
    again, values = read_original(path)
    by_text = {r.prompt: r for r in records}
    assert len(again) == 6 and values.sites == ("early", "middle", "late")
    for record, row in zip(again, values.values, strict=True):
        mine = by_text[record.prompt]
        assert (record.group, record.correct) == (mine.group, mine.correct)
        assert record.id == f"{mine.group}-{mine.labels['variant']}"
        assert np.allclose(row, vectors.values[vectors.ids.index(mine.id)])


def test_a_large_data_set_is_read_item_by_item(tmp_path: Path) -> None:
    records, vectors = original(8)
    path = tmp_path / "data.json"
    write_original(path, records, vectors)
    whole = path.read_text()
    # The last item is cut off: those before it still come, one by one.
    (tmp_path / "cut.json").write_text(whole[: whole.rindex("continuous_thoughts")])
    found = []
    with pytest.raises(LabelError, match="is not whole JSON"):
        for item in stream_original(tmp_path / "cut.json"):
            found.append(item["pair_id"])
    assert len(found) == 7


def test_mistakes_in_the_originals_layout_are_named(tmp_path: Path) -> None:
    records, vectors = original()
    path = tmp_path / "data.json"
    write_original(path, records, vectors)
    plain = json.loads(path.read_text())
    with pytest.raises(LabelError, match="does not exist"):
        list(stream_original(tmp_path / "none.json"))
    for change, message in (
        ({"metadata": {"total": 7}}, "metadata say total 7, found 6"),
        ({"correct_solutions": plain["incorrect_solutions"]}, "is_correct contradicts"),
        ({"correct_solutions": [{"pair_id": 1}]}, "variant, question.*missing"),
    ):
        path.write_text(json.dumps(plain | change))
        with pytest.raises(LabelError, match=message):
            read_original(path)
    path.write_text(json.dumps({"metadata": {}, "items": []}))
    with pytest.raises(LabelError, match="neither correct_solutions nor"):
        read_original(path)


def test_surface_numbers_are_counted() -> None:
    found = dict(
        zip(QUESTION, question_numbers("Ann has 3 apples, 1,200 left and 3.5 more?"), strict=True)
    )
    assert found["numbers"] == 3 and found["digits"] == 7 and found["decimals"] == 1
    assert found["largest"] == pytest.approx(np.log1p(1200)) and found["words"] == 9
    assert found["operators"] == 2 and found["last"] == pytest.approx(np.log1p(3.5))
    records, _ = made(5)
    records[0] = replace(
        records[0], surface={"steps": 1.0, "answer_probability": 0.5, "other": 2.0}
    )
    groups = surface_groups(records)
    assert list(groups) == ["question", "completion", "steps", "output", "given", "all"]
    assert np.isnan(groups["output"][1:]).all() and groups["output"][0] == 0.5
    assert groups["all"].shape[1] == sum(v.shape[1] for k, v in groups.items() if k != "all")


def test_twins_and_duplicates_are_found_among_texts() -> None:
    texts = ["Ann has 3 red apples", "ann  has 3 red apples", "Ann has 4 red apples"]
    texts += ["Bob sold 12 old green hats", "Ann has 5 blue apples"]
    assert duplicate_pairs(texts) == [(0, 1)]
    assert twin_pairs(texts) == [(0, 1), (0, 2), (1, 2)]
    assert masked(texts[2]) == masked(texts[0]) == "ann has # red apples"
    alike = ["one two three four five", "one two three four fives", "abcdefgh" * 4]
    assert near_across(alike, np.array([0, 1, 1])) == 1
    assert near_across(alike, np.array([0, 0, 1])) == 0
    row, share = nearest(texts, np.array([0, 1, 1, 0, 1]))
    assert row[0] in (1, 2) and share[0] > share[3]
    assert unite(["a", "b", "c", "d"], [(0, 1), (1, 2)]) == ["a", "a", "a", "d"]
    assert text_components(["same"] * 5).shape == (5, 0)
