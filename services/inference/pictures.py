"""Pictures of the findings for the documents and the console's help, drawn on phantoms that really raise them.

`python -m services.inference.pictures services/console/static/findings` writes one picture for each finding that can be
seen on an image, named by its code in lower case (`lung_margin_top.webp`). Outlines, widths, margins and boxes are
those that the engine found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.assess import AssessmentResult, Assessor
from services.inference.findings import name
from shared import dicom, paths, phantom
from shared.phantom import Foreign, Phantom
from stepwedge.common.v1.common_pb2 import Outcome

Picture = NDArray[np.uint8]

_COLUMNS, _ROWS = 512, 640
_HIGH: Final = 420
"""Rows of a picture."""
_LUNGS, _HEART, _PLACE, _RULER = (255, 200, 60), (90, 160, 255), (60, 60, 255), (80, 230, 120)
"""Colours of outlines, boxes and measures, blue first."""
_QUALITY: Final = 80


@dataclass(frozen=True)
class Scene:
    """A phantom that raises a finding. finding: its code. outcome: what it must raise it with. ruler: draws what was
    measured, "" for nothing."""

    finding: str
    outcome: str
    made: Callable[[], Phantom]
    ruler: str = ""


def _chest(seed: int, **given: Any) -> Callable[[], Phantom]:
    return lambda: phantom.chest(seed, columns=_COLUMNS, rows=_ROWS, **given)


def _changed(**anatomy: float) -> Phantom:
    usual = phantom.chest(21, columns=64, rows=80).anatomy
    return phantom.chest(21, columns=_COLUMNS, rows=_ROWS, anatomy=replace(usual, **anatomy))


_OBJECTS: Final = (Foreign("necklace", 0.0, 150.0), Foreign("electrode", 74.0, 190.0))

SCENES: Final = (
    Scene("LUNG_MARGIN_TOP", "FAIL", _chest(22, margins_mm={"top": -15.0}), "top"),
    Scene("LUNG_MARGIN_BOTTOM", "FAIL", _chest(22, margins_mm={"bottom": -15.0}), "bottom"),
    Scene("LUNG_MARGIN_RIGHT", "FAIL", _chest(22, margins_mm={"right": -12.0}), "right"),
    Scene("LUNG_MARGIN_LEFT", "FAIL", _chest(22, margins_mm={"left": -12.0}), "left"),
    Scene("CARDIOTHORACIC_RATIO", "PASS", _chest(21), "widths"),
    Scene("INVERTED_POLARITY", "FAIL", lambda: phantom.inverted(_chest(23)())),
    Scene("TURNED", "FAIL", lambda: phantom.turned(_chest(24)(), 1)),
    Scene("MIRRORED", "FAIL", lambda: phantom.mirrored(phantom.marked(_chest(25)(), "L"))),
    Scene("SATURATED", "FAIL", lambda: phantom.saturated(_chest(21)())),
    Scene("BLANK_IMAGE", "FAIL", lambda: phantom.blank(_chest(21)())),
    Scene("EXPOSURE", "FAIL", _chest(26, exposure=0.1)),
    Scene("COLLIMATION", "FAIL", _chest(27, collimation_mm=32.0), "field"),
    Scene("OBJECT_IN_THE_WAY", "WARN", _chest(21, foreign=_OBJECTS)),
    Scene("ROTATION", "PASS", lambda: _changed(rotation_degrees=12.0), "fields"),
    Scene("INSPIRATION", "PASS", lambda: _changed(height=0.65), "heights"),
)
"""Of rotation and inspiration the pictures show what is measured: neither is a verdict (docs/findings.md)."""


def draw(scene: Scene, assessor: Assessor) -> tuple[Picture, AssessmentResult]:
    """The picture of a scene, and what the engine found on it."""
    drawn = scene.made()
    result = assessor.assess_dicom(_object(drawn))
    values = drawn.image.astype(np.float32)
    if drawn.photometric_interpretation == "MONOCHROME1":
        values = values.max() - values
    low, high = np.percentile(values, (0.5, 99.5))
    grey = np.clip((values - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    scale = _HIGH / grey.shape[0]
    size = (round(grey.shape[1] * scale), _HIGH)
    picture = cv2.cvtColor(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    masks = {
        channel: cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR) > 127 for channel, mask in result.masks.items()
    }
    for channel, colour in (("lungs_full", _LUNGS), ("heart", _HEART)):
        if channel in masks:
            outlines, _ = cv2.findContours(masks[channel].view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            cv2.drawContours(picture, outlines, -1, colour, 1, cv2.LINE_AA)
    if masks and scene.ruler:
        _RULERS[scene.ruler](picture, masks)
    for found in result.findings:
        for box in found.boxes if name(found.code) == scene.finding else ():
            corner = (round(box.left * scale), round(box.top * scale))
            other = (round((box.left + box.width) * scale) - 1, round((box.top + box.height) * scale) - 1)
            cv2.rectangle(picture, corner, other, _PLACE, 2)
    return picture, result


def _object(drawn: Phantom) -> bytes:
    uids = ("2.25.1", "2.25.2", "2.25.3")
    dataset = phantom.to_dicom(
        drawn, patient_name="", patient_id="", study_uid=uids[0], series_uid=uids[1], sop_instance_uid=uids[2]
    )
    written = BytesIO()
    dataset.save_as(written, enforce_file_format=True)
    dicom.read(written.getvalue())
    return written.getvalue()


# --- what was measured -------------------------------------------------------------------------------------------

Masks = Mapping[str, NDArray[np.bool_]]


def _line(picture: Picture, start: tuple[int, int], end: tuple[int, int]) -> None:
    cv2.line(picture, start, end, _RULER, 2, cv2.LINE_AA)
    across = (0, 5) if start[1] == end[1] else (5, 0)
    for x, y in (start, end):
        cv2.line(picture, (x - across[0], y - across[1]), (x + across[0], y + across[1]), _RULER, 2, cv2.LINE_AA)


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """First and last row, first and last column."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def _margin(side: str) -> Callable[[Picture, Masks], None]:
    def draw_margin(picture: Picture, masks: Masks) -> None:
        top, bottom, left, right = _extent(masks["lungs_full"])
        rows, columns = picture.shape[:2]
        x, y = (left + right) // 2, (top + bottom) // 2
        ends = {
            "top": ((x, 0), (x, top)),
            "bottom": ((x, bottom), (x, rows - 1)),
            "right": ((0, y), (left, y)),
            "left": ((right, y), (columns - 1, y)),
        }[side]
        _line(picture, *ends)

    return draw_margin


def _widths(picture: Picture, masks: Masks) -> None:
    """The widest extent of the heart, and of both lung fields."""
    fields = masks["right_lung_field"] | masks["left_lung_field"]
    for mask, share in ((masks["heart"], 0.5), (fields, 0.9)):
        top, bottom, left, right = _extent(mask)
        y = top + round(share * (bottom - top))
        _line(picture, (left, y), (right, y))


def _fields(picture: Picture, masks: Masks) -> None:
    """The part of both lung fields whose widths are compared."""
    for side in ("right", "left"):
        mask = masks[f"{side}_lung_field"]
        top, bottom, _, _ = _extent(mask)
        y = top + round(0.33 * (bottom - top))
        columns = np.flatnonzero(mask[y])
        _line(picture, (int(columns[0]), y), (int(columns[-1]), y))


def _heights(picture: Picture, masks: Masks) -> None:
    """Apex to dome of each lung field."""
    for side in ("right", "left"):
        mask = masks[f"{side}_lung_field"]
        top, _, left, right = _extent(mask)
        x = (left + right) // 2
        _line(picture, (x, top), (x, int(np.flatnonzero(mask[:, x])[-1])))


def _field(picture: Picture, masks: Masks) -> None:
    """Nothing beyond the boxes."""


_RULERS: Final[Mapping[str, Callable[[Picture, Masks], None]]] = {
    **{side: _margin(side) for side in ("top", "bottom", "right", "left")},
    "widths": _widths,
    "fields": _fields,
    "heights": _heights,
    "field": _field,
}


def outcome_of(result: AssessmentResult, code: str) -> str:
    """ "FAIL" of a finding by its code; empty where it was not made."""
    found = next((one.outcome for one in result.findings if name(one.code) == code), None)
    return "" if found is None else Outcome.Name(found).removeprefix("OUTCOME_")


def main(folder: Path) -> None:
    """Write every picture. Raises SystemExit where a phantom does not raise what its picture is to show."""
    assessor = Assessor(paths.MODEL)
    folder.mkdir(parents=True, exist_ok=True)
    for scene in SCENES:
        picture, result = draw(scene, assessor)
        if outcome_of(result, scene.finding) != scene.outcome:
            raise SystemExit(f"{scene.finding}: {outcome_of(result, scene.finding)} and not {scene.outcome}")
        _, data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
        (folder / f"{scene.finding.lower()}.webp").write_bytes(bytes(data))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures are written")
    main(parser.parse_args().folder)
