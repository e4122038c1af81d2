"""The command line: every command, and the options that commands share.

`circuits patch` and `python -m circuits.patch` are the same. A mistake in the input ends with one
message and exit status 2; results go to the terminal as tables and to a run folder on disk.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from circuits.errors import CircuitsError

if TYPE_CHECKING:
    from circuits.patch import PatchResult

app = typer.Typer(
    help="Which parts of a language model, at which token, cause a behaviour?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console()
errors = Console(stderr=True)

TaskOption = Annotated[
    str, typer.Option("--task", help="Task: error_type, ioi, or the path of one of your own.")
]
ContrastOption = Annotated[
    str | None, typer.Option("--contrast", help="Which contrast of the task [its own default].")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="Hub or TransformerLens name, or a local folder [the embedded model]."
    ),
]
PairsOption = Annotated[
    int | None, typer.Option("--n-pairs", min=1, help="How many prompt pairs [12].")
]
SplitOption = Annotated[
    Literal["explored", "held_out"] | None,
    typer.Option("--split", help="Which templates of the task [explored]."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Draws the pairs [0].")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 [a GPU when there is one].")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or float64.")]
BosOption = Annotated[
    bool | None,
    typer.Option(
        "--prepend-bos/--no-prepend-bos",
        help="Put a beginning-of-text token first [as the tokenizer does].",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run [runs/TASK/METHOD-TIME].")
]


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
        errors.print(f"[bold red]Error:[/] {_escaped(str(error))}", highlight=False)
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


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


@app.callback()
def _circuits() -> None:
    """Which parts of a language model, at which token, cause a behaviour?"""


@app.command("patch")
def patch_command(
    ctx: typer.Context,
    task: TaskOption = "error_type",
    contrast: ContrastOption = None,
    model: ModelOption = None,
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
    layers: Annotated[str | None, typer.Option("--layers", help="Such as 0,6,12-18 [all].")] = None,
    n_pairs: PairsOption = None,
    pairs_file: Annotated[
        Path | None,
        typer.Option(
            "--pairs-file", help="Your own pairs: JSONL with clean, corrupted, answer, foil."
        ),
    ] = None,
    split: SplitOption = None,
    seed: SeedOption = None,
    prepend_bos: BosOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Most patched runs at once [by memory].")
    ] = None,
    out: OutOption = None,
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
    given = [name for name, value in drawing.items() if value is not None]
    if pairs_file and given:
        raise CircuitsError(
            f"{', '.join(given)} draw pairs from a task and contradict --pairs-file: leave them "
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


@app.command("show")
def show_command(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
) -> None:
    """Print a finished run."""
    from circuits.patch import PatchResult
    from circuits.runs import RunError, read_record

    method = read_record(folder).get("method")
    if method != "patch":
        raise RunError(f"{folder} holds a run of {method!r}, which this version cannot show.")
    print_patch(PatchResult.load(folder))


def parse_layers(text: str) -> list[int]:
    """Read "0,6,12-18" as layer numbers; raises `CircuitsError` for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise CircuitsError(f"layers {text!r}: expected numbers and ranges such as 0,6,12-18.")
        found += range(int(first), int(last or first) + 1)
    return found


def print_patch(result: PatchResult) -> None:
    """Where the effect sits and where it moves, as tables."""
    from circuits.patch import assess

    record = result.record
    import numpy as np

    ability = assess(
        np.array(record["logit_difference_clean"]), np.array(record["logit_difference_corrupted"])
    )
    console.print(result.headline(), style="bold", highlight=False, markup=False)
    console.print(
        f"logit difference clean {interval(ability.clean)}, corrupted "
        f"{interval(ability.corrupted)}, gap {interval(ability.gap)}; {ability.ordered:.0%} "
        f"ordered right, {ability.flipped:.0%} flip",
        highlight=False,
        markup=False,
    )
    if record["forced"]:
        console.print(
            f"FORCED: the model cannot do this contrast ({record['ability']}). What follows may be "
            "noise.",
            style="bold red",
            markup=False,
        )
    if not record["resumed"]:
        console.print("Full forwards were used: resuming did not agree.", style="yellow")
    _print_where(result)
    _print_moves(result)
    console.print(f"Sign: {record['sign_convention']}.", style="dim", highlight=False, markup=False)


def _print_where(result: PatchResult) -> None:
    alignment = result.alignments()[0]
    others = len(result.prompts) - len(alignment.pairs)
    unit = "of the gap" if result.value == "share" else f"in {result.record['metric']}"
    title = f"Where it sits: effect {unit}, {len(alignment.pairs)} pairs that line up"
    table = Table(title=title + (f" ({others} others are in the files)" if others else ""))
    reach = "20% and more" if result.value == "share" else "a fifth of the largest"
    for column in ("place", "token", f"layers with {reach}", "strongest", "at layer"):
        table.add_column(column)
    form = ".0%" if result.value == "share" else "+.3f"
    for row in result.where().to_dict("records"):
        table.add_row(
            *_place(result, row["position"], row["head"]),
            str(row["layers"]),
            _escaped(_interval(row["peak"], row["low"], row["high"], form)),
            str(row["peak_layer"]),
        )
    console.print(table)


def _place(result: PatchResult, position: Any, head: Any) -> tuple[str, str]:
    import pandas as pd

    from circuits.plots import visible

    if pd.isna(position):
        return ("all positions" if pd.isna(head) else f"head {head}"), ""
    clean, corrupted = result.tokens()[int(position)]
    name = result.named_positions().get(int(position), "")
    token = "|".join(visible(t) for t in clean[:3]) + ("|…" if len(clean) > 3 else "")
    if clean != corrupted:
        token += " / " + "|".join(visible(t) for t in corrupted[:3])
    where = f"{position} {name}".strip()
    return (where if pd.isna(head) else f"{where}, head {head}"), _escaped(token)


def _print_moves(result: PatchResult) -> None:
    moves = result.moves()
    site = result.record["site"]
    for move in moves.to_dict("records"):
        old, new = (_place(result, move[k], None) for k in ("from_position", "to_position"))
        console.print(
            f"Between {site} of layers {move['before']} and {move['after']} it moves from {old[0]} "
            f"({move['from_share_before']:.0%} -> {move['from_share_after']:.0%}) to {new[0]} "
            f"({move['to_share_before']:.0%} -> {move['to_share_after']:.0%}).",
            highlight=False,
            markup=False,
        )


def interval(summary: Any, form: str = "+.2f") -> str:
    """A summary as text, "+0.43 [+0.40, +0.46]"; without brackets where one pair gives none."""
    return _interval(float(summary.value), float(summary.low), float(summary.high), form)


def _interval(value: float, low: float, high: float, form: str) -> str:
    bounds = "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{bounds}"
