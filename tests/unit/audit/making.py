"""Records and logs for the tests of the log and of its verifier."""

import uuid
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit import record as records
from services.audit.high_water import HighWater
from services.audit.log import Log
from services.audit.store import Store
from shared.identity import Identity
from shared.transparency.note import Signer
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2

ORIGIN = "test.example/log"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SOFTWARE = "0.1.0+0123456789abcdef"


def uid(number: int) -> str:
    """A de-identified UID, the same for the same number."""
    return f"2.25.{10**30 + number}"


def digest(number: int) -> str:
    """A SHA-256 in hexadecimal, the same for the same number."""
    return f"{number:064x}"


class Producer:
    """One start of one service: numbers its records."""

    def __init__(self, identity: Identity = Identity.INGEST) -> None:
        self.identity = identity
        self.incarnation = str(uuid.uuid4())
        self.sequence = 0

    def record(self, key: str, *, number: bool = True, **fields: object) -> audit_pb2.Record:
        """A record without its event."""
        if number:
            self.sequence += 1
        made = audit_pb2.Record(
            idempotency_key=key,
            incarnation=self.incarnation,
            sequence=self.sequence,
            outcome=audit_pb2.EVENT_OUTCOME_SUCCESS,
            **fields,  # type: ignore[arg-type]
        )
        made.occurred_at.GetCurrentTime()
        made.pins.software_build = SOFTWARE
        return made

    def received(self, number: int, *, study: int = 1) -> audit_pb2.Record:
        """Instance `number` was received."""
        made = self.record(
            f"received/{uid(number)}/{digest(number)}",
            study=uid(9_000_000 + study),
            series=uid(8_000_000 + study),
            instance=uid(number),
            subject="SW-" + "A" * 24,
            trace_id="ab" * 16,
        )
        made.pins.input_commitment = digest(number)
        made.received.channel = "DIMSE"
        made.received.sop_class_uid = "1.2.840.10008.5.1.4.1.1.1.1"
        made.received.transfer_syntax_uid = "1.2.840.10008.1.2.1"
        made.received.size_bytes = 1000 + number
        return made

    def decided(self, study: int, *, instances: int = 1, revision: int = 1) -> audit_pb2.Record:
        """Study number `study` was decided."""
        made = self.record(f"decided/{uid(9_000_000 + study)}/{revision}", study=uid(9_000_000 + study))
        made.pins.policy_sha256 = digest(7)
        made.decided.verdict = common_pb2.VERDICT_REVIEW
        made.decided.revision = revision
        made.decided.reasons.append(common_pb2.REASON_LUNG_MARGIN_TOP)
        for number in range(instances):
            made.decided.instances.add(
                instance=uid(number),
                verdict=common_pb2.VERDICT_REVIEW,
                reasons=[common_pb2.REASON_LUNG_MARGIN_TOP],
                assessed_index=number,
            )
        return made

    def prepared(self, made: audit_pb2.Record) -> records.Prepared:
        """The record, checked."""
        return records.prepare(made, self.identity)


def open_log(url: str, folder: Path, *, key: Ed25519PrivateKey = KEY, origin: str = ORIGIN) -> Log:
    """A log in the database `url` with its high-water file in `folder`, open."""
    log = Log(Store.open(url), Signer(origin, key), HighWater(folder / "high-water"))
    log.open()
    return log


def close(log: Log) -> None:
    """Close a log and its store."""
    log.close()
    log.store.close()


def fill(log: Log, count: int, *, producer: Producer | None = None, first: int = 0) -> list[int]:
    """Append `count` records, several to a batch; their indexes."""
    producer = producer or Producer()
    made = [producer.prepared(producer.received(first + number)) for number in range(count)]
    futures = [log.submit(made[start : start + 100]) for start in range(0, count, 100)]
    return [index for future in futures for index in future.result(30).indexes]
