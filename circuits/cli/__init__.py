"""The command line: one file a command; the options they share (options.py); tables (show.py).

`circuits patch` and `python -m circuits.patch` are the same. A mistake in the input ends with one
message and exit status 2; results go to the terminal as tables and to a run folder on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from circuits.cli.attribute import attribute_command
from circuits.cli.circuit import apply_command, circuit_command, diff_command
from circuits.cli.direct import direct_command
from circuits.cli.features import features_command
from circuits.cli.hypotheses import hypotheses_command
from circuits.cli.patch import patch_command
from circuits.cli.predict import predict_command
from circuits.cli.replay import replay_app
from circuits.cli.report import report_command
from circuits.cli.running import run_app
from circuits.cli.saes import saes_command
from circuits.cli.show import (
    print_attribution,
    print_bank,
    print_direct,
    print_fidelity,
    print_patch,
)
from circuits.cli.show_circuit import print_circuit
from circuits.cli.show_hypotheses import print_hypotheses
from circuits.cli.show_pathways import print_pathways
from circuits.cli.show_predict import print_predict
from circuits.cli.show_replay import print_replay
from circuits.cli.show_study import print_study
from circuits.cli.show_tracks import print_tells, print_tracks
from circuits.cli.show_words import print_words
from circuits.cli.tracks import tracks_command
from circuits.cli.train import train_command

__all__ = ["app", "main", "run_app"]

app = typer.Typer(
    help="Which parts of a language model, at which token, cause a behaviour?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("patch")(patch_command)
app.command("attribute")(attribute_command)
app.command("direct")(direct_command)
app.command("circuit")(circuit_command)
app.command("apply")(apply_command)
app.command("diff")(diff_command)
app.command("saes")(saes_command)
app.command("train")(train_command)
app.command("features")(features_command)
app.command("hypotheses")(hypotheses_command)
app.command("predict")(predict_command)
app.command("tracks")(tracks_command)
app.add_typer(replay_app, name="replay")
app.command("report")(report_command)


def main(prefix: Sequence[str] = ()) -> None:
    """Run the command line; `prefix` stands before the process's own arguments."""
    run_app(app, [*prefix, *sys.argv[1:]])


@app.callback()
def _circuits() -> None:
    """Which parts of a language model, at which token, cause a behaviour?"""


@app.command("show")
def show_command(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
) -> None:
    """Print a finished run."""
    from circuits.attribute import Attribution
    from circuits.circuit import CircuitResult
    from circuits.direct import DirectEffects
    from circuits.features import FeatureBank
    from circuits.hypotheses import HypothesesResult
    from circuits.patch import PatchResult
    from circuits.predict import PredictResult
    from circuits.replay import ReplayResult
    from circuits.replay.pathways_result import PathwaysResult
    from circuits.replay.words import WordsResult
    from circuits.runs import RunError, read_record
    from circuits.saes import Fidelity
    from circuits.tracks import Tracks
    from circuits.tracks.tells import Tells

    printers: dict[str, tuple[Callable[[Path], Any], Callable[[Any], None]]] = {
        "patch": (PatchResult.load, print_patch),
        "saes": (Fidelity.load, print_fidelity),
        "attribute": (Attribution.load, print_attribution),
        "circuit": (CircuitResult.load, print_circuit),
        "direct": (DirectEffects.load, print_direct),
        "features": (FeatureBank.load, print_bank),
        "hypotheses": (HypothesesResult.load, print_hypotheses),
        "predict": (PredictResult.load, print_predict),
        "replay": (ReplayResult.load, print_replay),
        "pathways": (PathwaysResult.load, print_pathways),
        "tracks": (Tracks.load, print_tracks),
        "tells": (Tells.load, print_tells),
        "words": (WordsResult.load, print_words),
        "study": (Path, print_study),
    }
    method = read_record(folder).get("method")
    if method not in printers:
        raise RunError(f"{folder} holds a run of {method!r}, which this version cannot show.")
    load, show = printers[method]
    show(load(folder))
