"""`circuits features`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from circuits.cli import options
from circuits.cli.show import console, print_bank
from circuits.cli.start import load_set
from circuits.errors import CircuitsError


def features_command(
    ctx: typer.Context,
    saes: options.SaesOption = "embedded",
    corpus: options.CorpusOption = ["stdlib"],  # noqa: B006 (typer copies it)
    activations: Annotated[
        Path | None,
        typer.Option("--activations", help="Instead of --corpus: a --cache-dir of circuits train."),
    ] = None,
    num_tokens: Annotated[
        int, typer.Option("--num-tokens", min=1, help="Token positions to look at.")
    ] = 1_000_000,
    examples: Annotated[
        int, typer.Option("--examples", min=1, help="Strongest examples kept of a latent.")
    ] = 10,
    heldout: Annotated[
        float,
        typer.Option(
            "--heldout",
            help="Share of documents not looked at, to test hypotheses on (circuits hypotheses).",
        ),
    ] = 0.0,
    text_field: options.TextFieldOption = "text",
    context: options.ContextOption = 256,
    prepend_bos: options.BosOption = None,
    model: options.ModelOption = None,
    layers: options.LayersOption = None,
    l0: options.L0Option = None,
    width: options.WidthOption = None,
    sae_memory: options.SaeMemoryOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    compact: Annotated[
        bool, typer.Option("--compact", help="A small bank: 3 examples, 5 tokens a list.")
    ] = False,
    file_format: Annotated[
        Literal["parquet", "original"],
        typer.Option("--format", help="original: layer_L_interpretations.json too."),
    ] = "parquet",
    out: options.OutOption = None,
) -> None:
    """What every latent does on a corpus, in one pass: examples, rates, tokens."""
    from circuits.corpora import parse_corpus
    from circuits.features import collect_features
    from circuits.features.original import write_interpretations
    from circuits.models.load import load_model
    from circuits.runs import check_new, default_folder
    from circuits.train.store import Store

    if activations:
        names = ("corpus", "heldout", "text_field", "context", "prepend_bos")
        options.refuse(ctx, "--activations", names, "the stored activations decide that")
    folder = out or default_folder("features", "features")
    check_new(folder)
    store = Store.open(activations) if activations else None
    loaded = load_model(model, device=device, dtype=dtype)
    found = load_set(saes, loaded, layers, l0, width, sae_memory)
    if file_format == "original" and len({s.layer for s in found}) < len(found):
        raise CircuitsError("--format original names files by layer: give one site a layer.")
    text = store or parse_corpus(
        corpus,
        loaded.tokenizer,
        text_field=text_field,
        heldout=heldout,
        context=context,
        prepend_bos=found.prepend_bos if prepend_bos is None else prepend_bos,
    )
    only = "train" if heldout and store is None else None
    bank = collect_features(
        loaded, found, text, num_tokens=num_tokens, examples=examples, only=only
    )
    if compact:
        bank = bank.compact()
    bank.record["command"] = ctx.obj
    bank.save(folder)
    if file_format == "original":
        write_interpretations(bank, folder)
    print_bank(bank)
    if bank.record["interrupted"]:
        console.print(f"Interrupted: this is of the first {bank.record['tokens']:,} tokens.")
    console.print(f"Saved {folder}", highlight=False, markup=False)
