"""`replay`: from what is asked for to a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from circuits.models.hooked import HookedModel
from circuits.replay.interventions import Change, ReplayError
from circuits.replay.options import Options, Record
from circuits.replay.prompts import Prompts
from circuits.replay.result import ReplayResult
from circuits.replay.run import Run
from circuits.replay.sampling import Sampling
from circuits.replay.store import Store
from circuits.replay.variance import check_outcomes
from circuits.runs import check_new, default_folder
from circuits.saes import SaeSet
from circuits.sites import Site, forward_order
from circuits.task import GenerateTask, Task, require


def replay(
    model: HookedModel,
    saes: SaeSet,
    prompts: Task | Prompts,
    changes: Sequence[Change],
    *,
    sites: Sequence[Site] | None = None,
    n_prompts: int = 12,
    task_options: Mapping[str, Any] | None = None,
    prepend_bos: bool | None = None,
    trials: int = 10,
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    randoms: int = 1,
    record: Record = "latents",
    unpatched: bool = False,
    stop: Sequence[int] | None = None,
    outcomes: Sequence[str] = (),
    out: str | Path | None = None,
    save_dir: str | Path | None = None,
    about: dict[str, Any] | None = None,
    progress: bool = True,
) -> ReplayResult:
    """Write every trial of every prompt in the arms no-op, reconstruction, random-1, ..., latent.

    prompts: a task that has prompts to answer (`n_prompts` are drawn with `seed`; its `parse` reads
        the responses), or `Prompts` of your own.
    task_options: what the task's `prompts` takes besides `n` and `seed`, such as a family.
    changes: what the arm "latent" does; all of them together.
    sites: where latents are recorded, from the sites that have SAEs; by default the changed ones
        and all that come later in the model.
    prepend_bos: of a task's prompts; None as the SAEs were trained, or else as the tokenizer does.
    batch_size: rows that are written together. Numbers depend on it in the last bit, so that a run
        keeps one size throughout.
    record: "latents" encodes every batch as it is written; "residuals" keeps the activations in
        the run's folder and encodes them at the end, each SAE once. The tables are the same.
    unpatched: also measure how probable responses are under the unchanged model, by one more pass.
    stop: token ids that end a response; by default the model's own end-of-text tokens.
    outcomes: of responses, whose differences the page shows beside those of length and
        log-probability; see `circuits.replay.variance.outcome_of`.
    out: the run's folder, by default `runs/<task>/replay-<time>`. save_dir: where parts are kept
        until the run is whole, by default beside it; the same call goes on where it was stopped.
    about: more for run.json.

    Raises `ReplayError` and other `CircuitsError`s before anything is run.
    """
    task = None if isinstance(prompts, Prompts) else prompts
    name = "custom" if task is None else task.name
    check_outcomes(outcomes, unpatched=unpatched, parsed=task is not None)
    folder = Path(out) if out is not None else default_folder(name, "replay")
    check_new(folder)
    own = dict(task_options or {})
    if isinstance(prompts, Prompts):
        if own:
            raise ReplayError(f"options {', '.join(own)} are a task's, and prompts were given.")
        given, parse = prompts, None
    else:
        source = require(prompts, GenerateTask, "circuits replay run")
        bos = saes.prepend_bos if prepend_bos is None else prepend_bos
        drawn = source.prompts(model, n=n_prompts, seed=seed, **own)
        given, parse = Prompts.of(drawn, model.tokenizer, bos), source.parse
    stops = tuple(sorted(set(_ends(model) if stop is None else stop)))
    sampling = Sampling(temperature, top_p)
    options = Options(
        trials, max_new_tokens, sampling, seed, batch_size, randoms, record, unpatched, stops
    )
    run = Run(model, saes, given, changes, _downstream(saes, changes, sites), options, parse, task)
    run.check()
    store = Store(Path(save_dir) if save_dir is not None else folder.parent, run.identity())
    facts = {"task": name, "task_options": own, "outcomes": list(outcomes), **(about or {})}
    run.write(store, folder, facts, progress)
    return ReplayResult.load(folder)


def _ends(model: HookedModel) -> list[int]:
    """End-of-text tokens: of the model's own settings for generation, and of its tokenizer."""
    hf = getattr(model.module, "original_model", None)
    own = getattr(getattr(hf, "generation_config", None), "eos_token_id", None)
    found = own if isinstance(own, list) else [own]
    found = [*found, getattr(model.tokenizer, "eos_token_id", None)]
    return [int(i) for i in found if i is not None]


def _downstream(
    saes: SaeSet, changes: Sequence[Change], sites: Sequence[Site] | None
) -> tuple[Site, ...]:
    if not changes:
        raise ReplayError("there are no changes: say which latent is held, scaled or removed.")
    if sites is not None:
        missing = [str(site) for site in sites if site not in saes.sources]
        if missing:
            there = ", ".join(map(str, saes))
            raise ReplayError(f"there is no SAE at {', '.join(missing)}: there are {there}.")
        return forward_order(sites)
    order = forward_order({*saes, *(change.site for change in changes)})
    first = min(order.index(change.site) for change in changes)
    return order[first:]
