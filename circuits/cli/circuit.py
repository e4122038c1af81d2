"""`circuits circuit`, `circuits apply` and `circuits diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.cli import options
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_circuit import print_applied, print_circuit, print_difference
from circuits.cli.start import load_set, start
from circuits.errors import CircuitsError

ReferenceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reference", help="What other nodes are set to: corrupted, mean, zero; may be repeated."
    ),
]


def circuit_command(
    ctx: typer.Context,
    task: options.TaskOption = "error_type",
    saes: options.SaesOption = "embedded",
    attribution: Annotated[
        Path | None,
        typer.Option("--attribution", help="A run of circuits attribute to choose nodes by."),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="How nodes are ranked: atp, ig or exact.")
    ] = "atp",
    size: Annotated[int | None, typer.Option("--size", help="Nodes of the circuit.")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", help="Or: all with effects of this size.")
    ] = None,
    reach: Annotated[
        float | None,
        typer.Option("--reach", help="Or: as few as reach this faithfulness [0.8]."),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", help="The reference that the size is chosen with.")
    ] = "corrupted",
    reference: ReferenceOption = None,
    summed: Annotated[
        bool, typer.Option("--summed", help="Nodes stand for all positions together.")
    ] = False,
    drawn: Annotated[
        int, typer.Option("--drawn", min=0, help="Strongest nodes that get edges and a picture.")
    ] = 100,
    judge_file: Annotated[
        Path | None,
        typer.Option("--judge-file", help="Your own pairs to judge it on, as --pairs-file."),
    ] = None,
    n_eval: Annotated[
        int, typer.Option("--n-eval", min=2, help="Other pairs that it is judged on, twice.")
    ] = 32,
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
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="A feature bank, for cards [of the embedded SAEs]."),
    ] = None,
    batch_size: options.BatchOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    thoughts: options.ThoughtsOption = None,
    out: options.OutOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Look for it even if the model cannot do the task.")
    ] = False,
) -> None:
    """Which latents and errors suffice, how they are wired, and what that is worth elsewhere."""
    from circuits.attribute import Attribution
    from circuits.circuit import REFERENCES, circuit
    from circuits.circuit.plan import make_plan
    from circuits.features import FeatureBank
    from circuits.prompts import PromptPairs, read_pairs
    from circuits.runs import sha256_of

    begun = start(
        "circuit",
        task=task,
        pairs_file=pairs_file,
        contrast=contrast,
        n_pairs=n_pairs,
        split=split,
        seed=seed,
        out=out,
    )
    references = reference or list(REFERENCES)
    chosen: dict[str, Any] = {
        "size": size,
        "threshold": threshold,
        "reach": reach,
        "by": by,
        "references": references,
        "drawn": drawn,
        "n_eval": n_eval,
    }
    make_plan(**chosen)
    effects = None
    if attribution:
        options.refuse(
            ctx,
            "--attribution",
            ("method", "contrast", "n_pairs", "pairs_file", "split", "layers"),
            "that run has them",
        )
        effects = Attribution.load(attribution)
    judged = read_pairs(judge_file) if judge_file else None
    words = FeatureBank.load(bank or "embedded") if bank or saes == "embedded" else None
    loaded = begun.task.load(model, device=device, dtype=dtype)
    found = load_set(saes, loaded, layers, l0, width, sae_memory)
    bos = found.prepend_bos if prepend_bos is None else prepend_bos
    if effects is not None:
        bos = effects.prompts.prepend_bos
    other = PromptPairs.from_texts(judged, loaded.tokenizer, bos) if judged else None
    with interruptible(), loaded.thinking(thoughts):
        result = circuit(
            loaded,
            begun.prompts(loaded, bos),
            saes=found,
            attribution=effects,
            evaluate_on=other,
            method=method,
            metric=metric,
            summed=summed,
            **chosen,
            **begun.drawing,
            prepend_bos=bos,
            batch_size=batch_size,
            force=force,
            keep_parts=begun.folder.parent,
        )
    begun.note(result.record, ctx.obj)
    if judge_file:
        result.record["judge_file"] = str(judge_file)
        result.record["judge_file_sha256"] = sha256_of(judge_file)
    result.save(begun.folder, words)
    print_circuit(result, words)
    console.print(
        f"Saved {begun.folder}; open {begun.folder}/circuit.html and {begun.folder}/graph.html",
        highlight=False,
        markup=False,
    )


def apply_command(
    file: Annotated[Path, typer.Argument(help="circuit.json, or the folder of a run.")],
    task: options.TaskOption = "error_type",
    saes: options.SaesOption = "embedded",
    reference: ReferenceOption = None,
    contrast: options.ContrastOption = None,
    model: options.ModelOption = None,
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
) -> None:
    """What a circuit that was found before is worth on other pairs."""
    from circuits.circuit import REFERENCES, apply_circuit
    from circuits.circuit.references import check_references
    from circuits.graph import Circuit
    from circuits.patch.draw import draw

    begun = start(
        "apply",
        task=task,
        pairs_file=pairs_file,
        contrast=contrast,
        n_pairs=n_pairs,
        split=split,
        seed=seed,
        out=None,
    )
    references = check_references(reference or REFERENCES)
    one = Circuit.load(file)
    loaded = begun.task.load(model, device=device, dtype=dtype)
    found = load_set(saes, loaded, None, l0, width, sae_memory)
    bos = found.prepend_bos if prepend_bos is None else prepend_bos
    given = draw(
        loaded, begun.prompts(loaded, bos), None, "circuits", **begun.drawing, prepend_bos=bos
    )
    with interruptible(keeps=False), loaded.thinking(thoughts):
        applied = apply_circuit(
            loaded, one, given.pairs, saes=found, references=references, batch_size=batch_size
        )
    print_applied(applied, one, given.name, len(given.pairs))


def diff_command(
    a: Annotated[Path, typer.Argument(help="circuit.json, or the folder of a run.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Nodes to print.")] = 20,
) -> None:
    """What two circuits share: nodes, edges, effects."""
    from circuits.graph import Circuit, difference

    if a.resolve() == b.resolve():
        raise CircuitsError(f"{a} and {b} are one circuit: give two.")
    print_difference(difference(Circuit.load(a), Circuit.load(b)), str(a), str(b), top)
