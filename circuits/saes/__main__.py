"""`python -m circuits.saes` is `circuits saes`."""

from circuits.cli import main

main(["saes"])
