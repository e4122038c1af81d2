"""Tasks: prompts, pairs, metrics and named positions, one folder a task.

`circuits.load_task(name)` finds a task here by its folder's name.
"""
