"""`circuits patch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from circuits.cli import options
from circuits.cli.options import parse_layers
from circuits.cli.running import interruptible
from circuits.cli.show import console, print_patch
from circuits.errors import CircuitsError


def patch_command(
    ctx: typer.Context,
    task: options.TaskOption = "error_type",
    contrast: options.ContrastOption = None,
    model: options.ModelOption = None,
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
    layers: options.LayersOption = None,
    n_pairs: options.PairsOption = None,
    pairs_file: Annotated[
        Path | None,
        typer.Option(
            "--pairs-file", help="Your own pairs: JSONL with clean, corrupted, answer, foil."
        ),
    ] = None,
    split: options.SplitOption = None,
    seed: options.SeedOption = None,
    prepend_bos: options.BosOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Most patched runs at once [by memory].")
    ] = None,
    out: options.OutOption = None,
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
    named = [name for name, value in drawing.items() if value is not None]
    if pairs_file and named:
        raise CircuitsError(
            f"{', '.join(named)} draw pairs from a task and contradict --pairs-file: leave them "
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
