"""The digits task: what the latents of a small image classifier are for.

`task` is what `circuits.load_task("digits")` returns; `python -m tasks.digits` makes the whole
study.
"""

from tasks.digits.task import task

__all__ = ["task"]
