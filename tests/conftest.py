"""Every shape annotation in the package is checked while the tests run."""

import pkgutil
from pathlib import Path

from jaxtyping import install_import_hook

_package = Path(__file__).parents[1] / "circuits"
# All of the package but the command line, whose annotations are typer's: the context that a
# command is given is not an instance of the class it is annotated with.
_modules = [f"circuits.{m.name}" for m in pkgutil.iter_modules([str(_package)]) if m.name != "cli"]

# Before anything of the package is imported.
_hook = install_import_hook([*_modules, "tasks"], "beartype.beartype")
