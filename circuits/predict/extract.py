"""Vectors of labelled records: token activations, attention between tokens, a task's own.

Prompts are cut into tokens, and the completion's tokens follow; the model runs once over each. What
is kept is at the last tokens of the prompt, the mean over the prompt (its first token left out,
whose norm is that of a beginning of text), and the mean over the completion. Attention looks back
only, so what stands in the prompt does not depend on the completion.

What is finished lies on disk in parts with a manifest that says what they depend on: an extraction
that was interrupted goes on, and one that is complete is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from circuits.labelled import Labelled, named
from circuits.models.hooked import HookedModel
from circuits.models.patterns import attention_patterns
from circuits.predict.scores import PredictError
from circuits.predict.vectors import JoinError, Vectors
from circuits.prompts import resolve_bos, tokenise
from circuits.sites import Site
from circuits.task import AnsweredTask, AttentionTask, require

PART = 128  # records
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Positions:
    """Where vectors are taken: the last `last` tokens of the prompt (p-1 is the very last), its
    mean, the completion's mean."""

    last: int = 1
    mean: bool = False
    completion: bool = False

    def __post_init__(self) -> None:
        if self.last < 0 or not (self.last or self.mean or self.completion):
            raise PredictError("no positions: expected some of last:K, mean, completion.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the position axis."""
        tokens = [f"p-{i}" for i in range(self.last, 0, -1)]
        return (*tokens, *["mean"] * self.mean, *["completion"] * self.completion)

    @classmethod
    def parse(cls, text: str) -> Positions:
        """Read "last:4,mean,completion"; raises `PredictError` for anything else."""
        found: dict[str, Any] = {"last": 0}
        for part in text.split(","):
            name, colon, number = part.strip().partition(":")
            if name == "last" and number.isdigit() and int(number) > 0:
                found["last"] = int(number)
            elif name in ("mean", "completion") and not colon:
                found[name] = True
            else:
                raise PredictError(
                    f"positions {text!r}: expected some of last:K, mean, completion, such as "
                    "last:4,completion."
                )
        return cls(**found)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(from, to) of attention between the last tokens, as places from the end; looking back,
        each at itself too."""
        return [(a, b) for a in range(self.last, 0, -1) for b in range(self.last, a - 1, -1)]


Tokens = list[tuple[Labelled, tuple[int, ...], tuple[int, ...]]]  # prompt, completion


def tokenised(
    model: HookedModel, records: Sequence[Labelled], positions: Positions, prepend_bos: bool | None
) -> Tokens:
    """Tokens of every prompt and completion; raises `PredictError` for records that are too short
    or too long for the positions or the model."""
    bos = resolve_bos(model.tokenizer, prepend_bos)
    found = []
    for record in records:
        prompt = tokenise(model.tokenizer, record.prompt, bos)
        ids = model.tokenizer(record.completion, add_special_tokens=False)["input_ids"]
        found.append((record, prompt, tuple(ids) if positions.completion else ()))
    fewest = max(positions.last, 2 if positions.mean else 1)
    for what, bad in (
        (f"fewer than {fewest} tokens", [r.id for r, p, _ in found if len(p) < fewest]),
        ("an empty completion", [r.id for r, _, c in found if positions.completion and not c]),
        (
            f"more than the {model.adapter.n_ctx} tokens that {model.name} reads",
            [r.id for r, p, c in found if len(p) + len(c) > model.adapter.n_ctx],
        ),
    ):
        if bad:
            raise PredictError(f"{named(bad)}: {what}. Take other positions, or leave them out.")
    return found


def extract_vectors(
    model: HookedModel,
    records: Sequence[Labelled],
    sites: Sequence[Site],
    positions: Positions,
    *,
    attention: bool = False,
    folder: Path | None = None,
    batch_size: int = 16,
    prepend_bos: bool | None = None,
    progress: bool = True,
) -> Vectors:
    """Activations of records at sites and positions, or attention between the last tokens.

    attention: instead of activations, how much every head of the sites' layers looks from one of
        the last tokens to another: positions are "p-1<p-3" (from p-1 to p-3), the width is heads.
    folder: where parts are kept, and read from.

    Raises `PredictError` for records that do not fit, `SiteError` for sites the model lacks, and
    `JoinError` for a folder that holds something else.
    """
    if attention and (positions.last < 1 or positions.mean or positions.completion):
        raise PredictError("attention is between the last tokens: give positions last:K alone.")
    for site in sites:
        model.adapter.hook_point(site)
    every = {entry[0].id: entry for entry in tokenised(model, records, positions, prepend_bos)}
    layers = sorted({site.layer for site in sites})
    names = [f"attention.{layer}" for layer in layers] if attention else [str(s) for s in sites]
    places = [f"p-{a}<p-{b}" for a, b in positions.pairs] if attention else list(positions.names)

    def run(some: Sequence[Labelled]) -> np.ndarray:
        # By length, so that little is padded.
        tokens = [every[r.id] for r in some]
        order = sorted(range(len(some)), key=lambda i: len(tokens[i][1]) + len(tokens[i][2]))
        rows: list[Any] = [None] * len(some)
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            chosen = [tokens[i] for i in part]
            made = _attention(model, chosen, layers, positions) if attention else None
            made = _activations(model, chosen, sites, positions) if made is None else made
            for i, row in zip(part, made, strict=True):
                rows[i] = row.float().cpu().numpy()
        return np.stack(rows)

    key = {
        "model": model.name,
        "model_sha256": model.sha256,
        "dtype": str(model.dtype),
        "sites": names,
        "positions": places,
        "prepend_bos": resolve_bos(model.tokenizer, prepend_bos),
        "batch_size": batch_size,
    }
    kind = "attention" if attention else "activations"
    return in_parts(records, run, key, folder, kind=kind, progress=progress)


def task_vectors(
    task: AnsweredTask,
    model: HookedModel,
    records: Sequence[Labelled],
    sites: Sequence[Site],
    *,
    attention: bool = False,
    folder: Path | None = None,
    progress: bool = True,
) -> Vectors:
    """The vectors of a task's own positions (`AnsweredTask.vectors`), kept like extracted ones.

    attention: instead, attention at the sites' layers (`AttentionTask.attention`); raises
        `TaskError` for tasks without it.
    """
    layers = sorted({site.layer for site in sites})
    looking = require(task, AttentionTask, "--features attention") if attention else None

    def run(some: Sequence[Labelled]) -> np.ndarray:
        made = (
            looking.attention(model, some, layers) if looking else task.vectors(model, some, sites)
        )
        return made.float().cpu().numpy()

    key = {"task": task.name, "model": model.name, "model_sha256": model.sha256}
    key["dtype"] = str(model.dtype)
    if looking is not None:
        names = [f"attention.{layer}" for layer in layers]
        key |= {"sites": names, "positions": list(looking.attention_positions)}
        return in_parts(records, run, key, folder, kind="attention", progress=progress)
    key |= {"sites": [str(s) for s in sites], "positions": list(task.vector_positions)}
    return in_parts(records, run, key, folder, progress=progress)


def in_parts(
    records: Sequence[Labelled],
    run: Callable[[Sequence[Labelled]], np.ndarray],
    key: dict[str, Any],
    folder: Path | None,
    *,
    kind: str = "activations",
    progress: bool = True,
) -> Vectors:
    """What `run` gives for all records, part by part; finished parts are read from `folder`."""
    if not records:
        raise PredictError("no records: there is nothing to extract.")
    texts = "".join(f"{r.id}\0{r.prompt}\0{r.completion}\0" for r in records)
    whole = {**key, "records": hashlib.sha256(texts.encode()).hexdigest(), "kind": kind}
    if folder is not None:
        _claim(folder, whole)
    parts = []
    starts = range(0, len(records), PART)
    for number, start in enumerate(tqdm(starts, desc="extracting", disable=not progress)):
        some = records[start : start + PART]
        path = None if folder is None else folder / f"part-{number:05d}.safetensors"
        if path is not None and path.is_file():
            parts.append(Vectors.load(path))
            continue
        part = Vectors(
            run(some),
            tuple(r.id for r in some),
            tuple(r.digest for r in some),
            tuple(key["sites"]),
            tuple(key["positions"]),
            kind,
            source=key,
        )
        if path is not None:
            part.save(path)
        parts.append(part)
    return Vectors.together(parts)


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Write the manifest, or raise `JoinError` where the folder has another one."""
    path = folder / _MANIFEST
    key = json.loads(json.dumps(key))
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        work = path.with_suffix(".partial")
        work.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
        work.replace(path)
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise JoinError(f"{path} is damaged ({error}): remove the folder.") from error
    if found != key:
        other = [k for k in {*found, *key} if found.get(k) != key.get(k)]
        raise JoinError(
            f"{folder} holds other vectors ({', '.join(sorted(other))} differ): give another "
            "--cache-dir, or remove it."
        )


def _padded(model: HookedModel, chosen: Tokens) -> Tensor:
    length = max(len(p) + len(c) for _, p, c in chosen)
    rows = [[*p, *c, *[p[-1]] * (length - len(p) - len(c))] for _, p, c in chosen]
    return torch.tensor(rows, device=model.device)


def _activations(
    model: HookedModel, chosen: Tokens, sites: Sequence[Site], positions: Positions
) -> Float[Tensor, "record site position width"]:
    values = model.activations(_padded(model, chosen), sites)
    widths = {v.shape[-1] for v in values.values()}
    if len(widths) > 1:
        raise PredictError("z and other sites have different widths: extract them apart.")
    rows = []
    for i, (_, prompt, completion) in enumerate(chosen):
        n, m = len(prompt), len(completion)
        x = torch.stack([values[site][i].float() for site in sites])
        parts = [x[:, n - positions.last : n]] if positions.last else []
        if positions.mean:
            parts.append(x[:, 1:n].mean(1, keepdim=True))
        if positions.completion:
            parts.append(x[:, n : n + m].mean(1, keepdim=True))
        rows.append(torch.cat(parts, dim=1))
    return torch.stack(rows)


def _attention(
    model: HookedModel, chosen: Tokens, layers: Sequence[int], positions: Positions
) -> Float[Tensor, "record layer pair head"]:
    patterns = attention_patterns(model, _padded(model, chosen), layers)
    rows = []
    for i, (_, prompt, _) in enumerate(chosen):
        n = len(prompt)
        of_layer = [
            torch.stack([patterns[layer][i, :, n - a, n - b] for a, b in positions.pairs])
            for layer in layers
        ]
        rows.append(torch.stack(of_layer))
    return torch.stack(rows)
