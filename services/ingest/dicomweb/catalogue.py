"""What searches read (QIDO-RS): the attributes of each object, sealed in the database, made from the object itself.

Names, numbers and dates of people do not lie open in ingest's database (law 4). A search for a number finds it by a
keyed token; whatever else is matched is matched after opening, here in the process. A row that is absent, or that does
not open under the key that there is now, is made anew from the object: the catalogue is never the only place of
anything.
"""

import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import Engine, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import sessionmaker

from services.ingest.dicomweb import json_model
from services.ingest.dicomweb.holdings import Held, held
from services.ingest.states import InstanceState
from services.ingest.tables import Catalogued, Instance, Study
from shared import database, dicom, keys, logs
from shared.errors import ErrorCode, StepwedgeError
from shared.identification import BlindIndex, Number, normalised
from shared.objects import ObjectStore

CATCH_UP_SECONDS: Final = 5.0
"""Patience of a search with what came in just before it."""
BEHIND: Final = "the catalogue of what is held is still being made"
LONGEST: Final = 16_384
"""Bytes of an attribute as JSON: far more than its VR allows (PS3.5 6.2), and a row stays small enough to search."""

_NONCE_BYTES: Final = 12
_BATCH: Final = 100
_RECENT: Final = 10_000

STUDY_LEVEL: Final = (
    *("00080020", "00080030", "00080050", "00080051", "00080090", "00080201", "00081030", "00081032", "00100010"),
    *("00100020", "00100021", "00100024", "00100030", "00100032", "00100040", "00101010", "0020000D", "00200010"),
)
"""Attributes of patient and study (PS3.18 Table 10.6.3-3 and what else is often asked for)."""
SERIES_LEVEL: Final = (
    *("00080021", "00080031", "00080060", "0008103E", "0008103F", "00080070", "00080080", "00081010", "00081040"),
    *("00081050", "00081090", "00180015", "00181000", "00181030", "0020000E", "00200011", "00200060", "00400244"),
    *("00400245", "00400253", "00400275", "00185100"),
)
"""Of the series (Table 10.6.3-4)."""
INSTANCE_LEVEL: Final = (
    *("00080005", "00080008", "00080012", "00080013", "00080016", "00080018", "00080022", "00080023", "00080032"),
    *("00080033", "00180050", "00181164", "00185101", "00200012", "00200013", "00200032", "00200037", "00280002"),
    *("00280004", "00280008", "00280010", "00280011", "00280030", "00280100", "00280101", "00281050", "00281051"),
    *("0040A043", "0040A491", "0040A493", "00420010", "00700080", "00700081", "00280301", "00282110"),
)
"""Of the instance (Table 10.6.3-5)."""
KEPT: Final = frozenset((*STUDY_LEVEL, *SERIES_LEVEL, *INSTANCE_LEVEL))

_log = logs.get_logger(__name__)


class Catalogue:
    """Every method blocks."""

    def __init__(self, engine: Engine, objects: ObjectStore, key: bytes, blind_index: BlindIndex) -> None:
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._reading = sessionmaker(database.reader(engine), expire_on_commit=False)
        self._postgres = engine.dialect.name == "postgresql"
        self._objects = objects
        self._cipher = AESGCM(
            HKDF(algorithm=SHA256(), length=32, salt=None, info=b"stepwedge ingest catalogue v1").derive(key)
        )
        self._blind_index = blind_index
        self._catching_up = threading.Lock()
        self._done = 0
        """Every visible object with a row up to this one is in it."""

    @classmethod
    def load(cls, engine: Engine, objects: ObjectStore, folder: Path) -> "Catalogue":
        """With the keys of a keys folder; CONFIGURATION where they are absent."""
        return cls(engine, objects, keys.secret(folder, keys.IDENTITY), BlindIndex.load(folder))

    def catch_up(self, limit: int = _BATCH) -> int:
        """Catalogue up to `limit` objects that are not in it yet; returns how many were.

        One thread at a time: each object is read whole, and what one catalogues the next finds done. Raises
        DEPENDENCY_UNAVAILABLE where another is still at it.
        """
        if not self._catching_up.acquire(timeout=CATCH_UP_SECONDS):
            raise StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, BEHIND)
        try:
            return self._catch_up(limit)
        finally:
            self._catching_up.release()

    def _catch_up(self, limit: int) -> int:
        with self._reading.begin() as session:
            # Asked first: what becomes visible behind this is looked for the next time.
            hidden = session.scalar(select(func.min(Instance.id)).where(Instance.state == InstanceState.STORED))
            newest = session.scalar(select(func.max(Instance.id))) or 0
            query = (
                select(Instance, Study)
                .join(Study, Study.id == Instance.study_id)
                .outerjoin(Catalogued, Catalogued.instance_id == Instance.id)
                .where(Instance.id > self._done, Instance.state != InstanceState.STORED)
                .where(Catalogued.instance_id.is_(None))
                .order_by(Instance.id)
                .limit(limit)
            )
            missing = [held(row, study) for row, study in session.execute(query)]
        self._write([self._row(one, self._attributes(one)) for one in missing])
        if len(missing) < limit:
            # On PostgreSQL a row can become visible behind one with a higher number: the last ones are looked at again.
            self._done = max(self._done, min(newest - _RECENT, newest if hidden is None else hidden - 1))
        return len(missing)

    def open(self, one: Held, row: Catalogued | None) -> json_model.Model:
        """The attributes of an object; made anew where the row is absent or does not open."""
        if row is not None:
            try:
                nonce, sealed = row.sealed[:_NONCE_BYTES], row.sealed[_NONCE_BYTES:]
                model: json_model.Model = json.loads(self._cipher.decrypt(nonce, sealed, _bound(one.id)))
                return model
            except (InvalidTag, ValueError):
                pass
        made = self._attributes(one)
        if not one.result:  # results are few, and read when they are asked for
            self._write([self._row(one, made)])
        return made

    def token(self, kind: Number, value: str) -> bytes:
        """What a patient's or an accession number is found by."""
        return self._blind_index.token(kind, value)

    def _row(self, one: Held, model: json_model.Model) -> dict[str, object]:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, json_model.dumps(model), _bound(one.id))
        return {
            "instance_id": one.id,
            "sealed": nonce + sealed,
            "patient": self._number(Number.PATIENT, model, "00100020"),
            "accession": self._number(Number.ACCESSION, model, "00080050"),
        }

    def _number(self, kind: Number, model: json_model.Model, tag: str) -> bytes:
        values = [one for one in model.get(tag, {}).get("Value", []) if isinstance(one, str)]
        return self._blind_index.token(kind, values[0]) if values and normalised(values[0]) else b""

    def _attributes(self, one: Held) -> json_model.Model:
        """Out of the object. What cannot be read is catalogued by its row alone, so that it is still found by UID."""
        try:
            header = dicom.read_header(self._objects.get(one.zone, one.sha256))
            found = {tag: value for tag, value in json_model.of_dataset(header).items() if tag in KEPT}
            model = {tag: value for tag, value in found.items() if len(json_model.dumps(value)) <= LONGEST}
            if len(model) < len(found):
                _log.warning("attributes too long to be searched are not catalogued", count=len(found) - len(model))
        except StepwedgeError as error:
            if not error.permanent:
                raise
            _log.warning("an object is catalogued without its attributes", **logs.describe(error))
            model = {}
        named = {
            "00080016": one.sop_class, "00080018": one.sop_instance, "0020000D": one.study, "0020000E": one.series
        }  # fmt: skip
        return model | {tag: json_model.attribute("UI", uid) for tag, uid in named.items()}

    def _write(self, rows: Sequence[dict[str, object]]) -> None:
        if not rows:
            return
        insert = postgresql.insert(Catalogued) if self._postgres else sqlite.insert(Catalogued)
        replaced = {name: insert.excluded[name] for name in ("sealed", "patient", "accession")}
        with self._sessions.begin() as session:
            session.execute(insert.on_conflict_do_update(index_elements=["instance_id"], set_=replaced), list(rows))


def _bound(instance_id: int) -> bytes:
    return f"stepwedge ingest catalogue v1\n{instance_id}".encode()


def tags_of(levels: Iterable[Sequence[str]]) -> frozenset[str]:
    """The attributes of these levels."""
    return frozenset(tag for level in levels for tag in level)
