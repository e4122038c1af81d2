"""Stop or bet at a slot machine, in safe and risky words; and a neutral family of story openings.

`task` is what `circuits.load_task("gambling")` returns; `python -m tasks.gambling` says what a
model can do.
"""

from tasks.gambling.task import Gambling

task = Gambling()
