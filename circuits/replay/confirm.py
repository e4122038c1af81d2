"""Pathways confirmed by intervention: what is left of an effect when a mediator is frozen.

All passes are over given tokens, so that nothing is another text's. With m the outcome (its mean
over the steps of a response) and the tokens of the no-op arm:

    total      m(source changed) - m(no-op)
    left       m(source changed, mediator held at its no-op values) - m(no-op)
    mediated   total - left: what goes through the mediator, by whatever further way
    alone      m(mediator held at its values of the changed run) - m(no-op): what it does by itself
    direct     m(mediator at its changed values, all others held at no-op values) - m(no-op): what
               reaches the outcome from it by no other mediator; of the source: all mediators held
    reach      the change of another mediator's coefficient in those runs, as it arrives there

A mediator is held at every position of prompt and response, by a change of its own write
(interventions.py); its values are effective coefficients. In a linear network mediated = alone, and
the direct parts of source and mediators add up to the total; what is left with all mediators frozen
together is the source's direct part. With an outcome that is not linear they need not, and what is
reported is what was measured.

Direct and token-mediated effect, with the tokens of either arm and the source changed or not:

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
from torch import Tensor
from tqdm import tqdm

from circuits.models.hooked import HookedModel
from circuits.replay.held import Pass, Text, batches, coefficients, run_pass, text_of
from circuits.replay.interventions import Change, edits_of, touched
from circuits.replay.outcomes import Outcome, steps_mean
from circuits.saes import SaeSet
from circuits.sites import Site

CELLS = ("m00", "m10", "m01", "m11")
Mediator = tuple[Site, int]


@dataclass(frozen=True)
class Setting:
    """What every pass needs. source: the changes of the patched arm. first: how many steps of a
    response count for the outcome; None for all."""

    model: HookedModel
    saes: SaeSet
    source: Sequence[Change]
    outcome: Outcome
    first: int | None = None

    def run(self, text: Text, changes: Sequence[Change], watch: Sequence[Site] = ()) -> Pass:
        """A pass with these changes."""
        return run_pass(self.model, text, edits_of(self.saes, changes, text.prompt), watch)

    def steps(self, found: Pass, reference: Pass) -> Float[Tensor, "row step"]:
        """The outcome at every step. Row by row: vocabularies are large."""
        pairs = zip(found.logits.split(1), reference.logits.split(1), strict=True)
        return torch.cat([self.outcome.values(mine, base) for mine, base in pairs])

    def mean(self, found: Pass, reference: Pass, text: Text) -> Float[np.ndarray, " row"]:
        """The outcome of each response."""
        steps = self.steps(found, reference)
        return steps_mean(steps.double(), text.lengths, self.first).cpu().numpy()


@dataclass(frozen=True)
class Confirmed:
    """Outcomes trial by trial, as differences from the no-op run; see the module.

    base: m(no-op) itself. left, alone, direct: by mediator. left_all: with all frozen, which is
    the source's direct part; left_controls: with as many random latents frozen
    instead, NaN without any. reach: the change of mediator j when only i is at its changed values;
    reach_source: when only the source is. moved: the mediators' whole change. source: the
    coefficient of the (first) source as it is and changed. Coefficients are means over steps.
    """

    mediators: tuple[Mediator, ...]
    base: Float[np.ndarray, " trial"]
    total: Float[np.ndarray, " trial"]
    left_all: Float[np.ndarray, " trial"]
    left_controls: Float[np.ndarray, " trial"]
    left: Float[np.ndarray, "trial mediator"]
    alone: Float[np.ndarray, "trial mediator"]
    direct: Float[np.ndarray, "trial mediator"]
    moved: Float[np.ndarray, "trial mediator"]
    reach_source: Float[np.ndarray, "trial mediator"]
    reach: Float[np.ndarray, "trial mediator other"]
    source: Float[np.ndarray, "trial 2"]


def confirm(
    setting: Setting,
    prompts: Sequence[Sequence[int]],
    given: Sequence[Sequence[int]],
    mediators: Sequence[Mediator],
    *,
    controls: Sequence[Mediator] = (),
    batch_size: int = 16,
    progress: bool = True,
) -> Confirmed:
    """Freeze each mediator, all of them, and put each in by itself.

    prompts, given: tokens of every trial's prompt and of its response in the no-op arm.
    mediators, controls: at sites after the source's, in any order.
    """
    n, k = len(prompts), len(mediators)
    parts: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, ...]] = {"reach": (n, k, k), "source": (n, 2)}
    for name in ("base", "total", "left_all", "left_controls"):
        sizes[name] = (n,)
    for name in ("left", "alone", "direct", "moved", "reach_source"):
        sizes[name] = (n, k)
    for name, size in sizes.items():
        parts[name] = np.zeros(size)
    groups = list(batches(prompts, given, batch_size))
    for rows in tqdm(groups, desc="freezing mediators", unit="batch", disable=not progress):
        text = text_of(rows, [prompts[i] for i in rows], [given[i] for i in rows])
        for name, value in _batch(setting, text, mediators, controls).items():
            parts[name][rows] = value
    return Confirmed(tuple(mediators), **parts)


def _batch(
    setting: Setting, text: Text, mediators: Sequence[Mediator], controls: Sequence[Mediator]
) -> dict[str, Float[np.ndarray, "row ..."]]:
    watch = list(dict.fromkeys(site for site, _ in mediators))
    before = [setting.source[0].site, *(site for site, _ in controls), *watch]
    off = setting.run(text, (), before)
    on = setting.run(text, setting.source, watch)
    low, high = (_values(setting.saes, one, mediators) for one in (off, on))
    base = setting.mean(off, off, text)
    frozen = [_hold(m, low[m]) for m in mediators]

    def effect(found: Pass) -> np.ndarray:
        return setting.mean(found, off, text) - base

    def reach(found: Pass) -> np.ndarray:
        seen = _values(setting.saes, found, mediators)
        return _step_means(text, [seen[m] - low[m] for m in mediators])

    held = setting.run(text, [*setting.source, *frozen], watch) if mediators else on
    k = len(mediators)
    still = _values(setting.saes, off, controls)
    random = [*setting.source, *(_hold(m, still[m]) for m in controls)]
    nan = np.full(len(base), np.nan)
    found: dict[str, np.ndarray] = {
        "base": base,
        "total": effect(on),
        "left_all": effect(held),
        "left_controls": effect(setting.run(text, random)) if controls else nan,
        "moved": _step_means(text, [high[m] - low[m] for m in mediators]),
        "reach_source": reach(held),
        "reach": np.zeros((len(base), k, k)),
        "source": _source(setting, off, text),
    }
    for name in ("left", "alone", "direct"):
        found[name] = np.zeros((len(base), k))
    for i, mediator in enumerate(mediators):
        put = _hold(mediator, high[mediator])
        others = [f for j, f in enumerate(frozen) if j != i]
        single = held if k == 1 else setting.run(text, [*setting.source, frozen[i]])
        by_itself = setting.run(text, [put], watch if k == 1 else ())
        straight = by_itself if k == 1 else setting.run(text, [put, *others], watch)
        found["left"][:, i] = effect(single)
        found["alone"][:, i] = effect(by_itself)
        found["direct"][:, i] = effect(straight)
        found["reach"][:, i] = reach(straight)
        found["reach"][:, i, i] = 0.0
    return found


def _source(setting: Setting, off: Pass, text: Text) -> Float[np.ndarray, "row 2"]:
    """Mean coefficient of the source in the no-op run, and what it is changed to."""
    change = setting.source[0]
    mine = (change.site, change.latent)
    found = _values(setting.saes, off, [mine])[mine]
    inside = touched(change, 0, found.shape[1], text.prompt).to(found.device)
    return _step_means(text, [found, found + change.delta(found, 0) * inside])


def _hold(mediator: Mediator, value: Float[Tensor, "row position"]) -> Change:
    site, latent = mediator
    # At the first position too, where it moves if the source is changed there.
    return Change(site, latent, "hold", value, first=True)


def _values(
    saes: SaeSet, found: Pass, mediators: Sequence[Mediator]
) -> dict[Mediator, Float[Tensor, "row position"]]:
    """Effective coefficients as they arrive, by mediator."""
    values: dict[Mediator, Tensor] = {}
    for site in dict.fromkeys(site for site, _ in mediators):
        mine = [latent for where, latent in mediators if where == site]
        wide = coefficients(saes[site], found.seen[site], mine)
        values |= {(site, latent): wide[..., i] for i, latent in enumerate(mine)}
    return values


def _step_means(
    text: Text, values: Sequence[Float[Tensor, "row position"]]
) -> Float[np.ndarray, "row mediator"]:
    """Of each row, over its own steps."""
    if not values:
        return np.zeros((len(text.trial), 0))
    means = [steps_mean(v[:, text.steps].double(), text.lengths, None) for v in values]
    return torch.stack(means, 1).cpu().numpy()


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
                count = text.steps.stop - text.steps.start
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
