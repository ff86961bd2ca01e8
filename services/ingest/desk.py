"""Where a process that receives turns to: it reads and keeps the bytes itself, and asks for rows, records and leave.

Its other end is `services.ingest.reception`, in the process that owns the database and the way to the log.
"""

import base64
import time
from collections.abc import Sequence
from typing import Final

from services.ingest.arrival import Names, Said
from services.ingest.availability import Told
from services.ingest.incoming import Announced, Incoming, examine
from services.ingest.intercom import Line, Message
from services.ingest.storage_commitment import Reference
from shared import dicom
from shared.errors import StepwedgeError
from shared.identification import BlindIndex, Identities
from shared.objects import ObjectStore, Zone
from shared.pseudonyms import Pseudonyms

RECORD_SECONDS: Final = 15.0
"""Patience with the row and the record of an object; whoever makes them gives up sooner."""
_ANSWER_SECONDS: Final = 10.0


class Desk:
    """The worker's side of the door; any number of threads may use it.

    Parameters
    ----------
    objects
        Where bytes go, in the zone `original`.
    pseudonyms, identities, blind_index
        Under which names an object is kept, and what is sealed for the log.
    line
        To the process that keeps rows and records.
    max_object_bytes
        Largest object taken.
    """

    def __init__(
        self,
        objects: ObjectStore,
        pseudonyms: Pseudonyms,
        identities: Identities,
        blind_index: BlindIndex,
        line: Line,
        *,
        max_object_bytes: int,
    ) -> None:
        self._objects = objects
        self._names = Names(pseudonyms, self._name_of)
        self._identities = identities
        self._blind_index = blind_index
        self._line = line
        self._max_object_bytes = max_object_bytes
        self._unready = "DEPENDENCY_UNAVAILABLE"

    def hear(self, message: Message) -> None:
        """Whether the database and the log answer, as the other side tells it whenever it changes."""
        self._unready = str(message["error"])

    def ready(self) -> None:
        """Raise STORAGE_FULL, AUDIT_UNAVAILABLE or DEPENDENCY_UNAVAILABLE where an object could not be accepted now."""
        self._objects.check(Zone.ORIGINAL)
        self._line.ask("ask", _ANSWER_SECONDS)

    def open(self) -> Incoming:
        """Begin to receive; raises as `ready`, before anything is taken."""
        if self._unready:
            self._line.ask("ask", _ANSWER_SECONDS)  # perhaps it has changed just now
        return Incoming(self._objects, max_bytes=self._max_object_bytes)

    def keep(
        self, incoming: Incoming, channel: str, announced: Announced, calling_ae_title: str, called_ae_title: str = ""
    ) -> None:
        """Make what was received durable and recorded; blocks.

        The row is written while the bytes become durable; whoever finds a row whose bytes are not makes no record
        (law 2). The record comes after both.

        Raises
        ------
        StepwedgeError
            NOT_DICOM, MALFORMED_DICOM, INVALID_UID, SOP_CLASS_MISMATCH: nothing was kept. STORAGE_FULL,
            DEPENDENCY_UNAVAILABLE, AUDIT_UNAVAILABLE: the sender tries again.
        """
        began = time.monotonic()
        try:
            path = incoming.close()
            sha256 = incoming.sha256
            uids, content_sha256, equipment = examine(path, announced, sha256)
            stored = self._objects.place(Zone.ORIGINAL, path, sha256)
        finally:
            incoming.discard()
        said = Said(equipment, dicom.one_line(calling_ae_title), dicom.one_line(called_ae_title))
        arrival = self._names.arrival(uids, stored.sha256, content_sha256, stored.size, channel, said)
        sealed = self._identities.seal(uids.identity, arrival.subject, arrival.record_key)
        call = self._line.begin(
            "arrived",
            arrival=arrival.as_json(),
            sealed=base64.b64encode(sealed).decode(),
            tokens=[base64.b64encode(token).decode() for token in self._blind_index.tokens(uids.identity)],
            waited=time.monotonic() - began,
        )
        try:
            self._objects.settle(Zone.ORIGINAL, stored.sha256)
        except BaseException:
            self._line.tell("lost", id=call.number)
            raise
        self._line.tell("durable", id=call.number)
        call.wait(RECORD_SECONDS)

    def refused(self, error: StepwedgeError) -> None:
        """An object was refused here, which is counted."""
        self._line.tell("refused", error=error.name)

    def admit(self, connection: int) -> bool:
        """Whether one more association may be open, of all at all workers; `closed` gives its place back."""
        try:
            return bool(self._line.ask("admit", _ANSWER_SECONDS, connection=connection)["admitted"])
        except StepwedgeError:
            return False

    def closed(self, connection: int, how: str) -> None:
        """A connection is over."""
        self._line.tell("closed", connection=connection, how=how)

    def commit(self, ae_title: str, transaction_uid: str, references: Sequence[Reference]) -> int:
        """Make a request for storage commitment durable; return its row."""
        answer = self._line.ask(
            "commit",
            _ANSWER_SECONDS,
            ae_title=ae_title,
            transaction=transaction_uid,
            references=[list(one) for one in references],
        )
        return int(answer["commitment"])

    def announce(self, said: Told) -> None:
        """Note what will come of a study; raises where that cannot be made durable now."""
        self._line.ask(
            "announce",
            _ANSWER_SECONDS,
            study=said.study_instance_uid,
            available=sorted(said.available),
            unavailable=sorted(said.unavailable),
        )

    def outcome(self, commitment: int) -> tuple[list[Reference], list[tuple[str, str, int]]]:
        """What is committed of a request, and what is not with its Failure Reason; recorded."""
        answer = self._line.ask("outcome", RECORD_SECONDS, commitment=commitment)
        committed = [(str(one), str(other)) for one, other in answer["committed"]]
        return committed, [(str(one), str(other), int(reason)) for one, other, reason in answer["failed"]]

    def reported(self, commitment: int) -> None:
        """The peer took the report of a commitment."""
        self._line.tell("reported", commitment=commitment)

    def hurry(self, commitment: int) -> None:
        """The association that asked is gone and took no report."""
        self._line.tell("hurry", commitment=commitment)

    def _name_of(self, study_instance_uid: str) -> str:
        return str(self._line.ask("name", _ANSWER_SECONDS, study=study_instance_uid)["name"])
