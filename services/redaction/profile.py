"""What is done to each attribute: PS3.15 Table E.1-1 with the options of a profile, compiled to one action a tag."""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

from pydicom.datadict import tag_for_keyword

from services.redaction.facts import TABLES, rows
from shared.dicom_encoding import dictionary_vr, in_dictionary
from shared.errors import ErrorCode, StepwedgeError

PROFILES: Final = Path(__file__).parent / "profiles"
EDITION: Final = "2026c"
ENGINE: Final = "4"
"""Part of every profile's digest; grows whenever the same object and the same tables give another result."""


class Action(Enum):
    """What happens to one attribute."""

    __hash__ = object.__hash__  # asked for every element; a member is itself and nothing else

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
    TEXT = "C"
    """Free text of which the words stay that name nobody; codes of a sequence stay where their scheme is public."""
    SHIFT = "C dates"
    """Dates moved by the days of the subject."""
    LABEL = "C label"
    """The name of a device on the network, replaced by a pseudonym."""
    CONTENT = "C content"
    """Content items of a report, each by its concept (Table E.3.4-1)."""
    GRAPHICS = "C graphics"
    """Graphics stay; their text is cleaned."""
    PRIVATE = "PRIVATE"
    """Private: removed, but for what is known to be safe where that option is taken."""
    UNKNOWN = "UNKNOWN"
    """Public, but in no data dictionary that we know: removed."""
    CURVE = "CURVE"
    """Of a group 50xx: removed."""
    OVERLAY = "OVERLAY"
    """Of a group 60xx: removed, the whole plane with its labels and descriptions."""
    SILENT = ""
    """Removed and not counted: group lengths and padding, which writers make anew."""


class Option(StrEnum):
    """Options of PS3.15 E.3, all of them."""

    CLEAN_PIXELS = "clean-pixels"
    """E.3.1: text burned into the pixels is blanked."""
    CLEAN_FACES = "clean-faces"
    """E.3.2: nothing by which a face could be recognized; objects that may show one are refused."""
    CLEAN_GRAPHICS = "clean-graphics"
    """E.3.3: graphic annotations stay, their text cleaned; overlays stay where they show no text."""
    CLEAN_STRUCTURED_CONTENT = "clean-structured-content"
    """E.3.4: reports keep the content that names nobody."""
    CLEAN_DESCRIPTORS = "clean-descriptors"
    """E.3.5: descriptions and comments keep the words that name nobody."""
    RETAIN_FULL_DATES = "retain-full-dates"
    """E.3.6: dates and times stay."""
    RETAIN_MODIFIED_DATES = "retain-modified-dates"
    """E.3.6: dates are moved, all of one person by the same number of days."""
    RETAIN_PATIENT_CHARACTERISTICS = "retain-patient-characteristics"
    """E.3.7: age, sex, size, weight and the like stay; ages over 89 are 90."""
    RETAIN_DEVICE_IDENTITY = "retain-device-identity"
    """E.3.8: serial numbers, station names and the like stay."""
    RETAIN_UIDS = "retain-uids"
    """E.3.9: UIDs stay."""
    RETAIN_SAFE_PRIVATE = "retain-safe-private"
    """E.3.10: private elements that are known to be safe stay."""
    RETAIN_INSTITUTION_IDENTITY = "retain-institution-identity"
    """E.3.11: the institution stays."""


COLUMNS: Final[Mapping[Option, tuple[str, Action]]] = {
    Option.RETAIN_UIDS: ("uids", Action.KEEP),
    Option.RETAIN_DEVICE_IDENTITY: ("device", Action.LABEL),
    Option.RETAIN_INSTITUTION_IDENTITY: ("institution", Action.KEEP),
    Option.RETAIN_PATIENT_CHARACTERISTICS: ("patient", Action.TEXT),
    Option.RETAIN_FULL_DATES: ("full_dates", Action.KEEP),
    Option.RETAIN_MODIFIED_DATES: ("modified_dates", Action.SHIFT),
    Option.CLEAN_DESCRIPTORS: ("descriptors", Action.TEXT),
    Option.CLEAN_STRUCTURED_CONTENT: ("structured", Action.CONTENT),
    Option.CLEAN_GRAPHICS: ("graphics", Action.GRAPHICS),
}
"""Column of each option in the table, and what its C (clean) is."""

_CONFLICTS: Final = ((Option.RETAIN_FULL_DATES, Option.RETAIN_MODIFIED_DATES, "dates either stay or are moved"),)

# PS3.15 E.1: a compound action is X unless the Type of the attribute in its IOD forbids that. Where the IOD is not
# known, the mildest member that is valid for every Type named by the compound is valid for all IODs.
_RESOLVED: Final = {
    "X": Action.REMOVE,
    "Z": Action.EMPTY,
    "D": Action.DUMMY,
    "U": Action.UID,
    "K": Action.KEEP,
    "C": Action.TEXT,
    "X/Z": Action.EMPTY,
    "X/D": Action.DUMMY,
    "X/Z/D": Action.DUMMY,
    "Z/D": Action.DUMMY,
    "X/Z/U*": Action.UID,
}
# The first member of a compound that is valid for a Type, in the order in which they say less.
_BY_TYPE: Final = {"3": "XZD", "2": "ZD", "1": "D"}

_NEVER_TYPE_2: Final = frozenset({0x00081110})
"""X/Z in the table, and Type 3 with one item or more wherever a stored object has it: empty it would be invalid."""

_NO_PLANES: Final = frozenset((*range(0x5020, 0x5100), *range(0x6020, 0x6100)))
"""Groups that look like those of curves and overlays and are none (PS3.5 7.6)."""

_MISPLACED: Final = frozenset({0x0000, 0x0002, 0x0004})
"""Groups that no data set has: commands, meta information, and the directory's (PS3.15 E.1.1)."""

# Duties of PS3.15 E.1.1 and E.1.2 that stand in the text, not in the table, and groups that no stored object has.
_DUTIES: Final[Mapping[int, Action]] = {
    0x00080300: Action.SILENT,  # Private Data Element Characteristics: made anew of what is left
    0x00280303: Action.SILENT,  # set anew
    0x00120062: Action.SILENT,  # set anew
    0x00120063: Action.SILENT,  # set anew, so that it does not grow
    0x00120064: Action.SILENT,  # set anew
    0x04000500: Action.REMOVE,  # Encrypted Attributes: nobody can check what is in there
    0x4FFE0001: Action.REMOVE,  # MAC Parameters: the signatures are gone
    0xFFFCFFFC: Action.SILENT,
}
# Whoever keeps one of these by an override has not de-identified.
_NEVER_KEPT: Final = frozenset({"person", "id"})


@dataclass(frozen=True, slots=True)
class Override:
    """One action of a site's own: on which attribute, and why."""

    tag: int
    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The actions for objects of one IOD.

    root, nested: action on an attribute in the data set itself, and inside items. plain_root, plain_nested: the same
    without the options that clean; what is done where nothing of a value is left after cleaning.
    """

    root: Mapping[int, Action]
    nested: Mapping[int, Action]
    plain_root: Mapping[int, Action]
    plain_nested: Mapping[int, Action]


@dataclass(frozen=True)
class Profile:
    """A compiled profile.

    name: as in its file. edition: of PS3.15. options: in the order of their names. methods: codes of CID 7050 with
    their meanings. digest: SHA-256 of the profile, of every table, of the detector if there is one, and of the engine's
    number, in hexadecimal.
    pixels: how pixels are cleaned, as `services.redaction.clean_pixels.Policy` reads it.
    trust_private_characteristics: whether an object's own word (0008,0303) that private elements are safe is taken.
    """

    name: str
    edition: str
    options: tuple[Option, ...]
    methods: tuple[tuple[str, str], ...]
    digest: str
    listed: Mapping[int, Action] = field(repr=False, compare=False)
    overrides: tuple[Override, ...] = ()
    pixels: Mapping[str, Any] = field(default_factory=dict, compare=False)
    trust_private_characteristics: bool = True
    _plans: dict[str, Plan] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def basic(cls) -> Profile:
        """The Basic Application Level Confidentiality Profile without options."""
        return cls.load(PROFILES / "basic.toml")

    @classmethod
    def load(cls, path: Path, digest: str = "") -> Profile:
        """Compile a profile.

        Raises CONFIGURATION where the file is wrong, where its options exclude each other, or where `digest` is given
        and is not that of the compiled profile.
        """
        profile = _load(path)
        if digest and not hmac.compare_digest(profile.digest, digest.lower()):
            raise _configuration("the profile, its tables or the engine are not those of the digest that is asked for")
        return profile

    @classmethod
    def file(cls, name: str) -> Path:
        """The file of a profile that is named: one that ships, or any. Raises CONFIGURATION where there is none."""
        shipped = PROFILES / f"{name}.toml"
        path = shipped if re.fullmatch(r"[a-z0-9-]+", name) and shipped.is_file() else Path(name)
        try:
            found = path.is_file()
        except OSError:  # a folder above it may not be searched
            raise _configuration("the profile cannot be read") from None
        if not found:
            known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.toml")))
            raise _configuration(f"there is neither a profile of that name ({known}) nor such a file")
        return path

    @classmethod
    def parse(cls, source: bytes, name: str = "profile") -> Profile:
        """Compile the text of a profile's file; as `load`."""
        try:
            content = tomllib.loads(source.decode())
        except ValueError:
            raise _configuration("the profile cannot be read") from None
        unknown = content.keys() - {"name", "edition", "options", "override", "trust_private_characteristics", "pixels"}
        if unknown:
            raise _configuration(f"the profile has a key that does not exist: {sorted(unknown)[0]}")
        if content.get("edition") != EDITION:
            raise _configuration(f"the profile is not for edition {EDITION}")
        options = _options(content.get("options", []))
        overrides = tuple(_overrides(content.get("override", [])))
        cleaning = _pixels(content.get("pixels", {}), options)
        trust = content.get("trust_private_characteristics", True)
        if not isinstance(trust, bool):
            raise _configuration("trust_private_characteristics is neither true nor false")
        return cls(
            name=str(content.get("name", name)),
            edition=EDITION,
            options=options,
            methods=tuple(_methods(options)),
            digest=_digest(source + _detector(cleaning, options)),
            listed=_listed(options, overrides, {}),
            overrides=overrides,
            pixels=cleaning,
            trust_private_characteristics=trust,
        )

    @classmethod
    def of(cls, options: Iterable[Option]) -> Profile:
        """The Basic Profile with options."""
        names = ", ".join(f'"{option}"' for option in sorted(options))
        return cls.parse(f'name = "composed"\nedition = "{EDITION}"\noptions = [{names}]\n'.encode())

    @cached_property
    def retained(self) -> frozenset[int]:
        """Attributes that may stand as they did, by an option or an override; a label of ours stays one."""
        return frozenset(tag for tag, action in self.listed.items() if action in (Action.KEEP, Action.LABEL))

    def action(self, tag: int) -> Action:
        """What happens to the attribute where its IOD is not known, sequence or not."""
        listed = self.listed.get(tag)
        return unlisted(tag) if listed is None else listed

    def plan(self, sop_class: str) -> Plan:
        """The actions for objects of a SOP class, by the Types that its IOD gives the attributes."""
        iod = iods().get(sop_class, "")
        plan = self._plans.get(iod)
        if plan is None:
            root, nested = _types(iod)
            plain = tuple(option for option in self.options if not option.startswith("clean"))
            plan = self._plans[iod] = Plan(
                _listed(self.options, self.overrides, root),
                _listed(self.options, self.overrides, nested),
                _plain(_listed(plain, (), root), root),
                _plain(_listed(plain, (), nested), nested),
            )
        return plan


@lru_cache(maxsize=16)
def _load(path: Path) -> Profile:
    try:
        return Profile.parse(path.read_bytes(), path.stem)
    except OSError:
        raise _configuration("the profile cannot be read") from None


def _options(names: Any) -> tuple[Option, ...]:
    if not isinstance(names, list):
        raise _configuration("options is no list")
    try:
        options = tuple(sorted({Option(name) for name in names}))
    except (ValueError, TypeError):
        raise _configuration(f"the profile asks for an option other than {', '.join(Option)}") from None
    for one, other, why in _CONFLICTS:
        if one in options and other in options:
            raise _configuration(f"the options {one} and {other} exclude each other: {why}")
    return options


def _pixels(table: Any, options: Sequence[Option]) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise _configuration("pixels is no table")
    if table and Option.CLEAN_PIXELS not in options:
        raise _configuration(f"the profile says how pixels are cleaned and does not ask for {Option.CLEAN_PIXELS}")
    if Option.CLEAN_PIXELS in options:
        from services.redaction.clean_pixels import Policy  # it imports this module

        Policy.load(table)
    return table


def _detector(table: Mapping[str, Any], options: Sequence[Option]) -> bytes:
    """Digest of the text detector that cleans pixels: part of the profile's. Raises MODEL_NOT_FOUND."""
    if Option.CLEAN_PIXELS not in options:
        return b""
    from services.redaction.clean_pixels import Policy

    return Policy.load(table).detector().sha256.encode()


def _overrides(entries: Any) -> Iterator[Override]:
    if not isinstance(entries, list):
        raise _configuration("override is no list of tables")
    seen: set[int] = set()
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() != {"attribute", "action", "reason"}:
            raise _configuration("an override has other keys than attribute, action and reason")
        attribute, action, reason = (str(entry[key]).strip() for key in ("attribute", "action", "reason"))
        tag = tag_of(attribute)
        if action not in ("X", "Z", "D", "U", "K", "C"):
            raise _configuration(f"the override of {attribute} has an action other than X, Z, D, U, K, C")
        if not reason:
            raise _configuration(f"the override of {attribute} says no reason")
        if tag in seen:
            raise _configuration(f"there are two overrides of {attribute}")
        seen.add(tag)
        if tag in _DUTIES or tag >> 16 in _MISPLACED or tag >> 16 & 1:
            raise _configuration(f"{attribute} is not open to an override")
        if action == "K" and _names_somebody(tag):
            raise _configuration(f"{attribute} names somebody: no override may keep it")
        if (action == "U") != (dictionary_vr(tag) == "UI") and action == "U":
            raise _configuration(f"{attribute} is no UID")
        yield Override(tag, _RESOLVED[action], reason)


def _names_somebody(tag: int) -> bool:
    if dictionary_vr(tag) == "PN":
        return True
    return any(tag_for_keyword(row["keyword"]) == tag and row["kind"] in _NEVER_KEPT for row in rows("identifiers.csv"))


def tag_of(attribute: str) -> int:
    """Tag of a keyword, or of "(0008,103E)"."""
    match = re.fullmatch(r"\(?([0-9A-Fa-f]{4}),?\s*([0-9A-Fa-f]{4})\)?", attribute)
    tag = int(match[1] + match[2], 16) if match else tag_for_keyword(attribute)
    if tag is None or not in_dictionary(tag):
        raise _configuration("the data dictionary does not have such an attribute")
    return tag


def _plain(listed: dict[int, Action], types: Mapping[int, str]) -> dict[int, Action]:
    """Actions without cleaning: a C of an option that retains is what the Basic Profile does."""
    basic = None
    for tag, action in listed.items():
        if action in (Action.TEXT, Action.SHIFT, Action.LABEL):
            basic = _listed((), (), types) if basic is None else basic
            listed[tag] = basic[tag]
    return listed


@lru_cache(maxsize=65536)
def unlisted(tag: int) -> Action:
    """What happens to an attribute that no table lists."""
    group = tag >> 16
    if tag in _DUTIES:
        return _DUTIES[tag]
    if group & 1:
        return Action.PRIVATE
    if 0x5000 <= group <= 0x501E:
        return Action.CURVE
    if 0x6000 <= group <= 0x601E:
        return Action.OVERLAY
    if group in _NO_PLANES:
        return Action.UNKNOWN
    if tag & 0xFFFF == 0:
        return Action.SILENT
    if group in _MISPLACED:
        return Action.REMOVE
    return Action.KEEP if in_dictionary(tag) else Action.UNKNOWN


@lru_cache(maxsize=1)
def _constants() -> frozenset[int]:
    return frozenset(int(row["tag"], 16) for row in rows("constant_dates.csv"))


def _listed(options: Sequence[Option], overrides: Iterable[Override], types: Mapping[int, str]) -> dict[int, Action]:
    listed: dict[int, Action] = {}
    for row in attributes():
        tag = int(row["tag"], 16)
        if tag >> 16 not in _MISPLACED:
            listed[tag] = _of_options(tag, row, options) or _of_type(tag, row["basic"], types.get(tag, ""))
    for row in rows("attributes_beyond.csv"):
        listed.setdefault(int(row["tag"], 16), _RESOLVED[row["action"]])
    for override in overrides:
        listed[override.tag] = override.action
    return listed


def _of_options(tag: int, row: Mapping[str, str], options: Sequence[Option]) -> Action | None:
    """What the options make of an attribute; to keep goes before to clean."""
    found: list[Action] = []
    for option in options:
        column, clean = COLUMNS.get(option, ("", Action.KEEP))
        cell = row[column] if column else ""
        if cell:
            found.append(Action.KEEP if cell == "K" else clean)
    if Option.RETAIN_MODIFIED_DATES in options and tag in _constants():
        return None  # neither moved nor kept: many people share such a date
    return Action.KEEP if Action.KEEP in found else found[0] if found else None


def _of_type(tag: int, basic: str, kind: str) -> Action:
    """The member of a compound action that the Type of the attribute asks for; the mildest where it is not known."""
    if kind and "/" in basic and "U" not in basic:
        members = basic.split("/")
        return next(_RESOLVED[member] for member in (*_BY_TYPE[kind], *members) if member in members)
    if basic == "X" and kind in ("1", "2"):
        return Action.DUMMY if kind == "1" else Action.EMPTY  # else the object were invalid
    if basic == "Z" and kind == "1":
        return Action.DUMMY
    if (basic == "X/Z/U*" and dictionary_vr(tag) != "SQ") or tag in _NEVER_TYPE_2:
        return Action.REMOVE
    return _RESOLVED[basic]


@lru_cache(maxsize=1)
def attributes() -> tuple[dict[str, str], ...]:
    """Rows of Table E.1-1 that are of one attribute; for repeating and private groups see `unlisted`."""
    return tuple(row for row in rows("attributes_2026c.csv") if re.fullmatch(r"[0-9A-F]{8}", row["tag"]))


@lru_cache(maxsize=1)
def iods() -> Mapping[str, str]:
    """IOD of each SOP class of storage."""
    return {row["sop_class"]: row["iod"] for row in rows("iods.csv")}


@lru_cache(maxsize=256)
def _types(iod: str) -> tuple[dict[int, str], dict[int, str]]:
    """Types of attributes at the root and in items of an IOD (PS3.3), where they decide between actions."""
    root: dict[int, str] = {}
    nested: dict[int, str] = {}
    if not iod:
        return root, nested
    for row in rows("types.csv"):
        other = dict(pair.rsplit(":", 1) for pair in row["but"].split())
        (root if row["place"] == "root" else nested)[int(row["tag"], 16)] = other.get(iod, row["type"])
    return root, nested


def _methods(options: tuple[Option, ...]) -> Iterator[tuple[str, str]]:
    for row in rows("methods.csv"):
        if not row["option"] or row["option"] in options:
            yield row["code"], row["meaning"]


@lru_cache(maxsize=1)
def _tables() -> bytes:
    digest = hashlib.sha256(f"stepwedge redaction engine {ENGINE}\n".encode())
    for path in sorted(TABLES.rglob("*")):
        if path.suffix in (".csv", ".toml", ".txt"):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()


def _digest(source: bytes) -> str:
    return hashlib.sha256(_tables() + hashlib.sha256(source).digest()).hexdigest()


def _configuration(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, words)
