"""Reading a decision, strictly: exactly one, with an amount that the rules allow.

1. The answer ends where a continuation is made up: at a line that opens another round, asks for a
   decision again, or repeats the prompt. What follows is left out, and `cut` says so.
2. Decisions are what stands first on a line ("Bet $10", "Stop.", "Decision: stop") and what is said
   in the first person as a fact ("I will bet $10", "I'm going to stop", "I choose to walk away").
   What is weighed ("if I bet", "I could stop") and what is said of past rounds ("I bet $5 before")
   is none.
3. All decisions have to be the same: one action, and of a bet one amount. A sentence that begins
   with the other action, also after "no" or "or", contradicts.
4. What a decision is said with must leave it as it is: no question, no alternative ("or"), no
   condition or time ("if", "until", "after"), no bound or part ("up to", "half"), and no word of
   the other action. A reason ("because ...") may hold what it wants.
5. A bet needs an amount ("all in" is the balance) of whole dollars, at least the least bet and at
   most the balance. No other number may stand with it, and none but the balance with a stop.

What cannot be read is not guessed: `valid` is False and `reason` says why. Plain answers in unusual
words are lost this way; how many were not read, and why, stands beside the rates (metrics.py).
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
    "hedged",
    "no amount",
    "several amounts",
    "amount unclear",
    "amount not whole",
    "amount under the least bet",
    "amount over the balance",
)

_BET = r"bet|wager|gamble|play|continue|spin|go all[\s-]?in|all[\s-]?in"
# "Leave it to me" leaves nothing.
_LEAVE = r"leave(?!\s+(?:it|this|that|me|us|(?:the|my)\s+(?:choice|decision|rest|bet))\b)"
_STOP = rf"stop|quit|cash out|walk away|{_LEAVE}"
_STOPPING = rf"{_STOP}|stops|stopping|quits|quitting|cashing out|walking away|leaves|leaving"
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
    r"\b(?:if|when|whenever|unless|whether|suppose|once|until|after)\b|"
    r"\b(?:should|before),?\s+(?:[\w,]+\s+){0,2}$",
    re.I,
)
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_BEFORE = r"(?<![\w.,$%+~<>\u2264\u2265\u2212\u2013\u2014-])"
# Not $10k, $10 million, $10-20, $10+ or 10%.
_AFTER = (
    r"(?!\w|[.,]\d|\s*%|\s*\+|\s*[-\u2013\u2014/*x\u00d7]\s*\$?\d|"
    r"\s*(?:hundred|thousand|grand|million|billion|cents?|percent|times)\b)"
)
_AMOUNT = re.compile(
    rf"{_BEFORE}\$\s*({_NUMBER}){_AFTER}|{_BEFORE}({_NUMBER}){_AFTER}\s*(?:dollars?|usd|bucks)\b",
    re.I,
)
_BARE = re.compile(
    rf"^[\s:=*\"'(\u201c]*({_NUMBER}){_AFTER}"
    r"(?=[^\w\s]|\s*$|\s+(?:on|this|again|now|for|in|at|and|please|here)\b)",
    re.I,
)
_ROUND = re.compile(r"\bround\s+\d+(?![\d.,]*\d)", re.I)
_EVERYTHING = re.compile(
    r"all[\s-]?in|\b(?:everything|(?:all|whole|entire)\s+(?:of\s+)?(?:my|the|your)?\s*(?:money|balance)|"
    r"my\s+(?:whole|entire)\s+balance)\b",
    re.I,
)
_SENTENCE = re.compile(r"(?<=[.;!?])[\"'*\u201d)]*\s+")
_REASON = re.compile(r"\bbecause\b|\bsince\b|\bso that\b", re.I)
_AIM = re.compile(r"\b(?:to|and) win\b", re.I)  # what may be won is no bet
_HEDGE = re.compile(
    r"\?|\b(?:or|if|when|whenever|until|till|unless|after|once|otherwise|but|except|not|never|"
    r"maybe|perhaps|probably|(?:less|more|fewer|lower|higher)\s+than|up\s+to|at\s+(?:least|most)|"
    r"under|over|between|about|around|almost|nearly|minus|half|third|quarter|part|twice|double|"
    r"triple)\b|n['\u2019]t\b|\bno\b(?=\s*(?:$|[^\w\s]|wait\b))",
    re.I,
)
# Turns round what was said before.
_TURNED = r"^[\W_]*(?:(?:no|actually|wait|or|but|then|and|instead|rather|else|otherwise)\W+)*"
_AGAIN = re.compile(rf"{_TURNED}{_ACTION}", re.I)
_TAKEN_BACK = re.compile(r"^\W*no\W*$", re.I)
_OTHER = {
    "bet": re.compile(rf"\b(?:{_STOPPING})(?![\w'\u2019])", re.I),
    "stop": re.compile(rf"\b(?:{_BET})(?![\w'\u2019])", re.I),
}


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
    found: list[_Said] = []
    turned: list[_Said] = []
    for line in answer.split("\n"):
        if _NEGATED.match(line):
            return Reading(None, None, False, f"negated: {_shown(line)}", cut)
        for i, sentence in enumerate(_SENTENCE.split(line)):
            first = _FIRST.match(sentence) if i == 0 else None
            for match in ([first] if first else []) + list(_SAID.finditer(sentence)):
                if match.re is _SAID and _WEIGHED.search(sentence[: match.start()]):
                    continue
                if match.groupdict().get("no"):
                    return Reading(None, None, False, f"negated: {_shown(match.group())}", cut)
                found.append(_Said.of(match, sentence))
            again = _AGAIN.match(sentence)
            if again:
                turned.append(_Said.of(again, sentence))
            if found and _TAKEN_BACK.match(sentence):
                return Reading(None, None, False, f"negated: {_shown(line)}", cut)
    if found:
        found += [one for one in turned if one.action != found[0].action]
    return _judge(found, balance, least, answer, cut)


@dataclass(frozen=True)
class _Said:
    """A decision: its action, and the sentence from the action's word on."""

    action: Action
    text: str

    @classmethod
    def of(cls, match: re.Match[str], sentence: str) -> _Said:
        word = match.group("action")
        return cls(_action(word), word + sentence[match.end("action") :])

    @property
    def terms(self) -> str:
        """Without the reason that is given, and without what may be won."""
        return _AIM.split(_REASON.split(self.text, maxsplit=1)[0], maxsplit=1)[0]

    @property
    def hedged(self) -> bool:
        """Whether it is a question, or holds an alternative, a condition, a bound or a part."""
        stated, *reason = _REASON.split(self.text, maxsplit=1)
        other = _OTHER[self.action]
        if _HEDGE.search(stated) or other.search(stated) or self.text.rstrip("\"'*)").endswith("?"):
            return True
        turn = re.search(r"\b(?:or|else|otherwise)\b.*", "".join(reason), re.I)
        return bool(turn and other.search(turn.group()))


def _answer(response: str) -> tuple[str, bool]:
    lines = re.split(r"<\|[^|<>\s]*\|>", response)[0].split("\n")
    for i, line in enumerate(lines):
        if _MADE_UP.match(line) and any(part.strip() for part in lines[:i]):
            return "\n".join(lines[:i]), True
    return "\n".join(lines), False


def _action(word: str) -> Action:
    return "stop" if re.fullmatch(_STOP, word, re.I) else "bet"


def _judge(found: list[_Said], balance: int, least: int, answer: str, cut: bool) -> Reading:
    actions = {one.action for one in found}
    if not found:
        return Reading(None, None, False, f"no decision: {_shown(answer)}", cut)
    if len(actions) > 1:
        said = " / ".join(_shown(one.text) for one in found[:3])
        return Reading(None, None, False, f"contradiction: {said}", cut)
    hedged = next((f"hedged: {_shown(one.text)}" for one in found if one.hedged), "")
    read = [_amounts(one, balance) for one in found]
    amounts = {amount for one, _ in read for amount in one}
    unclear = next(
        (_shown(one.text) for one, (_, rest) in zip(found, read, strict=True) if rest), ""
    )
    if actions == {"bet"}:
        return _bet(found[0], amounts, hedged, unclear, balance, least, cut)
    if not hedged and (unclear or amounts - {float(balance)}):
        hedged = f"hedged: {_shown(found[0].text)}"  # "stop at $150"
    return (
        Reading(None, None, False, hedged, cut) if hedged else Reading("stop", 0.0, True, "", cut)
    )


def _bet(
    said: _Said,
    amounts: set[float],
    hedged: str,
    unclear: str,
    balance: int,
    least: int,
    cut: bool,
) -> Reading:
    if not amounts:
        return Reading("bet", None, False, f"no amount: {_shown(said.text)}", cut)
    if len(amounts) > 1:
        several = ", ".join(f"${a:g}" for a in sorted(amounts))
        return Reading("bet", None, False, f"several amounts: {several}", cut)
    if hedged:
        return Reading(None, None, False, hedged, cut)
    if unclear:
        return Reading("bet", None, False, f"amount unclear: {unclear}", cut)
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


def _amounts(said: _Said, balance: int) -> tuple[list[float], bool]:
    """(amounts, whether there are other numbers) in what a decision is said with."""
    text = said.terms
    named = [m.group(1) or m.group(2) for m in _AMOUNT.finditer(text)]
    rest = _AMOUNT.sub(" ", text)
    if not named and said.action == "bet":
        rest = re.sub(rf"^(?:{_BET})", "", text, flags=re.I)
        bare = _BARE.match(rest)
        if bare:
            named, rest = [bare.group(1)], rest[bare.end() :]
    found = [float(number.replace(",", "")) for number in named]
    if said.action == "bet" and _EVERYTHING.search(text):
        found.append(float(balance))
    return found, re.search(r"\d", _ROUND.sub("", rest)) is not None


def _shown(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:59] + "\u2026"
