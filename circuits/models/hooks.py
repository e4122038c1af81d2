"""Hooks that are always removed and always counted."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from circuits.errors import CircuitsError

OnTensor = Callable[[Tensor], Tensor | None]


class HookError(CircuitsError):
    """A hook did not fire as often as it had to."""


class HookSet:
    """A set of forward hooks for one pass: `with HookSet() as hooks: hooks.on_output(...)`.

    On leaving, every hook is removed, after an exception too. When the pass went well, a hook that
    fired another number of times than once raises `HookError`: a hook that silently never fires is
    how a patch comes to change nothing.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._fired: list[tuple[str, list[int]]] = []

    def __enter__(self) -> HookSet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if kind is not None:
            return
        wrong = [f"{name} ({count[0]} times)" for name, count in self._fired if count[0] != 1]
        if wrong:
            raise HookError(
                f"hooks that had to fire once did not: {', '.join(wrong[:4])}. This model does not "
                "pass through these places as TransformerLens describes it; use other sites."
            )

    def on_output(self, module: nn.Module, name: str, function: OnTensor) -> None:
        """Call `function` with the module's output tensor; what it returns (unless None) replaces
        it. Hook points are identity modules, so this is the tensor at that place."""
        count = self._count(name)

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            count[0] += 1
            return function(output)

        self._handles.append(module.register_forward_hook(hook))

    def on_input(self, module: nn.Module, name: str, function: OnTensor) -> None:
        """Call `function` with the first tensor the module is called with (hidden states); what it
        returns (unless None) replaces it."""
        count = self._count(name)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            count[0] += 1
            if args and isinstance(args[0], Tensor):
                changed = function(args[0])
                return None if changed is None else ((changed, *args[1:]), kwargs)
            changed = function(kwargs["hidden_states"])
            return None if changed is None else (args, {**kwargs, "hidden_states": changed})

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _count(self, name: str) -> list[int]:
        count = [0]
        self._fired.append((name, count))
        return count


def hooks_left(model: nn.Module) -> int:
    """How many forward hooks of any kind hang on `model`; the same before and after each call."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
