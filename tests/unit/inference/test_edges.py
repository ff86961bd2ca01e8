"""Where the lungs end beside an edge: chances into a margin with its interval."""

from __future__ import annotations

import numpy as np
import pytest

from services.inference import edges
from services.inference.edges import Margin
from services.inference.registry import EDGE_FLAGS, EDGES, FLAGS, SHARES

OUTLINED = Margin(0.05, 0.06, 0.08)


def test_a_release_of_before_the_edges_says_nothing_of_them() -> None:
    assert edges.beside(np.zeros(len(FLAGS), np.float32)) is None


def test_chances_never_fall_from_one_share_to_the_next() -> None:
    flags = np.random.default_rng(1).normal(size=len(FLAGS) + len(EDGE_FLAGS)).astype(np.float32)
    found = edges.beside(flags)
    assert found is not None
    assert list(found) == list(EDGES)
    for place, edge in enumerate(EDGES):
        own = flags[len(FLAGS) + place * len(SHARES) :][: len(SHARES)]
        assert found[edge][0] == pytest.approx(1 / (1 + np.exp(-own[0])))
        assert (np.diff(found[edge]) >= 0).all()
        assert found[edge][-1] == pytest.approx(1 / (1 + np.exp(-own.max())))


def test_lungs_that_surely_end_far_inside_end_where_the_outlines_say() -> None:
    assert edges.margin(np.zeros(len(SHARES)), OUTLINED) == OUTLINED


def test_lungs_that_surely_lie_beyond_the_edge_have_a_margin_below_zero() -> None:
    low, value, high = edges.margin(np.ones(len(SHARES)), Margin(0.0, 0.0, 0.0))
    assert edges.FURTHEST <= low <= value <= high < 0


def test_a_margin_between_two_shares_lies_between_them() -> None:
    low, value, high = edges.margin(np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]), Margin(0.0, 0.01, 0.02))
    assert SHARES[3] <= low < value < high <= SHARES[4]
    assert value == pytest.approx((SHARES[3] + SHARES[4]) / 2)


def test_the_less_is_known_the_wider_the_interval() -> None:
    sure, unsure = (
        edges.margin(np.interp(SHARES, (-width, width), (0, 1)), Margin(0, 0.01, 0.02)) for width in (0.01, 0.04)
    )
    assert unsure.high - unsure.low > sure.high - sure.low
    assert sure.value == pytest.approx(unsure.value, abs=0.005)


def test_where_it_is_likely_that_lungs_end_further_inside_the_upper_end_is_that_of_the_outlines() -> None:
    below = np.full(len(SHARES), 0.5)
    low, value, high = edges.margin(below, OUTLINED)
    assert low < 0 < value < high == OUTLINED.high


def test_outlines_far_inside_and_chances_beyond_the_edge_contradict_each_other_and_the_interval_spans_both() -> None:
    low, value, high = edges.margin(np.ones(len(SHARES)), Margin(0.25, 0.26, 0.28))
    assert low < value < 0
    assert high == 0.28


def test_outlines_at_the_edge_and_chances_far_inside_contradict_each_other_and_the_interval_spans_both() -> None:
    assert edges.margin(np.zeros(len(SHARES)), Margin(0.0, 0.001, 0.002)) == Margin(0.0, SHARES[-1], SHARES[-1])
