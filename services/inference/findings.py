"""The findings: what each means, in which unit, and where its definition comes from; one table, from which documents
are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stepwedge.common.v1.common_pb2 import Box, Finding, Measurement, Outcome, Reason

PASS, WARN, FAIL, NOT_ASSESSABLE = (
    Outcome.OUTCOME_PASS,
    Outcome.OUTCOME_WARN,
    Outcome.OUTCOME_FAIL,
    Outcome.OUTCOME_NOT_ASSESSABLE,
)


@dataclass(frozen=True, slots=True)
class Definition:
    """One finding of the table.

    unit: UCUM unit of its measurement, empty where it has none. source: where definition and criterion come from.
    """

    code: Reason.ValueType
    title: str
    unit: str
    definition: str
    source: str


_EUR = "EUR 16260 EN, European guidelines on quality criteria for diagnostic radiographic images, chest PA, 1996"
_MARGIN = (
    "Distance from the lungs to the {} of the image, or to the blade that ends the picture there (COLLIMATION), that "
    "their probability lets expect, and the least distances of the nested masks of probability 0.1 and 0.9; close to "
    "the edge, what the model says of where the lungs end beside it, below zero where lung lies beyond it. FAIL where "
    "all of that interval is within the threshold, WARN where some of it is within a wider one"
)

TABLE: Final = (
    Definition(
        Reason.REASON_PIXELS_UNDECODABLE,
        "Pixels do not decode",
        "",
        "The frame that is assessed cannot be decoded, or is larger than 256 MiB; NOT_ASSESSABLE for films in MPEG-2, "
        "H.264 or HEVC. What the header shows is told all the same",
        "PS3.5 8 and Annex A",
    ),
    Definition(
        Reason.REASON_NO_PIXELS,
        "No pixels",
        "",
        "The object has no Pixel Data, Float Pixel Data or Double Float Pixel Data",
        "PS3.3 C.7.6.3, C.7.6.24, C.7.6.25",
    ),
    Definition(
        Reason.REASON_IMAGE_TOO_SMALL,
        "Image too small",
        "{pixels}",
        "Shorter side of the image; for the chest model the threshold is higher than for the general checks",
        "own measurement, services/inference/thresholds.py",
    ),
    Definition(
        Reason.REASON_BLANK_IMAGE,
        "Blank image",
        "1",
        "Spread of block means, less border and shading, in multiples of the noise. WARN at most of a slice, since "
        "those at the ends of a volume show nothing: FAIL where all slices of a series are so. Of a frame of several, "
        "and of a document or captured screen, FAIL only where all pixels have one value",
        "own measurement, services/inference/general.py; services/ingest/collation.py",
    ),
    Definition(
        Reason.REASON_SATURATED,
        "Clipped grey values",
        "1",
        "Largest share of the thorax (or of the central box, where there are no masks) that lies within 1/256 of one "
        "end of the grey values; air beside the patient and collimation do not count. Not asked of documents and "
        "captured screens",
        "IEC 62494-1 relates exposure to the relevant region only; thresholds measured",
    ),
    Definition(
        Reason.REASON_INVERTED_POLARITY,
        "Inverted polarity",
        "1",
        "Probability that black and white are the other way round than Photometric Interpretation says",
        "PS3.3 C.7.6.3.1.2; model",
    ),
    Definition(
        Reason.REASON_NOT_A_CHEST,
        "Not a frontal chest radiograph",
        "1",
        "Probability by the model, or its features lie far from those of all training images",
        "model; Mahalanobis distance in principal components",
    ),
    Definition(Reason.REASON_LUNG_MARGIN_TOP, "Margin above the lungs", "mm", _MARGIN.format("upper edge"), _EUR),
    Definition(Reason.REASON_LUNG_MARGIN_BOTTOM, "Margin below the lungs", "mm", _MARGIN.format("lower edge"), _EUR),
    Definition(
        Reason.REASON_LUNG_MARGIN_RIGHT,
        "Margin beside the right lung",
        "mm",
        _MARGIN.format("edge on the patient's right"),
        _EUR,
    ),
    Definition(
        Reason.REASON_LUNG_MARGIN_LEFT,
        "Margin beside the left lung",
        "mm",
        _MARGIN.format("edge on the patient's left"),
        _EUR,
    ),
    Definition(
        Reason.REASON_LOW_CONFIDENCE,
        "Confidence in the outlines",
        "1",
        "Soft Dice Confidence of the lungs in full: the Dice that the model's own probabilities expect",
        "arXiv 2402.10665",
    ),
    Definition(
        Reason.REASON_IMPLAUSIBLE_ANATOMY,
        "Implausible outlines",
        "",
        "Lungs absent, too small or too large, fields of very different size, in the wrong order or at odds with the "
        "lungs in full",
        "own rules, services/inference/thresholds.py",
    ),
    Definition(
        Reason.REASON_TURNED,
        "Turned by quarters",
        "1",
        "Probability that the picture stands on its side or upside down; WARN at most where Patient Orientation "
        "(0020,0020) says that it is stored so",
        "PS3.3 C.7.6.1.1.1; model",
    ),
    Definition(
        Reason.REASON_MIRRORED,
        "Right and left exchanged",
        "1",
        "Probability that right and left are exchanged, by the image and, where that is not sure, its mirror image, "
        "against Patient Orientation (0020,0020) or, where it is silent, against the custom; and what side markers say "
        "that are read in the picture, also backwards. WARN where one of the two contradicts, FAIL where both do: "
        "hearts do lie on the right",
        "PS3.3 C.7.6.1.1.1; model; services/inference/side_markers.py",
    ),
    Definition(
        Reason.REASON_ROTATION,
        "Rotation index",
        "1",
        "Difference of the mean widths of the two lung fields between apices and heart over their sum, positive where "
        "the left one is wider, its interval from the nested masks: an index, no angle. WARN at most. It was held "
        "against a digital phantom, where a degree moves it by 0.002 and anatomy by 0.1, and against nobody's reading: "
        "it shows a gross difference of the sides, and no rotation of the size that occurs. People agree on rotation "
        "at kappa 0.5",
        "after doi 10.3233/XST-210990; own measurement, services/inference/thresholds.py",
    ),
    Definition(
        Reason.REASON_INSPIRATION,
        "Inspiration index",
        "1",
        "Mean height of the lung fields from apex to dome of the diaphragm over the widest extent of both, its "
        "interval from the nested masks. Habitus and disease change it as breath does. Held against a digital "
        "phantom and against nobody's count of ribs",
        _EUR + "; own measurement, services/inference/thresholds.py",
    ),
    Definition(
        Reason.REASON_COLLIMATION,
        "Collimation",
        "1",
        "Share of the picture behind the blades, by the collimator's or shutter's edges in the header, by padding and "
        "by a uniform white or black border with a straight edge; WARN and FAIL as the margins, where the lungs reach "
        "the edge of the field at a blade",
        "PS3.3 C.8.7.3, C.7.6.11, C.7.5.1.1.2; services/inference/collimation.py",
    ),
    Definition(
        Reason.REASON_OBJECT_IN_THE_WAY,
        "Object in the way",
        "1",
        "Score of the likeliest object over the lungs: a weighted sum of how large a bright piece is, how bright, and "
        "how steep its rim, fitted to objects drawn into radiographs. WARN from the threshold on, FAIL where what is "
        "told hides a large part of the lungs. What hardly stands out from the lungs, and what lies beside them, is "
        "not seen",
        "own measurement, services/inference/in_the_way.py",
    ),
    Definition(
        Reason.REASON_EXPOSURE,
        "Deviation index",
        "dB",
        "10 log10 of Exposure Index (0018,1411) over Target Exposure Index (0018,1412); WARN also where the stored "
        "Deviation Index (0018,1413) contradicts it by more than the rounding of the three. Without both indices, or "
        "with one that is no number above zero, NOT_ASSESSABLE",
        "IEC 62494-1:2008; limits of AAPM TG-116",
    ),
    Definition(
        Reason.REASON_UNUSED_DEPTH,
        "Unused depth",
        "{levels}",
        "Different grey values in a radiograph against those that its bits stored allow",
        "PS3.3 C.7.6.3.1; own limit, services/inference/thresholds.py",
    ),
    Definition(
        Reason.REASON_FRAMES,
        "Frames",
        "{frames}",
        "FAIL where the pixel data holds more or fewer frames than Number of Frames (0028,0008) states, WARN where "
        "frames repeat the one before byte for byte, unless they hold one value only, follow each other in time or are "
        "segments",
        "PS3.3 C.7.6.6, PS3.5 A.4",
    ),
    Definition(
        Reason.REASON_SPACING,
        "Distance of the pixels",
        "1",
        "FAIL where Pixel Spacing, Imager Pixel Spacing or Nominal Scanned Pixel Spacing, also of a frame (Pixel "
        "Measures), states what cannot be, or makes a slice, mammogram or angiogram shorter than 1 mm or longer than "
        "3 m; the value is the distance of rows over that of columns",
        "PS3.3 10.7.1.3, C.8.6.1, C.7.6.16.2.1",
    ),
    Definition(
        Reason.REASON_LATERALITY,
        "Side and orientation",
        "",
        "Contradictions among Laterality (0020,0060), Image Laterality (0020,0062), Patient Orientation (0020,0020), "
        "Body Part Examined (0018,0015) and Anatomic Region Sequence (0008,2218); FAIL where a radiograph of a "
        "part of which there are two carries a side marker of the other side alone",
        "PS3.3 C.7.3.1, C.7.6.1.1.1, C.8.11.2; PS3.16 Annex L",
    ),
    Definition(
        Reason.REASON_VIEW,
        "View",
        "",
        "Contradictions among View Position (0018,5101), View Code Sequence (0054,0220) and Patient Orientation "
        "(0020,0020), and of what the first two say with AP or PA written alone in the picture; else the pixels are "
        "not asked, since the model does not tell AP from PA",
        "PS3.3 C.8.11.5, PS3.16 CID 4010",
    ),
    Definition(
        Reason.REASON_DATES,
        "Dates",
        "",
        "Dates that are none of the calendar, before birth, before X-rays, or acquired after the content was made; "
        "never held against the clock, since a replay must give the same answer",
        "PS3.5 6.2, PS3.3 C.7.6.1",
    ),
    Definition(
        Reason.REASON_ATTRIBUTES_ABSENT,
        "Required attributes",
        "{attributes}",
        "Attributes of the mandatory modules of the object's IOD: of type 1 that are absent or empty, of type 2 that "
        "are absent. Conditions (types 1C and 2C) and sequences are not judged",
        "PS3.3 A and C, by the tables that highdicom ships; services/inference/required.py",
    ),
    Definition(
        Reason.REASON_DUPLICATE_IMAGES,
        "Duplicate images",
        "{images}",
        "Images of the study that have the same size and pixel values as another under another SOP Instance UID; FAIL "
        "in one series, WARN across series. Images of one value only are not counted",
        "PS3.3 C.12.1.1 (SOP Instance UID); services/ingest/collation.py",
    ),
    Definition(
        Reason.REASON_SLICES,
        "Slices of a series",
        "{slices}",
        "Distances of neighbouring slices along their common normal, by stack of a series or of an enhanced object: "
        "FAIL where one is a multiple of the usual (slices are missing) or two slices lie in one place, WARN where "
        "distances are uneven in another way. The value is how many are missing",
        "PS3.3 C.7.6.2; services/ingest/collation.py",
    ),
    Definition(
        Reason.REASON_GEOMETRY,
        "Geometry of a series",
        "{geometries}",
        "Different orientations, distances of the pixels, sizes or frames of reference among the images of one stack; "
        "a localizer among slices is a stack of its own",
        "PS3.3 C.7.6.2, C.7.4.1; services/ingest/collation.py",
    ),
    Definition(
        Reason.REASON_MIXED_PATIENTS,
        "One patient in a study",
        "{patients}",
        "Different Patient IDs, or one ID with different birth dates or sexes, among the instances of one study; "
        "compared as keyed pseudonyms",
        "PS3.3 7.3.1 and C.7.1.1: a study is of one patient; services/ingest/collation.py",
    ),
    Definition(
        Reason.REASON_NOISE,
        "Noise against the device",
        "1",
        "Median noise of the study's images of a device over the mean of all that it made in the last 90 days, "
        "whatever they show; WARN beyond the larger of a share and a multiple of their spread, NOT_ASSESSABLE until "
        "there are enough of them",
        "own limits, services/ingest/collation.py",
    ),
    Definition(
        Reason.REASON_SHARPNESS,
        "Sharpness against the device",
        "1",
        "Median sharpness of the study's images of a device over the mean of what it makes; as noise",
        "own limits, services/ingest/collation.py",
    ),
    Definition(
        Reason.REASON_CARDIOTHORACIC_RATIO,
        "Cardiothoracic ratio",
        "1",
        "Widest extent of the heart over the widest extent of both lung fields; a measurement, never a fault",
        "Danzer 1919; extents as in the reference values of the evaluation set",
    ),
    Definition(
        Reason.REASON_NO_MODEL,
        "No model",
        "",
        "No released model covers modality, body part and view; only the general checks were made",
        "PS3.3 C.7.3.1.1.1, PS3.16 Annex L, CID 4010",
    ),
)
"""Every finding, in the order of the answers; what needs more than one image, ingest adds before it decides."""

ORDER: Final[Mapping[Reason.ValueType, int]] = {definition.code: place for place, definition in enumerate(TABLE)}

MEASUREMENTS: Final[Mapping[str, str]] = {
    "shorter_side": "Shorter side of the image, {pixels}",
    "structure": "How far the picture is from an empty one, in multiples of the noise",
    "clipped_low": "Share of the region at the lower end of the grey values",
    "clipped_high": "Share of the region at the upper end of the grey values",
    "lung_margin_top": "Upper edge of the image to the lungs; mm, or share of the height where no spacing is known",
    "lung_margin_bottom": "Lungs to the lower edge of the image; mm, or share of the height",
    "lung_margin_right": "Edge on the patient's right to the right lung; mm, or share of the width",
    "lung_margin_left": "Left lung to the edge on the patient's left; mm, or share of the width",
    "cardiothoracic_ratio": "Width of the heart over width of the lung fields",
    "right_lung_area": "Right lung field; mm2, or share of the image",
    "left_lung_area": "Left lung field; mm2, or share of the image",
    "heart_area": "Heart; mm2, or share of the image",
    "lungs_full_area": "Both lungs in full; mm2, or share of the image",
    "confidence_lung_fields": "Soft Dice Confidence of the two lung fields",
    "confidence_heart": "Soft Dice Confidence of the heart",
    "confidence_lungs_full": "Soft Dice Confidence of the lungs in full",
    "probability_inverted": "Probability of inverted polarity",
    "quarter_turns": "Quarter turns clockwise by which the image was found turned; the rest is of it turned back",
    "probability_turned": "Largest probability of a turn by 90, 180 or 270 degrees that is left",
    "probability_mirrored": "Probability of exchanged sides",
    "probability_not_a_chest": "Probability that this is no frontal chest radiograph",
    "rotation_index": "Left less right lung field over both, by their mean widths between apices and heart",
    "inspiration_index": "Height of the lung fields over their width",
    "collimated_share": "Share of the picture behind the blades",
    "object_score": "Score of the likeliest object over the lungs; from 1.5 on it is told",
    "deviation_index": "10 log10 of the exposure index over its target",
    "exposure_index": "Exposure Index (0018,1411) as the object has it",
    "target_exposure_index": "Target Exposure Index (0018,1412) as the object has it",
    "stored_deviation_index": "Deviation Index (0018,1413) as the object has it",
    "grey_levels": "Different grey values, of every so many pixels where there are more than two million",
    "noise": "Noise in the central part, as a share of the range of its grey values; an estimate",
    "sharpness": "Steepest slopes in the central part over those after a blur: 1 is blurred, 2 is sharp; an estimate",
    "repeated_frames": "Frames that repeat the one before byte for byte",
    "frames_held": "Frames that the pixel data holds, where that is not what is stated",
    "pixel_aspect": "Distance of the rows over that of the columns",
    "attributes_absent": "Required attributes that are absent or empty",
    "duplicate_images": "Images with the pixels of another one of the study",
    "missing_slices": "Slices that are missing, by the usual distance of the others",
    "geometries": "Different geometries among the images of one stack",
    "patients": "Different patients among the instances of the study",
    "relative_noise": "Noise over the median of the device; the interval is what counts as usual",
    "relative_sharpness": "Sharpness over the median of the device; the interval is what counts as usual",
    "feature_distance": "Distance of the model's features from the training images'",
}
"""Name of every measurement -> what it is."""


def as_markdown() -> str:
    """The two tables as docs/findings.md holds them; `python -m services.inference.findings` prints them."""
    lines = ["| code | title | unit | definition | source |", "|---|---|---|---|---|"]
    for one in TABLE:
        unit = f"`{one.unit}`" if one.unit else ""
        lines.append(f"| `{name(one.code)}` | {one.title} | {unit} | {one.definition} | {one.source} |")
    lines += ["", "| measurement | what it is |", "|---|---|"]
    lines += [f"| `{measured}` | {words} |" for measured, words in MEASUREMENTS.items()]
    return "\n".join(lines) + "\n"


class Value(NamedTuple):
    """A measured value with its unit (UCUM) and, where there is one, its interval."""

    name: str
    value: float
    unit: str = "1"
    low: float | None = None
    high: float | None = None

    def message(self) -> Measurement:
        """As the contract has it, rounded to the six decimals that the log keeps."""
        message = Measurement(name=self.name, value=round(self.value, 6), unit=self.unit)
        if self.low is not None and self.high is not None:
            message.low, message.high = round(self.low, 6), round(self.high, 6)
        return message


def finding(
    code: Reason.ValueType,
    outcome: Outcome.ValueType,
    detail: str,
    *,
    value: Value | None = None,
    threshold: float | None = None,
    boxes: Iterable[Box] = (),
) -> Finding:
    """One check and what came of it; `detail` is one sentence that holds no identity."""
    message = Finding(code=code, outcome=outcome, detail=detail, boxes=boxes)
    if value is not None:
        message.measurement.CopyFrom(value.message())
    if threshold is not None:
        message.threshold = threshold
    return message


def name(code: Reason.ValueType) -> str:
    """ "BLANK_IMAGE" of REASON_BLANK_IMAGE."""
    return Reason.Name(code).removeprefix("REASON_")


def measurement_as_json(message: Measurement) -> dict[str, Any]:
    """A measurement as commands print it."""
    shown: dict[str, Any] = {"name": message.name, "value": message.value, "unit": message.unit}
    if message.HasField("low"):
        shown |= {"low": message.low, "high": message.high}
    return shown


def finding_as_json(message: Finding) -> dict[str, Any]:
    """A finding as commands print it."""
    shown: dict[str, Any] = {
        "code": name(message.code),
        "outcome": Outcome.Name(message.outcome).removeprefix("OUTCOME_"),
        "detail": message.detail,
    }
    if message.HasField("measurement"):
        shown["measurement"] = measurement_as_json(message.measurement)
    if message.HasField("threshold"):
        shown["threshold"] = message.threshold
    if message.boxes:
        shown["boxes"] = [
            {"frame": box.frame, "left": box.left, "top": box.top, "width": box.width, "height": box.height}
            for box in message.boxes
        ]
    return shown


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())
