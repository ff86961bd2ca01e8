"""Seeded damage to DICOM objects: flipped bytes, edited lengths and VRs, cut, repeated, swapped and nested pieces."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

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
