"""`circuits predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from circuits.cli import options
from circuits.cli.predict_source import Source
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_predict import print_predict
from circuits.cli.start import load_set
from circuits.cli.task_options import parse_task_options
from circuits.errors import CircuitsError

# What only an extraction reads.
_OF_THE_MODEL = ("model", "saes", "layers", "site", "positions", "features", "l0", "width")
_OF_THE_MODEL += ("sae_memory", "prepend_bos", "batch_size", "cache_dir", "extract_only")


def predict_command(
    ctx: typer.Context,
    task: Annotated[
        str | None, typer.Option("--task", help="A task with answered problems, or its path.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="JSONL with id, group, prompt, completion, correct, ..."),
    ] = None,
    data_format: Annotated[
        Literal["jsonl", "original"],
        typer.Option("--data-format", help="original: the study's JSON, vectors included."),
    ] = "jsonl",
    model: options.ModelOption = None,
    train_data: Annotated[
        Path | None, typer.Option("--train-data", help="JSONL to train on instead of --data.")
    ] = None,
    train_model: Annotated[
        str | None, typer.Option("--train-model", help="The model of --train-data [--model].")
    ] = None,
    align: Annotated[
        bool, typer.Option("--align", help="Bring two models' features into one space.")
    ] = False,
    features: Annotated[
        Literal["activations", "attention"],
        typer.Option("--features", help="Activations, or attention between positions."),
    ] = "activations",
    site: Annotated[str, typer.Option("--site", help="Kind of site.")] = "resid_post",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Such as 0,6,12-18 [a quarter, half, the last].")
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            "--positions", help="Some of last:K, mean, completion [last:4]; tasks have their own."
        ),
    ] = None,
    saes: Annotated[
        str | None, typer.Option("--saes", help="Encode with embedded SAEs, a release, a folder.")
    ] = None,
    l0: options.L0Option = None,
    width: options.WidthOption = None,
    sae_memory: options.SaeMemoryOption = None,
    fit_sae: Annotated[
        int | None,
        typer.Option("--fit-sae", min=2, help="Train SAEs of so many latents in the folds."),
    ] = None,
    active: Annotated[
        int, typer.Option("--active", min=1, help="Latents of --fit-sae active at a vector.")
    ] = 16,
    sae_steps: Annotated[
        int, typer.Option("--sae-steps", min=3, help="Steps of training of --fit-sae.")
    ] = 400,
    pool: Annotated[
        Literal["concat", "mean", "max"], typer.Option("--pool", help="Of positions and sites.")
    ] = "concat",
    pool_over: Annotated[
        Literal["positions", "sites", "both"], typer.Option("--pool-over")
    ] = "positions",
    estimators: Annotated[
        str | None,
        typer.Option(
            "--estimators",
            help="Some of logistic_l2, logistic_l1, forest, boosting, ensemble, sequence [all but "
            "the last].",
        ),
    ] = None,
    folds: Annotated[int, typer.Option("--folds", min=2)] = 5,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", help="A label to predict; may be repeated [wrong]."),
    ] = None,
    surface: Annotated[
        str | None,
        typer.Option("--surface", help="Keys of --data that are surface numbers, not labels."),
    ] = None,
    merge_twins: Annotated[
        bool, typer.Option("--merge-twins", help="One group for prompts one word apart.")
    ] = False,
    n: Annotated[int, typer.Option("--n", min=10, help="Problems of --task.")] = 1000,
    task_option: Annotated[
        list[str] | None,
        typer.Option(
            "--task-option",
            metavar="KEY=VALUE",
            help="An option of the task's own, such as temperature=1; may be repeated.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    prepend_bos: options.BosOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="Keeps vectors, finished or begun."),
    ] = None,
    extract_only: Annotated[
        bool, typer.Option("--extract-only", help="Store vectors in --cache-dir, predict nothing.")
    ] = False,
    write_original: Annotated[
        Path | None,
        typer.Option("--write-original", help="Write records and vectors as the study's JSON."),
    ] = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    out: options.OutOption = None,
) -> None:
    """Predict whether answers are wrong from inside the model, with baselines and a leak audit."""
    from circuits.predict import SaeFit, predict
    from circuits.predict.estimators import DEFAULT, check_estimators
    from circuits.predict.original import write_original as write
    from circuits.runs import check_new, default_folder, sha256_of

    names = tuple(s.strip() for s in estimators.split(",")) if estimators else DEFAULT
    check_estimators(names)
    _check(ctx, task, data, data_format, train_data, train_model, saes, fit_sae)
    if extract_only and cache_dir is None:
        raise CircuitsError("--extract-only stores vectors: say where with --cache-dir.")
    if write_original is not None and write_original.exists():
        raise CircuitsError(f"{write_original} exists already: give another name.")
    targets = tuple(target or ["wrong"])
    keys = [k.strip() for k in surface.split(",")] if surface else []
    source = Source(
        task,
        data,
        data_format,
        model,
        train_data,
        train_model,
        features,
        site,
        layers,
        positions,
        prepend_bos,
        batch_size,
        device,
        dtype,
        n,
        seed,
        keys,
        targets,
        folds,
        cache_dir,
        parse_task_options(task_option or []),
    )
    source.check()
    name = source.name
    folder = out or default_folder(name, "predict")
    if not extract_only:
        check_new(folder)
    with interruptible(keeps=cache_dir is not None):
        found: Any = SaeFit(fit_sae, active, sae_steps) if fit_sae else None

        def encode(model: Any) -> Any:
            nonlocal found
            found = load_set(str(saes), model, layers, l0, width, sae_memory)
            return found

        loaded, records, vectors, train = source.gather(encode if saes else None)
        if write_original is not None:
            write(write_original, records, vectors, source=str(model or name))
        if extract_only:
            console.print(f"Stored {len(records)} records in {cache_dir}", highlight=False)
            return
        if saes and found is not None:
            found = found.at([s for s in found if str(s) in vectors.sites])
        result = predict(
            records,
            vectors,
            targets=targets,
            estimators=names,
            saes=found,
            pool=pool,
            pool_over=pool_over,
            folds=folds,
            train=train,
            align=align,
            merge_twins=merge_twins,
            seed=seed,
        )
    result.record.update(
        task=name,
        model=loaded.name if loaded is not None else vectors.source.get("model"),
        model_sha256=loaded.sha256 if loaded is not None else None,
        command=ctx.obj,
    )
    if task is not None:
        result.record["task_options"] = source.task_options
    if data is not None:
        result.record.update(data=str(data), data_sha256=sha256_of(data))
    result.save(folder)
    print_predict(result)
    console.print(f"Saved {folder}; open {folder}/predict.html", highlight=False, markup=False)


def _check(
    ctx: typer.Context,
    task: str | None,
    data: Path | None,
    data_format: str,
    train_data: Path | None,
    train_model: str | None,
    saes: str | None,
    fit_sae: int | None,
) -> None:
    if (task is None) == (data is None):
        raise CircuitsError("give either --task, or --data with records of your own.")
    if task is not None:
        own = ("data_format", "train_data", "train_model", "surface", "positions")
        options.refuse(ctx, "--task", (*own, "prepend_bos", "batch_size"), "the task decides that")
    else:
        options.refuse(ctx, "--data", ("n", "task_option"), "the file has the records it has")
    if data_format == "original":
        names = (*_OF_THE_MODEL, "train_data", "train_model", "surface")
        options.refuse(ctx, "--data-format original", names, "the file holds the vectors")
    if train_model and not train_data:
        raise CircuitsError("--train-model answers --train-data: give that file too.")
    if saes and fit_sae:
        raise CircuitsError("--saes and --fit-sae contradict each other: choose one.")
    if not saes:
        options.refuse(ctx, "no --saes", ("l0", "width", "sae_memory"), "they choose SAEs")
    if not fit_sae:
        options.refuse(
            ctx, "no --fit-sae", ("active", "sae_steps"), "they are of SAEs that are trained"
        )
