"""`python -m circuits.circuit` is `circuits circuit`."""

from circuits.cli import main

main(["circuit"])
