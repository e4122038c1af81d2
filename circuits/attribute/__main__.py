"""`python -m circuits.attribute` is `circuits attribute`."""

from circuits.cli import main

main(["attribute"])
