"""Private elements that are known to be safe (PS3.15 E.3.10): by Table E.3.10-1, or by the object's own word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from services.redaction import values
from services.redaction.facts import rows
from services.redaction.text import decode
from shared.dicom_encoding import Element, Elements

_CHARACTERISTICS: Final = 0x00080300
_GROUP: Final = 0x00080301
_CREATOR: Final = 0x00080302
_STATUS: Final = 0x00080303
_NONIDENTIFYING: Final = 0x00080304


class Key(NamedTuple):
    """A private element whatever block it lies in; element -1: every one of the creator's."""

    group: int
    element: int
    creator: str


@lru_cache(maxsize=1)
def safe() -> Mapping[Key, str]:
    """VR of each private element of Table E.3.10-1."""
    return {
        Key(int(row["group"], 16), int(row["element"], 16), row["creator"]): row["vr"]
        for row in rows("safe_private_2026c.csv")
    }


def declared(elements: Elements, encoding: Sequence[str], *, little: bool) -> frozenset[Key]:
    """What the object itself says is safe, in Private Data Element Characteristics (PS3.3 C.12.1.1.7)."""
    found: set[Key] = set()
    for element in elements:
        if element.tag != _CHARACTERISTICS:
            continue
        for item in element.items or []:
            group = values.number(item, _GROUP, little=little)
            creator = next((decode(e.value, encoding) for e in item if e.tag == _CREATOR), "")
            status = values.first(item, _STATUS)
            if not group & 1 or not creator:
                continue
            if status == "SAFE":
                found.add(Key(group, -1, creator))
            elif status == "MIXED":
                found.update(Key(group, number & 0xFF, creator) for number in _numbers(item, little=little))
    return frozenset(found)


def _numbers(item: Elements, *, little: bool) -> Iterable[int]:
    for element in item:
        if element.tag == _NONIDENTIFYING and element.items is None:
            raw = bytes(element.value)
            for at in range(0, len(raw) - 1, 2):
                yield int.from_bytes(raw[at : at + 2], "little" if little else "big")


def creators(elements: Elements, encoding: Sequence[str]) -> dict[tuple[int, int], str]:
    """Private creators of one data set or item, by group and block; two for one block are none."""
    found: dict[tuple[int, int], str] = {}
    twice = set()
    for element in elements:
        group, number = element.tag >> 16, element.tag & 0xFFFF
        if group & 1 and 0x10 <= number <= 0xFF and element.items is None:
            if (group, number) in found:
                twice.add((group, number))
            found[group, number] = decode(element.value, encoding)
    return {place: creator for place, creator in found.items() if place not in twice and creator}


def vr_of(element: Element, creator: str, said: frozenset[Key]) -> str | None:
    """The VR by which a private element is judged and kept; None where nobody says that it is safe."""
    group, number = element.tag >> 16, element.tag & 0xFF
    listed = safe().get(Key(group, number, creator))
    if listed:
        return listed
    if Key(group, -1, creator) in said or Key(group, number, creator) in said:
        return "SQ" if element.items is not None else element.vr
    return None


def characteristics(kept: Iterable[tuple[int, str]], *, little: bool) -> Element | None:
    """Private Data Element Characteristics anew: what is left of each creator is safe."""
    items = [
        [
            Element(_GROUP, "US", group.to_bytes(2, "little" if little else "big")),
            Element(_CREATOR, "LO", creator.encode("ascii")),
            Element(_STATUS, "CS", b"SAFE"),
        ]
        for group, creator in sorted(kept)
    ]
    return Element(_CHARACTERISTICS, "SQ", b"", items) if items else None
