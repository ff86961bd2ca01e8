"""Sums of what images measure: means and spreads that a chart of drift stands on."""

import statistics
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from services.ingest import drift
from services.ingest.tables import Instance
from stepwedge.inference.v1 import inference_pb2
from tests.unit.ingest.conftest import new_study

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def assessed(confidence: float | None, **values: float) -> bytes:
    made = inference_pb2.Assessment()
    if confidence is not None:
        made.confidence = confidence
    for name, value in values.items():
        made.measurements.add(name=name, value=value, unit="mm")
    return made.SerializeToString()


def add(engine: Engine, at: datetime, device: int | None, *assessments: bytes, constancy: bool = False) -> None:
    for one in assessments:
        with Session(engine) as session, session.begin():
            study = new_study(session, f"2.25.{uuid.uuid4().int}", at, constancy=constancy)
            drift.count(session, Instance(device_id=device, study_id=study.id), one, at)


def test_mean_and_deviation_of_a_day_are_those_of_its_images(engine: Engine) -> None:
    values = [12.5, 14.0, 9.25, 30.0]
    add(engine, NOW, 1, *(assessed(0.9, margin_top=value) for value in values))
    confidence, margin = drift.Drift(engine).days(NOW, NOW)
    assert (confidence.name, confidence.unit, confidence.count) == ("confidence", "1", 4)
    assert margin.day == "2026-11-22"
    assert margin.mean == pytest.approx(statistics.mean(values))
    assert margin.deviation == pytest.approx(statistics.stdev(values))


def test_days_and_devices_are_kept_apart_and_can_be_asked_for(engine: Engine) -> None:
    add(engine, NOW, 1, assessed(None, margin_top=10))
    add(engine, NOW, 2, assessed(None, margin_top=20))
    add(engine, NOW, None, assessed(None, margin_top=60))
    add(engine, NOW - timedelta(days=2), 1, assessed(None, margin_top=5))
    measured = drift.Drift(engine)
    assert [(one.day[-2:], one.count, one.mean) for one in measured.days(NOW - timedelta(days=9), NOW)] == [
        ("20", 1, 5.0),
        ("22", 3, 30.0),
    ]
    assert [one.mean for one in measured.days(NOW, NOW, devices=[2])] == [20.0]
    assert list(measured.days(NOW, NOW, devices=[])) == []


def test_a_week_is_the_sum_of_its_days(engine: Engine) -> None:
    add(engine, NOW, 1, assessed(None, margin_top=10))  # a Sunday
    add(engine, NOW - timedelta(days=6), 2, assessed(None, margin_top=20))
    add(engine, NOW - timedelta(days=7), 2, assessed(None, margin_top=50))
    weeks = drift.Drift(engine).days(NOW - timedelta(days=9), NOW, by_week=True)
    assert [(one.day, one.count, one.mean) for one in weeks] == [("2026-11-09", 1, 50.0), ("2026-11-16", 2, 15.0)]


def test_an_image_without_measurements_and_a_value_that_is_none_are_not_counted(engine: Engine) -> None:
    add(engine, NOW, 1, assessed(None), assessed(None, margin_top=float("nan")), assessed(None, margin_top=1))
    (only,) = drift.Drift(engine).days(NOW, NOW)
    assert (only.count, only.mean, only.deviation) == (1, 1.0, 0.0)


def test_phantoms_are_not_counted(engine: Engine) -> None:
    add(engine, NOW, 1, assessed(0.9, margin_top=10), constancy=True)
    assert list(drift.Drift(engine).days(NOW, NOW)) == []
