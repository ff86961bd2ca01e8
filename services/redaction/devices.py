"""Where known equipment writes into its pictures: a library of regions in TOML, matched on the original's header.

Each entry of `[[device]]` names what must match (`manufacturer`, `model`: beginnings, whatever the case; `modality`,
`rows`, `columns`: equal; `image_type`: a term that must stand in Image Type; what is left out matches all, but rows and
columns are needed), `regions` as [left, top, width, height] in pixels, and `provenance`: from what the entry was made.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from services.redaction import values
from services.redaction.facts import TABLES
from shared.dicom_encoding import Encoded
from shared.errors import ErrorCode, StepwedgeError

LIBRARY: Final = TABLES / "devices.toml"

_MANUFACTURER, _MODEL, _MODALITY, _IMAGE_TYPE = 0x00080070, 0x00081090, 0x00080060, 0x00080008
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_TEXTS: Final = ("manufacturer", "model", "modality", "image_type", "provenance")


@dataclass(frozen=True, slots=True)
class Device:
    """One entry. regions: (left, top, width, height)."""

    rows: int
    columns: int
    regions: tuple[tuple[int, int, int, int], ...]
    manufacturer: str = ""
    model: str = ""
    modality: str = ""
    image_type: str = ""

    def matches(self, original: Encoded) -> bool:
        """Whether the object was made by such equipment, in this size."""
        elements = original.data_set

        def number(tag: int) -> int:
            return values.number(elements, tag, little=original.little)

        return (
            (number(_ROWS), number(_COLUMNS)) == (self.rows, self.columns)
            and values.first(elements, _MANUFACTURER).casefold().startswith(self.manufacturer)
            and values.first(elements, _MODEL).casefold().startswith(self.model)
            and (not self.modality or values.first(elements, _MODALITY).casefold() == self.modality)
            and (not self.image_type or self.image_type.upper() in values.terms(elements, _IMAGE_TYPE))
        )


def regions(original: Encoded, additions: Sequence[Path] = ()) -> list[tuple[int, int, int, int]]:
    """Every region of every entry that matches, ours and the site's. Raises CONFIGURATION where a library is wrong."""
    return [
        region
        for path in (LIBRARY, *additions)
        for device in load(path)
        if device.matches(original)
        for region in device.regions
    ]


@lru_cache(maxsize=16)
def load(path: Path) -> tuple[Device, ...]:
    """The entries of a library. Raises CONFIGURATION."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if content.keys() - {"device"}:
            raise ValueError
        return tuple(_device(entry) for entry in content.get("device", []))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "a library of device regions cannot be read") from None


def _device(entry: Mapping[str, Any]) -> Device:
    if entry.keys() - {"rows", "columns", "regions", *_TEXTS} or not str(entry["provenance"]).strip():
        raise ValueError
    found = []
    for region in entry["regions"]:
        left, top, width, height = (int(number) for number in region)
        if min(left, top) < 0 or min(width, height) < 1:
            raise ValueError
        found.append((left, top, width, height))
    texts = {name: str(entry.get(name, "")).casefold() for name in _TEXTS if name != "provenance"}
    return Device(int(entry["rows"]), int(entry["columns"]), tuple(found), **texts)
