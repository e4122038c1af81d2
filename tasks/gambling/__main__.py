"""`python -m tasks.gambling`: what can a model do?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.table import Table

from circuits.cli import run_app
from circuits.cli.options import BosOption, DeviceOption, DtypeOption, ModelOption
from circuits.cli.show import console, escaped, interval
from tasks.gambling.decisions import print_decisions

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def table(
    model: ModelOption = None,
    n_prompts: Annotated[
        int, typer.Option("--n-prompts", min=2, help="Prompts, half of each kind.")
    ] = 12,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Responses a prompt.")] = 4,
    n_pairs: Annotated[
        int, typer.Option("--n-pairs", min=0, help="Pairs a contrast; 0 leaves the choice out.")
    ] = 12,
    temperature: Annotated[float, typer.Option("--temperature", min=0)] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 24,
    family: Annotated[Literal["slots", "neutral"], typer.Option("--family")] = "slots",
    chat: Annotated[
        bool, typer.Option("--chat/--plain", help="Put prompts into the model's chat template.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    prepend_bos: BosOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the responses to this JSONL file too.")
    ] = None,
) -> None:
    """Share of responses that can be read, stop rates and bets by kind; logit differences."""
    from circuits.replay.log import write_log
    from circuits.replay.sampling import Sampling
    from circuits.task import TaskError
    from tasks.gambling import task
    from tasks.gambling.ask import ask
    from tasks.gambling.metrics import decisions

    sampling = Sampling(temperature, top_p)
    if out is not None and out.exists():
        raise TaskError(f"{out} exists already: give another name.")
    loaded = task.load(model, device=device, dtype=dtype)
    prompts = task.prompts(loaded, n=n_prompts, seed=seed, family=family, chat=chat)
    found = ask(
        task,
        loaded,
        prompts,
        trials=1 if sampling.greedy else trials,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        seed=seed,
        prepend_bos=prepend_bos,
    )
    how = "greedy" if sampling.greedy else f"temperature {temperature:g}"
    print_decisions(decisions(found), f"{loaded.name}, {family}{', chat' if chat else ''}, {how}")
    for kind in dict.fromkeys(r.kind for r in found):
        one = next(r for r in found if r.kind == kind)
        console.print(f"{kind}, for example: {json.dumps(one.response)}", markup=False)
    if family == "slots" and n_pairs:
        _print_choice(loaded, n_pairs, seed, prepend_bos, chat)
    if out is not None:
        write_log(out, found)
        console.print(f"Saved {out}", highlight=False, markup=False)


def _print_choice(model: Any, n: int, seed: int, bos: bool | None, chat: bool) -> None:
    """Logit differences, stop against bet, where the decision is due."""
    from circuits.patch import assess, logit_differences
    from circuits.task import TaskError
    from tasks.gambling import task

    shown = Table(
        title="LD = logit(Stop) - logit(Bet) where a decision is due", box=box.SIMPLE_HEAD
    )
    for column in ("contrast", "LD clean", "LD corrupted", "gap", "can do"):
        shown.add_column(column)
    problems = []
    for contrast in task.contrasts:
        try:
            pairs = task.pairs(model, contrast=contrast, n=n, seed=seed, prepend_bos=bos, chat=chat)
        except TaskError as error:  # this tokenizer does not align it; the others may do
            problems.append(str(error))
            continue
        able = assess(*logit_differences(model, pairs))
        cells = [escaped(interval(s)) for s in (able.clean, able.corrupted, able.gap)]
        shown.add_row(contrast, *cells, "no" if able.problem else "yes")
        if able.problem:
            problems.append(f"cannot do {contrast}: {able.problem}")
    console.print(shown)
    for line in problems:
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    run_app(app, sys.argv[1:], "python -m tasks.gambling")
