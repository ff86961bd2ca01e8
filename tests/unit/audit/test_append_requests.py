"""Whatever a producer hands in is refused with a code, or becomes a leaf: plain words, bounded, read back the same."""

import re
from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.audit import record
from services.audit.tiles import MAX_ENTRY
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.test_record import every_kind

ANSWERS = {ErrorCode.ERROR_CODE_INVALID_REQUEST, ErrorCode.ERROR_CODE_PERMISSION_DENIED}
RECORDS = [(producer, made) for producer, made in every_kind()]

# What an attacker or a defect puts into a word: controls, separators, other scripts and forms, length.
WORDS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=40),
    st.text("\x00\x01\x07\x08\t\n\r\x1b\x7f\x85\u200b\u202e\u2028\ufeff", min_size=1, max_size=8),
    st.text("0123456789abcdefABCDEF./-_+=:{}[]\"'\\", max_size=80),
    st.integers(1, 100_000).map(lambda length: "a" * length),
    st.sampled_from(["0" * 64, "2.25.1" + "0" * 30, "SW-" + "A" * 24, "a/b", "A" * 64, "e\u0301", "\uff41"]),
)
NUMBERS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1]))
LARGE = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**53 - 1, 2**53, 2**63, 2**64 - 1]))

_DRAWN = {
    FieldDescriptor.TYPE_STRING: WORDS,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=64),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_UINT32: NUMBERS,
    FieldDescriptor.TYPE_UINT64: LARGE,
    FieldDescriptor.TYPE_SINT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(-1, 200),
}


def disturb(message: Message, data: st.DataObject, depth: int = 0) -> None:
    """Set one field, somewhere in the message, to something."""
    fields = list(message.DESCRIPTOR.fields)
    set_already = [one for one, _ in message.ListFields()]
    one = data.draw(st.sampled_from(fields if depth == 0 or not set_already else set_already + fields))
    value = getattr(message, one.name)
    if one.type == FieldDescriptor.TYPE_MESSAGE:
        if one.is_repeated:
            for _ in range(data.draw(st.sampled_from([1, 2, 129, 400]))):
                value.add()
            disturb(value[0], data, depth + 1)
        else:
            value.SetInParent()
            disturb(value, data, depth + 1)
    elif one.is_repeated:
        value.extend(
            data.draw(st.lists(_DRAWN[one.type], min_size=1, max_size=3)) * data.draw(st.sampled_from([1, 200]))
        )
    else:
        setattr(message, one.name, data.draw(_DRAWN[one.type]))


def prepared_or_refused(made: audit_pb2.Record, producer: Identity) -> record.Prepared | None:
    """None where it is refused, as it must be: with a code that says so, in words of ours."""
    error: StepwedgeError | None = None
    try:
        return record.prepare(made, producer)
    except StepwedgeError as raised:
        error = raised
    assert error.code in ANSWERS
    assert re.fullmatch(r"[ -~]{1,200}", error.message)
    return None


def leaf_of(prepared: record.Prepared) -> bytes:
    return record.leaf(
        prepared,
        index=2**53 - 1,
        entry_id="019386a0-0000-7000-8000-000000000001",
        recorded_at="2026-11-22T05:00:00.123456789Z",
        repeats=[2**53 - 1] * record.MAX_REPEATS,
        retention="Y10",
        clock={"source": "UNSYNCHRONIZED", "offset_us": -(2**53 - 1), "max_error_us": 2**53 - 1},
    )


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_record_that_was_disturbed_is_refused_with_a_code_or_is_plain_and_bounded(data: st.DataObject) -> None:
    producer, made = data.draw(st.sampled_from(RECORDS))
    changed = audit_pb2.Record()
    changed.CopyFrom(made)
    for _ in range(data.draw(st.integers(1, 3))):
        disturb(changed, data)
    prepared = prepared_or_refused(changed, producer)
    if prepared is None:
        return
    leaf = leaf_of(prepared)
    assert len(leaf) <= MAX_ENTRY
    assert re.fullmatch(rb"[ -~]+", leaf), "printable ASCII only"
    members = record.parse(leaf)
    for attached in prepared.attachments.values():
        assert re.fullmatch(rb"[ -~]+", attached)
    back = record.to_record(members, prepared.attachments)
    assert back.WhichOneof("event") == changed.WhichOneof("event")
    assert back.idempotency_key == changed.idempotency_key


def every_string(message: Message, path: str = "") -> Iterator[tuple[Message, FieldDescriptor]]:
    """Every string field of what is set in a message, and of the messages in it."""
    for one in message.DESCRIPTOR.fields:
        if one.type == FieldDescriptor.TYPE_STRING:
            yield message, one
    for one, value in message.ListFields():
        if one.type == FieldDescriptor.TYPE_MESSAGE and one.message_type.file.package.startswith("stepwedge"):
            for inner in value if one.is_repeated else [value]:
                yield from every_string(inner, f"{path}.{one.name}")


CONTROLS = ["\x00", "\n", "\r\n", "\t", "\x1b[2J", "\x7f", "\u2028", "\u202e", "\ufeff"]


@pytest.mark.parametrize("number", range(len(RECORDS)), ids=[made.WhichOneof("event") for _, made in RECORDS])
def test_no_string_of_any_kind_takes_a_control_character_or_more_than_it_may(number: int) -> None:
    producer, made = RECORDS[number]
    tried = 0
    for position, _ in enumerate(every_string(made)):
        for bad in [*(f"a{control}" for control in CONTROLS), *CONTROLS, "a" * 1025, "0" * 100_000]:
            changed = audit_pb2.Record()
            changed.CopyFrom(made)
            message, one = list(every_string(changed))[position]
            if one.is_repeated:
                getattr(message, one.name).append(bad)
            else:
                setattr(message, one.name, bad)
            with pytest.raises(StepwedgeError) as raised:
                record.prepare(changed, producer)
            assert raised.value.code == ErrorCode.ERROR_CODE_INVALID_REQUEST, one.full_name
            assert bad not in raised.value.message
            tried += 1
    assert tried > 100


def reachable(descriptor: Descriptor, seen: set[str]) -> Iterator[Descriptor]:
    for one in descriptor.fields:
        inner = one.message_type
        if inner is not None and inner.full_name not in seen:
            seen.add(inner.full_name)
            yield inner
            yield from reachable(inner, seen)


def test_json_is_never_so_much_longer_than_the_wire_that_a_short_record_would_not_fit() -> None:
    """`prepare` measures only records that could be too long; the factor it goes by holds for the whole contract."""
    factor = 64
    for descriptor in reachable(audit_pb2.Record.DESCRIPTOR, {"google.protobuf.Timestamp"}):
        for one in descriptor.fields:
            if one.enum_type is not None:
                # One byte of a packed list becomes a name, its quotation marks and a comma.
                assert max(len(value.name) for value in one.enum_type.values) + 3 <= factor
            if one.is_repeated and one.message_type is not None:
                # An empty item takes two bytes, and says every number that it does not hold.
                numbers = [f for f in one.message_type.fields if f.type not in (9, 11, 12, 14) and not f.has_presence]
                assert sum(len(f.name) + 5 + 3 for f in numbers) + 3 <= 2 * factor, one.full_name


@given(st.binary(max_size=300))
def test_bytes_that_parse_as_a_request_are_records_or_are_refused(data: bytes) -> None:
    try:
        request = audit_pb2.AppendStreamRequest.FromString(data)
    except DecodeError:  # the guard answers INVALID_REQUEST
        return
    for one in request.records:
        prepared = prepared_or_refused(one, Identity.INGEST)
        assert prepared is None or len(leaf_of(prepared)) <= MAX_ENTRY
