"""Stop or bet at a slot machine, in safe and risky words; and a neutral family of story openings.

`task` is what `circuits.load_task("gambling")` returns; `python -m tasks.gambling` says what a
model can do, `python -m tasks.gambling.decisions LOG...` what was decided in logs.

What the embedded model (smollm2-135m-instruct-q4) can do, measured: it cannot answer. Of 60
responses (6 greedy and 24 at temperature 1, plain and in its chat template, 24 tokens) none was a
decision that could be read; it talks of the game, or bets without an amount. It can choose: where
the decision is due, logit(Stop) - logit(Bet) is +0.67 [+0.54, +0.81] in safe words and +0.22
[+0.08, +0.35] in risky ones, a gap of 0.46 [0.24, 0.70] over 12 pairs, 92% of them ordered; neither
is its most probable token. Goal and offer alone do not suffice (0.12 [-0.05, 0.29] and 0.16 [-0.00,
0.35]), and it does not heed the odds (-0.03 [-0.04, -0.02]): contrasts for larger models. The
neutral family it continues with words (12 of 12 responses of 40 tokens at temperature 1), so that
what a latent does to words can be studied there.
"""

from tasks.gambling.task import Gambling

task = Gambling()
