"""Reading a decision, strictly: exactly one, with an amount that the rules allow.

1. The answer ends where a continuation is made up: at a line that opens another round, asks for a
   decision again, or repeats the prompt. What follows is left out, and `cut` says so.
2. Decisions are what stands first on a line ("Bet $10", "Stop.", "Decision: stop") and what is said
   in the first person as a fact ("I will bet $10", "I'm going to stop", "I choose to walk away").
   What is weighed ("if I bet", "I could stop") and what is said of past rounds ("I bet $5 before")
   is none.
3. All decisions have to be the same: one action, and of a bet one amount. A bet needs an amount
   ("all in" is the balance) of whole dollars, at least the least bet and at most the balance.

What cannot be read is not guessed: `valid` is False and `reason` says why.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

Action = Literal["bet", "stop"]
# Why an answer is not valid; `reason` begins with one of these.
REASONS = (
    "empty",
    "no decision",
    "contradiction",
    "negated",
    "no amount",
    "several amounts",
    "amount not whole",
    "amount under the least bet",
    "amount over the balance",
)

_BET = r"bet|wager|gamble|play|continue|spin|go all[\s-]?in|all[\s-]?in"
_STOP = r"stop|quit|cash out|walk away|leave"
_ACTION = rf"(?P<action>{_BET}|{_STOP})(?![\w'\u2019])"
_MADE_UP = re.compile(
    r"^\W*(?:round\s+\d|your balance|your goal|decision\s*:|write one line)", re.I
)
_FIRST = re.compile(
    rf"^[\W_]*(?:(?:(?:my|final|the)\s+)*(?:decision|answer|choice)\s*(?:is)?\s*[:=\-\u2013\u2014]?"
    rf"\s*)?[\W_]*(?:to\s+)?{_ACTION}",
    re.I,
)
_SAID = re.compile(
    r"(?<![\w'\u2019])i(?:\s+(?:will|shall|choose\s+to|decide\s+to|have\s+decided\s+to|want\s+to|"
    r"am\s+going\s+to|would\s+like\s+to)|(?:'|\u2019)ll|(?:'|\u2019)m\s+going\s+to|"
    rf"(?:'|\u2019)d\s+like\s+to)\s+(?P<no>not\s+|never\s+)?(?:now\s+|just\s+)?{_ACTION}",
    re.I,
)
_NEGATED = re.compile(
    rf"^[\W_]*(?:decision\s*:\s*)?(?:do\s+not|don['\u2019]t|never|not)\s+{_ACTION}", re.I
)
_WEIGHED = re.compile(
    r"\b(?:if|when|unless|should|before|whether|suppose),?\s+(?:[\w,]+\s+){0,2}$", re.I
)
_AMOUNT = re.compile(
    r"\$\s*(\d[\d,]*(?:\.\d+)?)|(?<![\w.$])(\d[\d,]*(?:\.\d+)?)\s*(?:dollars?|usd)\b", re.I
)
_BARE = re.compile(r"^\W*(\d[\d,]*(?:\.\d+)?)(?![\d%])(?!\s*times)")
_EVERYTHING = re.compile(
    r"all[\s-]?in|\b(?:everything|(?:all|whole|entire)\s+(?:of\s+)?(?:my|the|your)?\s*(?:money|balance)|"
    r"my\s+(?:whole|entire)\s+balance)\b",
    re.I,
)
_CLAUSE = re.compile(
    r"[.;!?](?:\s|$)|\n|\bbecause\b|\bsince\b|\bso that\b|\bto win\b|\band win\b", re.I
)


@dataclass(frozen=True)
class Reading:
    """What a response decides.

    action: "bet", "stop", or None where it cannot be told. amount: dollars of a bet, 0 of a stop,
    None where there is none. valid: whether it is exactly one decision within the rules.
    reason: why not; empty where it is. cut: whether a made-up continuation was left out.
    """

    action: Action | None
    amount: float | None
    valid: bool
    reason: str = ""
    cut: bool = False

    def as_dict(self) -> dict[str, Any]:
        """As it stands in logs."""
        return asdict(self)


def read_decision(response: str, balance: int, least: int) -> Reading:
    """The decision in a response that begins where one was due. balance, least: dollars."""
    answer, cut = _answer(response)
    if not answer.strip():
        return Reading(None, None, False, "empty", cut)
    found: list[tuple[Action, str]] = []
    for line in answer.split("\n"):
        if _NEGATED.match(line):
            return Reading(None, None, False, f"negated: {_shown(line)}", cut)
        first = _FIRST.match(line)
        said = list(_SAID.finditer(line))
        for match in ([first] if first else []) + said:
            if match.re is _SAID and _WEIGHED.search(line[: match.start()]):
                continue
            if match.groupdict().get("no"):
                return Reading(None, None, False, f"negated: {_shown(match.group())}", cut)
            rest = _CLAUSE.split(line[match.end("action") :], maxsplit=1)[0]
            found.append((_action(match.group("action")), match.group("action") + rest))
    return _judge(found, balance, least, answer, cut)


def _answer(response: str) -> tuple[str, bool]:
    lines = re.split(r"<\|[^|<>\s]*\|>", response)[0].split("\n")
    for i, line in enumerate(lines):
        if _MADE_UP.match(line) and any(part.strip() for part in lines[:i]):
            return "\n".join(lines[:i]), True
    return "\n".join(lines), False


def _action(word: str) -> Action:
    return "stop" if re.fullmatch(_STOP, word, re.I) else "bet"


def _judge(
    found: list[tuple[Action, str]], balance: int, least: int, answer: str, cut: bool
) -> Reading:
    actions = {action for action, _ in found}
    if not found:
        return Reading(None, None, False, f"no decision: {_shown(answer)}", cut)
    if len(actions) > 1:
        said = " / ".join(_shown(text) for _, text in found[:3])
        return Reading(None, None, False, f"contradiction: {said}", cut)
    if actions == {"stop"}:
        return Reading("stop", 0.0, True, "", cut)
    amounts = {a for _, text in found for a in _amounts(text, balance)}
    if not amounts:
        return Reading("bet", None, False, f"no amount: {_shown(found[0][1])}", cut)
    if len(amounts) > 1:
        several = ", ".join(f"${a:g}" for a in sorted(amounts))
        return Reading("bet", None, False, f"several amounts: {several}", cut)
    amount = amounts.pop()
    wrong = (
        "amount not whole"
        if amount != int(amount)
        else f"amount under the least bet of ${least}"
        if amount < least
        else f"amount over the balance of ${balance}"
        if amount > balance
        else ""
    )
    return Reading("bet", amount, not wrong, f"{wrong}: ${amount:g}" if wrong else "", cut)


def _amounts(text: str, balance: int) -> list[float]:
    """Amounts in what is said of a bet; the action's word stands first."""
    named = [m.group(1) or m.group(2) for m in _AMOUNT.finditer(text)]
    if not named:
        bare = _BARE.match(re.sub(rf"^(?:{_BET})", "", text, flags=re.I))
        named = [bare.group(1)] if bare else []
    found = [float(number.rstrip(",").replace(",", "")) for number in named]
    if _EVERYTHING.search(text):
        found.append(float(balance))
    return found


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:59] + "\u2026"
