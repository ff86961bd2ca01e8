"""Which device made an image, and in which room it stands: one small table that lists and charts are cut by."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import Engine, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import sessionmaker

from services.ingest.arrival import NOTHING as NOTHING
from services.ingest.arrival import Said as Said
from services.ingest.tables import Device
from shared import database

_REMEMBERED: Final = 4096
MOST_DEVICES: Final = 10_000
"""A sender that invents devices must not fill memory: what comes after so many is of the device 'unknown'."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of which devices; an empty field asks for any, and all that are set must hold."""

    device: int = 0
    room: str = ""
    station: str = ""
    department: str = ""
    manufacturer: str = ""
    model: str = ""

    @property
    def anything(self) -> bool:
        """Whether no device is asked for."""
        return self == ANY_DEVICE


ANY_DEVICE: Final = Wanted()


class Devices:
    """The devices of ingest's database. All methods block.

    Parameters
    ----------
    engine
        From `shared.database.create_engine`; the schema is up to date.
    rooms
        Station Name or calling AE title -> room, as the site says; else the Performed Location of the object is taken.
    """

    def __init__(self, engine: Engine, rooms: Mapping[str, str]) -> None:
        self._sessions = sessionmaker(engine)
        self._reading = sessionmaker(database.reader(engine), expire_on_commit=False)
        self._postgres = engine.dialect.name == "postgresql"
        self._rooms = rooms
        self._known: OrderedDict[Said, int | None] = OrderedDict()

    def row_of(self, said: Said) -> int | None:
        """The row of a device, which is made where it is new; None where nothing is said of it.

        In a transaction of its own, so that two arrivals never wait for each other over a device.
        """
        if said.empty:
            return None
        if said not in self._known:
            row = self._find_or_make(said)
            self._known[said] = row
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return row
        return self._known[said]

    def _find_or_make(self, said: Said) -> int | None:
        values = {**asdict(said.equipment), "calling_ae_title": said.calling_ae_title}
        wanted = select(Device.id).filter_by(**values)
        with self._reading.begin() as session:
            found = session.scalars(wanted).one_or_none()
            if found is not None:
                return found
            if session.scalars(select(Device.id).order_by(Device.id).offset(MOST_DEVICES - 1).limit(1)).first():
                return None
        with self._sessions.begin() as session:
            insert = postgresql.insert(Device) if self._postgres else sqlite.insert(Device)
            session.execute(insert.values(**values).on_conflict_do_nothing())
            return session.scalars(wanted).one()

    def room(self, device: Device) -> str:
        """The room in which a device stands; empty where neither the site nor the object says."""
        return self._rooms.get(device.station) or self._rooms.get(device.calling_ae_title) or device.location

    def named(self, rows: Iterable[int | None]) -> dict[int, Device]:
        """These devices, by row."""
        wanted = {row for row in rows if row is not None}
        if not wanted:
            return {}
        with self._reading.begin() as session:
            return {device.id: device for device in session.scalars(select(Device).where(Device.id.in_(wanted)))}

    def matching(self, wanted: Wanted) -> list[int]:
        """Rows of the devices that are asked for, in their order."""
        query = select(Device).order_by(Device.id)
        if wanted.device:
            query = query.where(Device.id == wanted.device)
        for column in ("station", "department", "manufacturer", "model"):
            if getattr(wanted, column):
                query = query.where(getattr(Device, column) == getattr(wanted, column))
        with self._reading.begin() as session:
            found = list(session.scalars(query))
        return [device.id for device in found if not wanted.room or self.room(device) == wanted.room]
