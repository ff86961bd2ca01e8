"""What images of a device usually measure, out of the sums that are kept for each day."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from services.ingest.collation import OF_THE_DEVICE, USUAL_DAYS, Image, Usual
from services.ingest.drift import deviation
from services.ingest.tables import Device, MeasuredDay
from shared import database

_UNIT: Final = "1"


class Usuals:
    """Reads the sums. Blocks."""

    def __init__(self, engine: sa.Engine) -> None:
        self._reading = sessionmaker(database.reader(engine))

    def of(self, images: Sequence[Image], until: datetime) -> dict[tuple[int, str], Usual]:
        """(device, measurement) -> what is usual for it in the days before, these images themselves left out."""
        found: dict[tuple[int, str], Usual] = {}
        with self._reading.begin() as session:
            for device in {one.device for one in images if one.device}:
                alike = _alike(session, device)
                for name in OF_THE_DEVICE:
                    own = [one.measured[name] for one in images if one.device in alike and name in one.measured]
                    found[device, name] = _less(own, *_sums(session, alike, name, until))
        return found


def _alike(session: Session, row: int) -> list[int]:
    """Rows of one device: those that differ only in where it stood or how it called."""
    device = session.get(Device, row)
    if device is None or not (device.serial or device.station):
        return [row]
    same = [Device.manufacturer == device.manufacturer, Device.model == device.model, Device.serial == device.serial]
    if not device.serial:
        same.append(Device.station == device.station)
    return list(session.scalars(sa.select(Device.id).where(*same)))


def _sums(session: Session, devices: Iterable[int], name: str, until: datetime) -> tuple[int, float, float]:
    sums = [sa.func.coalesce(sa.func.sum(getattr(MeasuredDay, one)), 0) for one in ("count", "total", "squares")]
    first = (until - timedelta(days=USUAL_DAYS)).date().isoformat()
    row = session.execute(
        sa.select(*sums).where(
            MeasuredDay.day >= first,
            MeasuredDay.device_id.in_(devices),
            MeasuredDay.name == name,
            MeasuredDay.unit == _UNIT,
        )
    ).one()
    return int(row[0]), float(row[1]), float(row[2])


def _less(own: Sequence[float], count: int, total: float, squares: float) -> Usual:
    """The sums less what the images at hand have added to them."""
    count, total, squares = count - len(own), total - sum(own), squares - sum(one**2 for one in own)
    return Usual(count, total / count, deviation(count, total, squares)) if count > 0 else Usual(0, 0.0, 0.0)
