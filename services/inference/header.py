"""What the header alone shows to be wrong: exposure, distances, sides, views, dates, absent attributes, frames.

Nothing here is held against the clock, since a replay must give the same answer; nothing here repeats a value of the
header, except numbers that identify nobody.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from itertools import islice, pairwise
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, generate_frames, parse_basic_offsets
from pydicom.multival import MultiValue
from pydicom.uid import UID, RLELossless

from services.inference import required, thresholds
from services.inference.coverage import DERIVED, RADIOGRAPHY, SAY_NOTHING, Part, modality_of, part_of, view_named
from services.inference.findings import FAIL, NOT_ASSESSABLE, PASS, WARN, Value, finding
from services.inference.pixels import MAX_FRAME_BYTES, SPACINGS, spacing_mm
from services.inference.places import frame_places, numbers, pixel_measures
from shared import dicom, slices
from shared.errors import StepwedgeError
from stepwedge.common.v1.common_pb2 import Finding, Outcome, Reason

Said = tuple["Outcome.ValueType", str]


@dataclass(frozen=True)
class Stated:
    """What the header says that the checks of the pixels need, and what is wrong with it.

    findings: of this module. values: measurements beside them. directions: of Patient Orientation, as `directions`.
    field: top, bottom, left, right of the open field in pixels from the upper left corner, half open; None where no
    blade or shutter is named. slice, screen: as `is_slice` and `is_screen`. side, view: L or R, AP or PA, where the
    header of a radiograph names one of them.
    """

    findings: tuple[Finding, ...] = ()
    values: tuple[Value, ...] = ()
    directions: tuple[str, str] = ("", "")
    field: tuple[int, int, int, int] | None = None
    slice: bool = False
    screen: bool = False
    side: str = ""
    view: str = ""


UNSTATED: Final = Stated()


def stated(dataset: Dataset) -> Stated:
    """All of it, of one object with pixels."""
    found = tuple(findings(dataset))
    contradicted = any(one.code == Reason.REASON_FRAMES and one.outcome == FAIL for one in found)
    return Stated(
        found,
        (*exposure_values(dataset), *(frame_values(dataset) if contradicted else ())),
        directions(dataset),
        open_field(dataset),
        is_slice(dataset),
        is_screen(dataset),
        *sided(dataset),
    )


def findings(dataset: Dataset) -> Iterator[Finding]:
    """Every finding that the header of an object with pixels allows, each at most once."""
    for check in _CHECKS:
        found = check(dataset)
        if found is not None:
            yield found


# --- what may be empty or white with reason -----------------------------------------------------------------------

_CROSS_SECTIONS: Final = frozenset({"CT", "MR", "PT", "NM"})
_SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
"""SOP class, and the root of those of several frames (PS3.4 B.5)."""


def is_slice(dataset: Dataset) -> bool:
    """Whether the image is one slice of a volume: those at its ends often hold nothing but noise."""
    return modality_of(dataset) in _CROSS_SECTIONS and bool(numbers(dataset, "ImagePositionPatient", 3))


def is_screen(dataset: Dataset) -> bool:
    """Whether the image is a document or what a screen showed (dose reports, protocols, scanned paper): a few lines of
    writing on white or black. A radiograph that was captured is a radiograph."""
    modality = modality_of(dataset)
    return modality not in RADIOGRAPHY and (
        modality in SAY_NOTHING or text(dataset, "SOPClassUID").startswith(_SECONDARY_CAPTURE)
    )


# --- exposure (IEC 62494-1) --------------------------------------------------------------------------------------


def exposure(dataset: Dataset) -> Finding | None:
    """EXPOSURE: the deviation index 10 log10(EI / EI_T), from the attributes (0018,1411) and (0018,1412)."""
    if modality_of(dataset) not in RADIOGRAPHY:
        return None
    code, limit = Reason.REASON_EXPOSURE, thresholds.DEVIATION
    index, target = (number(dataset, keyword) for keyword in ("ExposureIndex", "TargetExposureIndex"))
    if index is None or target is None:
        lacking = "no exposure index" if index is None else "no target exposure index"
        return finding(code, NOT_ASSESSABLE, f"the object names {lacking}")
    if not (_possible_index(index) and _possible_index(target)):
        return finding(code, NOT_ASSESSABLE, "the exposure index or its target is no number above zero")
    deviation = 10 * math.log10(index / target)
    value = Value("deviation_index", deviation)
    distance = abs(deviation)
    outcome = FAIL if distance > limit.fail else WARN if distance > limit.warn else PASS
    side = "over" if deviation > 0 else "under"
    words = {
        PASS: "the exposure is close to its target",
        WARN: f"{side}exposed by more than a quarter of the target",
        FAIL: f"{side}exposed by more than a factor of two",
    }[outcome]
    stored = number(dataset, "DeviationIndex")
    if stored is not None and not abs(stored - deviation) <= _rounding_db(dataset, index, target):
        outcome, words = max(outcome, WARN), f"{words}; the stored deviation index contradicts it"
    return finding(code, outcome, words, value=value, threshold=math.copysign(limit.fail, deviation))


def _rounding_db(dataset: Dataset, index: float, target: float) -> float:
    """By how much the stored deviation index may differ because the three numbers are rounded as they are written; the
    low indices of children, in whole numbers, more than others."""
    of_both = sum(
        -10 * math.log10(1 - min(0.5, _half_of_last_digit(dataset, keyword) / value))
        for keyword, value in (("ExposureIndex", index), ("TargetExposureIndex", target))
    )
    return max(thresholds.DEVIATION_STORED.fail, _half_of_last_digit(dataset, "DeviationIndex") + of_both)


def _half_of_last_digit(dataset: Dataset, keyword: str) -> float:
    value = dataset.get(keyword)
    try:
        exponent = Decimal(getattr(value, "original_string", None) or str(value)).as_tuple().exponent
    except InvalidOperation:
        return 0.0
    return 0.5 * 10.0 ** min(0, max(-9, exponent)) if isinstance(exponent, int) else 0.0


def exposure_values(dataset: Dataset) -> Iterator[Value]:
    """The indices as the object has them."""
    if modality_of(dataset) in RADIOGRAPHY:
        for keyword, name in _INDICES.items():
            found = number(dataset, keyword)
            if found is not None and math.isfinite(found):
                yield Value(name, max(-1e9, min(found, 1e9)))


_INDICES: Final = {
    "ExposureIndex": "exposure_index",
    "TargetExposureIndex": "target_exposure_index",
    "DeviationIndex": "stored_deviation_index",
}


def _possible_index(value: float) -> bool:
    low, high = thresholds.POSSIBLE_INDEX[:2]
    return low <= value <= high  # NaN compares false


# --- blades (PS3.3 C.8.7.3 X-Ray Collimator, C.7.6.11 Display Shutter) -------------------------------------------


def open_field(dataset: Dataset) -> tuple[int, int, int, int] | None:
    """What rectangular blades, or else a rectangular shutter, leave open; edges count from 1, and lie just outside."""
    rows, columns = (number(dataset, keyword) or 0.0 for keyword in ("Rows", "Columns"))
    for kind, shape in (("Collimator", "CollimatorShape"), ("Shutter", "ShutterShape")):
        if "RECTANGULAR" not in str(dataset.get(shape, "")).upper():
            continue
        names = ("UpperHorizontal", "LowerHorizontal", "LeftVertical", "RightVertical")
        edges = [number(dataset, f"{kind}{name}Edge") for name in names]
        if any(edge is None or math.isnan(edge) for edge in edges):
            continue
        top, bottom, left, right = (edge for edge in edges if edge is not None)
        # Some devices give edges of another matrix, before it was cropped: they are believed inside of this one only.
        inside = 0 <= top < bottom <= rows + 1 and 0 <= left < right <= columns + 1
        if inside and (bottom - top) * (right - left) >= _LEAST_FIELD * rows * columns:
            return int(top), min(int(rows), int(bottom) - 1), int(left), min(int(columns), int(right) - 1)
    return None


_LEAST_FIELD: Final = 0.25
"""Share of the picture that is open at least; less is another matrix, or a mistake."""


# --- distances (PS3.3 10.7.1) ------------------------------------------------------------------------------------


def spacing(dataset: Dataset) -> Finding | None:
    """SPACING: FAIL where a distance is stated and impossible, NOT_ASSESSABLE where a radiograph states none. Of an
    enhanced object, what is stated for all frames or for one of them counts too."""
    code = Reason.REASON_SPACING
    places = [(where, keyword) for where in (dataset, *pixel_measures(dataset)) for keyword in SPACINGS]
    stated = [(where, keyword) for where, keyword in places if where.get(keyword) not in (None, "")]
    if not stated:
        if modality_of(dataset) not in RADIOGRAPHY:
            return None
        return finding(code, NOT_ASSESSABLE, "no distance of the pixels is stated; lengths are shares of the field")
    if modality_of(dataset) in RADIOGRAPHY:
        if any(spacing_mm(where, (keyword,)) is None for where, keyword in stated):
            return finding(code, FAIL, "a distance of the pixels is stated that no detector has")
    elif not all(_can_be(dataset, _pair(where.get(keyword))) for where, keyword in stated):
        return finding(code, FAIL, "a distance of the pixels is stated that cannot be")
    believed = next(filter(None, (spacing_mm(where) for where, _ in stated)), None)
    if believed is None:  # microscopy and nuclear medicine have others
        return None
    ratio = believed[0] / believed[1]
    words = "the pixels are square" if abs(ratio - 1) < 0.001 else "the pixels are not square; measures heed it"
    return finding(code, PASS, words, value=Value("pixel_aspect", ratio))


_OF_A_BODY: Final = frozenset({"CT", "MR", "PT", "NM", "MG", "XA", "RF"})
_FIELD_MM: Final = (1.0, 3000.0)
"""Lengths that the longer side of their images can have: metres or micrometres in the place of millimetres are outside
of it."""
_LEAST_PIXELS: Final = 64


def _can_be(dataset: Dataset, distances: tuple[float, float] | None) -> bool:
    if distances is None or not all(0 < one < 1000 for one in distances):
        return False
    sizes = (number(dataset, "Rows") or 0.0, number(dataset, "Columns") or 0.0)
    if modality_of(dataset) not in _OF_A_BODY or not max(sizes) >= _LEAST_PIXELS:
        return True
    return _FIELD_MM[0] <= max(math.prod(side) for side in zip(sizes, distances, strict=True)) <= _FIELD_MM[1]


def _pair(value: Any) -> tuple[float, float] | None:
    try:
        found = float(value[0]), float(value[1])
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return found


# --- sides (PS3.3 C.7.6.1.1.1, C.7.3.1, C.8.11.2) ----------------------------------------------------------------

_AXES: Final = {"L": 0, "R": 0, "A": 1, "P": 1, "H": 2, "F": 2}
_SIDES: Final = ("Laterality", "ImageLaterality", "PatientOrientation")
_SIDED: Final = frozenset({"R", "L"})
_PAIRED_PARTS: Final = """
    ANKLE ARM CALCANEUS CLAVICLE ELBOW FEMUR FIBULA FINGER FOOT FOREARM HAND HEEL HUMERUS KNEE LEG LOWERLEG PATELLA
    RADIUS SCAPULA SHOULDER TIBIA THUMB TOE ULNA UPPERARM WRIST
"""
_PAIRED: Final = frozenset(_PAIRED_PARTS.split())
"""Parts of PS3.16 Annex L of which everybody has two."""


def laterality(dataset: Dataset) -> Finding | None:
    """LATERALITY: contradictions among Laterality (0020,0060), Image Laterality (0020,0062), Patient Orientation
    (0020,0020) and the body part."""
    said = list(_contradictions(dataset))
    if not said and not any(dataset.get(keyword) for keyword in _SIDES):
        return None
    outcome, words = max(said, key=lambda one: one[0], default=(PASS, "side and orientation agree"))
    return finding(Reason.REASON_LATERALITY, outcome, words)


def _contradictions(dataset: Dataset) -> Iterator[Said]:
    series, image = (text(dataset, keyword) for keyword in ("Laterality", "ImageLaterality"))
    if {series, image} == _SIDED:
        yield FAIL, "series and image name opposite sides"
    if series not in ("", "R", "L") or image not in ("", "R", "L", "U", "B"):
        yield WARN, "a side is named by a word that is none"
    part = part_of(dataset)
    if part is Part.CONTRADICTED:
        yield WARN, "body part and anatomic region contradict each other"
    if modality_of(dataset) in RADIOGRAPHY:
        if part is Part.CHEST and _SIDED & {series, image} and view_named(dataset) & {"AP", "PA"}:
            yield WARN, "a frontal chest is named as of one side"
        if _squeezed(dataset) in _PAIRED and not series and not image and not _sided_code(dataset):
            yield WARN, "a part of which there are two is named without its side"
    rows, columns = directions(dataset)
    if rows and columns and _AXES.get(rows[0], -1) == _AXES.get(columns[0], -2):
        yield FAIL, "rows and columns are said to run along one axis of the body"


def _squeezed(dataset: Dataset) -> str:
    """The letters of Body Part Examined (0018,0015)."""
    return "".join(letter for letter in text(dataset, "BodyPartExamined") if letter.isalpha())


def sided(dataset: Dataset) -> tuple[str, str]:
    """Side and view of `Stated`. A side of a part of which there is one says nothing of where its markers belong."""
    if modality_of(dataset) not in RADIOGRAPHY:
        return "", ""
    sides = {text(dataset, keyword) for keyword in ("Laterality", "ImageLaterality")} - {"", "U"}
    views = view_named(dataset)
    side = next(iter(sides)) if len(sides) == 1 and _squeezed(dataset) in {"", *_PAIRED} else ""
    return side, next(iter(views)) if len(views) == 1 else ""


def _sided_code(dataset: Dataset) -> bool:
    """Whether the anatomic region carries a modifier, which may be its side."""
    items = dataset.get("AnatomicRegionSequence") or []
    return any(isinstance(item, Dataset) and item.get("AnatomicRegionModifierSequence") for item in items)


def directions(dataset: Dataset) -> tuple[str, str]:
    """Patient Orientation (0020,0020): where the rows and where the columns run, in capitals; empty where unsaid."""
    value = dataset.get("PatientOrientation")
    if not isinstance(value, (MultiValue, list, tuple)) or len(value) != 2:
        return "", ""
    return str(value[0]).strip().upper(), str(value[1]).strip().upper()


def view(dataset: Dataset) -> Finding | None:
    """VIEW: View Position (0018,5101), View Code Sequence (0054,0220) and Patient Orientation against each other. What
    is written in the picture is `side_markers`'; the model does not tell AP from PA."""
    if modality_of(dataset) not in RADIOGRAPHY:
        return None
    named = view_named(dataset)
    if not named:
        return None
    code = Reason.REASON_VIEW
    if {"AP", "PA"} <= named:
        return finding(code, FAIL, "one attribute says AP and another PA")
    if len(named) > 1:
        return finding(code, FAIL, "attributes name different views")
    rows, _ = directions(dataset)
    if named & {"AP", "PA"} and rows[:1] in {"A", "P"}:
        return finding(code, FAIL, "the view is frontal, but the rows are said to run between front and back")
    return finding(code, PASS, "the attributes of the view agree")


# --- dates (PS3.5 6.2) -------------------------------------------------------------------------------------------

_DATE: Final = re.compile(r"(\d{4})[.]?(\d{2})[.]?(\d{2})")
_DAYS: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DATES: Final = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
_BIRTH: Final = "PatientBirthDate"
_FIRST_YEAR: Final = 1895
_LAST_YEAR: Final = 2999  # redaction may have moved dates; those of this century are not told from others


def dates(dataset: Dataset) -> Finding | None:
    """DATES: days that do not exist, before X-rays were known, before birth, or acquired after the content was made."""
    kept = {keyword: text(dataset, keyword) for keyword in (*_DATES, _BIRTH)}
    kept = {keyword: value for keyword, value in kept.items() if value}
    if not set(kept) & set(_DATES):
        return None
    code = Reason.REASON_DATES
    read = {keyword: _day(value) for keyword, value in kept.items()}
    if None in read.values():
        names = ", ".join(keyword for keyword, day in read.items() if day is None)
        return finding(code, FAIL, f"no date of the calendar: {names}")
    days = {keyword: value for keyword, value in read.items() if value is not None}
    if any(not _FIRST_YEAR <= days[keyword] // 10000 <= _LAST_YEAR for keyword in days if keyword in _DATES):
        return finding(code, FAIL, "the image is said to be older than X-rays, or of another millennium")
    birth = days.get(_BIRTH, 0)
    if any(value < birth for value in days.values()):
        return finding(code, FAIL, "the image is said to be older than the patient")
    if days.get("AcquisitionDate", 0) > days.get("ContentDate", 10**9):
        return finding(code, WARN, "the image is said to be acquired after its content was made")
    return finding(code, PASS, "the dates can be")


def _day(value: str) -> int | None:
    """Year, month and day as one number; None for none of the calendar."""
    found = _DATE.fullmatch(value)
    if found is None:
        return None
    year, month, day = (int(part) for part in found.groups())
    if not 1 <= month <= 12 or not 1 <= day <= _DAYS[month - 1]:
        return None
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return None if (month, day) == (2, 29) and not leap else 10000 * year + 100 * month + day


# --- absent attributes (PS3.3 C.7.6.3, C.8.11; type 1 only) ------------------------------------------------------

_EVERY_IMAGE: Final = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality SamplesPerPixel PhotometricInterpretation
    Rows Columns BitsAllocated
"""
_DIGITAL_X_RAY: Final = """
    ImageLaterality PixelIntensityRelationship PixelIntensityRelationshipSign RescaleIntercept RescaleSlope
    PresentationLUTShape BurnedInAnnotation LossyImageCompression ImagerPixelSpacing PresentationIntentType
"""
_MOST_NAMED: Final = 12
"""Attributes that a sentence names."""
_REQUIRED: Final = {
    "1.2.840.10008.5.1.4.1.1.1.1": _DIGITAL_X_RAY,
    "1.2.840.10008.5.1.4.1.1.1.1.1": _DIGITAL_X_RAY,
}
"""SOP class -> attributes of type 1 beyond those of every image."""


def attributes(dataset: Dataset) -> Finding:
    """ATTRIBUTES_ABSENT: those of type 1 that are absent or empty, and of type 2 that are absent, by the tables of the
    IOD; by a short list of type 1 where the SOP class is in no table."""
    lacking = required.lacking(dataset)
    if lacking is None:
        wanted = (_EVERY_IMAGE + _REQUIRED.get(str(dataset.get("SOPClassUID", "")), "")).split()
        absent = tuple(keyword for keyword in wanted if dataset.get(keyword) in (None, ""))
    else:
        absent = lacking.all
    value = Value("attributes_absent", float(len(absent)), "{attributes}")
    more = f" and {len(absent) - _MOST_NAMED} more" if len(absent) > _MOST_NAMED else ""
    words = "the attributes that the object must have are there"
    if absent:
        words = f"absent, or empty where they must not be: {', '.join(absent[:_MOST_NAMED])}{more}"
    return finding(Reason.REASON_ATTRIBUTES_ABSENT, WARN if absent else PASS, words, value=value, threshold=1.0)


# --- frames (PS3.3 C.7.6.6, PS3.5 A.4) ---------------------------------------------------------------------------


def frames(dataset: Dataset) -> Finding | None:
    """FRAMES: Number of Frames (0028,0008) against the pixel data, and frames that repeat the one before byte for byte.

    Repetitions of a frame of one value only are not counted. What is no whole number of frames has no measurement, so
    that no limit of a policy for repetitions is applied to it.
    """
    code = Reason.REASON_FRAMES
    stated = number(dataset, "NumberOfFrames")
    if not _data(dataset) or is_film(dataset):
        return None
    if stated is not None and not (stated >= 1 and stated == int(stated)):
        return finding(code, WARN, "the number of frames is no whole number above zero")
    count = int(stated or 1)
    held = _held(dataset, count)
    if held is not None and held != count:
        way = "more" if held > count else "fewer"
        return finding(code, FAIL, f"{way} frames than are stated: {held} in the pixel data, {count} stated")
    modality = modality_of(dataset)
    if count > 1 and (modality in _LOOPS or _is_timed(dataset)):
        return finding(code, PASS, "a loop, whose frames may repeat")
    repeated = _repeated(dataset, count) if 1 < count <= _MOST_FRAMES and modality not in DERIVED else 0
    value = Value("repeated_frames", float(repeated), "{frames}")
    words = "frames repeat the one before" if repeated else "the pixel data holds the frames that are stated"
    return finding(code, WARN if repeated else PASS, words, value=value, threshold=1.0)


def frame_values(dataset: Dataset) -> Iterator[Value]:
    """How many frames the pixel data holds."""
    stated = number(dataset, "NumberOfFrames")
    count = int(stated) if stated is not None and math.isfinite(stated) else 1
    held = _held(dataset, count) if _data(dataset) and not is_film(dataset) else None
    if held is not None and held != count:
        yield Value("frames_held", float(held), "{frames}")


def is_film(dataset: Dataset) -> bool:
    """Whether the pixel data is one stream of MPEG-2, H.264 or HEVC (PS3.5 8.2.5 to 8.2.10), which nothing here
    decodes."""
    return _syntax(dataset).startswith(_FILM)


_FILM: Final = "1.2.840.10008.1.2.4.10"
"""What the UIDs of these transfer syntaxes, and no others, begin with (PS3.6 A)."""
_MOST_FRAMES: Final = 100_000
_LOOPS: Final = frozenset({"US", "IVUS", "IVOCT", "XA", "RF", "ECHO", "ES", *SAY_NOTHING, "GM"})
"""Modalities that film, or keep what a screen showed: what stands still, or is sampled slowly, repeats."""
_TIMES: Final = frozenset({0x00181063, 0x00181065})  # Frame Time, Frame Time Vector
_STARTS: Final = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
"""First bytes of JPEG and JPEG-LS, of JPEG 2000, and of the latter in a JP2 file."""


def _is_timed(dataset: Dataset) -> bool:
    """Whether the frames follow each other in time, by Frame Increment Pointer (PS3.3 C.7.6.6.1.1)."""
    pointers = dataset.get("FrameIncrementPointer")
    return any(one in _TIMES for one in (pointers if isinstance(pointers, MultiValue | list) else [pointers]))


def _syntax(dataset: Dataset) -> UID:
    return UID(str(getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID", "")))


def _is_encapsulated(dataset: Dataset) -> bool:
    syntax = _syntax(dataset)
    return bool(syntax.is_transfer_syntax and syntax.is_encapsulated)


_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def _data(dataset: Dataset) -> bytes:
    return next((data for one in _PIXELS if isinstance(data := dataset.get(one), bytes)), b"")


def _held(dataset: Dataset, count: int) -> int | None:
    """Frames that the pixel data holds; None where nothing contradicts that there are `count` of them."""
    if _is_encapsulated(dataset):
        return _encapsulated_frames(dataset, count)
    length = _frame_bits(dataset)
    return None if not length else (8 * len(_data(dataset))) // length  # padding left out


def _frame_bits(dataset: Dataset) -> int:
    """Bits of a frame that is not compressed; 0 where the header does not say."""
    sizes = [number(dataset, keyword) for keyword in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        sizes[2:] = [1.0, 32.0 if "FloatPixelData" in dataset else 64.0]
    elif "422" in text(dataset, "PhotometricInterpretation"):
        sizes[2] = 2.0  # two samples of colour for every two of brightness (PS3.3 C.7.6.3.1.2)
    if any(size is None or not 0 < size < 2**32 for size in sizes):
        return 0
    return math.prod(int(size) for size in sizes if size is not None)


def _encapsulated_frames(dataset: Dataset, count: int) -> int | None:
    """How many codestreams the fragments begin; where none is known by its first bytes, how many frames the table of
    offsets, or else the fragments, allow for."""
    data = _data(dataset)
    try:
        offsets = parse_basic_offsets(data)
        begun = fragments = 0
        for fragment in generate_fragments(data[4 * len(offsets) + 8 :]):
            fragments += 1
            begun += fragment.startswith(_STARTS)
    except Exception:  # noqa: BLE001 - pydicom raises whatever the bytes make it raise; the decoder tells
        return None
    if begun or _syntax(dataset) == RLELossless:  # a fragment for each frame (PS3.5 A.4.2)
        return begun or fragments
    if offsets:
        return len(offsets)
    return fragments if fragments < count else None


def _parts(dataset: Dataset, count: int) -> Iterator[Any]:
    """The stored bytes of every frame."""
    data = _data(dataset)
    if _is_encapsulated(dataset):
        try:
            yield from generate_frames(data, number_of_frames=count)
        except Exception:  # noqa: BLE001 - as above
            return
        return
    length = _frame_bits(dataset)
    if length and not length % 8:
        whole = memoryview(data)
        for index in range(min(count, len(data) * 8 // length)):
            yield whole[index * length // 8 : (index + 1) * length // 8]


def _repeated(dataset: Dataset, count: int) -> int:
    """How many frames repeat the one before, but for frames of one value."""
    repeated: Counter[bytes] = Counter()
    first: dict[bytes, tuple[int, Any]] = {}
    for place, (one, other) in enumerate(pairwise(_parts(dataset, count))):
        if one == other:
            digest = sha256(one).digest()
            repeated[digest] += 1
            first.setdefault(digest, (place, one))
    of_one_value = [digest for digest, seen in islice(first.items(), _MOST_LOOKED_AT) if _is_even(dataset, *seen)]
    return sum(repeated.values()) - sum(repeated[digest] for digest in of_one_value)


_MOST_LOOKED_AT: Final = 8
"""Different frames that are repeated and looked at; the empty ones of an object are mostly the same."""


def _is_even(dataset: Dataset, place: int, part: Any) -> bool:
    """Whether a frame has one value only; of compressed ones, what they decode to."""
    if not _is_encapsulated(dataset):
        given, width = bytes(part), max(1, int(_frame_bits(dataset) // (8 * max(1, _pixels(dataset)))))
        return given == given[:width] * (len(given) // width)
    try:
        frame = next(dicom.frames(dataset, max_bytes=MAX_FRAME_BYTES, only=[place]))
    except (StepwedgeError, StopIteration):
        return False
    return bool((frame == frame[0, 0]).all())


def _pixels(dataset: Dataset) -> int:
    return int((number(dataset, "Rows") or 0) * (number(dataset, "Columns") or 0))


# --- slices of an enhanced object (PS3.3 C.7.6.16) -----------------------------------------------------------------


def frame_slices(dataset: Dataset) -> Finding | None:
    """SLICES, by the positions of the frames; those of a series of single images are judged when it is complete."""
    if modality_of(dataset) in DERIVED:  # a segmentation has frames where there is something of its segments
        return None
    stacks: dict[tuple[float, ...], list[float]] = {}
    named: dict[str, int] = {}
    for position, axes, stack in frame_places(dataset):
        key = (named.setdefault(stack, len(named)), *(round(one, 2) for one in axes))
        stacks.setdefault(key, []).append(slices.depth(position, axes))
    judged = [slices.judge(depths) for depths in stacks.values()]
    if not any(one.usual_mm for one in judged):
        return None
    return slices_finding(judged)


def slices_finding(judged: Sequence[slices.Places]) -> Finding:
    """SLICES, of the stacks of an object."""
    code = Reason.REASON_SLICES
    missing, doubled, uneven = (sum(getattr(one, name) for one in judged) for name in ("missing", "doubled", "uneven"))
    value = Value("missing_slices", float(missing), "{slices}")
    if doubled and not missing:  # nothing that a limit for missing slices could be held against
        return finding(code, FAIL, "two slices lie in one place")
    if missing:
        return finding(code, FAIL, "slices are missing", value=value, threshold=1.0)
    words = "the distances of the slices are uneven" if uneven else "the slices lie at even distances"
    return finding(code, WARN if uneven else PASS, words, value=value, threshold=1.0)


# --- values ------------------------------------------------------------------------------------------------------


def number(dataset: Dataset, keyword: str) -> float | None:
    """A number of the header; NaN for what is there and is none; None where it is absent or empty."""
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def text(dataset: Dataset, keyword: str) -> str:
    """Text of the header in capitals; empty where there is none. Several values stay several, with a backslash."""
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        value = "\\".join(map(str, value))
    return value.strip("\0 ").upper() if isinstance(value, str) else ""


_CHECKS: Final[tuple[Callable[[Dataset], Finding | None], ...]] = (
    exposure,
    spacing,
    laterality,
    view,
    dates,
    attributes,
    frames,
    frame_slices,
)
