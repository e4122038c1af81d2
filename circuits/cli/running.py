"""How every command runs: errors as one message, Ctrl-C as one line, quiet libraries."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console

from circuits.cli.show import escaped
from circuits.errors import CircuitsError

errors = Console(stderr=True)


def run_app(application: typer.Typer, arguments: Sequence[str], name: str = "circuits") -> None:
    """Run an application with the shared treatment of errors and of library chatter.

    name: what usage lines call it. Commands find their own words in `ctx.obj`, for the record.
    """
    quiet_libraries()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        application(args=list(arguments), prog_name=name, obj=[name, *arguments])
    except CircuitsError as error:
        errors.print(f"[bold red]Error:[/] {escaped(str(error))}", highlight=False)
        sys.exit(2)


@contextmanager
def interruptible(*, keeps: bool = True) -> Iterator[None]:
    """End with one line and status 130 on Ctrl-C. keeps: whether the work keeps finished parts."""
    try:
        yield
    except KeyboardInterrupt:
        kept = "What is finished is kept: give the same command to go on."
        errors.print(f"Interrupted. {kept if keeps else 'Nothing was kept.'}")
        raise typer.Exit(130) from None


def quiet_libraries() -> None:
    """Keep the libraries' own log lines off the terminal; errors still raise."""
    for name in ("transformers", "transformer_lens", "sae_lens"):
        logging.getLogger(name).setLevel(logging.ERROR)
