"""What is done to each attribute: PS3.15 Table E.1-1 with the options of a profile, compiled to one action a tag."""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from shared.dicom_encoding import dictionary_vr, in_dictionary
from shared.errors import ErrorCode, StepwedgeError

TABLES: Final = Path(__file__).parent / "tables"
PROFILES: Final = Path(__file__).parent / "profiles"
EDITION: Final = "2026c"
ENGINE: Final = "2"
"""Part of every profile's digest; grows whenever the same object and the same tables give another result."""


class Action(Enum):
    """What happens to one attribute."""

    KEEP = "K"
    """Kept where its VR allows; sequences are descended into."""
    REMOVE = "X"
    """Removed."""
    EMPTY = "Z"
    """Zero length; valid for Type 2 and 3."""
    DUMMY = "D"
    """A value that means nothing; valid for every Type. An empty value stays empty."""
    UID = "U"
    """Another UID, the same for the same; in a sequence, of every UID in it."""
    PRIVATE = "PRIVATE"
    """Private: removed."""
    UNKNOWN = "UNKNOWN"
    """Public, but in no data dictionary that we know: removed."""
    CURVE = "CURVE"
    """Of a group 50xx: removed."""
    OVERLAY = "OVERLAY"
    """Of a group 60xx: removed, the whole plane with its labels and descriptions."""
    SILENT = ""
    """Removed and not counted: group lengths and padding, which writers make anew."""


class Option(StrEnum):
    """Options of PS3.15 E.3 that the engine honours; the name of each is its column in the table."""

    RETAIN_UIDS = "retain-uids"
    """E.3.9: UIDs stay."""
    RETAIN_DEVICE_IDENTITY = "retain-device-identity"
    """E.3.7: serial numbers, station names and the like stay."""
    RETAIN_INSTITUTION_IDENTITY = "retain-institution-identity"
    """E.3.8: the institution stays."""
    RETAIN_FULL_DATES = "retain-full-dates"
    """E.3.6: dates and times stay."""


_COLUMNS: Final = {
    Option.RETAIN_UIDS: "uids",
    Option.RETAIN_DEVICE_IDENTITY: "device",
    Option.RETAIN_INSTITUTION_IDENTITY: "institution",
    Option.RETAIN_FULL_DATES: "full_dates",
}

# PS3.15 E.1: a compound action is X unless the Type of the attribute in its IOD forbids that. Which Type it has depends
# on the IOD; the mildest member that is valid for every Type named by the compound is valid for all IODs.
_RESOLVED: Final = {
    "X": Action.REMOVE,
    "Z": Action.EMPTY,
    "D": Action.DUMMY,
    "U": Action.UID,
    "K": Action.KEEP,
    "X/Z": Action.EMPTY,
    "X/D": Action.DUMMY,
    "X/Z/D": Action.DUMMY,
    "Z/D": Action.DUMMY,
    "X/Z/U*": Action.UID,
}

_NEVER_TYPE_2: Final = frozenset({0x00081110})
"""X/Z in the table, and Type 3 with one item or more wherever a stored object has it: empty it would be invalid."""

_MISPLACED: Final = frozenset({0x0000, 0x0002, 0x0004})
"""Groups that no data set has: commands, meta information, and the directory's (PS3.15 E.1.1)."""

# Duties of PS3.15 E.1.1 and E.1.2 that stand in the text, not in the table, and groups that no stored object has.
_DUTIES: Final[Mapping[int, Action]] = {
    0x00080300: Action.REMOVE,  # Private Data Element Characteristics: no private element is left to describe
    0x00280303: Action.REMOVE,  # set anew
    0x00120062: Action.SILENT,  # set anew
    0x00120063: Action.SILENT,  # set anew, so that it does not grow
    0x00120064: Action.SILENT,  # set anew
    0x04000500: Action.REMOVE,  # Encrypted Attributes: nobody can check what is in there
    0x4FFE0001: Action.REMOVE,  # MAC Parameters: the signatures are gone
    0xFFFCFFFC: Action.SILENT,
}


@dataclass(frozen=True)
class Profile:
    """A compiled profile.

    name: as in its file. edition: of PS3.15. options: in the order of their names. methods: codes of CID 7050 with
    their meanings. digest: SHA-256 of the profile, of every table and of the engine's number, in hexadecimal.
    """

    name: str
    edition: str
    options: tuple[Option, ...]
    methods: tuple[tuple[str, str], ...]
    digest: str
    listed: Mapping[int, Action] = field(repr=False)

    @classmethod
    def basic(cls) -> Profile:
        """The Basic Application Level Confidentiality Profile without options."""
        return cls.load(PROFILES / "basic.toml")

    @classmethod
    @lru_cache(maxsize=16)
    def load(cls, path: Path) -> Profile:
        """Compile a profile. Raises CONFIGURATION where the file is wrong or asks for what is not offered."""
        try:
            source = path.read_bytes()
            content = tomllib.loads(source.decode())
        except (OSError, ValueError):
            raise _configuration("the profile cannot be read") from None
        if content.keys() - {"name", "edition", "options"}:
            raise _configuration("the profile has a key that does not exist")
        if content.get("edition") != EDITION:
            raise _configuration(f"the profile is not for edition {EDITION}")
        try:
            options = tuple(sorted(Option(name) for name in content.get("options", [])))
        except (ValueError, TypeError):
            raise _configuration(f"the profile asks for an option other than {', '.join(Option)}") from None
        return cls(
            name=str(content.get("name", path.stem)),
            edition=EDITION,
            options=options,
            methods=tuple(_methods(options)),
            digest=_digest(source),
            listed=_listed(options),
        )

    def action(self, tag: int) -> Action:
        """What happens to the attribute, sequence or not, wherever it stands."""
        listed = self.listed.get(tag)
        if listed is not None:
            return listed
        return _unlisted(tag)


@lru_cache(maxsize=65536)
def _unlisted(tag: int) -> Action:
    group = tag >> 16
    if tag in _DUTIES:
        return _DUTIES[tag]
    if group & 1:
        return Action.PRIVATE
    if 0x5000 <= group <= 0x501E:
        return Action.CURVE
    if 0x6000 <= group <= 0x601E:
        return Action.OVERLAY
    if tag & 0xFFFF == 0:
        return Action.SILENT
    if group in _MISPLACED:
        return Action.REMOVE
    return Action.KEEP if in_dictionary(tag) else Action.UNKNOWN


def _listed(options: tuple[Option, ...]) -> dict[int, Action]:
    listed: dict[int, Action] = {}
    for row in rows("attributes_2026c.csv"):
        if not all(letter in "0123456789ABCDEF" for letter in row["tag"]):
            continue  # repeating and private groups: see _unlisted
        tag = int(row["tag"], 16)
        if tag >> 16 in _MISPLACED:
            continue
        action = _RESOLVED[row["basic"]]
        if any(row[_COLUMNS[option]] == "K" for option in options):
            action = Action.KEEP
        elif (row["basic"] == "X/Z/U*" and dictionary_vr(tag) != "SQ") or tag in _NEVER_TYPE_2:
            action = Action.REMOVE
        listed[tag] = action
    for row in rows("attributes_beyond.csv"):
        listed.setdefault(int(row["tag"], 16), _RESOLVED[row["action"]])
    return listed


def _methods(options: tuple[Option, ...]) -> Iterator[tuple[str, str]]:
    for row in rows("methods.csv"):
        if not row["option"] or row["option"] in options:
            yield row["code"], row["meaning"]


def rows(name: str) -> Iterator[dict[str, str]]:
    """Rows of a table; lines that begin with # are notes."""
    with (TABLES / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(line for line in file if not line.startswith("#"))


@lru_cache(maxsize=1)
def objects() -> Mapping[str, Any]:
    """The table of objects that are refused or suspect."""
    return tomllib.loads((TABLES / "objects.toml").read_text(encoding="utf-8"))


def _digest(source: bytes) -> str:
    digest = hashlib.sha256(f"stepwedge redaction engine {ENGINE}\n".encode())
    for path in sorted(TABLES.iterdir()):
        if path.suffix in (".csv", ".toml"):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update(hashlib.sha256(source).digest())
    return digest.hexdigest()


def _configuration(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, words)
