"""The embedded model, loaded once for all tests of this tier."""

from __future__ import annotations

import pytest

from circuits import load_model
from circuits.models.hooked import HookedModel


@pytest.fixture(scope="session")
def model() -> HookedModel:
    return load_model(device="cpu")
