"""`python -m circuits.replay` is `circuits replay`."""

from circuits.cli import main

main(["replay"])
