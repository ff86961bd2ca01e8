"""The shipped files are what their manifest says, small, and as good as the floor."""

from __future__ import annotations

import json

import numpy as np
import pytest

from distillation import release
from distillation.data import CHANNELS, FLAGS, on_grid, read_image, read_index, read_truth
from distillation.evaluate import _changed
from distillation.measures import dice
from distillation.runtime import answer, session, sigmoid, upsampled
from services.inference.preprocessing import GRID, PREPROCESSING_VERSION, preprocess
from services.inference.registry import EDGE_FLAGS, by_channel
from shared.paths import MODEL
from tests.shared_material import SHARED, needs_shared

FOLDER = MODEL
FLOORS = {"wingspan": {(0, 1): 0.955, (2,): 0.90}, "kermany": {(3,): 0.945}}


@pytest.fixture(scope="module")
def manifest():
    return json.loads((FOLDER / "manifest.json").read_text())


@pytest.fixture(scope="module")
def student():
    return session(FOLDER / release.SERVED)


def test_every_file_has_the_digest_that_the_manifest_names(manifest):
    assert release.differences(FOLDER) == []
    assert set(manifest["files"]) == set(release.WITH_NARROW)


def test_one_changed_byte_is_noticed(tmp_path):
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = bytearray((tmp_path / release.SERVED).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / release.SERVED).write_bytes(damaged)
    assert release.differences(tmp_path) == [release.SERVED]


def test_the_served_file_is_small_and_takes_what_the_manifest_says(manifest, student):
    assert (FOLDER / release.SERVED).stat().st_size <= 500_000
    assert manifest["preprocessing_version"] == PREPROCESSING_VERSION
    assert manifest["outputs"]["logits"]["channels"] == list(CHANNELS)
    assert manifest["outputs"]["flags"]["channels"] == [*FLAGS, *EDGE_FLAGS]
    assert [one.name for one in student.get_inputs()] == ["image"]
    assert [one.name for one in student.get_outputs()] == list(manifest["outputs"])
    for batch in (1, 3):
        found = student.run(None, {"image": np.zeros((batch, 1, GRID, GRID), np.float32)})
        assert [one.shape for one in found] == [(batch, 4, 128, 128), (batch, 34), (batch, 160)]


def test_the_served_file_computes_in_unsigned_activations_and_signed_weights(manifest):
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install -e '.[train]'")
    graph = onnx.load(FOLDER / release.SERVED).graph
    kinds = {one.name: one.data_type for one in graph.initializer}
    points = [kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert set(points) == {onnx.TensorProto.UINT8}
    assert onnx.TensorProto.INT8 in kinds.values()


def test_no_file_tells_of_the_machine_that_made_it():
    for path in FOLDER.iterdir():
        content = path.read_bytes()
        for trace in (b"site-packages", b'File "', b"/distillation/"):
            assert trace not in content, path.name


def test_the_golden_tensors_come_back(student):
    golden = np.load(FOLDER / "golden.npz")
    assert np.array_equal(golden["grids"], release.golden_grids()), "they are drawn by formula, not taken from people"
    found = answer(student, golden["grids"], batch=1)
    masks = (found.logits > 0) == (golden["logits"] > 0)
    assert masks.mean() > 0.999
    assert np.abs(found.flags - golden["flags"]).max() < 0.5


def test_calibration_names_every_threshold():
    calibration = json.loads((FOLDER / "calibration.json").read_text())
    assert (
        (by_channel(calibration["mask_temperature"]) > 0.3) & (by_channel(calibration["mask_temperature"]) < 4)
    ).all()
    assert set(calibration["flags"]) == set(FLAGS)
    assert set(calibration["soft_dice_confidence"]) == {"lung_fields", "heart", "lungs_full"}
    assert np.array(calibration["features"]["components"]).shape[1] == 160


@needs_shared
@pytest.mark.parametrize("source", list(FLOORS))
def test_the_served_file_reaches_its_floor_on_validation_images(source, student):
    assert SHARED is not None
    data = SHARED / "data" / "cxr"
    items = [item for item in read_index(data) if (item.source, item.split) == (source, "val")][:60]
    prepared = [preprocess(read_image(data, item)) for item in items]
    found = answer(student, np.stack([one.grid for one in prepared]))
    for channels, floor in FLOORS[source].items():
        reached = []
        for item, one, logits in zip(items, prepared, found.logits, strict=True):
            truth = read_truth(data, item)[0]
            first = 3 if item.convention == "full" else 0
            people = np.any([on_grid(truth[c - first], one.geometry, GRID) > 0.5 for c in channels], axis=0)
            reached.append(dice(np.any([upsampled(logits)[c] > 0 for c in channels], axis=0), people))
        assert np.mean(reached) > floor, (channels, float(np.mean(reached)))


@needs_shared
def test_turned_and_inverted_validation_images_are_noticed_and_upright_ones_are_not(student):
    assert SHARED is not None
    data = SHARED / "data" / "cxr"
    thresholds = json.loads((FOLDER / "calibration.json").read_text())["flags"]
    items = [item for item in read_index(data) if (item.source, item.split) == ("wingspan", "val")]
    grids = np.stack([preprocess(read_image(data, item)).grid for item in items])
    upright = sigmoid(answer(student, grids).flags)
    for flag in ("inverted", "rotated_90", "rotated_180", "rotated_270"):
        column = FLAGS.index(flag)
        turned = sigmoid(answer(student, _changed(grids, flag)).flags)[:, column]
        assert (turned >= thresholds[flag]["threshold"]).mean() >= 0.95, flag
        assert (upright[:, column] >= thresholds[flag]["threshold"]).mean() <= 0.05, flag
