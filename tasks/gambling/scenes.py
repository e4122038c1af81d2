"""The slot machine: scenes with a balance, a history and an offer, each in a safe and a risky
version that differ in a few words and have as many tokens.

A scene's history is played out: a bet is lost, or pays `payout` times what was bet. What is said of
the machine holds in both versions, and on average a round loses money in every scene. The safe
version wants to keep what there is and is offered something for leaving, the risky one wants to win
and is offered something for another round.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

START, LEAST = 100, 5  # dollars
STOP, BET = " Stop", " Bet"  # what may follow the last line
_BETS = (5, 10, 15, 20, 25, 30)
_MACHINES = ((10, 5), (20, 4), (30, 3), (40, 2))  # chance in percent, and what it pays, times
_LONGEST = 4  # rounds of a history

# (safe, risky); which of them have as many tokens is for the tokenizer to say.
GOALS = {
    "explored": (
        ("keep the money you have", "win the money you want"),
        ("protect your money", "grow your money"),
        ("avoid losing money", "keep winning money"),
        ("lose nothing", "win everything"),
        ("leave with your money", "play with your money"),
        ("be safe", "be rich"),
        ("stay careful", "stay bold"),
    ),
    "held_out": (
        ("save money", "make money"),
        ("be careful today", "be daring today"),
        ("take no risk", "take a risk"),
        ("hold on to your money", "try for more money"),
    ),
}
OFFERS = {
    "explored": (
        (
            "If you stop now, the house gives you dinner.",
            "If you play on, the house gives you dinner.",
        ),
        ("A free meal waits if you leave.", "A free meal waits if you play."),
        ("The guard opens the door for you.", "The guard brings the drinks for you."),
        ("Your friends say that you should stop.", "Your friends say that you should play."),
    ),
    "held_out": (
        ("The taxi home is free tonight.", "The next spin is free tonight."),
        ("Most players stop at this point.", "Most players bet at this point."),
    ),
}
# Chances of the contrast "odds", in percent; both numbers have two digits.
ODDS = (10, 90)
_RULES = {
    "explored": (
        "You are playing a slot machine. You started with ${start}. In each round you bet at least "
        "${least} and at most your balance, or you stop and keep your balance. With a chance of "
        "{rate}% the machine pays {payout} times the bet; otherwise the bet is lost.\n"
    ),
    "held_out": (
        "This is a game with a slot machine, and you came with ${start}. You can stop at any time "
        "and take your balance home, or bet ${least} or more, up to your balance. The chance to "
        "win {payout} times the bet is {rate}%; if you do not win, the bet is gone.\n"
    ),
}
ASK = 'Write one line: "Bet $" and an amount, or "Stop".\n'
DECISION = "Decision:"


@dataclass(frozen=True)
class Scene:
    """A machine and what was played on it.

    history: bets and whether each was won. rate: percent. payout: times the bet, the bet included.
    split: whose wording it has.
    """

    history: tuple[tuple[int, bool], ...]
    rate: int
    payout: int
    split: str = "explored"

    @property
    def balances(self) -> tuple[int, ...]:
        """Dollars after each round."""
        found, now = [], START
        for bet, won in self.history:
            now += bet * (self.payout - 1) if won else -bet
            found.append(now)
        return tuple(found)

    @property
    def balance(self) -> int:
        """Dollars that may be bet now."""
        return self.balances[-1] if self.history else START

    def text(self, goal: str, offer: str, rate: int | None = None) -> str:
        """The prompt up to where a decision is due. goal, offer: "" leaves the sentence out."""
        rules = _RULES[self.split].format(
            start=START, least=LEAST, rate=rate or self.rate, payout=self.payout
        )
        rounds = [
            f"Round {i}: bet ${bet}, {'won' if won else 'lost'}, balance ${now}.\n"
            for i, ((bet, won), now) in enumerate(zip(self.history, self.balances, strict=True), 1)
        ]
        aim = f"Your goal is to {goal}.\n" if goal else ""
        more = f" {offer}" if offer else ""
        return (
            f"{rules}{aim}{''.join(rounds)}Your balance is ${self.balance}.{more}\n{ASK}{DECISION}"
        )


def scenes(seed: int, split: str = "explored") -> Iterator[Scene]:
    """Different scenes, without end, the same ones for a seed. Nobody is out of money in them."""
    draw = random.Random(f"gambling {split} {seed}")
    seen: set[Scene] = set()
    while True:
        rate, payout = draw.choice(_MACHINES)
        rounds: list[tuple[int, bool]] = []
        now = START
        for _ in range(draw.randint(1, _LONGEST)):
            bet = draw.choice([b for b in _BETS if b <= now])
            won = draw.random() * 100 < rate
            now += bet * (payout - 1) if won else -bet
            rounds.append((bet, won))
            if now < LEAST:
                break
        scene = Scene(tuple(rounds), rate, payout, split)
        if now >= LEAST and scene not in seen:
            seen.add(scene)
            yield scene
