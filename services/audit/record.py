"""The canonical record: what a producer hands in, checked field by field, and the bytes that become the leaf.

The leaf is canonical JSON (RFC 8785, no floating-point numbers) and is kept verbatim. Its members:

`schema`, `index`, `id` (UUIDv7), `producer`, `recorded_at`, `retention` are the log's; `repeats` lists sequence numbers
of this producer's incarnation that brought nothing new, because their idempotency keys were known; `identity_sha256`
commits to the sealed identity that was handed in beside the record. `key`, `incarnation`,
`sequence`, `occurred_at`, `outcome`, `subject`, `study`, `series`, `instance`, `pins`, `trace_id`, `kind` and `event`
are the producer's. Strings and lists that are empty are left out; numbers and booleans of an event never are.

Free text has no place in it: every string field has a shape in `SHAPES`, and what does not fit is refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from services.audit.tiles import MAX_ENTRY
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import PERSON_NAME, Identity
from stepwedge.audit.v1 import audit_pb2

SCHEMA = "stepwedge.record/1"
"""Names the form of the leaf."""

MAX_RECORD = 3_900_000
"""Longest record that is taken, bytes on the wire; it must fit into an answer of 4 MiB again."""

_LARGEST = 2**53 - 1  # I-JSON (RFC 7493 2.2)
_LATEST = 253_402_300_799  # 9999-12-31T23:59:59Z
_INLINE = 16_384
"""Longest list of instances, in bytes of JSON, that stands in the leaf itself; a longer one is kept beside it."""

_TOKEN = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"  # noqa: S105 - a shape
_HEX = r"[0-9a-f]{32}|[0-9a-f]{64}"
_UID = r"2\.25\.[1-9][0-9]{22,38}"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_VERSION = r"(?:[A-Za-z][A-Za-z_-]{0,63}[/-]?)?[0-9]{1,4}(?:\.[0-9]{1,4}){0,3}(?:[+-][0-9A-Za-z.]{1,64})?"
_NAME = r"(?=[0-9_-]*[a-z])[a-z0-9][a-z0-9_-]{0,62}"
_PERSON = PERSON_NAME  # staff
_ROLE = r"radiographer|operator|auditor|administrator"
_CALLING_ROLE = rf"{_ROLE}|client"  # or a system that calls with a bearer token
_STANDARD_UID = r"1\.2\.840\.10008\.[0-9.]{1,49}|private"
_SUBJECT = r"SW-[A-Z2-7]{24}"
_DECIMAL = r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,6})?"
_PRODUCER = "|".join(identity.value for identity in Identity)
_MOMENT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z"
_MODEL = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}/[0-9A-Za-z][0-9A-Za-z._+-]{0,63}"
_SHARE = r"0(?:\.[0-9]{1,6})?|1(?:\.0{1,6})?"
_PUBLIC_KEY = r"[A-Za-z0-9+/]{43}="
_CALLER = r"[a-z][a-z0-9_-]{0,31}"
REFERENCE = r"[A-Z]{1,4}(?:[-/][0-9]{1,6}){1,4}"
"""Number of a case at the site."""
_VKEY = r"[!-*,-~]{1,200}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{44}"  # C2SP signed-note, 33 bytes in base64
_KEY_PART = rf"(?:{_TOKEN}|{_NAME}|{_HEX}|{_UID}|{_UUID}|{_SUBJECT}|[0-9]{{1,6}})"

SHAPES: Mapping[str, str] = {
    "Record.idempotency_key": rf"(?=.{{1,200}}\Z){_KEY_PART}(?:/{_KEY_PART})*",
    "Record.incarnation": _UUID,
    "Record.subject": rf"{_SUBJECT}|[0-9a-f]{{64}}",
    "Record.study": _UID,
    "Record.series": _UID,
    "Record.instance": _UID,
    "Record.trace_id": r"[0-9a-f]{32}",
    "Pins.input_commitment": r"[0-9a-f]{64}",
    "Pins.deidentified_sha256": r"[0-9a-f]{64}",
    "Pins.model_sha256": r"[0-9a-f]{64}",
    "Pins.model": _MODEL,
    "Pins.preprocessing": _VERSION,
    "Pins.preprocessed_sha256": r"[0-9a-f]{64}",
    "Pins.policy_sha256": r"[0-9a-f]{64}",
    "Pins.calibration_sha256": r"[0-9a-f]{64}",
    "Pins.profile_sha256": r"[0-9a-f]{64}",
    "Pins.profile_edition": r"[0-9]{4}[a-e]",
    "Pins.execution_provider": r"[A-Za-z][A-Za-z0-9_;=.,:+-]{0,199}",
    "Pins.software_build": _VERSION,
    "Pins.output_sha256": r"[0-9a-f]{64}",
    "ActionCount.action": r"[A-Z][A-Z0-9_/*]{0,31}",
    "ActionTags.action": r"[A-Z][A-Z0-9_/*]{0,31}",
    "ActionTags.tags": r"[0-9A-F]{8}",
    "ReceivedEvent.channel": r"DIMSE|GRPC|STOW",
    "ReceivedEvent.sop_class_uid": _STANDARD_UID,
    "ReceivedEvent.transfer_syntax_uid": _STANDARD_UID,
    "RedactedEvent.method_codes": r"[0-9]{6}",
    "RedactedEvent.key_id": r"[A-Z2-7]{8}",
    "BlankedArea.reason": r"[a-z][a-z_-]{0,31}",
    "RecordedValue.name": r"[a-z][a-z0-9_]{0,63}",
    "RecordedValue.value": _DECIMAL,
    "RecordedValue.unit": r"1|%|[A-Za-z{\[][A-Za-z0-9%/.{}\[\]*'_-]{0,23}",
    "AssessedEvent.confidence": _SHARE,
    "AssessedRung.form": r"served|whole",
    "AssessedRung.model_sha256": r"[0-9a-f]{64}",
    "AssessedRung.output_sha256": r"[0-9a-f]{64}",
    "AssessedRung.confidence": _SHARE,
    "ModelReleasedEvent.release_sha256": r"[0-9a-f]{64}",
    "ModelReleasedEvent.trained_by": _PUBLIC_KEY,
    "ModelReleasedEvent.approved_by": _PUBLIC_KEY,
    "ModelReleasedEvent.gates_sha256": r"[0-9a-f]{64}",
    "ModelReleasedEvent.requested_by": _CALLER,
    "ModelServedEvent.release_sha256": r"[0-9a-f]{64}",
    "ModelServedEvent.self_test": r"exact|decisions",
    "ModelServedEvent.shadow": _MODEL,
    "ShadowedEvent.confidence": _SHARE,
    "ShadowedEvent.agreement": _SHARE,
    "DecidedInstance.instance": _UID,
    "DeliveredEvent.destination": _NAME,
    "DeliveredEvent.contents": r"ORIGINAL|SEG|SR|PDF",
    "DeliveredEvent.routes": _NAME,
    "FailedEvent.step": r"[a-z][a-z_]{0,31}",
    "RequeuedEvent.requested_by": r"[a-z][a-z0-9_-]{0,31}",
    "RequeuedEvent.person": _PERSON,
    "ReviewedEvent.reason": r"[a-z][a-z_]{0,63}",
    "ReviewedEvent.reviewer": _PERSON,
    "ReviewedEvent.role": _ROLE,
    "ReviewedEvent.note_commitment": r"[0-9a-f]{64}",
    "ViewedEvent.person": _PERSON,
    "ViewedEvent.role": _CALLING_ROLE,
    "ViewedEvent.what": r"[a-z][a-z_]{0,31}",
    "ViewedEvent.studies": _UID,
    "AuthenticatedEvent.person": _PERSON,
    "AuthenticatedEvent.role": _CALLING_ROLE,
    "AuthenticatedEvent.act": r"[a-z][a-z_]{0,31}",
    "AuthenticatedEvent.method": r"local|oidc|bearer",
    "AuthenticatedEvent.by": _PERSON,
    "DecidedEvent.sites": _NAME,
    "DecidedEvent.unmet_rules": _NAME,
    "DecidedEvent.forced_by": _PERSON,
    "CommittedEvent.request_commitment": r"[0-9a-f]{64}",
    "ConstancyEvent.baseline_sha256": r"[0-9a-f]{64}",
    "ConstancyEvent.requested_by": _CALLER,
    "DriftedValue.phantom": _NAME,
    "DriftedValue.name": r"[a-z][a-z0-9_]{0,63}",
    "DriftedValue.value": rf"{_DECIMAL}|[A-Z][A-Z_]{{0,31}}",
    "DriftedValue.expected": rf"{_DECIMAL}|[A-Z][A-Z_]{{0,31}}",
    **{
        f"{event}.{name}": shape
        for event in ("ErasedEvent", "HoldEvent", "PrunedEvent", "IdentityLookedUpEvent")
        for name, shape in (("requested_by", _CALLER), ("person", _PERSON), ("reference", REFERENCE))
        if (event, name) != ("PrunedEvent", "reference")
    },
    "ErasedEvent.master_key": r"[0-9a-f]{16}",
    "HoldEvent.hold": _UUID,
    "PrunedEvent.before": r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z",
    "ReadFilter.name": r"[a-z][a-z0-9_]{0,31}",
    "ReadFilter.value": rf"{_UID}|{_SUBJECT}|{_HEX}|[A-Z][A-Z0-9_]{{0,31}}|0|[1-9][0-9]{{0,18}}|{_PRODUCER}|{_MOMENT}",
    "ReadEvent.reader": _CALLER,
    "ReadEvent.person": _PERSON,
    "ReadEvent.method": r"[A-Z][A-Za-z]{0,63}",
    "RefusedCallEvent.caller": _CALLER,
    "RefusedCallEvent.certificate_sha256": r"[0-9a-f]{64}",
    "RefusedCallEvent.method": r"[a-z][a-z0-9_.]{0,63}\.[A-Z][A-Za-z]{0,63}/[A-Z][A-Za-z]{0,63}",
    "AlertEvent.about": r"[a-z][a-z0-9_-]{0,31}",
    "AlertEvent.incarnation": _UUID,
    "KeyRotatedEvent.old_key": _VKEY,
    "KeyRotatedEvent.new_key": _VKEY,
}
"""What each string field may hold, as a pattern for the whole value; a field that is not here is refused."""

LONGEST: Mapping[str, int] = {
    "DecidedEvent.instances": 100_000,
    "RedactedEvent.blanked": 300,
    "ActionTags.tags": 1000,
    "PrunedEvent.ranges": 500_000,
    "ViewedEvent.studies": 100,
    "CommittedEvent.received_indexes": 20_000,
}
"""Most items of a repeated field, where it is not `_MANY`."""
_MANY = 128

PRODUCERS: Mapping[str, frozenset[Identity]] = {
    "received": frozenset({Identity.INGEST}),
    "redacted": frozenset({Identity.REDACTION}),
    "assessed": frozenset({Identity.INFERENCE}),
    "shadowed": frozenset({Identity.INFERENCE}),
    "model_released": frozenset({Identity.INFERENCE}),
    "model_served": frozenset({Identity.INFERENCE}),
    "decided": frozenset({Identity.INGEST}),
    "delivered": frozenset({Identity.INGEST}),
    "failed": frozenset({Identity.INGEST, Identity.REDACTION, Identity.INFERENCE}),
    "requeued": frozenset({Identity.INGEST}),
    "alert": frozenset({Identity.AUDIT}),
    "erased": frozenset({Identity.AUDIT}),
    "hold": frozenset({Identity.AUDIT}),
    "pruned": frozenset({Identity.AUDIT}),
    "identity_looked_up": frozenset({Identity.AUDIT}),
    "key_rotated": frozenset({Identity.AUDIT}),
    "read": frozenset({Identity.AUDIT}),
    # Every server of the cluster, of what it refused itself.
    "refused_call": frozenset({Identity.INGEST, Identity.REDACTION, Identity.INFERENCE, Identity.AUDIT}),
    "reviewed": frozenset({Identity.INGEST}),
    "viewed": frozenset({Identity.CONSOLE, Identity.INGEST}),
    "authenticated": frozenset({Identity.CONSOLE, Identity.INGEST}),
    "constancy": frozenset({Identity.INGEST}),
    "committed": frozenset({Identity.INGEST}),
}
"""Who may record what: nobody vouches for another's act."""

KINDS: Mapping[str, int] = {
    name.removeprefix("RECORD_KIND_").lower(): number for name, number in audit_pb2.RecordKind.items() if number
}
"""Member of `Record.event` to the number of its kind."""

_OF_THE_MOMENT = ("key", "incarnation", "sequence", "occurred_at", "trace_id")
"""Members that differ when the same act is recorded again."""

RETENTION: Mapping[str, int] = {
    name.removeprefix("RETENTION_CLASS_"): number for name, number in audit_pb2.RetentionClass.items() if number
}
"""Retention class as a leaf names it to its number."""

_SEALED = range(64, 8193)
_TOKEN_BYTES = 16
_TOKENS = 16


def _invalid(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, message)


class _Field(NamedTuple):
    """One field of a message, as the conversion needs it."""

    name: str
    place: str
    """Message and field, "Pins.model"."""
    type: str
    """"string", "int", "bool", "enum" or "message"."""
    repeated: bool
    optional: bool
    shape: re.Pattern[str] | None
    values: Mapping[int, str]
    """Names of an enum's numbers, without prefix; 0 is not among them."""
    numbers: Mapping[str, int]
    low: int
    """Smallest integer."""


_TYPES = {
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT64: "int",
    FieldDescriptor.TYPE_UINT32: "int",
    FieldDescriptor.TYPE_SINT64: "int",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_MESSAGE: "message",
}


@cache
def _fields(descriptor: Descriptor) -> tuple[_Field, ...]:
    result = []
    for one in descriptor.fields:
        place = f"{descriptor.name}.{one.name}"
        names: dict[int, str] = {}
        if one.enum_type is not None:
            prefix = one.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
            names = {value.number: value.name.removeprefix(prefix) for value in one.enum_type.values if value.number}
        result.append(
            _Field(
                one.name,
                place,
                _TYPES[one.type],
                one.is_repeated,
                one.has_presence and one.type != FieldDescriptor.TYPE_MESSAGE,
                re.compile(SHAPES[place]) if place in SHAPES else None,
                names,
                {name: number for number, name in names.items()},
                -_LARGEST if one.type == FieldDescriptor.TYPE_SINT64 else 0,
            )
        )
    return tuple(result)


def _scalar(one: _Field, value: Any) -> Any:
    """The value as it stands in JSON. Raises INVALID_REQUEST that names the field, never the value."""
    if one.type == "string":
        if one.shape is None or not one.shape.fullmatch(value):
            raise _invalid(f"{one.place} does not have the form that this field takes")
        return value
    if one.type == "int":
        if not one.low <= value <= _LARGEST:
            raise _invalid(f"{one.place} is out of range")
        return value
    if one.type == "enum":
        if value not in one.values:
            raise _invalid(f"{one.place} holds a number without a name")
        return one.values[value]
    return _members(value) if one.type == "message" else value


def _members(message: Message) -> dict[str, Any]:
    """A message as a JSON object."""
    result: dict[str, Any] = {}
    for one in _fields(message.DESCRIPTOR):
        value = getattr(message, one.name)
        if one.repeated:
            if len(value) > LONGEST.get(one.place, _MANY):
                raise _invalid(f"{one.place} has too many items")
            if value:
                result[one.name] = [_scalar(one, item) for item in value]
        elif one.optional:
            if message.HasField(one.name):
                result[one.name] = _scalar(one, value)
        elif one.type in ("int", "bool") or value:
            result[one.name] = _scalar(one, value)
    return result


def encode(obj: object) -> bytes:
    """Canonical JSON of what `prepare` lets through: printable ASCII strings, integers, booleans.

    For these the standard library's encoder writes the same bytes as `shared.canonical` (a test holds it to that), and
    it does so many times faster.
    """
    return _ENCODER.encode(obj).encode()


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False)


def timestamp(seconds: int, nanos: int) -> str:
    """RFC 3339 in UTC with nine digits of a second."""
    return f"{_to_the_second(seconds)}.{nanos:09d}Z"


@lru_cache(maxsize=64)
def _to_the_second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


@dataclass(slots=True)
class Prepared:
    """A record that passed every check and waits for its place in the log."""

    producer: str
    key: str
    incarnation: str
    sequence: int
    kind: str
    members: dict[str, Any]
    """The producer's part of the leaf."""
    attachments: dict[str, bytes] = field(default_factory=dict)
    """What is kept beside the leaf, by its SHA-256."""
    sealed: bytes = b""
    """The sealed identity of the subject; its digest is in `members`."""
    tokens: tuple[bytes, ...] = ()
    """Entries of the blind index."""

    @property
    def content(self) -> dict[str, Any]:
        """What must be equal when the same idempotency key comes again."""
        return content(self.members)


def content(members: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a leaf, or of a producer's members, that says what happened and not when or how it was handed in.

    The software build is left out: a service that was upgraded between two tries records the same act.
    """
    names = ("outcome", "subject", "study", "series", "instance", "kind", "event")
    result = {name: members[name] for name in names if name in members}
    result["pins"] = {name: value for name, value in members.get("pins", {}).items() if name != "software_build"}
    return result


def prepare(record: audit_pb2.Record, producer: Identity) -> Prepared:
    """Check a record and give the producer's part of its leaf.

    Raises
    ------
    StepwedgeError
        INVALID_REQUEST where a field is absent, unknown, too long, out of range or not of its shape;
        PERMISSION_DENIED where this producer may not record such an act. The message names the field only.
    """
    kind = record.WhichOneof("event")
    if kind is None:
        raise _invalid("Record.event is not set")
    if producer not in PRODUCERS[kind]:
        raise StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, f"{producer} may not record that it {kind}")
    size = _refuse_unknown(record)
    members = {
        one.name: _scalar(one, value)
        for one in _TOP
        if (value := getattr(record, one.name)) or one.name in ("idempotency_key", "incarnation")
    }
    key = members.pop("idempotency_key")
    members["key"] = key
    _require("outcome" in members, "Record.outcome")
    _require(record.sequence >= 1, "Record.sequence")
    _require(record.HasField("occurred_at"), "Record.occurred_at")
    members["occurred_at"] = _moment(record.occurred_at.seconds, record.occurred_at.nanos)
    if record.HasField("pins") and (pins := _members(record.pins)):
        members["pins"] = pins
    members["kind"] = kind.upper()
    event = members["event"] = _members(getattr(record, kind))
    _REQUIRED.get(kind, lambda _: None)(record)
    prepared = Prepared(producer.value, key, record.incarnation, record.sequence, kind, members)
    if record.HasField("identification"):
        _take_out_identity(record, prepared)
    _put_beside(event, prepared.attachments)
    # JSON is at most so many times longer than the wire: an enum's number of one byte becomes its name.
    if 64 * size > _ROOM and len(encode(members)) > _ROOM:
        raise _invalid("the record is too long")
    return prepared


def _take_out_identity(record: audit_pb2.Record, prepared: Prepared) -> None:
    """Leave of the identity nothing but the commitment to it."""
    given = record.identification
    _require(bool(record.subject), "Record.subject")
    if len(given.sealed) not in _SEALED:
        raise _invalid("Identification.sealed is too short or too long")
    if len(given.tokens) > _TOKENS or any(len(token) != _TOKEN_BYTES for token in given.tokens):
        raise _invalid("Identification.tokens has too many items, or one of another length")
    prepared.sealed, prepared.tokens = given.sealed, tuple(given.tokens)
    prepared.members["identity_sha256"] = sha256(given.sealed).hexdigest()


MAX_REPEATS = 256
"""Most sequence numbers in `repeats` of one leaf."""

_ROOM = MAX_ENTRY - 1024 - 24 * MAX_REPEATS

_TOP = tuple(
    one
    for one in _fields(audit_pb2.Record.DESCRIPTOR)
    if one.type in ("string", "int", "enum") and one.name != "occurred_at"
)


def _refuse_unknown(record: audit_pb2.Record) -> int:
    """Length of the record on the wire.

    A field that this build does not know must not be dropped in silence: it could be part of what was decided.
    """
    size = record.ByteSize()
    if size > MAX_RECORD:
        raise _invalid("the record is too long")
    record.DiscardUnknownFields()
    if record.ByteSize() != size:
        raise _invalid("the record has a field that this log does not know")
    return size


def _moment(seconds: int, nanos: int) -> str:
    if not 0 <= seconds <= _LATEST or not 0 <= nanos < 1_000_000_000:
        raise _invalid("Record.occurred_at is out of range")
    return timestamp(seconds, nanos)


def _require(condition: bool, place: str) -> None:
    if not condition:
        raise _invalid(f"{place} is not set")


def _require_decided(record: audit_pb2.Record) -> None:
    _require(bool(record.study), "Record.study")
    _require(bool(record.decided.verdict), "DecidedEvent.verdict")
    _require(record.decided.revision >= 1, "DecidedEvent.revision")
    for instance in record.decided.instances:
        _require(bool(instance.instance) and bool(instance.verdict), "DecidedInstance.instance or .verdict")


def _require_received(record: audit_pb2.Record) -> None:
    _require(bool(record.instance), "Record.instance")
    _require(bool(record.received.channel), "ReceivedEvent.channel")


def _require_delivered(record: audit_pb2.Record) -> None:
    _require(bool(record.study), "Record.study")
    _require(bool(record.delivered.destination), "DeliveredEvent.destination")


def _require_failed(record: audit_pb2.Record) -> None:
    _require(bool(record.failed.step), "FailedEvent.step")
    _require(bool(record.failed.error), "FailedEvent.error")


def _require_refused_call(record: audit_pb2.Record) -> None:
    _require(bool(record.refused_call.error), "RefusedCallEvent.error")
    _require(record.refused_call.count >= 1, "RefusedCallEvent.count")


def _require_model_released(record: audit_pb2.Record) -> None:
    event = record.model_released
    for name in ("release_sha256", "trained_by", "approved_by"):
        _require(bool(getattr(event, name)), f"ModelReleasedEvent.{name}")
    _require(bool(record.pins.model), "Pins.model")
    if event.trained_by == event.approved_by:
        raise _invalid("ModelReleasedEvent.approved_by is who trained")


_REQUIRED: Mapping[str, Any] = {
    "model_released": _require_model_released,
    "received": _require_received,
    "decided": _require_decided,
    "delivered": _require_delivered,
    "refused_call": _require_refused_call,
    "failed": _require_failed,
}


def _put_beside(event: dict[str, Any], attachments: dict[str, bytes]) -> None:
    """Replace a list that would not fit into an entry (uint16 length) by its digest."""
    for name in ("instances", "ranges", "attributes"):
        items = event.get(name)
        if items is None:
            continue
        data = encode(items)
        if len(data) <= _INLINE:
            continue
        digest = sha256(data).hexdigest()
        attachments[digest] = data
        del event[name]
        event["attachment"] = {"count": len(items), "field": name, "sha256": digest, "size": len(data)}


_BESIDE = re.compile(rb'"attachment":\{"count":[0-9]+,"field":"[a-z_]+","sha256":"([0-9a-f]{64})"')


def attachment_digests(leaf: bytes) -> list[str]:
    """Digests of what is kept beside a leaf."""
    return [digest.decode() for digest in _BESIDE.findall(leaf)]


def actor(event: Mapping[str, Any]) -> str | None:
    """Who asked or acted, of the members of an event: an account where there is one, else an identity."""
    for name in ("person", "reviewer", "reader", "caller", "requested_by"):
        if value := event.get(name):
            return str(value)
    return None


def leaf(
    prepared: Prepared,
    *,
    index: int,
    entry_id: str,
    recorded_at: str,
    repeats: list[int],
    retention: str = "",
    clock: Mapping[str, Any] | None = None,
) -> bytes:
    """The bytes of the leaf; `clock` is what `shared.clock` says of the clock of `recorded_at`."""
    members = {
        **prepared.members,
        "schema": SCHEMA,
        "index": index,
        "id": entry_id,
        "producer": prepared.producer,
        "recorded_at": recorded_at,
    }
    if repeats:
        members["repeats"] = repeats
    if retention:
        members["retention"] = retention
    if clock is not None:
        members["clock"] = clock
    return encode(members)


def parse(data: bytes) -> dict[str, Any]:
    """The members of a leaf. Raises ValueError for what is not canonical or not of this schema."""
    try:
        members = json.loads(data, parse_float=_no_float, parse_constant=_no_float)
    except RecursionError:
        raise ValueError("nested beyond measure") from None
    if not isinstance(members, dict) or members.get("schema") != SCHEMA or encode(members) != data:
        raise ValueError("not a canonical record")
    return members


def _no_float(_: str) -> None:
    raise ValueError("a floating-point number in a record")


def to_record(members: Mapping[str, Any], attachments: Mapping[str, bytes]) -> audit_pb2.Record:
    """The producer's record out of a leaf's members; a list that was put beside it is put back where it is given."""
    record = audit_pb2.Record(idempotency_key=members["key"])
    for one in _TOP:
        if one.name in members:
            value = members[one.name]
            setattr(record, one.name, one.numbers[value] if one.type == "enum" else value)
    record.occurred_at.FromJsonString(members["occurred_at"])
    if "pins" in members:
        _fill(record.pins, members["pins"])
    event = dict(members["event"])
    beside = event.pop("attachment", None)
    if beside is not None and beside["sha256"] in attachments:
        event[beside["field"]] = json.loads(attachments[beside["sha256"]])
    target = getattr(record, members["kind"].lower())
    target.SetInParent()
    _fill(target, event)
    return record


def _fill(message: Message, members: Mapping[str, Any]) -> None:
    for one in _fields(message.DESCRIPTOR):
        if one.name not in members:
            continue
        value = members[one.name]
        if one.type == "message":
            for item in value:
                _fill(getattr(message, one.name).add(), item)
        elif one.repeated:
            getattr(message, one.name).extend(one.numbers[item] if one.type == "enum" else item for item in value)
        else:
            setattr(message, one.name, one.numbers[value] if one.type == "enum" else value)
