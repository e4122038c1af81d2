"""`Vectors`: activations of records, joined to their labels by id.

Beside its id every row keeps a digest of the prompt it was made from. A join by place in a list
is how labels come to belong to other problems; `join` goes by id, and looks at the digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from circuits.labelled import LabelError, Labelled, check_ids, named

Pool = Literal["concat", "mean", "max"]
Over = Literal["positions", "sites", "both"]
POOL_AXES: dict[str, tuple[int, ...]] = {"positions": (2,), "sites": (1,), "both": (1, 2)}
POOLS: tuple[Pool, ...] = ("concat", "mean", "max")


class JoinError(LabelError):
    """Vectors and labels that do not belong together."""


@dataclass(frozen=True)
class Fitted:
    """Something that was fitted before the folds were made, and on what.

    name: such as "SAE resid_post.3". ids: of the records it was fitted on; None where nobody knows.
    labels: whether it saw their labels.
    """

    name: str
    ids: frozenset[str] | None
    labels: bool = False


@dataclass(frozen=True, eq=False)
class Vectors:
    """Features of records.

    values: what stands at each site and position; width is d_model, or latents, or heads.
    ids, digests: of the records, one each; a digest is "" where the maker did not keep it.
    sites, positions: names of the axes. kind: activations, latents, attention, or table for numbers
        that sum an answer up (`of_table`).
    fitted: what was fitted before the folds on the way to these values (none for activations).
    source: what a record says of where they are from.
    """

    values: Float[np.ndarray, "record site position width"]
    ids: tuple[str, ...]
    digests: tuple[str, ...]
    sites: tuple[str, ...]
    positions: tuple[str, ...]
    kind: str = "activations"
    fitted: tuple[Fitted, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.ids), len(self.sites), len(self.positions))
        if self.values.shape[:3] != shape or len(self.digests) != len(self.ids):
            raise JoinError(
                f"vectors {self.values.shape} and {len(self.digests)} digests do not fit {shape[0]}"
                f" ids, {shape[1]} sites and {shape[2]} positions."
            )
        check_ids(self.ids, "the vectors")
        fine: Any = np.isfinite(self.values.reshape(len(self.ids), -1)).all(axis=1)
        if not all(fine):
            which = [i for i, good in zip(self.ids, fine, strict=True) if not good]
            raise JoinError(f"vectors of {named(which)} hold numbers that are not finite.")

    @classmethod
    def of_table(
        cls, table: pd.DataFrame, *, name: str = "table", source: Mapping[str, Any] | None = None
    ) -> Vectors:
        """Numbers of each record as features: one row a record, its `id`, one column a number.

        A column `digest` (`Labelled.digest`), if there is one, is looked at when they are joined.
        Raises `JoinError` where there are no numbers, one that is constant, or one that is none.
        """
        if "id" not in table.columns:
            raise JoinError("a table of features needs a column id; rows are joined by it.")
        columns = [str(c) for c in table.columns if c not in ("id", "digest")]
        try:
            values = table[columns].to_numpy(dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise JoinError(f"the table of features holds what is no number: {error}.") from error
        ids = tuple(table["id"].astype(str))
        constant = [c for c, v in zip(columns, values.T, strict=True) if np.ptp(v) == 0]
        if not columns or not ids or constant:
            raise JoinError(
                f"a table of {len(ids)} rows and the numbers {', '.join(columns) or '(none)'}; "
                f"constant: {', '.join(constant) or '(none)'}. Expected numbers that differ."
            )
        digests = tuple(table["digest"]) if "digest" in table.columns else ("",) * len(ids)
        shaped = values[:, None, :, None]
        return cls(shaped, ids, digests, (name,), tuple(columns), "table", source=source or {})

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """Numbers at one site and position."""
        return self.values.shape[3]

    def join(self, records: Sequence[Labelled]) -> Vectors:
        """These vectors in the order of the records, by id.

        Raises `JoinError` that names ids which are missing, too many, repeated, or whose vectors
        were made from another prompt.
        """
        check_ids((r.id for r in records), "the records")
        place = {name: i for i, name in enumerate(self.ids)}
        missing = [r.id for r in records if r.id not in place]
        extra = sorted(set(self.ids) - {r.id for r in records})
        for ids, what in ((missing, "records without vectors"), (extra, "vectors of no record")):
            if ids:
                raise JoinError(f"{what}: {named(ids)}. Labels and vectors are joined by id.")
        order = [place[r.id] for r in records]
        other = [r.id for r, i in zip(records, order, strict=True) if self.digests[i] != ""]
        wrong = [
            r.id
            for r, i in zip(records, order, strict=True)
            if self.digests[i] not in ("", r.digest)
        ]
        if wrong:
            raise JoinError(
                f"{len(wrong)} of {len(other)} vectors were made from another prompt than the "
                f"record of the same id has ({named(wrong)}): extract them again."
            )
        return replace(
            self,
            values=self.values[order],
            ids=tuple(self.ids[i] for i in order),
            digests=tuple(self.digests[i] for i in order),
        )

    def pooled(self, how: Pool, over: Over = "positions") -> Vectors:
        """Mean or maximum over positions, sites, or both; "concat" leaves them side by side."""
        if how not in POOLS:
            raise JoinError(f"unknown pooling {how!r}: expected one of {', '.join(POOLS)}.")
        if how == "concat":
            return self
        axes = POOL_AXES[over]
        function = np.mean if how == "mean" else np.max
        return replace(
            self,
            values=function(self.values, axis=axes, keepdims=True),
            sites=(f"{how} of {', '.join(self.sites)}",) if 1 in axes else self.sites,
            positions=(how,) if 2 in axes else self.positions,
        )

    def flat(self) -> Float[np.ndarray, "record feature"]:
        """One row a record: sites, positions and width in that order."""
        return np.ascontiguousarray(self.values.reshape(len(self), -1), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write one safetensors file; whole or not at all."""
        about = {
            "ids": self.ids,
            "digests": self.digests,
            "sites": self.sites,
            "positions": self.positions,
            "kind": self.kind,
            "source": dict(self.source),
            "fitted": [
                {"name": f.name, "ids": sorted(f.ids) if f.ids is not None else None}
                | {"labels": f.labels}
                for f in self.fitted
            ],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f"{path.name}.partial")
        save_file(
            {"values": np.ascontiguousarray(self.values)}, work, {"vectors": json.dumps(about)}
        )
        work.replace(path)

    @classmethod
    def load(cls, path: Path) -> Vectors:
        """Read what `save` wrote; raises `JoinError` for anything else."""
        try:
            with safe_open(path, "np") as file:
                about = json.loads(file.metadata()["vectors"])
                values = file.get_tensor("values")
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise JoinError(f"{path} is no file of vectors ({error}).") from error
        fitted = tuple(
            Fitted(f["name"], None if f["ids"] is None else frozenset(f["ids"]), f["labels"])
            for f in about.pop("fitted")
        )
        lists = {k: tuple(about.pop(k)) for k in ("ids", "digests", "sites", "positions")}
        return cls(values, **lists, **about, fitted=fitted)

    @classmethod
    def together(cls, parts: Sequence[Vectors]) -> Vectors:
        """Parts of one extraction, one after the other."""
        first = parts[0]
        return replace(
            first,
            values=np.concatenate([p.values for p in parts]),
            ids=tuple(i for p in parts for i in p.ids),
            digests=tuple(d for p in parts for d in p.digests),
        )
