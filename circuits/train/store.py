"""Activations on disk: shards of safetensors and a manifest that says what they are.

A shard holds, for whole contexts of one side of the split, `tokens` (padded at the end), `length`
and `document` of each context, and for every site the activations of all positions but the first
[row, width] in bfloat16, context after context. The first position is left out because its norm is
that of a beginning-of-text token, a hundred times the others'.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from circuits.corpora import Split
from circuits.errors import CircuitsError
from circuits.sites import Site

MANIFEST = "manifest.json"
FORMAT = 1
_BUFFER = 576 << 20  # numbers that are shuffled at once


class StoreError(CircuitsError):
    """Stored activations that are missing, damaged, or of something else."""


@dataclass(frozen=True)
class Shard:
    """One file: its side of the split, contexts, activation rows, and checksum."""

    file: str
    split: Split
    contexts: int
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is stored in a folder.

    key: everything the activations depend on: model, sites, corpus, context length, batch size.
    shards: in the order they were made. complete: whether the extraction ended. tokens: by source,
    first positions included.
    """

    key: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    complete: bool = False
    tokens: dict[str, int] = field(default_factory=dict)

    @property
    def sites(self) -> list[Site]:
        """The sites that are stored."""
        return [Site.parse(name) for name in self.key["sites"]]

    def rows(self, split: Split) -> int:
        """Activation rows of one side."""
        return sum(s.rows for s in self.shards if s.split == split)

    def write(self, folder: Path) -> None:
        """Write the manifest; whole or not at all."""
        work = folder / f"{MANIFEST}.partial"
        work.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")
        work.replace(folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder, None where there is none."""
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.pop("format") != FORMAT:
                raise StoreError(f"{path} is of another version: extract again.")
            shards = tuple(Shard(**one) for one in found.pop("shards"))
            return cls(shards=shards, **found)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged ({error}): remove the folder.") from error


@dataclass(frozen=True)
class Store:
    """Stored activations of one model at several sites, complete."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Raises `StoreError` when the folder holds no complete extraction."""
        manifest = Manifest.read(folder)
        if manifest is None or not manifest.complete:
            state = "is not complete" if manifest else "is not there"
            raise StoreError(f"the extraction in {folder} {state}: run `circuits train` for it.")
        store = cls(folder, manifest)
        store.check()
        return store

    def require(self, sites: Sequence[Site], model_sha256: str) -> None:
        """Raise `StoreError` when a site is not stored, or the activations are another model's."""
        missing = [str(site) for site in sites if site not in self.manifest.sites]
        if missing:
            raise StoreError(
                f"{self.folder} has {', '.join(self.manifest.key['sites'])}, and not "
                f"{', '.join(missing)}: extract them."
            )
        if self.manifest.key["model_sha256"] != model_sha256:
            raise StoreError(f"{self.folder} is of {self.manifest.key['model']}, another model.")

    def check(self) -> None:
        """Raise `StoreError` when a shard is missing or cut short. Contents are not read."""
        for shard in self.manifest.shards:
            try:
                with safe_open(self.folder / shard.file, "pt") as file:
                    found = len(file.get_slice(self.manifest.key["sites"][0])[:, :1])
            except (OSError, SafetensorError) as error:
                raise StoreError(f"{self.folder / shard.file} cannot be read: {error}") from error
            if found != shard.rows:
                raise StoreError(f"{shard.file} has {found} rows, not {shard.rows}.")

    def width(self, site: Site) -> int:
        """Width of a site's rows."""
        return self.manifest.key["widths"][self.manifest.key["sites"].index(str(site))]

    def read(self, site: Site, shard: Shard) -> Float[Tensor, "row width"]:
        """The rows of a site in one shard, bfloat16."""
        with safe_open(self.folder / shard.file, "pt") as file:
            return file.get_tensor(str(site))

    def moments(self, site: Site, rows: int = 100_000) -> tuple[Float[Tensor, " width"], float]:
        """Mean and root mean squared norm over the first training rows."""
        total, squares, count = torch.zeros(1), 0.0, 0
        for shard in self._of("train"):
            x = self.read(site, shard).float()
            total, squares = total + x.sum(0), squares + float(x.square().sum())
            count += len(x)
            if count >= rows:
                break
        return total / count, (squares / count) ** 0.5

    def _of(self, split: Split) -> list[Shard]:
        return [s for s in self.manifest.shards if s.split == split]

    def n_batches(self, batch_size: int) -> int:
        """Batches that the training rows fill once."""
        return self.manifest.rows("train") // batch_size

    def contexts(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens [context, position], padded at the end, and lengths, a shard at a time."""
        for shard in self._of(split):
            yield self.read_contexts(shard)[:2]

    def read_contexts(self, shard: Shard) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [context, position], padded at the end, lengths, and document numbers."""
        with safe_open(self.folder / shard.file, "pt") as file:
            tokens, length, document = (
                file.get_tensor(name).long() for name in ("tokens", "length", "document")
            )
        return tokens, length, document

    def rows(
        self, site: Site, split: Split, batch_size: int = 4096
    ) -> Iterator[Float[Tensor, "row width"]]:
        """All rows of one side in order, in float32."""
        for shard in self._of(split):
            for part in self.read(site, shard).split(batch_size):
                yield part.float()

    def batches(
        self,
        site: Site,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        buffer_rows: int | None = None,
    ) -> Iterator[Float[Tensor, "row width"]]:
        """Batches of training rows in float32 without end, from batch number `start` on.

        Each epoch the shards are shuffled, read some at a time into a buffer of about
        `buffer_rows` (by default 1.2 GB of them), and the buffer's rows shuffled. Batch n is the
        same whether or not the batches before it were gone through: that lets training resume.
        """
        generator = torch.Generator()
        number, epoch = 0, 0
        limit = buffer_rows or _BUFFER // self.width(site)
        while True:
            generator.manual_seed(seed * 1_000_003 + epoch)
            for part in _buffers(
                self._of("train"), limit, lambda n: torch.randperm(n, generator=generator)
            ):
                size = sum(s.rows for s in part)
                order = torch.randperm(size, generator=generator)
                count = max(1, size // batch_size)  # a small rest of a buffer is left out
                if number + count > start:
                    rows = torch.cat([self.read(site, shard) for shard in part])
                    for i in range(max(0, start - number), count):
                        yield rows[order[i * batch_size : (i + 1) * batch_size]].float()
                number += count
            epoch += 1


def _buffers(shards: list[Shard], buffer_rows: int, order: Any) -> Iterator[list[Shard]]:
    """Shards in an order, cut into parts of at most `buffer_rows` rows (one shard at least)."""
    part: list[Shard] = []
    for index in order(len(shards)).tolist():
        if part and sum(s.rows for s in part) + shards[index].rows > buffer_rows:
            yield part
            part = []
        part.append(shards[index])
    if part:
        yield part
