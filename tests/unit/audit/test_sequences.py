"""The numbering of producers."""

from hypothesis import given
from hypothesis import strategies as st

from services.audit.sequences import GRACE_SECONDS, Incarnation

LATER = int(GRACE_SECONDS * 1e6)


def missing(one: Incarnation) -> list[tuple[int, int]]:
    return sorted((gap.first, gap.last) for gap in one.gaps)


def test_numbers_that_overtake_each_other_leave_no_gap() -> None:
    one = Incarnation("ingest", "x")
    for number in (2, 1, 5, 3, 4):
        assert one.take(number, 0)
    assert not one.gaps
    assert not one.overdue(LATER)


def test_a_number_that_does_not_come_is_overdue_after_the_grace_and_not_before() -> None:
    one = Incarnation("ingest", "x")
    one.take(1, 0)
    one.take(4, 10)
    assert not one.overdue(LATER)
    assert [(gap.first, gap.last) for gap in one.overdue(LATER + 10)] == [(2, 3)]


def test_a_number_that_comes_twice_is_told() -> None:
    one = Incarnation("ingest", "x")
    assert one.take(1, 0)
    assert not one.take(1, 0)


def test_a_number_used_up_by_a_known_key_is_named_once() -> None:
    one = Incarnation("ingest", "x")
    one.take(1, 0)
    one.repeat(2, 0)
    one.repeat(2, 0)
    assert one.repeats == [2]
    assert not one.gaps


@given(st.lists(st.integers(1, 40), max_size=40))
def test_gaps_are_exactly_what_did_not_come(numbers: list[int]) -> None:
    one = Incarnation("ingest", "x")
    seen: set[int] = set()
    for number in numbers:
        assert one.take(number, 0) == (number not in seen)
        seen.add(number)
    expected = set(range(1, max(seen, default=0) + 1)) - seen
    assert {number for first, last in missing(one) for number in range(first, last + 1)} == expected
    row = one.row()
    assert Incarnation.from_row(row).row() == row
