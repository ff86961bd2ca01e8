"""The second opinion: looks for the subject's identifiers in every value of the result, by rules of its own.

It shares no table with the engine: what to look for is gathered by VR and by words in the names of attributes, from the
whole original, and is looked for in every value that is left, text or bytes. A hit quarantines the object.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from pydicom._dicom_dict import DicomDictionary

from services.redaction.text import DEFAULT, decode, encodings
from shared.dicom_encoding import PIXEL_TAGS, TEXT_VRS, Elements
from shared.pseudonyms import Pseudonyms

# Words in keywords (PS3.6) that say that a value names somebody or leads there, tried in this order.
_RULES: Final = (
    ("skip", re.compile(r"Sequence$|UID$|Type$|Code|Scheme|Qualifier|Device|Manufacturer|Time|Instruction|Comment")),
    ("day", re.compile(r"Birth.*Date|Death.*Date")),
    ("name", re.compile(r"(Patient|Person|Physician|Operator|Observer|Performer|Reviewer|Interpreter|Creator).*Name")),
    ("name", re.compile(r"^(RequestingPhysician|PhysiciansOfRecord|NameOfPhysicians|OperatorsName|Responsible)")),
    (
        "number",
        re.compile(r"^(Other)?(Patient|Medical|Accession|Admission|ServiceEpisode|Insurance|Visit).*(ID|Number)"),
    ),
    ("number", re.compile(r"Patient.*ID|(Placer|Filler)OrderNumber|Telephone|SubjectID$|^StudyID$")),
    ("phrase", re.compile(r"Address$|^InstitutionName|Telecom")),
)
# Terms of the standard that are also words: alone they prove nothing.
_TERMS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        abdomen ankle anonymized anon arm axial brain breast chest contrast derived elbow female finger foot hand head
        heart hip image kidney knee left leg liver lung male monochrome neck none original other patient pelvis phantom
        primary right secondary shoulder skull spine test thorax unknown wrist anonymous mr ct us name doctor physician
        operator first last hospital clinic university medical center radiology
        """,
    )
)
_MAX_PATTERNS: Final = 5000
_MIN_BYTES: Final = 5
_HEAD: Final = 4096  # of a compressed frame: where comments and application data stand
_NUMERIC: Final = frozenset({"DS", "IS", "DA", "DT", "TM", "AS"})
_CLEANED: Final = frozenset({0x00080005})


@dataclass(slots=True)
class _Sought:
    """What to look for: whole words, runs of characters, and bytes."""

    words: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)
    raw: set[bytes] = field(default_factory=set)


def check(original: Elements, result: Elements, pseudonyms: Pseudonyms) -> int:
    """How many values of the result hold an identifier of the original."""
    sought = _Sought()
    for kind, text in sorted(set(_gathered(original, DEFAULT)))[:_MAX_PATTERNS]:
        _add(sought, kind, text, pseudonyms)
    if not sought.words and not sought.raw:
        return 0
    words = _pattern(sought.words, r"(?<!\w)(?:{})(?!\w)")
    runs = _pattern(sought.runs, r"(?:{})")
    raw = re.compile(b"|".join(map(re.escape, sorted(sought.raw))), re.IGNORECASE) if sought.raw else None
    telling_terms = {word for word in sought.words if " " in word or any(c.isdigit() for c in word)}
    hits = 0
    lines: list[str] = []
    for vr, value in _left(result, DEFAULT, pseudonyms):
        if isinstance(value, bytes):
            hits += int(raw is not None and raw.search(value) is not None)
        elif vr in _NUMERIC:
            hits += int(any(part in sought.words and len(part) >= 6 for part in value.split("\\")))
        elif vr == "CS":
            # One word of a name may well be one of the standard's terms; two words, or a number, may not.
            hits += int(any(_plain(part) in telling_terms for part in value.split("\\")))
        else:
            lines.append(value)

    def found(text: str) -> bool:
        in_words = words is not None and words.search(text) is not None
        return in_words or (runs is not None and runs.search(text.replace(" ", "")) is not None)

    text = _plain("\n".join(line.replace("\n", " ") for line in lines))
    if found(text):
        hits += sum(map(found, text.split("\n")))
    return hits


def _pattern(alternatives: Iterable[str], form: str) -> re.Pattern[str] | None:
    ordered = sorted(alternatives, key=lambda text: (-len(text), text))
    return re.compile(form.format("|".join(map(re.escape, ordered)))) if ordered else None


@lru_cache(maxsize=65536)
def _rule(tag: int) -> str:
    entry = DicomDictionary.get(tag)
    keyword = entry[4] if entry else ""
    for kind, pattern in _RULES:
        if pattern.search(keyword):
            return kind
    return "skip"


def _gathered(elements: Elements, inherited: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every identifier of the original with its kind, private elements that say they are a person's name included."""
    encoding = encodings(elements, inherited)
    for element in elements:
        if element.items is not None:
            for item in element.items:
                yield from _gathered(item, encoding)
            continue
        if not 1 < len(element.value) <= 1024:
            continue
        kind = "name" if element.vr == "PN" else _rule(element.tag)
        if kind != "skip":
            yield kind, decode(element.value, encoding, person=kind == "name")


def _add(sought: _Sought, kind: str, text: str, pseudonyms: Pseudonyms) -> None:
    for part in re.split(r"[\\=]", text):
        plain = _plain(part).replace("\n", " ").strip()
        if not plain or pseudonyms.is_subject(part.strip()):
            continue
        if kind == "name":
            _add_name(sought, part, plain)
        elif kind == "day":
            _add_day(sought, part)
        elif len(plain.replace(" ", "")) >= (4 if any(c.isdigit() for c in plain) else 5) and plain not in _TERMS:
            sought.words.add(plain)
            _add_raw(sought, part)
            run = plain.replace(" ", "")
            if kind == "number" and len(run) >= 6:
                sought.runs.add(run)


def _add_name(sought: _Sought, part: str, plain: str) -> None:
    words = plain.split()
    telling = [word for word in words if word not in _TERMS]
    sought.words.update(word for word in telling if len(word) >= (4 if word.isascii() else 2))
    if len(words) >= 2 and telling and len("".join(words)) >= 5:
        sought.words.update((" ".join(words), " ".join(reversed(words)), f"{words[0]} {words[-1]}"))
        for run in ("".join(words), "".join(reversed(words)), words[0] + words[1], words[1] + words[0]):
            if len(run) >= 6 and any(word in run for word in telling):
                sought.runs.add(run)
    sought.runs.update(word for word in telling if not word.isascii() and len(word) >= 2)
    if telling:
        _add_raw(sought, part)
        _add_raw(sought, part.replace("^", " ").strip())
        for word in re.split(r"[\^ ]", part):
            if len(word) >= 6 and _plain(word).strip() in telling:
                _add_raw(sought, word)


def _add_raw(sought: _Sought, text: str) -> None:
    text = text.strip()
    if len(text) < _MIN_BYTES:
        return
    for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
        try:
            sought.raw.add(text.encode(encoding))
        except UnicodeEncodeError:
            continue


def _add_day(sought: _Sought, text: str) -> None:
    match = re.fullmatch(r"\s*(\d{4})[.\-/]?(\d\d)[.\-/]?(\d\d).*", text)
    if match is None or match[1] < "1850" or match.group(1, 2, 3) == ("1900", "01", "01"):
        return
    year, month, day = match.groups()
    sought.words.update((year + month + day, f"{year} {month} {day}", f"{day} {month} {year}", f"{month} {day} {year}"))
    sought.words.update((f"{int(day)} {int(month)} {year}", f"{int(month)} {int(day)} {year}"))
    sought.raw.add((year + month + day).encode())


def _left(elements: Elements, inherited: Sequence[str], pseudonyms: Pseudonyms) -> Iterator[tuple[str, str | bytes]]:
    """Every value of the result: text decoded, the rest as bytes; of compressed frames only their heads, and of native
    pixel data nothing, since a byte pattern among samples is no text. Names that we gave are left out."""
    encoding = encodings(elements, inherited)
    for element in elements:
        if element.items is not None:
            for item in element.items:
                yield from _left(item, encoding, pseudonyms)
        elif element.fragments is not None:
            for fragment in element.fragments[1:]:
                yield element.vr, bytes(fragment[:_HEAD])
        elif not element.value or element.tag in _CLEANED or element.tag in PIXEL_TAGS:
            continue
        elif element.vr == "UI":
            # A UID of another's making may hold a number or a date; one of ours is random, one of a standard public.
            for uid in decode(element.value, DEFAULT).split("\\"):
                if not uid.startswith(("1.2.840.10008.", "2.16.840.1.113883.")) and not pseudonyms.is_ours(uid):
                    yield "UI", uid.replace(".", "")
        elif element.vr in TEXT_VRS:
            text = decode(element.value, encoding, person=element.vr == "PN")
            if not pseudonyms.is_subject(text):
                yield element.vr, text
        else:
            yield element.vr, bytes(element.value)


def _plain(text: str) -> str:
    """Lower case without accents; whatever is no letter or digit becomes a space; line ends stay."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    return "\n".join(" ".join(re.findall(r"[^\W_]+", line)) for line in text.lower().split("\n"))
