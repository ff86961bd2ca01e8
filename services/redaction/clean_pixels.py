"""Clean Pixel Data (PS3.15 E.3.1): every frame looked at, what may name somebody made black, all else left as it was.

What the object says of itself comes first (ultrasound regions), then what is known of the equipment, then a text
detector. Native pixel data is changed in place; compressed pixel data stays as it is where nothing had to be blanked,
else it is decoded and kept as native, so that nothing is lost that was not lost before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import convert_color_space

from services.redaction import devices, pixels, regions, values
from services.redaction.facts import objects
from services.redaction.markers import MODALITIES
from services.redaction.markers import kept as marked
from services.redaction.native import Layout, Planes, black, grey_for_detection
from services.redaction.receipt import Box, Counts
from services.redaction.regions import Rectangle
from shared import dicom
from shared.dicom_encoding import EXPLICIT_LITTLE, PIXEL_TAGS, TEXT_VRS, Bytes, Element, Elements, Encoded, encode
from shared.errors import ErrorCode, StepwedgeError
from shared.text_detector import Detector, Found, Seen

MAX_FRAME_BYTES: Final = 256 << 20
"""Most bytes that one decoded frame may take."""
MAX_DECODED_BYTES: Final = 1 << 30
"""Most bytes of compressed pixel data once it is native."""
LOSSY: Final = frozenset({f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 55, 81)})
"""Transfer syntaxes that always lose (JPEG baseline, extended and progressive, JPEG-LS near-lossless)."""

_WHOLE: Final = {"YBR_FULL_422": "YBR_FULL"}
"""Decoders give every pixel its colour, whatever was subsampled (PS3.5 8.2.1)."""
_NATIVE: Final = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL"})
_ULTRASOUND: Final = frozenset({"US", "IVUS", "BDUS"})
_ULTRASOUND_CLASSES: Final = frozenset({"1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"})
_SOP_CLASS, _MODALITY = 0x00080016, 0x00080060
_STATEMENT: Final = frozenset({0x00280301, 0x00280302, 0x00280303})
"""What is said of text in the pixels, faces and dates: of no weight for how the pixels decode."""
_BURNED_IN, _LOSSY, _PHOTOMETRIC, _PLANAR = 0x00280301, 0x00282110, 0x00280004, 0x00280006
_ALLOCATED, _STORED, _HIGH, _SIGNED, _SAMPLES = 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280002
_EXTENDED_OFFSETS: Final = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00003})
_FEW_BYTES: Final = 64 << 20
_LOOKS: Final = 8  # at one frame, at most; one or two are enough for most
_SURE: Final = 0.9  # score of text that stands there without doubt
_OFTEN: Final = 0.25  # of the frames: what stands there in so many of them stands there in all


@dataclass(frozen=True, slots=True)
class Policy:
    """How pixels are cleaned; the names are the keys of a profile's table `[pixels]`.

    text: "blank" what the detector finds, or "refuse" the object. outside_regions: blank what lies outside an
    ultrasound's own regions. devices: further libraries of device regions, of the site. model: folder of the detector;
    None for the one that comes with the product. signers: public keys that its release is signed with, by role
    (`trained_by`, `approved_by`); None for those of the product. most_boxes: of one frame, of text; largest_share: of
    one frame's area, of text: beyond either the object is refused, for a detector that sees text everywhere sees none.
    keep_markers: side markers of radiographs stay where they are told for sure.
    """

    text: str = "blank"
    outside_regions: bool = True
    devices: tuple[Path, ...] = ()
    model: Path | None = None
    signers: tuple[tuple[str, tuple[str, ...]], ...] | None = None
    most_boxes: int = 600
    largest_share: float = 0.6
    keep_markers: bool = True

    @classmethod
    def load(cls, table: Mapping[str, Any]) -> Policy:
        """From a table of TOML. Raises CONFIGURATION."""
        try:
            if table.keys() - {one.name for one in fields(cls)}:
                raise ValueError
            found = cls(
                text=str(table.get("text", "blank")),
                outside_regions=bool(table.get("outside_regions", True)),
                devices=tuple(Path(path) for path in table.get("devices", ())),
                model=Path(table["model"]) if "model" in table else None,
                signers=_signers(table["signers"]) if "signers" in table else None,
                most_boxes=int(table.get("most_boxes", 600)),
                largest_share=float(table.get("largest_share", 0.6)),
                keep_markers=bool(table.get("keep_markers", True)),
            )
            if found.text not in ("blank", "refuse") or found.most_boxes < 1 or not 0 < found.largest_share <= 1:
                raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "the table [pixels] is wrong") from None
        return found

    def detector(self) -> Detector:
        """The detector of this policy, loaded once. Raises what `Detector.load` raises."""
        return _detector(self.model, self.signers)


def _signers(table: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((str(role), tuple(map(str, keys))) for role, keys in table.items())


@dataclass(frozen=True, slots=True)
class Cleaned:
    """elements: the whole data set, with pixel data and its description. transfer_syntax: in which they now are.
    boxes: what was blanked, frames from 1. detector: SHA-256 of the detector; empty where there were no pixels.
    looked: digests of frames, and of compressed pixel data, in which the detector saw nothing more to blank."""

    elements: Elements
    transfer_syntax: str
    boxes: tuple[Box, ...] = ()
    detector: str = ""
    frames: int = field(default=0)
    looked: frozenset[bytes] = frozenset()


def clean(
    elements: Elements, original: Encoded, counts: Counts, policy: Policy, looked: frozenset[bytes] = frozenset()
) -> Cleaned:
    """Clean the pixel data of an object whose other attributes have been seen to.

    elements: the redacted data set, in the original's encoding; the picture is what it says, not what the original
    said. looked: see `Cleaned`, of a pass before this one: what has such a digest is not looked at again.
    Raises PIXELS_UNDECODABLE, NOT_REDACTABLE, and MODEL_NOT_FOUND or MODEL_DIGEST_MISMATCH where there is no detector.
    """
    elements = pixels.cleaned(elements, original, counts)
    pixel = next((element for element in elements if element.tag in PIXEL_TAGS), None)
    if pixel is None:
        return Cleaned(elements, original.transfer_syntax)
    if original.transfer_syntax in objects()["suspect"]["transfer_syntaxes"]:
        raise _not_redactable("its pixels are a video, in which text cannot be blanked")
    detector = policy.detector()
    work = _Work(original, _instead(original, elements), detector, policy, looked)
    done = (_native if pixel.fragments is None else _compressed)(elements, pixel, work)
    kept = {element.tag: element for element in done.elements}
    kept[_BURNED_IN] = Element(_BURNED_IN, "CS", b"NO")
    elements = [kept[tag] for tag in sorted(kept)]
    return replace(done, elements=elements, detector=detector.sha256, looked=done.looked | looked)


@dataclass(frozen=True, slots=True)
class _Work:
    """original: as it came; header: as it will be written, in the original's encoding."""

    original: Encoded
    header: Encoded
    detector: Detector
    policy: Policy
    looked: frozenset[bytes]


def _instead(original: Encoded, elements: Elements) -> Encoded:
    """Another data set in the original's encoding."""
    found = Encoded.__new__(Encoded)
    found.preamble, found.meta, found.data_set = False, [], elements
    found.transfer_syntax, found.implicit, found.little = original.transfer_syntax, original.implicit, original.little
    return found


@lru_cache(maxsize=4)
def _detector(folder: Path | None, signers: tuple[tuple[str, tuple[str, ...]], ...] | None) -> Detector:
    return Detector.load(folder) if signers is None else Detector.load(folder, dict(signers))


def _native(elements: Elements, pixel: Element, work: _Work) -> Cleaned:
    header = work.header
    layout = Layout.of(header, pixel)
    planes = Planes.of(layout, pixel, little=header.little)
    palette = _Palette.of(header)
    seen = (palette.shown(planes.frame(index), layout.photometric) for index in range(layout.frames))
    boxes, looked = _judged(seen, layout, work)
    if boxes:
        for index in range(layout.frames):
            mine = [(box.left, box.top, box.width, box.height) for box in boxes if box.frame == index + 1]
            planes.blank(index, mine, palette.darkest)
        pixel = Element(pixel.tag, pixel.vr, planes.bytes())
    changed = [pixel if element.tag in PIXEL_TAGS else element for element in elements]
    return Cleaned(changed, header.transfer_syntax, tuple(boxes), frames=layout.frames, looked=looked)


def _compressed(elements: Elements, pixel: Element, work: _Work) -> Cleaned:
    header = work.header
    layout = Layout.of(header, pixel)
    markers = _spares(header, work.policy)
    whole = _digest_of_fragments(elements, markers=markers)
    if whole in work.looked and not _fixed(layout, work):
        return Cleaned(elements, header.transfer_syntax, frames=layout.frames)
    dataset = _described(header)
    palette = _Palette.of(header)

    few: list[tuple[NDArray[Any], str]] = []  # where there are few of them, they are decoded once

    def decoded() -> Iterator[tuple[NDArray[Any], str]]:
        if len(few) == layout.frames:
            yield from few
            return
        number = 0
        for number, (frame, photometric) in enumerate(dicom.compressed_frames(dataset, max_bytes=MAX_FRAME_BYTES), 1):
            if frame.shape[:2] != (layout.rows, layout.columns) or number > layout.frames:
                raise _undecodable("a frame is not of the size that the header says")
            if frame.nbytes * layout.frames <= _FEW_BYTES:
                few.append((frame, photometric))
            yield frame, photometric
        if number != layout.frames:
            raise _undecodable("there are fewer frames than the header says")

    overlaid = pixels.beside_bits(work.original)
    seen = (palette.shown(frame & frame.dtype.type(overlaid) if overlaid else frame, kind) for frame, kind in decoded())
    boxes, looked = _judged(seen, layout, work)
    if not boxes and not overlaid:
        return Cleaned(elements, header.transfer_syntax, frames=layout.frames, looked=frozenset({whole}))
    data, first, photometric = bytearray(), None, layout.photometric
    by_frame: dict[int, list[Rectangle]] = {}
    for box in boxes:
        by_frame.setdefault(box.frame, []).append((box.left, box.top, box.width, box.height))
    for number, (frame, photometric) in enumerate(decoded(), 1):
        first = frame if first is None else first
        photometric = _WHOLE.get(photometric, photometric)
        if photometric not in _NATIVE:
            raise _not_redactable("its colours have no native form")
        if frame.nbytes * layout.frames > MAX_DECODED_BYTES or frame.dtype != first.dtype:
            raise _not_redactable("its pixels take too much room once they are decoded")
        if overlaid:
            frame &= frame.dtype.type(overlaid)
        if photometric == "YBR_FULL" and values.first(work.original.data_set, _SOP_CLASS) in _ULTRASOUND_CLASSES:
            # Native ultrasound may not be YBR_FULL (PS3.3 C.8.5.6.1.2): as every viewer would show it.
            frame, photometric = np.asarray(convert_color_space(frame, photometric, "RGB")), "RGB"
        fill = black(frame, photometric, palette.darkest)
        for left, top, width, height in by_frame.get(number, []):
            frame[top : top + height, left : left + width] = fill
        data += frame.astype(frame.dtype.newbyteorder("<"), copy=False).tobytes()
    assert first is not None
    if layout.bits == 1:  # cells of one bit follow each other, across frames too (PS3.5 8.1.1)
        data = bytearray(np.packbits(np.frombuffer(data, np.uint8), bitorder="little").tobytes())
    bits = 1 if layout.bits == 1 else 8 * first.dtype.itemsize
    lossy = header.transfer_syntax in LOSSY
    return Cleaned(
        _redescribed(elements, first, photometric, bytes(data), bits=bits, lossy=lossy),
        EXPLICIT_LITTLE,
        tuple(boxes),
        frames=layout.frames,
        looked=looked,
    )


def _described(original: Encoded) -> Any:
    """The description of the pixels and the pixels alone, for the decoders."""
    kept = [
        e if e.fragments is None else Element(e.tag, e.vr, _encapsulated(e), None, e.fragments)
        for e in original.data_set
        if e.tag >> 16 in (0x0028, 0x7FE0)
    ]
    return dicom.dataset_of(_instead(original, kept), pixels=True)


def _encapsulated(pixel: Element) -> Bytes:
    """The fragments as items, as they will be written."""
    if pixel.value:
        return pixel.value
    pieces = encode([pixel], implicit=True, little=True)
    return b"".join(pieces[1:-1])  # less the element's own header, and the delimiter


def _redescribed(
    elements: Elements, frame: NDArray[Any], photometric: str, data: bytes, *, bits: int, lossy: bool
) -> Elements:
    """The data set with native pixel data, little endian, and the attributes that describe it (PS3.3 C.7.6.3)."""
    stored = values.number(elements, _STORED, bits)
    if not 0 < stored <= bits or (bits > 1 and not _fits(np.frombuffer(data, frame.dtype.newbyteorder("<")), stored)):
        stored = bits  # what was decoded and looked at is the picture, whatever the header says of it

    def number(tag: int, value: int) -> Element:
        return Element(tag, "US", value.to_bytes(2, "little"))

    samples = frame.shape[2] if frame.ndim == 3 else 1
    new = [
        Element(_PHOTOMETRIC, "CS", photometric.encode()),
        number(_SAMPLES, samples),
        number(_ALLOCATED, bits),
        number(_STORED, stored),
        number(_HIGH, stored - 1),
        number(_SIGNED, int(frame.dtype.kind == "i")),
        Element(0x7FE00010, "OB" if bits <= 8 else "OW", data + b"\0" * (len(data) & 1)),
        *([number(_PLANAR, 0)] if samples > 1 else []),
        *([Element(_LOSSY, "CS", b"01")] if lossy else []),
    ]
    dropped = PIXEL_TAGS | _EXTENDED_OFFSETS
    kept = {element.tag: element for element in elements if element.tag not in dropped} | {e.tag: e for e in new}
    return [kept[tag] for tag in sorted(kept)]


def _fits(cells: NDArray[Any], stored: int) -> bool:
    """Whether each cell is a number of so many bits."""
    low, high = int(cells.min(initial=0)), int(cells.max(initial=0))
    most = stored - 1 if cells.dtype.kind == "i" else stored
    return high < 1 << most and low >= (-(1 << most) if cells.dtype.kind == "i" else 0)


def _judged(frames: Iterable[NDArray[Any]], layout: Layout, work: _Work) -> tuple[list[Box], frozenset[bytes]]:
    """What is to be blanked, by frame, and digests of the frames without it. Refuses what cannot be told apart from
    text."""
    policy = work.policy
    fixed = _fixed(layout, work)
    hidden = np.zeros((layout.rows, layout.columns), bool)
    for (left, top, width, height), _ in fixed:
        hidden[top : top + height, left : left + width] = True
    found: list[list[Rectangle]] = []
    looked: set[bytes] = set()
    spared = _spares(work.header, policy)
    for frame in frames:
        if work.looked and _digest(frame, markers=spared) in work.looked:
            found.append([])
            continue
        mine, digest = _text(frame, hidden, layout.photometric, work.detector, markers=spared)
        looked.add(digest)
        if mine and policy.text == "refuse":
            raise _not_redactable("text was found in its pixels, and the profile asks to refuse that")
        share = _share(mine, layout)
        if len(mine) > policy.most_boxes or share > policy.largest_share:
            raise _not_redactable("so much of a frame looks like text that it cannot be told apart")
        found.append([(one.left, one.top, one.width, one.height) for one in mine])
    lasting = _lasting(found, layout)
    boxes = []
    for number, mine_here in enumerate(found, 1):
        boxes += [Box(number, *place, reason) for place, reason in fixed]
        boxes += [Box(number, *place, "text") for place in dict.fromkeys([*mine_here, *lasting])]
    return boxes, frozenset(looked)


def _text(
    frame: NDArray[Any], hidden: NDArray[np.bool_], photometric: str, detector: Detector, *, markers: bool
) -> tuple[list[Found], bytes]:
    """The text of one frame, less side markers, and a digest of the frame without it: looked for again in what is left
    when it is blanked, so that the result holds none that the detector sees, and cleaning it again changes nothing."""
    left = frame.copy()
    dark = 0 if frame.ndim == 3 else frame.max() if photometric == "MONOCHROME1" else frame.min()
    left[hidden] = dark
    mine: list[Found] = []
    seen: Seen | None = None
    found: list[Found] = []
    for _ in range(_LOOKS):
        seen = detector.look(left, seen, found)
        found = [one for one in seen.found if not hidden[_slices(one)].all()]
        found = [one for one in found if (left[_slices(one)] != left[_slices(one)].flat[0]).any()]
        spared = marked(left, found) if markers and left.ndim == 2 else []
        found = [one for one in found if one not in spared]
        if not found and seen.exact:
            return mine, _digest(left, markers=markers)
        if not found:
            seen = None  # shown a little otherwise than whoever sees it next will show it: once more, like that
        mine += found
        for one in found:
            left[_slices(one)] = dark
    return mine, b""


def _digest(frame: NDArray[Any], *, markers: bool) -> bytes:
    """Of what the detector is shown, and whether markers stay in it."""
    head = f"{frame.dtype.str} {frame.shape} {markers} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(frame).tobytes()).digest()


def _digest_of_fragments(elements: Elements, *, markers: bool) -> bytes:
    """Of compressed pixel data and what describes it."""
    head = f"{markers} ".encode()
    pixel = next(element for element in elements if element.tag in PIXEL_TAGS)
    said = [
        b"%08x" % e.tag + (bytes(e.value).rstrip(b"\0 ") if e.vr in TEXT_VRS else bytes(e.value))
        for e in elements
        if e.tag >> 16 == 0x0028 and e.tag not in _STATEMENT
    ]
    return hashlib.sha256(head + b"\0".join([*said, *map(bytes, pixel.fragments or [])])).digest()


def _spares(header: Encoded, policy: Policy) -> bool:
    return policy.keep_markers and values.first(header.data_set, _MODALITY) in MODALITIES


def text_left(result: Encoded, policy: Policy, looked: frozenset[bytes] = frozenset()) -> int:
    """How many pieces of text the detector is sure to see in an object that has been cleaned: none, or it was not.

    looked: see `Cleaned`; what has such a digest, as it was written, need not be looked at again.
    Raises PIXELS_UNDECODABLE, and what the loading of the detector raises.
    """
    pixel = next((element for element in result.data_set if element.tag in PIXEL_TAGS), None)
    if pixel is None:
        return 0
    detector, layout, palette = policy.detector(), Layout.of(result, pixel), _Palette.of(result)
    if pixel.fragments is None:
        planes = Planes.of(layout, pixel, little=result.little)
        frames: Iterable[tuple[NDArray[Any], str]] = (
            (planes.frame(index), layout.photometric) for index in range(layout.frames)
        )
    elif _digest_of_fragments(result.data_set, markers=_spares(result, policy)) in looked:
        return 0
    else:
        frames = dicom.compressed_frames(_described(result), max_bytes=MAX_FRAME_BYTES)
    spared, count = _spares(result, policy), 0
    for frame, photometric in frames:
        shown = palette.shown(frame, photometric)
        if _digest(shown, markers=spared) in looked:
            continue
        found = detector.find(shown)
        kept = marked(shown, found) if spared and shown.ndim == 2 else []
        count += sum(one.score > _SURE and one not in kept for one in found)
    return count


def _fixed(layout: Layout, work: _Work) -> list[tuple[Rectangle, str]]:
    """What is blanked in every frame, whatever it shows: as the object was told apart, and as it will be."""
    fixed: list[tuple[Rectangle, str]] = []
    modalities = {values.first(one.data_set, _MODALITY).upper() for one in (work.original, work.header)}
    if work.policy.outside_regions and modalities & _ULTRASOUND:
        inside = regions.declared(work.header)
        if inside:
            fixed += [(place, "region") for place in regions.outside(inside, layout.rows, layout.columns)]
    known = [place for one in (work.original, work.header) for place in devices.regions(one, work.policy.devices)]
    for left, top, width, height in dict.fromkeys(known):
        width, height = min(width, layout.columns - left), min(height, layout.rows - top)
        if width > 0 and height > 0:
            fixed.append(((left, top, width, height), "device"))
    return fixed


def _slices(one: Found) -> tuple[slice, slice]:
    return slice(one.top, one.top + one.height), slice(one.left, one.left + one.width)


def _share(found: list[Found], layout: Layout) -> float:
    mask = np.zeros((layout.rows, layout.columns), bool)
    for one in found:
        mask[_slices(one)] = True
    return float(mask.mean())


def _lasting(found: list[list[Rectangle]], layout: Layout) -> list[Rectangle]:
    """What is found in a good part of the frames of a loop at one place, and so stands there in all of them."""
    if len(found) < 3:
        return []
    seen: dict[Rectangle, int] = {}
    for places in found:
        for left, top, width, height in places:
            # The same writing comes out a cell wider or narrower.
            key = (left // 16, top // 16, (left + width) // 16, (top + height) // 16)
            seen[key] = seen.get(key, 0) + 1
    often = {key for key, count in seen.items() if count >= max(2, _OFTEN * len(found))}
    widest: dict[Rectangle, Rectangle] = {}
    for places in found:
        for left, top, width, height in places:
            key = (left // 16, top // 16, (left + width) // 16, (top + height) // 16)
            if key in often:
                x, y, far, low = widest.get(key, (left, top, left + width, top + height))
                widest[key] = (min(x, left), min(y, top), max(far, left + width), max(low, top + height))
    return [(x, y, far - x, low - y) for x, y, far, low in widest.values()]


class _Palette:
    """The colours of PALETTE COLOR; nothing for other objects."""

    def __init__(self, dataset: Any, lightness: NDArray[np.float32] | None, first: int) -> None:
        self._dataset, self._lightness, self._first = dataset, lightness, first
        self.darkest = 0 if lightness is None else first + int(lightness.argmin())

    @classmethod
    def of(cls, original: Encoded) -> _Palette:
        if values.first(original.data_set, _PHOTOMETRIC) != "PALETTE COLOR":
            return cls(None, None, 0)
        from pydicom.pixels.processing import apply_color_lut

        kept = [e for e in original.data_set if e.tag >> 16 == 0x0028]
        try:
            dataset = dicom.dataset_of(_instead(original, kept), pixels=False)
            count, first, _ = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
            indices = np.arange(first, min(first + (count or 1 << 16), 1 << 16))
            kind = (
                np.uint8 if values.number(original.data_set, _ALLOCATED, 8, little=original.little) == 8 else np.uint16
            )
            indices = indices[indices <= np.iinfo(kind).max]
            table = np.asarray(apply_color_lut(indices.astype(kind)[None], dataset), np.float32)[0]
        except Exception:  # noqa: BLE001 - pydicom raises whatever the table makes it raise
            raise _undecodable("the palette does not read") from None
        light = table[:, :3] @ np.array([0.299, 0.587, 0.114], np.float32)
        return cls(dataset, np.asarray(light * (255.0 / max(1.0, float(light.max()))), np.float32), first)

    def shown(self, frame: NDArray[Any], photometric: str) -> NDArray[Any]:
        """The frame as the detector is to see it."""
        if self._lightness is None:
            return grey_for_detection(frame, photometric)
        places = np.clip(frame.astype(np.int64) - self._first, 0, len(self._lightness) - 1)
        return np.asarray(self._lightness[places])


def _not_redactable(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_NOT_REDACTABLE, words)


def _undecodable(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE, words)
