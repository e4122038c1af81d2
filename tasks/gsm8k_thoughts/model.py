"""Loading a model that thinks: the embedded CODI, one trained here, or a published checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from circuits.errors import CircuitsError
from circuits.models.hooked import HookedModel
from circuits.models.load import load_model
from circuits.models.thoughts import Thoughts
from circuits.runs import sha256_of
from circuits.task import TaskError
from tasks.gsm8k_thoughts.chains import ANSWER, BOT, EOT, THOUGHT, Vocabulary
from tasks.gsm8k_thoughts.checkpoint import CodiTokens, load_codi
from tasks.gsm8k_thoughts.projection import Projection
from tasks.gsm8k_thoughts.train import CARD, CODI_FILE, PROJECTION_FILE

EMBEDDED = "codi-chains"
_FOLDER = Path(__file__).parent / "embedded"
SEEDS, CONTROL = ("seed0", "seed1", "seed2"), "control"
# Of larger problems: two to four steps, numbers to 99.
LARGE, LARGE_CONTROL = ("large0", "large1", "large2"), "large-control"


@dataclass(frozen=True, eq=False)
class CodiThoughts(Thoughts):
    """A CODI's thoughts. tokens: what stands around them. vocabulary, steps: of a model that was
    trained on chains, its numbers and its problems' fewest and most steps; None for others."""

    tokens: CodiTokens
    vocabulary: Vocabulary | None = None
    steps: tuple[int, int] | None = None


def load_thinking(source: str | Path | None = None, **options: Any) -> HookedModel:
    """A model whose `thoughts` are a `CodiThoughts`.

    source: None or "embedded" for the CODI that ships with the task; "embedded/seed1",
        "embedded/seed2" or "embedded/control" for its siblings, "embedded/large0" and so on for
        those with larger problems; a folder that `tasks.gsm8k_thoughts.train` wrote; or a
        published checkpoint, see `tasks.gsm8k_thoughts.checkpoint.load_codi`, which takes further
        options.
    options: device and dtype, as in `circuits.load_model`.
    """
    name = str(source or "embedded")
    if name == "embedded" or name.startswith("embedded/"):
        return _load_trained(
            embedded_folder(name), f"{EMBEDDED}{name.removeprefix('embedded')}", **options
        )
    if (Path(name) / CODI_FILE).is_file():
        return _load_trained(Path(name), Path(name).resolve().name, **options)
    codi = load_codi(name, **options)
    codi.model.thoughts = CodiThoughts(codi.tokens.pad, codi.projection, codi.tokens)
    return codi.model


def embedded_folder(name: str = "embedded") -> Path:
    """The folder of an embedded model; raises `TaskError` for one that there is not."""
    which = name.removeprefix("embedded").removeprefix("/") or SEEDS[0]
    known = (*SEEDS, CONTROL, *LARGE, LARGE_CONTROL)
    if which not in known:
        raise TaskError(f"{name!r}: embedded models are {', '.join(known)}.")
    return _FOLDER / which


def control_of(name: str) -> str:
    """The embedded model that was trained like this one, but without thoughts."""
    large = embedded_folder(name).name in (*LARGE, LARGE_CONTROL)
    return f"embedded/{LARGE_CONTROL if large else CONTROL}"


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a model that was trained here; raises `TaskError` where there is none."""
    if not (folder / CARD).is_file():
        raise TaskError(f"{folder} has no {CARD}: give the folder of a trained model.")
    return json.loads((folder / CARD).read_text(encoding="utf-8"))


def thoughts_of(model: HookedModel) -> CodiThoughts:
    """The model's thoughts; raises `TaskError` for a model that has none of this kind."""
    if not isinstance(model.thoughts, CodiThoughts):
        raise TaskError(
            f"{model.name} does not think in continuous thoughts: load one with the task's own "
            "load(), such as load_task('gsm8k_thoughts').load()."
        )
    return model.thoughts


def require_thoughts(model: HookedModel) -> None:
    """Raise `TaskError` for a control, which was trained without thoughts."""
    if not thoughts_of(model).tokens.thoughts:
        raise TaskError(f"{model.name} was trained without thoughts: there are none to study.")


def _load_trained(folder: Path, name: str, **options: Any) -> HookedModel:
    unknown = set(options) - {"device", "dtype"}
    if unknown:
        raise TaskError(f"options of published checkpoints only: {', '.join(sorted(unknown))}.")
    try:
        words = json.loads((folder / CODI_FILE).read_text(encoding="utf-8"))
        weights = load_file(folder / PROJECTION_FILE)
        vocabulary, thoughts = Vocabulary(int(words["numbers"])), int(words["thoughts"])
        low, high = words["steps"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CircuitsError(
            f"{folder} is not a whole trained model ({type(error).__name__}: {error}): expected "
            f"{CODI_FILE}, {PROJECTION_FILE} and a Hugging Face model."
        ) from error
    model = load_model(str(folder), **options)
    model.name = name
    projection = Projection(model.d_model, weights["1.weight"].shape[0])
    projection.load_state_dict(weights)
    projection.to(device=model.device, dtype=model.dtype).eval().requires_grad_(False)
    both = model.sha256 + sha256_of(folder / PROJECTION_FILE)
    model.sha256 = hashlib.sha256(both.encode()).hexdigest()
    answer = (vocabulary.id(ANSWER),)
    tokens = CodiTokens(
        pad=vocabulary.id(THOUGHT),
        bot=vocabulary.id(BOT),
        eot=vocabulary.id(EOT),
        before=(vocabulary.id(BOT),),
        after=(vocabulary.id(EOT),),
        thoughts=thoughts,
        answer_prefix=ANSWER,
        answer_prefix_ids=answer,
        prepend_bos=False,
    )
    model.thoughts = CodiThoughts(tokens.pad, projection, tokens, vocabulary, (low, high))
    return model
