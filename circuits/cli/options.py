"""Options that commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from circuits.errors import CircuitsError

TaskOption = Annotated[
    str,
    typer.Option(
        "--task", help="error_type, gambling, gsm8k_thoughts, ioi, or your own by its path."
    ),
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
PairsFileOption = Annotated[
    Path | None,
    typer.Option("--pairs-file", help="Your own pairs: JSONL with clean, corrupted, answer, foil."),
]
SplitOption = Annotated[
    Literal["explored", "held_out"] | None,
    typer.Option("--split", help="Which templates of the task [explored]."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Draws the pairs [0].")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 [a GPU when there is one].")
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or float64.")]
BosOption = Annotated[
    bool | None,
    typer.Option(
        "--prepend-bos/--no-prepend-bos",
        help="Put a beginning-of-text token first [as SAEs were trained; as the tokenizer does].",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run [runs/TASK/METHOD-TIME].")
]

ThoughtsOption = Annotated[
    Literal["rerolled", "frozen"] | None,
    typer.Option(
        "--thoughts",
        help="Continuous thoughts: made anew in every run, or held as they were [rerolled].",
    ),
]
LayersOption = Annotated[
    str | None, typer.Option("--layers", help="Which layers, such as 0,6,12-18 [all].")
]
SaesOption = Annotated[
    str, typer.Option("--saes", help="embedded, a SAELens release, or a local folder of SAEs.")
]
OptionalSaesOption = Annotated[
    str | None,
    typer.Option(
        "--saes",
        help="embedded, a SAELens release, or a local folder [none: heads, attention, MLPs].",
    ),
]
DirectionOption = Annotated[
    str,
    typer.Option("--direction", help="denoising: clean put into corrupted. noising: the reverse."),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch-size", help="Most patched runs at once [by memory].")
]
L0Option = Annotated[
    float | None,
    typer.Option("--l0", help="Of a release's SAEs for a layer, the one with the closest L0."),
]
WidthOption = Annotated[
    str | None,
    typer.Option("--width", help="Of a release's SAEs, those of this width [16k if named]."),
]
SaeMemoryOption = Annotated[
    float | None,
    typer.Option("--sae-memory", help="Most GiB of SAE weights on the device at once [no bound]."),
]
CorpusOption = Annotated[
    list[str],
    typer.Option(
        "--corpus",
        help="SOURCE or SOURCE=WEIGHT; may be repeated. stdlib, django-docs, "
        "wikipedia:LANGUAGE[:DATE], hub:NAME[:CONFIG[:SPLIT]], or a file, folder or glob.",
    ),
]
TextFieldOption = Annotated[
    str, typer.Option("--text-field", help="The field of JSONL and hub data with the text.")
]
ContextOption = Annotated[
    int, typer.Option("--context", min=16, help="Most tokens the model reads at once.")
]


def refuse(ctx: typer.Context, option: str, names: Sequence[str], why: str) -> None:
    """Raise `CircuitsError` when options were given that `option` would ignore."""
    given = []
    for name in names:
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            given.append(f"--{name.replace('_', '-')}")
    if given:
        raise CircuitsError(f"{', '.join(given)} and {option} contradict each other: {why}.")


def parse_layers(text: str) -> list[int]:
    """Read "0,6,12-18" as layer numbers; raises `CircuitsError` for anything else."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise CircuitsError(f"layers {text!r}: expected numbers and ranges such as 0,6,12-18.")
        if int(last or first) < int(first):
            raise CircuitsError(f"layers {text!r}: {part.strip()} runs backwards.")
        found += range(int(first), int(last or first) + 1)
    return found
