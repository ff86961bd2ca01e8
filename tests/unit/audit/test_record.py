"""The canonical record: what it holds, and all that it refuses."""

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from services.audit import record
from shared.canonical import canonical_json
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from tests.unit.audit.making import Producer, digest, uid


def every_kind() -> Iterator[tuple[Identity, audit_pb2.Record]]:
    """A full record of each kind."""
    ingest, redaction, inference = (Producer(i) for i in (Identity.INGEST, Identity.REDACTION, Identity.INFERENCE))
    yield ingest.identity, ingest.received(1)
    yield ingest.identity, ingest.decided(1, instances=3, revision=2)
    redacted = redaction.record(f"redacted/{digest(1)}/{digest(2)}", study=uid(1), instance=uid(2))
    redacted.redacted.actions.add(action="X", count=12)
    redacted.redacted.method_codes.extend(["113100", "113105"])
    redacted.redacted.burned_in_text_possible = True
    yield redaction.identity, redacted
    refused = redaction.record(f"redacted/{digest(3)}/{digest(2)}")
    refused.redacted.refusal = common_pb2.ERROR_CODE_NOT_REDACTABLE
    yield redaction.identity, refused
    assessed = inference.record(f"assessed/{digest(3)}/{digest(4)}", instance=uid(2))
    assessed.pins.model_sha256 = digest(4)
    assessed.pins.model = "chest-student/0.1.0"
    assessed.pins.execution_provider = "CPUExecutionProvider;intra_op=1"
    assessed.assessed.findings.add(code=common_pb2.REASON_SATURATED, outcome=common_pb2.OUTCOME_PASS)
    assessed.assessed.measurements.add(name="margin_top", value="-12.5", unit="mm")
    assessed.assessed.measurements.add(name="columns", value="1024", unit="{pixels}")
    assessed.assessed.confidence = "0.987654"
    yield inference.identity, assessed
    climbed = inference.record(f"assessed/{digest(3)}/{digest(5)}", instance=uid(2))
    for form, confidence, used in (("served", "0.71", False), ("whole", "0.83", True)):
        climbed.assessed.rungs.add(
            form=form, model_sha256=digest(4), output_sha256=digest(6), confidence=confidence, used=used
        )
    yield inference.identity, climbed
    shadowed = inference.record(f"shadowed/{digest(3)}/{digest(5)}", instance=uid(2))
    shadowed.pins.model = "chest-student/0.2.0"
    shadowed.shadowed.MergeFrom(audit_pb2.ShadowedEvent(assessed_index=4, changed=1, confidence="0.9", agreement="1"))
    shadowed.shadowed.findings.add(code=common_pb2.REASON_SATURATED, outcome=common_pb2.OUTCOME_PASS)
    yield inference.identity, shadowed
    released = inference.record(f"model_released/{digest(7)}")
    released.pins.model = "chest-student/0.2.0"
    released.model_released.MergeFrom(
        audit_pb2.ModelReleasedEvent(
            release_sha256=digest(7), trained_by=f"{'A' * 43}=", approved_by=f"{'B' * 43}=", gates=18, targets_missed=10
        )
    )
    released.model_released.requested_by = "operator"
    yield inference.identity, released
    served = inference.record(f"model_served/{uuid.uuid4()}")
    served.pins.model = "chest-student/0.2.0"
    served.model_served.MergeFrom(
        audit_pb2.ModelServedEvent(release_sha256=digest(7), self_test="exact", shadow="other/1.0.0", released_index=2)
    )
    yield inference.identity, served
    delivered = ingest.record(f"delivered/{uid(1)}/1/archive", study=uid(1))
    delivered.delivered.destination = "archive"
    delivered.delivered.objects = 2
    delivered.delivered.revision = 1
    yield ingest.identity, delivered
    failed = ingest.record(f"failed/{uid(1)}/assess/1/2", study=uid(1))
    failed.failed.step = "assess"
    failed.failed.error = common_pb2.ERROR_CODE_PIXELS_UNDECODABLE
    failed.failed.attempts = 2
    yield ingest.identity, failed
    requeued = ingest.record(f"requeued/{uid(1)}/{uuid.uuid4()}", study=uid(1))
    requeued.requeued.requested_by, requeued.requeued.person = "console", "anna.b"
    yield ingest.identity, requeued
    reviewed = ingest.record(f"reviewed/{uid(1)}/1/{uuid.uuid4()}", study=uid(1))
    reviewed.reviewed.verdict = common_pb2.VERDICT_ACCEPT
    reviewed.reviewed.decided = common_pb2.VERDICT_REVIEW
    reviewed.reviewed.revision = 1
    reviewed.reviewed.decided_index = 3
    reviewed.reviewed.reason = "positioning_acceptable"
    reviewed.reviewed.reviewer = "anna.b"
    reviewed.reviewed.role = "radiographer"
    yield ingest.identity, reviewed
    tested = ingest.record(f"constancy/{uid(1)}/1", study=uid(1))
    tested.constancy.MergeFrom(audit_pb2.ConstancyEvent(baseline_sha256=digest(5), compared=90, drifted=1))
    tested.constancy.values.add(phantom="inverted", name="lung_margin_top", value="-3.5", expected="PASS")
    tested.constancy.requested_by = "operator"
    yield ingest.identity, tested
    held = ingest.record(f"committed/{digest(8)}/{digest(9)}")
    held.committed.MergeFrom(
        audit_pb2.CommittedEvent(request_commitment=digest(8), held=2, missing=1, received_indexes=[4, 5])
    )
    yield ingest.identity, held
    console = Producer(Identity.CONSOLE)
    viewed = console.record(f"viewed/{uuid.uuid4()}", study=uid(1))
    viewed.viewed.person, viewed.viewed.role, viewed.viewed.what = "anna.b", "radiographer", "image"
    viewed.viewed.studies.extend([uid(1), uid(2)])
    viewed.viewed.more_studies = 3
    yield console.identity, viewed
    signed = console.record(f"authenticated/{uuid.uuid4()}")
    signed.authenticated.person, signed.authenticated.act, signed.authenticated.method = "anna.b", "sign_in", "local"
    yield console.identity, signed
    rotated = Producer(Identity.AUDIT).record(f"key-rotated/{uuid.uuid4()}")
    rotated.key_rotated.old_key = f"test.example/log+0123abcd+{'A' * 44}"
    rotated.key_rotated.new_key = f"test.example/log+abcd0123+{'B' * 44}"
    rotated.key_rotated.from_size = 6
    yield Identity.AUDIT, rotated
    log = Producer(Identity.AUDIT)
    asked = {"requested_by": "auditor", "purpose": audit_pb2.PURPOSE_OF_USE_PATRQT}
    erased = log.record(f"erased/{uuid.uuid4()}", subject="SW-" + "A" * 24)
    erased.erased.MergeFrom(audit_pb2.ErasedEvent(**asked, keys=1, identities=3, tokens=2, master_key="ab" * 8))
    yield log.identity, erased
    hold = log.record(f"hold/{uuid.uuid4()}", study=uid(1))
    hold.hold.MergeFrom(audit_pb2.HoldEvent(**asked, act=audit_pb2.HOLD_ACT_SET, hold=str(uuid.uuid4())))
    hold.hold.reference = "LAW-2026-17"
    yield log.identity, hold
    pruned = log.record(f"pruned/{uuid.uuid4()}")
    pruned.pruned.MergeFrom(audit_pb2.PrunedEvent(requested_by="operator", removed=7))
    pruned.pruned.before = "2026-11-22T05:00:00.000000000Z"
    pruned.pruned.classes.append(audit_pb2.RETENTION_CLASS_M6)
    pruned.pruned.ranges.add(first=0, last=6)
    yield log.identity, pruned
    looked_up = log.record(f"identity/{uuid.uuid4()}", subject="SW-" + "A" * 24)
    looked_up.identity_looked_up.MergeFrom(audit_pb2.IdentityLookedUpEvent(**asked, index=5, found=True))
    looked_up.identity_looked_up.person = "anna.b"
    yield log.identity, looked_up
    read = Producer(Identity.AUDIT).record(f"read/{uuid.uuid4()}", study=uid(1))
    read.read.MergeFrom(audit_pb2.ReadEvent(reader="auditor", method="QueryEntries", entries=3, more=True))
    read.read.filters.add(name="study", value=uid(1))
    read.read.filters.add(name="recorded_from", value="2026-11-22T05:00:00.000000000Z")
    yield Identity.AUDIT, read
    refused_call = ingest.record(f"refused/{uuid.uuid4()}")
    refused_call.refused_call.caller, refused_call.refused_call.certificate_sha256 = "pacs", digest(4)
    refused_call.refused_call.method = "stepwedge.ingest.v1.IngestService/RequeueStudy"
    refused_call.refused_call.error = common_pb2.ERROR_CODE_PERMISSION_DENIED
    refused_call.refused_call.count, refused_call.refused_call.window_ms = 900, 59_000
    yield ingest.identity, refused_call
    alert = Producer(Identity.AUDIT).record(f"alert/{uuid.uuid4()}")
    alert.alert.code = audit_pb2.ALERT_CODE_CLOCK_STEP
    alert.alert.clock_step_ms = -5000
    yield Identity.AUDIT, alert


def leaf_of(producer: Identity, made: audit_pb2.Record, **given: Any) -> bytes:
    place = {"index": 5, "entry_id": str(uuid.uuid4()), "recorded_at": record.timestamp(1, 0), "repeats": []}
    return record.leaf(record.prepare(made, producer), **{**place, **given})


def test_every_kind_is_covered_here() -> None:
    kinds = {made.WhichOneof("event") for _, made in every_kind()}
    assert kinds == set(record.KINDS) == set(record.PRODUCERS)


@pytest.mark.parametrize(("producer", "made"), list(every_kind()))
def test_a_record_comes_back_out_of_its_leaf_as_it_was(producer: Identity, made: audit_pb2.Record) -> None:
    leaf = leaf_of(producer, made)
    members = record.parse(leaf)
    assert record.to_record(members, {}) == made
    assert members["producer"] == producer.value
    assert members["index"] == 5


@pytest.mark.parametrize(("producer", "made"), list(every_kind()))
def test_the_leaf_is_what_the_canonical_encoder_of_the_house_writes(producer: Identity, made: audit_pb2.Record) -> None:
    leaf = leaf_of(producer, made, repeats=[3, 4])
    assert canonical_json(json.loads(leaf)) == leaf


@given(
    st.recursive(
        st.integers(-(2**53) + 1, 2**53 - 1)
        | st.booleans()
        | st.text(st.characters(min_codepoint=32, max_codepoint=126)),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(st.characters(min_codepoint=32, max_codepoint=126)), inner, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_the_fast_encoder_and_that_of_the_house_agree_on_what_records_hold(value: object) -> None:
    assert record.encode(value) == canonical_json(value)


def strings(descriptor: Descriptor, seen: set[str]) -> Iterator[str]:
    for one in descriptor.fields:
        if one.type == FieldDescriptor.TYPE_STRING:
            yield f"{descriptor.name}.{one.name}"
        elif one.message_type is not None and one.message_type.full_name not in seen:
            seen.add(one.message_type.full_name)
            yield from strings(one.message_type, seen)


def test_every_string_of_the_contract_has_a_shape_and_no_other() -> None:
    assert set(strings(audit_pb2.Record.DESCRIPTOR, {"google.protobuf.Timestamp"})) == set(record.SHAPES)


IDENTIFYING = [
    "Doe^Jane",
    "Jane Doe",
    "1970-01-01",
    "MRN 0012345",
    "0012345678",
    "jane.doe@example.org",
    "1.2.840.113619.2.55.3.604688",
    "Ärztin",
    "a\nb",
    "a\x00b",
    "a\u2028b",
    "=cmd|' /C calc'!A0",
    "<script>",
    "x" * 300,
]


@pytest.mark.parametrize("place", sorted(record.SHAPES))
def test_no_string_field_takes_free_text(place: str) -> None:
    shape = record._fields(_message(place.split(".")[0]))
    field = next(one for one in shape if one.place == place)
    assert field.shape is not None
    for text in IDENTIFYING:
        assert not field.shape.fullmatch(text), text


def _message(name: str) -> Descriptor:
    return audit_pb2.DESCRIPTOR.message_types_by_name[name]


def refused(producer: Identity, made: audit_pb2.Record) -> StepwedgeError:
    with pytest.raises(StepwedgeError) as raised:
        record.prepare(made, producer)
    return raised.value


CHANGES: dict[str, Callable[[audit_pb2.Record], Any]] = {
    "no event": lambda one: one.ClearField("received"),
    "no key": lambda one: one.ClearField("idempotency_key"),
    "key with a name": lambda one: setattr(one, "idempotency_key", "received/Doe^Jane"),
    "key with a foreign UID": lambda one: setattr(one, "idempotency_key", "received/1.2.840.113619.2.55.3"),
    "key with a long number": lambda one: setattr(one, "idempotency_key", "received/0012345678"),
    "key too long": lambda one: setattr(one, "idempotency_key", "/".join(["a"] * 150)),
    "no incarnation": lambda one: one.ClearField("incarnation"),
    "incarnation that is no UUID": lambda one: setattr(one, "incarnation", "first"),
    "no sequence": lambda one: one.ClearField("sequence"),
    "sequence beyond JSON": lambda one: setattr(one, "sequence", 2**53),
    "no time": lambda one: one.ClearField("occurred_at"),
    "time before 1970": lambda one: one.occurred_at.FromSeconds(-1),
    "nanoseconds out of range": lambda one: setattr(one.occurred_at, "nanos", 1_000_000_000),
    "year 10000": lambda one: setattr(one.occurred_at, "seconds", 253_402_300_800),
    "no outcome": lambda one: one.ClearField("outcome"),
    "unknown outcome": lambda one: setattr(one, "outcome", 99),
    "original study UID": lambda one: setattr(one, "study", "1.2.840.113619.2.55.3.604688"),
    "short UID": lambda one: setattr(one, "instance", "2.25.42"),
    "UID with a path": lambda one: setattr(one, "instance", "2.25.1/../../etc/passwd"),
    "subject by name": lambda one: setattr(one, "subject", "DOE^JANE"),
    "subject by number": lambda one: setattr(one, "subject", "0012345678"),
    "upper-case digest": lambda one: setattr(one.pins, "input_commitment", "AB" * 32),
    "short digest": lambda one: setattr(one.pins, "model_sha256", "ab" * 31),
    "provider with a sentence": lambda one: setattr(one.pins, "execution_provider", "on the old machine"),
    "channel of another kind": lambda one: setattr(one.received, "channel", "FAX"),
    "private SOP class": lambda one: setattr(one.received, "sop_class_uid", "1.2.3.4"),
    "no instance": lambda one: one.ClearField("instance"),
    "size beyond JSON": lambda one: setattr(one.received, "size_bytes", 2**60),
    "trace that is none": lambda one: setattr(one, "trace_id", "ab"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_record_with_a_wrong_field_is_refused_and_its_value_not_repeated(name: str) -> None:
    made = Producer().received(1)
    CHANGES[name](made)
    error = refused(Identity.INGEST, made)
    assert error.code == ErrorCode.ERROR_CODE_INVALID_REQUEST
    for value in ("Doe", "DOE", "0012345678", "113619", "passwd", "old machine"):
        assert value not in error.message


def test_a_field_of_a_later_contract_is_refused_and_not_dropped() -> None:
    made = Producer().received(1)
    data = made.SerializeToString() + b"\xfa\x3f\x03abc"  # field 127, a string
    assert refused(Identity.INGEST, audit_pb2.Record.FromString(data)).code == ErrorCode.ERROR_CODE_INVALID_REQUEST
    nested = made.pins.SerializeToString() + b"\xfa\x3f\x03abc"
    made.pins.ParseFromString(nested)
    assert refused(Identity.INGEST, made).code == ErrorCode.ERROR_CODE_INVALID_REQUEST


@pytest.mark.parametrize(
    ("value", "good"),
    [
        ("0", True),
        ("-1.5", True),
        ("12.345678", True),
        ("1e5", False),
        ("NaN", False),
        ("-", False),
        (".5", False),
        ("01", False),
        ("1.", False),
        ("1.1234567", False),
        ("Infinity", False),
        ("1,5", False),
    ],
)
def test_measured_values_are_plain_decimals(value: str, good: bool) -> None:
    made = Producer(Identity.INFERENCE).record("assessed/a")
    made.assessed.measurements.add(name="margin_top", value=value, unit="mm")
    if good:
        record.prepare(made, Identity.INFERENCE)
    else:
        assert refused(Identity.INFERENCE, made).code == ErrorCode.ERROR_CODE_INVALID_REQUEST


@pytest.mark.parametrize(("producer", "made"), list(every_kind()))
def test_nobody_records_what_another_did(producer: Identity, made: audit_pb2.Record) -> None:
    kind = made.WhichOneof("event")
    assert kind is not None
    for other in Identity:
        if other in record.PRODUCERS[kind]:
            record.prepare(made, other)
        else:
            assert refused(other, made).code == ErrorCode.ERROR_CODE_PERMISSION_DENIED


def test_the_instances_of_a_large_study_are_kept_beside_the_leaf() -> None:
    producer = Producer()
    made = producer.decided(1, instances=3000)
    prepared = producer.prepared(made)
    leaf = record.leaf(prepared, index=0, entry_id="x", recorded_at="y", repeats=[])
    assert len(leaf) < 2000
    ((name, content),) = prepared.attachments.items()
    beside = record.parse(leaf)["event"]["attachment"]
    assert beside == {"count": 3000, "field": "instances", "sha256": name, "size": len(content)}
    assert record.to_record(record.parse(leaf), prepared.attachments) == made


def test_a_list_without_bound_is_refused() -> None:
    made = Producer(Identity.INFERENCE).record("assessed/a")
    made.assessed.findings.extend([audit_pb2.RecordedFinding(code=1, outcome=1)] * 129)  # type: ignore[list-item]
    assert refused(Identity.INFERENCE, made).code == ErrorCode.ERROR_CODE_INVALID_REQUEST


def test_content_ignores_when_and_how_a_record_was_handed_in_and_nothing_else() -> None:
    one = Producer().received(1)
    same = audit_pb2.Record()
    same.CopyFrom(one)
    same.sequence, same.incarnation, same.trace_id = 77, str(uuid.uuid4()), ""
    same.occurred_at.FromSeconds(5)
    same.pins.software_build = "0.2.0"
    content = record.prepare(one, Identity.INGEST).content
    assert record.prepare(same, Identity.INGEST).content == content
    same.received.size_bytes += 1
    assert record.prepare(same, Identity.INGEST).content != content


@pytest.mark.parametrize(
    "leaf",
    [
        b"",
        b"[]",
        b"{}",
        b'{"schema":"stepwedge.record/1","x":NaN}',
        b'{"schema":"stepwedge.record/1","x":1.0}',
        b'{"schema":"stepwedge.record/1","x":-0}',
        b'{"schema":"stepwedge.record/1","schema":"stepwedge.record/1"}',
        b'{"schema": "stepwedge.record/1"}',
        b'{"x":1,"schema":"stepwedge.record/1"}',
        b'{"schema":"stepwedge.record/1","x":"\\u0041"}',
        b'\xef\xbb\xbf{"schema":"stepwedge.record/1"}',
        b'{"schema":"stepwedge.record/2"}',
    ],
)
def test_a_leaf_that_is_not_canonical_is_not_read(leaf: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - several kinds, all of them this
        record.parse(leaf)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_as_a_record_are_refused_or_give_a_leaf_that_is_read_back(data: bytes) -> None:
    made = audit_pb2.Record()
    try:
        made.ParseFromString(data)
    except Exception:
        return
    for producer in (Identity.INGEST, Identity.AUDIT):
        try:
            leaf = leaf_of(producer, made)
        except StepwedgeError:
            continue
        assert record.to_record(record.parse(leaf), {}) == made
