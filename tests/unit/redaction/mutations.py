"""Seeded damage to DICOM objects: flipped bytes, edited lengths and VRs, cut, repeated, swapped and nested pieces; and,
of objects that stay readable, elements and items that are missing, moved, doubled, renamed or say something else."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from shared.dicom_encoding import EXPLICIT_LITTLE, IMPLICIT_LITTLE, PIXEL_TAGS, Element, Elements, encode, parse
from shared.errors import StepwedgeError

_VRS = [b"SQ", b"UN", b"OB", b"LO", b"PN", b"US", b"UI", b"ZZ", b"\0\0", b"DS", b"AT", b"UT", b"FD"]
_TAGS = [0x00100010, 0x00080018, 0x7FE00010, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x00280010, 0x00020010, 0x00081140]
_LENGTHS = [0, 1, 2, 7, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF]


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 12)):
        data[_at(data, rng)] ^= 1 << rng.randrange(8)


def _write(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 4)):
        data[_at(data, rng)] = rng.randrange(256)


def _length(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    form = rng.choice(["<I", "<H"])
    width = struct.calcsize(form)
    value = rng.choice([*_LENGTHS, rng.randrange(len(data) * 2)]) & ((1 << (8 * width)) - 1)
    data[at : at + width] = struct.pack(form, value)


def _vr(data: bytearray, rng: random.Random) -> None:
    known = [at for at in range(132, min(len(data), 4000)) if bytes(data[at : at + 2]) in _VRS[:8]]
    at = rng.choice(known) if known else _at(data, rng)
    data[at : at + 2] = rng.choice(_VRS)


def _tag(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    tag = rng.choice(_TAGS)
    data[at : at + 4] = struct.pack("<HH", tag >> 16, tag & 0xFFFF)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_at(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    del data[at : at + rng.choice([1, 2, 4, 8, 16, 100])]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    piece = data[at : at + rng.choice([8, 12, 40, 200])]
    data[at:at] = piece * rng.randint(1, 20)


def _zero(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    size = min(rng.choice([2, 8, 64, 512]), len(data) - at)
    data[at : at + size] = bytes(size)


def _nest(data: bytearray, rng: random.Random) -> None:
    at = _at(data, rng)
    data[at:at] = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * rng.randint(1, 300)


_KINDS: list[Callable[[bytearray, random.Random], None]] = [
    _flip, _write, _length, _vr, _tag, _cut, _remove, _repeat, _zero, _nest,
]  # fmt: skip


def _at(data: bytearray, rng: random.Random) -> int:
    """A place, most often in the header, where the structure is."""
    limit = len(data) if rng.random() < 0.3 else min(len(data), 3000)
    return rng.randrange(limit) if limit else 0


def mutated(data: bytes, seed: int) -> bytes:
    """The object with one to three kinds of damage; a function of the arguments."""
    rng = random.Random(seed)
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if len(result) > 8:
            rng.choice(_KINDS)(result, rng)
    return bytes(result)


_TEXTS = [
    b"", b"Doe^Jane", b"19691231", b"20240229", b"235960.5", b"1.2.3.4.5.6.7.8.9.10.11",
    b"1.2.840.10008.1.1", b"CR", b"US",
    b"\\\\\\", b"A\\B\\Doe", b"0", b"-1", b"1e400", b"NaN", b"1\\65535\\x", b"\xff\xfe\xe4",
    b"\x1b$B\x1b(B", b"\0\0\0\0",
    b"YES", b"MODIFIED", b"TEXT", b"DCM", b"121011", b"RGB", b"PALETTE COLOR", b"ISO_IR 192",
    b"ISO 2022 IR 87", b"x" * 3000,
    b"095Y", b"+0200", b"SW-AAAAAAAAAAAAAAAAAAAAAAAA", b"ANONYMIZED", b"M\xc3\xbcller", b"SIEMENS",
    b"\x01\x00", b"\xff\xff",
]  # fmt: skip
_NAMES = [
    0x00080005, 0x00080008, 0x00080016, 0x00080018, 0x00080020, 0x00080022, 0x00080060, 0x00080070,
    0x00080100, 0x00080102,
    0x00080104, 0x0008103E, 0x00081090, 0x00081140, 0x00082218, 0x00091001, 0x00100010, 0x00100020,
    0x00100021, 0x00101010,
    0x00120062, 0x00180015, 0x00186011, 0x00189004, 0x0020000D, 0x0020000E, 0x00220012, 0x00280002,
    0x00280004, 0x00280008,
    0x00280010, 0x00280100, 0x00280101, 0x00280103, 0x00280303, 0x00281101, 0x00281201, 0x0040A040,
    0x0040A043, 0x0040A120,
    0x0040A124, 0x0040A160, 0x0040A730, 0x0040DB73, 0x04000561, 0x50003000, 0x60003000, 0x7FE00010, 0xFFFCFFFC,
]  # fmt: skip
_SYNTAXES = [b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.5", b"1.2.3.4"]


def _places(elements: Elements) -> list[Elements]:
    """The data set and every item in it."""
    found = [elements]
    for element in elements:
        for item in element.items or []:
            found += _places(item)
    return found


def _rearrange(elements: Elements, rng: random.Random) -> None:
    """One change to a data set that can still be read."""
    places = [place for place in _places(elements) if place]
    place = elements if rng.random() < 0.6 or not places else rng.choice(places)
    if not place:
        return
    at = rng.randrange(len(place))
    old = place[at]
    kind = rng.randrange(10)
    if kind == 0:
        del place[at]
    elif kind == 1:
        place.insert(
            rng.choice([at, at + 1, rng.randrange(len(place) + 1)]), Element(old.tag, "LO", rng.choice(_TEXTS))
        )
    elif kind == 2:
        other = rng.choice(rng.choice(places))
        old.value, other.value = other.value, old.value
    elif kind == 3:
        old.vr = rng.choice(["UN", "LO", "CS", "US", "UI", "OB", "DA", "PN", "UT", "IS", "FD", "AT"])
    elif kind == 4:
        old.tag = rng.choice(_NAMES)
    elif kind == 5:
        place[at] = Element(rng.choice(_NAMES), "SQ", b"", [[old] for _ in range(rng.randint(1, 3))])
    elif kind == 6:
        elements.insert(rng.randrange(len(elements) + 1), old)
    elif kind == 7 and old.items:
        rng.choice([old.items.reverse, old.items.clear, lambda: old.items.extend(list(old.items))])()  # type: ignore
    elif kind == 8:
        place.append(Element(rng.choice(_NAMES), rng.choice(["LO", "UI", "CS", "UN", "DA"]), rng.choice(_TEXTS)))
    elif old.items is None and (old.tag not in PIXEL_TAGS or rng.random() < 0.2):
        old.value, old.fragments = rng.choice(_TEXTS), None


def rearranged(data: bytes, seed: int) -> bytes:
    """The object with one to six changes to its structure; a function of the arguments. Bytes that do not parse are
    `mutated` instead."""
    rng = random.Random(seed)
    try:
        read = parse(data)
    except StepwedgeError:
        return mutated(data, seed)
    for _ in range(rng.randint(1, 6)):
        _rearrange(read.data_set, rng)
    if rng.random() < 0.8:
        read.data_set.sort(key=lambda element: element.tag)
    syntax = rng.choice(_SYNTAXES) if rng.random() < 0.1 else read.transfer_syntax.encode()
    implicit = syntax.decode() == IMPLICIT_LITTLE if rng.random() < 0.97 else syntax.decode() == EXPLICIT_LITTLE
    meta = [e for e in read.meta if e.tag not in (0x00020000, 0x00020010)] + [Element(0x00020010, "UI", syntax)]
    body = encode(read.data_set, implicit=implicit, little=read.little)
    return b"".join([b"\0" * 128, b"DICM", *encode(meta, implicit=False, little=True), *body])
