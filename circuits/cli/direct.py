"""`circuits direct`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from circuits.cli import options
from circuits.cli.running import interruptible
from circuits.cli.show import console, print_direct
from circuits.cli.start import load_set, start


def direct_command(
    ctx: typer.Context,
    task: options.TaskOption = "error_type",
    saes: options.OptionalSaesOption = None,
    direction: options.DirectionOption = "denoising",
    totals: Annotated[
        bool,
        typer.Option(
            "--totals/--no-totals", help="Patch every node too, for what later layers mediate."
        ),
    ] = True,
    contrast: options.ContrastOption = None,
    model: options.ModelOption = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="SAEs of which layers, such as 0,6,12-18 [all].")
    ] = None,
    l0: options.L0Option = None,
    width: options.WidthOption = None,
    sae_memory: options.SaeMemoryOption = None,
    n_pairs: options.PairsOption = None,
    pairs_file: options.PairsFileOption = None,
    split: options.SplitOption = None,
    seed: options.SeedOption = None,
    prepend_bos: options.BosOption = None,
    batch_size: options.BatchOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    thoughts: options.ThoughtsOption = None,
    out: options.OutOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Look even at what the model cannot do.")
    ] = False,
) -> None:
    """What each head, MLP, latent and error adds to the logit difference directly."""
    from circuits.direct import direct
    from circuits.direct.effects import check_options

    check_options(direction, batch_size)
    if not saes:
        names = ("layers", "l0", "width", "sae_memory")
        options.refuse(ctx, "no --saes", names, "they choose SAEs")
    begun = start(
        "direct",
        task=task,
        pairs_file=pairs_file,
        contrast=contrast,
        n_pairs=n_pairs,
        split=split,
        seed=seed,
        out=out,
    )
    loaded = begun.task.load(model, device=device, dtype=dtype)
    found: Any = load_set(saes, loaded, layers, l0, width, sae_memory) if saes else None
    bos = found.prepend_bos if found is not None and prepend_bos is None else prepend_bos
    with interruptible(keeps=False), loaded.thinking(thoughts):
        result = direct(
            loaded,
            begun.prompts(loaded, bos),
            saes=found,
            direction=direction,
            totals=totals,
            **begun.drawing,
            prepend_bos=bos,
            batch_size=batch_size,
            force=force,
        )
    begun.note(result.record, ctx.obj)
    result.save(begun.folder)
    print_direct(result)
    console.print(
        f"Saved {begun.folder}; open {begun.folder}/direct.html", highlight=False, markup=False
    )
