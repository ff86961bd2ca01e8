"""What is seen only where several images lie side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from services.ingest.collation import LEAST_IMAGES, Collated, Image, Usual, collate
from stepwedge.common.v1.common_pb2 import Outcome, Reason
from stepwedge.inference.v1.inference_pb2 import ImageFacts

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
CORONAL = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]


def image(number: int, **given: Any) -> Image:
    """A CT slice of a good series, 5 mm above the one before, with what a test changes."""
    facts = ImageFacts(
        pixels_sha256=given.pop("pixels", f"{number:064x}"),
        frames=1,
        position=given.pop("position", [0.0, 0.0, 5.0 * number]),
        orientation=given.pop("orientation", AXIAL),
        spacing=given.pop("spacing", [0.5, 0.5]),
        frame_of_reference=given.pop("reference", "2.25.1"),
        stack=given.pop("stack", "axial"),
    )
    usual: dict[str, Any] = {
        "series": "1.2.1",
        "sop_instance": f"1.2.1.{number}",
        "modality": "CT",
        "site": "",
        "person": "AAAAAAAA/BBBBBBBB/CCCCCCCC",
        "device": 7,
        "rows": 512,
        "columns": 512,
        "measured": {"noise": 0.02, "sharpness": 1.5},
    }
    return Image(**{**usual, **given}, facts=facts)


def series(count: int = 8, **given: Any) -> list[Image]:
    return [image(number, **given) for number in range(count)]


def outcomes(images: Sequence[Image], usual: Any = None) -> dict[str, str]:
    """Finding -> outcome."""
    found = collate(images, usual or {})
    return {
        Reason.Name(one.finding.code).removeprefix("REASON_"): Outcome.Name(one.finding.outcome).removeprefix(
            "OUTCOME_"
        )
        for one in found
    }


def finding(images: Sequence[Image], code: Reason.ValueType, usual: Any = None) -> Collated:
    return next(one for one in collate(images, usual or {}) if one.finding.code == code)


def test_a_good_series_passes_every_check() -> None:
    found = outcomes(series())
    device = {"NOISE": "NOT_ASSESSABLE", "SHARPNESS": "NOT_ASSESSABLE"}
    passed = dict.fromkeys(("DUPLICATE_IMAGES", "MIXED_PATIENTS", "GEOMETRY", "SLICES"), "PASS")
    assert found == {**device, **passed}


def test_the_order_of_arrival_says_nothing() -> None:
    assert outcomes(list(reversed(series()))) == outcomes(series())


def test_one_image_and_none_are_not_compared() -> None:
    assert set(outcomes([image(1, device=0)])) == set()
    assert collate([], {}) == []


@pytest.mark.parametrize("gone", [2, 4, 6])
def test_a_slice_that_is_missing_is_found(gone: int) -> None:
    images = [one for place, one in enumerate(series(12)) if place != gone]
    found = finding(images, Reason.REASON_SLICES).finding
    assert found.outcome == Outcome.OUTCOME_FAIL
    assert (found.measurement.value, found.measurement.unit) == (1, "{slices}")
    assert outcomes(images)["GEOMETRY"] == "PASS"


def test_a_slice_that_came_twice_under_other_uids_is_found_twice_over() -> None:
    again = image(3, sop_instance="1.2.1.99")
    found = outcomes([*series(), again])
    assert (found["SLICES"], found["DUPLICATE_IMAGES"]) == ("FAIL", "FAIL")


def test_an_image_of_another_series_with_the_same_pixels_is_a_remark() -> None:
    copied = image(3, series="1.2.2", sop_instance="1.2.2.1", stack="")
    assert outcomes([*series(), copied])["DUPLICATE_IMAGES"] == "WARN"


def test_images_of_one_value_are_never_duplicates() -> None:
    assert "DUPLICATE_IMAGES" not in outcomes(series(pixels=""))


def test_two_objects_under_one_uid_are_no_duplicates_of_each_other() -> None:
    assert outcomes([*series(), image(3)])["DUPLICATE_IMAGES"] == "PASS"


def test_several_echoes_and_phases_in_one_series_are_no_fault() -> None:
    echoes = [image(100 + n, position=[0, 0, 5.0 * n], stack="echo 2") for n in range(8)]
    phases = [image(200 + n, position=[0, 0, 5.0 * n]) for n in range(8)]
    assert outcomes([*series(), *echoes])["SLICES"] == "PASS"
    assert outcomes([*series(), *phases])["SLICES"] == "PASS"
    assert outcomes([*series(), *phases[:-1]])["SLICES"] == "FAIL"


@pytest.mark.parametrize("count", [1, 8])
def test_a_series_is_blank_where_all_its_slices_are(count: int) -> None:
    assert outcomes(series(count, empty=True))["BLANK_IMAGE"] == "FAIL"
    assert "BLANK_IMAGE" not in outcomes([*series(count, empty=True), image(count)])
    other = [image(20 + n, series="1.2.2", empty=True) for n in range(count)]
    assert outcomes([*series(count), *other])["BLANK_IMAGE"] == "FAIL"


def test_a_series_that_was_planned_with_two_distances_is_uneven_and_not_incomplete() -> None:
    wide = [image(20 + n, position=[0, 0, 35.0 + 10 * (n + 1)]) for n in range(6)]
    assert outcomes([*series(), *wide])["SLICES"] == "WARN"


def test_positions_that_are_rounded_are_even() -> None:
    rounded = [image(n, position=[0.0, 0.0, round(n * 0.6666, 1)]) for n in range(3)]
    assert "SLICES" not in outcomes(rounded)
    fine = [image(n, position=[0.0, 0.0, round(n * 0.625, 2)]) for n in range(60)]
    assert outcomes(fine)["SLICES"] == "PASS"


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({"rows": 256, "columns": 256}, "FAIL"),
        ({"spacing": [0.6, 0.6]}, "FAIL"),
        ({"reference": "2.25.9"}, "FAIL"),
        ({"orientation": CORONAL, "position": [0.0, 3.0, 0.0]}, "WARN"),
        ({"orientation": [0.99999, 0.001, 0, -0.001, 0.99999, 0]}, "PASS"),
        ({"stack": "", "orientation": CORONAL, "rows": 900}, "PASS"),  # an overview
        ({"modality": "DX", "rows": 900}, "PASS"),
    ],
)
def test_geometry_that_changes_within_a_series_is_found(given: dict[str, Any], outcome: str) -> None:
    assert outcomes([*series(), image(50, **{"position": [0, 0, 40.0], **given})])["GEOMETRY"] == outcome


@pytest.mark.parametrize(
    ("person", "outcome"),
    [
        ("XXXXXXXX/BBBBBBBB/CCCCCCCC", "FAIL"),
        ("AAAAAAAA/XXXXXXXX/CCCCCCCC", "FAIL"),
        ("AAAAAAAA/BBBBBBBB/XXXXXXXX", "FAIL"),
        ("AAAAAAAA//CCCCCCCC", "PASS"),
        ("//", "PASS"),
        ("", "PASS"),
    ],
)
def test_two_patients_in_one_study_are_found_and_what_is_left_out_contradicts_nothing(
    person: str, outcome: str
) -> None:
    found = finding([*series(), image(50, person=person, position=[0, 0, 40.0])], Reason.REASON_MIXED_PATIENTS)
    assert Outcome.Name(found.finding.outcome) == f"OUTCOME_{outcome}"
    assert "XXXX" not in found.finding.detail


USUAL = {(7, "noise"): Usual(200, 0.02, 0.001), (7, "sharpness"): Usual(200, 1.5, 0.02)}


@pytest.mark.parametrize(
    ("measured", "noise", "sharpness"),
    [
        ({"noise": 0.02, "sharpness": 1.5}, "PASS", "PASS"),
        ({"noise": 0.028, "sharpness": 1.7}, "PASS", "PASS"),
        ({"noise": 0.05, "sharpness": 1.5}, "WARN", "PASS"),
        ({"noise": 0.005, "sharpness": 1.5}, "WARN", "PASS"),
        ({"noise": 0.02, "sharpness": 1.1}, "PASS", "WARN"),
    ],
)
def test_noise_and_sharpness_are_held_against_the_device(
    measured: dict[str, float], noise: str, sharpness: str
) -> None:
    found = outcomes(series(measured=measured), USUAL)
    assert (found["NOISE"], found["SHARPNESS"]) == (noise, sharpness)


def test_a_device_that_differs_much_from_image_to_image_is_given_more_room() -> None:
    spread = {(7, "noise"): Usual(200, 0.02, 0.01)}
    assert outcomes(series(measured={"noise": 0.055}), spread)["NOISE"] == "PASS"


def test_a_device_of_which_too_little_is_known_is_not_assessable() -> None:
    few = {(7, "noise"): Usual(LEAST_IMAGES - 1, 0.02, 0.001)}
    found = finding(series(), Reason.REASON_NOISE, few).finding
    assert found.outcome == Outcome.OUTCOME_NOT_ASSESSABLE
    assert str(LEAST_IMAGES) in found.detail
    assert "NOISE" not in outcomes(series(device=0))
