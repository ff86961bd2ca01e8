"""What the door hands to the log beside a `received` record: who it is about, sealed, and what it can be found by."""

from collections.abc import Mapping

from services.ingest.tables import Instance
from shared import dicom, dicom_encoding, logs
from shared.errors import StepwedgeError
from shared.identification import BlindIndex, Identities
from shared.objects import ObjectStore, Zone
from stepwedge.audit.v1 import audit_pb2

_log = logs.get_logger(__name__)


class Identifier:
    """Seals identity for the log; keeps nothing of it.

    way_back: whether the log is to be able to lead a pseudonym back to the person (`ingest.seal_identities`). If not,
    what is sealed is empty; a record is still found by a number that one has, which no table of pseudonyms gives.
    """

    def __init__(
        self, objects: ObjectStore, identities: Identities, blind_index: BlindIndex, *, way_back: bool
    ) -> None:
        self._objects = objects
        self._way_back = way_back
        self._identities = identities
        self._blind_index = blind_index

    def seal(self, identity: Mapping[str, str], subject: str, key: str) -> audit_pb2.Identification:
        """For the record with this subject and idempotency key."""
        sealed = self._identities.seal(identity if self._way_back else {}, subject, key)
        return audit_pb2.Identification(sealed=sealed, tokens=self._blind_index.tokens(identity))

    def again(self, instance: Instance, key: str) -> audit_pb2.Identification | None:
        """Out of the object as it was stored, for a record that a process before this one did not live to hand in.

        Nothing of it was kept meanwhile, so that erasure has nothing to reach here. None where the object is not what
        it was: the record is due all the same.
        """
        try:
            # Of the process before this one it is not known whether it came to that.
            self._objects.settle(Zone.ORIGINAL, instance.sha256)
            encoded = dicom_encoding.parse(self._objects.get(Zone.ORIGINAL, instance.sha256))
            identity = dicom.uids_of(encoded).identity
        except StepwedgeError as error:
            if not error.permanent:
                raise
            _log.warning("a record goes without its identity", **logs.describe(error))
            return None
        return self.seal(identity, instance.subject, key)
