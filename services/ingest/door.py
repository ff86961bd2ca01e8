"""The one way in: an object becomes bytes on disk, a row, and a record in the log, in this order, or nothing at all.

Both doors (DIMSE and gRPC) write what they receive to an `Incoming`, hand it to `Door.keep`, and answer success only
when `Door.record` has returned. A crash between any two steps leaves at most an object without a row, which is
harmless, or a row without a confirmed record, which is recorded again under the same idempotency key.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from services.ingest import arrival, metrics
from services.ingest.arrival import Arrival, Names, Said
from services.ingest.arrivals import Arrivals
from services.ingest.identification import Identifier
from services.ingest.incoming import Announced as Announced
from services.ingest.incoming import Incoming as Incoming
from services.ingest.incoming import data_set_offset as data_set_offset
from services.ingest.incoming import examine as examine
from services.ingest.store import StudyStore
from services.ingest.tables import Instance
from shared import dicom, logs
from shared.audit import Recorder
from shared.build import software_build
from shared.errors import StepwedgeError
from shared.objects import ObjectStore, Zone
from shared.pseudonyms import Pseudonyms
from stepwedge.audit.v1 import audit_pb2

_log = logs.get_logger(__name__)

RECORD_SECONDS: Final = 10.0
"""How long a sender waits for the log before it is refused; senders give up after 30 s or more."""

_CONFIRM_SECONDS: Final = 0.1  # for that long a confirmation waits for an arrival to go along with
_RING_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Kept:
    """An object that is durable as bytes and as a row, its record perhaps not yet in the log."""

    instance: Instance
    study_instance_uid: str
    study: str
    """Pseudonym of the study."""
    duplicate: bool
    identification: audit_pb2.Identification | None = field(default=None, repr=False)
    """Goes into the log beside the record, sealed."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """An object that is durable and recorded: what the sender may be told."""

    sha256: str
    study_instance_uid: str
    sop_instance_uid: str
    duplicate: bool
    conflict: bool
    record_index: int


class Door:
    """What stands behind every way in.

    Parameters
    ----------
    ready
        Raises where an object could not be accepted now, so that its sender need not send it all first.
    confirmed
        Called when instances went to work.
    """

    def __init__(
        self,
        objects: ObjectStore,
        studies: StudyStore,
        pseudonyms: Pseudonyms,
        recorder: Recorder,
        identifier: Identifier,
        *,
        max_object_bytes: int,
        ready: Callable[[], None] = lambda: None,
        confirmed: Callable[[], None] = lambda: None,
    ) -> None:
        self._objects = objects
        self._arrivals = Arrivals(studies, self._ring)
        self._studies = studies
        self._names = Names(pseudonyms, studies.name_of)
        self._recorder = recorder
        self._identifier = identifier
        self._max_object_bytes = max_object_bytes
        self.ready = ready
        self._confirmed = confirmed
        self._unheard = False
        self._rang = float("-inf")
        self._unwritten = False
        self._hurry = asyncio.Event()
        self._confirming: asyncio.Task[None] | None = None

    def open(self) -> Incoming:
        """Begin to receive. Raises STORAGE_FULL, AUDIT_UNAVAILABLE, DEPENDENCY_UNAVAILABLE before anything is taken."""
        self.ready()
        return Incoming(self._objects, max_bytes=self._max_object_bytes)

    def keep(
        self, incoming: Incoming, channel: str, announced: Announced | None = None, calling_ae_title: str = ""
    ) -> Kept:
        """Make what was received durable, as bytes and then as a row; blocks.

        `calling_ae_title`: under which the sender called, empty where it came by another way.

        Raises
        ------
        StepwedgeError
            NOT_DICOM, MALFORMED_DICOM, INVALID_UID, SOP_CLASS_MISMATCH: nothing was kept. STORAGE_FULL,
            DEPENDENCY_UNAVAILABLE: the sender tries again.
        """
        try:
            path = incoming.close()
            sha256 = incoming.sha256
            uids, content_sha256, equipment = examine(path, announced, sha256)
            # Law 2: the bytes are durable before a row speaks of them.
            stored = self._objects.put_file(Zone.ORIGINAL, path, sha256)
        finally:
            incoming.discard()
        device = Said(equipment, dicom.one_line(calling_ae_title))
        came = self._names.arrival(uids, stored.sha256, content_sha256, stored.size, channel, device)
        instance, duplicate = self._arrivals.receive(came)
        metrics.RECEIVED_BYTES.labels(channel).inc(stored.size)
        identification = None
        if instance.record_index is None:
            identification = self._identifier.seal(uids.identity, instance.subject, record_key(instance))
        return Kept(instance, uids.study, came.study, duplicate, identification)

    async def take(self, came: Arrival, identification: audit_pb2.Identification, durable: Awaitable[None]) -> Accepted:
        """Accept what another process received: a row, and once its bytes are durable the record.

        `durable`: returns when the bytes are, raises where they will not be. A row whose bytes never came to be durable
        stays without a record, and is looked at again as one whose process died (see `Identifier.again`).
        """
        instance, duplicate = await self._arrivals.submit(came)
        await durable
        metrics.RECEIVED_BYTES.labels(came.channel).inc(came.size_bytes)
        sealed: audit_pb2.Identification | None = identification
        if instance.record_index is None and record_key(instance) != came.record_key:
            # The same data set came before in another wrapping, and its record is still due.
            sealed = await asyncio.to_thread(self._identifier.again, instance, record_key(instance))
        return await self.record(Kept(instance, came.study_instance_uid, came.study, duplicate, sealed))

    async def record(self, kept: Kept) -> Accepted:
        """Put the `received` record in the log and let the instance go to work. Raises AUDIT_UNAVAILABLE."""
        instance = kept.instance
        index = instance.record_index
        if index is None:
            index = await record_received(self._recorder, instance, kept.study, kept.identification)
            self.confirm(instance.id, index)
        outcome = "duplicate" if kept.duplicate else "conflict" if instance.conflict else "new"
        metrics.RECEIVED.labels(instance.channel, outcome).inc()
        return Accepted(
            sha256=instance.sha256,
            study_instance_uid=kept.study_instance_uid,
            sop_instance_uid=instance.sop_instance_uid,
            duplicate=kept.duplicate,
            conflict=instance.conflict,
            record_index=index,
        )

    def confirm(self, instance_id: int, record_index: int) -> None:
        """Note that the log has a `received` record; many at once, and behind the answer to the sender.

        The answer need not wait: where this process dies first, the next hands the record in again under its key.
        """
        self._arrivals.confirm(instance_id, record_index)
        self._unwritten = True
        if self._confirming is None or self._confirming.done():
            self._confirming = asyncio.create_task(self._confirm(), name="confirmations")

    def settle(self) -> None:
        """Write down what the log was heard to have, so that whoever asks next is told so; blocks."""
        self._arrivals.flush()

    async def flush(self) -> None:
        """Wait until everything that was accepted has gone to work."""
        self._hurry.set()
        if self._confirming is not None:
            await self._confirming

    def _ring(self) -> None:
        self._unheard = True

    async def _confirm(self) -> None:
        """Write what goes along with no arrival, and tell the hallway; now and then, not for each object."""
        while self._unwritten or self._unheard:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    await self._hurry.wait()
            if self._unwritten:
                await self._write_confirmations()
            # Each time it is told, the hallway looks through what it has.
            if self._unheard and (self._hurry.is_set() or time.monotonic() - self._rang >= _RING_SECONDS):
                self._unheard, self._rang = False, time.monotonic()
                self._confirmed()

    async def _write_confirmations(self) -> None:
        self._unwritten = False
        try:
            await asyncio.to_thread(self._arrivals.flush)
        except StepwedgeError as error:
            _log.warning("confirmations wait for the database", error=error.name)
            self._unwritten = True
            await asyncio.sleep(1.0)


def record_key(instance: Instance) -> str:
    """Idempotency key of the `received` record of an instance."""
    return arrival.record_key(instance.pseudonym, instance.commitment)


async def record_received(
    recorder: Recorder, instance: Instance, study: str, identification: audit_pb2.Identification | None
) -> int:
    """Hand in the `received` record of an instance; return its index. The same instance gives the same record."""
    public = instance.sop_class_uid in dicom.STORAGE_SOP_CLASSES
    return await recorder.record(
        key=record_key(instance),
        outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
        event=audit_pb2.ReceivedEvent(
            channel=instance.channel,
            sop_class_uid=instance.sop_class_uid if public else "private",
            transfer_syntax_uid=instance.transfer_syntax_uid
            if _is_standard(instance.transfer_syntax_uid)
            else "private",
            size_bytes=instance.size_bytes,
            conflict=instance.conflict_at_receipt,
        ),
        subject=instance.subject,
        study=study,
        series=instance.series_pseudonym,
        instance=instance.pseudonym,
        pins=audit_pb2.Pins(input_commitment=instance.commitment, software_build=software_build()),
        occurred_at=instance.received_at,
        identification=identification,
    )


def _is_standard(uid: str) -> bool:
    return uid.startswith("1.2.840.10008.")
