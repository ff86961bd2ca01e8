"""What the phantoms of the constancy test are told by: names alone, for services that draw none."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

MANUFACTURER: Final = "Stepwedge"
MODEL_NAME: Final = "Digital chest phantom"
DEVICE: Final = (MANUFACTURER, MODEL_NAME, "CONSTANCY")
"""Manufacturer, Manufacturer's Model Name and Device Serial Number of the phantoms of the constancy test, by which
they are told from patients."""
NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {1: "plain", 2: "cut-off", 3: "inverted", 4: "turned", 5: "mirrored", 6: "underexposed", 7: "collimated"}
)
"""Instance Number -> what the phantom of the constancy test shows."""
