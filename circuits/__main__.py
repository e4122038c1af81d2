"""`python -m circuits` is `circuits`."""

from circuits.cli import main

main()
