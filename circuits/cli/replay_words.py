"""`circuits replay words`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from circuits.cli.options import OutOption
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_words import print_words
from circuits.errors import CircuitsError


def words_command(
    ctx: typer.Context,
    logs: Annotated[
        list[Path],
        typer.Argument(help="JSONL files or folders of replay runs, read as one log."),
    ],
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", help="Only this latent; may be repeated [all of the log]."),
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", help="The arm that others are compared with.")
    ] = "no-op",
    difference: Annotated[
        str | None,
        typer.Option(
            "--difference",
            metavar="KIND,KIND",
            help="The first kind's effect less the second's [risky,safe, or the only two].",
        ),
    ] = None,
    stop_words: Annotated[
        str, typer.Option("--stop-words", help="none, english, or a file with one word a line.")
    ] = "none",
    lemmas: Annotated[
        str | None,
        typer.Option("--lemmas", help="Count lemmas of a language such as en (needs simplemma)."),
    ] = None,
    fold: Annotated[bool, typer.Option("--fold/--keep-case", help="Stop and stop are one.")] = True,
    numbers: Annotated[
        Literal["kept", "amounts", "grouped"],
        typer.Option("--numbers", help="amounts: $10 is <amount>, 5% <percent>; grouped: 5 too."),
    ] = "kept",
    prior: Annotated[
        float, typer.Option("--prior", help="Pseudo-counts of a word, for each time it is written.")
    ] = 0.1,
    background: Annotated[
        Path | None, typer.Option("--background", help="A log whose words make the prior [these].")
    ] = None,
    min_responses: Annotated[
        int,
        typer.Option("--min-responses", min=1, help="Fewest responses, of both arms, with a word."),
    ] = 5,
    unit: Annotated[
        Literal["prompt", "trial"] | None,
        typer.Option("--unit", help="What is exchanged [prompt where there are 10 of each kind]."),
    ] = None,
    paired: Annotated[
        bool | None,
        typer.Option(
            "--paired/--unpaired",
            help="Whether trials of one number share their random numbers [in runs, not in files].",
        ),
    ] = None,
    permutations: Annotated[
        int | None,
        typer.Option("--permutations", min=99, help="[so many that a single word could pass]"),
    ] = None,
    fdr: Annotated[float, typer.Option("--fdr", help="Largest false discovery rate.")] = 0.05,
    family: Annotated[
        Literal["feature", "log"],
        typer.Option("--family", help="Over what false discoveries are counted."),
    ] = "feature",
    file_format: Annotated[
        Literal["parquet", "original"],
        typer.Option("--format", help="original: the study's word effects too, as CSV."),
    ] = "parquet",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: OutOption = None,
) -> None:
    """Which words a latent adds to responses and removes from them; needs no model."""
    from circuits.replay.words import Rules, WordOptions, find_words, write_original
    from circuits.replay.words.run import task_of
    from circuits.runs import check_new, default_folder

    rules = Rules(
        baseline=baseline,
        level=fdr,
        min_responses=min_responses,
        prior=prior,
        unit=unit,
        permutations=permutations,
        family=family,
        difference=_kinds(difference),
        seed=seed,
    )
    options = WordOptions(fold=fold, stop_words=stop_words, lemmas=lemmas, numbers=numbers)
    folder = out or default_folder(task_of(logs), "words")
    check_new(folder)
    with interruptible(keeps=False):
        result = find_words(
            logs, options, rules, paired=paired, background=background, features=feature or ()
        )
    result.record["command"] = ctx.obj
    result.save(folder)
    if file_format == "original":
        write_original(result, folder / "original")
    print_words(result)
    console.print(f"Saved {folder}", highlight=False, markup=False)


def _kinds(text: str | None) -> tuple[str, str] | None:
    """ "risky,safe" is (safe, risky): the second less the first."""
    if text is None:
        return None
    kinds = [part.strip() for part in text.split(",")]
    if len(kinds) != 2 or not all(kinds):
        raise CircuitsError(f"--difference {text!r}: expected two kinds such as risky,safe.")
    return kinds[1], kinds[0]
