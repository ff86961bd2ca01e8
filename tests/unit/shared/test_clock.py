"""What the kernel says of its clock, and what becomes of it."""

import ctypes

import pytest

from shared import clock


def test_the_kernel_is_asked_and_nothing_is_changed() -> None:
    before, after = clock.state(), clock.state()
    assert before["source"] in {"SYNCHRONIZED", "UNSYNCHRONIZED", "UNKNOWN"}
    assert before["source"] == after["source"]
    assert 0 <= before["max_error_us"] <= 2**53 - 1


def test_there_is_room_for_what_the_kernel_writes() -> None:
    assert ctypes.sizeof(clock._Timex) >= 208  # struct timex on 64-bit Linux


@pytest.mark.parametrize(
    ("status", "offset", "wanted"),
    [
        (0x0001, -1500, ("SYNCHRONIZED", -1500)),
        (0x2001, -1_500_999, ("SYNCHRONIZED", -1500)),
        (0x0040, 0, ("UNSYNCHRONIZED", 0)),
        (0x2041, 7_000, ("UNSYNCHRONIZED", 7)),
    ],
)
def test_the_status_says_whether_something_keeps_the_clock_and_the_unit(
    status: int, offset: int, wanted: tuple[str, int]
) -> None:
    judged = clock.judged(status, offset, 4000)
    assert (judged["source"], judged["offset_us"], judged["max_error_us"]) == (*wanted, 4000)


def test_a_system_that_does_not_say_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_read", None)
    assert clock.state()["source"] == "UNKNOWN"
