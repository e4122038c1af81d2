"""What a task is: a small core, and capabilities of which each task has some.

Methods know these protocols and never a concrete task. A command asks for the capability it needs
with `require`, which names what is missing. A new task is one new folder `tasks/<name>/` whose
package has a module-level `task`; nothing else changes.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from circuits.corpora.documents import Source
from circuits.errors import CircuitsError
from circuits.labelled import Labelled
from circuits.prompts import PromptPairs
from circuits.sites import Site


class TaskError(CircuitsError):
    """An unknown task or contrast, or a task without the capability that a command needs."""


@runtime_checkable
class Task(Protocol):
    """The core that every task has."""

    @property
    def name(self) -> str:
        """The folder's name."""
        ...

    @property
    def description(self) -> str:
        """One line."""
        ...

    @property
    def position_names(self) -> tuple[str, ...]:
        """The named positions of its prompts; END, the last token, is always among them."""
        ...

    def load(self, model: str | None = None, **options: Any) -> Any:
        """Load what the task is studied in; `model=None` is the task's own default.

        options: `device` and `dtype` at least, passed on to `circuits.load_model` by tasks about
        language models. Returns a `HookedModel`, or for image tasks a torch module.
        """
        ...


@dataclass(frozen=True)
class Inputs:
    """Token ids, and embeddings that replace those of some positions (continuous thoughts).

    tokens: ids; at the slots their values do not matter, only their place.
    slots: positions whose input embedding is overwritten, ascending.
    embeddings: what stands there, one vector a slot. None lets the recurrence make them while the
        model runs, so that whatever is changed before a slot changes what stands there.
    recurrence: how the embeddings come about.
    """

    tokens: Int[Tensor, "row position"]
    slots: tuple[int, ...] = ()
    embeddings: Float[Tensor, "row slot d_model"] | None = None
    recurrence: Recurrence | None = None

    def __post_init__(self) -> None:
        shape = None if self.embeddings is None else tuple(self.embeddings.shape[:2])
        expected = (self.tokens.shape[0], len(self.slots)) if self.slots else None
        if shape != expected and not (self.rolled and self.recurrence is not None):
            raise TaskError(f"embeddings for [row, slot] = {expected} expected, got {shape}.")
        if any(not 0 <= s < self.tokens.shape[1] for s in self.slots):
            raise TaskError(f"slots {self.slots} outside {self.tokens.shape[1]} positions.")
        if list(self.slots) != sorted(set(self.slots)):
            raise TaskError(f"slots {self.slots} must ascend.")
        if self.recurrence is not None:
            sources = self.recurrence.sources
            before = [0 <= a < b for a, b in zip(sources, self.slots, strict=False)]
            if len(sources) != len(self.slots) or not all(before):
                raise TaskError(
                    f"sources {sources} of slots {self.slots}: one before each slot is expected."
                )

    @property
    def rolled(self) -> bool:
        """Whether the embeddings are made while the model runs."""
        return bool(self.slots) and self.embeddings is None

    def of(self, rows: Int[Tensor, " some"]) -> Inputs:
        """Some of the rows."""
        embeddings = None if self.embeddings is None else self.embeddings[rows]
        return Inputs(self.tokens[rows], self.slots, embeddings, self.recurrence)

    def to(self, device: Any) -> Inputs:
        """The same on a device."""
        embeddings = None if self.embeddings is None else self.embeddings.to(device)
        return Inputs(self.tokens.to(device), self.slots, embeddings, self.recurrence)


@dataclass(frozen=True)
class Recurrence:
    """One step a slot: the embedding at `slots[i]` is `step` of the hidden state at `sources[i]`.

    sources: the position read for each slot, after the final norm; always before the slot.
    step: [row, d_model] -> [row, d_model], differentiable.
    """

    sources: tuple[int, ...]
    step: Callable[[Tensor], Tensor]


@runtime_checkable
class PairsTask(Task, Protocol):
    """Clean and corrupted prompts."""

    @property
    def contrasts(self) -> Mapping[str, str]:
        """Names of the contrasts, with one line each."""
        ...

    @property
    def default_contrast(self) -> str:
        """The contrast that is meant when none is named."""
        ...

    def pairs(
        self,
        model: Any,
        *,
        contrast: str | None = None,
        n: int = 12,
        seed: int = 0,
        split: Literal["explored", "held_out"] = "explored",
        prepend_bos: bool | None = None,
    ) -> PromptPairs:
        """`n` pairs under the tokenizer of `model`, the same ones for the same seed."""
        ...


@runtime_checkable
class InputsTask(Task, Protocol):
    """Prompts whose input embeddings are not all taken from tokens."""

    def inputs(self, model: Any, tokens: Int[Tensor, "row position"]) -> Inputs:
        """Fill the slots of these prompts."""
        ...


@dataclass(frozen=True)
class Prompt:
    """A prompt to be continued. kind: the family it belongs to, such as safe or risky."""

    text: str
    kind: str = "all"


@runtime_checkable
class GenerateTask(Task, Protocol):
    """Prompts to be answered at length, and a strict reading of the answers."""

    def prompts(self, model: Any, *, n: int = 12, seed: int = 0) -> Sequence[Prompt]:
        """`n` prompts to continue, in all kinds together, the same ones for the same seed."""
        ...

    def parse(self, response: str, prompt: str) -> Mapping[str, Any]:
        """What the response to a prompt decides; `valid` is False where it could not be read.

        prompt: its text, which says what may be decided.
        """
        ...


@runtime_checkable
class ClassifierTask(Task, Protocol):
    """A classifier with labelled inputs, for methods that study any torch module."""

    def classifier(self, model: Any) -> nn.Module:
        """The module, from vectors or images to class logits."""
        ...

    def examples(
        self, split: Literal["train", "validation", "test"]
    ) -> tuple[Float[Tensor, "example ..."], Int[Tensor, " example"]]:
        """Inputs and their labels."""
        ...


@runtime_checkable
class DocumentsTask(Task, Protocol):
    """Texts that SAEs for this task's model are trained on."""

    def documents(self, model: Any) -> Source:
        """Whole prompts, answers included, that are not among its pairs."""
        ...


@runtime_checkable
class AnsweredTask(Task, Protocol):
    """Problems that the model answers, rightly or wrongly, and the vectors it does so with."""

    @property
    def vector_positions(self) -> tuple[str, ...]:
        """Names of the positions of `vectors`, such as t1..t6 for six continuous thoughts."""
        ...

    def answered(self, model: Any, *, n: int, seed: int = 0, **options: Any) -> Sequence[Labelled]:
        """`n` problems with the model's own answers, the same ones for the same seed.

        Problems that belong together, such as a clean one and its corrupted twin, have one group.
        """
        ...

    def vectors(
        self, model: Any, records: Sequence[Labelled], sites: Sequence[Site]
    ) -> Float[Tensor, "record site position d_model"]:
        """The activations at `sites` and `vector_positions`, one row a record, in their order."""
        ...


@runtime_checkable
class AttentionTask(AnsweredTask, Protocol):
    """Answered problems of which attention between positions is a feature as well."""

    @property
    def attention_positions(self) -> tuple[str, ...]:
        """Names of the places of `attention`: "t3<t1" looks from t3 to t1."""
        ...

    def attention(
        self, model: Any, records: Sequence[Labelled], layers: Sequence[int]
    ) -> Float[Tensor, "record layer place head"]:
        """Attention weights at `layers` and `attention_positions`, one row a record."""
        ...


_CAPABILITIES: dict[str, type] = {
    "pairs": PairsTask,
    "inputs": InputsTask,
    "generate": GenerateTask,
    "classifier": ClassifierTask,
    "documents": DocumentsTask,
    "answered": AnsweredTask,
    "attention": AttentionTask,
}
_Capability = TypeVar("_Capability")


def capabilities(task: Task) -> tuple[str, ...]:
    """The names of what `task` can do, of pairs, inputs, generate, classifier, documents,
    answered, attention."""
    return tuple(name for name, protocol in _CAPABILITIES.items() if isinstance(task, protocol))


def require(task: Task, protocol: type[_Capability], command: str) -> _Capability:
    """`task` as `protocol`; raises `TaskError` that names the missing capability."""
    if isinstance(task, protocol):
        return task
    wanted = next(name for name, p in _CAPABILITIES.items() if p is protocol)
    has = ", ".join(capabilities(task)) or "none"
    raise TaskError(
        f"{command} needs a task with the capability {wanted!r}, but task {task.name!r} has: {has}."
    )


def check_contrast(task: PairsTask, contrast: str | None) -> str:
    """The name of the contrast, the default for None; raises `TaskError` with the nearest ones."""
    name = contrast or task.default_contrast
    if name not in task.contrasts:
        near = difflib.get_close_matches(name, task.contrasts, n=2, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        names = ", ".join(task.contrasts)
        raise TaskError(f"unknown contrast {name!r}: {task.name} has {names}.{hint}")
    return name


def task_names() -> list[str]:
    """The names of the tasks in the `tasks` package."""
    import tasks

    return sorted(m.name for m in pkgutil.iter_modules(tasks.__path__) if m.ispkg)


def load_task(name: str | Path) -> Task:
    """Load a task by its name, or by the path of a folder or Python file that holds one.

    The module must have a `task` with the core of `Task`. Raises `TaskError` with the nearest names
    when there is no such task.
    """
    path = Path(name)
    if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").is_file()):
        return _task_of(_load_path(path), str(path))
    names = task_names()
    if str(name) not in names:
        near = difflib.get_close_matches(str(name), names, n=2)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise TaskError(
            f"unknown task {str(name)!r}: there are {', '.join(names)}.{hint} "
            "A task of your own is given by the path of its folder or file."
        )
    return _task_of(importlib.import_module(f"tasks.{name}"), str(name))


def _load_path(path: Path) -> Any:
    file = path / "__init__.py" if path.is_dir() else path
    if not file.is_file():
        raise TaskError(f"the task file {path} does not exist.")
    name = f"circuits_task_{path.stem}"  # a prefix, so that no installed module is shadowed
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(path)] if path.is_dir() else None
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and relative imports look themselves up here
    spec.loader.exec_module(module)
    return module


def _task_of(module: Any, name: str) -> Task:
    task = getattr(module, "task", None)
    if not isinstance(task, Task):
        raise TaskError(
            f"{name!r} is not a task: its module needs a `task` with name, description, "
            "position_names and load()."
        )
    return cast(Task, task)
