"""One line about a latent, made from the tokens it goes with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from circuits.tokens import visible

_SHOWN = 3


def describe(row: Mapping[str, Any], vocabulary: Mapping[int, str], positions: int) -> str:
    """`on A 61%, B 12% | after C 40% | toward D, E, F`.

    on: the tokens it is most often active at, with their share of its activations; after: the token
    before, when that is one in at least a fifth; toward: what its decoder row raises directly.
    """
    if row["dead"]:
        return f"never active at {positions:,} positions"
    parts = ["on " + _shares(row["at"], row["at_count"], row["active"], vocabulary)]
    before, count = list(row["before"]), list(row["before_count"])
    if before and count[0] >= row["active"] / 5:
        parts.append("after " + _shares(before[:1], count[:1], row["active"], vocabulary))
    raised = [visible(vocabulary[int(t)]) for t in list(row["raised"])[:_SHOWN]]
    return " | ".join([*parts, "toward " + ", ".join(raised)])


def _shares(
    tokens: Iterable[Any], counts: Iterable[Any], active: int, vocabulary: Mapping[int, str]
) -> str:
    shown = list(zip(tokens, counts, strict=True))[:_SHOWN]
    return ", ".join(f"{visible(vocabulary[int(t)])} {n / active:.0%}" for t, n in shown)
