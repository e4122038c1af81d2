"""Direct effects: what each part of the last position's stream adds to the logit difference itself.

For both runs of a pair:

1. read how the final stream becomes LD: a direction, the final norm's scale, a constant
   (readout.py);
2. split the stream of the last position into parts (parts.py): embedding, heads, attention biases
   and MLP outputs; and, at every site with an SAE, latents, error and offset. The contribution of a
   part is its write carried to the final stream and read there, with the scale as it is. All
   components and the constant add up to LD; so do the nodes of one residual site, the attention
   and MLP outputs after it, and the constant (Elhage et al. 2021). Both sums are checked before
   anything is returned;
3. the direct effect of a node is that of its change between the runs, in the run that is patched:
   `frozen` with the norms' scales of that run, `exact` with what is changed normalised again;
4. `total` is the exact effect of the same change through everything downstream: the node patched
   at the last position. What is left, total - exact, is mediated by later layers.

Positive means toward clean. At other positions than the last the direct effect of a node is exactly
0, and all of its effect is mediated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from circuits.attribute.exact import patch_nodes
from circuits.attribute.nodes import VectorBlock
from circuits.direct.parts import RUNS, Part, Streams
from circuits.direct.readout import Readout, readout
from circuits.direct.result import DirectEffects
from circuits.errors import CircuitsError
from circuits.models.hooked import HookedModel
from circuits.models.unembed import before_cap, norm_after_attention, soft_cap
from circuits.patch.ability import assess, baselines, in_halves
from circuits.patch.draw import draw, thinks
from circuits.prompts import PairGroup, PromptPairs
from circuits.runs import SIGN_CONVENTION, versions
from circuits.saes import SaeSet, contrast_kept
from circuits.task import Task

_PAIRS_AT_ONCE = 16
# Of LD's scale: by how much contributions may miss it. In 16 bit a logit of 20 alone is rounded by
# 0.06, and the stream at every layer; what was missed is in the record.
_SUM, _SUM_16_BIT = 1e-4, 0.25


class DirectError(CircuitsError):
    """Options that contradict each other, or a model whose stream is not a sum."""


def direct(
    model: HookedModel,
    prompts: Task | PromptPairs,
    *,
    saes: SaeSet | None = None,
    pairs: PromptPairs | None = None,
    direction: str = "denoising",
    totals: bool = True,
    contrast: str | None = None,
    n_pairs: int = 12,
    split: Literal["explored", "held_out"] = "explored",
    seed: int = 0,
    prepend_bos: bool | None = None,
    batch_size: int | None = None,
    force: bool = False,
    progress: bool = True,
) -> DirectEffects:
    """Contributions and direct effects of all components and, with SAEs, of their nodes.

    prompts, pairs, contrast, n_pairs, split, seed, prepend_bos, force: as in `circuits.attribute`.
    direction: which run the changes are put into; contributions are given for both runs.
    totals: also patch every node at the last position; without, `total` is missing (NaN).
    batch_size: most patched runs at once; by default what fits into memory.

    Where logits are soft-capped (Gemma-2), LD is that of the logits before the cap.

    Raises `DirectError` when the contributions of a run do not add up to its logit difference to
    1e-4 of its scale (16-bit types: to 0.25 of it, because they round that much): then the model's
    stream is not the sum that this needs.
    """
    started = time.perf_counter()
    check_options(direction, batch_size)
    given = draw(
        model,
        prompts,
        pairs,
        "direct effects",
        contrast=contrast,
        n_pairs=n_pairs,
        split=split,
        seed=seed,
        prepend_bos=prepend_bos,
    )
    cap = soft_cap(model)
    with given.on(model):
        base = baselines(model, given.pairs)
        ability = assess(base.clean_ld, base.corrupted_ld)
        if not force:
            given.require_ability(model, ability, "Direct effects of it")
        tables, worst, constants = [], 0.0, np.zeros((2, len(given.pairs)))
        differences = np.zeros((2, len(given.pairs)))
        bar = tqdm(total=len(given.pairs), desc="direct effects", unit="pair", disable=not progress)
        with bar:
            for group in given.pairs.groups(_PAIRS_AT_ONCE):
                for batch in in_halves(
                    group,
                    lambda part: _Batch(
                        model, saes, part, direction == "denoising", totals, batch_size
                    ),
                ):
                    tables.append(batch.table)
                    worst = max(worst, batch.worst)
                    where = list(batch.group.indices)
                    for i, run in enumerate(RUNS):
                        constants[i, where] = batch.read[run].constant.cpu().numpy()
                        differences[i, where] = batch.difference[run].cpu().numpy()
                bar.update(len(group.indices))
        # First, because digests of a release's weights are known once they are loaded.
        kept = None
        if saes is not None:
            kept = contrast_kept(model, saes, given.pairs, base.clean_ld - base.corrupted_ld)
        record: dict[str, Any] = {
            "method": "direct",
            "task": given.name,
            "contrast": given.contrast,
            "model": model.name,
            "model_sha256": model.sha256,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "saes": None if saes is None else [saes.describe(site) for site in saes],
            "saes_keep": kept,
            "direction": direction,
            "metric": "logit_difference",
            "thoughts": thinks(model, given.pairs),
            "soft_cap": cap,
            "split": given.split,
            "seed": given.seed,
            "sign_convention": SIGN_CONVENTION,
            "sum_error": worst,
            "forced": bool(ability.problem),
            "ability": ability.problem or "can do",
            "constant_clean": constants[0].tolist(),
            "constant_corrupted": constants[1].tolist(),
            "logit_difference_clean": differences[0].tolist(),
            "logit_difference_corrupted": differences[1].tolist(),
            "versions": versions(),
            "seconds": time.perf_counter() - started,
        }
        return DirectEffects(pd.concat(tables, ignore_index=True), given.pairs, record)


def check_options(direction: str, batch_size: int | None) -> None:
    """Raise `DirectError` for options that mean nothing."""
    if direction not in ("denoising", "noising"):
        raise DirectError(f"unknown direction {direction!r}: expected denoising or noising.")
    if batch_size is not None and batch_size < 1:
        raise DirectError(f"batch_size {batch_size} must be at least 1.")


class _Batch:
    """All parts of a group of pairs of one length: `table`, and by how much sums missed LD."""

    def __init__(
        self,
        model: HookedModel,
        saes: SaeSet | None,
        group: PairGroup,
        denoising: bool,
        totals: bool,
        batch_size: int | None,
    ) -> None:
        self.model, self.group = model, group
        self.base, self.sign = ("corrupted", 1) if denoising else ("clean", -1)
        self._batch_size = batch_size
        self.worst = 0.0
        self._cap = soft_cap(model)
        self.streams = Streams(model, saes, group)
        self.read: dict[str, Readout] = {}
        self.difference: dict[str, Tensor] = {}
        for run in RUNS:
            final = self.streams.values[run][self.streams.final]
            self.read[run] = readout(model, final, group.answer, group.foil)
            pairs = torch.arange(len(group.indices))
            self.difference[run] = self._metric(pairs, self.streams.logits[run])
        self._patched = None
        if totals:
            tokens = group.corrupted if denoising else group.clean
            self._patched = model.baseline(tokens, tokens.shape[1] - 1)
        tables: list[pd.DataFrame] = []
        for parts in self._parts():
            tables += map(self._rows, parts, self._totals(parts))
        self.table = pd.concat(tables, ignore_index=True)

    def _metric(self, pair: Tensor, logits: Tensor) -> Tensor:
        """LD before any cap, of rows."""
        pair = pair.cpu()
        rows = torch.arange(len(pair), device=logits.device)
        answer, foil = (t[pair].to(logits.device) for t in (self.group.answer, self.group.foil))
        there, other = (before_cap(logits[rows, t], self._cap) for t in (answer, foil))
        return there - other

    def _parts(self) -> Iterator[list[Part]]:
        """Components, then the nodes of one site after the other, which are dense while they are
        looked at."""
        streams, layers = self.streams, range(self.model.n_layers)
        whole = list(streams.components())
        self._check({run: self._sum(whole, run) for run in RUNS}, "Embedding, attention and MLPs")
        split = [part for i in layers for part in (streams.heads(i), streams.bias(i))]
        for i in layers:
            self._check_bias(split[2 * i + 1], i)
        yield [*whole, *split]
        for site in streams.saes or ():
            nodes = list(streams.nodes(site))
            if site.kind.startswith("resid"):
                parts, what = [*nodes, *streams.later(site)], f"Nodes of {site} and what follows"
                self._check({run: self._sum(parts, run) for run in RUNS}, what)
            yield nodes

    def _contributions(self, part: Part, run: str) -> Tensor:
        carried = self.streams.carried(part.site, run, part.writes[run], part.pair)
        return self.read[run].frozen(carried, part.pair)

    def _sum(self, parts: list[Part], run: str) -> Tensor:
        total = self.read[run].constant.clone()
        for part in parts:
            total.index_add_(0, part.pair, self._contributions(part, run))
        return total

    def _check(self, totals: dict[str, Tensor], what: str) -> None:
        """Raise when contributions and the constant are not LD."""
        exact = self.model.dtype in (torch.float32, torch.float64)
        bound = _SUM if exact else _SUM_16_BIT
        for run, total in totals.items():
            wanted = self.difference[run]
            missed = (total - wanted).abs() / wanted.abs().clamp(min=1.0)
            found = float(missed.max())
            self.worst = max(self.worst, found)
            if not bool((missed <= bound).all()):  # so that NaN does not pass
                raise DirectError(
                    f"{what} add up to a logit difference that is off by {found:.2g} of its "
                    f"scale in the {run} run (at most {bound}): this model's last stream is not "
                    "their sum, so that direct effects cannot be told."
                )

    def _check_bias(self, part: Part, layer: int) -> None:
        """Raise when what is left beside the heads differs from run to run: then it is no bias, and
        the heads are not what the layer adds."""
        if norm_after_attention(self.model, layer) is not None:
            return
        rest = torch.cat([part.writes[run] for run in RUNS])
        whole = torch.cat([self.streams.values[run][part.site] for run in RUNS])
        spread = float((rest - rest.mean(0)).norm(dim=-1).max())
        exact = self.model.dtype in (torch.float32, torch.float64)
        if spread > (1e-3 if exact else 5e-2) * float(whole.norm(dim=-1).max()):
            raise DirectError(
                f"The heads of layer {layer} do not add up to its attention output: this model "
                "does more with them than one output projection."
            )

    def _rows(self, part: Part, total: Tensor) -> pd.DataFrame:
        streams, read = self.streams, self.read[self.base]
        carried = streams.carried(part.site, self.base, part.change, part.pair)
        added = streams.carried_exactly(part.site, self.base, self.sign * part.change, part.pair)
        columns = {
            "clean": self._contributions(part, "clean"),
            "corrupted": self._contributions(part, "corrupted"),
            "frozen": read.frozen(carried, part.pair),
            "exact": self.sign * read.exact(added, part.pair),
            "total": total,
        }
        pair = part.pair.cpu().numpy()
        indices = np.array(self.group.indices, dtype=np.int64)
        return pd.DataFrame(
            {
                "pair": indices[pair],
                "site": str(part.site),
                "layer": part.site.layer,
                "position": self.group.clean.shape[1] - 1,
                "role": part.role,
                "latent": part.index.cpu().numpy(),
                **{name: values.double().cpu().numpy() for name, values in columns.items()},
            }
        )

    def _totals(self, parts: Sequence[Part]) -> list[Tensor]:
        """The effect of each node's change at the last position through everything; NaN where it is
        not asked for."""
        if self._patched is None:
            missing = float("nan")
            return [torch.full((len(p.pair),), missing, dtype=torch.float64) for p in parts]
        items = []
        for part in parts:
            position = torch.full_like(part.pair, self.group.clean.shape[1] - 1)
            clean, corrupted = (part.writes[run].norm(dim=-1) for run in RUNS)
            delta = part.change.to(self.model.dtype)
            block = VectorBlock(
                "component", part.pair, position, part.index, clean, corrupted, delta
            )
            # What does not change has no effect, and needs no pass.
            moved = (delta != 0).any(-1).nonzero().squeeze(1)
            if part.role == "bias" and norm_after_attention(self.model, part.site.layer) is None:
                moved = moved[:0]  # rounding
            items.append((part.site, block, moved))
        patched = patch_nodes(
            self.model, self._patched, items, self._metric, self.sign, self._batch_size
        )
        base = self._metric(torch.arange(len(self.group.indices)), self._patched.logits).cpu()
        found = []
        for (_, block, moved), values in zip(items, patched, strict=True):
            total = torch.zeros(len(block.pair), dtype=torch.float64)
            total[moved.cpu()] = (values - base[block.pair[moved].cpu()]) * self.sign
            found.append(total)
        return found
