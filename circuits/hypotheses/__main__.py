"""`python -m circuits.hypotheses` is `circuits hypotheses`."""

from circuits.cli import main

main(["hypotheses"])
