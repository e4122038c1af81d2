"""The gsm8k_thoughts task: which continuous thought carries which value of a computation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from circuits.corpora.documents import Source
from circuits.labelled import Labelled
from circuits.models.hooked import HookedModel
from circuits.prompts import PromptPairs
from circuits.sites import Site
from circuits.task import Inputs, TaskError, check_contrast
from tasks.gsm8k_thoughts.answered import (
    answer_chains,
    attention_places,
    thought_attention,
    thought_vectors,
)
from tasks.gsm8k_thoughts.documents import ChainTexts
from tasks.gsm8k_thoughts.model import load_thinking, thoughts_of
from tasks.gsm8k_thoughts.pairs import FAMILIES, as_pair, chain_pairs, chain_vocabulary
from tasks.gsm8k_thoughts.words import answer_words, word_pairs

WORDS = "words"  # the contrast of word problems, for published checkpoints
_NO_STEPS = "word problems have the steps that their templates have: leave steps out."


@dataclass(frozen=True)
class ContinuousThoughts:
    """Problems that differ in an operand, answered after continuous thoughts.

    The embedded CODI solves chains of arithmetic steps (`tasks.gsm8k_thoughts.chains`),
    published ones solve word problems (contrast `words`). Only pairs of which the model answers
    both problems right are given. Named positions: operand, where the problems differ; bot; t1 to
    t6, the thoughts; eot; answer, the last token, which is END too.
    """

    name: str = "gsm8k_thoughts"
    description: str = "which continuous thought carries which value of a computation"
    position_names: tuple[str, ...] = (
        "operand",
        "bot",
        *(f"t{i}" for i in range(1, 7)),
        "eot",
        "answer",
        "END",
    )
    default_contrast: str = "first"
    contrasts: Mapping[str, str] = field(
        default_factory=lambda: {
            **FAMILIES,
            WORDS: "word problems of GSM-Symbolic that differ in one number (extra gsm)",
        }
    )

    def load(self, model: str | None = None, **options: Any) -> HookedModel:
        """The model that thinks; None is the embedded CODI. See
        `tasks.gsm8k_thoughts.model.load_thinking`."""
        return load_thinking(model, **options)

    def inputs(self, model: HookedModel, tokens: Int[Tensor, "row position"]) -> Inputs:
        """The prompts with their thoughts to be made while the model runs."""
        return thoughts_of(model).inputs(tokens.to(model.device))

    def documents(self, model: HookedModel) -> Source:
        """Chains with their answers, from the side that the model was trained on."""
        thoughts = thoughts_of(model)
        vocabulary = chain_vocabulary(model)
        assert thoughts.steps is not None
        return ChainTexts(vocabulary, thoughts.steps, thoughts)

    @property
    def vector_positions(self) -> tuple[str, ...]:
        """The thoughts."""
        return self.position_names[2:8]

    @property
    def attention_positions(self) -> tuple[str, ...]:
        """Which thought, or the answer, looks at which thought: t3<t1 is from t3 to t1."""
        return tuple(f"{a}<{b}" for a, b in attention_places((*self.vector_positions, "answer")))

    def answered(
        self,
        model: HookedModel,
        *,
        n: int,
        seed: int = 0,
        steps: int | None = None,
        temperature: float | None = None,
    ) -> list[Labelled]:
        """Problems with the model's answers: chains (`tasks.gsm8k_thoughts.answered`), or for
        published checkpoints word problems of GSM-Symbolic (`tasks.gsm8k_thoughts.words`).

        steps: of chains; None for the most the model was trained with. temperature: 0 takes the
            likeliest answer. By default it is 0 for word
            problems and 2 for chains, as the embedded model's likeliest answer is hardly ever
            wrong.
        """
        if thoughts_of(model).vocabulary is None:
            if steps is not None:
                raise TaskError(_NO_STEPS)
            return answer_words(model, n, seed, temperature=temperature or 0.0)
        heat = 2.0 if temperature is None else temperature
        return answer_chains(model, n, seed, steps=steps, temperature=heat)

    def vectors(
        self, model: HookedModel, records: Sequence[Labelled], sites: Sequence[Site]
    ) -> Float[Tensor, "record site position d_model"]:
        """The activations at `sites` and the thoughts, one row a record."""
        return thought_vectors(model, records, sites)

    def attention(
        self, model: HookedModel, records: Sequence[Labelled], layers: Sequence[int]
    ) -> Float[Tensor, "record layer place head"]:
        """How much every head looks from one thought, or the answer's position, to another."""
        return thought_attention(model, records, layers)

    def pairs(
        self,
        model: HookedModel,
        *,
        contrast: str | None = None,
        n: int = 12,
        seed: int = 0,
        split: Literal["explored", "held_out"] = "explored",
        prepend_bos: bool | None = None,
        steps: int | None = None,
    ) -> PromptPairs:
        """`n` pairs that the model solves on both sides.

        steps: of chains; None for the most the model was trained with.
        prepend_bos: as the model was trained; anything else is refused. Raises `TaskError` for an
        unknown contrast, one that this kind of model does not have, and when there are fewer.
        """
        family = check_contrast(self, contrast)
        thoughts = thoughts_of(model)
        if prepend_bos not in (None, thoughts.tokens.prepend_bos):
            raise TaskError(
                f"prepend_bos={prepend_bos}, but {model.name} was trained with "
                f"{thoughts.tokens.prepend_bos}: leave it out."
            )
        if n < 1:
            raise TaskError(f"{n} pairs asked for: at least 1 is needed.")
        chains = thoughts.vocabulary is not None
        if chains == (family == WORDS):
            has = ", ".join(FAMILIES) if chains else WORDS
            raise TaskError(f"{model.name} has the contrasts {has}, not {family}.")
        if not chains:
            if steps is not None:
                raise TaskError(_NO_STEPS)
            return word_pairs(model, n, seed, split)
        couples = chain_pairs(model, family, n, seed, split, steps)
        made = [as_pair(model, *couple, family) for couple in couples]
        return PromptPairs.from_texts(made, model.tokenizer, False)


task = ContinuousThoughts()
