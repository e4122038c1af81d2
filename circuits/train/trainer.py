"""Training one SAE on stored activations with SAELens' trainer.

1. Rows are scaled so that their root mean squared norm is sqrt(width), the scale SAELens' settings
   are meant for; the scale is folded into the weights of everything that is saved. The decoder bias
   starts at the mean.
2. `SAETrainer.step` makes every step: loss, auxiliary loss for dead latents, clipping, Adam, and
   the cosine.
3. Some ten times a training the SAE is saved as it would be used, read back, and measured on
   held-out rows. "Best" is the smallest (1 - explained variance) * max(1, L0 / high, low / L0):
   reconstruction, made worse by leaving the range of L0 that is wanted.
4. Each time, what is needed to go on is written too; an interrupted training goes on from there and
   ends with the same weights.

Decoder rows of everything that is saved have norm 1.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from circuits.saes.quality import Moments
from circuits.saes.sae import Sae
from circuits.sites import Site
from circuits.train.options import SaeOptions, TrainError
from circuits.train.store import Store

MEASUREMENTS = 10  # of a training, evenly spaced
_HELDOUT_ROWS = 8192  # looked at in each
OUTLIER = 5.0  # times the median norm
_FEWEST_STEPS = 3  # warm-up and cosine need that many
_WEIGHTS, _CONFIG = "sae_weights.safetensors", "cfg.json"
_STATE, _PROGRESS = "state.safetensors", "progress.json"


@dataclass(frozen=True)
class Trained:
    """Where a trained SAE lies: the best and the final one in SAELens' format, and its history.

    history: one entry a measurement (dead: share not active for a while in training, 0 before that
        while has passed): step, rows, lr, train_loss, sparsity_loss, explained_variance,
    l0, dead, score, best.
    """

    best: Path
    final: Path
    history: list[dict[str, Any]]


def train_sae(
    store: Store,
    site: Site,
    options: SaeOptions,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    progress: bool = True,
) -> Trained:
    """Train an SAE at `site`, or resume doing so.

    folder: gets `best/<site>`, `final/<site>` and, while it goes on, `resume/<site>`.
    dtype: of the weights that are saved.

    Raises `TrainError` when the folder holds the training of something else, when there are fewer
    rows than one batch, and when the loss is no longer finite.
    """
    best, final, resume = (folder / name / str(site) for name in ("best", "final", "resume"))
    key = {"options": asdict(options), "store": store.manifest.key, "dtype": str(dtype)}
    if (final / "history.json").is_file():
        done = json.loads((final / "history.json").read_text())
        if done["key"] != _json(key):
            raise TrainError(f"{final} holds an SAE trained otherwise: give another --save-dir.")
        return Trained(best, final, done["history"])
    run = Run(store, site, options, dtype, device)
    run.resume(resume, key)
    with tqdm(
        total=run.steps,
        initial=run.step,
        desc=f"training {site}",
        unit="step",
        disable=not progress,
    ) as bar:
        while run.step < run.steps:
            last = run.advance()
            bar.update()
            if run.step % run.every == 0 or run.step == run.steps:
                entry = run.measure(last, resume / "measured")
                bar.set_postfix({k: f"{entry[k]:.3g}" for k in ("explained_variance", "l0")})
                if entry["best"]:
                    _replace(resume / "measured", resume / "best")
                run.save(resume, key)
    run.export(resume / "final")
    for target in (best, final):
        # Into the folder that is renamed: where the history is, all of it is there.
        text = json.dumps({"key": _json(key), "history": run.history}, indent=1)
        (resume / target.parent.name / "history.json").write_text(text + "\n")
        _replace(resume / target.parent.name, target)
    shutil.rmtree(resume)
    return Trained(best, final, run.history)


class Run:
    """SAELens' trainer with its data, its measurements, and its place on disk."""

    def __init__(
        self, store: Store, site: Site, options: SaeOptions, dtype: torch.dtype, device: str
    ) -> None:
        self.store, self.site, self.options, self.dtype = store, site, options, dtype
        if not store.manifest.rows("heldout"):
            raise TrainError("nothing was held out: extract with a held-out share above 0.")
        an_epoch = store.n_batches(options.batch_size)
        self.steps = round(an_epoch * options.epochs)
        check_steps(store.manifest.rows("train"), options)
        self.every = max(1, math.ceil(self.steps / MEASUREMENTS))
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.trainer = self._trainer(device)
        self.batches: Any = None

    def _trainer(self, device: str) -> Any:
        key, options = self.store.manifest.key, self.options
        metadata = {
            "model_name": key["model"],
            "hook_name": self.site.hook_name,
            "prepend_bos": key["corpus"]["prepend_bos"],
            "context_size": key["corpus"]["context"],
            "dataset_path": " + ".join(s["name"] for s in key["corpus"]["sources"]),
        }
        mean, norm = self.store.moments(self.site)
        sae = options.sae(len(mean), metadata, self.steps, device)
        scale = len(mean) ** 0.5 / norm
        with torch.no_grad():
            sae.b_dec.copy_(mean * scale)
        trainer = sae_trainer(sae, options, self.steps, device)
        trainer.activation_scaler.scaling_factor = scale
        return trainer

    def advance(self) -> dict[str, float]:
        """One step; returns its loss and the part of it that is for sparsity."""
        if self.batches is None:
            self.batches = self.store.batches(
                self.site, self.options.batch_size, seed=self.options.seed, start=self.step
            )
        output = self.trainer.step(next(self.batches))
        self.trainer.n_training_steps += 1
        self.step += 1
        losses = {name: float(torch.as_tensor(v).detach()) for name, v in output.losses.items()}
        loss = float(output.loss.detach())
        if not math.isfinite(loss):
            raise TrainError(
                f"the loss of {self.site} is {loss} at step {self.step}: lower --learning-rate."
            )
        sparsity = sum(v for name, v in losses.items() if name in ("l0_loss", "l1_loss"))
        return {"train_loss": loss, "sparsity_loss": sparsity}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Save the SAE as it is used: scale folded in, decoder rows of norm 1, in `dtype`."""
        sae = deepcopy(self.trainer.sae)
        sae.fold_activation_norm_scaling_factor(self.trainer.activation_scaler.scaling_factor)
        if self.options.architecture in ("jumprelu", "standard"):
            sae.fold_W_dec_norm()  # the others do it on saving
        shutil.rmtree(folder, ignore_errors=True)
        sae.save_inference_model(folder)
        weights = {k: v.to(self.dtype) for k, v in load_file(folder / _WEIGHTS).items()}
        save_file(weights, folder / _WEIGHTS)
        config = json.loads((folder / _CONFIG).read_text())
        config.update(dtype="float32", device="cpu")  # what it is computed in, and not where
        (folder / _CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")

    def measure(self, last: dict[str, float], folder: Path) -> dict[str, Any]:
        """Save the SAE to `folder`, read it back, and look at it on held-out rows."""
        self.export(folder)
        moments = measure_rows(load_trained(folder, self.site), self.store, last=_HELDOUT_ROWS)
        low, high = self.options.l0_range
        excess = max(1.0, moments.l0 / high, low / max(moments.l0, 1e-9))
        score = (1 - moments.explained_variance) * excess
        entry = {
            "step": self.step,
            "rows": self.step * self.options.batch_size,
            "lr": self.trainer.optimizer.param_groups[0]["lr"],
            **last,
            "explained_variance": moments.explained_variance,
            "l0": moments.l0,
            "dead": float(self.trainer.dead_neurons.float().mean()),
            "score": score,
            "best": score < min((e["score"] for e in self.history), default=math.inf),
        }
        self.history.append(entry)
        return entry

    def save(self, folder: Path, key: dict[str, Any]) -> None:
        """Write what `resume` reads: tensors first, then the small file that makes them count."""
        trainer = self.trainer
        state = {f"sae.{k}": v for k, v in trainer.sae.state_dict().items()}
        for i, moments in trainer.optimizer.state_dict()["state"].items():
            state |= {f"adam.{i}.{k}": v for k, v in moments.items()}
        state["since_fired"] = trainer.n_forward_passes_since_fired
        state = {k: v.detach().cpu().contiguous() for k, v in state.items()}
        name = f"{self.step}.{_STATE}"
        save_file(state, folder / name)
        words = {"key": _json(key), "step": self.step, "history": self.history, "state": name}
        work = folder / f"{_PROGRESS}.partial"
        work.write_text(json.dumps(words))
        work.replace(folder / _PROGRESS)
        for old in folder.glob(f"*.{_STATE}"):
            if old.name != name:
                old.unlink()

    def resume(self, folder: Path, key: dict[str, Any]) -> None:
        """Go on from what `save` wrote, if anything."""
        if not (folder / _PROGRESS).is_file():
            return
        words = json.loads((folder / _PROGRESS).read_text())
        if words["key"] != _json(key):
            raise TrainError(f"{folder} holds a training of other options: remove it, or go on it.")
        state, trainer = load_file(folder / words["state"]), self.trainer
        self.step, self.history = words["step"], words["history"]
        trainer.n_training_steps = self.step
        trainer.n_training_samples = self.step * self.options.batch_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # schedulers are replayed before any step
            for _ in range(self.step):
                trainer.lr_scheduler.step()
                for coefficient in trainer.coefficient_schedulers.values():
                    coefficient.step()
        parts = {k.removeprefix("sae."): v for k, v in state.items() if k.startswith("sae.")}
        trainer.sae.load_state_dict(parts)
        adam = trainer.optimizer.state_dict()
        for name, value in state.items():
            if name.startswith("adam."):
                _, i, moment = name.split(".")
                adam["state"].setdefault(int(i), {})[moment] = value
        trainer.optimizer.load_state_dict(adam)
        trainer.n_forward_passes_since_fired = state["since_fired"].to(trainer.cfg.device)


def check_folder(
    folder: Path, sites: Sequence[Site], options: SaeOptions, dtype: torch.dtype
) -> None:
    """Raise `TrainError` when the folder holds an SAE, finished or begun, of other options."""
    for site in sites:
        for path in (
            folder / "final" / str(site) / "history.json",
            folder / "resume" / str(site) / _PROGRESS,
        ):
            if not path.is_file():
                continue
            key = json.loads(path.read_text())["key"]
            if key["options"] != _json(asdict(options)) or key["dtype"] != str(dtype):
                raise TrainError(
                    f"{path.parent} holds an SAE of other options: give another --save-dir, or "
                    "remove it."
                )


def check_steps(rows: int, options: SaeOptions) -> None:
    """Raise `TrainError` when rows and epochs make too few steps for a schedule."""
    if round(rows // options.batch_size * options.epochs) < _FEWEST_STEPS:
        raise TrainError(
            f"{rows} rows and {options.epochs:g} epochs do not make {_FEWEST_STEPS} batches of "
            f"{options.batch_size}: more tokens, more epochs, or smaller batches."
        )


def sae_trainer(sae: Any, options: SaeOptions, steps: int, device: str, data: Any = None) -> Any:
    """SAELens' trainer with the settings of `SaeOptions`."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    size = options.batch_size
    config = SAETrainerConfig(
        total_training_samples=steps * size,
        train_batch_size_samples=size,
        lr=options.learning_rate,
        lr_end=options.learning_rate / 100,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=max(2, steps // 20),
        device=device,
        autocast=options.autocast,
        # Short trainings must notice dead latents early enough to revive them.
        dead_feature_window=min(1000, max(20, steps // 10)),
    )
    return SAETrainer(config, sae, data)


def load_trained(folder: Path, site: Site) -> Sae:
    """The SAE of a folder in SAELens' format, in float32."""
    from sae_lens import SAE

    return Sae(SAE.load_from_disk(folder, device="cpu", dtype="float32"), site)


def measure_rows(sae: Sae, store: Store, first: int = 0, last: int | None = None) -> Moments:
    """Moments over held-out rows, from number `first` on and before number `last`."""
    moments, number = Moments(sae.d_sae), 0
    for batch in store.rows(sae.site, "heldout"):
        stop = len(batch) if last is None else min(len(batch), last - number)
        part = batch[max(0, first - number) : max(0, stop)]
        number += len(batch)
        if len(part):
            moments.add(sae, part)
    return moments


def measure_card_rows(sae: Sae, store: Store) -> tuple[Moments, Moments]:
    """Moments over the held-out rows that training never looked at (over all of them where those
    would be fewer than the ones it did): of typical rows, and of outliers.

    Outliers are rows whose norm is more than `OUTLIER` times the median. A handful of tokens, such
    as one that repeats the first, have norms a hundred times the others' as the first position has:
    they alone would decide what share of the variance is explained.
    """
    unseen = store.manifest.rows("heldout") - _HELDOUT_ROWS
    first = _HELDOUT_ROWS if unseen >= _HELDOUT_ROWS else 0
    norms = torch.cat([x.norm(dim=1) for x in store.rows(sae.site, "heldout")])
    limit = OUTLIER * float(norms[first:].median())
    typical, outliers, number = Moments(sae.d_sae), Moments(sae.d_sae), 0
    for batch in store.rows(sae.site, "heldout"):
        part = batch[max(0, first - number) :]
        number += len(batch)
        far = part.norm(dim=1) > limit
        for moments, rows in ((typical, part[~far]), (outliers, part[far])):
            if len(rows):
                moments.add(sae, rows)
    return typical, outliers


def _replace(source: Path, target: Path) -> None:
    """Put a copy of a folder in place of another."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.with_name(f".{target.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work)
    work.rename(target)


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value))
