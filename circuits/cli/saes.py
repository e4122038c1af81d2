"""`circuits saes`."""

from __future__ import annotations

from typing import Annotated

import typer

from circuits.cli import options
from circuits.cli.running import interruptible
from circuits.cli.show import console, print_fidelity
from circuits.cli.start import load_set


def saes_command(
    ctx: typer.Context,
    saes: options.SaesOption = "embedded",
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
    thoughts: options.ThoughtsOption = None,
    out: options.OutOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure even what the model cannot do.")
    ] = False,
) -> None:
    """What SAEs keep of a task's contrast: each alone, all of them, with and without errors."""
    from circuits.patch.draw import reading
    from circuits.runs import check_new, default_folder
    from circuits.saes import measure_fidelity
    from circuits.task import PairsTask, check_contrast, load_task, require

    chosen = require(load_task(task), PairsTask, "circuits saes")
    name = check_contrast(chosen, contrast)
    folder = out or default_folder(chosen.name, "saes")
    check_new(folder)
    loaded = chosen.load(model, device=device, dtype=dtype)
    found = load_set(saes, loaded, layers, l0, width, sae_memory)
    pairs = chosen.pairs(
        loaded,
        contrast=name,
        n=n_pairs or 12,
        seed=seed or 0,
        split=split or "explored",
        prepend_bos=found.prepend_bos if prepend_bos is None else prepend_bos,
    )
    with interruptible(keeps=False), reading(loaded, chosen), loaded.thinking(thoughts):
        result = measure_fidelity(loaded, found, pairs, task=chosen.name, force=force)
    result.record.update(contrast=name, seed=seed or 0, split=split or "explored")
    result.record["command"] = ctx.obj
    result.save(folder)
    print_fidelity(result)
    console.print(f"Saved {folder}", highlight=False, markup=False)
