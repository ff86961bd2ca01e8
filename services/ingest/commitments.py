"""Storage commitment as SCP (PS3.4 Annex J): success is said of what is durable and recorded, and is itself recorded.

A request is a row before it is answered, so that its outcome is reported whatever dies meanwhile: on the association
that asked while it stands, else on one of our own, again and again until the peer takes it.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final, cast

from pynetdicom import AE, build_context, build_role
from sqlalchemy import Engine, Table, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from services.ingest.storage_commitment import (
    CLASS_INSTANCE_CONFLICT,
    NO_SUCH_INSTANCE,
    PUSH_MODEL,
    WELL_KNOWN_INSTANCE,
    Reference,
    event_information,
)
from services.ingest.tables import Commitment, Instance
from shared import database, logs
from shared.audit import Recorder
from shared.errors import StepwedgeError
from shared.objects import ObjectStore, Zone
from shared.settings import CommitmentPeer, Ingest
from stepwedge.audit.v1 import audit_pb2

_LOOKED_UP_AT_ONCE: Final = 500
_GRACE: Final = timedelta(seconds=15)
"""How long the association that asked has to take the report before one of our own is tried."""
_FIRST_PAUSE: Final = timedelta(seconds=5)
_LONGEST_PAUSE: Final = timedelta(hours=1)
MOST_ATTEMPTS: Final = 48
_CLAIMED: Final = timedelta(seconds=90)
_LOOK_SECONDS: Final = 1.0
_NETWORK_SECONDS: Final = 20.0

_log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Due:
    """A commitment whose outcome is to be reported."""

    id: int
    transaction_uid: str
    ae_title: str
    references: Sequence[Reference]
    attempts: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is held and what is not, with its Failure Reason."""

    committed: Sequence[Reference]
    failed: Sequence[tuple[str, str, int]]
    received_indexes: Sequence[int]
    """Of what is held: where the log has it, ascending."""


class Commitments:
    """The requests, and the truth about what they ask for. All methods block."""

    def __init__(self, engine: Engine, objects: ObjectStore) -> None:
        self._engine = engine
        self._reading = database.reader(engine)
        self._objects = objects
        self._table = cast(Table, Commitment.__table__)

    def accept(self, ae_title: str, transaction_uid: str, references: Sequence[Reference]) -> Due:
        """Make a request durable; the same transaction again is the same request, to be reported again."""
        now = datetime.now(UTC)
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        values = {
            "references": [list(one) for one in references],
            "requested_at": now,
            "attempts": 0,
            "next_attempt_at": now + _GRACE,
            "reported_at": None,
        }
        statement = (
            insert(self._table)
            .values(transaction_uid=transaction_uid, ae_title=ae_title, **values)
            .on_conflict_do_update(index_elements=["transaction_uid", "ae_title"], set_=values)
            .returning(self._table.c.id)
        )
        with self._engine.begin() as connection:
            return Due(connection.execute(statement).scalar_one(), transaction_uid, ae_title, references, 0)

    def due(self, commitment_id: int) -> Due:
        """A request that was accepted."""
        with self._reading.connect() as connection:
            row = connection.execute(select(self._table).where(self._table.c.id == commitment_id)).mappings().one()
        return _due(cast(Mapping[str, Any], row))

    def reported(self, commitment_id: int) -> None:
        """The peer took the report."""
        self._set(commitment_id, reported_at=datetime.now(UTC), next_attempt_at=None)

    def hurry(self, commitment_id: int) -> None:
        """The association that asked is gone and took no report."""
        self._set(commitment_id, next_attempt_at=datetime.now(UTC))

    def failed(self, due: Due) -> None:
        """An attempt failed; the next comes later each time, and after two days none does."""
        if due.attempts + 1 >= MOST_ATTEMPTS:
            _log.error("a storage commitment could not be reported", attempts=due.attempts + 1)
            self._set(due.id, attempts=due.attempts + 1, next_attempt_at=None)
            return
        pause = min(_FIRST_PAUSE * 2 ** min(due.attempts, 16), _LONGEST_PAUSE)
        self._set(due.id, attempts=due.attempts + 1, next_attempt_at=datetime.now(UTC) + pause)

    def claim(self, ae_titles: Sequence[str]) -> Due | None:
        """The request of one of these peers that is due longest; no other process claims it meanwhile."""
        table, now = self._table, datetime.now(UTC)
        query = (
            select(table)
            .where(
                # What lies further ahead than any pause was written by a clock that was wrong.
                or_(table.c.next_attempt_at <= now, table.c.next_attempt_at > now + 2 * _LONGEST_PAUSE),
                table.c.ae_title.in_(ae_titles),
            )
            .order_by(table.c.next_attempt_at)
            .limit(1)
        )
        with self._reading.connect() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        claimed = (
            update(table)
            .where(table.c.id == row["id"], table.c.next_attempt_at == row["next_attempt_at"])
            .values(next_attempt_at=now + _CLAIMED)
        )
        with self._engine.begin() as connection:
            if connection.execute(claimed).rowcount != 1:
                return None
        return _due(cast(Mapping[str, Any], row))

    def outcome(self, references: Sequence[Reference]) -> Outcome:
        """How things stand now."""
        known = self._known([instance for _, instance in references])
        committed, failed, indexes = [], [], set()
        for sop_class, instance in references:
            classes = known.get(instance)
            if classes and sop_class in classes:
                committed.append((sop_class, instance))
                indexes.add(classes[sop_class])
            else:
                failed.append((sop_class, instance, CLASS_INSTANCE_CONFLICT if classes else NO_SUCH_INSTANCE))
        return Outcome(committed, failed, sorted(indexes))

    def _known(self, uids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        """SOP classes under which each instance is held, its record confirmed in the log and its bytes in the store.

        With each class the index of the first such record.
        """
        columns = select(
            Instance.sop_instance_uid, Instance.sop_class_uid, Instance.sha256, Instance.record_index
        ).order_by(Instance.record_index)
        known: dict[str, dict[str, int]] = {}
        with self._reading.connect() as connection:
            for at in range(0, len(uids), _LOOKED_UP_AT_ONCE):
                wanted = sorted(set(uids[at : at + _LOOKED_UP_AT_ONCE]))
                rows = columns.where(Instance.sop_instance_uid.in_(wanted), Instance.record_index.is_not(None))
                for uid, sop_class, digest, index in connection.execute(rows):
                    if self._objects.exists(Zone.ORIGINAL, digest):
                        known.setdefault(uid, {}).setdefault(sop_class, cast(int, index))
        return known

    def _set(self, commitment_id: int, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(self._table).where(self._table.c.id == commitment_id).values(**values))


class Answers:
    """What a peer is told of what it asked for: as things stand, and in the log before it is told (law 1).

    Parameters
    ----------
    commitments
        The requests.
    recorder
        The way to the log.
    commit
        Makes a salted commitment of a digest.
    """

    def __init__(self, commitments: Commitments, recorder: Recorder, commit: Callable[[str], str]) -> None:
        self.commitments = commitments
        self._recorder = recorder
        self._commit = commit

    async def outcome(self, due: Due) -> Outcome:
        """How things stand now, recorded; the same outcome of the same request is one record.

        Raises AUDIT_UNAVAILABLE, and the peer must not be told.
        """
        outcome = await asyncio.to_thread(self.commitments.outcome, due.references)
        asked = self._commit(_digest([due.ae_title, due.transaction_uid]))
        said = self._commit(_digest([outcome.committed, outcome.failed, outcome.received_indexes]))
        await self._recorder.record(
            key=f"committed/{asked}/{said}",
            outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
            event=audit_pb2.CommittedEvent(
                request_commitment=asked,
                held=len(outcome.committed),
                missing=len(outcome.failed),
                received_indexes=outcome.received_indexes,
            ),
        )
        return outcome


def _digest(parts: Sequence[Any]) -> str:
    return sha256(json.dumps(parts).encode()).hexdigest()


def _due(row: Mapping[str, Any]) -> Due:
    references = [(str(one[0]), str(one[1])) for one in row["references"]]
    return Due(row["id"], row["transaction_uid"], row["ae_title"], references, row["attempts"])


class Reporter:
    """Reports on associations of our own what the association that asked did not live to take; a thread."""

    def __init__(self, settings: Ingest, answers: Answers, loop: asyncio.AbstractEventLoop) -> None:
        self._ae_title = settings.ae_title
        self._answers = answers
        self._loop = loop
        self._peers = {peer.ae_title: peer for peer in settings.commitment_peers}
        self._commitments = answers.commitments
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage commitment", daemon=True)

    def start(self) -> None:
        """Begin to look for what is due."""
        if self._peers:
            self._thread.start()

    def stop(self) -> None:
        """Finish the report that is under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_NETWORK_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            with suppress(StepwedgeError):  # the database is away, which its health says
                while not self._stopping.is_set() and (due := self._commitments.claim(list(self._peers))):
                    self._try(due)

    def _try(self, due: Due) -> None:
        try:
            taken = self._report(self._peers[due.ae_title], due)
        except StepwedgeError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a peer makes pynetdicom raise, there is a next attempt
            _log.warning("a storage commitment was not reported", **logs.describe(error))
            taken = False
        if taken:
            self._commitments.reported(due.id)
        else:
            self._commitments.failed(due)

    def _report(self, peer: CommitmentPeer, due: Due) -> bool:
        outcome = asyncio.run_coroutine_threadsafe(self._answers.outcome(due), self._loop).result(_NETWORK_SECONDS)
        event_type, information = event_information(due.transaction_uid, outcome.committed, outcome.failed)
        ae = AE(self._ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = _NETWORK_SECONDS
        ae.requested_contexts = [build_context(PUSH_MODEL)]
        # PS3.4 J.3.3.1: whoever asks for the association is the SCP of the class here, and says so.
        role = build_role(PUSH_MODEL, scp_role=True)
        association = ae.associate(peer.host, peer.port, ae_title=peer.ae_title, ext_neg=[role])
        if not association.is_established:
            return False
        try:
            status, _ = association.send_n_event_report(information, event_type, PUSH_MODEL, WELL_KNOWN_INSTANCE)
            return "Status" in status and status.Status == 0x0000
        finally:
            association.release()
