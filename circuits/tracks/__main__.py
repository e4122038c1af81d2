"""`python -m circuits.tracks` is `circuits tracks`."""

from circuits.cli import main

main(["tracks"])
