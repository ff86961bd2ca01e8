"""From an object to its assessment: general checks on any image, and the model on frontal chest radiographs."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from services.inference import (
    bilevel,
    chest,
    collimation,
    facts,
    general,
    header,
    in_the_way,
    masks,
    registry,
    side_markers,
    thresholds,
)
from services.inference.backends import REMOTE, Execution
from services.inference.chest import Look
from services.inference.collimation import Field
from services.inference.coverage import DERIVED, RADIOGRAPHY, VOLUMES, Coverage, coverage, modality_of
from services.inference.findings import (
    FAIL,
    NOT_ASSESSABLE,
    ORDER,
    PASS,
    WARN,
    Value,
    finding,
    finding_as_json,
    measurement_as_json,
    name,
)
from services.inference.header import UNSTATED, Stated
from services.inference.ladder import LookingTwice, Rung, climb
from services.inference.lookup_tables import as_shown
from services.inference.pixels import Frame, frame_of, has_pixels, picture, picture_size, plain
from services.inference.preprocessing import Preprocessed, preprocess
from services.inference.registry import Answer, Model
from shared import dicom, paths
from shared.errors import ErrorCode, StepwedgeError
from shared.model_signatures import DEVELOPMENT_SIGNERS
from shared.policy import Policy
from stepwedge.common.v1.common_pb2 import Finding, Measurement, Reason, Verdict
from stepwedge.inference.v1.inference_pb2 import ImageFacts

MAX_FILE_BYTES: Final = 2 << 30
"""Longest object or picture that is read."""
MAX_CHEST_PIXELS: Final = 64 << 20
"""Most pixels of an image that the model looks at, or in which markers are read; the largest detectors have 20 million.
"""


@dataclass(frozen=True)
class Pin:
    """What the model was and saw, so that the answer can be had again.

    preprocessed_sha256: of the grid. output_sha256: of the outputs of every look that was taken, in their
    order, each in the orientation of the image as it came.
    """

    name: str
    version: str
    sha256: str
    preprocessing: str
    calibration_sha256: str
    execution_provider: str
    preprocessed_sha256: str
    output_sha256: str


@dataclass(frozen=True)
class AssessmentResult:
    """What was found in one image.

    findings: in the order of the table. measurements: by name, in a fixed order. confidence: Soft Dice Confidence of
    the lungs, None where no model ran. rows, columns: of the image, 0 where it did not decode. pin: None where no
    model ran.
    """

    findings: Sequence[Finding]
    measurements: Sequence[Measurement]
    rows: int = 0
    columns: int = 0
    confidence: float | None = None
    pin: Pin | None = None
    facts: ImageFacts | None = None
    """For checks of more than one image; None for what is no DICOM object."""
    rungs: Sequence[Rung] = ()
    """Every look at an image that the model was unsure of; none where the first was the only one."""
    _look: Look | None = field(default=None, repr=False)

    @property
    def bits(self) -> Mapping[str, NDArray[np.uint8]]:
        """Channel -> mask at the image's own size, a bit for a pixel (`bilevel.enlarged`), made each time it is asked
        for; empty where no model ran."""
        seen = self._look
        return {} if seen is None else masks.full_size(seen.answer.logits, seen.where, seen.behind)

    @property
    def masks(self) -> Mapping[str, NDArray[np.uint8]]:
        """Channel -> mask uint8 [rows, columns], 0 outside and 255 inside; empty where no model ran."""
        return {channel: bilevel.unpacked(bits, self.columns) for channel, bits in self.bits.items()}

    @property
    def lungs(self) -> NDArray[np.bool_] | None:
        """Mask of the lungs on the letterbox of the field, bool [height, width]; None where no model ran."""
        return None if self._look is None else self._look.nested["lungs_full"].middle


@dataclass(frozen=True)
class FileAssessment:
    """A file's assessment under a policy."""

    file: str
    verdict: Verdict.ValueType
    reasons: Sequence[Reason.ValueType]
    result: AssessmentResult

    @property
    def masks(self) -> Mapping[str, NDArray[np.uint8]]:
        """See `AssessmentResult.masks`."""
        return self.result.masks

    def as_json(self) -> dict[str, Any]:
        """As `stepwedge assess --json` prints it."""
        return {
            "file": self.file,
            "verdict": Verdict.Name(self.verdict).removeprefix("VERDICT_"),
            "reasons": [name(reason) for reason in self.reasons],
            "findings": [finding_as_json(one) for one in self.result.findings],
            "measurements": [measurement_as_json(one) for one in self.result.measurements],
        }


class Assessor:
    """The engine: one loaded model and the checks around it. Its methods may be called from several threads.

    Parameters
    ----------
    model_folder
        Folder of a release.
    provider
        Execution provider of ONNX Runtime.
    threads
        Threads in one inference.
    signers
        Public keys trusted in each role of a release (`inference.model_signers`).
    execution
        How the model is run, in full; instead of `provider` and `threads`.
    ladder
        Where the model is unsure of an image, let the form in fp32 look too.

    Raises
    ------
    StepwedgeError
        As `registry.load`.
    """

    def __init__(
        self,
        model_folder: Path,
        *,
        provider: str = "CPUExecutionProvider",
        threads: int = 1,
        signers: Mapping[str, Collection[str]] = DEVELOPMENT_SIGNERS,
        execution: Execution | None = None,
        ladder: bool = False,
    ) -> None:
        how = execution or Execution(provider=provider, threads=threads)
        self.model = registry.load(model_folder, signers=signers, execution=how)
        self.above: Model | None = None
        if ladder:
            above = how if how.backend != REMOTE else Execution()
            self.above = registry.load(model_folder, signers=signers, execution=above, whole=True)
            self.above.wrap(LookingTwice)

    def assess_dicom(self, data: bytes) -> AssessmentResult:
        """Assess a DICOM object. Raises NOT_DICOM, MALFORMED_DICOM; pixels that do not decode are a finding."""
        return self.assess_dataset(dicom.read(data))

    def assess_dataset(self, dataset: Dataset) -> AssessmentResult:
        """Assess a data set of `shared.dicom.read`."""
        if not has_pixels(dataset):
            words = "the object has no pixel data"
            return AssessmentResult([finding(Reason.REASON_NO_PIXELS, NOT_ASSESSABLE, words)], [])
        modality, covered = modality_of(dataset), coverage(dataset)
        try:
            frame = frame_of(dataset, middle=modality in VOLUMES)
        except StepwedgeError as error:
            if error.code != ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE:
                raise
            told = finding(Reason.REASON_PIXELS_UNDECODABLE, FAIL, error.message)
            if header.is_film(dataset):
                words = "a film in MPEG-2, H.264 or HEVC, which is not decoded here"
                told = finding(Reason.REASON_PIXELS_UNDECODABLE, NOT_ASSESSABLE, words)
            return _undecodable(told, header.stated(dataset), facts.facts_of(dataset, None))
        result = self._assess(frame, modality, covered.coverage, covered.why, header.stated(dataset))
        return replace(result, facts=facts.facts_of(dataset, frame))

    def assess_array(
        self, image: NDArray[Any], *, inverted: bool = False, spacing_mm: tuple[float, float] | None = None
    ) -> AssessmentResult:
        """Assess a frontal chest radiograph.

        Parameters
        ----------
        image
            [rows, columns], or [rows, columns, 3] in RGB, of any real type.
        inverted
            The lowest value is white (MONOCHROME1).
        spacing_mm
            Distance of rows and of columns, mm.
        """
        return self._assess(plain(image, inverted=inverted, spacing=spacing_mm), "DX", Coverage.COVERED, "")

    def assess_file(self, path: Path, *, policy: Policy | None = None) -> FileAssessment:
        """Assess a DICOM object, or a PNG, JPEG or TIFF picture, which is taken for a frontal chest radiograph.

        Parameters
        ----------
        path
            The file.
        policy
            Turns findings into the verdict; the one that ships by default.

        Raises
        ------
        StepwedgeError
            FILE, OBJECT_TOO_LARGE, NOT_DICOM, MALFORMED_DICOM.
        """
        data = _read(path)
        if data[128:132] != b"DICM" and picture_size(data) is not None:
            modality, result = "DX", self._assess_picture(data)
        else:
            dataset = dicom.read(data)
            modality, result = modality_of(dataset), self.assess_dataset(dataset)
        rules = policy or Policy.load(paths.POLICY)
        verdict, reasons = rules.instance_verdict(result.findings, modality=modality)
        return FileAssessment(str(path), verdict, reasons, result)

    def _assess_picture(self, data: bytes) -> AssessmentResult:
        try:
            frame = picture(data)
        except StepwedgeError as error:
            if error.code != ErrorCode.ERROR_CODE_PIXELS_UNDECODABLE:
                raise
            return _undecodable(finding(Reason.REASON_PIXELS_UNDECODABLE, FAIL, error.message))
        return self._assess(frame, "DX", Coverage.COVERED, "")

    def _assess(
        self, frame: Frame, modality: str, covered: Coverage, why: str, stated: Stated = UNSTATED
    ) -> AssessmentResult:
        rows, columns = frame.values.shape
        found = [
            finding(Reason.REASON_PIXELS_UNDECODABLE, PASS, _which(frame)),
            finding(Reason.REASON_NO_PIXELS, PASS, "the object has pixel data"),
            *stated.findings,
        ]
        if modality in DERIVED:  # no picture of a patient: small, empty and clipped with reason
            found.append(finding(Reason.REASON_NO_MODEL, NOT_ASSESSABLE, why))
            found.sort(key=lambda one: ORDER[one.code])
            return AssessmentResult(found, [], rows, columns)
        size = _size(frame, thresholds.LEAST_SIDE if covered is Coverage.OTHER else thresholds.LEAST_SIDE_CHEST)
        screen = stated.screen and covered is Coverage.OTHER
        blank = _blank(frame, of_many=stated.slice, screen=screen)
        found += [size, blank]
        seen: Look | None = None
        rungs: Sequence[Rung] = ()
        grey: list[Value] = []
        pin: Pin | None = None
        if covered is not Coverage.OTHER and size.outcome == PASS and blank.outcome != FAIL:
            why = _unfit(frame)
            if why and covered is Coverage.COVERED:
                found.append(finding(Reason.REASON_NOT_A_CHEST, FAIL, why))
            elif not why:
                seen, pin, of_chest, rungs = self._look(frame, stated)
                if covered is Coverage.SILENT and seen.is_foreign():
                    seen = None
                    why = "the header names no body part, and the pixels do not look like a frontal chest radiograph"
                else:
                    found = _instead(found, of_chest)
        if not frame.colour and frame.bits > 1:  # neither has a range of grey to clip
            if not screen:
                found.append(_saturated(frame, seen, of_a_chest=covered is Coverage.COVERED or seen is not None))
            if seen is None and blank.outcome != FAIL and (stated.side or stated.view):
                found = _instead(found, _by_markers(frame, stated))
            grey = [*general.estimates(frame.values)]
            found += _unused_depth(frame, grey[0]) if modality in RADIOGRAPHY else []
        if seen is None and why and covered is not Coverage.COVERED:
            found.append(finding(Reason.REASON_NO_MODEL, NOT_ASSESSABLE, why))
        found.sort(key=lambda one: ORDER[one.code])
        confidence = None if seen is None else seen.confidence
        measured = list(_measurements(found, [*stated.values, *grey, *([] if seen is None else chest.values(seen))]))
        return AssessmentResult(found, measured, rows, columns, confidence, pin, rungs=rungs, _look=seen)

    def _look(self, frame: Frame, stated: Stated) -> tuple[Look, Pin, list[Finding], Sequence[Rung]]:
        """The model's look at a radiograph; once more with black and white exchanged where they were wrong, once more
        turned upright where it was turned, by the form above it where it is unsure, at its mirror image where the side
        is not plain."""
        shown = frame.values if frame.shown is None else as_shown(frame.values, frame.shown)
        field = first = collimation.field_of(shown, frame.inverted, frame.aspect, frame.padding)
        looks = [self._look_at(field, frame)]
        found = [chest.polarity(looks[0])]
        inverted = frame.inverted
        if found[0].outcome == FAIL:
            inverted = not frame.inverted
            field = collimation.field_of(shown, inverted, frame.aspect, frame.padding)
            looks.append(self._look_at(field, frame))
        righted = field.prepared
        if chest.quarter_turns(looks[-1]):
            looks.append(chest.upright(self.model, righted.grid, looks[-1]))

        def look_of(model: Model) -> Look:
            if looks[-1].turned:
                return chest.upright(model, righted.grid, looks[-2])
            return self._look_at(field, frame, model)

        beyond, rungs = climb(looks[-1], self.model, self.above, look_of)
        higher = self.above if rungs and rungs[-1].used else None
        seen = looks[-1] if higher is None else beyond[-1]
        answers = [one.answer for one in (*looks, *beyond)]
        other = chest.mirror_image(higher or self.model, np.rot90(righted.grid, seen.turned), seen)
        if other is not None:
            answers.append(other)
            seen = chest.with_mirror_image(seen, other)
        seen = chest.with_sides_exchanged(seen, stated.directions)
        margins = list(chest.margins(seen))
        found += [chest.not_a_chest(seen), *margins, chest.low_confidence(seen), chest.anatomy(seen)]
        found += [chest.cardiothoracic(seen), chest.rotation(seen), chest.inspiration(seen)]
        found.append(chest.turned(seen, stated.directions))
        markers = side_markers.find(shown, righted, inverted=inverted, aspect=frame.aspect, turned=seen.turned)
        found.append(chest.mirrored(seen, stated.directions, side_markers.exchanged(markers, seen, shown.shape)))
        found += side_markers.contradictions(markers, replace(stated, side=""), frame.index)
        found.append(collimation.finding_of(seen, margins, field, stated.field))
        found.append(in_the_way.finding_of(seen, field.values, inverted=inverted, low=righted.low, high=righted.high))
        return seen, self._pin(first.prepared, answers, higher or self.model), found, rungs

    def _look_at(self, field: Field, frame: Frame, model: Model | None = None) -> Look:
        # A spacing that makes the image smaller or larger than any detector is not believed.
        grid, where = field.prepared.grid, field.prepared.geometry
        return chest.look(model or self.model, grid, where, _believed(frame), frame.index, field.behind)

    def _pin(self, prepared: Preprocessed, answers: Sequence[Answer], model: Model) -> Pin:
        digests = [one.sha256() for one in answers]
        output = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return Pin(
            model.name,
            model.version,
            model.sha256,
            model.preprocessing,
            model.calibration.sha256,
            model.execution_provider,
            prepared.grid_sha256,
            output,
        )


def _undecodable(told: Finding, stated: Stated = UNSTATED, of: ImageFacts | None = None) -> AssessmentResult:
    """What can be said where no pixels can be had: the header often tells why (FRAMES), and what else is wrong."""
    found = sorted([told, *stated.findings], key=lambda one: ORDER[one.code])
    return AssessmentResult(found, list(_measurements(found, stated.values)), facts=of)


def _instead(found: Sequence[Finding], others: Sequence[Finding]) -> list[Finding]:
    """Findings with others in the place of those of the same code."""
    codes = {one.code for one in others}
    return [*(one for one in found if one.code not in codes), *others]


def _by_markers(frame: Frame, stated: Stated) -> list[Finding]:
    """What the markers in a radiograph of another part say against its header."""
    if frame.values.size > MAX_CHEST_PIXELS:
        return []
    shown = frame.values if frame.shown is None else as_shown(frame.values, frame.shown)
    prepared = preprocess(shown, frame.inverted, frame.aspect)
    markers = side_markers.find(shown, prepared, inverted=frame.inverted, aspect=frame.aspect)
    return list(side_markers.contradictions(markers, stated, frame.index))


_FIELD_MM: Final = (100.0, 1000.0)
"""Lengths that the longer side of a chest radiograph can have: of a newborn's, and of two cassettes."""


def _believed(frame: Frame) -> tuple[float, float] | None:
    if frame.spacing_mm is None:
        return None
    longest = max(length * spacing for length, spacing in zip(frame.values.shape, frame.spacing_mm, strict=True))
    return frame.spacing_mm if _FIELD_MM[0] <= longest <= _FIELD_MM[1] else None


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise StepwedgeError(ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE, "the file is larger than 2 GiB")
        return path.read_bytes()
    except OSError:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, "the file cannot be read") from None


def _which(frame: Frame) -> str:
    return "the image decodes" if frame.count == 1 else f"frame {frame.index + 1} of {frame.count} decodes"


def _unfit(frame: Frame) -> str:
    """Why the model cannot look at a frame at all; empty where it can."""
    rows, columns = frame.values.shape
    tall = rows * frame.aspect
    if max(tall, columns) > thresholds.LONGEST_ASPECT.fail * min(tall, columns):
        return "the image is too long and narrow for a chest radiograph"
    if rows * columns > MAX_CHEST_PIXELS:
        return "the image has more pixels than any detector for the chest"
    return ""


def _size(frame: Frame, limit: thresholds.Threshold) -> Finding:
    value = Value("shorter_side", float(min(frame.values.shape)), "{pixels}")
    small = value.value < limit.fail
    words = "too few rows or columns to assess" if small else "enough rows and columns"
    return finding(Reason.REASON_IMAGE_TOO_SMALL, FAIL if small else PASS, words, value=value, threshold=limit.fail)


def _blank(frame: Frame, *, of_many: bool, screen: bool) -> Finding:
    """BLANK_IMAGE. Of a volume the outer slices are empty with reason (those of a series that are so one and all are
    told of when it is complete); a frame of several, and a screen, may hold next to nothing, but not one value only."""
    code, limit = Reason.REASON_BLANK_IMAGE, thresholds.STRUCTURE
    found = general.structure(frame.values, shading=not frame.colour)
    if found is None:
        return finding(code, NOT_ASSESSABLE, "the image is too small to tell")
    outcome = FAIL if found < limit.fail else WARN if found < limit.warn else PASS
    words = {PASS: "there is a picture", WARN: "there is next to nothing on the image", FAIL: "the image is empty"}
    said = words[outcome]
    if outcome == FAIL and (of_many or ((screen or frame.count > 1) and np.ptp(frame.values))):
        outcome = WARN
        said = "the slice is empty, as the outer ones of a volume may be" if of_many else words[WARN]
    return finding(code, outcome, said, value=Value("structure", min(found, 1e9)), threshold=limit.fail)


def _saturated(frame: Frame, seen: Look | None, *, of_a_chest: bool) -> Finding:
    """SATURATED: of a chest by its thorax, or its central box; of other grey pictures by the white end alone, since
    air and background are black with reason."""
    code = Reason.REASON_SATURATED
    # Raw values lie close together where the dose is low, and are not clipped for that.
    raw = frame.shown if frame.shown is not None and frame.shown.linear else None
    values = frame.values if raw is None else as_shown(frame.values, raw)
    inside = (slice(None), slice(None))
    if seen is not None:
        top, bottom, left, right = seen.behind
        inside = (slice(top, values.shape[0] - bottom), slice(left, values.shape[1] - right))
    padding = None if frame.padding is None else frame.padding[inside]
    clipping = general.grey_range(values[inside], padding, frame.aspect)
    if clipping.high <= clipping.low:
        return finding(code, NOT_ASSESSABLE, "all pixels have one value")
    thorax = None if seen is None or not chest.measurable(seen) else seen.thorax()
    low, high = clipping.in_centre() if thorax is None else clipping.within(thorax)
    limit = thresholds.CLIPPED_CENTRE if thorax is None else thresholds.CLIPPED_CHEST
    if not of_a_chest:
        limit = thresholds.CLIPPED_OTHER
        low, high = (low, 0.0) if frame.inverted else (0.0, high)
    share = max(low, high)
    value = Value("clipped_low" if low > high else "clipped_high", share)
    outcome = FAIL if share >= limit.fail else WARN if share >= limit.warn else PASS
    words = {
        PASS: "the grey values are not clipped",
        WARN: "some of the grey values are clipped",
        FAIL: "a large part of the grey values is clipped",
    }
    return finding(code, outcome, words[outcome], value=value, threshold=limit.fail)


def _unused_depth(frame: Frame, levels: Value) -> list[Finding]:
    """UNUSED_DEPTH, of a radiograph large enough to hold that many grey values."""
    least = next((least for bits, least in thresholds.LEVELS if frame.bits >= bits), 0)
    if not least or frame.values.size < 64 * least or frame.values.dtype.kind not in "iu":
        return []
    few = levels.value < least
    words = "few of the grey values that the stored bits allow are used" if few else "the depth of the image is used"
    found = finding(Reason.REASON_UNUSED_DEPTH, WARN if few else PASS, words, value=levels, threshold=float(least))
    return [found]


def _measurements(found: Sequence[Finding], beside: Sequence[Value]) -> Iterator[Measurement]:
    """Every value of the findings, then those that stand for themselves, each name once."""
    told: set[str] = set()
    for one in found:
        if one.HasField("measurement") and one.measurement.name not in told:
            told.add(one.measurement.name)
            yield one.measurement
    for value in beside:
        if value.name not in told:
            told.add(value.name)
            yield value.message()
