"""`python -m circuits.patch` is `circuits patch`."""

from circuits.cli import main

main(["patch"])
