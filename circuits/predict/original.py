"""The original study's data set of continuous thoughts, read item by item and written.

`{metadata{n_correct, n_incorrect, total, source, layers, layer_indices, n_latent_tokens},
correct_solutions[], incorrect_solutions[]}`, an item being `pair_id, variant, question,
ground_truth, predicted, is_correct, continuous_thoughts{NAME: n_latent_tokens x [d_model]}`.

The names (early, middle, late) are of layers; `layer_indices` are indices of hidden states: k is
the residual stream after block k-1, and the last one is after the final norm. They are kept as
they are, because which block an index means depends on the model.

An item's id is PAIR-VARIANT, its group the pair. It is never its place in the list: joining labels
by place is the mistake that spoiled the original result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from circuits.labelled import LabelError, Labelled
from circuits.predict.vectors import Vectors

_LISTS = {"correct_solutions": True, "incorrect_solutions": False}
_KEYS = ("pair_id", "variant", "question", "is_correct", "continuous_thoughts")


def stream_original(path: str | Path) -> Iterator[dict[str, Any]]:
    """The items of a data set, one by one; the file is never in memory as a whole.

    Raises `LabelError` for files in another layout and items that contradict the list they are in.
    """
    import ijson

    path = Path(path)
    if not path.is_file():
        raise LabelError(f"the data set {path} does not exist.")
    try:
        with path.open("rb") as file:
            yield from _items(ijson.parse(file, use_float=True), path)
    except ijson.JSONError as error:
        raise LabelError(f"{path} is not whole JSON ({error}).") from error


def _items(events: Iterator[tuple[str, str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    """Build items from the events of one pass, whatever the order of the lists."""
    import ijson

    builder: Any = None
    seen: set[str] = set()
    for prefix, event, value in events:
        name, _, inside = prefix.partition(".item")
        if name not in _LISTS:
            continue
        if not inside and event == "start_array":
            seen.add(name)
        if inside == "" and event == "start_map":
            builder = ijson.ObjectBuilder()
        if builder is None:
            continue
        builder.event(event, value)
        if prefix == f"{name}.item" and event == "end_map":
            yield _checked(builder.value, _LISTS[name], path)
            builder = None
    if not seen:
        raise LabelError(
            f"{path} has neither correct_solutions nor incorrect_solutions: this is another format."
        )


def _checked(item: Any, correct: bool, path: Path) -> dict[str, Any]:
    missing = [key for key in _KEYS if key not in item]
    where = f"{path}, item {item.get('pair_id')!r} {item.get('variant')!r}"
    if missing:
        raise LabelError(f"{where}: {', '.join(missing)} missing.")
    if item["is_correct"] is not correct:
        raise LabelError(f"{where} is in the list of other answers: is_correct contradicts it.")
    return item


def metadata_of(path: str | Path) -> dict[str, Any]:
    """The `metadata` object, without reading what follows it."""
    import ijson

    with Path(path).open("rb") as file:
        for found in ijson.items(file, "metadata", use_float=True):
            return found
    raise LabelError(f"{path} has no metadata.")


def read_original(path: str | Path) -> tuple[list[Labelled], Vectors]:
    """Records and thoughts of a data set; raises `LabelError` for what does not fit together."""
    metadata = metadata_of(path)
    records: list[Labelled] = []
    rows: list[np.ndarray] = []
    names: tuple[str, ...] = ()
    for item in stream_original(path):
        thoughts = item["continuous_thoughts"]
        names = names or tuple(thoughts)
        record = Labelled(
            id=f"{item['pair_id']}-{item['variant']}",
            group=str(item["pair_id"]),
            prompt=item["question"],
            completion=str(item.get("predicted", "")),
            correct=item["is_correct"],
            labels={k: item[k] for k in ("variant",) if isinstance(item[k], str)},
        )
        try:
            row = np.array([thoughts[name] for name in names], dtype=np.float32)
        except (KeyError, ValueError) as error:
            raise LabelError(f"{path}, item {record.id}: thoughts do not fit ({error}).") from error
        if row.ndim != 3 or (rows and row.shape != rows[0].shape) or set(thoughts) != set(names):
            raise LabelError(
                f"{path}, item {record.id}: thoughts {row.shape} of {', '.join(thoughts)}; expected"
                f" {rows[0].shape if rows else 'layer x token x d_model'} of {', '.join(names)}."
            )
        records.append(record)
        rows.append(row)
    if not rows:
        raise LabelError(f"{path} holds no items.")
    wrong = [
        f"{key} {metadata[key]}, found {found}"
        for key, found in (("total", len(rows)), ("n_correct", sum(r.correct for r in records)))
        if key in metadata and metadata[key] != found
    ]
    if wrong:
        raise LabelError(f"{path}: its metadata say {'; '.join(wrong)}. It is damaged or cut.")
    vectors = Vectors(
        np.stack(rows),
        tuple(r.id for r in records),
        tuple(r.digest for r in records),
        names,
        tuple(f"t{i}" for i in range(1, rows[0].shape[1] + 1)),
        source={"model": metadata.get("source"), "metadata": metadata},
    )
    return records, vectors


def write_original(
    path: str | Path, records: Sequence[Labelled], vectors: Vectors, *, source: str = ""
) -> None:
    """Write records and vectors in that layout, item by item.

    Three sites get the original's names, others their own. `variant` is the record's label of that
    name, or its id; ground truth is the label `truth` where there is one.
    """
    joined = vectors.join(records)
    own = len(joined.sites) == 3
    names = ("early", "middle", "late") if own else joined.sites
    metadata = {
        "n_correct": sum(r.correct for r in records),
        "n_incorrect": sum(not r.correct for r in records),
        "total": len(records),
        "source": source,
        "layers": list(names),
        "layer_indices": list(joined.sites),
        "n_latent_tokens": len(joined.positions),
    }
    with Path(path).open("w", encoding="utf-8") as file:
        file.write(f'{{"metadata": {json.dumps(metadata)}')
        for name, correct in _LISTS.items():
            file.write(f', "{name}": [')
            first = True
            for record, row in zip(records, joined.values, strict=True):
                if record.correct is not correct:
                    continue
                item = {
                    "pair_id": record.group,
                    "variant": record.labels.get("variant", record.id),
                    "question": record.prompt,
                    "ground_truth": record.labels.get("truth"),
                    "predicted": record.completion,
                    "is_correct": record.correct,
                    "continuous_thoughts": {n: x.tolist() for n, x in zip(names, row, strict=True)},
                }
                file.write(("" if first else ", ") + json.dumps(item))
                first = False
            file.write("]")
        file.write("}\n")
