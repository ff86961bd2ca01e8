"""Drawings for the help: one for each finding that no single image can show (`static/findings` has the others).

Each is SVG without a style, 200 by 150: films, outlines, labels. Red is what is wrong, dashed is what is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Final

_BODY, _LUNG, _HEART, _INK, _WRONG, _PAPER = "#8a9aa0", "#26363b", "#c9d6d9", "#16262b", "#a3161d", "#ffffff"


def _rect(x: float, y: float, w: float, h: float, fill: str = "none", stroke: str = _INK, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{fill}" stroke="{stroke}" stroke-width="2"{dash}/>'


def _ellipse(x: float, y: float, rx: float, ry: float, fill: str, stroke: str = "none", dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<ellipse cx="{x}" cy="{y}" rx="{rx}" ry="{ry}" fill="{fill}" stroke="{stroke}" stroke-width="2"{dash}/>'


def _path(points: str, stroke: str = _INK, width: float = 2) -> str:
    return f'<path d="{points}" fill="none" stroke="{stroke}" stroke-width="{width}"/>'


def _text(x: float, y: float, words: str, size: int = 18, fill: str = _INK) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="middle" fill="{fill}">{escape(words)}</text>'


def _film(x: float = 55, y: float = 15, w: float = 90, h: float = 120, *, lungs: bool = True) -> str:
    """A radiograph, with a chest on it."""
    parts = [_rect(x, y, w, h, _BODY)]
    if lungs:
        parts += [
            _ellipse(x + w * 0.3, y + h * 0.5, w * 0.16, h * 0.33, _LUNG),
            _ellipse(x + w * 0.7, y + h * 0.5, w * 0.16, h * 0.33, _LUNG),
            _ellipse(x + w * 0.54, y + h * 0.62, w * 0.14, h * 0.15, _HEART),
        ]
    return "".join(parts)


def _cross(x: float, y: float, size: float = 12) -> str:
    return _path(f"M{x - size} {y - size}L{x + size} {y + size}M{x - size} {y + size}L{x + size} {y - size}", _WRONG, 5)


def _hand(x: float, y: float) -> str:
    fingers = "".join(_rect(x + 10 * i, y + (4, 0, 2, 8)[i], 7, 34, _HEART, "none") for i in range(4))
    return fingers + _rect(x - 1, y + 34, 40, 34, _HEART, "none") + _rect(x - 12, y + 30, 9, 26, _HEART, "none")


def _person(x: float, fill: str) -> str:
    shoulders = f"M{x - 28} 118 Q{x - 28} 74 {x} 74 Q{x + 28} 74 {x + 28} 118Z"
    return _ellipse(x, 52, 13, 15, fill) + f'<path d="{shoulders}" fill="{fill}"/>'


def _slices(*skipped: int, odd: int = -1) -> str:
    parts = []
    for i in range(6):
        y = 20 + 20 * i
        shift = 14 if i == odd else 0
        points = f"M{60 + shift} {y + 14}L{80 + shift} {y}L{150 + shift} {y}L{130 + shift} {y + 14}Z"
        dash = ' stroke-dasharray="5 4"' if i in skipped else ""
        fill, stroke = ("none", _WRONG) if i in skipped or i == odd else (_BODY, _INK)
        parts.append(f'<path d="{points}" fill="{fill}" stroke="{stroke}" stroke-width="2"{dash}/>')
    return "".join(parts)


def _form(absent: int = -1) -> str:
    lines = [_rect(55, 15, 90, 120, _PAPER)]
    for i in range(5):
        wrong = i == absent
        lines.append(_rect(65, 27 + 21 * i, 70, 12, "none" if wrong else _HEART, _WRONG if wrong else "none", wrong))
    return "".join(lines)


_DRAWN: Final[Mapping[str, str]] = {
    "PIXELS_UNDECODABLE": _film() + _rect(55, 75, 90, 60, _PAPER) + _path("M55 75l15 10 15-14 15 12 15-10 15 12 15-10"),
    "NO_PIXELS": _form(),
    "NOT_A_CHEST": _film(15, 25, 70, 95)
    + _text(100, 82, "≠", 26, _WRONG)
    + _rect(115, 25, 70, 95, _BODY)
    + _hand(136, 40),
    "LOW_CONFIDENCE": _film()
    + _ellipse(82, 75, 22, 46, "none", _WRONG, True)
    + _ellipse(116, 78, 12, 34, "none", _WRONG, True)
    + _text(100, 38, "?", 26, _WRONG),
    "BURNED_IN_TEXT_POSSIBLE": _film() + _rect(60, 20, 52, 18, "none", _WRONG) + _text(86, 34, "NAME", 14, _PAPER),
    "NOT_REDACTABLE": _film(20, 25, 75, 100) + _path("M105 75H140", _INK, 4) + _path("M150 40V110", _WRONG, 8),
    "NO_MODEL": _rect(55, 15, 90, 120, _BODY) + _hand(82, 42) + _text(100, 38, "–", 26, _PAPER),
    "INSTANCE_CONFLICT": _film(15, 20, 75, 95)
    + _rect(110, 20, 75, 95, _BODY)
    + _hand(132, 32)
    + _text(52, 140, "UID 1", 18, _WRONG)
    + _text(147, 140, "UID 1", 18, _WRONG),
    "PROCESSING_FAILED": _path("M40 75H160", _INK, 3)
    + "".join(_ellipse(x, 75, 20, 20, _PAPER, _INK) for x in (40, 100, 160))
    + _path("M31 75l7 8 12-15M91 75l7 8 12-15", "#0b6b3a", 4)
    + _cross(160, 75, 9),
    "IMAGE_TOO_SMALL": _rect(55, 15, 90, 120, "none", _INK, True) + _film(88, 60, 24, 32),
    "IMPLAUSIBLE_ANATOMY": _film(lungs=False)
    + _ellipse(80, 100, 22, 26, _LUNG, _WRONG)
    + _ellipse(118, 40, 9, 12, _LUNG, _WRONG),
    "UNUSED_DEPTH": _path("M25 130H180M25 130V20")
    + "".join(_rect(86 + 7 * i, 130 - h, 6, h, _WRONG, "none") for i, h in enumerate((30, 80, 100, 60, 20))),
    "FRAMES": "".join(_film(12 + 46 * i, 45, 40, 55) for i in (0, 1, 3)) + _rect(104, 45, 40, 55, "none", _WRONG, True),
    "SPACING": "".join(_path(f"M{50 + 20 * i} 20V120M50 {20 + 20 * i}H150") for i in range(6))
    + _text(100, 143, "? mm", 18, _WRONG),
    "LATERALITY": _film()
    + _text(135, 35, "L", 18, _PAPER)
    + _text(170, 35, "R", 26, _WRONG)
    + _text(155, 60, "≠", 20, _WRONG),
    "VIEW": _film(15, 25, 70, 95)
    + _text(100, 82, "≠", 26, _WRONG)
    + _rect(115, 25, 70, 95, _BODY)
    + _ellipse(150, 72, 24, 34, _LUNG)
    + _rect(132, 40, 5, 65, _HEART, "none"),
    "DATES": _rect(20, 40, 65, 65, _PAPER)
    + _rect(115, 40, 65, 65, _PAPER)
    + _path("M20 55H85M115 55H180", _INK, 3)
    + _text(52, 90, "1953", 18)
    + _text(147, 90, "1951", 18, _WRONG)
    + _path("M92 75h16l-6-6m6 6l-6 6", _WRONG, 3),
    "ATTRIBUTES_ABSENT": _form(2),
    "DUPLICATE_IMAGES": _film(15, 25, 70, 95) + _text(100, 82, "=", 30, _WRONG) + _film(115, 25, 70, 95),
    "SLICES": _slices(2),
    "GEOMETRY": _slices(odd=3),
    "MIXED_PATIENTS": _rect(20, 15, 160, 120, "none") + _person(65, _LUNG) + _person(135, _WRONG),
    "NOISE": _film()
    + "".join(
        _rect(57 + (37 * i) % 84, 17 + (53 * i) % 114, 3, 3, (_PAPER, _INK)[i % 2], "none") for i in range(1, 170)
    ),
    "SHARPNESS": _film()
    + "".join(
        f'<g opacity="0.4">{_ellipse(82 + shift, 75, 15, 40, _LUNG)}{_ellipse(118 + shift, 75, 15, 40, _LUNG)}</g>'
        for shift in (-8, -4, 4, 8)
    ),
    "INCOMPLETE": _film(8, 35, 56, 75) + _film(72, 35, 56, 75) + _rect(136, 35, 56, 75, "none", _WRONG, True),
    "OBJECT_IN_THE_WAY": _film() + _path("M75 25Q100 95 125 25", _WRONG, 4) + _ellipse(100, 66, 7, 7, "none", _WRONG),
}

DRAWN: Final = frozenset(_DRAWN)
"""Codes of the findings of which there is a drawing."""


def drawing(code: str, words: str) -> str:
    """The drawing of a finding as SVG, called what `words` say."""
    label = escape(words)
    return f'<svg class="drawing" role="img" aria-label="{label}" viewBox="0 0 200 150">{_DRAWN[code]}</svg>'
