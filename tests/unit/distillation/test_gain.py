"""What the comparison of students with and without teachers says."""

import math

import pytest

from distillation.gain import Measured, table


def run(dice: list[float], ece: float) -> Measured:
    return Measured({("here", "heart"): dice, ("here", "ctr_error"): [math.nan] * len(dice)}, {"here": ece})


def test_a_difference_is_of_the_same_image_and_of_the_same_seed():
    taught = [run([0.90, math.nan, 0.80], 0.02), run([0.92, math.nan, 0.82], 0.03)]
    alone = [run([0.88, math.nan, 0.79], 0.05), run([0.91, math.nan, 0.82], 0.05)]
    heart, ece = table(taught, alone)
    assert (heart["source"], heart["measure"], heart["n"]) == ("here", "heart", 2)
    assert (heart["taught"], heart["alone"]) == (0.86, 0.85)
    assert heart["by_seed"] == pytest.approx([0.015, 0.005])
    assert heart["difference"] == pytest.approx(0.01)
    assert 0.005 <= heart["low"] <= heart["difference"] <= heart["high"] <= 0.015
    assert (ece["measure"], ece["by_seed"]) == ("band_ece", pytest.approx([-0.03, -0.02]))
