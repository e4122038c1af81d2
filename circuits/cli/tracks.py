"""`circuits tracks`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuits.cli import options
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_tracks import print_tells, print_tracks
from circuits.cli.start import load_set
from circuits.cli.task_options import check_task_options, parse_task_options
from circuits.errors import CircuitsError

if TYPE_CHECKING:
    from circuits.labelled import Labelled


def tracks_command(
    ctx: typer.Context,
    task: Annotated[
        str | None,
        typer.Option("--task", help="A task with answered questions, such as facts, or its path."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="JSONL with id, group, prompt, completion, correct, ..."),
    ] = None,
    surface: Annotated[
        str | None,
        typer.Option("--surface", help="Keys of --data that are surface numbers, not labels."),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=10, help="Questions of --task.")] = 500,
    task_option: Annotated[
        list[str] | None,
        typer.Option(
            "--task-option", metavar="KEY=VALUE", help="An option of the task's own; repeatable."
        ),
    ] = None,
    model: options.ModelOption = None,
    saes: options.SaesOption = "embedded",
    layers: options.LayersOption = None,
    l0: options.L0Option = None,
    width: options.WidthOption = None,
    sae_memory: options.SaeMemoryOption = None,
    bank: Annotated[
        str | None,
        typer.Option(
            "--bank", help="embedded, or a `circuits features` run: what latents are [as --saes]."
        ),
    ] = None,
    positions: Annotated[
        str, typer.Option("--positions", help="Some of last:K, completion, completion:K.")
    ] = "last:1,completion",
    k: Annotated[int, typer.Option("--k", min=1, help="Latents at a site and token.")] = 8,
    densest: Annotated[
        float,
        typer.Option("--densest", help="Leave out latents active at more than this share."),
    ] = 0.5,
    decoder: Annotated[
        float,
        typer.Option("--decoder", help="Weight of the decoder rows' cosine."),
    ] = 1.0,
    activation: Annotated[
        float,
        typer.Option("--activation", help="Weight of like shares."),
    ] = 0.25,
    distance: Annotated[
        float,
        typer.Option("--distance", help="Cost of a position between."),
    ] = 0.1,
    reach: Annotated[
        int,
        typer.Option("--reach", min=0, help="Positions later that a track may go on."),
    ] = 0,
    least: Annotated[float, typer.Option("--least", help="Smallest score of a link.")] = 0.4,
    branch: Annotated[
        float,
        typer.Option("--branch", help="Smallest score of a split or merge."),
    ] = 0.5,
    links: Annotated[
        Literal["kept", "all"],
        typer.Option("--links", help="That tracks go along."),
    ] = "kept",
    permutations: Annotated[
        int,
        typer.Option("--permutations", min=19, help="Times layers are shuffled."),
    ] = 499,
    fdr: Annotated[
        float,
        typer.Option("--fdr", help="Largest false discovery rate."),
    ] = 0.05,
    rare: Annotated[
        int,
        typer.Option("--rare", min=1, help="Groups that a tested latent occurs in."),
    ] = 5,
    within: Annotated[
        str | None,
        typer.Option("--within", help="A label: exchange answers that share it."),
    ] = None,
    checked: Annotated[
        int,
        typer.Option("--checked", min=0, help="Most pairs that are ablated."),
    ] = 40,
    occurrences: Annotated[
        int,
        typer.Option("--occurrences", min=1, help="Links of each that are tested."),
    ] = 16,
    lost: Annotated[
        float,
        typer.Option("--lost", help="Share that must be lost to confirm."),
    ] = 0.5,
    tell: Annotated[
        bool,
        typer.Option("--tell/--no-tell", help="Predict wrong answers from the metrics."),
    ] = True,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Of that prediction.")] = 5,
    prepend_bos: options.BosOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn.")] = 0,
    out: options.OutOption = None,
) -> None:
    """Follow latents through the layers of answers, test the links, and see whether right and wrong
    answers differ in them."""
    from circuits.runs import check_new, default_folder, sha256_of
    from circuits.tracks import Places, TrackPlan, track

    plan = TrackPlan(
        positions=Places.parse(positions),
        k=k,
        densest=densest,
        decoder=decoder,
        activation=activation,
        distance=distance,
        reach=reach,
        least=least,
        branch=branch,
        permutations=permutations,
        level=fdr,
        rare=rare,
        within=within,
        links=links,
        checked=checked,
        occurrences=occurrences,
        lost=lost,
        batch_size=batch_size,
        seed=seed,
    )
    if layers:
        options.parse_layers(layers)
    source = _Source(ctx, task, data, surface, n, seed, parse_task_options(task_option or []))
    target = out or default_folder(source.name, "tracks")
    told = target.with_name(f"{target.name}-tells")
    for folder in (target, *([told] if tell else [])):
        check_new(folder)
    cards = _bank(bank, saes)
    if tell and source.records is not None:
        _check_tellable(source.records, folds)
    with interruptible(keeps=False):
        loaded = source.load(model, device, dtype)
        found = load_set(saes, loaded, layers, l0, width, sae_memory)
        answers = source.answers(loaded)
        if tell:
            _check_tellable(answers, folds)
        result = track(loaded, found, answers, plan, prepend_bos=prepend_bos)
        result.record.update(task=source.name, command=ctx.obj)
        if task is not None:
            result.record["task_options"] = source.task_options
        if data is not None:
            result.record.update(data=str(data), data_sha256=sha256_of(data))
        result.save(target, cards)
        print_tracks(result)
        console.print(f"Saved {target}; open {target}/tracks.html", highlight=False, markup=False)
        metrics = result.require_metrics()
        if tell:
            from circuits.tracks.tells import tells

            about = {name: result.record[name] for name in ("task", "model", "model_sha256")}
            verdict = tells(metrics, answers, folds=folds, seed=seed, source=about)
            verdict.record.update(command=ctx.obj, tracks=str(target))
            verdict.save(told)
            print_tells(verdict)
            console.print(f"Saved {told}", highlight=False, markup=False)


def _check_tellable(answers: list[Labelled], folds: int) -> None:
    """Before long work: both classes in enough groups, and the output's numbers to compare with."""
    from circuits.labelled import ERROR, check_labels
    from circuits.predict.surface import surface_groups

    check_labels(answers, ERROR, folds)
    if "output" not in surface_groups(answers):
        raise CircuitsError(
            "the answers have no probability or entropy of the output among their surface numbers, "
            "which the metrics are compared with: give them (--surface names keys of --data), or "
            "--no-tell."
        )


def _bank(name: str | None, saes: str) -> Any:
    from circuits.features import FeatureBank

    chosen = name or ("embedded" if saes == "embedded" else None)
    return None if chosen is None else FeatureBank.load(chosen)


class _Source:
    """Where answers come from; everything that can be wrong is looked at before a model is
    loaded."""

    def __init__(
        self,
        ctx: typer.Context,
        task: str | None,
        data: Path | None,
        surface: str | None,
        n: int,
        seed: int,
        task_options: dict[str, Any],
    ) -> None:
        from circuits.labelled import read_labelled
        from circuits.task import AnsweredTask, load_task, require

        if (task is None) == (data is None):
            raise CircuitsError("give either --task, or --data with answers of your own.")
        self.n, self.seed, self.task_options = n, seed, task_options
        self.task: Any = None
        self.records: list[Labelled] | None = None
        if task is not None:
            options.refuse(ctx, "--task", ("surface",), "the task has its own")
            self.task = require(load_task(task), AnsweredTask, "circuits tracks")
            check_task_options(self.task.name, self.task.answered, self.task_options, ("n", "seed"))
            self.name = str(self.task.name)
        elif data is not None:
            why = "the file has the records it has"
            options.refuse(ctx, "--data", ("n", "task_option"), why)
            keys = [key.strip() for key in surface.split(",")] if surface else []
            self.records = read_labelled(data, keys)
            self.name = data.stem

    def load(self, model: str | None, device: str | None, dtype: str) -> Any:
        from circuits.models.load import load_model

        if self.task is not None:
            return self.task.load(model, device=device, dtype=dtype)
        return load_model(model, device=device, dtype=dtype)

    def answers(self, model: Any) -> list[Labelled]:
        if self.records is not None:
            return self.records
        return list(self.task.answered(model, n=self.n, seed=self.seed, **self.task_options))
