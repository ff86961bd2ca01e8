"""What is said of a source that training never saw."""

import pytest

from distillation.left_out import Unseen, row


def test_both_students_are_compared_image_by_image():
    without = Unseen({"lungs_full": [0.90, 0.80]}, ece_before=0.08, ece_after=0.05)
    with_it = Unseen({"lungs_full": [0.95, 0.87]}, ece_before=0.04, ece_after=0.03)
    found = row("covid", without, with_it)
    assert (found["source"], found["n"]) == ("covid", 2)
    told = found["measures"]["lungs_full"]
    assert (told["unseen"], told["seen"]) == (0.85, 0.91)
    assert told["difference"][0] == pytest.approx(-0.06)
    assert -0.07 <= told["difference"][1] <= told["difference"][2] <= -0.05
    assert found["band_ece_after"] == {"unseen": 0.05, "seen": 0.03}
