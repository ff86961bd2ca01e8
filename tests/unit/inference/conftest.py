"""The released model and phantoms, loaded once."""

from __future__ import annotations

from functools import cache

import pytest

from services.inference.assess import Assessor
from shared import phantom
from shared.paths import MODEL


@pytest.fixture(scope="session")
def assessor() -> Assessor:
    """The engine with the released model."""
    return Assessor(MODEL)


@cache
def chest(seed: int = 1, **margins_mm: float) -> phantom.Phantom:
    """A phantom, drawn once; margins by edge, negative where the lungs are cut off."""
    return phantom.chest(seed, margins_mm=margins_mm)  # type: ignore[arg-type]
