"""The log in other tools' formats, each read by a reader not of ours: csv, fhir.resources, lxml, a syslog parser."""

import base64
import csv
import io
import json
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from services.audit import record as records
from services.audit import store
from services.audit.formats import comma_separated, dicom, facts, fhir, stream, syslog
from services.audit.formats.stream import Format
from services.audit.reading import newest
from services.audit.store import Store
from shared import database
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.transparency import merkle
from stepwedge.audit.v1 import audit_pb2
from stepwedge.common.v1 import common_pb2
from tests.unit.audit.making import ORIGIN, Producer, close, digest, fill, open_log, uid

etree = pytest.importorskip("lxml.etree", reason="needs the package lxml")
audit_events = pytest.importorskip("fhir.resources.R4B.auditevent", reason="needs the package fhir.resources")
parser = pytest.importorskip("syslog_rfc5424_parser", reason="needs the package syslog-rfc5424-parser")

GRAMMAR = etree.RelaxNG(etree.parse(Path(__file__).with_name("test_formats_message.rng")))
DOCUMENT = Path(__file__).parents[3] / "docs" / "auditor.md"
KINDS = sorted(facts.VOCABULARY)
_OF_THE_LOG = ("ERASED", "HOLD", "PRUNED", "IDENTITY_LOOKED_UP")
PRODUCER = {
    **dict.fromkeys(_OF_THE_LOG, Identity.AUDIT),
    "REDACTED": Identity.REDACTION,
    "ASSESSED": Identity.INFERENCE,
    "SHADOWED": Identity.INFERENCE,
    "MODEL_RELEASED": Identity.INFERENCE,
    "MODEL_SERVED": Identity.INFERENCE,
    "ALERT": Identity.AUDIT,
    "KEY_ROTATED": Identity.AUDIT,
    "READ": Identity.AUDIT,
    "REFUSED_CALL": Identity.REDACTION,
    "VIEWED": Identity.CONSOLE,
    "AUTHENTICATED": Identity.CONSOLE,
}


def _fill(message: Any, sample: Mapping[str, Any]) -> None:
    """Give every field of a message a value: that of the sample where it has one."""
    for one in message.DESCRIPTOR.fields:
        place = f"{message.DESCRIPTOR.name}.{one.name}"
        if one.type == FieldDescriptor.TYPE_MESSAGE:
            _fill(getattr(message, one.name).add(), sample)
            continue
        value = sample.get(place, 5 if one.type != FieldDescriptor.TYPE_ENUM else 1)
        if one.type == FieldDescriptor.TYPE_BOOL:
            value = True
        if one.type == FieldDescriptor.TYPE_STRING and place not in sample:
            value = digest(5)
        if one.is_repeated:
            getattr(message, one.name).extend([value, value])
        else:
            setattr(message, one.name, value)


SAMPLE: Mapping[str, Any] = {
    "Pins.model": "chest-student/0.1.0",
    "Pins.preprocessing": "chest/1.0",
    "Pins.profile_edition": "2026c",
    "Pins.execution_provider": "CPUExecutionProvider;intra_op=1",
    "Pins.software_build": "0.1.0+0123456789abcdef",
    "ActionCount.action": "X/Z/D",
    "ActionTags.action": "X/Z/D",
    "ActionTags.tags": "00100010",
    "ReceivedEvent.channel": "DIMSE",
    "ReceivedEvent.sop_class_uid": "1.2.840.10008.5.1.4.1.1.1.1",
    "ReceivedEvent.transfer_syntax_uid": "1.2.840.10008.1.2.1",
    "RedactedEvent.method_codes": "113100",
    "RedactedEvent.key_id": "K7Q2ABCD",
    "BlankedArea.reason": "text",
    "RedactedEvent.refusal": common_pb2.ERROR_CODE_NOT_REDACTABLE,
    "RecordedValue.name": "lung_margin_top",
    "RecordedValue.value": "-4.25",
    "RecordedValue.unit": "mm",
    "AssessedEvent.confidence": "0.93",
    "AssessedRung.form": "whole",
    "AssessedRung.confidence": "0.88",
    "ModelReleasedEvent.trained_by": f"{'A' * 43}=",
    "ModelReleasedEvent.approved_by": f"{'B' * 43}=",
    "ModelReleasedEvent.requested_by": "operator",
    "ModelServedEvent.self_test": "exact",
    "ModelServedEvent.shadow": "chest-student/1.0.0",
    "ShadowedEvent.confidence": "0.9",
    "ShadowedEvent.agreement": "0.98",
    "DecidedInstance.instance": uid(7),
    "DeliveredEvent.destination": "archive",
    "DeliveredEvent.contents": "SR",
    "DeliveredEvent.routes": "rejects",
    "FailedEvent.step": "deliver",
    "FailedEvent.error": common_pb2.ERROR_CODE_DEPENDENCY_UNAVAILABLE,
    "RequeuedEvent.requested_by": "console",
    "RequeuedEvent.person": "anna.b",
    "ReviewedEvent.reason": "positioning_acceptable",
    "ReviewedEvent.reviewer": "anna.b",
    "ReviewedEvent.role": "radiographer",
    "ViewedEvent.person": "anna.b",
    "ViewedEvent.role": "radiographer",
    "ViewedEvent.what": "study",
    "ViewedEvent.studies": uid(9),
    "AuthenticatedEvent.person": "anna.b",
    "AuthenticatedEvent.role": "auditor",
    "AuthenticatedEvent.act": "sign_in",
    "AuthenticatedEvent.method": "local",
    "AuthenticatedEvent.by": "admin",
    "DecidedEvent.sites": "north",
    "DecidedEvent.unmet_rules": "chest",
    "DecidedEvent.forced_by": "anna.b",
    "ConstancyEvent.requested_by": "operator",
    "DriftedValue.phantom": "inverted",
    "DriftedValue.name": "lung_margin_top",
    "DriftedValue.value": "-3.5",
    "DriftedValue.expected": "PASS",
    "ReadEvent.person": "anna.b",
    "ReadFilter.name": "study",
    "ReadFilter.value": uid(9),
    "ReadEvent.reader": "auditor",
    "ReadEvent.method": "QueryEntries",
    "ReadEvent.refusal": common_pb2.ERROR_CODE_INVALID_REQUEST,
    "RefusedCallEvent.caller": "pacs",
    "RefusedCallEvent.method": "stepwedge.audit.v1.AuditService/GetEntry",
    "RefusedCallEvent.error": common_pb2.ERROR_CODE_PERMISSION_DENIED,
    "KeyRotatedEvent.old_key": f"test.example/log+0123abcd+{'A' * 44}",
    "KeyRotatedEvent.new_key": f"test.example/log+abcd0123+{'B' * 44}",
    **{
        f"{event}.{name}": value
        for event in ("ErasedEvent", "HoldEvent", "PrunedEvent", "IdentityLookedUpEvent")
        for name, value in (("requested_by", "auditor"), ("person", "anna.b"), ("reference", "ERA-2026-17"))
    },
    "ErasedEvent.master_key": "0123456789abcdef",
    "HoldEvent.hold": "01234567-89ab-cdef-0123-456789abcdef",
    "PrunedEvent.before": "2026-11-22T05:00:00.000000000Z",
    "AlertEvent.about": "ingest",
    "AlertEvent.incarnation": "01234567-89ab-cdef-0123-456789abcdef",
    "AlertEvent.code": audit_pb2.ALERT_CODE_CLOCK_STEP,
    "AlertEvent.clock_step_ms": -5000,
}


def full_leaf(kind: str, outcome: str = "SUCCESS") -> bytes:
    """A record of a kind with every field set, as the log writes it."""
    producer = Producer(PRODUCER.get(kind, Identity.INGEST))
    made = producer.record(
        f"{kind.lower()}/{uid(1)}",
        study=uid(9),
        series=uid(8),
        instance=uid(1),
        subject="SW-" + "A" * 24,
        trace_id="ab" * 16,
    )
    made.outcome = audit_pb2.EventOutcome.Value(f"EVENT_OUTCOME_{outcome}")
    _fill(made.pins, SAMPLE)
    _fill(getattr(made, kind.lower()), SAMPLE)
    prepared = producer.prepared(made)
    moment = "2026-11-22T05:00:00.123456789Z"
    entry_id = "019386a0-0000-7000-8000-000000000001"
    clock = {"source": "SYNCHRONIZED", "offset_us": -12, "max_error_us": 4000}
    return records.leaf(prepared, index=7, entry_id=entry_id, recorded_at=moment, repeats=[3, 4], clock=clock)


def event(leaf: bytes) -> facts.Event:
    """What the formats are made of."""
    return facts.read(leaf, merkle.leaf_hash(leaf), ORIGIN)


def altered(leaf: bytes, **members: Any) -> bytes:
    """A leaf that somebody rewrote in the database: canonical, and full of what no field would take."""
    return records.encode({**json.loads(leaf), **members})


def facts_of_csv(line: bytes) -> dict[str, str]:
    """The facts of a row, by a reader that undoes the guard."""
    (cells,) = csv.reader(io.StringIO(line.decode(), newline=""), strict=True)
    named = {name: cell.removeprefix("'") for name, cell in zip(comma_separated.COLUMNS, cells, strict=True) if cell}
    kind = named["kind"].lower()
    found: dict[str, str] = {}
    for name, cell in named.items():
        path = f"event.{name.removeprefix(f'{kind}.')}" if name.startswith(f"{kind}.") else name
        if cell[0] in "[{":
            found.update(facts.flatten(json.loads(cell), "" if name == "other" else path))
        else:
            found[path] = cell
    return found


def facts_of_fhir(line: bytes) -> dict[str, str]:
    """The facts of an AuditEvent, which fhir.resources has accepted."""
    resource = audit_events.AuditEvent.model_validate_json(line)
    (entity,) = [one for one in resource.entity if one.detail]
    return {one.type: one.valueString for one in entity.detail}


def facts_of_dicom(message: bytes) -> dict[str, str]:
    """The facts of an audit message, which the grammar has accepted."""
    tree = etree.fromstring(message)
    GRAMMAR.assertValid(tree)
    return {
        one.get("type"): base64.b64decode(one.get("value"), validate=True).decode()
        for one in tree.iter("ParticipantObjectDetail")
    }


def facts_of_leaf(leaf: bytes) -> dict[str, str]:
    """The facts of the canonical record itself."""
    return {"leaf_hash": merkle.leaf_hash(leaf).hex(), **dict(facts.flatten(json.loads(leaf)))}


@pytest.mark.parametrize("outcome", sorted(facts.OUTCOMES))
@pytest.mark.parametrize("kind", KINDS)
def test_one_record_has_the_same_facts_in_every_format(kind: str, outcome: str) -> None:
    leaf = full_leaf(kind, outcome)
    wanted = facts_of_leaf(leaf)
    assert len(wanted) > 30
    assert facts_of_csv(comma_separated.row(event(leaf))) == wanted
    assert facts_of_fhir(fhir.line(event(leaf))) == wanted
    assert facts_of_dicom(dicom.message(event(leaf))) == wanted


def test_every_kind_and_outcome_of_the_contract_has_its_words() -> None:
    assert set(KINDS) == {name.upper() for name in records.KINDS}
    outcomes = [name.removeprefix("EVENT_OUTCOME_") for name, number in audit_pb2.EventOutcome.items() if number]
    assert sorted(facts.OUTCOMES) == sorted(outcomes)
    for words in facts.VOCABULARY.values():
        assert 110100 <= int(words.event.value) <= 110114
        assert words.action in "CRUDE"


def test_every_field_of_the_contract_has_a_column_and_the_document_names_them_all() -> None:
    columns = set(comma_separated.COLUMNS)
    assert len(columns) == len(comma_separated.COLUMNS)
    for one in audit_pb2.Pins.DESCRIPTOR.fields:
        assert f"pins.{one.name}" in columns
    for kind in records.KINDS:
        for one in audit_pb2.Record.DESCRIPTOR.fields_by_name[kind].message_type.fields:
            assert f"{kind}.{one.name}" in columns
    text = DOCUMENT.read_text().partition("### CSV")[2]
    places = [text.find(f"`{name}`") for name in comma_separated.COLUMNS]
    assert -1 not in places
    assert places == sorted(places), "the document lists the columns in their order"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "'"])
def test_no_cell_begins_like_a_formula(start: str) -> None:
    evil = f'{start}HYPERLINK("http://x",1), and "so" on\r\n;'
    leaf = altered(full_leaf("ALERT"), key=evil, subject=evil, unheard={"of": [evil]})
    (cells,) = csv.reader(io.StringIO(comma_separated.row(event(leaf)).decode(), newline=""), strict=True)
    assert len(cells) == len(comma_separated.COLUMNS)
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]
    assert cells[comma_separated.COLUMNS.index("alert.clock_step_ms")] == "'-5000"
    assert facts_of_csv(comma_separated.row(event(leaf))) == facts_of_leaf(leaf)


def test_lines_of_csv_end_as_the_rfc_says() -> None:
    assert comma_separated.header().decode() == ",".join(comma_separated.COLUMNS) + "\r\n"
    assert comma_separated.row(event(full_leaf("DECIDED"))).endswith(b"\r\n")


def test_an_audit_event_says_who_what_and_how_it_ended() -> None:
    made = fhir.audit_event(event(full_leaf("REDACTED", "SERIOUS_FAILURE")))
    assert made["type"]["system"] == "http://dicom.nema.org/resources/ontology/DCM"
    assert (made["type"]["code"], made["subtype"][0]["code"]) == ("110103", "REDACTED")
    assert (made["action"], made["outcome"], made["outcomeDesc"]) == ("C", "8", "NOT_REDACTABLE")
    assert made["recorded"] == "2026-11-22T05:00:00.123456Z"
    (agent,) = made["agent"]
    assert agent["who"]["identifier"]["value"] == "spiffe://stepwedge/redaction"
    assert agent["requestor"] is True
    assert made["source"]["observer"]["identifier"]["value"] == ORIGIN
    patient, study, record, transaction = made["entity"]
    assert patient["what"] == {
        "type": "Patient",
        "identifier": {"system": "urn:x-stepwedge:subject", "value": "SW-" + "A" * 24},
    }
    assert (patient["type"]["code"], patient["role"]["code"]) == ("1", "1")
    assert study["what"]["identifier"]["value"] == f"urn:oid:{uid(9)}"
    assert (study["type"]["code"], study["role"]["code"], study["lifecycle"]["code"]) == ("2", "4", "7")
    assert record["what"]["identifier"]["value"] == f"urn:uuid:{made['id']}"
    assert transaction["what"]["identifier"]["value"] == "ab" * 16


@pytest.mark.parametrize("member", ["agent", "source", "type", "recorded"])
def test_the_validator_of_fhir_refuses_an_event_without_what_it_must_have(member: str) -> None:
    made = fhir.audit_event(event(full_leaf("DELIVERED")))
    audit_events.AuditEvent.model_validate(made)
    del made[member]
    with pytest.raises(ValueError, match=member):
        audit_events.AuditEvent.model_validate(made)


def test_a_message_of_de_identification_says_so() -> None:
    leaf = full_leaf("REDACTED")
    tree = etree.fromstring(dicom.message(event(leaf)))
    identification = tree.find("EventIdentification")
    assert dict(identification.attrib) == {
        "EventActionCode": "C",
        "EventDateTime": json.loads(leaf)["occurred_at"],
        "EventOutcomeIndicator": "0",
    }
    assert identification.find("EventID").get("csd-code") == "110103"
    participant = tree.find("ActiveParticipant")
    assert participant.get("UserID") == "spiffe://stepwedge/redaction"
    assert tree.find("AuditSourceIdentification").get("AuditSourceID") == ORIGIN
    (study,) = tree.xpath("//ParticipantObjectIdentification[ParticipantObjectIDTypeCode/@csd-code='110180']")
    assert study.get("ParticipantObjectDataLifeCycle") == "7"
    assert study.findtext("ParticipantObjectDescription/Anonymized") == "true"
    assert study.find("ParticipantObjectDescription/SOPClass/Instance").get("UID") == uid(1)


def test_what_redaction_refused_is_not_called_anonymized() -> None:
    tree = etree.fromstring(dicom.message(event(full_leaf("REDACTED", "SERIOUS_FAILURE"))))
    assert tree.find(".//Anonymized") is None
    assert tree.find("EventIdentification").get("EventOutcomeIndicator") == "8"
    assert tree.findtext("EventIdentification/EventOutcomeDescription") == "NOT_REDACTABLE"
    received = etree.fromstring(dicom.message(event(full_leaf("RECEIVED"))))
    assert received.findtext(".//Anonymized") == "false"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'EventOutcomeIndicator="0"', b'EventOutcomeIndicator="5"'),
        (b'EventActionCode="C"', b'EventActionCode="X"'),
        (b'UserIsRequestor="true"', b""),
        (b"AuditSourceIdentification", b"AuditSource"),
        (b'ParticipantObjectDataLifeCycle="7"', b'ParticipantObjectDataLifeCycle="16"'),
        (b' csd-code="110103"', b""),
        (b"<Anonymized>true", b"<Anonymized>perhaps"),
        (b'ParticipantObjectDetail type="key" value="', b'ParticipantObjectDetail type="key" value="!'),
    ],
)
def test_the_grammar_refuses_a_message_that_is_wrong(old: bytes, new: bytes) -> None:
    whole = dicom.message(event(full_leaf("REDACTED")))
    assert GRAMMAR.validate(etree.fromstring(whole))
    assert old in whole
    assert not GRAMMAR.validate(etree.fromstring(whole.replace(old, new)))


HOSTILE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(HOSTILE, st.sampled_from(["key", "subject", "producer", "trace_id", "recorded_at", "incarnation"]))
def test_what_a_forger_wrote_into_the_database_stays_inside_its_field(value: str, member: str) -> None:
    leaf = altered(full_leaf("RECEIVED"), **{member: value})
    made = event(leaf)
    message = dicom.line(made)
    assert message.count(b"\n") == 1
    tree = etree.fromstring(message)
    assert len(tree.findall("ParticipantObjectIdentification")) == 3
    details = {one.get("type"): base64.b64decode(one.get("value")).decode() for one in tree.iter(_DETAIL)}
    assert details[member] == value
    assert fhir.line(made).count(b"\n") == 1
    (cells,) = csv.reader(io.StringIO(comma_separated.row(made).decode(), newline=""), strict=True)
    assert cells[comma_separated.COLUMNS.index(member)].removeprefix("'") == value
    header, _, _ = syslog.frame(made, "host", 1).partition("\ufeff".encode())
    assert header.isascii()
    assert header.count(b" ") == 8


_DETAIL = "ParticipantObjectDetail"


@pytest.mark.parametrize("leaf", [b"", b"{}", b"[1]", b'{"schema":"stepwedge.record/1"}', b"\xff", b"{" * 100])
def test_a_leaf_that_is_no_record_is_refused(leaf: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of json, of decoding, or ours
        event(leaf)


@pytest.mark.parametrize(
    "members", [{"kind": "NEW"}, {"outcome": "GOOD"}, {"event": []}, {"pins": 1}, {"id": None}, {"outcome": []}]
)
def test_a_record_that_this_build_does_not_know_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="can export"):
        event(altered(full_leaf("DECIDED"), **members))


def test_a_frame_is_what_another_parser_of_syslog_reads() -> None:
    leaf = full_leaf("DECIDED")
    whole = syslog.frame(event(leaf), "pacs house\n", 4711)
    length, _, body = whole.partition(b" ")
    assert int(length) == len(body)
    read = parser.SyslogMessage.parse(body.decode())
    assert (read.facility.value, read.severity.value) == (10, 5)
    assert body.startswith(
        b"<85>1 2026-11-22T05:00:00.123456Z pacs?house? stepwedge 4711 DICOM+RFC3881 - \xef\xbb\xbf<?xml"
    )
    assert (read.msgid, read.procid, read.appname) == ("DICOM+RFC3881", 4711, "stepwedge")
    assert facts_of_dicom(read.msg.removeprefix("\ufeff").encode()) == facts_of_leaf(leaf)


def test_a_message_too_long_for_a_receiver_loses_its_lists_and_says_so() -> None:
    producer = Producer()
    prepared = producer.prepared(producer.decided(1, instances=120))
    leaf = records.leaf(prepared, index=0, entry_id="x", recorded_at="2026-11-22T05:00:00.0Z", repeats=[])
    made = event(leaf)
    whole = facts_of_dicom(dicom.message(made))
    assert len(dicom.message(made)) > dicom.MAX_OCTETS
    frame = syslog.frame(made, "host", 1, most=dicom.MAX_OCTETS)
    length, _, body = frame.partition(b" ")
    assert int(length) <= dicom.MAX_OCTETS
    short = facts_of_dicom(body.partition(b"\xef\xbb\xbf")[2])
    omitted = int(short.pop("omitted"))
    assert omitted > 360
    assert len(short) + omitted == len(whole)
    assert short.items() < whole.items()
    assert short["leaf_hash"] == merkle.leaf_hash(leaf).hex()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'log.db'}"


@pytest.fixture
def filled(url: str, tmp_path: Path) -> Iterator[Store]:
    log = open_log(url, tmp_path)
    fill(log, 600)
    yield log.store
    close(log)


def exported(the_store: Store, form: Format) -> bytes:
    with the_store.reading() as connection:
        head = newest(connection)
    return b"".join(stream.export(the_store, head, form))


@pytest.mark.parametrize("form", list(Format))
def test_an_export_holds_every_record_once_and_in_order(filled: Store, form: Format) -> None:
    lines = exported(filled, form).splitlines(keepends=True)
    if form is Format.CSV:
        assert lines.pop(0) == comma_separated.header()
    read = {Format.CSV: facts_of_csv, Format.FHIR: facts_of_fhir, Format.DICOM: facts_of_dicom}[form]
    with filled.reading() as connection:
        rows = store.leaves(connection, 0, 600)
    assert [read(line) for line in lines] == [facts_of_leaf(row.leaf) for row in rows]


@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE entries SET leaf = CAST(replace(CAST(leaf AS TEXT), '_bytes\":1300', '_bytes\":1301') AS BLOB)",
        'UPDATE entries SET leaf = (SELECT leaf FROM entries AS e WHERE e."index" = 5) WHERE "index" = 6',
        "UPDATE entries SET leaf = x'00' WHERE \"index\" = 400",
        'DELETE FROM entries WHERE "index" = 599',
        'DELETE FROM entries WHERE "index" = 3',
    ],
)
def test_what_was_rewritten_in_the_database_is_exported_in_no_format(filled: Store, url: str, attack: str) -> None:
    engine = database.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(attack)
    engine.dispose()
    for form in Format:
        with pytest.raises(StepwedgeError) as raised:
            exported(filled, form)
        assert raised.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT


@pytest.mark.parametrize("form", list(Format))
def test_memory_does_not_grow_with_the_log(
    url: str, tmp_path: Path, form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK", 1 << 16)
    log = open_log(url, tmp_path)
    peaks, sizes = [], []
    for first, count in ((0, 600), (600, 1500)):
        fill(log, count, first=first)
        with log.store.reading() as connection:
            head = newest(connection)
        size = 0
        tracemalloc.start()
        for piece in stream.export(log.store, head, form):
            assert len(piece) <= stream.CHUNK
            size += len(piece)
        sizes.append(size)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    close(log)
    assert sizes[1] - sizes[0] > 1_000_000
    assert peaks[1] - peaks[0] < 300_000
