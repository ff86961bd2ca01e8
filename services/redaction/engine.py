"""Takes identity out of one object: every element at every depth, by the profile; or refuses the object whole."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydicom._uid_dict import UID_dictionary

from services.redaction import burned_in, pixels, residual, values
from services.redaction.codes import strict_code
from services.redaction.dummies import WORD, dummy
from services.redaction.echoes import Echoes, kinds, names_instance
from services.redaction.profile import Action, Option, Profile, objects
from services.redaction.receipt import Counts, Receipt
from services.redaction.text import DEFAULT, decode, encodings
from shared.dicom import STORAGE_SOP_CLASSES, patient
from shared.dicom_encoding import (
    DEFLATED,
    IMPLICIT_LITTLE,
    PIXEL_TAGS,
    TEXT_VRS,
    Bytes,
    Element,
    Elements,
    Encoded,
    dictionary_vr,
    encode,
    parse,
)
from shared.errors import ErrorCode, StepwedgeError
from shared.pseudonyms import Pseudonyms

IMPLEMENTATION_CLASS_UID: Final = "2.25.263548087532196012408157160453905112137"
IMPLEMENTATION_VERSION: Final = "STEPWEDGE_1"

_CHARACTER_SET: Final = 0x00080005
_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_PATIENT_NAME: Final = 0x00100010
_PATIENT_ID: Final = 0x00100020
_ENCAPSULATED_DOCUMENT: Final = 0x00420011
_REMOVED: Final = frozenset(
    {Action.REMOVE, Action.PRIVATE, Action.UNKNOWN, Action.CURVE, Action.OVERLAY, Action.SILENT}
)
_TEMPORAL: Final = frozenset({"DA", "DT", "TM"})
_FREE_TEXT: Final = frozenset({"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"})
_TERM: Final = re.compile(rb"[A-Za-z0-9_ \\]*")
# Terms, and numbers of frames, on which a reader's parsing depends; a name that equals one is not worth an unreadable
# object.
_STRUCTURAL: Final = frozenset({_CHARACTER_SET, 0x00080060, 0x00081160, 0x00280004, 0x0040A010, 0x0040A040, 0x00700023})


@dataclass(frozen=True, slots=True)
class Redacted:
    """A redacted object: its bytes (Part 10), what was done, and the names it goes by.

    study, series, instance: the new UIDs, empty where the original had none. subject: pseudonym of the person.
    """

    data: bytes
    receipt: Receipt
    study: str
    series: str
    instance: str
    subject: str


class RefusedError(StepwedgeError):
    """Nothing of the object is released. receipt: what had been done until then, without a result; for the record."""

    def __init__(self, error: StepwedgeError, receipt: Receipt, names: Names) -> None:
        super().__init__(error.code, error.message)
        self.receipt = receipt
        self.names = names


@dataclass(frozen=True, slots=True)
class Names:
    """The pseudonymous names of an object."""

    study: str = ""
    series: str = ""
    instance: str = ""
    subject: str = ""


def redact(data: bytes, pseudonyms: Pseudonyms, profile: Profile) -> Redacted:
    """Redact one object; a function of its three arguments alone.

    Raises NOT_DICOM, MALFORMED_DICOM, NOT_REDACTABLE, RESIDUAL_IDENTITY, as `RefusedError`; no message has a value.
    """
    counts = Counts()
    commitment = pseudonyms.commitment(hashlib.sha256(data).hexdigest())
    codes = tuple(code for code, _ in profile.methods)
    receipt = Receipt(profile.name, profile.digest, profile.edition, counts.by_action, codes, commitment)
    names = Names()
    try:
        original = parse(data)
        names = _names(original, pseudonyms)
        sop_class = _accepted(original)
        run = _Run(profile, pseudonyms, counts, original, names)
        result = run.result(sop_class)
        found = residual.check(original.data_set, result, pseudonyms)
        receipt = replace(receipt, residual_hits=found)
        if found:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_RESIDUAL_IDENTITY, "identity is left after redaction; nothing is released"
            )
        written = _written(original, result, run.meta(sop_class, result))
    except StepwedgeError as error:
        raise RefusedError(error, receipt, names) from None
    risk = burned_in.risk(original)
    receipt = replace(
        receipt,
        output_sha256=hashlib.sha256(written).hexdigest(),
        burned_in_text_possible=bool(risk),
        burned_in_text_detail=risk,
    )
    return Redacted(written, receipt, names.study, names.series, names.instance, names.subject)


def _accepted(original: Encoded) -> str:
    """The SOP class, where the object is of a kind that can be cleaned; NOT_REDACTABLE else."""
    refused = objects()["refused"]
    sop_class = values.first(original.data_set, _SOP_CLASS) or values.first(original.meta, 0x00020002)
    if not sop_class:
        raise _not_redactable("the object does not say what it is: no SOP class")
    if sop_class in refused["sop_classes"]:
        raise _not_redactable(f"the object is {refused['sop_classes'][sop_class]}")
    if sop_class not in STORAGE_SOP_CLASSES:
        raise _not_redactable("the SOP class is private or not one of storage")
    if original.transfer_syntax in refused["transfer_syntaxes"]:
        raise _not_redactable(refused["transfer_syntaxes"][original.transfer_syntax])
    if original.transfer_syntax not in UID_dictionary:
        raise _not_redactable("the transfer syntax is private")
    for element in original.data_set:
        if element.tag == _ENCAPSULATED_DOCUMENT:
            raise _not_redactable("the object holds an encapsulated document")
        if element.fragments is not None and element.tag not in PIXEL_TAGS and not (element.tag >> 16) & 1:
            raise _not_redactable("an element other than pixel data is encapsulated")
    return sop_class


def _not_redactable(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_NOT_REDACTABLE, words)


def _names(original: Encoded, pseudonyms: Pseudonyms) -> Names:
    """What the object will be called, the same as `shared.dicom.uids` and `Pseudonyms` make of the original."""

    def uid(tag: int) -> str:
        # Whatever stands there, a UID or not, gets a valid one; of two elements the last counts, as in the result.
        text = values.first(original.data_set[::-1], tag)
        return pseudonyms.uid(text) if text else ""

    subject = pseudonyms.subject(*patient(original))
    return Names(uid(_STUDY), uid(_SERIES), uid(_SOP_INSTANCE), subject)


class _Run:
    """One object on its way through the profile."""

    def __init__(
        self, profile: Profile, pseudonyms: Pseudonyms, counts: Counts, original: Encoded, names: Names
    ) -> None:
        self.profile = profile
        self.pseudonyms = pseudonyms
        self.counts = counts
        self.original = original
        self.names = names
        self.keep_uids = Option.RETAIN_UIDS in profile.options
        self.keep_dates = Option.RETAIN_FULL_DATES in profile.options
        self.echoes = Echoes(_identifiers(original.data_set, DEFAULT))

    def result(self, sop_class: str) -> Elements:
        """The redacted data set, sorted by tag."""
        elements = self._data_set(self.original.data_set, DEFAULT, strict=False, depth=0)
        elements = pixels.cleaned(elements, self.original, self.counts)
        kept = {element.tag: element for element in elements}
        for element in (*self._statement(), Element(_SOP_CLASS, "UI", sop_class.encode())):
            kept[element.tag] = element
        return [kept[tag] for tag in sorted(kept)]

    def _statement(self) -> list[Element]:
        """What was done, as PS3.15 E.1.1 and E.3.6 ask for."""
        codes = [
            [
                Element(0x00080100, "SH", code.encode()),
                Element(0x00080102, "SH", b"DCM"),
                Element(0x00080104, "LO", meaning.encode()),
            ]
            for code, meaning in self.profile.methods
        ]
        method = f"PS3.15 {self.profile.edition} Basic Profile"
        temporal = b"UNMODIFIED" if self.keep_dates else b"REMOVED"
        return [
            Element(0x00120062, "CS", b"YES"),
            Element(0x00120063, "LO", "\\".join([method, *self.profile.options]).encode()),
            Element(0x00120064, "SQ", b"", codes),
            Element(0x00280303, "CS", temporal),
        ]

    def meta(self, sop_class: str, result: Elements) -> Elements:
        """File meta information of our own (PS3.10 7.1); nothing of the original's is taken over."""
        self.counts.add("META", sum(element.tag & 0xFFFF > 0x0010 for element in self.original.meta))
        self.counts.add("PREAMBLE", int(self.original.preamble))
        instance = values.first(result, _SOP_INSTANCE) or self.pseudonyms.uid("no SOP Instance UID")
        rest = [
            Element(0x00020001, "OB", b"\0\1"),
            Element(0x00020002, "UI", sop_class.encode()),
            Element(0x00020003, "UI", instance.encode()),
            Element(0x00020010, "UI", self.original.transfer_syntax.encode()),
            Element(0x00020012, "UI", IMPLEMENTATION_CLASS_UID.encode()),
            Element(0x00020013, "SH", IMPLEMENTATION_VERSION.encode()),
        ]
        length = sum(map(len, encode(rest, implicit=False, little=True)))
        return [Element(0x00020000, "UL", length.to_bytes(4, "little")), *rest]

    def _data_set(self, elements: Elements, inherited: Sequence[str], *, strict: bool, depth: int) -> Elements:
        """One data set or item. strict: inside a sequence whose content is to become a dummy."""
        encoding = encodings(elements, inherited)
        code_is_public = not strict or values.is_public_code(elements)
        kept: dict[int, Element] = {}
        for element in elements:
            tag = element.tag
            action = self.profile.action(tag)
            if action in _REMOVED or (depth and tag in PIXEL_TAGS):
                self.counts.add(action.value if action in _REMOVED else "X")
                continue
            done = _HANDLERS[action](self, element, encoding, strict, depth)
            if done is not None and strict and action is Action.KEEP and done.items is None:
                done = strict_code(done, public=code_is_public) or self._strictly(done)
            if done is not None:
                kept[tag] = done
        return [kept[tag] for tag in sorted(kept)]

    def _empty(self, element: Element, encoding: Sequence[str], strict: bool, depth: int) -> Element | None:
        if element.tag == _PATIENT_NAME and not strict:
            return self._dummy(element, encoding, strict, depth)
        vr = _outgoing_vr(element)
        self.counts.add("Z", int(bool(element.items or element.value)))
        return Element(element.tag, vr, b"", [] if vr == "SQ" else None)

    def _dummy(self, element: Element, encoding: Sequence[str], strict: bool, depth: int) -> Element | None:
        vr = _outgoing_vr(element)
        if vr == "SQ":
            if element.items is None:
                self.counts.add("X")
                return None
            self.counts.add("D")
            return self._items(element, encoding, strict=True, depth=depth)
        if element.items is None and not bytes(element.value).strip(b"\0 "):
            return Element(element.tag, vr)
        if vr == "UI":
            return self._uid(element, encoding, strict, depth)
        self.counts.add("D")
        if element.tag in (_PATIENT_ID, _PATIENT_NAME):
            if not depth:
                return Element(element.tag, vr, self.names.subject.encode())
            return Element(element.tag, vr, self._person(element, encoding).encode())
        return dummy(element, vr)

    def _person(self, element: Element, encoding: Sequence[str]) -> str:
        """A pseudonym for a name or number inside an item, where no issuer stands beside it."""
        text = "" if element.items is not None else decode(element.value, encoding)
        return self.pseudonyms.subject(text)

    def _uid(self, element: Element, encoding: Sequence[str], strict: bool, depth: int) -> Element | None:
        if element.items is not None:
            return self._items(element, encoding, strict=strict, depth=depth)
        mapped, changed = [], False
        for raw in decode(element.value, DEFAULT).split("\\"):
            uid = raw.strip("\0 ")
            new = uid if values.is_public_uid(uid) else self.pseudonyms.uid(uid)
            changed |= new != uid
            mapped.append(new)
        self.counts.add("U", int(changed))
        return Element(element.tag, "UI", "\\".join(mapped).encode())

    def _items(self, element: Element, encoding: Sequence[str], *, strict: bool, depth: int) -> Element:
        items = [self._data_set(item, encoding, strict=strict, depth=depth + 1) for item in element.items or []]
        return Element(element.tag, "SQ", b"", items)

    def _keep(self, element: Element, encoding: Sequence[str], strict: bool, depth: int) -> Element | None:
        """An attribute that the profile keeps: descended into, or judged by its VR, or dropped where it is no such."""
        expected = dictionary_vr(element.tag)
        if element.items is not None or expected == "SQ":
            if element.items is None or expected not in ("SQ", "UN"):
                self.counts.add("UNKNOWN")
                return None
            return self._items(element, encoding, strict=strict, depth=depth)
        vr = expected if element.vr == "UN" else element.vr
        kind = {vr, expected}
        value = element.value
        listed = element.tag in self.profile.listed  # kept by an option, not for want of a rule
        if "UI" in kind:
            return element if listed and self.keep_uids else self._uid(element, encoding, strict, depth)
        if kind & _TEMPORAL and not self.keep_dates:
            if not bytes(value).strip(b"\0 "):
                return Element(element.tag, vr)
            self.counts.add("DATE")
            return dummy(element, vr if vr in _TEMPORAL else expected)
        if kind & {"PN", "AS"} and not listed:
            return self._dummy(Element(element.tag, vr, value), encoding, strict, depth)
        if not values.plausible(element.tag, vr, expected, value) or not _is_term(element.tag, value):
            self.counts.add("UNKNOWN")
            return None
        if vr in _FREE_TEXT and element.tag not in _STRUCTURAL and value and self._names_somebody(element, encoding):
            self.counts.add("C")
            return self._without_echo(element, encoding) if vr == "CS" else dummy(element, vr)
        return element if element.vr == vr else Element(element.tag, vr, value, None, element.fragments)

    def _names_somebody(self, element: Element, encoding: Sequence[str]) -> bool:
        """Whether kept text repeats an identifier, or holds the UID of an instance that this run may keep no more."""
        text = decode(element.value, encoding)
        return text in self.echoes or (not self.keep_uids and names_instance(text))

    def _without_echo(self, element: Element, encoding: Sequence[str]) -> Element:
        """A Code String with a dummy for the term that names somebody; the others stay, so that their places do."""
        terms = bytes(element.value).split(b"\\")
        kept = [WORD if decode(term, encoding) in self.echoes else term for term in terms]
        left = Element(element.tag, "CS", b"\\".join(kept))
        return dummy(element, "CS") if kept == terms or self._names_somebody(left, encoding) else left

    def _strictly(self, element: Element) -> Element:
        """What is left of a value inside content that becomes a dummy: terms and counts, no text and no measure."""
        if not element.value or element.value == WORD or element.vr in ("CS", "UI", "US", "UL", "SS", "SL", "AT"):
            return element
        if element.vr in _TEMPORAL or element.tag in _STRUCTURAL:
            return element
        self.counts.add("D")
        return dummy(element, element.vr)


_Handler = Callable[[_Run, Element, Sequence[str], bool, int], Element | None]
_HANDLERS: Final[dict[Action, _Handler]] = {
    Action.EMPTY: _Run._empty,
    Action.DUMMY: _Run._dummy,
    Action.UID: _Run._uid,
    Action.KEEP: _Run._keep,
}


def _is_term(tag: int, value: Bytes) -> bool:
    """Whether a value that no echo is looked for in is a term at all (PS3.5 6.2, CS; lower case occurs)."""
    return tag not in _STRUCTURAL or tag == _CHARACTER_SET or _TERM.fullmatch(bytes(value).rstrip(b"\0")) is not None


def _outgoing_vr(element: Element) -> str:
    """VR for a value of our own making: the dictionary's, whatever the original claimed."""
    vr = dictionary_vr(element.tag)
    return vr if vr != "UN" or element.vr not in TEXT_VRS else element.vr


def _identifiers(elements: Elements, inherited: Sequence[str]) -> list[tuple[str, str]]:
    """What names somebody, wherever it stands: by the table, and every person's name."""
    encoding = encodings(elements, inherited)
    found: list[tuple[str, str]] = []
    for element in elements:
        if element.items is not None:
            for item in element.items:
                found.extend(_identifiers(item, encoding))
            continue
        kind = kinds().get(element.tag) or ("person" if element.vr == "PN" else None)
        if kind and 0 < len(element.value) <= 1024:
            found.append((kind, decode(element.value, encoding, person=kind == "person")))
    return found


def _written(original: Encoded, result: Elements, meta: Elements) -> bytes:
    """The object as a file (PS3.10): preamble of zeros, our meta information, the data set in its transfer syntax."""
    implicit = original.transfer_syntax == IMPLICIT_LITTLE
    body = encode(result, implicit=implicit, little=original.little)
    if original.transfer_syntax in DEFLATED:
        packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = packer.compress(b"".join(body)) + packer.flush()
        body = [packed + b"\0" * (len(packed) & 1)]
    return b"".join([b"\0" * 128, b"DICM", *encode(meta, implicit=False, little=True), *body])
