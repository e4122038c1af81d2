"""The gsm8k_thoughts task: a model that reasons in continuous thoughts."""

from tasks.gsm8k_thoughts.task import task

__all__ = ["task"]
