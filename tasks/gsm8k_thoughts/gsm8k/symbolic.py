"""Problems from the templates of GSM-Symbolic, as `reasoning-gym` has them (the extra `gsm`).

A template draws names and numbers and writes question and worked solution. Drawn again are problems
that no one would ask: a negative answer, or a fraction written with five or more decimals. The
fifth of the templates that are "test" is fixed; the rest are "train".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from random import Random
from typing import Any, Literal

from tasks.gsm8k_thoughts.gsm8k.problems import GsmError, Problem, parse_number

_UGLY = re.compile(r"\d\.\d{5}")
_TRIES = 50  # for one problem; the worst template needs three on average
Template = Callable[[Random, float], dict[str, Any]]


class Draws(Random):
    """Random numbers of a template: draw i depends on the seed and i only.

    changed: the draw that comes out differently, `variant` says how; all others stay the same, as
    long as the template goes on to draw the same things. count: how many draws there were.
    """

    def __init__(self, seed: str, changed: int | None = None, variant: int = 0) -> None:
        super().__init__(seed)
        self._seed, self._changed, self._variant = seed, changed, variant
        self.count = 0

    def _next(self) -> Random:
        index, self.count = self.count, self.count + 1
        other = f"/{self._variant}" if index == self._changed else ""
        return Random(f"{self._seed}/{index}{other}")

    def randint(self, a: int, b: int) -> int:
        return self._next().randint(a, b)

    def randrange(self, *args: Any, **kwargs: Any) -> int:
        return self._next().randrange(*args, **kwargs)

    def uniform(self, a: float, b: float) -> float:
        return self._next().uniform(a, b)

    def choice(self, seq: Any) -> Any:
        return self._next().choice(seq)

    def sample(self, population: Any, k: int, **kwargs: Any) -> list[Any]:
        return self._next().sample(population, k, **kwargs)


@cache
def all_templates() -> Mapping[int, Template]:
    """The templates that `reasoning-gym` trusts, by their number."""
    try:
        import reasoning_gym  # pyright: ignore[reportMissingImports]
        from reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic import tasks_ok  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise GsmError(
            "GSM-Symbolic needs the package reasoning-gym: pip install 'sae-circuits[gsm]'."
        ) from error
    made: Any = reasoning_gym.create_dataset("gsm_symbolic", seed=0, size=1)
    return {number: made.generators[number] for number in sorted(tasks_ok)}


def templates(split: Literal["train", "test"] | None) -> Mapping[int, Template]:
    """Those of one split; all for None."""
    everything = list(all_templates().items())
    if split is None:
        return dict(everything)
    return {k: f for i, (k, f) in enumerate(everything) if (i % 5 == 4) == (split == "test")}


def make_problem(template: int, seed: str, draws: Draws | None = None) -> tuple[Problem, dict]:
    """One problem of a template, and the template's variables by name.

    seed: decides everything, and is in the id. draws: to use instead of those of the seed.
    Raises `GsmError` where the answer is no number.
    """
    made = all_templates()[template](draws or Draws(seed), 1.0)
    lines = made["metadata"]["answer_cot"].splitlines()
    problem = Problem(
        id=f"symbolic/{template}/{seed}",
        question=" ".join(made["question"].split()),
        answer=parse_number(made["answer"]),
        steps=tuple(x.strip() for x in lines if x.strip() and not x.startswith("####")),
        group=f"symbolic/{template}",
    )
    return problem, made["metadata"]["variables"]


def sensible(problem: Problem) -> bool:
    """Whether somebody could have asked it."""
    return problem.answer >= 0 and not _UGLY.search(problem.question)


def symbolic_problems(
    n: int, *, seed: int, split: Literal["train", "test"] | None
) -> tuple[Problem, ...]:
    """`n` different problems, the same number (but for one) of each template."""
    numbers = list(templates(split))
    Random(seed).shuffle(numbers)
    found: dict[str, Problem] = {}
    for i in range(n):
        template = numbers[i % len(numbers)]
        problem = _new(template, f"{seed}.{i}", found)
        found[problem.question] = problem
    return tuple(found.values())


def _new(template: int, seed: str, known: Mapping[str, Problem]) -> Problem:
    for attempt in range(_TRIES):
        problem, _ = make_problem(template, f"{seed}.{attempt}")
        if sensible(problem) and problem.question not in known:
            return problem
    raise GsmError(
        f"template {template} gave no new problem in {_TRIES} draws: ask for fewer problems."
    )
