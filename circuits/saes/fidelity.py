"""What SAEs erase: the task's contrast with reconstructions put in place of activations.

For each pair of prompts the logit difference is measured with the plain model, with each SAE alone
without its error, with all of them stacked without their errors (each encodes what the ones below
have already changed), and with all of them and their errors, which must be the plain model again.
The contrast kept is the gap between clean and corrupted, as a share of the plain model's gap.

The first position is left as it is: its norm is that of a beginning-of-text token, on which SAEs
are not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from circuits.metrics import Summary, summarise_mean, summarise_ratio
from circuits.models.edits import Edit
from circuits.models.hooked import HookedModel
from circuits.patch.ability import CannotDo, assess, logit_differences
from circuits.patch.draw import thinks
from circuits.prompts import PairGroup, PromptPairs
from circuits.runs import (
    SIGN_CONVENTION,
    RunError,
    default_folder,
    new_run,
    read_record,
    read_scores,
    versions,
    write_record,
    write_scores,
)
from circuits.saes.collection import SaeSet
from circuits.saes.quality import Quality, reconstruct
from circuits.saes.sae import SaeError
from circuits.sites import Site

PLAIN, STACKED, WITH_ERROR = "plain model", "all, without error", "all, with error"
SMALLEST_KEPT = 0.5  # of the contrast; under it the SAEs do not carry the task
_EXACT = 1e-4  # logits by which SAEs with their errors may differ from the plain model
_PAIRS_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Fidelity:
    """What a set of SAEs keeps of a task.

    scores: one row a pair and variant: `pair, variant, site, ld_clean, ld_corrupted`.
    quality: one row a site: `site, explained_variance, l0, ce_recovered`, over both prompts of all
        pairs, first position left out. ce_recovered is (CE_zero - CE_sae) / (CE_zero - CE_plain) of
        next-token cross-entropy, with the site's activations replaced by zero and by the SAE.
    record: for run.json.
    """

    scores: pd.DataFrame
    quality: pd.DataFrame
    record: dict[str, Any]

    def gap(self, variant: str) -> NDArray[np.floating]:
        """Clean minus corrupted logit difference of every pair."""
        part: Any = self.scores[self.scores["variant"] == variant]
        part = part.sort_values("pair")
        return (part["ld_clean"] - part["ld_corrupted"]).to_numpy(dtype=float)

    def kept(self, variant: str) -> Summary:
        """Share of the plain model's contrast that a variant keeps, with its interval."""
        return summarise_ratio(self.gap(variant), self.gap(PLAIN))

    @property
    def variants(self) -> list[str]:
        """The variants, in the order they were run."""
        return list(dict.fromkeys(self.scores["variant"]))

    @property
    def gate(self) -> str | None:
        """The loud line for SAEs that keep less than half of the contrast; None for others."""
        return gate_line(float(self.kept(STACKED).value))

    def table(self) -> pd.DataFrame:
        """One row a variant: mean logit differences and the contrast kept, with 95% intervals."""
        rows = []
        for variant in self.variants:
            part: Any = self.scores[self.scores["variant"] == variant]
            row: dict[str, Any] = {"variant": variant}
            for name, summary in (
                ("clean", summarise_mean(part["ld_clean"].to_numpy())),
                ("corrupted", summarise_mean(part["ld_corrupted"].to_numpy())),
                ("kept", self.kept(variant)),
            ):
                row[name] = float(summary.value)
                row[f"{name}_low"], row[f"{name}_high"] = float(summary.low), float(summary.high)
            rows.append(row)
        return pd.DataFrame(rows)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the run's folder (default `runs/<task>/saes-<time>`) and return its path."""
        target = Path(folder) if folder else default_folder(self.record["task"], "saes")
        with new_run(target) as work:
            quality = self.quality.to_dict("records")
            write_record(work, {**self.record, "gate": self.gate, "quality": quality})
            write_scores(work, self.scores)
        return target

    @classmethod
    def load(cls, folder: str | Path) -> Fidelity:
        """Read a run back; the same object as the one that was saved."""
        record = read_record(folder)
        for key in ("format", "gate"):
            record.pop(key, None)
        if "quality" not in record:
            raise RunError(f"{folder} is not a whole run: quality is missing from run.json.")
        return cls(read_scores(folder), pd.DataFrame(record.pop("quality")), record)


def gate_line(kept: float) -> str | None:
    """The loud line for SAEs that, stacked, keep less than half of a contrast; None for others."""
    if np.isnan(kept):
        return "The plain model has no contrast to keep: nothing is said about these SAEs."
    if kept >= SMALLEST_KEPT:
        return None
    return (
        f"THESE SAEs ERASE THE TASK: without their errors they keep {kept:.1%} of the "
        "contrast. Every result made with them rests on error nodes."
    )


def contrast_kept(
    model: HookedModel,
    saes: SaeSet,
    pairs: PromptPairs,
    gap: NDArray[np.floating],
    sites: Sequence[Site] | None = None,
) -> dict[str, Any]:
    """What every other result made with SAEs says of them: `kept`, the share of the contrast that
    all of them stacked keep without their errors, with its interval; `clean, corrupted`, the mean
    logit differences then; and `gate`, the loud line.

    gap: clean less corrupted logit difference of the plain model, one a pair. sites: of which
        SAEs; all by default.
    """
    stacked = np.zeros((2, len(pairs)))
    edits = {site: reconstruct(saes, site) for site in sites or saes}
    for group in pairs.groups(_PAIRS_AT_ONCE):
        stacked[:, list(group.indices)] = _last_differences(model, group, edits)
    found = summarise_ratio(stacked[0] - stacked[1], gap)
    kept = float(found.value)
    means = {"clean": float(stacked[0].mean()), "corrupted": float(stacked[1].mean())}
    interval = {"kept_low": float(found.low), "kept_high": float(found.high)}
    return {"kept": kept, **interval, **means, "gate": gate_line(kept)}


def measure_fidelity(
    model: HookedModel,
    saes: SaeSet,
    pairs: PromptPairs,
    *,
    task: str = "custom",
    force: bool = False,
    progress: bool = True,
) -> Fidelity:
    """Run every variant on every pair.

    Raises `CannotDo` when the model itself does not separate the pairs (unless `force`), because
    there is nothing to keep then, and `SaeError` when SAEs with their errors do not give the plain
    model back to 1e-4 logits:
    then nothing that is computed with them can be trusted.
    """
    variants: dict[str, tuple[str, dict[Site, Edit]]] = {PLAIN: ("", {})}
    variants[WITH_ERROR] = ("", {site: _recompose(saes, site) for site in saes})
    for site in saes:
        variants[f"{site}, without error"] = (str(site), {site: reconstruct(saes, site)})
    variants[STACKED] = ("", {site: reconstruct(saes, site) for site in saes})
    problem = assess(*logit_differences(model, pairs)).problem
    if problem and not force:
        raise CannotDo(f"{model.name} cannot do {task}: {problem}. There is nothing to keep.")
    if min(map(len, pairs.clean_tokens)) < 3:
        raise SaeError("prompts of fewer than 3 tokens have no next-token loss to recover.")
    groups = list(pairs.groups(_PAIRS_AT_ONCE))
    tables, quality = [], Quality(model, saes)
    bar = tqdm(total=len(groups) * (len(variants) + len(saes)), disable=not progress, unit="pass")
    with bar:
        for name, (site, edits) in variants.items():
            bar.set_description(name)
            for group in groups:
                clean, corrupted = _last_differences(model, group, edits)
                columns = {"pair": group.indices, "ld_clean": clean, "ld_corrupted": corrupted}
                tables.append(pd.DataFrame(columns).assign(variant=name, site=site))
                bar.update()
            if name == WITH_ERROR:  # before anything is built on SAEs that do not add up
                _require_exact(pd.concat(tables, ignore_index=True))
        for group in groups:
            quality.add(torch.cat([group.clean, group.corrupted]), progress=bar.update)
    scores: Any = pd.concat(tables, ignore_index=True)
    scores = scores[["pair", "variant", "site", "ld_clean", "ld_corrupted"]]
    record = {
        "method": "saes",
        "task": task,
        "model": model.name,
        "model_sha256": model.sha256,
        "saes": [saes.describe(site) for site in saes],
        "prepend_bos": pairs.prepend_bos,
        "thoughts": thinks(model, pairs),
        "clean_tokens": pairs.clean_tokens,
        "corrupted_tokens": pairs.corrupted_tokens,
        "answer_tokens": pairs.answer_tokens,
        "foil_tokens": pairs.foil_tokens,
        "sign_convention": SIGN_CONVENTION,
        "versions": versions(),
    }
    return Fidelity(scores, quality.table(), record)


def _require_exact(scores: Any) -> None:
    wide = scores.pivot(index="pair", columns="variant", values=["ld_clean", "ld_corrupted"])
    for side in ("ld_clean", "ld_corrupted"):
        worst = float((wide[side][WITH_ERROR] - wide[side][PLAIN]).abs().max())
        if not worst <= _EXACT:
            raise SaeError(
                f"SAEs with their errors move the logit difference by {worst:.2g}, not by rounding "
                f"(at most {_EXACT}): reconstruction and error do not add up to the activation in "
                "float32, as when reconstructions are many times larger: do not use these SAEs."
            )


def _recompose(saes: SaeSet, site: Site) -> Edit:
    def edit(x: Tensor, start: int) -> Tensor:
        wide = x.to(saes[site].dtype)
        changed = saes[site].compose(saes[site].decompose(wide))
        if start == 0:
            changed[:, 0] = wide[:, 0]
        return changed

    return edit


def _last_differences(
    model: HookedModel, group: PairGroup, edits: dict[Site, Edit]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Logit differences of the clean and of the corrupted prompts, in one pass: every SAE that does
    not fit into memory with the others is loaded once and not twice."""
    tokens = torch.cat([group.clean, group.corrupted])
    logits = model.run_all_positions(tokens, edits)[:, -1].double().cpu()
    rows, half = torch.arange(len(tokens)), len(group.clean)
    answer, foil = torch.cat([group.answer] * 2), torch.cat([group.foil] * 2)
    found = (logits[rows, answer] - logits[rows, foil]).numpy()
    return found[:half], found[half:]
