"""Hypotheses about latents: a statement, what it is about, and the threshold of its test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from circuits.errors import CircuitsError
from circuits.tokens import visible

Kind = Literal["label", "token", "before", "class", "source"]
Claim = Literal["fires_on", "raises", "lowers"]
Origin = Literal["evidence", "person"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CLAIMS: tuple[Claim, ...] = get_args(Claim)
# What a latent can be said to raise: outputs of the model, not what it reads.
OUTPUTS: tuple[Kind, ...] = ("label", "token", "class")


class HypothesisError(CircuitsError):
    """A hypothesis that cannot be stated, or data on which it cannot be tested."""


@dataclass(frozen=True)
class Condition:
    """A class of examples, or of the model's outputs.

    kind: "label" of an image; "token" at the position; "before", the token before it; "class" of
        the token at the position (classes.py); "source" of the document.
    value: the label's name, the token's text or its id, the class or the source.
    """

    kind: Kind
    value: str | int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HypothesisError(f"unknown kind {self.kind!r}: expected {', '.join(KINDS)}.")
        if isinstance(self.value, int) and self.kind not in ("token", "before"):
            raise HypothesisError(f"{self.kind} {self.value}: a number names tokens only.")
        if self.value == "":
            raise HypothesisError(f"{self.kind}: it is empty.")

    @property
    def text(self) -> str:
        """In words, white space made visible."""
        if isinstance(self.value, int):
            named = f"number {self.value}"
        else:
            named = visible(self.value) if self.kind in ("token", "before") else self.value
        words = {
            "label": "the label",
            "token": "the token",
            "before": "what follows the token",
            "class": "tokens of the class",
            "source": "documents of",
        }
        return f"{words[self.kind]} {named}"


@dataclass(frozen=True)
class Hypothesis:
    """That a latent is active on a class of examples, or that adding it raises or lowers outputs.

    site: where the latent's SAE reads. threshold: an enrichment for `fires_on`, logits for the
    others; None takes the run's. origin: whether evidence or a person made it.
    """

    site: str
    latent: int
    claim: Claim
    about: Condition
    threshold: float | None = None
    note: str = ""
    origin: Origin = "evidence"

    def __post_init__(self) -> None:
        if self.claim not in CLAIMS:
            raise HypothesisError(f"unknown claim {self.claim!r}: expected {', '.join(CLAIMS)}.")
        if self.latent < 0:
            raise HypothesisError(f"latent {self.latent} at {self.site}: they count from 0.")
        if self.claim != "fires_on" and self.about.kind not in OUTPUTS:
            raise HypothesisError(
                f"{self.claim} {self.about.kind}: expected one of {', '.join(OUTPUTS)}, which are "
                "outputs of a model."
            )
        least = 1.0 if self.claim == "fires_on" else 0.0
        # Written so that NaN is refused too.
        if self.threshold is not None and not least <= self.threshold < float("inf"):
            raise HypothesisError(
                f"{self.claim} with the threshold {self.threshold}: expected {least:g} or more"
                f"{' (an enrichment)' if least else ' (logits)'}."
            )

    @property
    def statement(self) -> str:
        """In words, without the latent."""
        verb = "fires on" if self.claim == "fires_on" else self.claim
        return f"{verb} {self.about.text}"
