"""The pictures of the findings show what the engine really finds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from services.inference import pictures
from services.inference.assess import Assessor
from services.inference.findings import TABLE, name
from services.inference.pictures import SCENES, Scene
from shared import paths

FOLDER = paths.ROOT / "services" / "console" / "static" / "findings"


def test_each_picture_is_there_small_and_of_a_finding() -> None:
    codes = {name(definition.code) for definition in TABLE}
    assert {scene.finding for scene in SCENES} <= codes
    assert {path.stem for path in FOLDER.iterdir()} == {scene.finding.lower() for scene in SCENES}
    for path in FOLDER.iterdir():
        assert path.stat().st_size < 80_000
        image = cv2.imread(str(path))
        assert image is not None
        assert image.shape[0] == 420


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.finding)
def test_a_scene_raises_what_its_picture_shows_and_looks_like_it(scene: Scene, assessor: Assessor) -> None:
    drawn, result = pictures.draw(scene, assessor)
    assert pictures.outcome_of(result, scene.finding) == scene.outcome
    kept = cv2.imread(str(FOLDER / f"{scene.finding.lower()}.webp"))
    assert kept is not None
    # Another processor draws a line a pixel further; the picture is the same.
    assert float(np.abs(kept.astype(np.int16) - drawn).mean()) < 8
