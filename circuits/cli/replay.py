"""`circuits replay run`, `pathways` and `words`."""

from __future__ import annotations

import typer

from circuits.cli.replay_pathways import pathways_command
from circuits.cli.replay_run import run_command
from circuits.cli.replay_words import words_command

replay_app = typer.Typer(
    help="What a latent does when the model writes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
replay_app.command("run")(run_command)
replay_app.command("pathways")(pathways_command)
replay_app.command("words")(words_command)


@replay_app.callback()
def _replay() -> None:
    """What a latent does when the model writes."""
