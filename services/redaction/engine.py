"""Takes identity out of one object: every element at every depth, by the profile; or refuses the object whole."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID

from services.redaction import burned_in, faces, pixels, private, residual, values
from services.redaction.attributes import Cleaner
from services.redaction.facts import objects
from services.redaction.profile import Option, Profile
from services.redaction.receipt import Box, Counts, Receipt
from shared.dicom import STORAGE_SOP_CLASSES, patient
from shared.dicom_encoding import (
    DEFLATED,
    IMPLICIT_LITTLE,
    PIXEL_TAGS,
    Bytes,
    Element,
    Elements,
    Encoded,
    encode,
    malformed,
    parse,
)
from shared.errors import ErrorCode, StepwedgeError
from shared.pseudonyms import Pseudonyms

IMPLEMENTATION_CLASS_UID: Final = "2.25.263548087532196012408157160453905112137"
IMPLEMENTATION_VERSION: Final = "STEPWEDGE_1"

_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_STUDY: Final = 0x0020000D
_SERIES: Final = 0x0020000E
_ENCAPSULATED_DOCUMENT: Final = 0x00420011
_MOST_PASSES: Final = 8
"""Over one object, with the one that finds nothing more to do; two do for all but damaged ones."""
_TEMPORAL: Final = ((Option.RETAIN_FULL_DATES, b"UNMODIFIED"), (Option.RETAIN_MODIFIED_DATES, b"MODIFIED"))


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


def redact(data: bytes, pseudonyms: Pseudonyms, profile: Profile, study: str = "") -> Redacted:
    """Redact one object; a function of its arguments alone.

    study: the name that its study got before, if any: the object is named under the key that made that name.
    Raises NOT_DICOM, MALFORMED_DICOM, NOT_REDACTABLE, RESIDUAL_IDENTITY and, where pixels are cleaned,
    PIXELS_UNDECODABLE, as `RefusedError`; no message has a value.
    """
    counts = Counts()
    commitment = pseudonyms.commitment(hashlib.sha256(data).hexdigest())
    codes = tuple(code for code, _ in profile.methods)
    receipt = Receipt(
        profile.name,
        profile.digest,
        profile.edition,
        counts.by_action,
        codes,
        commitment,
        options=tuple(map(str, profile.options)),
        key_id=pseudonyms.key_id,
        tags=counts.tags,
    )
    names = Names()
    try:
        original = parse(data)
        before, pseudonyms = pseudonyms, pseudonyms.naming(values.first(original.data_set[::-1], _STUDY), study)
        if pseudonyms is not before:
            commitment = pseudonyms.commitment(hashlib.sha256(data).hexdigest())
            receipt = replace(receipt, key_id=pseudonyms.key_id, input_commitment=commitment)
        names = _names(original, pseudonyms)
        written, result, run = _settled(_Run(profile, pseudonyms, counts, original), counts)
        counts.tag = 0
        counts.add("BLANKED", len(run.boxes))
        receipt = replace(receipt, boxes=run.boxes)
        opinion = residual.second_opinion(
            original, result, pseudonyms, profile.options, profile.retained, pixels=run.text_left
        )
        receipt = replace(receipt, residual_hits=opinion.total, second_opinion=opinion.hits)
        if opinion.total:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_RESIDUAL_IDENTITY, "identity is left after redaction; nothing is released"
            )
    except StepwedgeError as error:
        raise RefusedError(error, receipt, names) from None
    risk = "" if Option.CLEAN_PIXELS in profile.options else burned_in.risk(original)
    receipt = replace(
        receipt,
        output_sha256=hashlib.sha256(written).hexdigest(),
        burned_in_text_possible=bool(risk),
        burned_in_text_detail=risk,
    )
    return Redacted(written, receipt, names.study, names.series, names.instance, names.subject)


def _settled(run: _Run, counts: Counts) -> tuple[bytes, Encoded, _Run]:
    """The file, as what it is read again, and the last pass over it: one that changed not a byte.

    Each pass judges what it reads. Where damage made an object say something else than what the mended one says (its
    first date, what a content item is, how it is encoded), the next pass judges otherwise; so it is made here, not
    left to whoever redacts the result again. counts: of the first pass; what another does beside it is added. Raises
    NOT_REDACTABLE where no pass is the last.
    """
    written = b"".join(run.file())
    for _ in range(_MOST_PASSES - 1):
        result, more = parse(written), Counts()
        run = run.again(result, more)
        pieces = run.file()
        if _equal(pieces, written):
            return written, result, run
        counts.also(more)
        written = b"".join(pieces)
    raise _not_redactable("whatever is written of it, redacted again, becomes something else")


def _equal(pieces: Iterable[Bytes], data: bytes) -> bool:
    """Whether the pieces are the data; large ones are not put together for it."""
    view, at = memoryview(data), 0
    for piece in pieces:
        if view[at : at + len(piece)] != piece:
            return False
        at += len(piece)
    return at == len(data)


def _accepted(original: Encoded, profile: Profile) -> str:
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
    if UID_dictionary.get(original.transfer_syntax, ("", ""))[1] != "Transfer Syntax":
        raise _not_redactable("the transfer syntax is private, younger than our dictionary, or none")
    for element in original.data_set:
        if element.tag == _ENCAPSULATED_DOCUMENT:
            raise _not_redactable("the object holds an encapsulated document")
        if element.fragments is not None and element.tag not in PIXEL_TAGS and not (element.tag >> 16) & 1:
            raise _not_redactable("an element other than pixel data is encapsulated")
        if element.tag in PIXEL_TAGS and element.fragments is None and UID(original.transfer_syntax).is_encapsulated:
            raise malformed("the transfer syntax is compressed and the pixel data is not encapsulated")
    if Option.CLEAN_FACES in profile.options and faces.may_show(original.data_set):
        raise _not_redactable("a face may be recognized, and the profile asks that none can")
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
    """One pass over one object: its data set, its statement and its file meta information."""

    def __init__(
        self,
        profile: Profile,
        pseudonyms: Pseudonyms,
        counts: Counts,
        original: Encoded,
        boxes: tuple[Box, ...] = (),
        looked: frozenset[bytes] = frozenset(),
    ) -> None:
        self._profile = profile
        self._pseudonyms = pseudonyms
        self._counts = counts
        self._original = original
        self._looked = looked
        self.boxes = boxes
        """What was blanked, in the passes before too."""
        self.text_left: Callable[[Encoded], int] | None = None
        """How much text the detector finds in a result; None where pixels are not cleaned."""
        self._transfer_syntax = original.transfer_syntax
        """Of the result: another only where pixel data had to be decoded to be cleaned."""
        self._sop_class = _accepted(original, profile)
        subject = pseudonyms.subject(*patient(original))
        self._cleaner = Cleaner(profile, pseudonyms, counts, original, self._sop_class, subject)

    def again(self, result: Encoded, counts: Counts) -> _Run:
        """The pass over what this one wrote."""
        return _Run(self._profile, self._pseudonyms, counts, result, self.boxes, self._looked)

    def file(self) -> list[Bytes]:
        """The object as a file (PS3.10), in pieces: preamble of zeros, our meta information, the data set."""
        result = self._result()
        body = encode(result, implicit=self._transfer_syntax == IMPLICIT_LITTLE, little=self._original.little)
        if self._transfer_syntax in DEFLATED:
            packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
            packed = packer.compress(b"".join(body)) + packer.flush()
            body = [packed + b"\0" * (len(packed) & 1)]
        return [b"\0" * 128, b"DICM", *encode(self._meta(result), implicit=False, little=True), *body]

    def _result(self) -> Elements:
        """The redacted data set, sorted by tag."""
        elements = self._cleaner.cleaned()
        self._counts.tag = 0
        elements = self._pixels(elements)
        kept = {element.tag: element for element in elements}
        for element in (*self._statement(), Element(_SOP_CLASS, "UI", self._sop_class.encode())):
            kept[element.tag] = element
        return [kept[tag] for tag in sorted(kept)]

    def _pixels(self, elements: Elements) -> Elements:
        """The data set with nothing in its pixel data but the image; where that is asked for, without text in it."""
        if Option.CLEAN_PIXELS not in self._profile.options:
            return pixels.cleaned(elements, self._original, self._counts)
        from services.redaction import clean_pixels  # brings a network along, which not every profile needs

        policy = clean_pixels.Policy.load(self._profile.pixels)
        done = clean_pixels.clean(elements, self._original, self._counts, policy, self._looked)
        self._transfer_syntax, self._looked = done.transfer_syntax, done.looked
        self.boxes = tuple(dict.fromkeys((*self.boxes, *done.boxes)))
        self.text_left = lambda encoded: clean_pixels.text_left(encoded, policy, done.looked)
        return done.elements

    def _statement(self) -> list[Element]:
        """What was done, as PS3.15 E.1.1, E.3.1, E.3.2, E.3.6 and E.3.10 ask for."""
        codes = [
            [
                Element(0x00080100, "SH", code.encode()),
                Element(0x00080102, "SH", b"DCM"),
                Element(0x00080104, "LO", meaning.encode()),
            ]
            for code, meaning in self._profile.methods
        ]
        options = self._profile.options
        method = [f"PS3.15 {self._profile.edition} Basic Profile", *options]
        if self._profile.overrides:
            method.append(f"{len(self._profile.overrides)} overrides of profile {self._profile.digest[:16]}")
        statement = [
            Element(0x00120062, "CS", b"YES"),
            Element(0x00120063, "LO", "\\".join(method).encode()),
            Element(0x00120064, "SQ", b"", codes),
            Element(0x00280303, "CS", next((said for option, said in _TEMPORAL if option in options), b"REMOVED")),
        ]
        if Option.CLEAN_FACES in options:
            statement.append(Element(0x00280302, "CS", b"NO"))
        described = private.characteristics(self._cleaner.blocks, little=self._original.little)
        return [*statement, described] if described else statement

    def _meta(self, result: Elements) -> Elements:
        """File meta information of our own (PS3.10 7.1); nothing of the original's is taken over."""
        self._counts.add("META", sum(element.tag & 0xFFFF > 0x0010 for element in self._original.meta))
        self._counts.add("PREAMBLE", int(self._original.preamble))
        instance = values.first(result, _SOP_INSTANCE) or self._pseudonyms.uid("no SOP Instance UID")
        rest = [
            Element(0x00020001, "OB", b"\0\1"),
            Element(0x00020002, "UI", self._sop_class.encode()),
            Element(0x00020003, "UI", instance.encode()),
            Element(0x00020010, "UI", self._transfer_syntax.encode()),
            Element(0x00020012, "UI", IMPLEMENTATION_CLASS_UID.encode()),
            Element(0x00020013, "SH", IMPLEMENTATION_VERSION.encode()),
        ]
        length = sum(map(len, encode(rest, implicit=False, little=True)))
        return [Element(0x00020000, "UL", length.to_bytes(4, "little")), *rest]
