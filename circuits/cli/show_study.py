"""A task's study at the terminal, from the run's record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from circuits.cli.show import console, escaped
from circuits.runs import RUN_JSON, RunError, read_record


def print_study(folder: Path) -> None:
    """What the study says of itself (`said`); or of a classifier and its SAEs what was studied, per
    target the active latents and accuracies, and the verdicts on what the latents mean. Raises
    `RunError` when the folder does not hold a whole study."""
    record = read_record(folder)
    if "said" in record:
        for line in record["said"]:
            console.print(line, highlight=False, markup=False)
        return
    try:
        about, summary = _about(record), record["summary"]
        tables = _actives(summary), _accuracies(summary), _verdicts(record["hypotheses"])
        missed = [f"{one['target_actives']:g}" for one in summary if not _reached(one)]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise RunError(
            f"{folder} is not a whole study: {error!r} in {RUN_JSON}. Run it again."
        ) from error
    console.print(about, style="bold", highlight=False, markup=False)
    for table in tables:
        console.print(table)
    if missed:
        console.print(
            f"Not within the tolerance on validation images: {', '.join(missed)}.", style="yellow"
        )
    console.print(
        f"All latents of a target: {folder}/features/<target>/index.html; its hypotheses one by "
        f"one: circuits show {folder}/features/<target>/hypotheses.",
        highlight=False,
        markup=False,
    )


def _reached(one: dict[str, Any]) -> bool:
    return bool(one["within_tolerance"])


def _about(record: dict[str, Any]) -> str:
    network, data = record["options"]["network"], record["data"]
    counts = ", ".join(f"{n:,} {split}" for split, n in data["images"].items())
    return (
        f"{record['task']}: {network['kind']} classifier with {network['hidden']} hidden units, "
        f"SAEs of {record['options']['sae']['latents']} latents; images of {data['source']}: "
        f"{counts}"
    )


def _actives(summary: list[dict[str, Any]]) -> Table:
    table = Table(title="Active latents", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("target", "validation", "test", "lambda", "variance explained"):
        table.add_column(column, justify="right")
    for one in summary:
        table.add_row(
            f"{one['target_actives']:g}",
            f"{one['achieved_actives_val']:.2f}" + ("" if _reached(one) else " (missed)"),
            f"{one['achieved_actives_test']:.2f}",
            f"{one['lambda']:.3g}",
            f"{one['explained_variance']:.3f}",
        )
    return table


def _accuracies(summary: list[dict[str, Any]]) -> Table:
    right = f"{summary[0]['baseline_acc']:.2%}"
    table = Table(
        title=f"Test images classified right, {right} without an SAE (change in points)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("target", "JumpReLU", "change", "boolean", "change"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in summary:
        cells = [cell for mode in ("jumprelu", "boolean") for cell in _mode(one, mode)]
        table.add_row(f"{one['target_actives']:g}", *cells)
    return table


def _mode(one: dict[str, Any], mode: str) -> tuple[str, str]:
    """Accuracy, and its change with 95% interval; the record has what is lost."""
    change, (low, high) = one[f"delta_acc_{mode}"], one[f"delta_acc_{mode}_95"]
    said = f"{-100 * change:+.2f} [{-100 * high:+.2f}, {-100 * low:+.2f}]"
    return f"{one[f'recon_acc_{mode}']:.2%}", escaped(said)


def _verdicts(hypotheses: dict[str, dict[str, int]]) -> Table:
    table = Table(title="Hypotheses about latents", title_justify="left", box=box.SIMPLE_HEAD)
    names = list(dict.fromkeys(name for counts in hypotheses.values() for name in counts))
    for column in ("target", *names):
        table.add_column(column, justify="right")
    for target, counts in hypotheses.items():
        table.add_row(target, *(str(counts[name]) for name in names))
    return table
