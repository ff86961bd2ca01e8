"""Average precision of boxes whose answer is known."""

from __future__ import annotations

import pytest

from benchmarks.detection import Boxes, Truth, average_precision

pytest.importorskip("pycocotools")
ONE, OTHER = (10.0, 10.0, 20.0, 20.0), (100.0, 10.0, 20.0, 20.0)


@pytest.mark.parametrize(
    ("boxes", "precision", "recall"),
    [
        ([("R", ONE, 1.0)], 1.0, 1.0),
        ([], 0.0, 0.0),
        ([("L", ONE, 1.0)], 0.0, 0.0),
        ([("R", OTHER, 0.9), ("R", ONE, 0.8)], 0.5, 1.0),
        ([("R", ONE, 0.9), ("R", OTHER, 0.8)], 1.0, 1.0),
        ([("R", (10.0, 10.0, 20.0, 8.0), 1.0)], 0.0, 0.0),
    ],
)
def test_average_precision_of_one_box(boxes: Boxes, precision: float, recall: float) -> None:
    truth: Truth = [("R", ONE)]
    images = [(truth, boxes), (truth, boxes)]
    found = average_precision(iter(images))
    assert found["AP50"] == pytest.approx(precision, abs=0.01)
    assert found["recall at 50"] == pytest.approx(recall, abs=0.01)
    assert found["boxes"] == 2


def test_a_small_overlap_counts_at_a_small_overlap_alone() -> None:
    truth: Truth = [("text", ONE)]
    grown: Boxes = [("text", (5.0, 5.0, 32.0, 32.0), 0.7)]
    found = average_precision(iter([(truth, grown)]))
    assert found["AP30"] == pytest.approx(1.0)
    assert found["AP50"] == 0.0
