"""The error-type task: pairs that line up under the model's own tokenizer, labels that were run."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from circuits.models.load import load_model
from circuits.prompts import Pair, PromptError, PromptPairs, resolve_bos, tokenise
from circuits.task import TaskError, check_contrast
from tasks.error_type.templates import CONTRASTS, Contrast, Template, make_pairs
from tasks.error_type.verify import check_labels

_SAMPLE = 200  # pairs that decide a template's shape


@dataclass(frozen=True)
class ErrorType:
    """A snippet and a question after the error it raises; clean and corrupted raise different ones.

    Named positions: op, the token of the operator that decides; d1 and d2, the tokens before and
    after the number that the operator acts on; END, the last token.
    """

    name: str = "error_type"
    description: str = "which error Python raises for a snippet"
    position_names: tuple[str, ...] = ("op", "d1", "d2", "END")
    default_contrast: str = "ZeroDivisionError/TypeError"

    @property
    def contrasts(self) -> Mapping[str, str]:
        """Names of the contrasts, with one line each."""
        return {
            name: f"clean raises {c.answer}, corrupted {c.foil}" for name, c in CONTRASTS.items()
        }

    def load(self, model: str | None = None, **options: Any) -> Any:
        """The language model; None is the embedded default."""
        return load_model(model, **options)

    def pairs(
        self,
        model: Any,
        *,
        contrast: str | None = None,
        n: int = 12,
        seed: int = 0,
        split: Literal["explored", "held_out"] = "explored",
        prepend_bos: bool | None = None,
        template: str | None = None,
    ) -> PromptPairs:
        """`n` distinct pairs, template after template in the order they are listed.

        Pairs of one template have one length and the same named positions under the tokenizer of
        `model`. template: only this one. Every snippet is run, in a process of its own, and must
        raise the error that it is labelled with.
        Raises `TaskError` for an unknown contrast or template and when there are fewer than `n`.
        """
        found = CONTRASTS[check_contrast(self, contrast)]
        templates = found.split(split)
        if template is not None:
            templates = [t for t in found.templates if t.name == template]
            if not templates:
                names = ", ".join(t.name for t in found.templates)
                raise TaskError(f"{found.name} has no template {template!r}, only {names}.")
        if n < 1:
            raise TaskError(f"{n} pairs asked for: at least 1 is needed.")
        chosen: list[Pair] = []
        for one in templates:
            missing = n - len(chosen)
            chosen += aligned_pairs(found, one, model.tokenizer, seed, prepend_bos, missing)
            if len(chosen) == n:
                break
        if len(chosen) < n:
            which = template or f"{split} templates"
            advice = "ask for fewer, or choose" if chosen else "choose"
            raise TaskError(
                f"{found.name} ({which}) has {len(chosen)} pairs that line up under the tokenizer "
                f"of {model.name}, not {n}: {advice} another contrast."
            )
        check_labels([p.clean for p in chosen], [found.answer] * n)
        check_labels([p.corrupted for p in chosen], [found.foil] * n)
        return PromptPairs.from_texts(chosen, model.tokenizer, prepend_bos)


def aligned_pairs(
    contrast: Contrast,
    template: Template,
    tokenizer: Any,
    seed: int,
    prepend_bos: bool | None,
    limit: int | None = None,
) -> list[Pair]:
    """Pairs of a template that all have one length and the same named positions, at most `limit`.

    The shape is the most common one among the first pairs, so it does not depend on `limit`.
    """
    bos = resolve_bos(tokenizer, prepend_bos)
    every = make_pairs(contrast, template, seed)
    shaped = ((pair, _shape(pair, tokenizer, bos)) for pair in every)
    sample = list(itertools.islice(shaped, _SAMPLE))
    counts = Counter(shape for _, shape in sample if shape is not None)
    if not counts:
        return []
    common = counts.most_common(1)[0][0]
    fitting = (pair for pair, shape in itertools.chain(sample, shaped) if shape == common)
    return list(itertools.islice(fitting, limit))


def _shape(pair: Pair, tokenizer: Any, bos: bool) -> tuple[Any, ...] | None:
    """Length and named positions; None for a pair that does not line up."""
    length = len(tokenise(tokenizer, pair.clean, bos))
    if length != len(tokenise(tokenizer, pair.corrupted, bos)):
        return None
    try:
        one = PromptPairs.from_texts([pair], tokenizer, bos)
    except PromptError:
        return None  # positions differ, or answer and foil share their first token
    return length, *one.positions[0].items()
