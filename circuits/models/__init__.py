"""Models: loading them, and `HookedModel`, the interface every method uses.

`adapters.py` alone knows TransformerLens; `resume.py` is how many patches are run fast.
"""
