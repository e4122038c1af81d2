"""`circuits attribute`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.cli import options
from circuits.cli.options import parse_layers
from circuits.cli.running import interruptible
from circuits.cli.show import console, print_attribution
from circuits.errors import CircuitsError


def attribute_command(
    ctx: typer.Context,
    task: options.TaskOption = "error_type",
    saes: Annotated[
        str | None,
        typer.Option(
            "--saes",
            help="embedded, a SAELens release, or a local folder [none: heads, attention, MLPs].",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option("--method", help="atp (first order), ig (integrated gradients) or exact."),
    ] = "atp",
    steps: Annotated[int, typer.Option("--steps", help="Points of the path for ig.")] = 5,
    direction: Annotated[
        str,
        typer.Option(
            "--direction", help="denoising: clean put into corrupted. noising: the reverse."
        ),
    ] = "denoising",
    metric: Annotated[
        str, typer.Option("--metric", help="logit_difference, kl or probability.")
    ] = "logit_difference",
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
    audit: Annotated[
        int, typer.Option("--audit", min=0, help="Pairs on which nodes are checked; 0 for none.")
    ] = 8,
    audit_nodes: Annotated[
        int, typer.Option("--audit-nodes", min=1, help="Strongest, and as many random, nodes.")
    ] = 20,
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="A feature bank, for descriptions [of the embedded SAEs]."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Most patched runs at once [by memory].")
    ] = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    out: options.OutOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Attribute even what the model cannot do.")
    ] = False,
) -> None:
    """The effect of every latent, error or component, at every token, and how far to trust it."""
    from circuits.attribute import attribute
    from circuits.features import FeatureBank
    from circuits.metrics import find_metric
    from circuits.runs import check_new, default_folder
    from circuits.saes import load_saes
    from circuits.sites import Site
    from circuits.task import PairsTask, check_contrast, load_task, require

    chosen = require(load_task(task), PairsTask, "circuits attribute")
    check_contrast(chosen, contrast)
    find_metric(metric)
    folder = out or default_folder(chosen.name, "attribute")
    check_new(folder)
    if bank and not saes:
        raise CircuitsError("--bank describes latents: give --saes too.")
    words = None
    if bank or saes == "embedded":
        words = FeatureBank.load(bank or "embedded")
    numbers = parse_layers(layers) if layers else None
    loaded = chosen.load(model, device=device, dtype=dtype)
    found: Any = None
    sites = None
    if saes:
        memory = None if sae_memory is None else int(sae_memory * 2**30)
        found = load_saes(saes, loaded, layers=numbers, l0=l0, width=width, memory=memory)
    elif numbers is not None:
        sites = [Site(i, kind) for i in numbers for kind in ("z", "attn_out", "mlp_out")]
    bos = found.prepend_bos if found is not None and prepend_bos is None else prepend_bos
    with interruptible():
        result = attribute(
            loaded,
            chosen,
            saes=found,
            sites=sites,
            method=method,
            steps=steps,
            direction=direction,
            metric=metric,
            contrast=contrast,
            n_pairs=n_pairs or 12,
            split=split or "explored",
            seed=seed or 0,
            prepend_bos=bos,
            audit_pairs=audit,
            audit_nodes=audit_nodes,
            batch_size=batch_size,
            force=force,
        )
    result.record["command"] = ctx.obj
    describe = words.describe if words else None
    result.save(folder, describe)
    print_attribution(result, describe)
    console.print(f"Saved {folder}", highlight=False, markup=False)
