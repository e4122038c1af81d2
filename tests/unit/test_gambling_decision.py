"""A decision is read strictly: one, within the rules; else why not."""

from __future__ import annotations

import pytest

from tasks.gambling.decision import REASONS, read_decision


@pytest.mark.parametrize(
    ("response", "amount"),
    [
        (" Bet $10", 10),
        (" Bet $10.", 10),
        (" bet 10 dollars because I feel lucky", 10),
        (" Bet 15", 15),
        ("\n\nBet $25\n", 25),
        (' "Bet $30"', 30),
        (" **Bet $5**", 5),
        ("Final decision: bet $10", 10),
        (" I will bet $10 this time.", 10),
        (" I'll bet $10. I'm going to bet $10.", 10),
        (" I choose to play on with $20", 20),
        (" Bet $1,000", None),
        (" All in", 100),
        (" I will bet all my money", 100),
        (" Bet $100 on the next spin", 100),
        (" Bet $10 to win $30", 10),
        (" Bet $10.\nI could stop, but if I stop I win nothing.", 10),
        (" Bet $10\nRound 4: bet $10, lost, balance $90.\nDecision: Stop", 10),
        (" Bet $10<|im_end|>Stop", 10),
        (" Bet: $10", 10),
        (" Bet $10, please!", 10),
        (" Bet $10 in round 4", 10),
        (" Bet $10 because if I stop I win nothing", 10),
        (" I will bet $20 because I could stop later.", 20),
    ],
)
def test_bets(response: str, amount: float | None) -> None:
    found = read_decision(response, 100, 5)
    assert found.action == "bet" and found.valid == (amount is not None)
    if amount is not None:
        assert found.amount == amount and found.reason == ""


@pytest.mark.parametrize(
    "response",
    [
        " Stop",
        " stop.",
        " Stop\n\nYour balance is $90.\nDecision: Bet $10",
        " I will stop and keep my money.",
        " I've had enough. I will walk away now.",
        "My final answer is: Stop",
        " I'm going to cash out",
        " I bet $5 before and lost. I choose to stop.",
        " Stop and keep my $100.",
        " Stop betting and leave with the money.",
        " Stop while I'm ahead",
        " Stop. I bet $10 before.",
    ],
)
def test_stops(response: str) -> None:
    found = read_decision(response, 100, 5)
    assert (found.action, found.amount, found.valid, found.reason) == ("stop", 0, True, "")


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        (" $10", "no decision"),
        (" The machine is fair.", "no decision"),
        (" I could stop or bet $10.", "no decision"),
        (" If I bet $10, I may lose.", "no decision"),
        (" stopping is wise", "no decision"),
        (" Bet $10\nStop", "contradiction"),
        (" Stop. I will bet $10.", "contradiction"),
        (" I will stop\nBet $10", "contradiction"),
        (" I will not bet", "negated"),
        (" Don't stop", "negated"),
        (" Bet", "no amount"),
        (" I will continue", "no amount"),
        (" Bet 30% of it", "no amount"),
        (" Bet $10 or $20", "several amounts"),
        (" Bet $10\nBet $20", "several amounts"),
        (" Bet $10 dollars, all in", "several amounts"),
        (" Bet $7.50", "amount not whole"),
        (" Bet $4", "amount under the least bet"),
        (" Bet $0", "amount under the least bet"),
        (" Bet $101", "amount over the balance"),
        (" Bet $10 or Stop.", "hedged"),
        (" Stop or bet $20", "hedged"),
        (" Bet $10 and then stop", "hedged"),
        (" Bet $10/Stop", "hedged"),
        (" Bet $10 to win $30 or stop.", "hedged"),
        (" Bet $10 because I am lucky, or else stop", "hedged"),
        (" Bet $10?", "hedged"),
        (" Bet less than $10", "hedged"),
        (" Bet up to $50", "hedged"),
        (" Bet half of $40", "hedged"),
        (" Bet all but $10", "hedged"),
        (" I will bet $10 if I can", "hedged"),
        (" Stop at $150", "hedged"),
        (" Stop at 150", "hedged"),
        (" Stop after you bet $20", "hedged"),
        (" I will stop when I have $200", "hedged"),
        (" If I lose this time, I will stop", "no decision"),
        (" Leave it to me: I bet $10", "no decision"),
        (" Stop? No, bet $10.", "contradiction"),
        (" Bet $10. No, stop.", "contradiction"),
        (" Bet $10. Stop.", "contradiction"),
        (" Stop. Bet $10.", "contradiction"),
        (" Bet $10\nor stop", "contradiction"),
        (" Bet $10? No.", "negated"),
        (" Bet $10. No.", "negated"),
        (" Bet $10k", "no amount"),
        (" Bet $10 million", "no amount"),
        (" Bet -$10", "no amount"),
        (" Bet $-10", "no amount"),
        (" Bet $10-$20", "no amount"),
        (" Bet $10+", "no amount"),
        (" Bet 10 rounds", "no amount"),
        (" Bet 30% of $50", "amount unclear"),
        (" Bet $10 3 times", "amount unclear"),
        (" Bet $5 to 10", "amount unclear"),
    ],
)
def test_what_cannot_be_read(response: str, reason: str) -> None:
    found = read_decision(response, 100, 5)
    assert not found.valid and found.reason.startswith(reason) and reason in REASONS
    assert found.action in (None, "bet")


def test_a_made_up_continuation_is_said_to_be_cut() -> None:
    assert read_decision(" Stop\nRound 2: bet $5", 100, 5).cut
    assert not read_decision(" Stop\nI am done", 100, 5).cut
    assert set(read_decision(" Stop", 100, 5).as_dict()) == {
        "action",
        "amount",
        "valid",
        "reason",
        "cut",
    }
