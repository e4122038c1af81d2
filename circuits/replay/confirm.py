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

Where only some mediators are confirmed, those are wired once more without the others (`wire`): what
is said of them together, and the graph that shows them alone, then leave nothing out, as what goes
by the others is in the source's part again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from circuits.models.hooked import HookedModel
from circuits.replay.held import Pass, Text, batches, coefficients, run_pass, text_of
from circuits.replay.interventions import Change, edits_of, touched
from circuits.replay.outcomes import Outcome, steps_mean
from circuits.saes import SaeSet
from circuits.sites import Site

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


@dataclass(frozen=True, kw_only=True)
class Wired:
    """How the source reaches the outcome through these mediators and past them, trial by trial, as
    differences from the no-op run; see the module.

    left_all: with all of them frozen, what the source does by none of them. direct: by mediator.
    reach: the change of mediator j when only i is at its changed values; reach_source: when only
    the source is. Coefficients are means over steps.
    """

    mediators: tuple[Mediator, ...]
    left_all: Float[np.ndarray, " trial"]
    direct: Float[np.ndarray, "trial mediator"]
    reach_source: Float[np.ndarray, "trial mediator"]
    reach: Float[np.ndarray, "trial mediator other"]


@dataclass(frozen=True, kw_only=True)
class Confirmed(Wired):
    """And what each of them carries.

    base: m(no-op) itself. left, alone: by mediator. left_controls: with as many other latents
    frozen instead, NaN without any. moved: the mediators' whole change. source: the coefficient of
    the (first) source as it is and changed.
    """

    base: Float[np.ndarray, " trial"]
    total: Float[np.ndarray, " trial"]
    left_controls: Float[np.ndarray, " trial"]
    left: Float[np.ndarray, "trial mediator"]
    alone: Float[np.ndarray, "trial mediator"]
    moved: Float[np.ndarray, "trial mediator"]
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
    parts: dict[str, np.ndarray] = {}
    groups = list(batches(prompts, given, batch_size))
    for rows in tqdm(groups, desc="freezing mediators", unit="batch", disable=not progress):
        text = text_of(rows, [prompts[i] for i in rows], [given[i] for i in rows])
        _put(parts, rows, len(prompts), _batch(setting, text, mediators, controls))
    return Confirmed(mediators=tuple(mediators), **parts)


def wire(
    setting: Setting,
    prompts: Sequence[Sequence[int]],
    given: Sequence[Sequence[int]],
    found: Confirmed,
    some: Sequence[int],
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> Wired:
    """Wire some of the mediators without the others; for all of them or none, nothing is run.

    prompts, given: as `confirm` was given them. some: numbers of mediators in `found`.
    """
    if len(some) == len(found.mediators):
        return found
    mediators = [found.mediators[i] for i in some]
    if not mediators:
        none = np.zeros((len(prompts), 0))
        return Wired(
            mediators=(),
            left_all=found.total,
            direct=none,
            reach_source=none,
            reach=none[..., None],
        )
    parts: dict[str, np.ndarray] = {}
    groups = list(batches(prompts, given, batch_size))
    for rows in tqdm(groups, desc="wiring confirmed ones", unit="batch", disable=not progress):
        text = text_of(rows, [prompts[i] for i in rows], [given[i] for i in rows])
        watch = list(dict.fromkeys(site for site, _ in mediators))
        off, on = (setting.run(text, changes, watch) for changes in ((), setting.source))
        _put(parts, rows, len(prompts), _wired(setting, text, off, on, mediators))
    return Wired(mediators=tuple(mediators), **parts)


def _put(
    parts: dict[str, np.ndarray],
    rows: Int[np.ndarray, " row"],
    count: int,
    batch: Mapping[str, Float[np.ndarray, "row ..."]],
) -> None:
    """A batch's rows into arrays of `count` trials."""
    for name, value in batch.items():
        parts.setdefault(name, np.zeros((count, *value.shape[1:])))[rows] = value


def _batch(
    setting: Setting, text: Text, mediators: Sequence[Mediator], controls: Sequence[Mediator]
) -> dict[str, Float[np.ndarray, "row ..."]]:
    watch = list(dict.fromkeys(site for site, _ in mediators))
    before = [setting.source[0].site, *(site for site, _ in controls), *watch]
    off = setting.run(text, (), before)
    on = setting.run(text, setting.source, watch)
    low, high = (_values(setting.saes, one, mediators) for one in (off, on))
    base = setting.mean(off, off, text)

    def effect(changes: Sequence[Change]) -> np.ndarray:
        return setting.mean(setting.run(text, changes), off, text) - base

    still = _values(setting.saes, off, controls)
    random = [*setting.source, *(_hold(m, still[m]) for m in controls)]
    wired = _wired(setting, text, off, on, mediators)
    found: dict[str, np.ndarray] = {
        **wired,
        "base": base,
        "total": setting.mean(on, off, text) - base,
        "left_controls": effect(random) if controls else np.full(len(base), np.nan),
        "moved": _step_means(text, [high[m] - low[m] for m in mediators]),
        "source": _source(setting, off, text),
    }
    if len(mediators) == 1:  # without others, these are one and the same
        return found | {"left": wired["left_all"][:, None], "alone": wired["direct"]}
    for name in ("left", "alone"):
        found[name] = np.zeros((len(base), len(mediators)))
    for i, mediator in enumerate(mediators):
        found["left"][:, i] = effect([*setting.source, _hold(mediator, low[mediator])])
        found["alone"][:, i] = effect([_hold(mediator, high[mediator])])
    return found


def _wired(
    setting: Setting, text: Text, off: Pass, on: Pass, mediators: Sequence[Mediator]
) -> dict[str, Float[np.ndarray, "row ..."]]:
    """What `Wired` holds. off, on: watched where the mediators are."""
    watch = list(dict.fromkeys(site for site, _ in mediators))
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
    made = {
        "left_all": effect(held),
        "direct": np.zeros((len(base), k)),
        "reach_source": reach(held),
        "reach": np.zeros((len(base), k, k)),
    }
    for i, mediator in enumerate(mediators):
        others = [f for j, f in enumerate(frozen) if j != i]
        straight = setting.run(text, [_hold(mediator, high[mediator]), *others], watch)
        made["direct"][:, i] = effect(straight)
        made["reach"][:, i] = reach(straight)
        made["reach"][:, i, i] = 0.0
    return made


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
