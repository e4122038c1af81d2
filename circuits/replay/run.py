"""A replay: every trial of every prompt written in every arm, recorded as it goes.

1. Prompts are tokenised and grouped by length (prompts.py); no padding.
2. Rates of the latents at the changed sites are measured on what the unchanged model writes, and
   for every random arm a latent is drawn that is about as often active (arms.py).
3. Every batch is written in every arm with the same random numbers and the same shape, so that arms
   agree bit for bit up to the first position that was changed (generate.py), and kept as a part.
4. The parts are put together (store.py).
"""

from __future__ import annotations

import hashlib
import inspect
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from circuits.models.hooked import HookedModel
from circuits.models.memory import out_of_memory
from circuits.replay import tables
from circuits.replay.arms import NO_OP, arms_of, draw_others, measure_rates, record_of
from circuits.replay.generate import Generated, forced, generate
from circuits.replay.interventions import Change, Intervention, ReplayError, describe, edits_of
from circuits.replay.options import Options
from circuits.replay.prompts import Batch, Prompts, batches, count_batches
from circuits.replay.result import ReplayResult
from circuits.replay.store import Store, write_tables
from circuits.runs import new_run, sha256_of, versions, write_record
from circuits.saes import SaeSet
from circuits.sites import Site, forward_order
from circuits.task import Task

SIGN = "positive: more in the arm than in the no-op arm"


def source_digest(task: Task) -> str:
    """SHA-256 of the Python files that a task is made of: of its package, or its one file. Parts
    whose responses were read by other rules must not be gone on with."""
    found = inspect.getsourcefile(type(task))
    if found is None:
        return "-"
    file = Path(found)
    whole = (file.parent / "__init__.py").is_file()
    files = sorted(file.parent.rglob("*.py")) if whole else [file]
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class Run:
    """Everything a run depends on."""

    model: HookedModel
    saes: SaeSet
    prompts: Prompts
    changes: Sequence[Change]
    sites: tuple[Site, ...]
    options: Options
    parse: tables.Parse | None
    task: Task | None = None  # whose `parse` it is

    def check(self) -> None:
        """Raise for changes that an SAE cannot do, and prompts that leave no room."""
        if any(change.by_row for change in self.changes):
            raise ReplayError("a run holds latents at one value; tensors are for `generate`.")
        for change in self.changes:
            if change.site.kind == "resid_mid":
                self.model.require(change.site.kind)
        edits_of(self.saes, self.changes, 1)
        longest = max(len(ids) for ids in self.prompts.tokens)
        room = self.model.adapter.n_ctx
        if longest + self.options.max_new_tokens - 1 > room:
            raise ReplayError(
                f"a prompt of {longest} tokens and {self.options.max_new_tokens} new ones do not "
                f"fit into {room} positions: shorten one of them."
            )

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on."""
        model, used = self.model, sorted({*self.sites, *(c.site for c in self.changes)})
        saes = []
        for site in used:  # loaded first: the digest of a release's weights is known then only
            sae = self.saes[site]
            saes.append([self.saes.describe(site), sae.centred, str(sae.module.cfg)])  # pyright: ignore
        return {
            "method": "replay",
            "model": [model.name, model.sha256, str(model.dtype), str(model.device)],
            "saes": saes,
            "changes": [describe(change) for change in self.changes],
            "sites": [str(site) for site in self.sites],
            "options": asdict(self.options),
            "prompts": self.prompts.as_record(),
            "parsed": None if self.task is None else [self.task.name, source_digest(self.task)],
            "machine": [torch.get_num_threads(), _device_name(model.device)],
            "versions": versions(),
        }

    def write(self, store: Store, folder: Path, facts: dict[str, Any], progress: bool) -> None:
        """Write all parts that are not there yet, and put them together in `folder`."""
        arms, about = self._arms(store, progress)
        self._generate(store, arms, progress)
        self._encode(store, arms, progress)
        with new_run(folder) as work:
            counts = {
                "responses": write_tables(
                    work / "responses.parquet",
                    tables.RESPONSES,
                    (store.read(part, "responses") for part in self._names(arms)),
                ),
                "steps": write_tables(
                    work / "steps.parquet",
                    tables.STEPS,
                    (store.read(part, "steps") for part in self._names(arms)),
                ),
                "latents": write_tables(
                    work / "latents.parquet",
                    tables.LATENTS,
                    (
                        store.read(part, _latents(i))
                        for part in self._names(arms)
                        for i in range(len(self.sites))
                    ),
                ),
            }
            if self.options.record == "residuals":
                (work / "residuals").mkdir()
                for part in self._names(arms):
                    shutil.copyfile(
                        store.residuals(part), work / "residuals" / f"{part}.safetensors"
                    )
            record = {**self._record(list(arms), about, counts), **facts}
            write_record(work, record)
            page = ReplayResult.read(work).page()
            (work / "replay.html").write_text(page, encoding="utf-8")
        store.clear()

    def _arms(
        self, store: Store, progress: bool
    ) -> tuple[dict[str, Sequence[Intervention]], list[dict[str, Any]]]:
        known = store.kept()
        if known is None:
            options = self.options
            rates = measure_rates(
                self.model,
                self.saes,
                self.prompts,
                self.changes,
                max_new_tokens=options.max_new_tokens,
                sampling=options.sampling,
                seed=options.seed,
                stop=options.stop,
                batch_size=options.batch_size,
                progress=progress,
            )
            args = self.saes, rates, self.changes
            randoms = draw_others(*args, options.randoms, options.seed)
            known = {"randoms": randoms, "about": record_of(*args, randoms)}
            store.keep(known)
        return arms_of(self.changes, known["randoms"]), known["about"]

    def _batches(self) -> Iterator[Batch]:
        return batches(self.prompts, self.options.trials, self.options.batch_size)

    def _parts(self, arms: dict[str, Sequence[Intervention]]) -> Iterator[tuple[Batch, str]]:
        """Arm after arm, as the tables have them."""
        for i in range(len(arms)):
            for batch in self._batches():
                yield batch, f"{batch.number}-{i}"

    def _names(self, arms: dict[str, Sequence[Intervention]]) -> Iterator[str]:
        """Their names alone."""
        options = self.options
        count = count_batches(self.prompts, options.trials, options.batch_size)
        return (f"{number}-{i}" for i in range(len(arms)) for number in range(count))

    def _generate(
        self, store: Store, arms: dict[str, Sequence[Intervention]], progress: bool
    ) -> None:
        """Batch after batch, each in all arms."""
        options = self.options
        total = len(arms) * count_batches(self.prompts, options.trials, options.batch_size)
        with tqdm(total=total, desc="replay", unit="batch", disable=not progress) as bar:
            for batch in self._batches():
                base: list[list[int]] | None = None
                for i, (arm, interventions) in enumerate(arms.items()):
                    part = f"{batch.number}-{i}"
                    if not store.has(part, "responses"):
                        made = self._written(batch, interventions)
                        self._keep(store, part, arm, batch, made, base)
                    if arm == NO_OP:
                        base = store.read(part, "responses")["tokens"].to_pylist()
                    bar.update()

    def _written(self, batch: Batch, interventions: Sequence[Intervention]) -> Generated:
        options = self.options
        try:
            return generate(
                self.model,
                batch.tokens,
                batch.keys,
                edits=edits_of(self.saes, interventions, batch.tokens.shape[1]),
                max_new_tokens=options.max_new_tokens,
                sampling=options.sampling,
                seed=options.seed,
                stop=options.stop,
                watch=self.sites,
                top=options.top,
            )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise ReplayError(
                f"memory ran out with {len(batch.prompt)} rows: give a smaller batch size. (It is "
                "not halved on the way, because all arms of a run have to have one.)"
            ) from error

    def _keep(
        self,
        store: Store,
        part: str,
        arm: str,
        batch: Batch,
        made: Generated,
        base: Sequence[Sequence[int]] | None,
    ) -> None:
        unpatched = self._unpatched(batch, made) if self.options.unpatched else None
        found = {
            "responses": tables.responses_table(
                arm, batch, self.prompts, made, self.model.tokenizer, base, unpatched, self.parse
            ),
            "steps": tables.steps_table(arm, batch, made),
        }
        if self.options.record == "residuals":
            tensors = {str(site): made.activations[site] for site in self.sites}
            store.put(part, found, tensors)
            return
        for i, site in enumerate(self.sites):
            given = (made.inside, made.activations[site])
            found[_latents(i)] = tables.latents_table(arm, batch, site, self.saes, *given)
        store.put(part, found, None)

    def _unpatched(self, batch: Batch, made: Generated) -> Float[np.ndarray, " row"]:
        whole = torch.cat([batch.tokens, made.tokens], 1)
        found = forced(self.model, whole, batch.tokens.shape[1], top=1)
        return found.logprobs.double().nansum(1).numpy()

    def _encode(
        self, store: Store, arms: dict[str, Sequence[Intervention]], progress: bool
    ) -> None:
        """Latents of stored activations, one SAE after the other."""
        if self.options.record != "residuals":
            return
        names = list(arms)
        for i, site in enumerate(tqdm(self.sites, desc="encoding", disable=not progress)):
            for batch, part in self._parts(arms):
                if store.has(part, _latents(i)):
                    continue
                arm = names[int(part.rpartition("-")[2])]
                x = store.tensor(part, str(site))
                lengths = torch.tensor(store.read(part, "responses")["length"].to_pylist())
                inside: Tensor = torch.arange(x.shape[1])[None] < lengths[:, None]
                table = tables.latents_table(arm, batch, site, self.saes, inside, x)
                store.add(part, _latents(i), table)

    def _record(
        self, arms: Sequence[str], about: list[dict[str, Any]], counts: dict[str, int]
    ) -> dict[str, Any]:
        used = forward_order({*self.sites, *(change.site for change in self.changes)})
        options = asdict(self.options)
        return {
            "method": "replay",
            "model": self.model.name,
            "model_sha256": self.model.sha256,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": str(self.model.device),
            "saes": [self.saes.describe(site) for site in used],
            "changes": [describe(change) for change in self.changes],
            "sites": [str(site) for site in self.sites],
            "arms": list(arms),
            "latents": about,
            **options.pop("sampling"),
            **options,
            **self.prompts.as_record(),
            "rows": counts,
            "step": "step s is made at the position before generated token s: step 0 belongs to "
            "the prompt's last token",
            "sign_convention": SIGN,
            "versions": versions(),
        }


def _latents(number: int) -> str:
    return f"latents-{number}"
