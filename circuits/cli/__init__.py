"""The command line: every command; the options they share (options.py); tables (show.py).

`circuits patch` and `python -m circuits.patch` are the same. A mistake in the input ends with one
message and exit status 2; results go to the terminal as tables and to a run folder on disk.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from circuits.cli import options
from circuits.cli.options import parse_layers
from circuits.cli.show import console, escaped, print_fidelity, print_patch
from circuits.errors import CircuitsError

__all__ = ["app", "main", "run_app"]

app = typer.Typer(
    help="Which parts of a language model, at which token, cause a behaviour?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
errors = Console(stderr=True)


def main(prefix: Sequence[str] = ()) -> None:
    """Run the command line; `prefix` stands before the process's own arguments."""
    run_app(app, [*prefix, *sys.argv[1:]])


def run_app(application: typer.Typer, arguments: Sequence[str], name: str = "circuits") -> None:
    """Run an application with the shared treatment of errors and of library chatter.

    name: what usage lines call it. Commands find their own words in `ctx.obj`, for the record.
    """
    quiet_libraries()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        application(args=list(arguments), prog_name=name, obj=[name, *arguments])
    except CircuitsError as error:
        errors.print(f"[bold red]Error:[/] {escaped(str(error))}", highlight=False)
        sys.exit(2)


@contextmanager
def interruptible() -> Iterator[None]:
    """End with one line and status 130 on Ctrl-C, around work that keeps its finished parts."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print("Interrupted. Finished pairs are kept: give the same command to go on.")
        raise typer.Exit(130) from None


def quiet_libraries() -> None:
    """Keep the libraries' own log lines off the terminal; errors still raise."""
    for name in ("transformers", "transformer_lens", "sae_lens"):
        logging.getLogger(name).setLevel(logging.ERROR)


@app.callback()
def _circuits() -> None:
    """Which parts of a language model, at which token, cause a behaviour?"""


@app.command("patch")
def patch_command(
    ctx: typer.Context,
    task: options.TaskOption = "error_type",
    contrast: options.ContrastOption = None,
    model: options.ModelOption = None,
    site: Annotated[
        str,
        typer.Option("--site", help="resid_pre, resid_mid, resid_post, attn_out, mlp_out or z."),
    ] = "resid_pre",
    direction: Annotated[
        str,
        typer.Option(
            "--direction", help="denoising: clean put into corrupted. noising: the reverse."
        ),
    ] = "denoising",
    metric: Annotated[
        str,
        typer.Option("--metric", help="logit_difference (recovery), kl or probability."),
    ] = "logit_difference",
    positions: Annotated[
        str | None,
        typer.Option("--positions", help="each, or all at once [each; all for z]."),
    ] = None,
    layers: options.LayersOption = None,
    n_pairs: options.PairsOption = None,
    pairs_file: Annotated[
        Path | None,
        typer.Option(
            "--pairs-file", help="Your own pairs: JSONL with clean, corrupted, answer, foil."
        ),
    ] = None,
    split: options.SplitOption = None,
    seed: options.SeedOption = None,
    prepend_bos: options.BosOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Most patched runs at once [by memory].")
    ] = None,
    out: options.OutOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Patch even what the model cannot do.")
    ] = False,
) -> None:
    """Patch every layer and position, one at a time, exactly."""
    # Here, because torch is slow to import and `--help` need not wait for it.
    from circuits.patch import check_words, patch
    from circuits.prompts import PromptPairs, read_pairs
    from circuits.runs import check_new, default_folder, sha256_of
    from circuits.task import PairsTask, check_contrast, load_task, require

    drawing = {"--contrast": contrast, "--n-pairs": n_pairs, "--split": split, "--seed": seed}
    named = [name for name, value in drawing.items() if value is not None]
    if pairs_file and named:
        raise CircuitsError(
            f"{', '.join(named)} draw pairs from a task and contradict --pairs-file: leave them "
            "out."
        )
    own = read_pairs(pairs_file) if pairs_file else None
    chosen = load_task(task)
    folder = out or default_folder("custom" if own else chosen.name, "patch")
    # Everything that can be wrong is looked at before a model is loaded.
    check_new(folder)
    check_words(site, direction, metric, positions)
    if not own:
        chosen = require(chosen, PairsTask, "circuits patch")
        check_contrast(chosen, contrast)
    numbers = parse_layers(layers) if layers else None
    loaded = chosen.load(model, device=device, dtype=dtype)
    prompts = PromptPairs.from_texts(own, loaded.tokenizer, prepend_bos) if own else chosen
    with interruptible():
        result = patch(
            loaded,
            prompts,
            site=site,
            direction=direction,
            metric=metric,
            positions=positions,
            layers=numbers,
            contrast=contrast,
            n_pairs=n_pairs or 12,
            split=split or "explored",
            seed=seed or 0,
            prepend_bos=prepend_bos,
            batch_size=batch_size,
            force=force,
            keep_parts=folder.parent,
        )
    result.record["command"] = ctx.obj
    if pairs_file:
        result.record["pairs_file"] = str(pairs_file)
        result.record["pairs_file_sha256"] = sha256_of(pairs_file)
    result.save(folder)
    print_patch(result)
    console.print(f"Saved {folder}; open {folder}/heatmap.html", highlight=False, markup=False)


@app.command("saes")
def saes_command(
    ctx: typer.Context,
    saes: options.SaesOption,
    task: options.TaskOption = "error_type",
    contrast: options.ContrastOption = None,
    model: options.ModelOption = None,
    layers: options.LayersOption = None,
    l0: options.L0Option = None,
    width: options.WidthOption = None,
    sae_memory: options.SaeMemoryOption = None,
    n_pairs: options.PairsOption = None,
    split: options.SplitOption = None,
    seed: options.SeedOption = None,
    prepend_bos: options.BosOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    out: options.OutOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure even what the model cannot do.")
    ] = False,
) -> None:
    """What SAEs keep of a task's contrast: each alone, all of them, with and without errors."""
    from circuits.runs import check_new, default_folder
    from circuits.saes import load_saes, measure_fidelity
    from circuits.task import InputsTask, PairsTask, check_contrast, load_task, require

    chosen = require(load_task(task), PairsTask, "circuits saes")
    if isinstance(chosen, InputsTask):
        raise CircuitsError(f"{task} makes its own embeddings, which this command does not use.")
    name = check_contrast(chosen, contrast)
    folder = out or default_folder(chosen.name, "saes")
    check_new(folder)
    numbers = parse_layers(layers) if layers else None
    loaded = chosen.load(model, device=device, dtype=dtype)
    memory = None if sae_memory is None else int(sae_memory * 2**30)
    found = load_saes(saes, loaded, layers=numbers, l0=l0, width=width, memory=memory)
    pairs = chosen.pairs(
        loaded,
        contrast=name,
        n=n_pairs or 12,
        seed=seed or 0,
        split=split or "explored",
        prepend_bos=prepend_bos,
    )
    result = measure_fidelity(loaded, found, pairs, task=chosen.name, force=force)
    result.record.update(contrast=name, seed=seed or 0, split=split or "explored")
    result.record["command"] = ctx.obj
    result.save(folder)
    print_fidelity(result)
    console.print(f"Saved {folder}", highlight=False, markup=False)


@app.command("show")
def show_command(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
) -> None:
    """Print a finished run."""
    from circuits.patch import PatchResult
    from circuits.runs import RunError, read_record
    from circuits.saes import Fidelity

    method = read_record(folder).get("method")
    if method == "patch":
        print_patch(PatchResult.load(folder))
    elif method == "saes":
        print_fidelity(Fidelity.load(folder))
    else:
        raise RunError(f"{folder} holds a run of {method!r}, which this version cannot show.")
