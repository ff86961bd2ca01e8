"""The catalogue stays small and is made once, whoever asks for it at the same time and whatever an object holds."""

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pydicom
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from services.ingest.dicomweb import catalogue
from services.ingest.dicomweb.catalogue import Catalogue
from services.ingest.dicomweb.holdings import Held, held
from services.ingest.states import InstanceState
from services.ingest.store import Arrival, StudyStore
from services.ingest.tables import Catalogued, Instance, Study
from shared.directory_store import DirectoryStore
from shared.identification import BlindIndex
from shared.objects import Zone
from tests.unit.redaction.canaries import minimal


class Counting(DirectoryStore):
    """Counts how many objects are read at once."""

    reading = most = reads = 0
    guard = threading.Lock()

    def get(self, *args: Any, **named: Any) -> bytes:
        with self.guard:
            self.reads += 1
            self.reading += 1
            self.most = max(self.most, self.reading)
        try:
            threading.Event().wait(0.02)  # as long as an object takes
            return super().get(*args, **named)
        finally:
            with self.guard:
                self.reading -= 1


def received(
    engine: Engine,
    studies: StudyStore,
    arrival: Callable[..., Arrival],
    objects: DirectoryStore,
    number: int,
    **said: str,
) -> None:
    """An object whose record is in the log."""
    ds = minimal()
    for keyword, value in said.items():
        setattr(ds, keyword, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    stored = objects.put(Zone.ORIGINAL, out.getvalue())
    studies.receive(replace(arrival(str(number)), sha256=stored.sha256), datetime(2026, 3, 1, tzinfo=UTC))
    with Session(engine) as session, session.begin():
        session.execute(update(Instance).values(state=InstanceState.RECEIVED))


def rows(engine: Engine) -> list[tuple[Held, Catalogued]]:
    with Session(engine) as session:
        query = select(Instance, Study, Catalogued).join(Study).join(Catalogued).order_by(Instance.id)
        return [(held(row, study), entry) for row, study, entry in session.execute(query)]


def test_many_that_search_at_once_read_each_object_once_and_one_at_a_time(
    engine: Engine, studies: StudyStore, arrival: Callable[..., Arrival], tmp_path: Path
):
    objects = Counting({Zone.ORIGINAL: tmp_path})
    for number in range(1, 4):
        received(engine, studies, arrival, objects, number, InstanceNumber=str(number))
    made = Catalogue(engine, objects, bytes(32), BlindIndex(bytes(32)))
    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(lambda _: made.catch_up(), range(4))) == 3
    assert (objects.most, objects.reads) == (1, 3)


def test_an_attribute_longer_than_any_may_be_is_not_kept_and_the_others_are(
    engine: Engine, studies: StudyStore, arrival: Callable[..., Arrival], tmp_path: Path
):
    objects = DirectoryStore({Zone.ORIGINAL: tmp_path})
    received(engine, studies, arrival, objects, 1, StudyDescription="A" * 60_000, SeriesDescription="pa")
    made = Catalogue(engine, objects, bytes(32), BlindIndex(bytes(32)))
    assert made.catch_up() == 1
    ((one, entry),) = rows(engine)
    assert len(entry.sealed) < catalogue.LONGEST
    model = made.open(one, entry)
    assert "00081030" not in model
    assert model["0008103E"]["Value"] == ["pa"]
