"""Objects in the way of the lungs, drawn into real radiographs with numpy and polygons alone: coin, button, electrode
with its lead, necklace, zip, cable, pacemaker.

Sizes are shares of the longer side of the image, contrasts shares of its range of grey values (percentiles 1 to 99).
The code shares nothing with the training's augmentation, nor with the digital phantom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[Any]
Points = NDArray[np.float64]
_FINER: Final = 4
"""An object is drawn so many times finer than the image, and averaged."""


class _Sheet:
    """A plane of how much of the beam an object takes, 0 to 1, finer than the image by `_FINER`."""

    def __init__(self, rows: int, columns: int) -> None:
        self.taken = np.zeros((_FINER * rows, _FINER * columns), np.float32)

    def disc(self, centre: Points, radius: float, taken: float = 1.0) -> None:
        place = np.rint(_FINER * centre).astype(int)
        cv2.circle(self.taken, place.tolist(), max(1, round(_FINER * radius)), taken, -1)

    def line(self, points: Points, width: float, taken: float = 1.0) -> None:
        corners = np.rint(_FINER * points).astype(np.int32)
        cv2.polylines(self.taken, [corners], False, taken, max(1, round(_FINER * width)))

    def polygon(self, points: Points, taken: float = 1.0) -> None:
        cv2.fillPoly(self.taken, [np.rint(_FINER * points).astype(np.int32)], taken)


def _coin(sheet: _Sheet, at: Points, size: float, random: np.random.Generator) -> None:
    sheet.disc(at, size / 2)


def _button(sheet: _Sheet, at: Points, size: float, random: np.random.Generator) -> None:
    sheet.disc(at, size / 2, 0.8)
    sheet.disc(at, 0.36 * size, 0.55)
    for angle in np.arange(4) * np.pi / 2 + random.uniform(0, np.pi):
        sheet.disc(at + 0.14 * size * np.array([np.cos(angle), np.sin(angle)]), 0.06 * size, 0.0)


def _electrode(sheet: _Sheet, at: Points, size: float, random: np.random.Generator) -> None:
    """A snap and the lead that comes from it."""
    _cable(sheet, at, size, random)
    sheet.disc(at, size / 4)
    sheet.disc(at, size / 10, 0.7)


def _cable(sheet: _Sheet, at: Points, size: float, random: np.random.Generator) -> None:
    """A bent line, 8 sizes long and a tenth of one wide."""
    sheet.line(_bent(at, 8 * size, random), 0.1 * size, 0.8)


def _necklace(sheet: _Sheet, at: Points, size: float, random: np.random.Generator) -> None:
    """Links along a hanging curve, with a pendant."""
    across = np.linspace(-1, 1, 41)
    curve = at + size * np.stack([3.0 * across, -2.6 * across**2], axis=1)
    for place in curve:
        sheet.disc(place, 0.08 * size)
    sheet.disc(at, 0.3 * size)


def _zip(sheet: _Sheet, at: Points, size: float, random: np.random.Generator) -> None:
    """Teeth to the left and right of a straight line, and the slider."""
    angle = random.normal(0, 0.15)
    along, aside = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    for number, step in enumerate(np.arange(-4.0, 4.0, 0.25)):
        tooth = at + size * (step * along + (0.12 if number % 2 else -0.12) * aside)
        sheet.polygon(tooth + size * np.array([-0.14 * aside - 0.07 * along, 0.14 * aside - 0.07 * along,
                                               0.14 * aside + 0.07 * along, -0.14 * aside + 0.07 * along]))  # fmt: skip
    sheet.disc(at + 4 * size * along, 0.3 * size)


def _pacemaker(sheet: _Sheet, at: Points, size: float, random: np.random.Generator) -> None:
    """A rounded case with a battery and a header, and the lead that leaves it."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    case = np.stack([np.cos(angles), 0.85 * np.sin(angles)], axis=1)
    case = np.sign(case) * np.abs(case) ** 0.7
    sheet.line(_bent(at, 6 * size, random), 0.05 * size, 0.7)
    sheet.polygon(at + size / 2 * case, 0.75)
    sheet.polygon(at + size * np.array([[-0.35, -0.1], [0.1, -0.1], [0.1, 0.3], [-0.35, 0.3]]), 1.0)


def _bent(at: Points, length: float, random: np.random.Generator) -> Points:
    """A smooth line through a place."""
    heading = random.uniform(0, 2 * np.pi) + np.cumsum(random.normal(0, 0.08, 60))
    line = np.cumsum(length / 60 * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
    return np.asarray(line - line[30] + at, np.float64)


KINDS: Final[Mapping[str, Callable[[_Sheet, Points, float, np.random.Generator], None]]] = {
    "coin": _coin,
    "button": _button,
    "electrode": _electrode,
    "cable": _cable,
    "necklace": _necklace,
    "zip": _zip,
    "pacemaker": _pacemaker,
}
SIZES: Final[Mapping[str, tuple[float, ...]]] = {
    "coin": (0.015, 0.03, 0.06),
    "button": (0.015, 0.03, 0.06),
    "electrode": (0.02, 0.03, 0.05),
    "cable": (0.02, 0.03, 0.05),
    "necklace": (0.015, 0.03, 0.05),
    "zip": (0.015, 0.025, 0.04),
    "pacemaker": (0.06, 0.1, 0.14),
}
"""Small, middling and large, as shares of the longer side of the image (430 mm on a large detector)."""
CONTRASTS: Final = (0.15, 0.25, 0.4, 0.7)


def plant(
    image: Image, lungs: NDArray[np.bool_], kind: str, size: float, contrast: float, random: np.random.Generator
) -> tuple[Image, NDArray[np.bool_]]:
    """An image uint8 [rows, columns] with an object over its lungs, bright on dark, and the object's mask.

    lungs: bool [rows, columns], in which the object's middle lies.
    """
    rows, columns = image.shape
    inner = cv2.erode(lungs.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=max(1, max(rows, columns) // 60))
    places = np.argwhere(inner > 0) if inner.any() else np.argwhere(lungs)
    at = places[random.integers(len(places))][::-1].astype(np.float64)
    sheet = _Sheet(rows, columns)
    KINDS[kind](sheet, at, size * max(rows, columns), random)
    taken = cv2.resize(sheet.taken, (columns, rows), interpolation=cv2.INTER_AREA)
    taken = cv2.GaussianBlur(taken, (0, 0), 0.5)
    low, high = np.percentile(image, (1, 99))
    drawn = np.clip(image.astype(np.float32) + contrast * (high - low) * taken, 0, 255)
    return np.rint(drawn).astype(np.uint8), np.asarray(taken > 0.3)
