"""What the quality page computes from the counts and means that ingest gives."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest

from services.console import diagrams, pictures
from services.console.pages import guide, quality
from shared import reasons
from stepwedge.common.v1.common_pb2 import Verdict
from stepwedge.ingest.v1 import ingest_pb2


def days(name: str, means: dict[int, tuple[int, float, float]]) -> Iterator[ingest_pb2.MeasurementDay]:
    """Days ago -> (images, mean, deviation)."""
    today = datetime.now(UTC).date()
    for ago, (count, mean, deviation) in means.items():
        day = (today - timedelta(days=ago)).isoformat()
        yield ingest_pb2.MeasurementDay(day=day, name=name, unit="1", count=count, mean=mean, deviation=deviation)


def test_a_mean_that_moved_by_a_standard_deviation_has_drifted():
    steady = dict.fromkeys(range(30), (10, 0.9, 0.05))
    moved = {**steady, **dict.fromkeys(range(7), (10, 0.85, 0.05))}
    found = {one.name: one for one in quality.drifts([*days("steady", steady), *days("moved", moved)], 30)}
    assert found["moved"].drifted
    assert found["moved"].shift == pytest.approx(-1.0, abs=0.1)
    assert not found["steady"].drifted
    assert found["steady"].before[0] + found["steady"].now[0] == 300


def test_a_year_is_told_by_its_weeks():
    today = datetime.now(UTC).date()
    mondays = [today - timedelta(days=today.weekday() + 7 * back) for back in range(52, -1, -1)]
    weeks = [
        ingest_pb2.MeasurementDay(
            day=day.isoformat(), name="x", unit="1", count=50, mean=1 + (place >= 40), deviation=1
        )
        for place, day in enumerate(mondays)
    ]
    (found,) = quality.drifts(weeks, 365, weekly=True)
    assert (found.before, found.now) == ((2000, 1.0, pytest.approx(1, 0.01)), (650, 2.0, pytest.approx(1, 0.01)))
    assert found.drifted
    assert len([mean for mean in found.means if mean is not None]) == 53


def test_of_too_few_images_nothing_is_said():
    found = quality.drifts(days("few", {0: (quality.ENOUGH - 1, 9.0, 0.1), 20: (500, 1.0, 0.1)}), 30)
    assert found[0].shift is None
    assert not found[0].drifted


def test_days_are_pooled_as_if_their_images_had_been_measured_together():
    count, mean, deviation = quality._pooled(days("x", {1: (2, 2.0, 2**0.5), 2: (2, 6.0, 2**0.5)}))
    assert (count, mean) == (4, 4.0)
    assert deviation == pytest.approx((20 / 3) ** 0.5)  # of 1, 3, 5, 7


def test_the_room_that_rejects_most_comes_first_and_unknown_devices_are_one():
    found = ingest_pb2.SummarizeDecisionsResponse(
        devices=[
            ingest_pb2.Device(id=1, room="Room 2", station="DX2", manufacturer="Maker", model="M1"),
            ingest_pb2.Device(id=2, room="Room 1", station="=HYPERLINK(1)"),
        ]
    )
    for device, verdict, count in (
        (1, Verdict.VERDICT_ACCEPT, 9),
        (1, Verdict.VERDICT_REJECT, 1),
        (2, Verdict.VERDICT_REJECT, 2),
        (0, Verdict.VERDICT_ACCEPT, 4),
    ):
        found.by_device.add(day="2026-11-22", device_id=device, verdict=verdict, count=count)
    rooms, devices = quality._places(found)
    assert [(one.name, one.total) for one in rooms] == [("Room 1", 2), ("Room 2", 10), ("", 4)]
    assert [one.name for one in devices] == ["'=HYPERLINK(1)", "DX2, Maker M1", ""]


def test_a_line_has_a_gap_where_there_is_no_value():
    root = ElementTree.fromstring(pictures.line("<&>", [1.0, 2.0, None, 3.0, None, 1.0, 1.5]))
    assert [child.tag.rpartition("}")[2] for child in root] == ["title", "polyline", "circle", "polyline"]
    assert pictures.line("nothing", [None, None]) == ""


def test_every_finding_has_a_picture_or_a_drawing_and_every_drawing_reads():
    codes = {reasons.name(code) for code in reasons.WORDS}
    assert not codes - guide.PICTURED - diagrams.DRAWN
    for code in diagrams.DRAWN:
        root = ElementTree.fromstring(diagrams.drawing(code, '<a title="x">'))
        assert root.get("aria-label") == '<a title="x">'
        assert len(root) > 1
