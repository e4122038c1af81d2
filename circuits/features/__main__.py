"""`python -m circuits.features` is `circuits features`."""

from circuits.cli import main

main(["features"])
