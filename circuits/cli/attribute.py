"""`circuits attribute`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.cli import options
from circuits.cli.options import parse_layers
from circuits.cli.running import interruptible
from circuits.cli.show import console, print_attribution
from circuits.cli.start import load_set, start
from circuits.errors import CircuitsError


def attribute_command(
    ctx: typer.Context,
    task: options.TaskOption = "error_type",
    saes: options.OptionalSaesOption = None,
    method: Annotated[
        str,
        typer.Option("--method", help="atp (first order), ig (integrated gradients) or exact."),
    ] = "atp",
    steps: Annotated[int, typer.Option("--steps", help="Points of the path for ig.")] = 5,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", help="Share by which ig's sums may miss before it takes more points."
        ),
    ] = 0.01,
    direction: options.DirectionOption = "denoising",
    errors: Annotated[
        str,
        typer.Option(
            "--errors",
            help="kept, or removed: effects in the model without the SAEs' errors.",
        ),
    ] = "kept",
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
    pairs_file: options.PairsFileOption = None,
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
    batch_size: options.BatchOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    thoughts: options.ThoughtsOption = None,
    out: options.OutOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Attribute even what the model cannot do.")
    ] = False,
) -> None:
    """The effect of every latent, error or component, at every token, and how far to trust it."""
    from circuits.attribute import attribute
    from circuits.attribute.plan import make_plan
    from circuits.features import FeatureBank
    from circuits.sites import Site

    begun = start(
        "attribute",
        task=task,
        pairs_file=pairs_file,
        contrast=contrast,
        n_pairs=n_pairs,
        split=split,
        seed=seed,
        out=out,
    )
    if not saes:
        options.refuse(ctx, "no --saes", ("l0", "width", "sae_memory"), "they choose SAEs")
    make_plan(method, steps, tolerance, direction, metric, batch_size, audit, audit_nodes)
    if bank and not saes:
        raise CircuitsError("--bank describes latents: give --saes too.")
    words = FeatureBank.load(bank or "embedded") if bank or saes == "embedded" else None
    numbers = parse_layers(layers) if layers else None
    loaded = begun.task.load(model, device=device, dtype=dtype)
    found: Any = None
    sites = None
    if saes:
        found = load_set(saes, loaded, layers, l0, width, sae_memory)
    elif numbers is not None:
        sites = [Site(i, kind) for i in numbers for kind in ("z", "attn_out", "mlp_out")]
    bos = found.prepend_bos if found is not None and prepend_bos is None else prepend_bos
    with interruptible(), loaded.thinking(thoughts):
        result = attribute(
            loaded,
            begun.prompts(loaded, bos),
            saes=found,
            sites=sites,
            errors=errors,
            method=method,
            steps=steps,
            tolerance=tolerance,
            direction=direction,
            metric=metric,
            **begun.drawing,
            prepend_bos=bos,
            audit_pairs=audit,
            audit_nodes=audit_nodes,
            batch_size=batch_size,
            force=force,
            keep_parts=begun.folder.parent,
        )
    begun.note(result.record, ctx.obj)
    describe = words.describe if words else None
    result.save(begun.folder, describe)
    print_attribution(result, describe)
    console.print(
        f"Saved {begun.folder}; open {begun.folder}/attribution.html", highlight=False, markup=False
    )
