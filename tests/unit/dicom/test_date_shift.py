"""Dates move with the person; whatever many people share does not move, so that it gives the move away to nobody."""

from datetime import date, timedelta

import pytest

from shared.date_shift import MOST_DAYS, DateShift, anchor, capped_age
from shared.pseudonyms import Pseudonyms

PSEUDONYMS = Pseudonyms(bytes(range(32)))
SHIFT = DateShift(-100, date(2020, 3, 15))


def test_every_person_has_a_shift_into_the_past_and_the_same_in_every_process() -> None:
    shifts = [PSEUDONYMS.date_shift_days(f"SW-{number}") for number in range(5000)]
    assert min(shifts) >= -MOST_DAYS
    assert max(shifts) < 0
    assert len(set(shifts)) > 2500
    assert abs(sum(shifts) / len(shifts) + MOST_DAYS / 2) < MOST_DAYS / 20, "no part of the range is preferred"
    assert shifts == [Pseudonyms(bytes(range(32))).date_shift_days(f"SW-{number}") for number in range(5000)]


@pytest.mark.parametrize(
    ("vr", "text", "moved"),
    [
        ("DA", "20200315", "20191206"),
        ("DA", "2020.03.15", "20191206"),
        ("DA", "20200315\\20200316", "20191206\\20191207"),
        ("DA", "", ""),
        ("DT", "20200315235959.123456+0200", "20191206235959.123456+0200"),
        ("DT", "20200315235959-0330", "20191206235959-0330"),
        ("DT", "20200315", "20191206"),
        ("DT", "202003", "201912"),
        ("TM", "235959.5", "235959.5"),
        ("TM", "0815", "0815"),
        ("DA", "20200230", "19000101"),
        ("DA", "yesterday", "19000101"),
        ("DT", "at noon", "19000101000000"),
        ("TM", "noon", "000000"),
    ],
)
def test_dates_move_and_times_of_day_and_zones_stay(vr: str, text: str, moved: str) -> None:
    assert SHIFT.moved(vr, text) == moved


def test_the_days_between_two_examinations_of_a_person_stay() -> None:
    first, second = (
        PSEUDONYMS.date_shift("SW-A", anchor([text])).moved("DA", text) for text in ("20120229", "20200315")
    )
    days = date.fromisoformat(second) - date.fromisoformat(first)
    assert days == date(2020, 3, 15) - date(2012, 2, 29)


@pytest.mark.parametrize("planted", ["19000101", "19700101", "18581117", "21000101", "99991231", "00010101"])
def test_a_placeholder_never_moves(planted: str) -> None:
    assert anchor([planted]) is None
    assert DateShift(-100, date(2000, 1, 2)).moved("DA", planted) == "19000101"


def test_a_constant_that_somebody_planted_in_every_object_gives_no_shift_away() -> None:
    """Attack: the same known date in an attribute of 400 persons; subtracting it must not give their shifts."""
    planted = "20150615"
    betrayed = 0
    for number in range(400):
        shift = PSEUDONYMS.date_shift(f"SW-{number}", date(2010, 1, 1) + timedelta(days=9 * number))
        out = shift.moved("DA", planted)
        guess = (date.fromisoformat(out) - date.fromisoformat(planted)).days
        betrayed += guess == shift.days
    assert betrayed <= 400 * 63 / (9 * 400) + 1, "only whose examination truly lay within the window of the constant"


@pytest.mark.parametrize("keyword", ["DateOfLastCalibration", "DateOfManufacture", "PatientBirthDate", "ExpiryDate"])
def test_a_date_of_a_device_or_of_birth_gives_no_shift_away(keyword: str) -> None:
    assert SHIFT.moved("DA", "20200315", keyword) == "19000101"


def test_without_an_examination_day_no_date_is_kept() -> None:
    assert anchor(["", "19000101", "nonsense"]) is None
    assert DateShift(-100, None).moved("DT", "20200315") == "19000101000000"
    assert anchor(["19000101", "20200315120000+0100"]) == date(2020, 3, 15)


def test_what_has_moved_does_not_move_again() -> None:
    assert DateShift(-100, date(2020, 3, 15), done=True).moved("DA", "20191206") == "20191206"


@pytest.mark.parametrize(
    ("age", "kept"),
    [
        ("089Y", "089Y"), ("090Y", "090Y"), ("093Y", "090Y"), ("119Y", "090Y"), ("999M", "999M"), ("012M", "012M"),
        ("003D", "003D"), ("999W", "999W"), ("95", ""), ("", ""), ("9x3Y", ""),
    ],
)  # fmt: skip
def test_ages_over_89_are_capped(age: str, kept: str) -> None:
    assert capped_age(age) == kept
