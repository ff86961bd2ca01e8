"""What one mask convention may say of the other's channels, and what nobody may train on."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from distillation import augment, data, procedural
from distillation.augment import view
from distillation.data import CHANNELS, FLAGS, MAP
from distillation.measures import dice
from services.inference.preprocessing import GRID, letterbox
from services.inference.registry import SHARES
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


def _rectangle(rng, rows, columns):
    """A picture of bright "lungs", a mask of them, and its grid."""
    top, bottom, left, right = rng.integers(0, 80, 4)
    mask = np.zeros((rows, columns), bool)
    mask[top : rows - bottom, left : columns - right] = True
    box = letterbox(rows, columns)
    grid = np.zeros((GRID, GRID), np.uint8)
    small = cv2.resize(np.where(mask, 200, 40).astype(np.uint8), (box.width, box.height), interpolation=cv2.INTER_AREA)
    grid[box.top : box.top + box.height, box.left : box.left + box.width] = small
    return mask, box, grid


@pytest.mark.parametrize(("rows", "columns"), [(600, 480), (480, 600), (520, 516)])
def test_of_a_part_of_an_image_it_is_known_where_the_lungs_end(rows, columns):
    """What is seen of them ends where it says, and what is not seen lies beyond the edge."""
    rng, frames = np.random.default_rng(rows), []

    def finish(image, frame, rng):
        frames.append(frame)
        return np.rint(image * 255).astype(np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "_PHOTOMETRIC", ())
        patch.setattr(augment, "finish", finish)
        for _ in range(40):
            mask, box, grid = _rectangle(rng, rows, columns)
            target = np.rint(data.on_grid(mask, box, MAP) * 255).astype(np.uint8)[..., None].repeat(4, 2)
            margins = data.margins_of("full", mask[None])
            seen = augment.part(grid, box, margins, [target, np.full_like(target, 255)], rng)
            top, bottom, left, right = frames[-1]
            if seen.flags[FLAGS.index("mirrored")]:
                left, right = GRID - right, GRID - left
            lungs = seen.grid[top:bottom, left:right] > 120
            down, across = (np.flatnonzero(lungs.mean(axis) > 0.3) for axis in (1, 0))
            ends = [down[0], bottom - top - 1 - down[-1], across[0], right - left - 1 - across[-1]]
            shares = np.array(ends) / np.repeat((bottom - top, right - left), 2)
            for share, edges, known in zip(shares, seen.edges, seen.known, strict=True):
                sure = (known > 0) & (np.abs(share - SHARES) > 0.006) & ((share > 0.004) | (np.array(SHARES) > 0.01))
                assert ((share < np.array(SHARES)) == (edges > 0))[sure].all()
            assert dice(seen.maps[0][..., 3] > 127, cv2.resize(_whole(lungs, top, left), (MAP, MAP)) > 0.5) > 0.97


def _whole(inside, top, left):
    grid = np.zeros((GRID, GRID), np.float32)
    grid[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return grid


def test_lungs_that_were_cut_off_before_are_known_only_by_what_is_taken_away():
    margins = np.array([0.0, np.nan, 0.1, 0.1], np.float32)
    edges, known = augment._ends(margins, np.array([0.02, 0.02, 0.0, 0.0]))
    assert known[0].tolist() == [share > -0.02 / 0.96 for share in SHARES]
    assert edges[0][known[0] > 0].all()
    assert not known[1].any()
    assert known[2:].all()
    assert not edges[2:].any()


@needs_shared
def test_every_patient_of_the_real_index_is_on_one_side_of_the_split_only():
    assert SHARED is not None
    items = data.read_index(SHARED / "data" / "cxr")
    sides: dict[str, set[str]] = {}
    for item in items:
        if item.patient:
            sides.setdefault(item.patient, set()).add("held out" if item.split in data.HELD_OUT else "seen")
    assert all(len(found) == 1 for found in sides.values())
