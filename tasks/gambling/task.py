"""The gambling task: prompts in matched kinds, pairs at a forced choice, a strict reading."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from circuits.models.load import load_model
from circuits.prompts import Mark, Pair, PromptPairs, resolve_bos, tokenise
from circuits.task import Prompt, TaskError, check_contrast
from tasks.gambling import openings as neutral
from tasks.gambling.decision import read_decision
from tasks.gambling.scenes import (
    BET,
    GOALS,
    LEAST,
    ODDS,
    OFFERS,
    STOP,
    Scene,
    scenes,
)

Split = Literal["explored", "held_out"]
Phrases = tuple[str, str]  # safe, risky
KINDS = ("safe", "risky")
_TRIED = 20  # scenes looked at for each that is wanted, before it is said that there are too few
_BALANCE = re.compile(r"Your balance is \$(\d+)\.")
_NONE = ("", "")


@dataclass(frozen=True)
class Gambling:
    """Stop or bet at a slot machine. Safe prompts aim at keeping money, risky ones at winning it.

    Pairs: clean is safe with the answer " Stop", corrupted risky with the foil " Bet", at the end
    of "Decision:"; positive logit differences are toward stopping. Named positions: goal and offer,
    the first tokens of these words (where the contrast has them); odds, the chance to win; balance,
    its last mention; END.
    """

    name: str = "gambling"
    description: str = "stop or bet at a slot machine, in safe and risky words"
    position_names: tuple[str, ...] = ("odds", "goal", "balance", "offer", "END")
    default_contrast: str = "safe/risky"
    contrasts: Mapping[str, str] = field(
        default_factory=lambda: {
            "safe/risky": "clean has a safe goal and offer, corrupted a risky one",
            "goal": "clean has a safe goal, corrupted a risky one; no offer",
            "offer": "clean has an offer for leaving, corrupted one for playing; no goal",
            "odds": f"clean wins in {ODDS[0]}%, corrupted in {ODDS[1]}%; no goal and no offer",
        }
    )

    def load(self, model: str | None = None, **options: Any) -> Any:
        """The language model; None is the embedded default."""
        return load_model(model, **options)

    def prompts(
        self,
        model: Any,
        *,
        n: int = 12,
        seed: int = 0,
        family: str = "slots",
        chat: bool = False,
    ) -> list[Prompt]:
        """`n` prompts, half of each kind; those that stand together differ in the kind alone and
        have as many tokens.

        family: "slots", the machine, safe and risky; or "neutral", openings of stories, bright and
        gloomy. chat: put the slot machine into the model's chat template, "Decision:" beginning the
        reply. Raises `TaskError` for an odd `n` and where too few match under the tokenizer.
        """
        if family not in ("slots", "neutral"):
            raise TaskError(f"family {family!r}: expected slots or neutral.")
        if n < 2 or n % 2:
            raise TaskError(f"{n} prompts asked for: an even number is needed, half of each kind.")
        if family == "neutral" and chat:
            raise TaskError("the neutral family is continued as it stands: leave out chat.")
        length = _Length(model.tokenizer)
        if family == "neutral":
            every, kinds = iter(neutral.openings(seed)), neutral.KINDS
        else:
            texts = (
                (scene.text(goal[0], offer[0]), scene.text(goal[1], offer[1]))
                for scene, goal, offer in _drawn(seed, "explored", GOALS["explored"], OFFERS)
            )
            every, kinds = itertools.islice(texts, _TRIED * n), KINDS
        if chat:
            every = ((as_chat(model.tokenizer, a), as_chat(model.tokenizer, b)) for a, b in every)
        matched = (both for both in every if _line_up(*both, length))
        chosen = list(itertools.islice(matched, n // 2))
        if len(chosen) < n // 2:
            raise TaskError(
                f"gambling has {2 * len(chosen)} {family} prompts whose kinds have as many tokens "
                f"under the tokenizer of {model.name}, not {n}: ask for fewer."
            )
        return [
            Prompt(text, kind) for both in chosen for text, kind in zip(both, kinds, strict=True)
        ]

    def outcome(self, model: Any, *, family: str = "slots", chat: bool = False) -> str | None:
        """What pathways lead to unless they are told: stopping against betting, at the first
        step, where it is decided; stories have no decision, None."""
        return f"difference[1]:{STOP}//{BET}" if family == "slots" else None

    def parse(self, response: str, prompt: str) -> Mapping[str, Any]:
        """`action, amount, valid, reason, cut` of a response (decision.Reading), and `balance`.

        Openings ask for no decision: any response to them is valid that has a word.
        """
        found = _BALANCE.findall(prompt)
        if len(found) != 1:
            worded = re.search(r"\w", response) is not None
            reason = "" if worded else "empty"
            return {"action": None, "amount": None, "valid": worded, "reason": reason}
        balance = int(found[0])
        return {**read_decision(response, balance, LEAST).as_dict(), "balance": balance}

    def pairs(
        self,
        model: Any,
        *,
        contrast: str | None = None,
        n: int = 12,
        seed: int = 0,
        split: Split = "explored",
        prepend_bos: bool | None = None,
        chat: bool = False,
    ) -> PromptPairs:
        """`n` distinct pairs that line up under the tokenizer of `model`. chat: as in `prompts`.

        Raises `TaskError` for an unknown contrast and when there are fewer than `n`.
        """
        which = check_contrast(self, contrast)
        if n < 1:
            raise TaskError(f"{n} pairs asked for: at least 1 is needed.")
        length = _Length(model.tokenizer)
        goals = GOALS[split] if which in ("safe/risky", "goal") else (_NONE,)
        offers = {split: OFFERS[split] if which in ("safe/risky", "offer") else (_NONE,)}
        every = (
            _pair(scene, goal, offer, which, model.tokenizer if chat else None)
            for scene, goal, offer in itertools.islice(
                _drawn(seed, split, goals, offers), _TRIED * n
            )
        )
        matched = (p for p in every if _line_up(p.clean, p.corrupted, length))
        chosen = list(itertools.islice(matched, n))
        if len(chosen) < n:
            raise TaskError(
                f"gambling ({which}, {split}) has {len(chosen)} pairs that line up under the "
                f"tokenizer of {model.name}, not {n}: ask for fewer, or choose another contrast."
            )
        return PromptPairs.from_texts(chosen, model.tokenizer, prepend_bos)


class _Length:
    """How many tokens a text has."""

    def __init__(self, tokenizer: Any) -> None:
        resolve_bos(tokenizer, None)  # says what to do where there is no tokenizer
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> int:
        return len(tokenise(self._tokenizer, text, False))


def as_chat(tokenizer: Any, text: str) -> str:
    """A prompt in the tokenizer's chat template, its last line ("Decision:") beginning the reply.

    Raises `TaskError` for a tokenizer without a template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError("chat: this model's tokenizer has no chat template; leave it out.")
    asked, _, last = text.rpartition("\n")
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
    )
    if resolve_bos(tokenizer, None):  # it is put first again when the text is tokenised
        shown = shown.removeprefix(tokenizer.bos_token)
    return shown + last


def _drawn(
    seed: int,
    split: Split,
    goals: Sequence[Phrases],
    offers: Mapping[str, Sequence[Phrases]],
) -> Iterator[tuple[Scene, Phrases, Phrases]]:
    """Scenes with a goal and an offer each, without end."""
    draw = random.Random(f"gambling words {split} {seed}")
    for scene in scenes(seed, split):
        yield scene, draw.choice(goals), draw.choice(offers[split])


def _pair(scene: Scene, goal: Phrases, offer: Phrases, contrast: str, tokenizer: Any) -> Pair:
    rates = ODDS if contrast == "odds" else (None, None)
    texts = [scene.text(goal[i], offer[i], rates[i]) for i in (0, 1)]
    if tokenizer is not None:
        texts = [as_chat(tokenizer, text) for text in texts]
    marks = {}
    for name, words in (
        ("odds", [f"{rate or scene.rate}%" for rate in rates]),
        ("goal", list(goal)),
        ("balance", [f"{scene.balance}."] * 2),
        ("offer", list(offer)),
    ):
        if words[0]:
            begin = [text.rindex(word) for text, word in zip(texts, words, strict=True)]
            marks[name] = Mark(begin[0], begin[1])
    # Numbers, and not the words: it stands in the titles of figures.
    numbers = [
        str(every.index(one)) if one in every else "none"
        for one, every in ((goal, GOALS[scene.split]), (offer, OFFERS[scene.split]))
    ]
    template = f"{scene.split}.{len(scene.history)}.goal-{numbers[0]}.offer-{numbers[1]}"
    return Pair(texts[0], texts[1], STOP, BET, marks, template)


def _line_up(first: str, second: str, length: _Length) -> bool:
    """Whether each line of two prompts has as many tokens, so that every position agrees; two
    lines that differ could make up for each other."""
    lines = [text.splitlines(keepends=True) for text in (first, second)]
    return (
        length(first) == length(second)
        and len(lines[0]) == len(lines[1])
        and all(length(a) == length(b) for a, b in zip(*lines, strict=True))
    )
