"""`python -m circuits.train` is `circuits train`."""

from circuits.cli import main

main(["train"])
