"""The second opinion: reads what was written, by rules of its own, and looks for the subject's identifiers in it.

It shares no table with the engine. What to look for is gathered from the whole original by VR and by words in the
names of attributes (`telling`): names, numbers, addresses, dates of birth, the institution where the profile removes
it. It is looked for in every value of the result, nested and private ones, meta information and preamble included: as
text in variants (accents, case, order, initials, digits run together, notations of dates) and as bytes (in the
original's own encoding, in UTF-8, Latin-1 and UTF-16, in hexadecimal and base64); in UIDs; in the heads and tails of
compressed frames. Besides, an attribute that tells who somebody is may not stand in the result with the value that it
had, and no UID and no date may, where the profile removes them. A hit quarantines the object.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from services.redaction import telling
from services.redaction.text import DEFAULT, decode, encodings
from shared.dicom_encoding import PIXEL_TAGS, TEXT_VRS, Element, Elements, Encoded, dictionary_vr, parse
from shared.pseudonyms import Pseudonyms

# Terms of the standard, and words that stand where no name is known: alone they prove nothing.
_TERMS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        abdomen adult ankle anonymized anonymous anon arm axial basic brain breast calibration chest constancy contrast
        control ct daily derived doctor elbow female finger first foot hand head heart hip hospital clinic university
        medical center centre radiology image kidney knee last left leg liver lung male monochrome monthly mr name neck
        none operator original other patient pelvis phantom physician portable primary profile prone quality right
        routine secondary shoulder skull spine standard stepwedge supine test thorax unknown us water weekly wrist
        """,
    )
)
# Values that stand for none, the engine's own and what others write.
_NOTHING: Final = frozenset(
    b"ANONYMIZED urn:anonymized 19000101 19000101000000 000000 000000.0 0 0.0 1 000D 000Y UNKNOWN NONE OTHER".split()
) | {b""}
_MAX_PATTERNS: Final = 5000
_MIN_BYTES: Final = 5
_MIN_DIGITS: Final = 7  # of a number of somebody, without its letters, that a whole value is taken for
_HEAD, _TAIL = 4096, 256  # of a compressed frame: where comments, application data and what was appended stand
_TEMPORAL: Final = frozenset({"DA", "DT", "TM"})
_NUMERIC: Final = frozenset({"DS", "IS", "DA", "DT", "TM", "AS"})
_PUBLIC: Final = ("1.2.840.10008.", "2.16.840.1.113883.")
_CHARACTER_SET: Final = 0x00080005
_PATIENT_ID: Final = 0x00100020
_NO_GROUPS: Final = frozenset({0x0000, 0x0002, 0x0004, 0xFFFA, 0xFFFC})
_METHOD: Final = frozenset({0x00120062, 0x00120063, 0x00120064, 0x00280303})  # our own words
_IMPLEMENTATION: Final = frozenset({0x00020012, 0x00020013})
_DATES_STAY: Final = "retain-full-dates"
_DATES_MOVE: Final = "retain-modified-dates"
_KEEP_NEW: Final = frozenset({"retain-patient-characteristics", "clean-descriptors"})


@dataclass(frozen=True, slots=True)
class Opinion:
    """hits: how many values of the result hold what they must not, by where: `TEXT`, `TERM`, `NUMBER`, `BYTES`, `UID`,
    `PRIVATE`, `META`, `PREAMBLE`, `FRAME`; `UNCHANGED`, `DATE`: an attribute as it was; `GROUP`, `UNKNOWN`: an element
    that no result has; `PIXELS`: text that a detector still finds there."""

    hits: Mapping[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.hits.values())


@dataclass(slots=True)
class _Sought:
    """What to look for: whole words, runs of characters, bytes (in lower case), UIDs; and values where they stood."""

    words: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    raw: set[bytes] = field(default_factory=set)
    uids: set[str] = field(default_factory=set)
    values: set[tuple[int, bytes]] = field(default_factory=set)
    dates: dict[int, set[bytes]] = field(default_factory=dict)


def second_opinion(
    original: Encoded,
    written: bytes | Encoded,
    pseudonyms: Pseudonyms,
    options: Collection[str] = (),
    retained: Collection[int] = (),
    pixels: Callable[[Encoded], int] | None = None,
) -> Opinion:
    """What of the original is left in the file that was written: in its bytes, or in them as they were read again.

    options: names of the options of the profile (`services.redaction.profile.Option`): what they keep is not looked
    for. retained: tags that the profile lets stand as they were. pixels: counts the texts that are still in the pixels
    of a parsed object. Raises as `parse` where the file cannot be read.
    """
    result = written if isinstance(written, Encoded) else parse(written)
    looking = _Looking(original.data_set, pseudonyms, frozenset(map(str, options)), frozenset(retained))
    looking.at_meta(result)
    if pixels is not None and (left := pixels(result)):
        looking.hits["PIXELS"] = left
    return looking.opinion(result.data_set)


def check(
    original: Elements,
    result: Elements,
    pseudonyms: Pseudonyms,
    options: Collection[str] = (),
    retained: Collection[int] = (),
) -> int:
    """How many values of a data set hold what they must not; the same without the file around it."""
    return _Looking(original, pseudonyms, frozenset(map(str, options)), frozenset(retained)).opinion(result).total


def _sought(original: Elements, options: frozenset[str], retained: frozenset[int], pseudonyms: Pseudonyms) -> _Sought:
    sought = _Sought()
    identifiers: set[tuple[str, str, bytes]] = set()
    _gather(original, DEFAULT, options, retained, sought, identifiers)
    for kind, text, raw in sorted(identifiers)[:_MAX_PATTERNS]:
        _add(sought, kind, text, raw, pseudonyms)
    if "retain-uids" in options:
        sought.uids.clear()
    return sought


def _gather(
    elements: Elements,
    inherited: Sequence[str],
    options: frozenset[str],
    retained: frozenset[int],
    sought: _Sought,
    identifiers: set[tuple[str, str, bytes]],
) -> None:
    encoding = encodings(elements, inherited)
    for element in elements:
        if element.items is not None:
            for item in element.items:
                _gather(item, encoding, options, retained, sought, identifiers)
            continue
        size = len(element.value)
        if not size or element.fragments is not None or element.tag in retained:
            continue
        if element.vr == "UI":
            sought.uids.update(uid for uid in _uids(element) if not uid.startswith(_PUBLIC))
            continue
        kind = telling.kind(element.tag, element.vr, options) if 1 < size <= 1024 else "skip"
        if kind != "skip":
            raw = bytes(element.value)
            identifiers.add((kind, decode(raw, encoding, person=kind == "name"), raw))
        if size <= 65536:
            value = bytes(element.value).strip(b"\0 ")
            if element.vr in _TEMPORAL and value.strip(b"\\ "):
                sought.dates.setdefault(element.tag, set()).add(value)
            elif value not in _NOTHING and telling.doubted(element.tag, element.vr, options):
                sought.values.add((element.tag, value))


def _uids(element: Element) -> list[str]:
    text = bytes(element.value).decode("ascii", "replace")
    return [uid for uid in (part.strip("\0 ") for part in text.split("\\")) if uid]


def _add(sought: _Sought, kind: str, text: str, raw: bytes, pseudonyms: Pseudonyms) -> None:
    for part in re.split(r"[\\=]", text):
        plain = _plain(part).replace("\n", " ").strip()
        if not plain or pseudonyms.is_subject(part.strip()):
            continue
        if kind == "name":
            _add_name(sought, part, plain)
        elif kind == "day":
            _add_day(sought, part)
        elif kind == "phone":
            _add_phone(sought, plain)
        elif len(plain.replace(" ", "")) >= (4 if any(c.isdigit() for c in plain) else 5) and plain not in _TERMS:
            _add_phrase(sought, kind, part, plain)
    if b"\x1b" in raw or not raw.isascii():  # as the original's own character set writes it
        for piece in re.split(rb"[\\^= ]", raw):
            if len(piece) >= 6:
                sought.raw.add(piece.lower())


def _add_phrase(sought: _Sought, kind: str, part: str, plain: str) -> None:
    if kind == "device" and len(plain) < 6:
        return
    sought.words.add(plain)
    _add_raw(sought, part)
    run = plain.replace(" ", "")
    if kind == "number" and len(run) >= 6:
        sought.runs.add(run)
    if kind == "phrase":  # the street of an address, without the town
        for line in re.split(r"[,;\r\n]", part):
            words = _plain(line).strip()
            if len(words) >= 8 and " " in words:
                sought.words.add(words)


def _add_phone(sought: _Sought, plain: str) -> None:
    digits = re.sub(r"\D", "", plain)
    if len(digits) >= 7:
        sought.runs.update({digits, digits[-8:]} if len(digits) >= 10 else {digits})


def _add_name(sought: _Sought, part: str, plain: str) -> None:
    words = plain.split()
    given = [word for word in words if word not in _TERMS]
    sought.words.update(word for word in given if len(word) >= (4 if word.isascii() else 2))
    if len(words) >= 2 and given and len("".join(words)) >= 5:
        sought.words.update((" ".join(words), " ".join(reversed(words)), f"{words[0]} {words[-1]}"))
        for one, two in ((words[0], words[1]), (words[1], words[0])):
            if one in given and len(one) >= 3 and len(one) + len(two) >= 5:  # the surname with an initial
                sought.words.update((f"{one} {two[0]}", f"{two[0]} {one}", two[0] + one, one + two[0]))
        for run in ("".join(words), "".join(reversed(words)), words[0] + words[1], words[1] + words[0]):
            if len(run) >= 6 and any(word in run for word in given):
                sought.runs.add(run)
    sought.runs.update(word for word in given if not word.isascii() and len(word) >= 2)
    if given:
        _add_raw(sought, part)
        _add_raw(sought, part.replace("^", " ").strip())
        for word in re.split(r"[\^ ]", part):
            if len(word) >= 6 and _plain(word).strip() in given:
                _add_raw(sought, word)


def _add_raw(sought: _Sought, text: str) -> None:
    text = text.strip()
    if len(text) < _MIN_BYTES:
        return
    for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
        try:
            raw = text.encode(encoding)
        except UnicodeEncodeError:
            continue
        sought.raw.add(raw.lower())
        if encoding in ("utf-8", "latin-1") and len(raw) >= 6:
            sought.raw.add(raw.hex().encode())
            sought.raw.update(_in_base64(raw))


def _in_base64(raw: bytes) -> Iterator[bytes]:
    """How the bytes look inside a base64 text, at each of the three places where they may begin."""
    for before in range(3):
        whole = base64.b64encode(bytes(before) + raw)
        begin = (before * 8 + 5) // 6  # characters that mix in bits of what stands before
        end = (before + len(raw)) * 8 // 6  # and behind
        if end - begin >= 7:
            yield whole[begin:end].lower()


_MONTHS: Final = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905 - as words


def _add_day(sought: _Sought, text: str) -> None:
    match = re.fullmatch(r"\s*(\d{4})[.\-/]?(\d\d)[.\-/]?(\d\d).*", text)
    if match is None or match[1] < "1850" or match.group(1, 2, 3) == ("1900", "01", "01"):
        return
    year, month, day = match.groups()
    sought.words.update((year + month + day, f"{year} {month} {day}", f"{day} {month} {year}", f"{month} {day} {year}"))
    sought.words.update((f"{int(day)} {int(month)} {year}", f"{int(month)} {int(day)} {year}"))
    sought.words.update((day + month + year, month + day + year))
    if 1 <= int(month) <= 12:
        name = _MONTHS[int(month) - 1]
        sought.words.update((f"{int(day)} {name} {year}", f"{day} {name} {year}", f"{name} {int(day)} {year}"))
    sought.raw.add((year + month + day).encode())


class _Looking:
    """One look through one result."""

    def __init__(
        self, original: Elements, pseudonyms: Pseudonyms, options: frozenset[str], retained: frozenset[int]
    ) -> None:
        self.sought = sought = _sought(original, options, retained, pseudonyms)
        self.retained = retained
        self.pseudonyms = pseudonyms
        self.options = options
        self.ours = any(element.tag == _PATIENT_ID and self._ours(element, DEFAULT) for element in original)
        self.hits: dict[str, int] = {}
        self.lines: list[str] = []
        self.pieces: list[tuple[str, bytes]] = []
        self.dates: dict[int, set[bytes]] = {}
        self.lengths = sorted({word.count(" ") + 1 for word in sought.words})
        self.runs = _Finder(run.encode() for run in sought.runs)
        self.raw = _Finder(sought.raw)
        # One word of a name may well be one of the standard's terms; two words, or a number, may not.
        self.terms = {word for word in sought.words if " " in word or any(c.isdigit() for c in word)}
        self.digits = _Finder(run.encode() for run in sought.runs | sought.words if len(run) >= 8 and run.isdigit())
        self.numbers = {word for word in sought.words if len(word) >= 6}
        self.numbers |= {digits for run in sought.runs if len(digits := re.sub(r"\D", "", run)) >= _MIN_DIGITS}

    def hit(self, code: str) -> None:
        self.hits[code] = self.hits.get(code, 0) + 1

    def opinion(self, data_set: Elements) -> Opinion:
        """Look at a data set, and say what was found since the beginning."""
        self.at(data_set, DEFAULT)
        self.at_lines()
        self.at_pieces()
        self.at_dates()
        return Opinion(dict(sorted(self.hits.items())))

    def at_meta(self, written: Encoded) -> None:
        """The preamble, which we leave empty, and the meta information."""
        if written.preamble:
            self.hit("PREAMBLE")
        for element in written.meta:
            if element.tag in _IMPLEMENTATION:
                continue
            if element.vr == "UI" and self._uid(element):
                self.hit("META")
            else:
                self.pieces.append(("META", bytes(element.value).lower()))

    def at(self, elements: Elements, inherited: Sequence[str]) -> None:
        """Every value of a data set; text is laid aside for `at_lines`."""
        encoding = encodings(elements, inherited)
        for element in elements:
            tag, vr = element.tag, element.vr
            if element.items is not None:
                if tag not in _METHOD:
                    for item in element.items:
                        self.at(item, encoding)
            elif element.fragments is not None:
                for fragment in element.fragments[1:]:
                    ends = bytes(fragment[:_HEAD]) + b"\0\xff" + bytes(fragment[_HEAD:][-_TAIL:])
                    self.pieces.append(("FRAME", ends.lower()))
            elif not element.value or tag in PIXEL_TAGS or tag == _CHARACTER_SET or tag in _METHOD:
                continue
            elif vr == "UI":
                if self._uid(element):
                    self.hit("UID")
            else:
                self._value(element, encoding)
            if tag not in self.retained and (code := self._misplaced(tag)) and (element.value or element.items):
                self.hit(code)

    def _misplaced(self, tag: int) -> str:
        """Why an element may not be there at all, whatever it holds."""
        group = tag >> 16
        if group & 1:
            return "" if "retain-safe-private" in self.options else "PRIVATE"
        if group in _NO_GROUPS or (group & 0xFFE0 in (0x5000, 0x6000) and "clean-graphics" not in self.options):
            return "GROUP"
        # These options keep words of attributes that the table lists and pydicom's dictionary does not yet.
        return "" if telling.keyword(tag) or not self.options.isdisjoint(_KEEP_NEW) else "UNKNOWN"

    def _value(self, element: Element, encoding: Sequence[str]) -> None:
        tag, vr = element.tag, element.vr
        if vr in _TEMPORAL:
            self.dates.setdefault(tag, set()).add(bytes(element.value).strip(b"\0 "))
        elif len(element.value) <= 65536 and (tag, bytes(element.value).strip(b"\0 ")) in self.sought.values:
            if not self._ours(element, encoding):
                self.hit("UNCHANGED")
            return
        if vr not in TEXT_VRS:
            self.pieces.append(("PRIVATE" if (tag >> 16) & 1 else "BYTES", bytes(element.value).lower()))
            return
        text = decode(element.value, encoding, person=vr == "PN")
        if vr in _NUMERIC:
            if vr in _TEMPORAL and not self.options.isdisjoint((_DATES_STAY, _DATES_MOVE)):
                return  # a newborn is examined on the day of its birth
            if any(part.strip() in self.numbers for part in text.split("\\")):
                self.hit("NUMBER")
        elif vr == "CS":
            if any(_plain(part) in self.terms for part in text.split("\\")):
                self.hit("TERM")
        elif not self.pseudonyms.is_subject(text):
            self.lines.append(text)

    def _ours(self, element: Element, encoding: Sequence[str]) -> bool:
        """Whether each of the values is a pseudonym that we issued: an object that was redacted before."""
        parts = [part.strip() for part in decode(element.value, encoding).split("\\")]
        return all(self.pseudonyms.is_subject(part) or self.pseudonyms.is_label(part) for part in parts)

    def at_pieces(self) -> None:
        """All that is no text at once; piece by piece only where something is there."""
        if self._in_bytes(b"\0\xff\0".join(piece for _, piece in self.pieces)):
            for code, piece in self.pieces:
                if self._in_bytes(piece):
                    self.hit(code)

    def _in_bytes(self, lower: bytes) -> bool:
        return self.raw.found(lower) or any(uid.decode("ascii") in self.sought.uids for uid in _UID_IN_BYTES(lower))

    def _uid(self, element: Element) -> bool:
        """Whether a UID of the original is left, or one of another's making that holds a number or a date of it."""
        for uid in _uids(element):
            if uid.startswith(_PUBLIC) or self.pseudonyms.is_ours(uid):
                continue
            if uid in self.sought.uids or not self.numbers.isdisjoint(uid.split(".")):
                return True
            if self.digits.found(uid.replace(".", "").encode("utf-8", "replace")):
                return True
        return False

    def at_lines(self) -> None:
        """All free text at once; line by line only where something is there."""
        text = _plain("\n".join(line.replace("\n", " ") for line in self.lines))
        all_lines = "\n".join(self.lines)
        if self._in_text(text) or self._encoded(all_lines):
            for line, plain in zip(self.lines, text.split("\n"), strict=True):
                if self._in_text(plain) or self._encoded(line):
                    self.hit("TEXT")

    def _encoded(self, line: str) -> bool:
        """Whether a line holds a UID of the original, or an identifier as bytes do (in hexadecimal, say)."""
        if len(line) < _MIN_BYTES:
            return False
        if "." in line and any(uid in self.sought.uids for uid in _UID_IN_TEXT(line)):
            return True
        return self.raw.found(line.encode("utf-8", "replace").lower())

    def _in_text(self, text: str) -> bool:
        """Whether words or runs of characters are in text that was made plain; no phrase goes over a line's end."""
        if self.runs.found(text.replace(" ", "").encode()):
            return True
        sought = self.sought.words
        for line in text.split("\n") if sought else ():
            words = line.split()
            for length in self.lengths:
                if any(" ".join(words[i : i + length]) in sought for i in range(len(words) - length + 1)):
                    return True
        return False

    def at_dates(self) -> None:
        """No date stays where it stood; where dates move, all of an attribute move, so that not all can be the same."""
        if _DATES_STAY in self.options:
            return
        for tag, values in self.dates.items():
            before = self.sought.dates.get(tag, set()) - _NOTHING
            same = before & values
            if _DATES_MOVE in self.options and dictionary_vr(tag) == "TM":
                continue
            if same and not (_DATES_MOVE in self.options and (same != before or self._moved_before())):
                self.hit("DATE")

    def _moved_before(self) -> bool:
        """Whether the original came with dates that had moved: it had no UID but ours, or none and our Patient ID."""
        return all(map(self.pseudonyms.is_ours, self.sought.uids)) and (bool(self.sought.uids) or self.ours)


class _Finder:
    """Whether any of many byte strings is in another."""

    def __init__(self, sought: Iterable[bytes]) -> None:
        self.sought = sorted(set(sought))
        self.by_prefix: dict[int, list[bytes]] = {}

    def found(self, where: bytes) -> bool:
        """One search for each, or, where that were long, one walk that compares the first four bytes."""
        if len(self.sought) * len(where) <= _FEW:
            return any(one in where for one in self.sought)
        if not self.by_prefix:
            for one in self.sought:  # each has five bytes or more
                self.by_prefix.setdefault(int.from_bytes(one[:4], "little"), []).append(one)
        prefixes = np.fromiter(sorted(self.by_prefix), np.uint32)
        for begin in range(0, len(where), _CHUNK):
            cells = np.frombuffer(where[begin : begin + _CHUNK + 3], np.uint8).astype(np.uint32)
            fours = cells[:-3] | cells[1:-2] << 8 | cells[2:-1] << 16 | cells[3:] << 24
            for place in np.flatnonzero(np.isin(fours, prefixes)).tolist():
                at = begin + place
                if any(where.startswith(one, at) for one in self.by_prefix[int(fours[place])]):
                    return True
        return False


_FEW: Final = 50_000_000
_CHUNK: Final = 1 << 22
_UID_IN_TEXT: Final = re.compile(r"[0-9]+(?:\.[0-9]+){3,}").findall
_UID_IN_BYTES: Final = re.compile(rb"[0-9]+(?:\.[0-9]+){3,}").findall


def _plain(text: str) -> str:
    """Lower case without accents; whatever is no letter or digit becomes a space; line ends stay."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    return "\n".join(" ".join(re.findall(r"[^\W_]+", line)) for line in text.lower().split("\n"))
