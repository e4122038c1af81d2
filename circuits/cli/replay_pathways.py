"""`circuits replay pathways`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuits.cli import options
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_pathways import print_pathways
from circuits.cli.start import load_set
from circuits.errors import CircuitsError

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel
    from circuits.saes import SaeSet
    from circuits.task import Task


def pathways_command(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The folder of a finished `circuits replay run`.")],
    outcome: Annotated[
        str | None,
        typer.Option(
            "--outcome",
            help="kl, logprob:TOKENS, logit:TOKENS or difference:TOKENS//TOKENS, tokens separated "
            "by |; behind the kind the first steps that count, difference[1]:... "
            "[the task's own, else kl].",
        ),
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(
            "--sites", help="Downstream sites, such as resid_post.18,resid_post.22 [all]."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only prompts of this kind, such as risky [all].")
    ] = None,
    unit: Annotated[
        Literal["prompt", "trial"] | None,
        typer.Option(
            "--unit",
            help="What is exchanged in tests and drawn for intervals [prompt from 10 prompts on].",
        ),
    ] = None,
    fdr: Annotated[float, typer.Option("--fdr", help="Largest false discovery rate.")] = 0.05,
    mediators: Annotated[
        int, typer.Option("--mediators", min=0, help="Most latents that are frozen.")
    ] = 6,
    min_units: Annotated[
        int, typer.Option("--min-units", min=1, help="Units in which a latent must be active.")
    ] = 6,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            help="First steps that count for the outcome [as the outcome says, else all].",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="Trials a prompt that are run again [all]."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Responses run together.")
    ] = 16,
    bank: Annotated[
        str | None,
        typer.Option("--bank", help="embedded, or a `circuits features` run: cards of latents."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="The run's task, or its path if it is your own [by name]."),
    ] = None,
    model: options.ModelOption = None,
    saes: options.SaesOption = "embedded",
    layers: options.LayersOption = None,
    l0: options.L0Option = None,
    width: options.WidthOption = None,
    sae_memory: options.SaeMemoryOption = None,
    device: options.DeviceOption = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16, float16 or float64 [the run's]."),
    ] = None,
    seed: options.SeedOption = None,
    out: options.OutOption = None,
) -> None:
    """Which downstream latents a change moves, what they carry of its effect, and what goes by the
    words: of a finished replay."""
    from circuits.features import FeatureBank
    from circuits.models.unembed import unembedding
    from circuits.replay import ReplayResult
    from circuits.replay.outcomes import Outcome, check_outcome, parse_outcome, read_sides
    from circuits.replay.pathways import Plan, Written, pathways
    from circuits.runs import check_new, default_folder
    from circuits.sites import Site

    if outcome is not None:
        read_sides(outcome)
    run = ReplayResult.load(folder)
    wanted = None if sites is None else tuple(Site.parse(s.strip()) for s in sites.split(","))
    name = str(run.record.get("task") or "custom")
    target = out or default_folder(name, "pathways")
    check_new(target)
    known = task_of(run.record, task)
    if known is None and name != "custom" and outcome is None:
        where = str(run.record.get("task_from") or name)
        raise CircuitsError(
            f"the run is of the task {name!r}, which is none of those here: give --task with the "
            f"path of its folder or file{'' if where == name else f' ({where})'}, or --outcome, "
            "such as kl, to go without it."
        )
    plan = Plan(
        Outcome("kl"), wanted, kind, unit, fdr, mediators, min_units, steps, trials, batch_size
    )
    written = Written.of(run)
    cards = None if bank is None else FeatureBank.load(bank)
    with interruptible(keeps=False):
        loaded = load_as_run(run.record, known, model, device, dtype or str(run.record["dtype"]))
        text = outcome or task_outcome(known, loaded, run.record.get("task_options", {})) or "kl"
        plan = replace(plan, outcome=parse_outcome(text, loaded.tokenizer), seed=seed or 0)
        check_outcome(plan.outcome, unembedding(loaded).shape[1])  # before SAEs are fetched
        found = load_set(saes, loaded, layers, l0, width, sae_memory)
        found = same_saes(run.record, found)
        result = pathways(written, loaded, found, plan)
    result.record.update(command=ctx.obj, task=name, run=str(folder))
    result.save(target, cards)
    print_pathways(result)
    console.print(f"Saved {target}; open {target}/pathways.html", highlight=False, markup=False)


def task_of(record: Mapping[str, Any], given: str | None) -> Task | None:
    """The task of a run: the one that is given, by name or path, or else the one that the run
    names. None for prompts of one's own, and for tasks that are none of those here.

    Raises `TaskError` for a task that is given and not there, and `CircuitsError` for one that is
    not the run's.
    """
    from circuits.task import TaskError, load_task

    name = str(record.get("task") or "custom")
    if given is not None:
        task = load_task(given)
        if task.name != name:
            raise CircuitsError(f"the run is of {name!r}, and --task {given} is {task.name!r}.")
        return task
    # What was given by a path is not what has its name here, and no code is run because a record
    # names it.
    if name == "custom" or record.get("task_from", name) != name:
        return None
    try:
        return load_task(name)
    except TaskError:
        return None


def load_as_run(
    record: Mapping[str, Any],
    task: Task | None,
    model: str | None,
    device: str | None,
    dtype: str,
) -> HookedModel:
    """The model of a run; raises `CircuitsError` when it is another one."""
    from circuits.models.load import load_model

    name = model or str(record["model"])
    if task is None:
        loaded = load_model(name, device=device, dtype=dtype)
    else:
        loaded = task.load(name, device=device, dtype=dtype)
    if loaded.sha256 != record["model_sha256"]:
        raise CircuitsError(
            f"the run is of {record['model']}, and {name} has other weights: give --model as the "
            "run was given it."
        )
    return loaded


def same_saes(record: dict[str, Any], found: SaeSet) -> SaeSet:
    """The SAEs of the run's sites; raises `CircuitsError` for others than the run's."""
    from circuits.sites import Site

    known = {Site.parse(one["site"]): one for one in record["saes"]}
    missing = [str(site) for site in known if site not in found.sources]
    if missing:
        raise CircuitsError(
            f"there is no SAE at {', '.join(missing)}, where the run had one: give --saes as the "
            "run was given it."
        )
    part = found.at(known)
    for site, one in known.items():
        part[site]  # a release's digest is not known before its SAE is loaded
        if part.sha256(site) != one["sha256"]:
            raise CircuitsError(
                f"the SAE at {site} is not {one['name']} of the run: give --saes as the run was "
                "given it."
            )
    return part


def task_outcome(
    task: Task | None, model: HookedModel, options: Mapping[str, Any] | None = None
) -> str | None:
    """The outcome that a task names for a model, and for prompts drawn with options of its own, if
    it does."""
    own = getattr(task, "outcome", None)
    named = own(model, **(options or {})) if callable(own) else own
    return None if named is None else str(named)
