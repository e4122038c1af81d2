"""What commands on prompt pairs do first: look at everything that can be wrong before a model is
loaded, then load it, its SAEs and the pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from circuits.cli.options import parse_layers
from circuits.errors import CircuitsError

if TYPE_CHECKING:
    from circuits.models.hooked import HookedModel
    from circuits.prompts import Pair, PromptPairs
    from circuits.saes import SaeSet
    from circuits.task import Task


@dataclass(frozen=True)
class Start:
    """Checked options of a command. own: pairs of `pairs_file`, which need no task."""

    folder: Path
    task: Task
    own: Sequence[Pair] | None
    pairs_file: Path | None
    drawing: dict[str, Any]

    def prompts(self, model: HookedModel, prepend_bos: bool | None) -> Task | PromptPairs:
        """What methods are given: the task, or the pairs of one's own."""
        from circuits.prompts import PromptPairs

        if self.own is None:
            return self.task
        return PromptPairs.from_texts(self.own, model.tokenizer, prepend_bos)

    def note(self, record: dict[str, Any], command: Any) -> None:
        """Write the command and the pairs' file into a run's record."""
        from circuits.runs import sha256_of

        record["command"] = command
        if self.pairs_file:
            record["pairs_file"] = str(self.pairs_file)
            record["pairs_file_sha256"] = sha256_of(self.pairs_file)


def start(
    method: str,
    *,
    task: str,
    pairs_file: Path | None,
    contrast: str | None,
    n_pairs: int | None,
    split: Literal["explored", "held_out"] | None,
    seed: int | None,
    out: Path | None,
) -> Start:
    """Check the options that say which pairs, and where the run goes.

    Raises `CircuitsError` for options that contradict each other, an unknown task or contrast, a
    file of pairs that cannot be read, and a folder that cannot be written.
    """
    from circuits.prompts import read_pairs
    from circuits.runs import check_new, default_folder
    from circuits.task import PairsTask, check_contrast, load_task, require

    drawing = {"--contrast": contrast, "--n-pairs": n_pairs, "--split": split, "--seed": seed}
    named = [name for name, value in drawing.items() if value is not None]
    if pairs_file and named:
        raise CircuitsError(
            f"{', '.join(named)} draw pairs from a task and contradict --pairs-file: leave them "
            "out."
        )
    own = read_pairs(pairs_file) if pairs_file else None
    chosen = load_task(task)
    folder = out or default_folder("custom" if own else chosen.name, method)
    check_new(folder)
    if not own:
        chosen = require(chosen, PairsTask, f"circuits {method}")
        check_contrast(chosen, contrast)
    how = {
        "contrast": contrast,
        "n_pairs": n_pairs or 12,
        "split": split or "explored",
        "seed": seed or 0,
    }
    return Start(folder, chosen, own, pairs_file, how)


def load_set(
    name: str,
    model: HookedModel,
    layers: str | None,
    l0: float | None,
    width: str | None,
    sae_memory: float | None,
) -> SaeSet:
    """The SAEs that the options name."""
    from circuits.saes import load_saes

    numbers = parse_layers(layers) if layers else None
    memory = None if sae_memory is None else int(sae_memory * 2**30)
    return load_saes(name, model, layers=numbers, l0=l0, width=width, memory=memory)
