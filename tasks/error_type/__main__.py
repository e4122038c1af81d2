"""`python -m tasks.error_type`: which contrasts can a model do?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.table import Table

from circuits.cli import run_app
from circuits.cli.options import (
    BosOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    SeedOption,
    SplitOption,
)
from circuits.cli.show import console, interval

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def table(
    model: ModelOption = None,
    contrast: Annotated[
        str | None, typer.Option("--contrast", help="Only this contrast [all].")
    ] = None,
    n_pairs: Annotated[int, typer.Option("--n-pairs", min=2, help="Pairs a row.")] = 24,
    by_template: Annotated[
        bool, typer.Option("--by-template", help="One row a template instead of a contrast.")
    ] = False,
    split: SplitOption = None,
    seed: SeedOption = None,
    prepend_bos: BosOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write the rows to this JSON file.")
    ] = None,
) -> None:
    """Logit differences, clean and corrupted, for every contrast of error types."""
    from circuits.runs import versions
    from circuits.task import TaskError, check_contrast
    from tasks.error_type import task
    from tasks.error_type.templates import CONTRASTS

    contrasts = [CONTRASTS[check_contrast(task, contrast)]] if contrast else CONTRASTS.values()
    loaded = task.load(model, device=device, dtype=dtype)
    rows, unaligned = [], []
    for one in contrasts:
        templates = [t.name for t in one.templates] if by_template else [None]
        for template in templates:
            try:
                pairs = task.pairs(
                    loaded,
                    contrast=one.name,
                    n=n_pairs,
                    seed=seed or 0,
                    split=split or "explored",
                    prepend_bos=prepend_bos,
                    template=template,
                )
            except TaskError as error:  # this tokenizer does not align it; the others may do
                unaligned.append(str(error))
                continue
            held = template in one.held_out if template else split == "held_out"
            rows.append(_row(loaded, one.name, template, held, pairs))
    if not rows:
        raise TaskError(unaligned[0])
    _print(rows, loaded.name)
    for message in unaligned:
        console.print(message, markup=False, highlight=False)
    if json_out:
        record = {"model": loaded.name, "model_sha256": loaded.sha256, "seed": seed or 0}
        text = json.dumps({**record, "versions": versions(), "rows": rows}, indent=1)
        json_out.write_text(text + "\n", encoding="utf-8")


def _row(model: Any, contrast: str, template: str | None, held: bool, pairs: Any) -> dict[str, Any]:
    from circuits.patch import assess, logit_differences

    ability = assess(*logit_differences(model, pairs))
    bounds = {
        name: [float(np.round(v, 4)) for v in (s.value, s.low, s.high)]
        for name, s in (
            ("clean", ability.clean),
            ("corrupted", ability.corrupted),
            ("gap", ability.gap),
        )
    }
    return {
        "contrast": contrast,
        "template": template,
        "split": "held_out" if held else "explored",
        "answer": pairs.answers[0],
        "foil": pairs.foils[0],
        "pairs": len(pairs),
        **bounds,
        "ordered": ability.ordered,
        "flipped": ability.flipped,
        "problem": ability.problem,
    }


def _print(rows: list[dict[str, Any]], model: str) -> None:
    about = f"{model}, {rows[0]['pairs']} pairs each, 95% intervals"
    if rows[0]["template"] is None:
        names = [row["contrast"].replace("/", "\n") for row in rows]
        _print_table(f"error_type on {about}", "answer (clean)\nfoil (corrupted)", names, rows)
    else:
        for contrast in dict.fromkeys(row["contrast"] for row in rows):
            part = [row for row in rows if row["contrast"] == contrast]
            names = [f"{row['template']}\n{row['split']}" for row in part]
            _print_table(f"{contrast} on {about}", "template\nsplit", names, part)
    for row in rows:
        if row["problem"]:
            where = " ".join(filter(None, (row["contrast"], row["template"])))
            console.print(f"cannot do {where}: {row['problem']}", markup=False, highlight=False)


def _print_table(title: str, first: str, names: list[str], rows: list[dict[str, Any]]) -> None:
    # Two lines a row, so that names and intervals fit side by side in 80 columns.
    shown = Table(title=title, box=box.SIMPLE_HEAD)
    shown.add_column(first, no_wrap=True)
    shown.add_column("LD clean\nLD corrupted", no_wrap=True)
    for column in ("ordered", "flip", "can do"):
        shown.add_column(column, justify="right")
    for name, row in zip(names, rows, strict=True):
        bounds = [interval(_Bounds(*row[key])) for key in ("clean", "corrupted")]
        shown.add_row(
            name,
            "\n".join(bounds).replace("[", r"\["),
            f"{row['ordered']:.0%}",
            f"{row['flipped']:.0%}",
            "no" if row["problem"] else "yes",
        )
    console.print(shown)


class _Bounds:
    def __init__(self, value: float, low: float, high: float) -> None:
        self.value, self.low, self.high = value, low, high


if __name__ == "__main__":
    run_app(app, sys.argv[1:], "python -m tasks.error_type")
