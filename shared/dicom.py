"""Reading DICOM that a stranger sent: checked first, then handed to pydicom; no hang, nothing of it in an error."""

from __future__ import annotations

import logging
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from numpy.typing import NDArray
from pydicom import config as pydicom_config
from pydicom._uid_dict import UID_dictionary
from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames, get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID
from pydicom.valuerep import PersonName

from shared import dicom_encoding, pixel_decoder
from shared.dicom_encoding import PIXEL_TAGS, Elements, Encoded, malformed
from shared.errors import ErrorCode, StepwedgeError

# pydicom writes values into warnings and log lines: nothing of it may reach a log (law 4).
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom(\..*)?$")

_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID: Final = 64  # PS3.5 9.1

STORAGE_SOP_CLASSES: Final[frozenset[str]] = frozenset(
    uid
    for uid, (name, kind, _, _, _) in UID_dictionary.items()
    if kind == "SOP Class" and re.search(r"\bStorage\b(?! (Commitment|Management|Media))", name)
)
"""SOP Class UIDs of PS3.4 Annex B, retired ones included."""


@dataclass(frozen=True, slots=True)
class Uids:
    """What names an object. The five UIDs are valid by PS3.5 9.1; the rest is empty where the object does not say."""

    study: str
    series: str
    sop_instance: str
    sop_class: str
    transfer_syntax: str
    patient_id: str
    issuer: str
    modality: str
    belonging: Belonging = field(default_factory=lambda: Belonging())
    """What it says of its study; filled by whoever walks the object."""
    identity: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What tells who the person is and which object it was, by `shared.identification.FIELDS`; empty ones left out."""


def read(data: bytes) -> Dataset:
    """The whole object, pixel data included, as a pydicom data set whose every value has been converted once.

    Part 10 with or without preamble, or a bare data set that plausibly is one. A value that does not convert is left
    as bytes with the VR `UN`. Raises NOT_DICOM, MALFORMED_DICOM; no message holds a value.
    """
    return dataset_of(dicom_encoding.parse(data), pixels=True)


def read_header(data: bytes) -> Dataset:
    """As `read`, without the pixel data elements; their lengths and structure are checked all the same."""
    return dataset_of(dicom_encoding.parse(data), pixels=False)


def dataset_of(encoded: Encoded, *, pixels: bool) -> Dataset:
    """The pydicom data set of a walked object."""
    try:
        meta = _dataset(encoded.meta, implicit=False, little=True, pixels=True, into=FileMetaDataset())
        dataset = _dataset(
            encoded.data_set, implicit=encoded.implicit, little=encoded.little, pixels=pixels, into=Dataset()
        )
    except StepwedgeError:
        raise
    except Exception:  # noqa: BLE001 - pydicom raises whatever the bytes make it raise
        raise malformed("the data set does not convert") from None
    meta[0x00020010] = DataElement(0x00020010, "UI", UID(encoded.transfer_syntax))  # over whatever stands there
    dataset.file_meta = meta
    dataset.preamble = b"\0" * 128
    return dataset  # type: ignore[no-any-return]


def _dataset(elements: Elements, *, implicit: bool, little: bool, pixels: bool, into: Any, parent: Any = None) -> Any:
    """One level of the data set; recursion is bounded by `dicom_encoding.MAX_DEPTH`."""
    into.set_original_encoding(implicit, little, getattr(parent, "_character_set", None))
    raw = into._dict
    sequences = []
    for element in elements:
        tag = BaseTag(element.tag)
        if element.items is not None:
            sequences.append(element)
        elif pixels or element.tag not in PIXEL_TAGS:
            length = dicom_encoding.UNDEFINED if element.fragments is not None else len(element.value)
            vr = None if implicit else element.vr  # pydicom resolves the ambiguous ones
            raw[tag] = RawDataElement(tag, vr, length, bytes(element.value), 0, implicit, little, True, False)
    if BaseTag(0x00080005) in raw:
        charset = _converted(into, BaseTag(0x00080005)).value
        with suppress(LookupError, ValueError, TypeError):
            into.set_original_encoding(implicit, little, convert_encodings(charset))
    for element in sequences:
        items = [
            _dataset(item, implicit=implicit, little=little, pixels=pixels, into=Dataset(), parent=into)
            for item in element.items or []
        ]
        raw[BaseTag(element.tag)] = DataElement(BaseTag(element.tag), "SQ", Sequence(items), already_converted=False)
    into._dict = {tag: raw[tag] for tag in sorted(raw)}
    for tag in list(into._dict):
        _converted(into, tag)
    return into


def _converted(dataset: Dataset, tag: BaseTag) -> DataElement:
    """The element with its value converted; as bytes with the VR `UN` where it does not convert."""
    raw = dataset._dict[tag]
    try:
        element = dataset[tag]
        str(element.value) if element.VR == "PN" else element.value  # a name decodes lazily
    except Exception:  # noqa: BLE001 - as above
        value = raw.value if isinstance(raw.value, bytes) else b""
        element = DataElement(tag, "UN", value, already_converted=True)
        dataset._dict[tag] = element
    return element


def uids(dataset: Dataset) -> Uids:
    """What names an object, from a data set of `read` or `read_header`.

    Raises INVALID_UID where a UID is absent, over 64 characters or holds anything but digits and full stops.
    """
    return Uids(
        study=_uid(dataset, "StudyInstanceUID"),
        series=_uid(dataset, "SeriesInstanceUID"),
        sop_instance=_uid(dataset, "SOPInstanceUID"),
        sop_class=_uid(dataset, "SOPClassUID"),
        transfer_syntax=_uid(dataset.file_meta, "TransferSyntaxUID"),
        patient_id=_text(dataset, "PatientID"),
        issuer=_text(dataset, "IssuerOfPatientID"),
        modality=_text(dataset, "Modality"),
        identity={name: text for name, keyword in _IDENTITY.items() if (text := _text(dataset, keyword))},
    )


def uids_of(encoded: Encoded) -> Uids:
    """As `uids`, of a walked object, of which no data set of pydicom need be made."""
    found = texts(encoded, NAMING_TAGS)

    def uid(keyword: str) -> str:
        return _valid(found.get(_NAMING[keyword], ""), keyword)

    return Uids(
        study=uid("StudyInstanceUID"),
        series=uid("SeriesInstanceUID"),
        sop_instance=uid("SOPInstanceUID"),
        sop_class=uid("SOPClassUID"),
        transfer_syntax=_valid(encoded.transfer_syntax, "TransferSyntaxUID"),
        patient_id=found.get(_PATIENT_ID, ""),
        issuer=found.get(_ISSUER, ""),
        modality=found.get(_NAMING["Modality"], ""),
        identity={name: text for name, keyword in _IDENTITY.items() if (text := found.get(_NAMING[keyword]))},
    )


_IDENTITY: Final[Mapping[str, str]] = {
    "patient_id": "PatientID",
    "issuer": "IssuerOfPatientID",
    "name": "PatientName",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "study_instance_uid": "StudyInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "sop_instance_uid": "SOPInstanceUID",
}

_NAMING: Final[Mapping[str, int]] = {
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "AccessionNumber": 0x00080050,
    "Modality": 0x00080060,
    "PatientName": 0x00100010,
    "PatientID": 0x00100020,
    "IssuerOfPatientID": 0x00100021,
    "PatientBirthDate": 0x00100030,
    "PatientSex": 0x00100040,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
}
NAMING_TAGS: Final = frozenset(_NAMING.values())
"""The elements that `uids` reads."""

_CHARACTER_SET: Final = 0x00080005
_PATIENT_ID: Final = _NAMING["PatientID"]
_ISSUER: Final = _NAMING["IssuerOfPatientID"]
_TEXTS: Final = dicom_encoding.TEXT_VRS - {"DS", "IS"} | {"UN"}
"""What pydicom makes text of, under whatever tag it stands."""
_PLAIN: Final = re.compile(rb"[ -<>-\[\]-~]*[\0 ]*")
"""What is the same text in every character set, as one value, and as one component group of a name."""


def texts(encoded: Encoded, tags: frozenset[int]) -> dict[int, str]:
    """The text of these elements of a walked object, top level; the same text as `uids` gives, absent ones left out."""
    wanted = tags | {_CHARACTER_SET}
    elements = [element for element in encoded.data_set if element.tag in wanted and element.items is None]
    plain = {element.tag: bytes(element.value) for element in elements}
    if all(
        _PLAIN.fullmatch(plain[one.tag]) and (one.vr in _TEXTS or one.vr == dicom_encoding.dictionary_vr(one.tag))
        for one in elements
    ):
        return {tag: value.decode().strip("\0 ") for tag, value in plain.items() if tag in tags}
    dataset = _dataset(elements, implicit=encoded.implicit, little=encoded.little, pixels=False, into=Dataset())
    return {tag: _text_of(dataset[tag].value) for tag in plain if tag in tags}


def patient(encoded: Encoded) -> tuple[str, str]:
    """Patient ID and its issuer, of a walked object; the same text as `uids` gives, empty where there is none."""
    found = texts(encoded, frozenset({_PATIENT_ID, _ISSUER}))
    return found.get(_PATIENT_ID, ""), found.get(_ISSUER, "")


@dataclass(frozen=True, slots=True)
class Equipment:
    """The device that made an object, as it says itself; empty where it does not say."""

    station: str = ""
    """Station Name (0008,1010)."""
    department: str = ""
    """Institutional Department Name (0008,1040)."""
    location: str = ""
    """Performed Location (0040,0243)."""
    manufacturer: str = ""
    """Manufacturer (0008,0070)."""
    model: str = ""
    """Manufacturer's Model Name (0008,1090)."""
    serial: str = ""
    """Device Serial Number (0018,1000)."""


_EQUIPMENT: Final[Mapping[int, str]] = {
    0x00081010: "station",
    0x00081040: "department",
    0x00400243: "location",
    0x00080070: "manufacturer",
    0x00081090: "model",
    0x00181000: "serial",
}
_LONGEST_LO: Final = 64  # PS3.5 6.2


def equipment(encoded: Encoded) -> Equipment:
    """The device that made a walked object (PS3.3 C.7.5.1, C.4.14): one line of at most 64 characters each."""
    found = texts(encoded, frozenset(_EQUIPMENT))
    return Equipment(**{_EQUIPMENT[tag]: one_line(text) for tag, text in found.items()})


@dataclass(frozen=True, slots=True)
class Belonging:
    """What an object says of the study that it belongs to; empty and 0 where it does not say."""

    view: str = ""
    """View Position (0018,5101), else the View Code Sequence (0054,0220) as AP, PA or LATERAL."""
    body_part: str = ""
    """Body Part Examined (0018,0015)."""
    procedure: str = ""
    """Code Value of the Procedure Code Sequence (0008,1032), else of the Requested Procedure Code (0032,1064)."""
    study_series: int = 0
    """Number of Study Related Series (0020,1206)."""
    study_instances: int = 0
    """Number of Study Related Instances (0020,1208)."""
    series_instances: int = 0
    """Number of Series Related Instances (0020,1209)."""
    laterality: str = ""
    """Image Laterality (0020,0062), else Laterality (0020,0060)."""


_WORDS: Final[Mapping[int, str]] = {
    0x00185101: "view",
    0x00180015: "body_part",
    0x00200060: "laterality",
    0x00200062: "laterality",  # of the image, before that of its series
}
_COUNTS: Final[Mapping[int, str]] = {
    0x00201206: "study_series",
    0x00201208: "study_instances",
    0x00201209: "series_instances",
}
_CODE_VALUE: Final = 0x00080100
_PROCEDURE_CODES: Final = (0x00081032, 0x00321064)
_VIEW_CODE: Final = 0x00540220
_VIEWS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("R-10206", "399348003"), "AP"),
    **dict.fromkeys(("R-10214", "272479007"), "PA"),
    **dict.fromkeys(("R-10236", "399067008", "R-10232", "399173006", "R-10228", "399198007"), "LATERAL"),
}
"""PS3.16 CID 4010: codes of projections."""
_CODE: Final = re.compile(r"[A-Z0-9][A-Z0-9 _.-]{0,15}")
_MOST_COUNTED: Final = 1_000_000


def belonging(encoded: Encoded) -> Belonging:
    """What a walked object says of its study. Only codes and numbers: free text in these places is left out."""
    found = texts(encoded, frozenset({*_WORDS, *_COUNTS}))
    words = {name: text for tag, name in _WORDS.items() if _CODE.fullmatch(text := found.get(tag, "").upper())}
    counts = {name: int(text) for tag, name in _COUNTS.items() if _is_count(text := found.get(tag, ""))}
    sequences = {element.tag: element.items[0] for element in encoded.data_set if element.items}
    codes = (_code(sequences.get(tag, [])) for tag in _PROCEDURE_CODES)
    if "view" not in words and (view := _VIEWS.get(_code(sequences.get(_VIEW_CODE, [])))):
        words["view"] = view
    return Belonging(**words, **counts, procedure=next(filter(None, codes), ""))  # type: ignore[arg-type]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 8 and 0 < int(text) <= _MOST_COUNTED


def _code(item: Elements) -> str:
    """The Code Value of one item of a code sequence; empty where it is no code."""
    value = next((bytes(element.value) for element in item if element.tag == _CODE_VALUE), b"")
    text = value.decode("ascii", "replace").strip("\0 ").upper()
    return text if _CODE.fullmatch(text) else ""


def one_line(text: str) -> str:
    """A short text that a stranger wrote as one printable line of at most 64 characters."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())[:_LONGEST_LO]


def is_uid(value: str) -> bool:
    """Whether the text is a UID: digits in components, at most 64 characters. Leading zeros, which occur, pass."""
    return len(value) <= _MAX_UID and _UID.fullmatch(value) is not None


def _uid(dataset: Dataset, keyword: str) -> str:
    return _valid(_text(dataset, keyword), keyword)


def _valid(value: str, keyword: str) -> str:
    if not is_uid(value):
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_UID, f"{keyword} is absent or no UID")
    return value


def _text(dataset: Dataset, keyword: str) -> str:
    return _text_of(dataset.get(keyword))


def _text_of(value: Any) -> str:
    if isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    elif isinstance(value, PersonName):
        value = str(value)
    return value.strip("\0 ") if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the header says of the pixels."""

    rows: int
    columns: int
    samples: int
    bits: int
    frames: int

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.samples * max(1, (self.bits + 7) // 8)


def frames(
    dataset: Dataset, *, max_bytes: int = 1 << 30, rgb: bool = False, only: Iterable[int] | None = None
) -> Iterator[NDArray[Any]]:
    """The frames of a data set of `read`, decoded one at a time; `only` those with these 0-based numbers.

    Yields arrays of [rows, columns] or [rows, columns, samples] with the stored values, signed where the object is.
    max_bytes: the most that one decoded frame may take; checked against the header and the codestream before anything
    is decoded. rgb: turn YBR photometric interpretations into RGB; else the values are those of the codestream.
    Raises PIXELS_UNDECODABLE.
    """
    layout = _layout(dataset)
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if not syntax.is_transfer_syntax:
        raise _undecodable("the transfer syntax is not one of the standard")
    if layout.frame_bytes > max_bytes:
        raise _undecodable("a frame is larger than may be decoded")
    _check_codestreams(dataset, syntax, layout, max_bytes)
    if syntax.is_encapsulated:
        yield from _isolated(dataset, syntax, layout, max_bytes, only, rgb=rgb)
        return
    try:
        # Without indices, pydicom corrects the sign of a read-only array, and fails.
        every = range(layout.frames) if dataset.get("PixelRepresentation") else None
        indices = every if only is None else only
        iterator = get_decoder(syntax).iter_array(dataset, indices=indices, raw=not rgb)
    except Exception:  # noqa: BLE001 - decoders raise whatever the bytes make them raise
        raise _undecodable("no decoder takes this transfer syntax") from None
    while True:
        try:
            frame, _ = next(iterator)
        except StopIteration:
            return
        except Exception:  # noqa: BLE001 - as above
            raise _undecodable("a frame does not decode") from None
        yield frame


def _isolated(
    dataset: Dataset, syntax: UID, layout: _Layout, max_bytes: int, only: Iterable[int] | None, *, rgb: bool
) -> Iterator[NDArray[Any]]:
    """Frames decoded beside this process, so that a codestream that kills its decoder kills nothing else."""
    for decoded, _ in _named(dataset, syntax, layout, max_bytes, only, rgb=rgb):
        yield decoded


def compressed_frames(dataset: Dataset, *, max_bytes: int = 1 << 30) -> Iterator[tuple[NDArray[Any], str]]:
    """Every frame of encapsulated pixel data, without its colours turned, and the Photometric Interpretation in which
    the decoder gave it; else as `frames`. Raises PIXELS_UNDECODABLE."""
    layout = _layout(dataset)
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if not syntax.is_transfer_syntax or not syntax.is_encapsulated:
        raise _undecodable("the pixel data is not encapsulated by the standard")
    if layout.frame_bytes > max_bytes:
        raise _undecodable("a frame is larger than may be decoded")
    _check_codestreams(dataset, syntax, layout, max_bytes)
    yield from _named(dataset, syntax, layout, max_bytes, None, rgb=False)


def _named(
    dataset: Dataset, syntax: UID, layout: _Layout, max_bytes: int, only: Iterable[int] | None, *, rgb: bool
) -> Iterator[tuple[NDArray[Any], str]]:
    image = {}
    for keyword in pixel_decoder.ATTRIBUTES:
        value = dataset.get(keyword)
        if isinstance(value, int | str):
            image[keyword] = value
    offsets = None
    if dataset.get("ExtendedOffsetTable") and dataset.get("ExtendedOffsetTableLengths"):
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    options: dict[str, Any] = {"number_of_frames": layout.frames, "extended_offsets": offsets}
    try:
        pixels = dataset.PixelData
        if only is None:
            encoded: Iterator[bytes] = generate_frames(pixels, **options)
        else:
            encoded = (get_frame(pixels, index, **options) for index in only)
        for frame in encoded:
            _check_codestream(frame, layout, max_bytes)  # whole: its head may have been in several fragments
            yield pixel_decoder.decode_named(str(syntax), image, frame, rgb=rgb, most=max_bytes)
    except pixel_decoder.DecodingError:
        raise _undecodable("a frame does not decode") from None
    except (ValueError, TypeError, IndexError, AttributeError, EOFError, struct.error):
        raise _undecodable("the frames cannot be told apart") from None


def _undecodable(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, words)


def _layout(dataset: Dataset) -> _Layout:
    def number(keyword: str, default: int | None = None) -> int:
        value = dataset.get(keyword)
        if value is None and default is not None:
            return default
        try:
            result = int(value)
        except (TypeError, ValueError):
            raise _undecodable(f"{keyword} is absent or no number") from None
        if not 0 < result <= 0xFFFFFFFF:
            raise _undecodable(f"{keyword} is out of range")
        return result

    if not any(tag in dataset for tag in (0x7FE00008, 0x7FE00009, 0x7FE00010)):
        raise _undecodable("the object has no pixel data")
    bits = 32 if 0x7FE00008 in dataset else 64 if 0x7FE00009 in dataset else number("BitsAllocated")
    if bits not in (1, 8, 16, 32, 64):
        raise _undecodable("BitsAllocated is not one of 1, 8, 16, 32, 64")
    samples = number("SamplesPerPixel", 1)
    if samples > 4:
        raise _undecodable("more than four samples per pixel")
    return _Layout(number("Rows"), number("Columns"), samples, bits, number("NumberOfFrames", 1))


def _check_codestreams(dataset: Dataset, syntax: UID, layout: _Layout, max_bytes: int) -> None:
    """Hold what each compressed frame says of its own size against the header, before a decoder allocates for it."""
    if not syntax.is_encapsulated:
        if 0x7FE00010 in dataset and layout.bits > 1:
            expected = layout.frame_bytes * layout.frames
            if layout.samples == 3 and str(dataset.get("PhotometricInterpretation", "")).startswith("YBR_FULL_422"):
                expected = expected // 3 * 2
            if len(dataset.PixelData or b"") < expected:  # an empty element reads as None
                raise _undecodable("the pixel data is shorter than its frames")
        return
    pixels = dataset.get("PixelData")
    if not isinstance(pixels, bytes):
        raise _undecodable("compressed pixel data is absent")
    for start, end in _fragment_spans(pixels):
        _check_codestream(pixels[start:end], layout, max_bytes)


def _check_codestream(encoded: bytes, layout: _Layout, max_bytes: int) -> None:
    """As above, for one frame or the fragment that it begins with."""
    size = codestream_size(encoded)
    if size is None:
        return
    columns, rows, samples = size
    width = max(1, (layout.bits + 7) // 8)
    if columns * rows * samples * width > max(max_bytes, layout.frame_bytes):
        raise _undecodable("a compressed frame is larger than may be decoded")
    if (columns, rows) != (layout.columns, layout.rows):
        raise _undecodable("a compressed frame has another size than the header says")


def _fragment_spans(pixels: bytes) -> Iterator[tuple[int, int]]:
    pos, first = 0, True
    while len(pixels) - pos >= 8:
        group, number, length = struct.unpack_from("<HHI", pixels, pos)
        pos += 8
        if (group, number) != (0xFFFE, 0xE000) or length > len(pixels) - pos:
            return
        if not first:
            yield pos, pos + length
        first = False
        pos += length


_JPEG_START_OF_FRAME: Final = frozenset(
    {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
)


def codestream_size(fragment: bytes) -> tuple[int, int, int] | None:
    """Columns, rows and components that a JPEG, JPEG-LS, JPEG 2000 or HTJ2K codestream declares; None for another."""
    try:
        fragment = fragment[pixel_decoder.codestream_start(fragment) :]
    except pixel_decoder.DecodingError:
        return None
    if fragment[:4] == b"\xff\x4f\xff\x51":  # ISO/IEC 15444-1 A.5.1, SIZ
        if len(fragment) < 42:
            return None
        x, y, x0, y0 = struct.unpack_from(">4I", fragment, 8)
        (components,) = struct.unpack_from(">H", fragment, 40)
        return max(0, x - x0), max(0, y - y0), components
    if fragment[:2] != b"\xff\xd8":  # ISO/IEC 10918-1 B.2.2 and 14495-1 C.2.2
        return None
    pos = 2
    while pos + 4 <= len(fragment) and fragment[pos] == 0xFF:
        marker = fragment[pos + 1]
        if marker == 0xFF:
            pos += 1
            continue
        (length,) = struct.unpack_from(">H", fragment, pos + 2)
        if marker in _JPEG_START_OF_FRAME and pos + 10 <= len(fragment):
            rows, columns, components = struct.unpack_from(">HHB", fragment, pos + 5)
            return columns, rows, components
        if marker in (0xD9, 0xDA):
            return None
        pos += 2 + length
    return None


__all__ = [
    "NAMING_TAGS",
    "STORAGE_SOP_CLASSES",
    "Belonging",
    "Equipment",
    "Uids",
    "belonging",
    "codestream_size",
    "dataset_of",
    "equipment",
    "frames",
    "is_uid",
    "one_line",
    "patient",
    "read",
    "read_header",
    "texts",
    "uids",
    "uids_of",
]
