"""`--task-option KEY=VALUE`: what a task's own methods take besides what every task takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from circuits.errors import CircuitsError


def parse_task_options(texts: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE texts; a value is JSON where it can be read as such, else text.

    Raises `CircuitsError` for a text without a key or a value, and a key that is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise CircuitsError(f"--task-option {text!r}: expected KEY=VALUE.")
        if key.strip() in found:
            raise CircuitsError(f"--task-option {key.strip()} is given twice: once is enough.")
        try:
            found[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[key.strip()] = value.strip()
    return found


def check_task_options(
    name: str, method: Callable[..., Any], options: Mapping[str, Any], taken: Sequence[str]
) -> None:
    """Raise `CircuitsError` for options that `method` of the task `name` does not have, and for
    values of another type than its signature says.

    taken: parameters that have options of their own.
    """
    parameters = inspect.signature(method).parameters.values()
    own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in taken]
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    hints = get_type_hints(method) if options else {}
    for key, value in options.items():
        if key in taken or (key not in own and not anything):
            there = f"its options are {', '.join(own)}" if own else "it has none"
            raise CircuitsError(f"the task {name} has no --task-option {key}: {there}.")
        hint = hints[key] if key in own and key in hints else Any
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        known = all(kind in _PLAIN for kind in kinds)
        if known and not any(_is(value, kind) for kind in kinds):
            expected = " or ".join(_PLAIN[kind] for kind in kinds)
            raise CircuitsError(f"--task-option {key}={value}: expected {expected}.")


_PLAIN = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
}


def _is(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
