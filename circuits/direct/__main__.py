"""`python -m circuits.direct` is `circuits direct`."""

from circuits.cli import main

main(["direct"])
