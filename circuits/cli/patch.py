"""`circuits patch`."""

from __future__ import annotations

from typing import Annotated

import typer

from circuits.cli import options
from circuits.cli.options import parse_layers
from circuits.cli.running import interruptible
from circuits.cli.show import console, print_patch
from circuits.cli.start import start


def patch_command(
    ctx: typer.Context,
    task: options.TaskOption = "error_type",
    contrast: options.ContrastOption = None,
    model: options.ModelOption = None,
    site: Annotated[
        str,
        typer.Option("--site", help="resid_pre, resid_mid, resid_post, attn_out, mlp_out or z."),
    ] = "resid_pre",
    direction: options.DirectionOption = "denoising",
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
    pairs_file: options.PairsFileOption = None,
    split: options.SplitOption = None,
    seed: options.SeedOption = None,
    prepend_bos: options.BosOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    thoughts: options.ThoughtsOption = None,
    batch_size: options.BatchOption = None,
    out: options.OutOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Patch even what the model cannot do.")
    ] = False,
) -> None:
    """Patch every layer and position, one at a time, exactly."""
    # Here, because torch is slow to import and `--help` need not wait for it.
    from circuits.patch import check_words, patch

    # Everything that can be wrong is looked at before a model is loaded.
    begun = start(
        "patch",
        task=task,
        pairs_file=pairs_file,
        contrast=contrast,
        n_pairs=n_pairs,
        split=split,
        seed=seed,
        out=out,
    )
    check_words(site, direction, metric, positions)
    numbers = parse_layers(layers) if layers else None
    loaded = begun.task.load(model, device=device, dtype=dtype)
    with interruptible(), loaded.thinking(thoughts):
        result = patch(
            loaded,
            begun.prompts(loaded, prepend_bos),
            site=site,
            direction=direction,
            metric=metric,
            positions=positions,
            layers=numbers,
            **begun.drawing,
            prepend_bos=prepend_bos,
            batch_size=batch_size,
            force=force,
            keep_parts=begun.folder.parent,
        )
    begun.note(result.record, ctx.obj)
    result.save(begun.folder)
    print_patch(result)
    console.print(
        f"Saved {begun.folder}; open {begun.folder}/heatmap.html", highlight=False, markup=False
    )
