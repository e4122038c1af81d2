"""What the latents of a classifier's SAE mean: bank, patterns, effects, cards, tested hypotheses.

Examples and labels are of the training images, effects of the validation images, and hypotheses,
made from the training images, are tested on the test images.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from circuits.features import Gallery, LabelledVectors, collect_vectors, input_patterns
from circuits.hypotheses import HypothesesResult, VectorEvidence, assess, from_evidence
from circuits.saes.sae import Sae
from tasks.digits.data.checks import DataError
from tasks.digits.data.split import Split
from tasks.digits.network import DigitClassifier
from tasks.digits.task import DigitImages

REPORT, EFFECTS = "feature_report.json", "effects.parquet"
CLASSES = tuple("0123456789")
_PICTURES = 20  # latents whose pictures are written as files, the most active ones
_EXAMPLES = 16


@dataclass(frozen=True, eq=False)
class Analysis:
    """Latents of one SAE. gallery: bank, effects, patterns and cards. hypotheses: with verdicts."""

    gallery: Gallery
    hypotheses: HypothesesResult

    def save(self, folder: Path, pictures: int = _PICTURES) -> None:
        """Write index.html (all cards), bank, feature_report.json, effects.parquet, hypotheses,
        and the original's pictures and arrays of the most active latents."""
        self.gallery.save(folder / "index.html")
        self.gallery.bank.save(folder / "bank")
        self.hypotheses.save(folder / "hypotheses")
        text = json.dumps(report_of(self.gallery), indent=1, allow_nan=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")
        effects_table(self.gallery).to_parquet(folder / EFFECTS, index=False)
        self.gallery.write_original(folder / "pictures", self.gallery.alive()[:pictures])


def analyse(
    task: DigitImages,
    network: DigitClassifier,
    sae: Sae,
    *,
    source: str = "SAE",
    seed: int = 0,
    progress: bool = True,
) -> Analysis:
    """Look at all latents of an SAE of raw pre-activations.

    source: what the SAE is called. seed: draws test images and controls of hypotheses.
    """
    side = task.digits.side
    sets = {split: vectors_of(task, network, split) for split in ("train", "validation", "test")}
    bank, effects = collect_vectors(
        sae,
        sets["train"],
        sets["validation"],
        network.readout,
        examples=_EXAMPLES,
        model=network.name,
        source=source,
        seed=seed,
    )
    patterns = input_patterns(
        lambda images: network.preactivations(images.flatten(1)), sae, torch.zeros(side, side)
    )
    explored, tested = evidence_of(network, sae, sets["train"], sets["test"], seed)
    rows: Any = bank.latents
    alive = [int(j) for j in rows["latent"][~rows["dead"]]]
    hypotheses = assess(
        from_evidence(explored, alive), tested, explored.ids, seed=seed, progress=progress
    )
    gallery = Gallery(bank, effects, sets["train"], patterns, verdict_lines(hypotheses))
    return Analysis(gallery, hypotheses)


def vectors_of(task: DigitImages, network: DigitClassifier, split: Split) -> LabelledVectors:
    """Pre-activations of the images of a split."""
    images, labels = task.examples(split)
    with torch.no_grad():
        vectors = network.preactivations(images)
    side = task.digits.side
    return LabelledVectors(vectors, labels.long(), CLASSES, images.view(-1, side, side))


def evidence_of(
    network: DigitClassifier, sae: Sae, train: LabelledVectors, test: LabelledVectors, seed: int = 0
) -> tuple[VectorEvidence, VectorEvidence]:
    """What hypotheses are made from, and what they are tested on: test images that are training
    images as well are left out, as they would not be held out."""
    explored = _evidence(network, sae, train, seed)
    return explored, _evidence(network, sae, _without(test, explored.ids), seed)


def _evidence(
    network: DigitClassifier, sae: Sae, data: LabelledVectors, seed: int
) -> VectorEvidence:
    assert data.inputs is not None
    names = _digests(data.inputs)
    return VectorEvidence(
        str(sae.site),
        sae,
        data,
        network.readout,
        names=names,
        seed=seed,
    )


def _digests(images: torch.Tensor) -> tuple[str, ...]:
    """Of the pixels; one that is there more than once gets a number, too."""
    seen: Counter[str] = Counter()
    found = []
    for image in images.contiguous().numpy():
        digest = hashlib.sha256(image.tobytes()).hexdigest()[:16]
        seen[digest] += 1
        found.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return tuple(found)


def _without(data: LabelledVectors, which: Collection[str]) -> LabelledVectors:
    """The examples whose images are not among others; raises `DataError` where none is left."""
    assert data.inputs is not None
    names = [name.split("-")[0] for name in _digests(data.inputs)]
    rows = [i for i, name in enumerate(names) if name not in which]
    if not rows:
        raise DataError(
            f"all {len(data)} test images are among the training images, so that nothing can be "
            "tested on them: give other data."
        )
    return LabelledVectors(data.vectors[rows], data.labels[rows], data.classes, data.inputs[rows])


def verdict_lines(hypotheses: HypothesesResult) -> dict[int, list[str]]:
    """Per latent one line a hypothesis: verdict, statement, figures."""
    found: dict[int, list[str]] = {}
    for row in hypotheses.table.to_dict("records"):
        figures = f" ({row['reason']})"
        if row["verdict"] != "not enough data":
            what = "enrichment" if row["claim"] == "fires_on" else "effect"
            figures = f" ({what} {row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}], "
            figures += f"q {row['q']:.1g}, against {row['threshold']:.3g})"
        line = f"{row['verdict'].upper()} on test images: {row['statement']}{figures}"
        found.setdefault(int(row["latent"]), []).append(line)
    return found


def report_of(gallery: Gallery) -> list[dict[str, Any]]:
    """The original's feature_report.json: one object a latent that is ever active, the most active
    first. mean_active: the share of training images; label_mode_when_active: the most frequent
    label among them; logit_boost_class: what a dose of one standard deviation raises most;
    logit_delta_vector: the change of all outputs by it, less their mean, on validation images.
    std, purity and the interval of the boosted class are ours."""
    one = gallery.effects.at(1.0).mean
    rows = gallery.bank.latents.set_index("latent")
    return [
        {
            "feature": latent,
            "mean_active": float(rows.at[latent, "rate"]),
            "label_mode_when_active": int(rows.at[latent, "at"][0]),
            "logit_boost_class": int(rows.at[latent, "boosted"]),
            "logit_delta_vector": [float(x) for x in one[gallery.place(latent)]],
            "std": float(rows.at[latent, "std"]),
            "purity": float(rows.at[latent, "purity"]),
            "effect_95": [float(rows.at[latent, k]) for k in ("effect_low", "effect_high")],
        }
        for latent in gallery.alive()
    ]


def effects_table(gallery: Gallery) -> pd.DataFrame:
    """One row a latent, dose and class: mean, low, high; dose NaN is the latent taken out."""
    effects, parts = gallery.effects, []
    doses = [*effects.doses, np.nan]
    for dose in doses:
        one = effects.removed if np.isnan(dose) else effects.at(dose)
        n, outputs = one.mean.shape
        parts.append(
            pd.DataFrame(
                {
                    "latent": np.repeat(effects.latents, outputs),
                    "dose": dose,
                    "output": np.tile(np.arange(outputs), n),
                    **{k: getattr(one, k).ravel() for k in ("mean", "low", "high")},
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
