"""The data set as PS3.5 encodes it: one bounded, strict walk over the bytes, and the way back to bytes.

pydicom reads leniently and recursively; what a stranger sends is walked here first. Every length is held against what
is left, nesting and the number of elements are bounded, and nothing is decoded that nobody asked for.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import cache
from typing import Final, TypeAlias

from pydicom._dicom_dict import DicomDictionary
from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_VR

from shared.errors import ErrorCode, StepwedgeError

MAX_DEPTH: Final = 64
"""Sequences inside sequences; structured reports stay below 30."""
MAX_ELEMENTS: Final = 750_000
"""Elements in one object, at any depth."""
MAX_ITEMS: Final = 250_000
"""Items of sequences in one object: ten for each of 25,000 frames. An empty one takes 8 bytes, and 30 times the
memory."""
MAX_FRAGMENTS: Final = 1_000_000
"""Fragments of encapsulated pixel data."""
MAX_INFLATED_BYTES: Final = 1 << 30
"""Length of a deflated data set once inflated."""

_HARMLESS_BYTES: Final = 1 << 26
_HARMLESS_RATIO: Final = 100

IMPLICIT_LITTLE: Final = "1.2.840.10008.1.2"
EXPLICIT_LITTLE: Final = "1.2.840.10008.1.2.1"
DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"})
EXPLICIT_BIG: Final = "1.2.840.10008.1.2.2"

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})


def _words(text: str) -> list[str]:
    return text.split()


# PS3.5 7.1.2: these have a 16-bit length; every other, and every one to come, has two reserved bytes and 32 bits.
SHORT_VRS: Final = frozenset(_words("AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"))
LONG_VRS: Final = frozenset(_words("OB OD OF OL OV OW SQ SV UC UN UR UT UV"))
TEXT_VRS: Final = frozenset(_words("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT"))
WIDTHS: Final = {
    "AT": 2, "OW": 2, "SS": 2, "US": 2,
    "FL": 4, "OF": 4, "OL": 4, "SL": 4, "UL": 4,
    "FD": 8, "OD": 8, "OV": 8, "SV": 8, "UV": 8,
}  # fmt: skip
"""Bytes that swap together when the byte order changes."""

_VR: Final = {vr.encode(): vr for vr in SHORT_VRS | LONG_VRS}
_SHORT: Final = frozenset(vr.encode() for vr in SHORT_VRS)
_AMBIGUOUS: Final = {"US or SS": "US", "OB or OW": "OW", "US or OW": "OW", "US or SS or OW": "OW", "NONE": "UN"}
_LARGE: Final = 1 << 16  # above this a value is a view on the object, not a copy
_UID: Final = re.compile(rb"[0-9.]{1,64}")

_UNPACK: Final = {
    little: tuple(struct.Struct(order + form).unpack_from for form in ("HH", "H", "I"))
    for little, order in ((True, "<"), (False, ">"))
}
_UNPACK_ITEM: Final = {True: struct.Struct("<HHI").unpack_from, False: struct.Struct(">HHI").unpack_from}

Bytes: TypeAlias = bytes | memoryview
Unpack: TypeAlias = Callable[[bytes, int], tuple[int, ...]]


class Element:
    """One data element.

    tag: group and element as one number. vr: two letters; the dictionary's where the encoding gives none, `UN` where
    that gives none either. value: the bytes as they stand, padding included. items: the items of a sequence, else None.
    fragments: the items of encapsulated pixel data, the offset table first, else None; `value` is then their encoding.
    """

    __slots__ = ("fragments", "items", "tag", "value", "vr")

    def __init__(
        self,
        tag: int,
        vr: str,
        value: Bytes = b"",
        items: list[Elements] | None = None,
        fragments: list[Bytes] | None = None,
    ) -> None:
        self.tag = tag
        self.vr = vr
        self.value = value
        self.items = items
        self.fragments = fragments


Elements: TypeAlias = list[Element]


class Encoded:
    """One object: its file meta information and its data set.

    preamble: whether the 128 bytes were there and not all zero. meta: group 0002 (empty where there was none).
    transfer_syntax: of the data set, as found. implicit, little: how the data set is really encoded.
    """

    __slots__ = ("data_set", "implicit", "little", "meta", "preamble", "transfer_syntax")

    def __init__(
        self, meta: Elements, data_set: Elements, transfer_syntax: str, *, implicit: bool, little: bool, preamble: bool
    ) -> None:
        self.meta = meta
        self.data_set = data_set
        self.transfer_syntax = transfer_syntax
        self.implicit = implicit
        self.little = little
        self.preamble = preamble


def malformed(words: str) -> StepwedgeError:
    """The error of a data set whose encoding is broken; `words` never hold a value."""
    return StepwedgeError(ErrorCode.ERROR_CODE_MALFORMED_DICOM, words)


def not_dicom() -> StepwedgeError:
    """The error of bytes that are no DICOM object."""
    return StepwedgeError(ErrorCode.ERROR_CODE_NOT_DICOM, "these bytes are not a DICOM object")


@cache
def dictionary_vr(tag: int) -> str:
    """VR of a tag by the data dictionary (PS3.6), one of the two-letter ones; `UN` for a tag that it does not have."""
    entry = DicomDictionary.get(tag)
    if entry is not None:
        return _AMBIGUOUS.get(entry[0], entry[0])
    if tag & 0xFFFF == 0:
        return "UL"
    group = tag >> 16
    if group & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UN"
    return _AMBIGUOUS.get(vr, vr)


@cache
def in_dictionary(tag: int) -> bool:
    """Whether the data dictionary (PS3.6), repeating groups included, has this tag."""
    if tag in DicomDictionary:
        return True
    if (tag >> 16) & 1:
        return False
    try:
        dictionary_VR(tag)
    except KeyError:
        return False
    return tag & 0xFFFF != 0


class _Walk:
    """The walk over one data set; keeps the bounds."""

    def __init__(self, data: bytes, *, swap: bool) -> None:
        self.data = data
        self.view = memoryview(data)
        self.left = MAX_ELEMENTS
        self.items_left = MAX_ITEMS
        self.swap = swap  # whether the object itself is big endian, so that little-endian parts must be turned

    def _slice(self, start: int, end: int) -> Bytes:
        return self.data[start:end] if end - start <= _LARGE else self.view[start:end]

    def elements(
        self,
        pos: int,
        end: int,
        *,
        implicit: bool,
        little: bool,
        depth: int,
        undefined: bool,
        meta: bool = False,
    ) -> tuple[Elements, int]:
        """The elements from `pos` up to `end`, the item's delimiter, or (meta) where group 0002 ends."""
        data = self.data
        header, u16, u32 = _UNPACK[little]
        turn = self.swap and little
        result: Elements = []
        while pos < end:
            if end - pos < 8:
                if depth == 0 and not any(data[pos:end]):
                    return result, end
                raise malformed("an element's header is cut off")
            group, number = header(data, pos)
            tag = (group << 16) | number
            if meta and group != 2:
                return result, pos
            if group == 0xFFFE:
                if tag == ITEM_END and undefined:
                    return result, pos + 8
                if tag == ITEM_END and not u32(data, pos + 4)[0] and depth:
                    pos += 8  # a delimiter although the item has a length: harmless
                    continue
                raise malformed("an item or delimiter stands where an element should")
            if tag == 0 and depth == 0 and not any(self.view[pos:end]):
                return result, end  # a file padded with zeros
            self.left -= 1
            if self.left < 0:
                raise malformed(f"more than {MAX_ELEMENTS} elements")
            if implicit:
                vr = dictionary_vr(tag)
                length = u32(data, pos + 4)[0]
                pos += 8
            else:
                vr, length, pos = self._explicit(pos, end, u16, u32)
            if length == UNDEFINED:
                element, pos = self._undefined(tag, vr, pos, end, implicit=implicit, little=little, depth=depth)
                result.append(element)
                continue
            stop_at = pos + length
            if stop_at > end:
                raise malformed("an element is longer than what holds it")
            if vr == "SQ":
                result.append(self._sequence(tag, pos, stop_at, implicit=implicit, little=little, depth=depth))
                pos = stop_at
                continue
            if vr == "UN" and length and dictionary_vr(tag) == "SQ":
                element = self._unknown_sequence(tag, pos, stop_at, depth=depth)
            else:
                value = self._slice(pos, stop_at)
                if turn and vr in WIDTHS:
                    value = swapped(value, WIDTHS[vr])
                element = Element(tag, vr, value)
            result.append(element)
            pos = stop_at
        if undefined:
            raise malformed("an item of undefined length has no delimiter")
        return result, pos

    def _explicit(self, pos: int, end: int, u16: Unpack, u32: Unpack) -> tuple[str, int, int]:
        """VR, length and where the value starts, of the element whose header is at `pos` in an explicit encoding."""
        data = self.data
        raw = data[pos + 4 : pos + 6]
        vr = _VR.get(raw)
        if vr is not None:
            if raw in _SHORT:
                return vr, u16(data, pos + 6)[0], pos + 8
            if end - pos < 12:
                raise malformed("an element's header is cut off")
            return vr, u32(data, pos + 8)[0], pos + 12
        # A VR that is none. PS3.5 7.1.2 gives those to come the long form; some writers slip in implicit elements.
        if end - pos >= 12 and data[pos + 6 : pos + 8] == b"\0\0" and raw.isalpha():
            length = u32(data, pos + 8)[0]
            if length <= end - pos - 12:
                return "UN", length, pos + 12
        length = u32(data, pos + 4)[0]
        if not raw.isalpha() and length <= end - pos - 8:
            return "UN", length, pos + 8
        length = u16(data, pos + 6)[0]
        if length <= end - pos - 8:
            return "UN", length, pos + 8
        raise malformed("a value representation that is none")

    def _undefined(
        self, tag: int, vr: str, pos: int, end: int, *, implicit: bool, little: bool, depth: int
    ) -> tuple[Element, int]:
        if vr in ("OB", "OW") or tag in PIXEL_TAGS:
            fragments, after = self._fragments(pos, end, little=little)
            return Element(tag, vr, self._slice(pos, after - 8), None, fragments), after
        # PS3.5 6.2.2 note 2: UN of undefined length is a sequence in Implicit VR Little Endian.
        unknown = vr == "UN"
        items, after = self._items(
            pos, end, implicit=implicit or unknown, little=little or unknown, depth=depth, undefined=True
        )
        return Element(tag, "SQ", b"", items), after

    def _sequence(self, tag: int, pos: int, end: int, *, implicit: bool, little: bool, depth: int) -> Element:
        """A sequence with a length. Vendors get the items of their private ones wrong; those stay opaque bytes."""
        try:
            items, _ = self._items(pos, end, implicit=implicit, little=little, depth=depth, undefined=False)
        except StepwedgeError:
            if (tag >> 16) & 1 and depth < MAX_DEPTH:
                return Element(tag, "UN", self._slice(pos, end))
            raise
        return Element(tag, "SQ", b"", items)

    def _unknown_sequence(self, tag: int, pos: int, end: int, *, depth: int) -> Element:
        """A sequence that came as UN with a length: implicit by the standard, explicit by some writers."""
        for implicit in (True, False):
            try:
                items, _ = self._items(pos, end, implicit=implicit, little=True, depth=depth, undefined=False)
            except StepwedgeError:
                continue
            return Element(tag, "SQ", b"", items)
        return Element(tag, "UN", self._slice(pos, end))

    def _items(
        self, pos: int, end: int, *, implicit: bool, little: bool, depth: int, undefined: bool
    ) -> tuple[list[Elements], int]:
        if depth >= MAX_DEPTH:
            raise malformed(f"more than {MAX_DEPTH} sequences inside each other")
        header = _UNPACK_ITEM[little]
        items: list[Elements] = []
        while pos < end:
            if end - pos < 8:
                raise malformed("an item's header is cut off")
            group, number, length = header(self.data, pos)
            tag = (group << 16) | number
            pos += 8
            if tag == SEQUENCE_END:
                if undefined or pos == end:
                    return items, pos
                raise malformed("a sequence is delimited before its length is used up")
            if tag != ITEM:
                raise malformed("a sequence holds something that is no item")
            self.items_left -= 1
            if self.items_left < 0:
                raise malformed(f"more than {MAX_ITEMS} items")
            stop = end if length == UNDEFINED else pos + length
            if stop > end:
                raise malformed("an item is longer than the sequence that holds it")
            how = _really_implicit(self.data, pos, stop, implicit=implicit, little=little)
            elements, pos = self.elements(
                pos, stop, implicit=how, little=little, depth=depth + 1, undefined=length == UNDEFINED
            )
            items.append(elements)
        if undefined:
            raise malformed("a sequence of undefined length has no delimiter")
        return items, pos

    def _fragments(self, pos: int, end: int, *, little: bool) -> tuple[list[Bytes], int]:
        """Fragments of encapsulated pixel data (PS3.5 A.4) and the position after the delimiter."""
        header = _UNPACK_ITEM[little]
        fragments: list[Bytes] = []
        while end - pos >= 8:
            group, number, length = header(self.data, pos)
            tag = (group << 16) | number
            pos += 8
            if tag == SEQUENCE_END:
                return fragments, pos
            if tag != ITEM or length == UNDEFINED or length > end - pos:
                raise malformed("encapsulated pixel data is not made of items that fit")
            if len(fragments) >= MAX_FRAGMENTS:
                raise malformed(f"more than {MAX_FRAGMENTS} fragments")
            fragments.append(self._slice(pos, pos + length))
            pos += length
        raise malformed("encapsulated pixel data has no delimiter")


def _really_implicit(data: bytes, pos: int, end: int, *, implicit: bool, little: bool) -> bool:
    """What the first element at `pos` shows; writers mix the encodings, the transfer syntax notwithstanding."""
    if end - pos < 8:
        return implicit
    known = data[pos + 4 : pos + 6] in _VR
    if known != implicit:
        return implicit
    length = int.from_bytes(data[pos + 4 : pos + 8], "little" if little else "big")
    fits = length <= end - pos - 8 or length == UNDEFINED
    if implicit:
        return fits  # two letters of a VR, read as a length, are over 16 thousand
    return fits and data[pos : pos + 4] not in (b"\xfe\xff\x0d\xe0", b"\xff\xfe\xe0\x0d")


def swapped(value: Bytes, width: int) -> bytes:
    """The value with the bytes of every `width` bytes reversed; MALFORMED_DICOM where it is no multiple of that."""
    if len(value) % width:
        raise malformed("a binary value is no multiple of its width")
    source = bytes(value)
    result = bytearray(len(source))
    for i in range(width):
        result[i::width] = source[width - 1 - i :: width]
    return bytes(result)


def inflate(data: Bytes, limit: int = MAX_INFLATED_BYTES) -> bytes:
    """A deflated data set (PS3.5 A.5); MALFORMED_DICOM where it is cut off or does not inflate.

    Also where it inflates to more than `limit` bytes, or to more than a hundred times its length beyond 64 MiB: a data
    set does so only where somebody means harm.
    """
    limit = min(limit, max(_HARMLESS_BYTES, _HARMLESS_RATIO * len(data)))
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        result = engine.decompress(data, limit + 1)
    except zlib.error:
        raise malformed("the deflated data set does not inflate") from None
    if len(result) > limit:
        raise malformed(f"the deflated data set inflates to more than {limit} bytes")
    if not engine.eof:
        raise malformed("the deflated data set is cut off")
    return result


def parse(data: bytes) -> Encoded:
    """Walk over one object: Part 10 with or without preamble, or a bare data set that plausibly is one.

    Raises NOT_DICOM for other bytes, MALFORMED_DICOM where the encoding is broken or a bound is passed.
    """
    preamble = data[128:132] == b"DICM"
    written = preamble and any(memoryview(data)[:128])
    start = 132 if preamble else 0
    meta: Elements = []
    if preamble or data[:2] == b"\x02\x00":
        meta, start = _meta(data, start)
        if not preamble and not meta:
            raise not_dicom()
    uid = _transfer_syntax(meta)
    if start >= len(data):
        if not preamble:
            raise not_dicom()
        raise malformed("the object has no data set")
    if uid in DEFLATED:
        data, start = inflate(memoryview(data)[start:]), 0
    if uid and (uid in DEFLATED or uid in UID_dictionary or meta):
        little = uid != EXPLICIT_BIG
        implicit = _really_implicit(data, start, len(data), implicit=uid == IMPLICIT_LITTLE, little=little)
    else:
        implicit, little = _guess(data, start, sure=preamble)
        uid = IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
    walk = _Walk(data, swap=not little)
    elements, _ = walk.elements(start, len(data), implicit=implicit, little=little, depth=0, undefined=False)
    return Encoded(meta, elements, uid, implicit=implicit, little=little, preamble=written)


def _meta(data: bytes, start: int) -> tuple[Elements, int]:
    """Group 0002, always explicit and little endian (PS3.10 7.1); some writers make it implicit. Its length may lie."""
    end = len(data)
    implicit = _really_implicit(data, start, end, implicit=False, little=True) if end - start >= 8 else False
    walk = _Walk(data, swap=False)
    return walk.elements(start, end, implicit=implicit, little=True, depth=0, undefined=False, meta=True)


def _transfer_syntax(meta: Elements) -> str:
    for element in meta:
        if element.tag == 0x00020010:
            value = bytes(element.value).rstrip(b"\0 ")
            if not _UID.fullmatch(value):
                raise malformed("the transfer syntax is no UID")
            return value.decode("ascii")
    return ""


_FIRST_GROUPS: Final = frozenset({0x0008, 0x0010, 0x0018, 0x0020, 0x0004})


def _guess(data: bytes, start: int, *, sure: bool) -> tuple[bool, bool]:
    """Implicit and little, of a data set that does not say; NOT_DICOM where the first element is not plausible."""
    if len(data) - start < 8:
        raise malformed("an element's header is cut off") if sure else not_dicom()
    little = int.from_bytes(data[start : start + 2], "little") in _FIRST_GROUPS
    if not little and int.from_bytes(data[start : start + 2], "big") not in _FIRST_GROUPS and not sure:
        raise not_dicom()
    group, number, length = struct.unpack_from("<HHI" if little else ">HHI", data, start)
    tag = (group << 16) | number
    explicit = data[start + 4 : start + 6] in _VR
    if not sure and not explicit and (length > len(data) - start - 8 or not little):
        raise not_dicom()
    if not sure and not in_dictionary(tag) and tag & 0xFFFF:
        raise not_dicom()
    return not explicit, little or (sure and not explicit)


_ITEM_HEADER: Final = {True: struct.Struct("<HHI"), False: struct.Struct(">HHI")}
_LONG_HEADER: Final = {True: struct.Struct("<HH2sHI"), False: struct.Struct(">HH2sHI")}
_SHORT_HEADER: Final = {True: struct.Struct("<HH2sH"), False: struct.Struct(">HH2sH")}


def encode(elements: Iterable[Element], *, implicit: bool, little: bool) -> list[Bytes]:
    """The elements as bytes, in pieces: lengths defined, but for encapsulated pixel data; values padded to even.

    The elements must be sorted by tag; no value is looked into.
    """
    out: list[Bytes] = []
    item_header = _ITEM_HEADER[little].pack
    for element in elements:
        tag, vr = element.tag, element.vr
        group, number = tag >> 16, tag & 0xFFFF
        if element.fragments is not None:
            out.append(_header(group, number, vr, UNDEFINED, implicit=implicit, little=little))
            for fragment in element.fragments:
                odd = len(fragment) & 1
                out.append(item_header(0xFFFE, 0xE000, len(fragment) + odd))
                out.append(fragment)
                if odd:
                    out.append(b"\0")
            out.append(item_header(0xFFFE, 0xE0DD, 0))
            continue
        if element.items is not None:
            content: list[Bytes] = []
            for item in element.items:
                encoded = encode(item, implicit=implicit, little=little)
                content.append(item_header(0xFFFE, 0xE000, sum(map(len, encoded))))
                content.extend(encoded)
            out.append(_header(group, number, "SQ", sum(map(len, content)), implicit=implicit, little=little))
            out.extend(content)
            continue
        value = element.value
        size = len(value)
        odd = size & 1
        out.append(_header(group, number, vr, size + odd, implicit=implicit, little=little))
        out.append(value)
        if odd:
            out.append(b" " if vr in TEXT_VRS and vr != "UI" else b"\0")
    return out


def _header(group: int, number: int, vr: str, length: int, *, implicit: bool, little: bool) -> bytes:
    if implicit:
        return _ITEM_HEADER[little].pack(group, number, length)
    if vr in SHORT_VRS:
        if length <= 0xFFFF:
            return _SHORT_HEADER[little].pack(group, number, vr.encode(), length)
        vr = "UN"  # PS3.5 6.2.2 note 5: too long for its own VR in an explicit encoding
    return _LONG_HEADER[little].pack(group, number, vr.encode(), 0, length)
