"""What one mask convention may say of the other's channels, and what nobody may train on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from distillation import augment, data, procedural
from distillation.augment import view
from distillation.data import CHANNELS, FLAGS, MAP
from services.inference.preprocessing import GRID, letterbox
from tests.shared_material import SHARED, needs_shared

SQUARE = letterbox(GRID, GRID)


@pytest.fixture
def chest():
    return procedural.chest(np.random.default_rng(3))


def test_the_right_lung_is_on_the_images_left(chest):
    _, masks = chest
    columns = [float(np.flatnonzero(mask.any(0)).mean()) for mask in masks]
    assert columns[CHANNELS.index("right_lung_field")] < columns[CHANNELS.index("left_lung_field")]


def test_field_masks_say_the_full_lung_only_inside_the_fields_and_far_away(chest):
    _, masks = chest
    targets, weights = data._from_field(masks[:3], np.ones((GRID, GRID), bool), SQUARE)
    assert (weights[..., :3] == 255).all()
    told = weights[..., 3] > 0
    truth = cv2.resize(masks[3].astype(np.float32), (MAP, MAP), interpolation=cv2.INTER_AREA)
    assert 0.3 < told.mean() < 1
    assert np.abs(targets[..., 3][told] / 255 - truth[told]).mean() < 0.01


def test_full_masks_say_of_the_fields_only_where_they_are_not(chest):
    _, masks = chest
    targets, weights = data._from_full(masks[3:], np.ones((GRID, GRID), bool), SQUARE)
    for channel in range(3):
        told = weights[..., channel] > 0
        assert not targets[..., channel].any()
        truth = cv2.resize(masks[channel].astype(np.float32), (MAP, MAP), interpolation=cv2.INTER_AREA)
        assert truth[told].mean() < 0.01
    left_lung = cv2.resize(masks[1].astype(np.uint8), (MAP, MAP), interpolation=cv2.INTER_NEAREST) > 0
    assert (weights[..., 0][left_lung] > 0).mean() > 0.9, "the right field is not in the left lung"


def test_ignored_cells_weigh_nothing_in_any_channel(chest):
    _, masks = chest
    known = np.ones((GRID, GRID), bool)
    known[:, 200:] = False
    _, weights = data._from_full(masks[3:], known, SQUARE)
    assert not weights[:, 101:].any()


def test_the_test_splits_cannot_be_loaded_for_training(tmp_path):
    for split in data.HELD_OUT:
        with pytest.raises(ValueError, match="final report"):
            data.load_pool(tmp_path, tmp_path, ("train", split), lambda done, of: None)


@pytest.mark.parametrize("seed", range(12))
def test_masks_move_with_their_image(seed):
    """A picture that is its own right-lung mask stays so however it is turned, and its flags say how."""
    rng = np.random.default_rng(seed)
    _, masks = procedural.chest(rng)
    whole = (masks[0] | masks[1]).astype(np.uint8) * 255
    half = cv2.resize(whole, (MAP, MAP), interpolation=cv2.INTER_AREA)
    target = np.ascontiguousarray(np.stack([half] * 4, -1))
    seen = _without_photometry(whole, target, seed)
    grid = cv2.resize(seen.grid, (MAP, MAP), interpolation=cv2.INTER_AREA)
    moved = seen.maps[0][..., 2]
    assert grid[moved > 230].mean() > 225
    assert moved[grid < 20].mean() < 20
    assert seen.flags.shape == (len(FLAGS),)


def _without_photometry(grid, target, seed):
    """The motion alone: no exposure, no shutters, and not inverted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "_PHOTOMETRIC", ())
        patch.setattr(augment, "_collimate", lambda image, rng: (image, np.ones((GRID, GRID), bool)))
        for attempt in range(100):
            seen = view(grid, SQUARE, [target, np.full_like(target, 255)], np.random.default_rng((seed, attempt)))
            if not seen.flags[FLAGS.index("inverted")]:
                return seen
    raise AssertionError


@needs_shared
def test_every_patient_of_the_real_index_is_on_one_side_of_the_split_only():
    assert SHARED is not None
    items = data.read_index(SHARED / "data" / "cxr")
    sides: dict[str, set[str]] = {}
    for item in items:
        if item.patient:
            sides.setdefault(item.patient, set()).add("held out" if item.split in data.HELD_OUT else "seen")
    assert all(len(found) == 1 for found in sides.values())
