"""Which attributes an object of a SOP class must have, out of the tables of the standard that highdicom ships.

highdicom (MIT) carries PS3.3 in a form that programs read: which modules an IOD has, and the attributes of a module
with their types. Only these files are read; nothing of the library is imported. Of the mandatory modules the attributes
of type 1, which must hold something, and of type 2, which must be there, are taken, at the top of the data set and not
within sequences; conditions (types 1C and 2C) are not judged.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydicom.dataset import Dataset

_FILES: Final = ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
_OF_PIXELS: Final = frozenset({"PixelData", "FloatPixelData", "DoubleFloatPixelData"})
"""Told by other findings."""
_PART: Final = 1 << 20
"""Bytes that are read at once."""


class Required(NamedTuple):
    """Keywords that an object must have. holding: type 1. there: type 2."""

    holding: tuple[str, ...]
    there: tuple[str, ...]


class Lacking(NamedTuple):
    """What an object lacks. empty: type 1, absent or empty. absent: type 2."""

    empty: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Both, type 1 first."""
        return (*self.empty, *self.absent)


def lacking(dataset: Dataset) -> Lacking | None:
    """What an object lacks by its IOD; None where its SOP class is not in the tables, or these are not here."""
    wanted = of_sop_class(str(dataset.get("SOPClassUID", "")))
    if wanted is None:
        return None
    empty = tuple(keyword for keyword in wanted.holding if _is_empty(dataset.get(keyword)))
    return Lacking(empty, tuple(keyword for keyword in wanted.there if keyword not in dataset))


def _is_empty(value: Any) -> bool:
    if value is None or (isinstance(value, str) and not value.strip("\0 ")):
        return True
    try:
        return len(value) == 0
    except TypeError:
        return False


def of_sop_class(uid: str) -> Required | None:
    """What is required of a SOP class."""
    return _tables().get(uid)


def _modules(file: Path) -> Iterator[tuple[str, list[Any]]]:
    """Module and its attributes, a few modules at a time: as a whole the file takes 60 MB. It is written with an indent
    of two; one that is not is read all the same, at once."""
    part = b""
    with file.open("rb") as opened:
        while more := opened.read(_PART):
            *whole, part = (part + more).split(b"\n  ]")
            for one in whole:
                yield from json.loads(b"{" + one.lstrip(b"{,\n ") + b"]}", object_hook=_wanted).items()
    yield from json.loads(b"{" + part.lstrip(b"{,\n "), object_hook=_wanted).items()


def _wanted(found: dict[str, Any]) -> Any:
    """Of an attribute type and keyword, None for one that is not wanted."""
    if "keyword" not in found:
        return found
    wanted = not found["path"] and found["type"] in ("1", "2")
    return (found["type"], sys.intern(found["keyword"])) if wanted else None


@cache
def _tables() -> dict[str, Required]:
    """SOP class UID -> what its IOD requires; empty where highdicom is not installed."""
    found = importlib.util.find_spec("highdicom")
    folder = Path(found.origin).parent / "_standard" if found is not None and found.origin else None
    if folder is None or not folder.is_dir():
        return {}
    classes, iods = (json.loads((folder / f"{name}.json").read_bytes()) for name in _FILES[:2])
    by_module: dict[str, dict[str, list[str]]] = {}
    for key, attributes in _modules(folder / f"{_FILES[2]}.json"):
        types = by_module.setdefault(key, {"1": [], "2": []})
        for type_of, keyword in filter(None, attributes):
            types[type_of].append(keyword)
    tables = {}
    for uid, iod in classes.items():
        mandatory = [by_module.get(module["key"], {}) for module in iods.get(iod, ()) if module["usage"] == "M"]
        holding, there = (
            dict.fromkeys(keyword for module in mandatory for keyword in module.get(kind, ())) for kind in ("1", "2")
        )
        tables[uid] = Required(
            tuple(keyword for keyword in holding if keyword not in _OF_PIXELS),
            tuple(keyword for keyword in there if keyword not in holding),
        )
    return tables
