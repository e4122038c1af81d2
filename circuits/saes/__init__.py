"""SAEs: loading any of SAELens', keeping a bounded number of them on the device, decomposing.

`load_saes` finds and checks them (load.py), `SaeSet` holds them lazily (collection.py), and `Sae`
splits an activation into latents and error (sae.py). `measure_fidelity` says what they erase of a
task (fidelity.py).
"""

from circuits.saes.collection import SaeSet
from circuits.saes.fidelity import Fidelity, contrast_kept, measure_fidelity
from circuits.saes.load import load_saes
from circuits.saes.sae import Decomposition, Encoded, Latents, Sae, SaeError

__all__ = [
    "Decomposition",
    "Encoded",
    "Fidelity",
    "Latents",
    "Sae",
    "SaeError",
    "SaeSet",
    "contrast_kept",
    "load_saes",
    "measure_fidelity",
]
