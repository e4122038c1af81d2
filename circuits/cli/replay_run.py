"""`circuits replay run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from circuits.cli import options
from circuits.cli.running import interruptible
from circuits.cli.show import console
from circuits.cli.show_replay import print_replay
from circuits.cli.start import load_set
from circuits.cli.task_options import check_task_options, parse_task_options
from circuits.errors import CircuitsError


def run_command(
    ctx: typer.Context,
    latent: Annotated[
        list[str],
        typer.Option("--latent", help="SITE:LATENT, such as resid_post.12:17; may be repeated."),
    ],
    task: Annotated[
        str | None, typer.Option("--task", help="A task with prompts to answer, or its path.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Your own: JSONL with prompt and, if you like, kind."),
    ] = None,
    n_prompts: Annotated[
        int, typer.Option("--n-prompts", min=1, help="Prompts drawn from --task.")
    ] = 12,
    task_option: Annotated[
        list[str] | None,
        typer.Option(
            "--task-option",
            metavar="KEY=VALUE",
            help="An option of the task's own, such as family=neutral; may be repeated.",
        ),
    ] = None,
    model: options.ModelOption = None,
    saes: options.SaesOption = "embedded",
    mode: Annotated[
        Literal["hold", "scale", "remove"],
        typer.Option("--mode", help="What is done to the latents' coefficients."),
    ] = "hold",
    value: Annotated[
        float | None, typer.Option("--value", help="What to hold at, or the factor of scale.")
    ] = None,
    where: Annotated[
        Literal["prompt", "generated", "all"],
        typer.Option("--where", help="Positions; the first one of the prompt never."),
    ] = "all",
    skip: Annotated[
        int, typer.Option("--skip", min=0, help="Generated positions left as they are.")
    ] = 0,
    first: Annotated[
        bool, typer.Option("--first-position", help="Change the first position too.")
    ] = False,
    sites: Annotated[
        str | None,
        typer.Option("--sites", help="Where latents are recorded [changed sites and later ones]."),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Responses a prompt and arm.")
    ] = 10,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longest response.")
    ] = 48,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0 is greedy, with one trial.")
    ] = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Nucleus; 1 keeps all tokens.")] = 1.0,
    randoms: Annotated[
        int, typer.Option("--random-arms", min=0, help="Latents to compare with.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of prompts and noise.")] = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Responses written together.")
    ] = 16,
    record: Annotated[
        Literal["latents", "residuals"],
        typer.Option("--record", help="residuals: keep activations, encode them at the end."),
    ] = "latents",
    unpatched: Annotated[
        bool,
        typer.Option("--unpatched", help="Measure responses under the unchanged model too."),
    ] = False,
    outcome: Annotated[
        list[str] | None,
        typer.Option(
            "--outcome",
            help="Compared between arms too: unpatched_logprob, word:TEXT, parsed:KEY or "
            "parsed:KEY=TEXT, such as parsed:action=stop; may be repeated.",
        ),
    ] = None,
    save_dir: Annotated[
        Path | None,
        typer.Option("--save-dir", help="Keeps finished parts until the run is whole [by --out]."),
    ] = None,
    layers: options.LayersOption = None,
    l0: options.L0Option = None,
    width: options.WidthOption = None,
    sae_memory: options.SaeMemoryOption = None,
    prepend_bos: options.BosOption = None,
    device: options.DeviceOption = None,
    dtype: options.DtypeOption = "float32",
    out: options.OutOption = None,
) -> None:
    """Write every trial of every prompt without the change, with reconstructions, with random
    latents and with the change, the random numbers being the same; record what is active."""
    from circuits.models.load import load_model
    from circuits.replay import Change, Prompts, read_prompts, replay
    from circuits.replay.options import Options
    from circuits.replay.sampling import Sampling
    from circuits.replay.variance import check_outcomes
    from circuits.runs import check_new, default_folder, sha256_of
    from circuits.sites import Site
    from circuits.task import GenerateTask, load_task, require

    if (task is None) == (prompts is None):
        raise CircuitsError("give either --task, or --prompts with a file of your own.")
    if prompts is not None:
        own_options = ("n_prompts", "task_option")
        options.refuse(ctx, "--prompts", own_options, "the file has the prompts it has")
    changes = [
        Change(site, number, mode, value, where, skip, first)
        for site, number in map(parse_latent, latent)
    ]
    chosen = None if task is None else require(load_task(task), GenerateTask, "circuits replay run")
    task_options = parse_task_options(task_option or [])
    if chosen is not None:
        check_task_options(chosen.name, chosen.prompts, task_options, ("n", "seed"))
    check_outcomes(outcome or (), unpatched=unpatched, parsed=chosen is not None)
    own = None if prompts is None else read_prompts(prompts)
    wanted = None if sites is None else [Site.parse(name.strip()) for name in sites.split(",")]
    Options(trials, max_new_tokens, Sampling(temperature, top_p), seed, batch_size, randoms)
    folder = out or default_folder("custom" if chosen is None else chosen.name, "replay")
    check_new(folder)
    with interruptible():
        if chosen is None:
            loaded: Any = load_model(model, device=device, dtype=dtype)
        else:
            loaded = chosen.load(model, device=device, dtype=dtype)
        found = load_set(saes, loaded, layers, l0, width, sae_memory)
        bos = found.prepend_bos if prepend_bos is None else prepend_bos
        about: dict[str, Any] = {"command": ctx.obj}
        if task is not None:
            about["task_from"] = task  # as it was given: a name, or the path of a task of one's own
        if prompts is not None:
            about |= {"prompts_file": str(prompts), "prompts_file_sha256": sha256_of(prompts)}
        given: Any = chosen if own is None else Prompts.of(own, loaded.tokenizer, bos)
        result = replay(
            loaded,
            found,
            given,
            changes,
            sites=wanted,
            n_prompts=n_prompts,
            task_options=task_options,
            prepend_bos=bos,
            trials=trials,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            batch_size=batch_size,
            randoms=randoms,
            record=record,
            unpatched=unpatched,
            outcomes=outcome or (),
            out=folder,
            save_dir=save_dir,
            about=about,
        )
    print_replay(result)
    console.print(f"Saved {folder}; open {folder}/replay.html", highlight=False, markup=False)


def parse_latent(text: str) -> tuple[Any, int]:
    """Read SITE:LATENT; raises `CircuitsError` for anything else."""
    from circuits.sites import Site

    site, colon, number = text.rpartition(":")
    if not colon or not number.isdigit():
        raise CircuitsError(f"--latent {text!r}: expected SITE:LATENT, such as resid_post.12:17.")
    return Site.parse(site), int(number)
