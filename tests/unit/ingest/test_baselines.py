"""What is usual for a device, out of the sums of each day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from services.ingest.baselines import Usuals
from services.ingest.collation import USUAL_DAYS, Image
from services.ingest.store import MIGRATIONS
from services.ingest.tables import Device, MeasuredDay
from shared import database
from stepwedge.inference.v1.inference_pb2 import ImageFacts

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def engine() -> sa.Engine:
    made = database.create_engine("sqlite://")
    database.upgrade(made, MIGRATIONS)
    return made


def image(device: int, noise: float) -> Image:
    return Image("1.2", "1.2.3", "DX", "", "", device, 10, 10, ImageFacts(), {"noise": noise})


def device(row: int, **said: str) -> Device:
    names = ("station", "department", "location", "manufacturer", "model", "serial", "calling_ae_title")
    return Device(id=row, **{**dict.fromkeys(names, ""), **said})


def day(row: int, before: int, values: list[float], name: str = "noise") -> MeasuredDay:
    squares = sum(one**2 for one in values)
    on = (NOW - timedelta(days=before)).date().isoformat()
    return MeasuredDay(
        day=on, device_id=row, name=name, unit="1", count=len(values), total=sum(values), squares=squares
    )


def test_one_device_in_two_rooms_is_one_and_another_serial_number_is_another(engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.add_all(
            [
                device(1, manufacturer="A", model="B", serial="1", location="room 1"),
                device(2, manufacturer="A", model="B", serial="1", location="room 2"),
                device(3, manufacturer="A", model="B", serial="2"),
                day(1, 3, [0.02, 0.04]),
                day(2, 1, [0.03]),
                day(3, 1, [9.0]),
            ]
        )
        session.commit()
    usual = Usuals(engine).of([image(1, 0.5)], NOW)[1, "noise"]
    # The image itself was counted too, and is taken out again.
    assert usual.count == 3 - 1
    with Session(engine) as session:
        session.add(day(2, 0, [0.5]))
        session.commit()
    usual = Usuals(engine).of([image(1, 0.5)], NOW)[1, "noise"]
    assert usual.count == 3
    assert [usual.mean, usual.deviation] == pytest.approx([0.03, 0.01])


def test_what_was_long_ago_is_not_usual_and_nothing_is_known_of_a_new_device(engine: sa.Engine) -> None:
    with Session(engine) as session:
        session.add_all([device(1, station="X"), day(1, USUAL_DAYS + 1, [0.02] * 50)])
        session.commit()
    assert Usuals(engine).of([image(1, 0.02)], NOW)[1, "noise"].count == 0
    assert Usuals(engine).of([image(0, 0.02)], NOW) == {}
