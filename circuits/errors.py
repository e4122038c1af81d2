"""The one base class of every error this package raises on purpose.

The command line prints a `CircuitsError` as one message and exits with status 2; anything else is
a bug and keeps its traceback. Every message says what was wrong, what was expected, and what to do
next.
"""


class CircuitsError(Exception):
    """Something the caller can put right: bad input, a missing file, a model that cannot do it."""
