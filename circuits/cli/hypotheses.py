"""`circuits hypotheses`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from circuits.cli import options
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_hypotheses import print_hypotheses
from circuits.cli.start import load_set
from circuits.errors import CircuitsError

if TYPE_CHECKING:
    from circuits.features import FeatureBank
    from circuits.hypotheses import Hypothesis

_TOP = 10
_SPLITS: dict[str, Any] = {"heldout": "heldout", "any": None}


def hypotheses_command(
    ctx: typer.Context,
    saes: options.SaesOption = "embedded",
    bank: Annotated[
        str,
        typer.Option("--bank", help="embedded, or the folder of a `circuits features` run."),
    ] = "embedded",
    latents: Annotated[
        list[str] | None,
        typer.Option("--latents", help="SITE:NUMBERS, such as resid_post.12:5,17; repeatable."),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, help="Instead: so many latents, most active first [10]."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="YAML with hypotheses of your own.")
    ] = None,
    corpus: Annotated[
        list[str] | None,
        typer.Option("--corpus", help="Text to test on, as of circuits features [the bank's own]."),
    ] = None,
    split: Annotated[
        Literal["heldout", "any"] | None,
        typer.Option(
            "--split",
            help="Documents to test on: held out, or any the bank has not seen "
            "[heldout where the bank left such out].",
        ),
    ] = None,
    num_tokens: Annotated[
        int, typer.Option("--num-tokens", min=1, help="Token positions to test on.")
    ] = 40_000,
    per_document: Annotated[
        int, typer.Option("--per-document", min=1, help="Most contexts of one document.")
    ] = 2,
    enrichment: Annotated[
        float, typer.Option("--enrichment", help="Least enrichment of `fires on`.")
    ] = 3.0,
    fdr: Annotated[float, typer.Option("--fdr", help="Largest false discovery rate.")] = 0.05,
    min_active: Annotated[
        int, typer.Option("--min-active", min=1, help="Least active examples to be tested.")
    ] = 20,
    dose: Annotated[
        float, typer.Option("--dose", help="Of interventions, in a latent's standard deviations.")
    ] = 4.0,
    effect: Annotated[
        float | None,
        typer.Option(
            "--effect", help="Least effect, logits [what others do at that norm, 95th percentile]."
        ),
    ] = None,
    controls: Annotated[
        int, typer.Option("--controls", min=19, help="Other latents that are compared with.")
    ] = 39,
    describe: Annotated[
        str | None,
        typer.Option(
            "--describe",
            help="Ask an OpenAI-compatible endpoint for descriptions and score them: its address. "
            "Examples of the corpus are sent there. Key: CIRCUITS_LLM_KEY or OPENAI_API_KEY.",
        ),
    ] = None,
    describe_model: Annotated[
        str | None, typer.Option("--describe-model", help="The model to ask there.")
    ] = None,
    describe_examples: Annotated[
        int, typer.Option("--describe-examples", min=8, help="Held-out examples a description.")
    ] = 40,
    text_field: options.TextFieldOption = "text",
    prepend_bos: options.BosOption = None,
    model: options.ModelOption = None,
    layers: options.LayersOption = None,
    l0: options.L0Option = None,
    width: options.WidthOption = None,
    sae_memory: options.SaeMemoryOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    seed: options.SeedOption = None,
    out: options.OutOption = None,
) -> None:
    """What latents mean, stated as hypotheses and tested on documents the bank has not seen."""
    from circuits.corpora import parse_corpus, reopen_corpus
    from circuits.features import FeatureBank
    from circuits.hypotheses import (
        Endpoint,
        Rules,
        assess,
        describe_latents,
        from_bank,
        most_active,
        read_hypotheses,
        read_text,
    )
    from circuits.hypotheses.candidates import known
    from circuits.hypotheses.scored import strongest_of
    from circuits.models.load import load_model
    from circuits.runs import check_new, default_folder

    if latents and top is not None:
        raise CircuitsError("--latents and --top contradict each other: give one of them.")
    if (describe is None) != (describe_model is None):
        raise CircuitsError("--describe and --describe-model belong together: give both.")
    named = parse_latents(latents or [])
    own = read_hypotheses(file) if file else []
    endpoint = Endpoint(describe, describe_model) if describe and describe_model else None
    rules = Rules(
        enrichment=enrichment,
        level=fdr,
        min_active=min_active,
        dose=dose,
        controls=controls,
        effect=effect,
    )
    folder = out or default_folder("hypotheses", "hypotheses")
    check_new(folder)
    explored = FeatureBank.load(bank)
    seen = known(explored)
    loaded = load_model(model, device=device, dtype=dtype)
    found = load_set(saes, loaded, layers, l0, width, sae_memory)
    check_same(explored, loaded.sha256, [found.describe(site) for site in found])
    if not named and (top is not None or not own):
        named = most_active(explored, [str(s) for s in found], top or _TOP)
    wanted = together(named, own)
    described = explored.record["corpus"]
    if corpus:
        text = parse_corpus(
            corpus,
            loaded.tokenizer,
            text_field=text_field,
            heldout=described["heldout"],
            context=described["context"],
            prepend_bos=described["prepend_bos"] if prepend_bos is None else prepend_bos,
        )
    else:
        options.refuse(ctx, "the bank's own corpus", ("text_field", "prepend_bos"), "give --corpus")
        text = reopen_corpus(described, loaded.tokenizer)
    side = split or ("heldout" if described["heldout"] else "any")
    with interruptible(keeps=False):
        evidence = read_text(
            loaded,
            found.at([s for s in found if str(s) in wanted]),
            text,
            wanted,
            num_tokens=num_tokens,
            unseen=seen,
            only=_SPLITS[side],
            per_document=per_document,
            seed=seed or 0,
        )
        candidates = from_bank(explored, named, evidence.texts)
        result = assess([*own, *candidates], evidence, seen.digests, rules, seed=seed or 0)
        if endpoint:
            asked = [(site, k) for site, some in wanted.items() for k in some]
            shown = strongest_of(explored, asked)
            table = describe_latents(
                endpoint, evidence, shown, examples=describe_examples, seed=seed or 0
            )
            result = result.described(table, endpoint)
    result.record["command"] = ctx.obj
    result.record["bank"] = bank
    result.record["split"] = side
    if file:
        result.record["file"] = str(file)
    result.save(folder)
    print_hypotheses(result)
    console.print(f"Saved {folder}", highlight=False, markup=False)


def parse_latents(texts: Sequence[str]) -> dict[str, list[int]]:
    """Read "resid_post.12:5,17" as latents by site; raises `CircuitsError` for anything else."""
    from circuits.sites import Site

    found: dict[str, list[int]] = {}
    for text in texts:
        site, colon, numbers = text.rpartition(":")
        if not colon or not re.fullmatch(r"\d+(,\d+)*", numbers):
            raise CircuitsError(
                f"latents {text!r}: expected SITE:NUMBERS such as resid_post.12:5,17."
            )
        here = found.setdefault(str(Site.parse(site)), [])
        here += [int(k) for k in numbers.split(",") if int(k) not in here]
    return found


def together(named: dict[str, list[int]], own: Sequence[Hypothesis]) -> dict[str, list[int]]:
    """All latents that anything is said about, by site."""
    wanted = {site: list(some) for site, some in named.items()}
    for one in own:
        here = wanted.setdefault(one.site, [])
        if one.latent not in here:
            here.append(one.latent)
    return wanted


def check_same(bank: FeatureBank, model_sha256: str, saes: Sequence[dict[str, Any]]) -> None:
    """Raise `CircuitsError` when a bank is of another model, or of other SAEs."""
    if bank.record.get("model_sha256") != model_sha256:
        raise CircuitsError(
            f"the bank is of {bank.record.get('model')}, another model: give --bank the run of "
            "`circuits features` on this one."
        )
    known = {one["site"]: one["sha256"] for one in bank.record["saes"]}
    other = [
        one["site"]
        for one in saes
        # A release's digest is not known before its SAE is loaded.
        if one["site"] in known and known[one["site"]] and one["sha256"]
        if known[one["site"]] != one["sha256"]
    ]
    if other:
        raise CircuitsError(
            f"the bank is of other SAEs at {', '.join(other)}: collect one of these "
            "(circuits features)."
        )
