"""`python -m circuits.predict` is `circuits predict`."""

from circuits.cli import main

main(["predict"])
