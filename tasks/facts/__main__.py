"""`python -m tasks.facts`: how many facts does a model know?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from circuits.cli import run_app
from circuits.cli.options import DeviceOption, DtypeOption, ModelOption
from circuits.cli.show import console
from tasks.facts.facts import KINDS
from tasks.facts.questions import FORMS

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def ask_command(
    model: ModelOption = None,
    n: Annotated[
        int | None,
        typer.Option("--n", min=2, help="Balanced answers to choose [as many as there are]."),
    ] = None,
    pool: Annotated[int, typer.Option("--pool", min=1, help="Questions a kind.")] = 200,
    form: Annotated[
        str, typer.Option("--form", help=f"{', '.join(FORMS)}, or auto.")
    ] = "statement",
    kinds: Annotated[
        str, typer.Option("--kinds", help="Names with commas between them.")
    ] = ",".join(KINDS),
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    truthful: Annotated[
        str | None,
        typer.Option("--truthful", help="TruthfulQA instead: hub, or a JSONL or parquet file."),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the balanced answers to this JSONL file.")
    ] = None,
) -> None:
    """Ask a model, greedily; what is right, wrong and not to be read; a balanced choice of it."""
    from circuits.labelled import write_labelled
    from circuits.task import TaskError
    from tasks.facts import task
    from tasks.facts.balance import balanced, halves, records, table
    from tasks.facts.truthful import answer_truthful, read_truthful

    if out is not None and out.exists():
        raise TaskError(f"{out} exists already: give another name.")
    given = None if truthful is None else read_truthful(truthful)
    loaded = task.load(model, device=device, dtype=dtype)
    if given is not None:
        every = answer_truthful(loaded, given)
        right = sum(r.correct for r in every)
        console.print(f"{loaded.name}: {right} of {len(every)} chosen right", highlight=False)
        found = halves(every, n, seed) if n else every
    else:
        asked = task.questions(loaded, pool=pool, seed=seed, form=form, kinds=kinds)
        answers = task.answers(loaded, asked)
        chosen = balanced(answers, n, seed)
        _print(table(answers, chosen), f"{loaded.name}, {form}")
        found = records(answers, chosen, loaded.tokenizer)
    if out is not None:
        write_labelled(out, found)
        console.print(f"Saved {len(found)} answers to {out}", highlight=False, markup=False)


def _print(rows: Any, title: str) -> None:
    shown = Table(title=title, box=box.SIMPLE_HEAD)
    for column in rows.columns:
        shown.add_column(str(column), justify="left" if column == "kind" else "right")
    for row in rows.itertuples(index=False):
        shown.add_row(*map(str, row))
    console.print(shown)


if __name__ == "__main__":
    run_app(app, sys.argv[1:], "python -m tasks.facts")
