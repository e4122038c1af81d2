"""`python -m tasks.gsm8k_thoughts`: what the thoughts of a model carry, and what they do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from circuits.cli import run_app
from circuits.cli.options import DeviceOption, DtypeOption, OutOption
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_study import print_study

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def study_command(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option("--model", help="embedded, embedded/seed1, or a folder that was trained."),
    ] = None,
    n_pairs: Annotated[int, typer.Option("--n-pairs", min=2, help="Pairs of every family.")] = 200,
    n_problems: Annotated[
        int, typer.Option("--n-problems", min=50, help="Problems read and changed.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Draws the problems.")] = 0,
    control: Annotated[
        Path | None,
        typer.Option("--control", help="Folder of the model trained without thoughts."),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    out: OutOption = None,
) -> None:
    """Exchange, read, replace and count the continuous thoughts of a model."""
    from circuits.runs import check_new, default_folder
    from tasks.gsm8k_thoughts import task
    from tasks.gsm8k_thoughts.model import control_of, embedded_folder, read_card
    from tasks.gsm8k_thoughts.study.result import study

    folder = out or default_folder(task.name, "study")
    check_new(folder)
    card = None
    if control is not None:
        card = read_card(control)
    elif (name := model or "embedded").split("/")[0] == "embedded":
        card = read_card(embedded_folder(control_of(name)))
    loaded = task.load(model, device=device, dtype=dtype)
    with interruptible(keeps=False):
        found = study(loaded, task, n_pairs=n_pairs, n_problems=n_problems, seed=seed, control=card)
    found.record["command"] = ctx.obj
    found.save(folder)
    print_study(folder)
    console.print(
        f"Saved {folder}; open {folder}/thoughts.html",
        highlight=False,
        markup=False,
    )


if __name__ == "__main__":
    run_app(app, sys.argv[1:], "tasks.gsm8k_thoughts")
