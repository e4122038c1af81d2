"""Outcomes: what a pathway leads to, one number for each next-token distribution.

Written as text, so that a task or a command line can name one:

    logprob: stop| quit           log probability that the next token is one of these
    logit: stop                   their logit less the mean of all logits, which a softmax takes out
    difference: stop// bet| go    log odds of the first tokens against the second; for one token
                                  each, the difference of their logits
    kl                            KL(the no-op run's distribution at that step || this one), nats

The outcome of a response is the mean over its steps. Where it means something at the first ones
only, their number stands behind the kind, as in `difference[1]: stop// bet`.

Tokens are written as they are, white space included, and #123 is the token with that id. Positive
differences of outcomes mean that the change raises them. KL has no sign and is not linear: where
half of a change is taken away, about a quarter of it is left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.replay.paired import PathwayError

OutcomeKind = Literal["logprob", "logit", "difference", "kl"]


@dataclass(frozen=True)
class Outcome:
    """kind: see the module. tokens, foils: ids; foils only of differences. text: how it was
    written. first: how many steps of a response count, from its beginning; None for all."""

    kind: OutcomeKind
    tokens: tuple[int, ...] = ()
    foils: tuple[int, ...] = ()
    text: str = "kl"
    first: int | None = None

    def __post_init__(self) -> None:
        if self.first is not None and self.first < 1:
            raise PathwayError(f"the outcome {self.text!r} counts no step: 1 or more are expected.")
        wanted = (self.kind != "kl", self.kind == "difference")
        if (bool(self.tokens), bool(self.foils)) != wanted:
            raise PathwayError(
                f"the outcome {self.text!r} has {len(self.tokens)} tokens and {len(self.foils)} "
                "foils: logprob and logit need tokens, difference tokens and foils, kl neither."
            )
        if set(self.tokens) & set(self.foils):
            raise PathwayError(f"the outcome {self.text!r} has a token on both sides.")

    def values(
        self,
        logits: Float[Tensor, "row step vocab"],
        reference: Float[Tensor, "row step vocab"],
    ) -> Float[Tensor, "row step"]:
        """The outcome of each distribution, in float32 at least. reference: logits of the no-op
        run, for kl."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        logits, reference = logits.to(wide), reference.to(wide)
        if self.kind == "kl":
            base = reference.log_softmax(-1)
            return (base.exp() * (base - logits.log_softmax(-1))).sum(-1)
        mine = logits[..., list(self.tokens)].logsumexp(-1)
        if self.kind == "logprob":
            return mine - logits.logsumexp(-1)
        if self.kind == "logit":
            return mine - logits.mean(-1)
        return mine - logits[..., list(self.foils)].logsumexp(-1)

    @property
    def name(self) -> str:
        """For titles, with the steps that count and the unit."""
        steps = "the first step" if self.first == 1 else f"the first {self.first} steps"
        return self._what + ("" if self.first is None else f" at {steps}") + f" ({self.unit})"

    @property
    def unit(self) -> str:
        """Of its values: natural logarithms of probabilities and their differences, or logits."""
        return "logits" if self.kind == "logit" else "nats"

    @property
    def _what(self) -> str:
        if self.kind == "kl":
            return "KL from the no-op run"
        words = self.text.partition(":")[2].split("//")
        first, *second = (" or ".join(map(repr, side.split("|"))) for side in words)
        said = {"logprob": "log probability of", "logit": "logit of", "difference": "log odds of"}
        against = f" against {second[0]}" if second else ""
        return f"{said[self.kind]} {first}{against}"


def parse_outcome(text: str, tokenizer: Any) -> Outcome:
    """Read an outcome; raises `PathwayError` that says what is wrong with it.

    tokenizer: of the model; words must be one token of it each.
    """
    kind, sides = read_sides(text)
    first, second = (tuple(_id(word, tokenizer) for word in side) for side in sides)
    text = text.strip() if kind == "kl" else text
    return Outcome(kind, first, second, text, _steps(text)[1])


def _steps(text: str) -> tuple[str, int | None]:
    """An outcome without the number of steps behind its kind, and that number."""
    named = re.match(r"\s*(\w+)\[(\d+)\]", text)
    if named is None:
        return text, None
    return named[1] + text[named.end() :], int(named[2])


def read_sides(text: str) -> tuple[OutcomeKind, tuple[list[str], list[str]]]:
    """The kind of an outcome and the words on its two sides, without a model; raises `PathwayError`
    for what is no outcome."""
    text, first_steps = _steps(text)
    if first_steps == 0:
        raise PathwayError(f"the outcome {text!r} counts no step: 1 or more are expected.")
    if text.strip() == "kl":
        return "kl", ([], [])
    name, colon, rest = text.partition(":")
    kind = next((k for k in get_args(OutcomeKind) if k == name.strip() != "kl"), None)
    if not colon or kind is None or not rest:
        raise PathwayError(
            f"unknown outcome {text!r}: expected kl, logprob:TOKENS, logit:TOKENS or "
            "difference:TOKENS//TOKENS, with TOKENS separated by |."
        )
    first, slashes, second = rest.partition("//")
    if bool(slashes) != (kind == "difference"):
        raise PathwayError(
            f"the outcome {text!r}: difference has two sides, TOKENS//TOKENS, and the others one."
        )
    sides = [part.split("|") if part else [] for part in (first, second)]
    if any(not word for side in sides for word in side):
        raise PathwayError(f"the outcome {text!r} has an empty token: remove the | too many.")
    return kind, (sides[0], sides[1])


def _id(word: str, tokenizer: Any) -> int:
    number = re.fullmatch(r"#(\d+)", word)
    if number:
        return int(number[1])
    ids = tokenizer.encode(word, add_special_tokens=False)
    if len(ids) != 1:
        pieces = [tokenizer.decode([i]) for i in ids]
        raise PathwayError(
            f"{word!r} is {len(ids)} tokens of this model ({pieces}), an outcome needs one: name "
            "its first token, or another word. White space counts."
        )
    return int(ids[0])


def check_outcome(outcome: Outcome, vocab: int) -> None:
    """Raise `PathwayError` for ids that the model does not have."""
    wrong = [t for t in (*outcome.tokens, *outcome.foils) if not 0 <= t < vocab]
    if wrong:
        raise PathwayError(
            f"the outcome {outcome.text!r} names the tokens {wrong}, the model has 0 to "
            f"{vocab - 1}."
        )


def steps_mean(
    values: Float[Tensor, "row step"], lengths: Tensor, first: int | None
) -> Float[Tensor, " row"]:
    """Mean over the steps of each response, or over its first ones."""
    steps = torch.arange(values.shape[1], device=values.device)
    counted = lengths if first is None else lengths.clamp(max=first)
    inside = steps[None] < counted[:, None].to(values.device)
    return torch.where(inside, values, 0).sum(1) / inside.sum(1)
