"""`circuits predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuits.cli import options
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_predict import print_predict
from circuits.cli.start import load_set
from circuits.errors import CircuitsError

if TYPE_CHECKING:
    from circuits.labelled import Labelled
    from circuits.predict import Vectors
    from circuits.predict.extract import Positions

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
        typer.Option("--features", help="Activations, or attention between the last tokens."),
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
    seed: Annotated[int, typer.Option("--seed")] = 0,
    prepend_bos: options.BosOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="Keeps vectors, and what is finished of them."),
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
    wanted = SaeFit(fit_sae, active) if fit_sae else None
    source = _Source(
        task,
        model,
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
    )
    source.check()
    name = source.task.name if source.task else (data.stem if data else "custom")
    folder = out or default_folder(name, "predict")
    if not extract_only:
        check_new(folder)
    keys = [k.strip() for k in surface.split(",")] if surface else []
    train: Any = None
    with interruptible(keeps=cache_dir is not None):
        if data_format == "original" and data is not None:
            from circuits.predict import read_original

            records, vectors = read_original(data)
            _require(records, targets, folds)
            loaded = None
        else:
            given = _read(data, keys, targets, folds) if data else None
            first = _read(train_data, keys, targets, folds) if train_data else None
            loaded = source.load()
            records, vectors = source.extract(loaded, given, cache_dir, targets, folds)
            if first is not None:
                other = source.load(train_model) if train_model else loaded
                place = cache_dir / "train" if cache_dir else None
                train = source.extract(other, first, place, targets, folds)
        if write_original is not None:
            write(write_original, records, vectors, source=str(model or name))
        if extract_only:
            console.print(f"Stored {len(records)} records in {cache_dir}", highlight=False)
            return
        found: Any = wanted
        if saes:
            found = load_set(saes, loaded, layers, l0, width, sae_memory)
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
    result.record |= {
        "task": name,
        "model": loaded.name if loaded is not None else vectors.source.get("model"),
        "model_sha256": loaded.sha256 if loaded is not None else None,
        "command": ctx.obj,
    }
    if data is not None:
        result.record |= {"data": str(data), "data_sha256": sha256_of(data)}
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
        own = ("data_format", "train_data", "train_model", "surface", "positions", "features")
        options.refuse(ctx, "--task", (*own, "prepend_bos", "batch_size"), "the task decides that")
    else:
        options.refuse(ctx, "--data", ("n",), "the file has the records it has")
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
        options.refuse(ctx, "no --fit-sae", ("active",), "it is of SAEs that are trained")


def _read(path: Path, keys: list[str], targets: Sequence[str], folds: int) -> list[Labelled]:
    from circuits.labelled import read_labelled

    records = read_labelled(path, keys)
    _require(records, targets, folds)
    return records


def _require(records: Sequence[Labelled], targets: Sequence[str], folds: int) -> None:
    from circuits.labelled import check_labels

    for target in targets:
        check_labels(records, target, folds)


@dataclass
class _Source:
    """Where records and vectors come from."""

    task_name: str | None
    model: str | None
    features: str
    site: str
    layers: str | None
    positions: str | None
    prepend_bos: bool | None
    batch_size: int
    device: str | None
    dtype: str
    n: int
    seed: int
    task: Any = None
    places: Positions | None = None

    def check(self) -> None:
        """Look at everything that can be wrong before a model is loaded."""
        from circuits.predict.extract import Positions
        from circuits.sites import parse_kind
        from circuits.task import AnsweredTask, load_task, require

        parse_kind(self.site)
        if self.layers:
            options.parse_layers(self.layers)
        if self.task_name is not None:
            self.task = require(load_task(self.task_name), AnsweredTask, "circuits predict")
        else:
            self.places = Positions.parse(self.positions or "last:4")

    def load(self, name: str | None = None) -> Any:
        """The model."""
        from circuits.models.load import load_model

        if self.task is not None:
            return self.task.load(self.model, device=self.device, dtype=self.dtype)
        return load_model(name or self.model, device=self.device, dtype=self.dtype)

    def extract(
        self,
        model: Any,
        records: list[Labelled] | None,
        folder: Path | None,
        targets: Sequence[str],
        folds: int,
    ) -> tuple[Sequence[Labelled], Vectors]:
        """Records (the task's own without any) and their vectors."""
        from circuits.predict.extract import extract_vectors, task_vectors
        from circuits.sites import Site, parse_kind

        last = model.n_layers - 1
        some = sorted({last // 4, last // 2, last})
        numbers = options.parse_layers(self.layers) if self.layers else some
        sites = [Site(layer, parse_kind(self.site)) for layer in numbers]
        if self.task is not None:
            answered = self.task.answered(model, n=self.n, seed=self.seed)
            _require(answered, targets, folds)
            return answered, task_vectors(self.task, model, answered, sites, folder=folder)
        assert records is not None and self.places is not None
        vectors = extract_vectors(
            model,
            records,
            sites,
            self.places,
            attention=self.features == "attention",
            folder=folder,
            batch_size=self.batch_size,
            prepend_bos=self.prepend_bos,
        )
        return records, vectors
