"""`circuits report`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from circuits.cli.show import console


def report_command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Runs, or folders with runs in them such as runs/error_type, in any order.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    title: Annotated[
        str | None, typer.Option("--title", help="Its title [what the runs are of].")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there already.")
    ] = False,
) -> None:
    """Finished runs on one page that opens in any browser, without a network."""
    from circuits.report import ReportError, find_runs, report

    # Before long work.
    if out.is_dir():
        raise ReportError(f"{out} is a folder: give --out a file, such as {out / 'report.html'}.")
    if out.exists() and not force:
        raise ReportError(f"{out} exists already: give --out another file, or --force.")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ReportError(f"{out} cannot be made: {out.parent} is no folder you may write to.")
    found = find_runs(folders)
    for line in found.left_out:
        console.print(f"Left out: {line}", style="yellow", highlight=False, markup=False)
    text = report(found, title)
    # Whole or not at all, also where another page is replaced.
    work = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        work.write_text(text, encoding="utf-8")
        work.replace(out)
    finally:
        work.unlink(missing_ok=True)
    size = out.stat().st_size / 2**20
    count = f"{len(found.runs)} run{'' if len(found.runs) == 1 else 's'}"
    console.print(
        f"Wrote {out} ({count}, {size:.1f} MB); open it in a browser", highlight=False, markup=False
    )
