"""The study of one classifier: SAEs with target numbers of active latents, and what they keep.

1. The classifier is trained on the training images, or taken from the cache.
2. Its pre-activations are collected; JumpReLU SAEs are trained on those of the training images.
3. For each target, lambda and the shift of thresholds are chosen on validation images
   (`tasks.digits.calibrate`); the score is minus the mean KL of the classifier's distribution with
   the SAE from the one without, which needs no labels.
4. What is kept in either mode is measured on test images, before the shift and after it.
5. What the latents of each SAE mean (`tasks.digits.features`).

SAEs that are trained are kept beside the run's folder until it is whole, so that an interrupted
study, given again, trains only those that are missing; all else takes seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from circuits.models.load import find_device
from circuits.runs import Parts, check_new, default_folder, new_run, versions, write_record
from circuits.saes.sae import Sae
from tasks.digits.calibrate import (
    COARSE,
    FINE,
    TOLERANCE,
    Calibrated,
    Calibration,
    CalibrationError,
    Trainings,
    divergence,
)
from tasks.digits.features import analyse
from tasks.digits.fidelity import Kept, fidelity, replaced
from tasks.digits.network import DigitClassifier, NetworkOptions
from tasks.digits.sae import SaeTraining, Standardiser, StandardSae, save_sae, train_standard
from tasks.digits.task import DigitImages

SUMMARY, CALIBRATION, FIDELITY = "summary.json", "calibration.parquet", "fidelity.parquet"
TARGETS = (10.0, 20.0, 40.0)
_FORMAT = 1  # of the kept parts


@dataclass(frozen=True)
class StudyOptions:
    """What a study is made of. targets: mean numbers of active latents, each once."""

    network: NetworkOptions = field(default_factory=NetworkOptions)
    sae: SaeTraining = field(default_factory=SaeTraining)
    targets: tuple[float, ...] = TARGETS

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise CalibrationError(f"targets {self.targets}: expected some numbers, each once.")
        for target in self.targets:
            if not 0 < target < self.sae.latents:
                raise CalibrationError(
                    f"{target:g} active latents of {self.sae.latents} cannot be a target."
                )


@dataclass(frozen=True, eq=False)
class TargetSae:
    """The SAE of one target, of raw pre-activations. unshifted: with the thresholds as trained."""

    found: Calibrated
    sae: Sae
    unshifted: Sae


@dataclass(frozen=True, eq=False)
class Study:
    """Everything that was made and measured.

    network: on the CPU. saes: by target. summary: one object a target, see `summary_of`.
    calibration: what was tried. fidelity: one row a target, mode, and before or after the shift.
    """

    network: DigitClassifier
    saes: dict[float, TargetSae]
    summary: list[dict[str, Any]]
    calibration: pd.DataFrame
    fidelity: pd.DataFrame


def run_study(
    task: DigitImages,
    options: StudyOptions,
    out: Path | None = None,
    *,
    device: str | None = None,
    command: Sequence[str] = (),
    progress: bool = True,
) -> tuple[Study, Path]:
    """Make the study and write its folder, whose path is returned with it.

    The folder has run.json, summary.json, fidelity.parquet, calibration.parquet, `network`,
    `saes/<target>`, and `features/<target>` (`tasks.digits.features.Analysis.save`). Raises
    `CalibrationError` where a target cannot be reached, `DataError` for data that cannot be used.
    """
    folder = out or default_folder(task.name, "study")
    check_new(folder)
    where = find_device(device)
    started = time.perf_counter()
    key = {"format": _FORMAT, "data": task.digits.sha256, "options": asdict(options)}
    key |= {"device": where.type, "versions": versions()}
    parts = Parts(folder.parent, key)
    study = make(task, options, device=str(where), kept=parts.folder, progress=progress)
    hypotheses: dict[str, dict[str, int]] = {}
    with new_run(folder) as work:
        study.network.save(work / "network")
        for target, one in study.saes.items():
            save_sae(one.sae, work / "saes" / f"{target:g}")
        study.calibration.to_parquet(work / CALIBRATION, index=False)
        study.fidelity.to_parquet(work / FIDELITY, index=False)
        text = json.dumps(study.summary, indent=1, allow_nan=False)
        (work / SUMMARY).write_text(text + "\n", encoding="utf-8")
        for target, one in study.saes.items():
            name = f"SAE with {target:g} active latents"
            found = analyse(
                task, study.network, one.sae, source=name, seed=options.sae.seed, progress=progress
            )
            found.save(work / "features" / f"{target:g}")
            hypotheses[f"{target:g}"] = found.hypotheses.counts()
        write_record(
            work,
            {
                "task": task.name,
                "method": "study",
                "command": list(command),
                "options": asdict(options),
                "data": {
                    "source": task.digits.name,
                    "seed": task.seed,
                    "checked_agreement": task.check_agreement,
                    "side": task.digits.side,
                    "images": task.digits.counts(),
                    "sha256": task.digits.sha256,
                },
                "device": str(where),
                "versions": versions(),
                "summary": study.summary,
                "hypotheses": hypotheses,
                "seconds": time.perf_counter() - started,
            },
        )
    parts.clear()
    return study, folder


def make(
    task: DigitImages,
    options: StudyOptions,
    *,
    device: str = "cpu",
    kept: Path | None = None,
    progress: bool = True,
) -> Study:
    """The study in memory. kept: folder in which finished SAEs are kept and looked for."""
    network = task.load(**asdict(options.network), device=device, progress=progress).cpu()
    with torch.no_grad():
        x = {split: network.preactivations(task.examples(split)[0]) for split in task.digits.parts}
    scale = Standardiser.of(x["train"])
    z = scale(x["train"])
    most = len(COARSE) + FINE * len(options.targets)
    # Only what trains moves the bar: targets that share lambdas need fewer.
    with tqdm(total=most, desc="SAEs of all lambdas", unit="SAE", disable=not progress) as bar:

        def train(lam: float) -> StandardSae:
            bar.set_postfix({"lambda": f"{lam:.2g}"})
            made = train_standard(z, lam, options.sae, device)
            bar.update()
            return made

        def score(sae: StandardSae, shift: float) -> float:
            made = replaced(sae.raw(scale, shift), x["validation"], "jumprelu")
            return -divergence(network.readout(x["validation"]), network.readout(made))

        trainings = Trainings(train, None if kept is None else kept / "saes")
        calibration = Calibration(trainings, scale(x["validation"]), score)
        found = {target: calibration(target) for target in options.targets}
    saes = {
        target: TargetSae(one, one.sae.raw(scale, one.shift), one.sae.raw(scale))
        for target, one in found.items()
    }
    labels = task.examples("test")[1]
    measured = {
        target: {
            shifted: fidelity(network, sae, x["train"], x["test"], labels)
            for shifted, sae in ((False, one.unshifted), (True, one.sae))
        }
        for target, one in saes.items()
    }
    rows = [
        {"target": target, "shifted": shifted, **asdict(kept_)}
        for target, both in measured.items()
        for shifted, modes in both.items()
        for kept_ in modes.values()
    ]
    summary = [summary_of(one.found, measured[target], options) for target, one in saes.items()]
    return Study(network, saes, summary, calibration.path, pd.DataFrame(rows))


def summary_of(
    found: Calibrated, measured: dict[bool, dict[Any, Kept]], options: StudyOptions
) -> dict[str, Any]:
    """One object of summary.json: the original's keys, then ours.

    The original's: target_actives, achieved_actives_val, lambda, baseline_acc, recon_acc_jumprelu,
    recon_acc_boolean, delta_acc_* (what is lost: baseline less reconstructed), sae_latents, tau
    (the temperature), normalize_z. theta_shift is that of the thresholds, in standard deviations;
    accuracies are of test images with shifted thresholds, *_before_shift of the thresholds as
    trained; *_95 are intervals of the loss.
    """
    after, before = measured[True], measured[False]
    jumprelu, boolean = after["jumprelu"], after["boolean"]
    return {
        "target_actives": found.target,
        "achieved_actives_val": found.l0,
        "lambda": found.lam,
        "baseline_acc": jumprelu.baseline,
        "recon_acc_jumprelu": jumprelu.accuracy,
        "recon_acc_boolean": boolean.accuracy,
        "delta_acc_jumprelu": -jumprelu.change,
        "delta_acc_boolean": -boolean.change,
        "sae_latents": options.sae.latents,
        "tau": options.sae.temperature,
        "normalize_z": True,
        "theta_shift": found.shift,
        "within_tolerance": abs(found.l0 - found.target) <= TOLERANCE,
        "achieved_actives_test": jumprelu.l0,
        "explained_variance": jumprelu.explained_variance,
        "delta_acc_jumprelu_95": [-jumprelu.high, -jumprelu.low],
        "delta_acc_boolean_95": [-boolean.high, -boolean.low],
        "achieved_actives_val_before_shift": found.l0_before,
        "achieved_actives_test_before_shift": before["jumprelu"].l0,
        "explained_variance_before_shift": before["jumprelu"].explained_variance,
        "recon_acc_jumprelu_before_shift": before["jumprelu"].accuracy,
        "recon_acc_boolean_before_shift": before["boolean"].accuracy,
    }
