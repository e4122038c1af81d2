"""Every shape annotation in the package is checked while the tests run."""

from jaxtyping import install_import_hook

# Before anything of the package is imported.
_hook = install_import_hook(["circuits", "tasks"], "beartype.beartype")
