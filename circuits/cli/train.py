"""`circuits train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from circuits.cli import options
from circuits.cli.options import parse_layers
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.errors import CircuitsError

if TYPE_CHECKING:
    from circuits.sites import Site


def train_command(
    ctx: typer.Context,
    layers: Annotated[
        str | None, typer.Option("--layers", help="all, or such as 0,6,12-18; at --site.")
    ] = None,
    site: Annotated[
        str, typer.Option("--site", help="resid_pre, resid_post, attn_out, mlp_out or z.")
    ] = "resid_post",
    sites: Annotated[
        str | None,
        typer.Option("--sites", help="Instead of --layers: such as resid_post.6,z.22,mlp_out.22."),
    ] = None,
    model: options.ModelOption = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Its model and its texts, instead of --corpus."),
    ] = None,
    corpus: options.CorpusOption = ["stdlib"],  # noqa: B006 (typer copies it)
    text_field: options.TextFieldOption = "text",
    num_tokens: Annotated[
        int, typer.Option("--num-tokens", min=1, help="Token positions to extract.")
    ] = 2_000_000,
    context: options.ContextOption = 256,
    heldout: Annotated[
        float, typer.Option("--heldout", help="Share of documents kept out of training.")
    ] = 0.05,
    prepend_bos: options.BosOption = None,
    architecture: Annotated[
        Literal["batchtopk", "jumprelu", "topk", "standard"],
        typer.Option("--architecture", help="batchtopk is saved as JumpReLU."),
    ] = "batchtopk",
    width: Annotated[int, typer.Option("--width", help="Latents.")] = 4096,
    sparsity: Annotated[
        float | None,
        typer.Option(
            "--sparsity",
            help="Active latents a token for batchtopk and topk [64]; coefficient of the sparsity "
            "loss for jumprelu (L0) and standard (L1), which has no default.",
        ),
    ] = None,
    l0_range: Annotated[
        str, typer.Option("--l0-range", help="In which L0 is wanted; judges the best.")
    ] = "20,80",
    epochs: Annotated[float, typer.Option("--epochs", help="Times through the rows.")] = 1.0,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows a training step.")] = 2048,
    batch_size_extract: Annotated[
        int, typer.Option("--batch-size-extract", min=1, help="Contexts the model runs at once.")
    ] = 8,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="At its peak.")] = 2e-3,
    autocast: Annotated[
        bool, typer.Option("--autocast", help="Training products in bfloat16.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    cache_dir: Annotated[
        Path, typer.Option("--cache-dir", help="Folder of the stored activations.")
    ] = Path("activations"),
    save_dir: Annotated[
        Path, typer.Option("--save-dir", help="Folder of the SAEs: best/SITE and final/SITE.")
    ] = Path("saes"),
    save_dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option("--save-dtype", help="Of saved weights.")
    ] = "float32",
    ce_tokens: Annotated[
        int, typer.Option("--ce-tokens", min=1, help="Held-out tokens for the cross-entropy.")
    ] = 20_000,
    extract_only: Annotated[bool, typer.Option("--extract-only")] = False,
    train_only: Annotated[bool, typer.Option("--train-only")] = False,
    file_format: Annotated[
        Literal["saelens", "original"],
        typer.Option("--format", help="original: the study's files too, named by layer."),
    ] = "saelens",
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
) -> None:
    """Train SAEs on a corpus: store activations in one pass, train one SAE a site."""
    from circuits.corpora import Corpus, parse_corpus
    from circuits.models.load import find_dtype, load_model
    from circuits.prompts import resolve_bos
    from circuits.sites import parse_kind
    from circuits.task import DocumentsTask, load_task, require
    from circuits.train import SaeOptions, card_text, train_saes

    _check(ctx, extract_only, train_only, sites, layers, architecture, sparsity)
    wanted = SaeOptions(
        architecture=architecture,
        width=width,
        sparsity=64.0 if sparsity is None else sparsity,
        l0_range=_range(l0_range),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        autocast=autocast,
    )
    parse_kind(site)
    studied = None
    if task is not None:
        options.refuse(ctx, "--task", ("corpus", "text_field", "context"), "the task has its texts")
        studied = require(load_task(task), DocumentsTask, "circuits train --task")
        loaded = studied.load(model, device=device, dtype=dtype)
    else:
        loaded = load_model(model, device=device, dtype=dtype)
    text = None
    if studied is not None and not train_only:
        text = Corpus(
            (studied.documents(loaded),),
            (1.0,),
            heldout=heldout,
            context=loaded.adapter.n_ctx,
            smallest=2,
            shortest=1,
            prepend_bos=resolve_bos(loaded.tokenizer, prepend_bos),
            tokenizer=loaded.tokenizer,
        )
    elif not train_only:
        text = parse_corpus(
            corpus,
            loaded.tokenizer,
            text_field=text_field,
            heldout=heldout,
            context=context,
            prepend_bos=prepend_bos,
        )
    with interruptible():
        cards = train_saes(
            loaded,
            text,
            _sites(sites, layers, site, loaded.n_layers),
            None if extract_only else wanted,
            cache_dir=cache_dir,
            save_dir=save_dir,
            num_tokens=num_tokens,
            batch_size_extract=batch_size_extract,
            save_dtype=find_dtype(save_dtype),
            ce_tokens=ce_tokens,
            original=file_format == "original",
            command=ctx.obj,
        )
    for card in cards.values():
        console.print(card_text(card), highlight=False, markup=False)
    done = f"Stored {cache_dir}"
    if cards:
        done = f"Saved {save_dir}; use --saes {save_dir}/best"
    console.print(done, highlight=False, markup=False)


def _check(
    ctx: typer.Context,
    extract_only: bool,
    train_only: bool,
    sites: str | None,
    layers: str | None,
    architecture: str,
    sparsity: float | None,
) -> None:
    if extract_only and train_only:
        raise CircuitsError("--extract-only and --train-only contradict each other.")
    if train_only:
        options.refuse(ctx, "--train-only", _OF_THE_CORPUS, "the stored activations decide that")
    if sites and layers:
        raise CircuitsError("--sites names layers itself and contradicts --layers.")
    if architecture in ("jumprelu", "standard") and sparsity is None:
        raise CircuitsError(f"{architecture} needs --sparsity, the coefficient of its loss.")


# Parameters that only an extraction reads.
_OF_THE_CORPUS = ("corpus", "text_field", "num_tokens", "context", "heldout", "prepend_bos")


def _sites(names: str | None, layers: str | None, kind: str, n_layers: int) -> list[Site]:
    from circuits.sites import Site, parse_kind

    if names:
        return [Site.parse(name.strip()) for name in names.split(",")]
    every = layers is None or layers == "all"
    numbers = range(n_layers) if every else parse_layers(str(layers))
    return [Site(layer, parse_kind(kind)) for layer in numbers]


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise CircuitsError(f"--l0-range {text!r}: expected LOW,HIGH such as 20,80.") from error
    return low, high
