"""A digital chest phantom: a frontal chest radiograph from parameters, with the truth of everything in it.

Structures are outlines in millimetres on the plane of the detector; each adds or takes away a thickness of water
equivalent, and the picture is what a detector behind it would show: attenuation, scatter, blur, quantum noise, and a
curve for display (bright is dense, MONOCHROME2). Nothing in it is measured from a person. It is meant to be plausible
enough for a model and for a constancy test, not to be anatomy.

Coordinates of the plane: x from the middle of the spine towards the patient's left (the image's right), y downwards,
in millimetres. The same seed gives the same picture on the same versions of numpy and OpenCV.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from shared import constancy as constancy_names

Plane = NDArray[np.float32]
Mask = NDArray[np.uint8]
Outline = NDArray[np.float64]
Edge = Literal["top", "bottom", "right", "left"]

STRUCTURES: Final = ("right_lung_field", "left_lung_field", "heart", "lungs_full")
"""Names of the true masks; the conventions are those of the model's output channels."""

BITS_STORED: Final = 12

# How the picture is taken.
_FIELD_MM: Final = (358.4, 448.0)  # width, height: a 14 x 17 inch detector
_AROUND_MM: Final = 220.0  # how much more of the plane is drawn, so that the field can be moved over it
_DRAWN_MM: Final = 0.7  # pixels that bodies are drawn with
_LUNGS_TOP_MM: Final = 70.0  # from the upper edge of the field to the middle of the apices
_ATTENUATION: Final = 0.019  # per mm of water equivalent, about 110 kV behind the patient
_SCATTER_FRACTION: Final = 0.30
_SCATTER_MM: Final = 45.0
_QUANTA: Final = 9_000.0  # per pixel in the open beam
_THROUGH_BLADES: Final = 0.004
_CAPITAL: Final = 22  # pixels of OpenCV's letters at scale 1
_MARKER_MM: Final = (22.0, 25.0)  # of a marker from the nearer side and from the top
_DETAIL, _DETAIL_MM = 0.5, 9.0  # how much detail below that size is lifted for display
_CURVE: Final = 2.3  # of the display: how far dense tissue is pressed together


@dataclass(frozen=True)
class Anatomy:
    """What differs from one phantom to the next; lengths in mm, 1.0 is the reference size."""

    width: float = 1.0
    """Width of the thorax."""
    height: float = 1.0
    """Height of the lungs (depth of inspiration)."""
    heart: float = 1.0
    """Width of the heart."""
    thickness: float = 190.0
    """Thickness of the body."""
    tilt_degrees: float = 0.0
    """Turn of the body in the plane of the detector."""
    breast: float = 0.0
    """Weight of the breast shadows, 0 to 1."""
    rotation_degrees: float = 0.0
    """Turn of the body about its long axis; where positive, what lies in front moves to the patient's left."""


Kind = Literal["coin", "electrode", "necklace"]


@dataclass(frozen=True)
class Foreign:
    """Something that does not belong over the lungs: a coin of 24 mm, an electrode of 10 mm with its lead, a necklace
    of links of 3 mm that hangs down 50 mm. x_mm, y_mm: its middle on the plane (a necklace's lowest link)."""

    kind: Kind
    x_mm: float
    y_mm: float


@dataclass(frozen=True)
class Phantom:
    """A picture and the truth of it."""

    image: NDArray[np.uint16]
    """Rows x columns, 12 bits, MONOCHROME2 (unless it was inverted)."""
    masks: Mapping[str, Mask]
    """Rows x columns, 0 and 1, by the names in `STRUCTURES`, and `foreign` where objects are in the way."""
    spacing_mm: float
    """Distance of pixel centres on the detector, both ways."""
    seed: int
    anatomy: Anatomy
    margins_mm: Mapping[Edge, float]
    """From the lungs to each edge of the field, negative where they are cut off; right and left are the patient's."""
    photometric_interpretation: str = "MONOCHROME2"
    exposure: float = 1.0
    """Quanta at the detector over the usual, which is the target."""


def chest(
    seed: int,
    *,
    columns: int = 1024,
    rows: int = 1280,
    anatomy: Anatomy | None = None,
    margins_mm: Mapping[Edge, float] | None = None,
    exposure: float = 1.0,
    collimation_mm: float = 0.0,
    foreign: Sequence[Foreign] = (),
) -> Phantom:
    """Draw a phantom.

    Parameters
    ----------
    seed
        Chooses the anatomy, where none is given, and the noise.
    columns, rows
        Size of the picture; the field is 358.4 mm wide.
    anatomy
        Instead of what the seed chooses.
    margins_mm
        Where the field lies: the distance from the lungs to an edge, negative to cut them off. One of top and bottom,
        and one of right and left; by default all is on the picture.
    exposure
        Quanta at the detector over the usual: 0.25 is a quarter of the dose and twice the noise.
    collimation_mm
        How far the blades reach into the field from each side; what lies behind them is white. The truth says where
        the structures are, behind the blades too.
    foreign
        Objects in the way.

    Raises
    ------
    ValueError
        Margins to two opposite edges, a field moved off the plane, a size below 64, an exposure that is not
        above zero and at most 1000, or blades that leave less than half of the field open.
    """
    if min(columns, rows) < 64:
        raise ValueError("a phantom has at least 64 columns and rows")
    if not 0.0 < exposure <= 1000.0:
        raise ValueError("an exposure is above zero and at most 1000")
    random = np.random.default_rng(seed)
    chosen = anatomy or _choose(random)
    spacing = _FIELD_MM[0] / columns
    if not 0.0 <= 4.0 * collimation_mm <= min(columns, rows) * spacing:
        raise ValueError("blades leave at least half of the field open")
    blades = round(collimation_mm / spacing)
    outlines = _outline(chosen, random)
    plane = _Canvas(spacing, rows * spacing, chosen.tilt_degrees)
    truth = _Truth(plane, outlines)
    top, left = _place_field(plane, truth, margins_mm or {}, columns, rows)
    window = (slice(top, top + rows), slice(left, left + columns))
    # Bodies are smooth: they are drawn no finer than that, and seen by the detector at its own spacing.
    coarse = _Canvas(max(spacing, _DRAWN_MM), rows * spacing, chosen.tilt_degrees)
    water = _water(coarse, _Truth(coarse, outlines), chosen, random) + _metal(coarse, foreign)
    beam = _sample(_behind(water, coarse.spacing), coarse.spacing, window, spacing)
    exposed = _expose(beam, spacing, blades, _QUANTA * exposure, random)
    masks = {name: np.ascontiguousarray(mask[window]) for name, mask in truth.masks.items()}
    if foreign:
        masks["foreign"] = np.ascontiguousarray(_metal(plane, foreign)[window] > 0.0, np.uint8)
    return Phantom(
        image=_display(exposed, spacing, blades),
        masks=MappingProxyType(masks),
        spacing_mm=spacing,
        seed=seed,
        anatomy=chosen,
        margins_mm=MappingProxyType(_margins(truth.masks["lungs_full"], window, spacing)),
        exposure=exposure,
    )


def inverted(phantom: Phantom) -> Phantom:
    """The same with black and white exchanged, and a header that does not say so."""
    return replace(phantom, image=(2**BITS_STORED - 1 - phantom.image).astype(np.uint16))


def monochrome1(phantom: Phantom) -> Phantom:
    """The same with the lowest value white, and a header that says so: nothing is wrong with it (C.7.6.3.1.2)."""
    return replace(inverted(phantom), photometric_interpretation="MONOCHROME1")


def blank(phantom: Phantom) -> Phantom:
    """A detector that saw nothing but noise."""
    random = np.random.default_rng(phantom.seed)
    noise = random.normal(400.0, 3.0, phantom.image.shape)
    nothing = {name: np.zeros_like(mask) for name, mask in phantom.masks.items()}
    return replace(phantom, image=noise.astype(np.uint16), masks=MappingProxyType(nothing))


def saturated(phantom: Phantom, fraction: float = 0.4) -> Phantom:
    """The same with the brightest `fraction` (0 to 1) of the pixels clipped."""
    limit = max(float(np.quantile(phantom.image, 1.0 - fraction)), 1.0)
    top = 2**BITS_STORED - 1
    image = np.minimum(phantom.image.astype(np.float32) / limit * top, top)
    return replace(phantom, image=image.astype(np.uint16))


def turned(phantom: Phantom, quarter_turns: int) -> Phantom:
    """The same turned counter-clockwise by quarters; the truth turns along, and the margins no longer hold."""
    masks = {name: np.ascontiguousarray(np.rot90(mask, quarter_turns)) for name, mask in phantom.masks.items()}
    image = np.ascontiguousarray(np.rot90(phantom.image, quarter_turns))
    return replace(phantom, image=image, masks=MappingProxyType(masks), margins_mm=MappingProxyType({}))


def mirrored(phantom: Phantom) -> Phantom:
    """The same seen from behind, with a header that does not say so; right and left in the truth stay the patient's."""
    masks = {name: np.ascontiguousarray(mask[:, ::-1]) for name, mask in phantom.masks.items()}
    return replace(
        phantom,
        image=np.ascontiguousarray(phantom.image[:, ::-1]),
        masks=MappingProxyType(masks),
        margins_mm=MappingProxyType({}),
    )


def marked(phantom: Phantom, text: str, height_mm: float = 14.0) -> Phantom:
    """The same with a marker of lead in the upper corner of the side that it names: R, L, or AP and PA on the left.

    What is done to the picture afterwards is done to the marker; `mirrored` writes it backwards."""
    image, rows = phantom.image.copy(), round(height_mm / phantom.spacing_mm)
    scale, thick = rows / _CAPITAL, max(1, round(0.15 * rows))
    width = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, thick)[0][0]
    aside = round(_MARKER_MM[0] / phantom.spacing_mm)
    left = aside if text == "R" else image.shape[1] - aside - width
    ink = np.zeros(image.shape, np.uint8)
    bottom = round(_MARKER_MM[1] / phantom.spacing_mm) + rows
    cv2.putText(ink, text, (left, bottom), cv2.FONT_HERSHEY_DUPLEX, scale, 255, thick, cv2.LINE_AA)
    lead = np.float32(0.97 * (2**BITS_STORED - 1))
    share = cv2.GaussianBlur(ink, (0, 0), 0.6).astype(np.float32) / 255
    return replace(phantom, image=np.maximum(image, (share * lead).astype(np.uint16)))


# --- anatomy -----------------------------------------------------------------------------------------------------


def _choose(random: np.random.Generator) -> Anatomy:
    return Anatomy(
        width=float(random.uniform(0.92, 1.06)),
        height=float(random.uniform(0.92, 1.06)),
        heart=float(random.uniform(0.92, 1.12)),
        thickness=float(random.uniform(165.0, 215.0)),
        tilt_degrees=float(random.uniform(-2.0, 2.0)),
        breast=float(random.choice([0.0, 0.0, random.uniform(0.3, 1.0)])),
    )


# Outlines of the reference anatomy, mm; x away from the spine for the lungs, y from the upper edge of the field.
_LUNG_LATERAL: Final = (
    (40, 70), (58, 74), (78, 88), (96, 110), (110, 140), (121, 175), (129, 210), (135, 245), (139, 280), (140, 312),
    (137, 331),
)  # fmt: skip
_RIGHT_BASE: Final = ((128, 318), (112, 302), (92, 292), (70, 288), (48, 292), (30, 300), (18, 304))
_LEFT_BASE: Final = ((129, 321), (114, 309), (94, 301), (72, 298), (50, 301), (30, 307), (18, 310))
_LUNG_MEDIAL: Final = ((16, 270), (18, 225), (22, 190), (24, 160), (24, 130), (22, 105), (25, 82))
_HEART: Final = (
    (-20, 178), (2, 168), (26, 176), (46, 196), (64, 224), (80, 252), (90, 277), (86, 298), (62, 310), (30, 314),
    (-6, 312), (-34, 304), (-50, 286), (-54, 258), (-48, 226), (-34, 196),
)  # fmt: skip
_MEDIASTINUM: Final = (
    (-22, 40), (-24, 90), (-25, 130), (-30, 160), (-36, 200), (-34, 330), (36, 330), (40, 205), (36, 180), (44, 160),
    (46, 146), (40, 132), (27, 124), (24, 90), (22, 40),
)  # fmt: skip
_TRACHEA: Final = ((-7, 20), (-7, 100), (-6, 145), (-24, 172), (-18, 178), (2, 156), (22, 176), (28, 170), (9, 145),
                   (8, 100), (8, 20))  # fmt: skip


# How far in front of the middle of the body the midline of a structure lies, mm; towards the side of the chest, where
# front and back meet, it is nothing.
_IN_FRONT_MM: Final = MappingProxyType(
    {"right": 15.0, "left": 15.0, "heart": 45.0, "mediastinum": 15.0, "trachea": 5.0, "spine": -70.0, "ribs": -70.0,
     "rib ends": 70.0, "clavicles": 60.0, "blades": -60.0, "breasts": 100.0}
)  # fmt: skip
_HALF_CHEST_MM: Final = 150.0


def _rotated(points: Outline, structure: str, degrees: float) -> Outline:
    """Where points of a structure, mm, fall when the body turns about its long axis in a parallel beam."""
    if degrees == 0:
        return points
    turn = np.deg2rad(degrees)
    across = points[:, 0]
    depth = _IN_FRONT_MM[structure] * np.maximum(0.0, 1.0 - np.abs(across) / _HALF_CHEST_MM)
    return np.stack([across * np.cos(turn) + depth * np.sin(turn), points[:, 1]], axis=1)


class _Canvas:
    """The plane of the detector, larger than the field, and how outlines are drawn on it."""

    def __init__(self, spacing: float, height_mm: float, tilt_degrees: float) -> None:
        self.spacing = spacing
        """mm per pixel."""
        self.columns = round((_FIELD_MM[0] + 2 * _AROUND_MM) / spacing)
        self.rows = round((height_mm + 2 * _AROUND_MM) / spacing)
        self._turn = np.deg2rad(tilt_degrees)

    def pixels(self, outline: Outline) -> Outline:
        """Millimetres to pixels, with the tilt of the body."""
        pivot = np.array([0.0, 200.0])
        turn = np.array(
            [[np.cos(self._turn), -np.sin(self._turn)], [np.sin(self._turn), np.cos(self._turn)]], dtype=np.float64
        )
        turned_outline = (outline - pivot) @ turn.T + pivot
        return np.asarray(
            (turned_outline + np.array([_FIELD_MM[0] / 2 + _AROUND_MM, _AROUND_MM])) / self.spacing, np.float64
        )

    def fill(self, outline: Outline) -> Mask:
        """A mask of what lies inside."""
        mask = np.zeros((self.rows, self.columns), np.uint8)
        cv2.fillPoly(mask, [self._fixed(outline)], 1, cv2.LINE_8, 4)
        return mask

    def bands(self, lines: Sequence[tuple[Outline, float, float]], soft_mm: float = 1.2) -> Plane:
        """Bands along lines, each (line, width in mm, thickness in mm), soft at their borders; the last drawn hides."""
        plane = np.zeros((self.rows, self.columns), np.float32)
        for line, width_mm, thickness in lines:
            width = max(1, round(width_mm / self.spacing))
            cv2.polylines(plane, [self._fixed(line)], False, thickness, width, cv2.LINE_8, 4)
        return self.soften(plane, soft_mm)

    def soften(self, plane: Plane, sigma_mm: float) -> Plane:
        """Blur by a Gaussian of `sigma_mm`."""
        return _blur(plane, sigma_mm / self.spacing)

    def dome(self, mask: Mask, depth_mm: float, rise_mm: float) -> Plane:
        """Thickness of a body with this outline: 0 at the border, rising to `depth_mm` over some `rise_mm`."""
        distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3) * self.spacing
        return np.asarray(depth_mm * (1.0 - np.exp(-distance / rise_mm)), np.float32)

    def _fixed(self, outline: Outline) -> NDArray[np.int32]:
        return np.asarray(np.rint(self.pixels(outline) * 16.0), np.int32)


def _outline(anatomy: Anatomy, random: np.random.Generator) -> Mapping[str, Outline]:
    """The outlines of one anatomy, mm."""

    def sized(points: Sequence[tuple[float, float]], jitter: float, stretch: float = 1.0) -> Outline:
        outline = np.asarray(points, np.float64) + random.normal(0.0, jitter, (len(points), 2))
        below = np.maximum(outline[:, 1] - _LUNGS_TOP_MM, 0.0)
        outline[:, 1] += below * (anatomy.height - 1.0)
        outline[:, 0] *= anatomy.width * stretch
        return outline

    outlines = {
        "right": _smooth(sized((*_LUNG_LATERAL, *_RIGHT_BASE, *_LUNG_MEDIAL), 2.5, -1.0)),
        "left": _smooth(sized((*_LUNG_LATERAL, *_LEFT_BASE, *_LUNG_MEDIAL), 2.5)),
        "heart": _smooth(sized(_HEART, 2.5, anatomy.heart)),
        "mediastinum": _smooth(sized(_MEDIASTINUM, 1.5)),
        "trachea": _smooth(sized(_TRACHEA, 0.8)),
    }
    return {name: _rotated(outline, name, anatomy.rotation_degrees) for name, outline in outlines.items()}


class _Truth:
    """The outlines of one anatomy as masks on a canvas."""

    def __init__(self, canvas: _Canvas, outlines: Mapping[str, Outline]) -> None:
        self.outlines = outlines
        drawn = {name: canvas.fill(outline) for name, outline in outlines.items()}
        self.heart, self.trachea, self.mediastinum = drawn["heart"], drawn["trachea"], drawn["mediastinum"]
        self.lungs = drawn["right"] | drawn["left"]
        field = 1 - (self.heart | self.mediastinum)
        # The lung behind the heart counts for the full convention; what lies behind the vessels above it for neither.
        self.masks: dict[str, Mask] = {
            "right_lung_field": _largest(drawn["right"] & field),
            "left_lung_field": _largest(drawn["left"] & field),
            "heart": self.heart,
            "lungs_full": self.lungs & (1 - (self.mediastinum & (1 - self.heart))),
        }


def _water(canvas: _Canvas, truth: _Truth, anatomy: Anatomy, random: np.random.Generator) -> Plane:
    """Thickness of water equivalent behind every point of the plane, mm."""
    water = _body(canvas, anatomy) - _air(canvas, truth, anatomy)
    water += canvas.soften(canvas.dome(truth.heart, 26.0, 16.0), 1.2)
    in_front = truth.mediastinum & (1 - truth.heart)
    water += canvas.soften(canvas.dome(in_front, 12.0, 8.0), 1.5)
    water -= canvas.soften(canvas.dome(truth.trachea, 26.0, 4.0), 1.0)
    water += _spine(canvas, anatomy)
    water += _vessels(canvas, truth.lungs, anatomy, random)
    water += _ribs(canvas, anatomy, random) + _shoulders(canvas, anatomy, random)
    water += _below_the_diaphragm(canvas, truth.lungs, random)
    water += _grain(canvas, random) * (water > 20.0)
    if anatomy.breast:
        water += _breasts(canvas, anatomy)
    return np.asarray(np.maximum(water, 0.0), np.float32)


def _air(canvas: _Canvas, truth: _Truth, anatomy: Anatomy) -> Plane:
    """Air in the lungs: rounded at the wall of the chest, sharp where the diaphragm, heart and vessels displace it."""
    both = np.concatenate([truth.outlines["right"], truth.outlines["left"]])
    # The wall goes on below the diaphragm, so that the lungs do not thin out towards it.
    reaching = np.concatenate([both, both + np.array([0.0, 60.0])]).astype(np.float32)
    wall = canvas.fill(cv2.convexHull(reaching)[:, 0].astype(np.float64))
    depth = canvas.dome(wall, 0.52 * anatomy.thickness, 10.0)
    beside = canvas.soften((truth.lungs & (1 - (truth.heart | truth.mediastinum))).astype(np.float32), 1.2)
    behind = canvas.soften((truth.lungs & truth.heart).astype(np.float32), 1.5)
    return np.asarray(depth * np.maximum(beside, 0.30 * behind), np.float32)


def _grain(canvas: _Canvas, random: np.random.Generator) -> Plane:
    """What is too small to be drawn, muscle, fat, fissures and little vessels: noise of several sizes."""
    plane = np.zeros((canvas.rows, canvas.columns), np.float32)
    for size_mm, weight in ((2.5, 1.6), (6.0, 2.4), (18.0, 4.0)):
        rows, columns = (max(4, round(n * canvas.spacing / size_mm)) for n in plane.shape)
        coarse = random.normal(0.0, weight, (rows, columns)).astype(np.float32)
        plane += cv2.resize(coarse, (canvas.columns, canvas.rows), interpolation=cv2.INTER_CUBIC)
    return plane


def _body(canvas: _Canvas, anatomy: Anatomy) -> Plane:
    """Soft tissue: head, neck, shoulders, trunk; flattened ellipses in each horizontal section."""
    heights = np.array(
        [-250.0, -240.0, -215.0, -150.0, -70.0, -30.0, 5.0, 35.0, 62.0, 90.0, 130.0, 200.0, 300.0, 420.0, 700.0]
    )
    widths = (
        np.array([0.1, 36.0, 60.0, 76.0, 74.0, 58.0, 58.0, 84.0, 172.0, 225.0, 215.0, 190.0, 178.0, 176.0, 176.0])
        * anatomy.width
    )
    depths = (
        np.array(
            [60.0, 80.0, 150.0, 190.0, 170.0, 120.0, 110.0, 115.0, 130.0, 150.0, 170.0, 190.0, 205.0, 215.0, 215.0]
        )
        / 190.0
    )
    y = (np.arange(canvas.rows) * canvas.spacing - _AROUND_MM)[:, None]
    x = (np.arange(canvas.columns) * canvas.spacing - _AROUND_MM - _FIELD_MM[0] / 2)[None, :]
    half_width = np.interp(y, heights, widths)
    thickness = np.interp(y, heights, depths) * anatomy.thickness
    section = np.sqrt(np.clip(1.0 - (np.abs(x) / half_width) ** 4.5, 0.0, None))
    return canvas.soften((thickness * section).astype(np.float32), 4.0)


def _spine(canvas: _Canvas, anatomy: Anatomy) -> Plane:
    def turned(points: Sequence[tuple[float, float]]) -> Outline:
        return _rotated(np.array(points, np.float64), "spine", anatomy.rotation_degrees)

    levels = np.arange(-140.0, 590.0, 23.0)
    column = [(turned([(0.0, -150.0), (0.0, 600.0)]), 34.0, 11.0)]
    bodies = [(turned([(-11.0, y), (11.0, y)]), 14.0, 6.0) for y in levels]
    pedicles = [(turned([(x, y - 2.0), (x, y + 2.0)]), 5.0, 4.0) for y in levels for x in (-9.0, 9.0)]
    return canvas.bands(column, 2.0) + canvas.bands(bodies) + canvas.bands(pedicles)


def _ribs(canvas: _Canvas, anatomy: Anatomy, random: np.random.Generator) -> Plane:
    """Ten pairs: behind, they fall from the spine to the side; in front, on from there towards the middle."""
    behind, front = [], []
    turn = anatomy.rotation_degrees
    for number in range(10):
        y = 66.0 + number * 23.5 * anatomy.height
        reach = float(np.interp(number, [0, 2, 5, 9], [62.0, 108.0, 138.0, 148.0])) * anatomy.width
        fall = 14.0 + 4.2 * number
        weight = float(random.uniform(12.0, 18.0))
        for side in (-1.0, 1.0):
            line = [(18.0, y), (0.45 * reach, y - 7.0), (0.8 * reach, y + 0.25 * fall), (reach, y + fall),
                    (1.01 * reach, y + fall + 16.0)]  # fmt: skip
            behind += _bone(_rotated(np.array(line) * [side, 1.0], "ribs", turn), 10.0, weight)
            if 1 <= number <= 6:
                line = [
                    (1.01 * reach, y + fall + 10.0),
                    (0.86 * reach, y + fall + 26.0),
                    (0.62 * reach, y + fall + 44.0),
                ]
                front += _bone(_rotated(np.array(line) * [side, 1.0], "rib ends", turn), 11.0, 0.7 * weight)
    return canvas.bands(behind) + canvas.bands(front)


def _shoulders(canvas: _Canvas, anatomy: Anatomy, random: np.random.Generator) -> Plane:
    """Clavicles and scapulae."""
    lift, turn = float(random.uniform(-6.0, 10.0)), anatomy.rotation_degrees
    clavicles, blades = [], np.zeros((canvas.rows, canvas.columns), np.float32)
    for side in (-1.0, 1.0):
        size = np.array([side * anatomy.width, 1.0])
        line = [(20, 98), (52, 88 - 0.3 * lift), (92, 80 - lift), (128, 62 - lift), (160, 52 - lift)]
        clavicles += _bone(_rotated(np.array(line, np.float64) * size, "clavicles", turn), 12.0, 24.0)
        scapula = [(150, 66), (140, 110), (142, 160), (150, 205), (172, 150), (178, 90)]
        scapulae = _smooth(_rotated(np.array(scapula, np.float64) * size, "blades", turn))
        blades += canvas.dome(canvas.fill(scapulae), 16.0, 3.0)
    return canvas.bands(clavicles) + canvas.soften(blades, 1.0)


def _bone(points: Outline, width_mm: float, thickness_mm: float) -> list[tuple[Outline, float, float]]:
    """A long bone: a band that is denser at its borders, as a tube is."""
    line = _smooth(points, closed=False)
    return [(line, width_mm, thickness_mm), (line, 0.62 * width_mm, 0.62 * thickness_mm)]


def _vessels(canvas: _Canvas, lungs: Mask, anatomy: Anatomy, random: np.random.Generator) -> Plane:
    """Vessels that leave the hila and grow thinner with every branch."""
    hila = np.zeros((canvas.rows, canvas.columns), np.float32)
    drawn: list[tuple[Outline, float, float]] = []
    for side in (-1.0, 1.0):
        hilum = np.array([side * 34.0 * anatomy.width, 178.0 + (4.0 if side < 0 else -6.0)])
        blob = hilum + np.array([[-9, -18], [9, -14], [13, 4], [7, 24], [-8, 22], [-11, 2]], np.float64)
        hila += canvas.dome(canvas.fill(_smooth(blob)), 16.0, 6.0)
        branches = [(hilum, angle, 5.0, 44.0) for angle in np.linspace(-1.35, 1.45, 7) + random.normal(0.0, 0.1, 7)]
        while branches:
            start, angle, width, length = branches.pop()
            bend = angle + random.normal(0.0, 0.34)
            middle = start + 0.5 * length * np.array([side * np.cos(angle), np.sin(angle)])
            end = middle + 0.5 * length * np.array([side * np.cos(bend), np.sin(bend)])
            drawn.append((_smooth(np.stack([start, middle, end]), closed=False), width, 2.1 * width))
            if width > 1.2:
                for turn in (-0.34, 0.38):
                    branches.append((end, bend + turn + random.normal(0.0, 0.14), 0.64 * width, 0.76 * length))
    drawn.sort(key=lambda vessel: vessel[1])
    vessels = canvas.bands(drawn, 0.8) + canvas.soften(hila, 4.0)
    return np.asarray(vessels * canvas.soften(lungs.astype(np.float32), 2.0), np.float32)


def _below_the_diaphragm(canvas: _Canvas, lungs: Mask, random: np.random.Generator) -> Plane:
    """The bubble of gas in the stomach, under the left dome."""
    centre = np.array([62.0 + random.normal(0.0, 8.0), 334.0])
    angles = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
    outline = centre + np.stack([26.0 * np.cos(angles), 13.0 * np.sin(angles)], axis=1)
    bubble = canvas.fill(outline) & (1 - lungs)
    return -canvas.soften(canvas.dome(bubble, float(random.uniform(10.0, 45.0)), 8.0), 1.5)


def _breasts(canvas: _Canvas, anatomy: Anatomy) -> Plane:
    plane = np.zeros((canvas.rows, canvas.columns), np.float32)
    angles = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    for side in (-1.0, 1.0):
        centre = np.array([side * 88.0 * anatomy.width, 262.0])
        outline = centre + np.stack([54.0 * np.cos(angles), 50.0 * np.sin(angles)], axis=1)
        turned = _rotated(outline, "breasts", anatomy.rotation_degrees)
        plane += canvas.dome(canvas.fill(turned), 34.0 * anatomy.breast, 20.0)
    return canvas.soften(plane, 3.0)


def _smooth(points: Outline, *, closed: bool = True, rounds: int = 3) -> Outline:
    """Round the corners of an outline (Chaikin's corner cutting)."""
    outline = np.asarray(points, np.float64)
    for _ in range(rounds):
        following = np.roll(outline, -1, axis=0) if closed else outline[1:]
        here = outline if closed else outline[:-1]
        cut = np.empty((2 * len(here), 2))
        cut[0::2], cut[1::2] = 0.75 * here + 0.25 * following, 0.25 * here + 0.75 * following
        outline = cut if closed else np.concatenate([outline[:1], cut, outline[-1:]])
    return outline


def _blur(plane: Plane, sigma: float) -> Plane:
    """Blur by a Gaussian of `sigma` pixels; coarse where that makes no difference."""
    if sigma < 0.3:
        return plane
    step = max(1, int(sigma / 6))
    if step == 1:
        return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma), np.float32)
    small = cv2.resize(plane, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma / step)
    return np.asarray(cv2.resize(small, plane.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _largest(mask: Mask) -> Mask:
    """The largest connected part."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count <= 2:
        return mask
    best = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return np.asarray(labels == best, np.uint8)


_LEAD: Final = ((0, 0), (14, 6), (34, 4), (58, -14), (84, -44), (104, -84), (118, -130))
"""From the middle of an electrode to where its lead leaves the chest, mm."""


def _metal(canvas: _Canvas, foreign: Sequence[Foreign]) -> Plane:
    """Thickness of water equivalent of objects in the way, mm: two millimetres of steel take what a hundred of water
    do."""
    plane = np.zeros((canvas.rows, canvas.columns), np.float32)
    for one in foreign:
        at = np.array([one.x_mm, one.y_mm])
        if one.kind == "coin":
            plane += 100.0 * canvas.fill(_disc(at, 12.0))
        elif one.kind == "electrode":
            side = np.array([1.0 if one.x_mm >= 0 else -1.0, 1.0])
            lead = _smooth(at + side * np.array(_LEAD, np.float64), closed=False)
            plane = np.maximum(plane, canvas.bands([(lead, 1.6, 30.0)], 0.0))
            plane = np.maximum(plane, 80.0 * canvas.fill(_disc(at, 5.0)))
        else:
            for across in np.linspace(-1.0, 1.0, 33):
                link = canvas.fill(_disc(at + np.array([55.0 * across, -50.0 * across**2]), 1.5))
                plane = np.maximum(plane, 60.0 * link)
    return np.asarray(plane, np.float32)


def _disc(centre: Outline, radius: float) -> Outline:
    angles = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    return np.asarray(centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), np.float64)


# --- the picture -------------------------------------------------------------------------------------------------


def _place_field(
    canvas: _Canvas, truth: _Truth, margins_mm: Mapping[Edge, float], columns: int, rows: int
) -> tuple[int, int]:
    """First row and column of the field on the plane."""
    if {"top", "bottom"} <= set(margins_mm) or {"right", "left"} <= set(margins_mm):
        raise ValueError("a margin to one of two opposite edges, not to both")
    first_row, last_row, first_column, last_column = _extent(truth.masks["lungs_full"])
    margin = {edge: round(value / canvas.spacing) for edge, value in margins_mm.items()}
    top = round(_AROUND_MM / canvas.spacing)
    left = round(_AROUND_MM / canvas.spacing)
    if "top" in margin:
        top = first_row - margin["top"]
    elif "bottom" in margin:
        top = last_row + 1 + margin["bottom"] - rows
    # The patient's right is on the image's left.
    if "right" in margin:
        left = first_column - margin["right"]
    elif "left" in margin:
        left = last_column + 1 + margin["left"] - columns
    if not (0 <= top <= canvas.rows - rows and 0 <= left <= canvas.columns - columns):
        raise ValueError("the margins move the field off the plane")
    return top, left


def _extent(mask: Mask) -> tuple[int, int, int, int]:
    """First and last row, first and last column of what is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def _margins(mask: Mask, window: tuple[slice, slice], spacing: float) -> dict[Edge, float]:
    first_row, last_row, first_column, last_column = _extent(mask)
    rows, columns = window
    return {
        "top": (first_row - rows.start) * spacing,
        "bottom": (rows.stop - 1 - last_row) * spacing,
        "right": (first_column - columns.start) * spacing,
        "left": (columns.stop - 1 - last_column) * spacing,
    }


def _behind(water: Plane, spacing: float) -> Plane:
    """What arrives behind the patient, as a fraction of the open beam: the primary beam and scatter."""
    primary = np.exp(-_ATTENUATION * water)
    scatter = _blur(primary, _SCATTER_MM / spacing)
    return np.asarray((1.0 - _SCATTER_FRACTION) * primary + _SCATTER_FRACTION * scatter, np.float32)


def _sample(plane: Plane, plane_spacing: float, window: tuple[slice, slice], spacing: float) -> Plane:
    """The field, cut out of the plane at the detector's own spacing."""
    rows, columns = window
    scale = spacing / plane_spacing
    # From the middle of a pixel of the detector to that of the plane.
    shift = [(axis.start + 0.5) * scale - 0.5 for axis in (columns, rows)]
    matrix = np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])
    size = (columns.stop - columns.start, rows.stop - rows.start)
    sampled = cv2.warpAffine(
        plane, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(sampled, np.float32)


def _expose(beam: Plane, spacing: float, blades: int, quanta: float, random: np.random.Generator) -> Plane:
    """What the detector sees of the beam, with noise, as a fraction of the open beam."""
    seen = beam
    if blades:
        open_beam = np.full(seen.shape, _THROUGH_BLADES, np.float32)
        open_beam[blades:-blades, blades:-blades] = 1.0
        seen = seen * _blur(open_beam, 0.7 / spacing)
    seen = _blur(seen, max(0.18 / spacing, 0.3))
    return np.asarray(np.maximum(random.poisson(seen * quanta), 1) / quanta, np.float32)


def _display(exposed: Plane, spacing: float, blades: int) -> NDArray[np.uint16]:
    """What a modality makes for presentation: logarithm, fine detail lifted, a curve; bright is dense, air is black."""
    density = -np.log(exposed)
    inside = (slice(blades, -blades or None),) * 2
    density[inside] += _DETAIL * (density[inside] - _blur(density[inside], _DETAIL_MM / spacing))
    low, high = np.percentile(density[inside], [0.5, 99.5])
    scaled = np.clip((density - low) / max(high - low, 1e-6), 0.0, 1.05)
    curve = 1.0 - np.exp(-_CURVE * scaled**1.5)
    values = curve / (1.0 - np.exp(-_CURVE)) * 0.93 + 0.02
    return np.asarray(np.clip(values, 0.0, 1.0) * (2**BITS_STORED - 1), np.uint16)


# --- the object --------------------------------------------------------------------------------------------------

CONSTANCY_DEVICE: Final = constancy_names.DEVICE
CONSTANCY_NAMES: Final = constancy_names.NAMES


def constancy(number: int) -> Phantom:
    """A phantom of the constancy test, by its number in `CONSTANCY_NAMES`: the same pixels each day."""
    drawn = partial(chest, 20 + number, columns=512, rows=640)
    made: Mapping[str, Callable[[], Phantom]] = {
        "plain": lambda: drawn(),
        "cut-off": lambda: drawn(margins_mm={"top": -15.0}),
        "inverted": lambda: inverted(drawn()),
        "turned": lambda: turned(drawn(), 1),
        "mirrored": lambda: mirrored(drawn()),
        "underexposed": lambda: drawn(exposure=0.4),
        "collimated": lambda: drawn(collimation_mm=20.0),
    }
    return made[CONSTANCY_NAMES[number]]()


DIGITAL_X_RAY_FOR_PRESENTATION: Final = "1.2.840.10008.5.1.4.1.1.1.1"
COMPUTED_RADIOGRAPHY: Final = "1.2.840.10008.5.1.4.1.1.1"
SOP_CLASSES: Final = MappingProxyType({"DX": DIGITAL_X_RAY_FOR_PRESENTATION, "CR": COMPUTED_RADIOGRAPHY})
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"


def to_dicom(
    phantom: Phantom,
    *,
    patient_name: str,
    patient_id: str,
    study_uid: str,
    series_uid: str,
    sop_instance_uid: str,
    birth_date: date | None = None,
    study_date: date = date(2026, 1, 1),
    accession_number: str = "",
    station_name: str = "PHANTOM1",
    modality: Literal["DX", "CR"] = "DX",
    patient_orientation: tuple[str, str] = ("L", "F"),
) -> Any:
    """Wrap a phantom as a Digital X-Ray Image - For Presentation (PS3.3 A.26) or a Computed Radiography Image (A.2).

    Gives a `pydicom.Dataset` with file meta, Explicit VR Little Endian.

    Parameters
    ----------
    phantom
        The picture.
    patient_name, patient_id, birth_date, accession_number
        Of nobody; the caller invents them.
    study_uid, series_uid, sop_instance_uid
        UIDs, by the caller.
    modality
        DX or CR.
    patient_orientation
        Directions of the rows and of the columns (0020,0020), by default those of an upright picture.
    """
    # Needed by this function alone; whoever draws a phantom without wrapping it needs no pydicom.
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(SOP_CLASSES[modality])
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    elements: dict[str, Any] = {
        # SOP Common, Patient, General Study, General Series
        "SOPClassUID": SOP_CLASSES[modality],
        "SOPInstanceUID": sop_instance_uid,
        "StudyInstanceUID": study_uid,
        "SeriesInstanceUID": series_uid,
        "PatientName": patient_name,
        "PatientID": patient_id,
        "PatientBirthDate": birth_date.strftime("%Y%m%d") if birth_date else "",
        "PatientSex": "O",
        "StudyID": "1",
        "AccessionNumber": accession_number,
        "ReferringPhysicianName": "",
        "StudyDescription": "Chest PA",
        "Modality": modality,
        "SeriesNumber": "1",
        # General Equipment
        "Manufacturer": constancy_names.MANUFACTURER,
        "ManufacturerModelName": constancy_names.MODEL_NAME,
        "StationName": station_name,
        # General Image
        "InstanceNumber": "1",
        "ImageType": ["DERIVED", "PRIMARY", ""],
        "PatientOrientation": list(patient_orientation),
        "LossyImageCompression": "00",
        "BurnedInAnnotation": "NO",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "ImagerPixelSpacing": [f"{phantom.spacing_mm:.6f}"] * 2,
        **_times(study_date),
        **_pixels(phantom),
        **_exposure(phantom),
    }
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    for keyword, value in (_digital_x_ray(phantom) if modality == "DX" else _DIGITISED).items():
        setattr(ds, keyword, value)
    return ds


def _times(day: date) -> Mapping[str, str]:
    """One day and hour for everything."""
    said, hour = day.strftime("%Y%m%d"), "120000"
    dates = dict.fromkeys(("StudyDate", "ContentDate", "AcquisitionDate"), said)
    return dates | dict.fromkeys(("StudyTime", "ContentTime", "AcquisitionTime"), hour)


def _pixels(phantom: Phantom) -> Mapping[str, Any]:
    """Image Pixel and VOI LUT (PS3.3 C.7.6.3, C.11.2)."""
    rows, columns = phantom.image.shape
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": phantom.photometric_interpretation,
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 16,
        "BitsStored": BITS_STORED,
        "HighBit": BITS_STORED - 1,
        "PixelRepresentation": 0,
        "WindowCenter": str(2 ** (BITS_STORED - 1)),
        "WindowWidth": str(2**BITS_STORED),
        "PixelData": phantom.image.astype("<u2").tobytes(),
    }


_TARGET_INDEX: Final = 250.0  # 2.5 uGy at the detector (IEC 62494-1), usual for a chest


def _exposure(phantom: Phantom) -> Mapping[str, str]:
    """Exposure index, its target and the deviation index between them (PS3.3 C.8.7.1, IEC 62494-1)."""
    index = _TARGET_INDEX * phantom.exposure
    return {
        "ExposureIndex": f"{index:.8g}",
        "TargetExposureIndex": f"{_TARGET_INDEX:g}",
        "DeviationIndex": f"{10 * np.log10(phantom.exposure):.1f}",
    }


_DIGITISED: Final = MappingProxyType({"KVP": "110", "PlateType": "phantom"})
"""What Computed Radiography adds (PS3.3 C.8.1)."""


def _digital_x_ray(phantom: Phantom) -> Mapping[str, Any]:
    """What Digital X-Ray adds: series, image, anatomy, positioning, detector (PS3.3 C.8.11)."""
    bright_is_dense = phantom.photometric_interpretation == "MONOCHROME2"
    return {
        "PresentationIntentType": "FOR PRESENTATION",
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1 if bright_is_dense else 1,
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
        "RescaleType": "US",
        "PresentationLUTShape": "IDENTITY" if bright_is_dense else "INVERSE",
        "ImageLaterality": "U",
        "PositionerType": "",
        "DetectorType": "",
        "AnatomicRegionSequence": [_code("816094009", "SCT", "Chest")],
        "ViewCodeSequence": [_code("272479007", "SCT", "postero-anterior")],
        "AcquisitionContextSequence": [],
    }


def _code(value: str, scheme: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
