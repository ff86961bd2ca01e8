"""The one way in: an object becomes bytes on disk, a row, and a record in the log, in this order, or nothing at all.

Both doors (DIMSE and gRPC) write what they receive to an `Incoming`, hand it to `Door.keep`, and answer success only
when `Door.record` has returned. A crash between any two steps leaves at most an object without a row, which is
harmless, or a row without a confirmed record, which is recorded again under the same idempotency key.
"""

import asyncio
import errno
import hashlib
import mmap
import re
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydicom.dataset import Dataset
from pydicom.uid import UID

from services.ingest import metrics
from services.ingest.arrivals import Arrivals
from services.ingest.devices import Said
from services.ingest.identification import Identifier
from services.ingest.store import Arrival, StudyStore
from services.ingest.tables import Instance
from shared import dicom, dicom_encoding, logs
from shared.audit import Recorder
from shared.build import software_build
from shared.dicom_encoding import PIXEL_TAGS, Encoded
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone
from shared.pseudonyms import Pseudonyms
from stepwedge.audit.v1 import audit_pb2

_log = logs.get_logger(__name__)

RECORD_SECONDS: Final = 10.0
"""How long a sender waits for the log before it is refused; senders give up after 30 s or more."""

_CONFIRM_SECONDS: Final = 0.1  # for that long a confirmation waits for an arrival to go along with
_RING_SECONDS: Final = 0.5
_CHECK_EVERY_BYTES: Final = 64 << 20  # the low-water mark is looked at again while a large object comes in
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MODALITY: Final = re.compile(r"[A-Z][A-Z0-9_]{0,15}")

_CLASS: Final = 0x00020002  # Media Storage SOP Class UID
_CONTENT_SEQUENCE: Final = 0x0040A730
_ENCAPSULATED_DOCUMENT: Final = 0x00420011

# PS3.3 A.1.4: the Modality that the IOD of an image storage SOP class stands for. Neighbours that vendors mix (film
# radiography and digital; hybrid scanners; angiography and fluoroscopy) share one entry.
_RADIOGRAPHY: Final = frozenset({"CR", "DX", "RG", "IO", "PX", "MG", "RF", "XA", "OT"})
_TOMOGRAPHY: Final = frozenset({"CT", "PT", "NM", "XA", "OT"})
_MAGNETIC: Final = frozenset({"MR", "OT"})
_ULTRASOUND: Final = frozenset({"US", "IVUS", "BDUS", "OT"})
MODALITIES: Final[Mapping[str, frozenset[str]]] = {
    "1.2.840.10008.5.1.4.1.1.1": _RADIOGRAPHY,  # Computed Radiography Image Storage
    "1.2.840.10008.5.1.4.1.1.1.1": _RADIOGRAPHY,  # Digital X-Ray Image Storage - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1": _RADIOGRAPHY,  # Digital X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.1.2": _RADIOGRAPHY,  # Digital Mammography X-Ray Image Storage - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.2.1": _RADIOGRAPHY,  # Digital Mammography X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.2": _TOMOGRAPHY,  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1": _TOMOGRAPHY,  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.4": _MAGNETIC,  # MR Image Storage
    "1.2.840.10008.5.1.4.1.1.4.1": _MAGNETIC,  # Enhanced MR Image Storage
    "1.2.840.10008.5.1.4.1.1.6.1": _ULTRASOUND,  # Ultrasound Image Storage
    "1.2.840.10008.5.1.4.1.1.3.1": _ULTRASOUND,  # Ultrasound Multi-frame Image Storage
    "1.2.840.10008.5.1.4.1.1.20": _TOMOGRAPHY,  # Nuclear Medicine Image Storage
    "1.2.840.10008.5.1.4.1.1.128": _TOMOGRAPHY,  # Positron Emission Tomography Image Storage
}
"""Modalities that do not contradict a SOP class; a class that is not here is contradicted by none."""

_KNOWN_MODALITIES: Final = frozenset().union(*MODALITIES.values()) | {"SR", "PR", "KO", "SEG", "DOC", "ECG"}
"""Modalities that say something definite; any other code contradicts nothing."""
_NAMES: Final = {uid: UID(uid).name for uid in dicom.STORAGE_SOP_CLASSES}
_IMAGES: Final = frozenset(uid for uid, name in _NAMES.items() if "Image Storage" in name)
_DOCUMENTS: Final = frozenset(uid for uid, name in _NAMES.items() if " SR Storage" in name or "Encapsulated" in name)


@dataclass(frozen=True, slots=True)
class Announced:
    """What the sender said it would send (PS3.7 9.3.1.1), to which the data set must keep."""

    sop_class_uid: str
    sop_instance_uid: str


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


class Incoming:
    """A file in the zone `original` that is being received; bounded in size, and gone unless it is kept."""

    def __init__(self, objects: ObjectStore, *, max_bytes: int) -> None:
        self._objects = objects
        self._max_bytes = max_bytes
        self._left_to_check = _CHECK_EVERY_BYTES
        self._digest = hashlib.sha256()
        self._content: tuple[int, Any] | None = None
        self.size = 0
        objects.check(Zone.ORIGINAL)
        self.path: Path = objects.new_temporary(Zone.ORIGINAL)
        with _our_errors():
            self._file: BinaryIO = self.path.open("xb", buffering=1 << 18)

    @property
    def sha256(self) -> str:
        """Digest of what was written, hexadecimal."""
        return self._digest.hexdigest()

    @property
    def content(self) -> tuple[int, str] | None:
        """Where the data set begins and its digest with the transfer syntax; None where `begin_data_set` was not said.

        The digest is that of `examine`.
        """
        return None if self._content is None else (self._content[0], self._content[1].hexdigest())

    def begin_data_set(self, transfer_syntax_uid: str) -> None:
        """What is written from now on is the data set, so that it need not be read again for its digest."""
        self._content = self.size, hashlib.sha256(transfer_syntax_uid.encode() + b"\0")

    def write(self, piece: bytes | memoryview) -> None:
        """Append a piece. Raises OBJECT_TOO_LARGE, STORAGE_FULL; the caller then discards."""
        self.size += len(piece)
        if self.size > self._max_bytes:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE, f"an object over {self._max_bytes} bytes is not taken"
            )
        self._left_to_check -= len(piece)
        if self._left_to_check < 0:
            self._objects.check(Zone.ORIGINAL)
            self._left_to_check = _CHECK_EVERY_BYTES
        with _our_errors():
            self._file.write(piece)
        self._digest.update(piece)
        if self._content is not None:
            self._content[1].update(piece)

    def close(self) -> Path:
        """End the writing; return where the file lies."""
        with _our_errors():
            self._file.close()
        return self.path

    def discard(self) -> None:
        """Remove the file; harmless where it is gone already."""
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


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
        self._pseudonyms = pseudonyms
        self._recorder = recorder
        self._identifier = identifier
        self._max_object_bytes = max_object_bytes
        self.ready = ready
        self._confirmed = confirmed
        self._unheard = False
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
            uids, content_sha256, equipment = examine(path, announced, incoming.content)
            # Law 2: the bytes are durable before a row speaks of them.
            stored = self._objects.put_file(Zone.ORIGINAL, path, incoming.sha256)
        finally:
            incoming.discard()
        device = Said(equipment, dicom.one_line(calling_ae_title))
        arrival = self._arrival(uids, stored.sha256, content_sha256, stored.size, channel, device)
        instance, duplicate = self._arrivals.receive(arrival)
        metrics.RECEIVED_BYTES.labels(channel).inc(stored.size)
        identification = None
        if instance.record_index is None:
            identification = self._identifier.seal(uids.identity, instance.subject, record_key(instance))
        return Kept(instance, uids.study, arrival.study, duplicate, identification)

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
        """Write what goes along with no arrival, and tell the hallway; a few times a second, not for each object."""
        heard = float("-inf")
        while self._unwritten:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CONFIRM_SECONDS):
                    await self._hurry.wait()
            self._unwritten = False
            try:
                await asyncio.to_thread(self._arrivals.flush)
            except StepwedgeError as error:
                _log.warning("confirmations wait for the database", error=error.name)
                self._unwritten = True
                await asyncio.sleep(1.0)
            # At the end of a burst at the latest; each time it is told, the hallway looks through what it has.
            if self._unheard and (not self._unwritten or time.monotonic() - heard >= _RING_SECONDS):
                self._unheard, heard = False, time.monotonic()
                self._confirmed()

    def _arrival(
        self, uids: dicom.Uids, sha256: str, content_sha256: str, size: int, channel: str, device: Said
    ) -> Arrival:
        name = self._pseudonyms
        if name.rotated:  # a late image of a study bears names under the key that named the study
            name = name.naming(uids.study, self._studies.name_of(uids.study))
        return Arrival(
            study_instance_uid=uids.study,
            series_instance_uid=uids.series,
            sop_instance_uid=uids.sop_instance,
            study=name.uid(uids.study),
            series=name.uid(uids.series),
            instance=name.uid(uids.sop_instance),
            subject=name.subject(uids.patient_id, uids.issuer),
            sop_class_uid=uids.sop_class,
            transfer_syntax_uid=uids.transfer_syntax,
            # A code of PS3.3 C.7.3.1.1.1 or nothing: free text in this place could be anything.
            modality=uids.modality if _MODALITY.fullmatch(uids.modality) else "",
            sha256=sha256,
            content_sha256=content_sha256,
            size_bytes=size,
            commitment=name.commitment(sha256),
            channel=channel,
            device=device,
        )


def record_key(instance: Instance) -> str:
    """Idempotency key of the `received` record of an instance."""
    return f"received/{instance.pseudonym}/{instance.commitment}"


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


def examine(
    path: Path, announced: Announced | None, content: tuple[int, str] | None = None
) -> tuple[dicom.Uids, str, dicom.Equipment]:
    """Read what names an object, and check what can be checked at the door.

    `content`: where the data set is thought to begin and the digest that it then has, see `Incoming.content`.
    Returns the UIDs, the digest of transfer syntax and data set, and the device. Memory stays bounded: the file is
    mapped, not read. Raises NOT_DICOM, MALFORMED_DICOM, INVALID_UID, SOP_CLASS_MISMATCH.
    """
    if path.stat().st_size == 0:
        raise dicom_encoding.not_dicom()
    with path.open("rb") as file, _mapped(file) as data:
        encoded = dicom_encoding.parse(data)  # type: ignore[arg-type]  # slices of a mapping are bytes
        uids = dicom.uids(_named(encoded))
        _refuse_mismatch(encoded, uids, announced)
        _refuse_contradictions(uids, {element.tag for element in encoded.data_set})
        equipment = dicom.equipment(encoded)
        del encoded
        begins = data_set_offset(data)
        if content is not None and content[0] == begins:
            return uids, content[1], equipment
        view = memoryview(data)
        try:
            digest = hashlib.sha256(uids.transfer_syntax.encode() + b"\0")
            digest.update(view[begins:])
        finally:
            view.release()
    return uids, digest.hexdigest(), equipment


def data_set_offset(data: "bytes | mmap.mmap") -> int:
    """Where the data set begins: behind preamble and file meta information (PS3.10 7.1), by walking group 0002.

    0 where the group does not walk, so that two such files are the same only where all their bytes are.
    """
    pos = 132 if data[128:132] == b"DICM" else 0
    end = len(data)
    while data[pos : pos + 2] == b"\x02\x00":
        if end - pos < 12:
            return 0
        vr = bytes(data[pos + 4 : pos + 6]).decode("latin-1")
        if vr in dicom_encoding.SHORT_VRS:
            pos += 8 + int.from_bytes(data[pos + 6 : pos + 8], "little")
        elif vr in dicom_encoding.LONG_VRS:
            pos += 12 + int.from_bytes(data[pos + 8 : pos + 12], "little")
        else:  # some writers make it implicit
            pos += 8 + int.from_bytes(data[pos + 4 : pos + 8], "little")
        if pos > end:
            return 0
    return pos


def _named(encoded: Encoded) -> Dataset:
    """The few elements that name an object, as a pydicom data set; nothing else is converted."""
    few = Encoded(
        encoded.meta,
        [element for element in encoded.data_set if element.tag in dicom.NAMING_TAGS],
        encoded.transfer_syntax,
        implicit=encoded.implicit,
        little=encoded.little,
        preamble=encoded.preamble,
    )
    named: Dataset = dicom.dataset_of(few, pixels=False)
    return named


def _refuse_mismatch(encoded: Encoded, uids: dicom.Uids, announced: Announced | None) -> None:
    """The command set (PS3.7 9.3.1.1), the file meta information (PS3.10 7.1) and the data set name one object."""
    # Of the file meta information only the class is held against the data set: files whose instance UID there was
    # left behind by an editor are common, and the data set is what counts.
    said = [bytes(element.value).rstrip(b"\0 ").decode("latin-1") for element in encoded.meta if element.tag == _CLASS]
    claims = [(claimed, uids.sop_class) for claimed in said if claimed]
    if announced is not None:
        claims += [(announced.sop_class_uid, uids.sop_class), (announced.sop_instance_uid, uids.sop_instance)]
    if any(claimed != real for claimed, real in claims):
        raise _mismatch("the data set is not the object that was announced")


def _refuse_contradictions(uids: dicom.Uids, tags: Set[int]) -> None:
    """An SOP class that lies about its content. What is merely incomplete is let in and found not assessable later."""
    modalities = MODALITIES.get(uids.sop_class)
    if modalities and uids.modality in _KNOWN_MODALITIES and uids.modality not in modalities:
        raise _mismatch("the modality is not one of the SOP class")
    pixels = not tags.isdisjoint(PIXEL_TAGS)
    document = _CONTENT_SEQUENCE in tags or _ENCAPSULATED_DOCUMENT in tags
    if uids.sop_class in _IMAGES and document and not pixels:
        raise _mismatch("an image SOP class holds a document")
    if uids.sop_class in _DOCUMENTS and pixels:
        raise _mismatch("a document SOP class holds pixel data")


def _mismatch(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_SOP_CLASS_MISMATCH, words)


@contextmanager
def _mapped(file: BinaryIO) -> Iterator[mmap.mmap]:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        yield data
    finally:
        # Views that an exception's frames still hold keep the mapping alive; it goes with them.
        with suppress(BufferError):
            data.close()


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StepwedgeError(ErrorCode.ERROR_CODE_STORAGE_FULL, "no space is left for what is received") from None
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "what is received cannot be written"
        ) from None
