"""Whatever comes to the parsers of the log: an answer or the error that they promise, and never two forms of one."""

import csv
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.audit import record, store
from services.audit.formats import facts, syslog
from services.audit.service import to_filter
from services.audit.store import Filter
from shared.canonical import canonical_json
from shared.errors import StepwedgeError
from shared.identity import Identity
from shared.settings import Audit, WitnessOfLog
from shared.spreadsheet import guard
from shared.transparency import merkle
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import Producer
from tests.unit.audit.test_record import every_kind, leaf_of
from verifier import verify

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LEAVES = [leaf_of(producer, made) for producer, made in every_kind()]
WIRES = [(producer, made.SerializeToString()) for producer, made in every_kind()]

text = st.text(st.characters(codec="utf-8"), max_size=40)
odd_text = st.sampled_from(
    [
        "",
        "\x00",
        "a\x00",
        "=1+1",
        "@x",
        "-1",
        "+1",
        "'x",
        "\r\n",
        "\u2028",
        "\ufeff",
        "\u202e",
        "caf\u00e9",
        "\U0001f4a9",
    ]
)

INSERTED = [b"NaN", b"-0", b"1e3", b'"a":1,', b"\\u0061", b" ", b"\xef\xbb\xbf"]


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals with a few bytes changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        act = draw(st.sampled_from(["change", "cut", "insert", "double"]))
        if act == "change" and place < len(data):
            data[place] ^= draw(st.integers(1, 255))
        elif act == "cut":
            del data[place : place + draw(st.integers(1, 30))]
        elif act == "insert":
            data[place:place] = draw(
                st.binary(max_size=8)
                | st.sampled_from([b"NaN", b"-0", b"1e3", b'"a":1,', b"\\u0061", b" ", b"\xef\xbb\xbf"])
            )
        elif act == "double":
            data[place:place] = data[place : place + 20]
    return bytes(data)


def _or_code(call: Callable[[], Any]) -> Any:
    """What the call gives, or the name of the error that it ends with."""
    try:
        return call()
    except StepwedgeError as error:
        return error.name


def _taken(data: bytes) -> bool:
    try:
        members = record.parse(data)
    except ValueError:
        return False
    assert canonical_json(members) == data, "a record that has two forms"
    return True


def _taken_by_the_verifier(data: bytes) -> bool:
    try:
        value = verify.canonical(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("schema") == record.SCHEMA


@QUICK
@given(mutated(LEAVES) | st.binary(max_size=200))
def test_a_leaf_has_one_form_and_log_and_verifier_agree_on_it(data: bytes) -> None:
    assert _taken(data) == _taken_by_the_verifier(data)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 50_000, b"9" * 100_000, b'{"schema":"x"', b""])
def test_a_leaf_that_is_nested_or_long_beyond_measure_is_none(data: bytes) -> None:
    assert not _taken(data)


@QUICK
@given(st.integers(0, len(WIRES) - 1), st.data())
def test_a_record_on_the_wire_is_taken_whole_or_refused_with_its_code(which: int, data: st.DataObject) -> None:
    producer, wire = WIRES[which]
    try:
        made = audit_pb2.Record.FromString(data.draw(mutated([wire])))
    except DecodeError:
        return
    _prepare(made, producer)


@QUICK
@given(text | odd_text, st.sampled_from(sorted(record.SHAPES)))
def test_any_text_in_any_field_is_of_its_shape_or_refused(value: str, place: str) -> None:
    producer = Producer()
    made = producer.decided(1)
    made.received.channel = "GRPC"
    made = producer.decided(1) if place.startswith("Decided") else producer.received(1)
    message, _, name = place.partition(".")
    target = {"Record": made, "Pins": made.pins, "ReceivedEvent": made.received}.get(message)
    if target is None or (message == "ReceivedEvent" and made.WhichOneof("event") != "received"):
        return
    field = target.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        return
    setattr(target, name, value)
    _prepare(made, Identity.INGEST)


def _prepare(made: audit_pb2.Record, producer: Identity) -> None:
    prepared = _or_code(lambda: record.prepare(made, producer))
    if isinstance(prepared, str):
        assert prepared in ("INVALID_REQUEST", "PERMISSION_DENIED")
        return
    place: dict[str, Any] = {"index": 5, "entry_id": "x", "recorded_at": record.timestamp(1, 0), "repeats": []}
    leaf = record.leaf(prepared, **place)
    assert leaf.isascii()
    assert _taken(leaf)
    facts.read(leaf, merkle.leaf_hash(leaf), "test.example/log")


@QUICK
@given(text | odd_text | st.binary(max_size=60).map(lambda data: data.hex()), st.integers(0, 2**63 - 1))
def test_a_page_token_leads_on_or_is_refused(token: str, last: int) -> None:
    wanted = Filter(study="2.25.1")
    good = store.encode_token(wanted, last)
    assert store.decode_token(good, wanted) == last
    for spoilt in (token, good[:-1], good + "A", good.swapcase(), token + good):
        found = _or_code(lambda spoilt=spoilt: store.decode_token(spoilt, wanted))
        assert found == "INVALID_REQUEST" or -1 <= int(found) < 2**63
    with pytest.raises(StepwedgeError):
        store.decode_token(good, Filter(study="2.25.2"))


@QUICK
@given(
    st.fixed_dictionaries(dict.fromkeys(("study", "subject", "producer", "model_sha256", "actor"), text | odd_text)),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.binary(max_size=20),
)
def test_a_query_becomes_a_filter_or_is_refused(words: dict[str, str], seconds: int, nanos: int, token: bytes) -> None:
    request = audit_pb2.QueryEntriesRequest(**words, token=token)  # type: ignore[arg-type]
    request.recorded_from.seconds, request.recorded_from.nanos = seconds, nanos
    wanted = _or_code(lambda: to_filter(request))
    if isinstance(wanted, Filter):
        assert wanted.recorded_from_us is not None
        assert all(re.fullmatch(r"[!-~]{1,200}", word) for word in words.values() if word)
    else:
        assert wanted == "INVALID_REQUEST"


@QUICK
@given(text | odd_text, text | odd_text, st.integers(0, 2**31))
def test_a_syslog_frame_is_as_long_as_it_says_whatever_is_in_it(host: str, value: str, process: int) -> None:
    members = json.loads(LEAVES[0])
    members["study"] = members["key"] = value or "x"
    leaf = record.encode(members)
    frame = syslog.frame(facts.read(leaf, merkle.leaf_hash(leaf), "test.example/log"), host, process)
    length, _, body = frame.partition(b" ")
    assert int(length) == len(body)
    header, mark, message = body.partition(b"\xef\xbb\xbf<?xml")
    assert mark
    assert len(header.split(b" ")) == 8
    assert header.startswith(b"<85>1 ")
    assert all(0x20 < byte < 0x7F for byte in header.replace(b" ", b""))
    assert b"\n" not in message


@QUICK
@given(text | odd_text)
def test_a_cell_is_no_formula_and_comes_back_as_it_was(value: str) -> None:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow([guard(value), "end"])
    ((cell, end),) = csv.reader(io.StringIO(line.getvalue(), newline=""))
    assert end == "end"
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert (cell.removeprefix("'") if cell.startswith("'") else cell) == value


@QUICK
@given(
    text | odd_text | st.sampled_from(["http://", "https://h:99999", "http://[::1", "ftp://x", "http://h/p?q#f"]), text
)
def test_a_witness_in_the_settings_is_one_or_is_refused(url: str, vkey: str) -> None:
    with pytest.raises(ValidationError):
        Audit(witnesses=[WitnessOfLog(url=url, vkey=vkey)], quorum=1)
