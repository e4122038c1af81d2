"""Training a small SAE on vectors that are in memory, with SAELens' trainer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.saes.sae import Sae
from circuits.sites import Site
from circuits.train.options import SaeOptions, TrainError
from circuits.train.trainer import load_trained, sae_trainer

_FEWEST_STEPS = 3  # warm-up and cosine need that many


def train_rows(
    rows: Float[Tensor, "row width"],
    options: SaeOptions,
    site: Site,
    *,
    device: str = "cpu",
) -> Sae:
    """An SAE trained on `rows` in float32 on `device`, and returned on the CPU; the same seed
    gives the same one.

    As `circuits.train.trainer` does it: rows are scaled to a root mean squared norm of sqrt(width),
    which is folded into the weights, and the decoder bias starts at the mean. Nothing is held out:
    who uses it decides what it may see. torch's own generator is left as it was.

    Raises `TrainError` where rows and epochs do not make three batches, and for rows that are 0.
    """
    size = min(options.batch_size, len(rows))
    steps = round(len(rows) // size * options.epochs)
    norm = float(rows.float().square().sum(1).mean().sqrt())
    if steps < _FEWEST_STEPS or norm == 0:
        raise TrainError(
            f"{len(rows)} rows of norm {norm:.3g} and {options.epochs:g} epochs do not make "
            f"{_FEWEST_STEPS} batches of {size} that an SAE could be trained on."
        )
    scale = rows.shape[1] ** 0.5 / norm
    metadata = {"model_name": "", "hook_name": site.hook_name, "prepend_bos": False}
    metadata |= {"context_size": 1, "dataset_path": ""}
    x = rows.float().to(device)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        sae = options.sae(rows.shape[1], metadata, steps, device)  # seeds torch
        with torch.no_grad():
            sae.b_dec.copy_(x.mean(0) * scale)
        trainer = sae_trainer(sae, options, steps, device)
        trainer.activation_scaler.scaling_factor = scale
        done = 0
        while done < steps:
            for part in torch.randperm(len(x)).split(size)[: len(x) // size]:
                if done < steps:
                    trainer.step(x[part])
                    trainer.n_training_steps += 1
                    done += 1
        sae.fold_activation_norm_scaling_factor(scale)
        if options.architecture in ("jumprelu", "standard"):
            sae.fold_W_dec_norm()  # the others do it on saving
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            return load_trained(Path(folder), site)
