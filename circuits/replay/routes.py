"""Direct and by tokens: the effect that was seen, split by whose tokens carry it.

With the tokens of either arm and the source changed or not:

                        no-op arm's tokens   patched arm's tokens
    source as it is     m00                  m01
    source changed      m10                  m11

    direct = m10 - m00, by_tokens = m01 - m00, interaction = m11 - m10 - m01 + m00; they add up to
    m11 - m00, the effect that was seen in the run. Each m is a mean over the steps of its own
    tokens. Step by step, only trials count in which both texts have the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from circuits.replay.confirm import Setting
from circuits.replay.held import Pass, batches, text_of
from circuits.replay.outcomes import steps_mean

CELLS = ("m00", "m10", "m01", "m11")


@dataclass(frozen=True)
class Routes:
    """The four cells, as outcomes.

    cells: mean over the steps of each response, by name. steps: [trial, step] by name, NaN where
        the text has no such step. logprobs: of each response, by name, natural logarithms.
    """

    cells: Mapping[str, Float[np.ndarray, " trial"]]
    steps: Mapping[str, Float[np.ndarray, "trial step"]]
    logprobs: Mapping[str, Float[np.ndarray, " trial"]]

    @property
    def parts(self) -> dict[str, Float[np.ndarray, " trial"]]:
        """direct, by_tokens, interaction and their sum, total, trial by trial."""
        return split(self.cells)

    @property
    def step_parts(self) -> dict[str, Float[np.ndarray, "trial step"]]:
        """The same at every step; NaN where one of the texts does not have it."""
        return split(self.steps)


def split(cells: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The effects of four cells."""
    m00, m10, m01, m11 = (cells[name] for name in CELLS)
    return {
        "direct": m10 - m00,
        "by_tokens": m01 - m00,
        "interaction": m11 - m10 - m01 + m00,
        "total": m11 - m00,
    }


def routes(
    setting: Setting,
    prompts: Sequence[Sequence[int]],
    plain: Sequence[Sequence[int]],
    patched: Sequence[Sequence[int]],
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> Routes:
    """Run the tokens of the no-op arm (plain) and of the patched arm with and without the change.

    With `kl`, the distribution compared with is that of the no-op run at the same step; behind the
    end of the no-op response there is none, so those steps are left out of all four cells.
    """
    longest = max(len(one) for texts in (plain, patched) for one in texts)
    cells = {name: np.zeros(len(prompts)) for name in CELLS}
    steps = {name: np.full((len(prompts), longest), np.nan) for name in CELLS}
    logprobs = {name: np.zeros(len(prompts)) for name in CELLS}
    whole = setting.outcome.kind == "kl"
    if whole:
        patched = [b[: len(a)] for a, b in zip(plain, patched, strict=True)]
    groups = list(batches(prompts, plain, batch_size))
    for rows in tqdm(groups, desc="2 x 2", unit="batch", disable=not progress):
        reference: Pass | None = None
        for column, given in enumerate((plain, patched)):
            text = text_of(rows, [prompts[i] for i in rows], [given[i] for i in rows])
            for row, changes in enumerate(((), setting.source)):
                found = setting.run(text, changes)
                reference = reference or found
                count = text.count
                compared = Pass(reference.logits[:, :count] if whole else found.logits, {})
                values = setting.steps(found, compared)
                name = CELLS[row + 2 * column]
                mean = steps_mean(values.double(), text.lengths, setting.first)
                cells[name][rows] = mean.cpu().numpy()
                logprobs[name][rows] = _logprobs(found, [given[i] for i in rows])
                outside = torch.arange(count)[None] >= text.lengths[:, None]
                kept = values.cpu().masked_fill(outside, float("nan")).numpy()
                steps[name][rows[:, None], np.arange(count)[None]] = kept
    return Routes(cells, steps, logprobs)


def _logprobs(found: Pass, given: Sequence[Sequence[int]]) -> Float[np.ndarray, " row"]:
    """Of each row's tokens together."""
    sums = []
    for logits, ids in zip(found.logits, given, strict=True):
        mine = logits[: len(ids)].float().log_softmax(-1)
        sums.append(mine[torch.arange(len(ids)), list(ids)].double().sum())
    return torch.stack(sums).cpu().numpy()
