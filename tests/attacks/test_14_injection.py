"""Attack 14: names, identifiers and queries that would be commands, markup or new lines to whoever reads the log.

From outside they do not come into a record at all. An insider with the real key can sign them into one: then every
export must still carry them as data.
"""

import base64
import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import grpc
import pytest

from services.audit.__main__ import write_export
from services.audit.formats import facts, syslog
from services.audit.formats.stream import Format
from shared.errors import from_rpc
from shared.identity import Identity
from shared.transparency import merkle
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from tests.attacks import insider
from tests.attacks.calling import code_of
from tests.attacks.scene import ONCE, Place, Scene
from tests.unit.audit.making import Producer

HOSTILE = {
    "a formula": "=cmd|' /C calc'!A0",
    "a formula with a plus": "+1 +1",
    "a formula behind a tab": "\t=1+1",
    "a row": 'x"\r\n"7","forged"',
    "a line": "x\n<85>1 - - forged - - - a message of its own",
    "an element": '"/></AuditMessage><AuditMessage a="',
    "an entity": "&lt;!ENTITY x SYSTEM 'file:///etc/passwd'>&x;",
    "CDATA": "]]><script>alert(1)</script>",
    "SQL": "'; DROP TABLE entries; --",
    "JSON": '","outcome":"SUCCESS","x":"',
    "a null": "a\x00b",
    "an escape sequence": "\x1b]0;owned\x07",
    "a byte order mark and separators": "\ufeff\u2028\u2029\x85",
    "a path with a blank": "../../etc/pass wd",
    "a template": "${jndi:ldap://x} {{7*7}}%n%s",
}
FIELDS = ("idempotency_key", "subject", "study", "series", "instance", "trace_id", "incarnation")
FIRST = 40
"""The first of the records that the insider rewrites."""


def test_14_nothing_hostile_comes_into_a_record_and_no_answer_quotes_it(scene: Scene, copy: Place) -> None:
    with scene.town.serving(copy) as service:
        stub = service.stub(Identity.INGEST)
        size = service.checkpoint().size
        for number, text in enumerate(HOSTILE.values()):
            made = Producer().received(95_000)
            setattr(made, FIELDS[number % len(FIELDS)], text)
            made.received.channel = text
            with pytest.raises(grpc.RpcError) as raised:
                stub.Append(audit_pb2.AppendRequest(records=[made]), timeout=20)
            assert from_rpc(raised.value).name == "INVALID_REQUEST"
            assert text not in str(raised.value)
        assert all(text not in leaf.decode() for leaf in insider.leaves_of(copy)[size:] for text in HOSTILE.values())


def test_14_a_hostile_query_is_refused_or_finds_nothing_and_breaks_nothing(scene: Scene, copy: Place) -> None:
    with scene.town.serving(copy) as service:
        stub = service.stub(Identity.AUDITOR)
        for text in HOSTILE.values():
            for request in (
                audit_pb2.QueryEntriesRequest(study=text),
                audit_pb2.QueryEntriesRequest(subject=text, producer=text),
            ):
                assert _found(stub, request) in ("INVALID_REQUEST", 0)
            token = audit_pb2.QueryEntriesRequest(page_token=text)
            assert code_of(lambda token=token: stub.QueryEntries(token, timeout=20)) == "INVALID_REQUEST"
    assert scene.judge(copy.export(), older=scene.export).code == 0


def _found(stub: audit_pb2_grpc.AuditServiceStub, request: audit_pb2.QueryEntriesRequest) -> int | str:
    """How many entries the query finds on its first page, or the code that it is refused with."""
    try:
        return len(stub.QueryEntries(request, timeout=20).entries)
    except grpc.RpcError as error:
        return from_rpc(error).name


@pytest.fixture(scope="module")
def poisoned(scene: Scene) -> Place:
    """A log into which an insider with the real key signed hostile records."""
    place = scene.copy()
    records = insider.leaves_of(place)
    for number, text in enumerate(HOSTILE.values()):
        members = json.loads(records[FIRST + number])
        members.update(key=text, study=text, instance=text, subject=text, trace_id=text)
        members["event"].update(channel=text, sop_class_uid=text)
        members["pins"]["software_build"] = text
        records[FIRST + number] = _encode(members)
    insider.write_anew(place, records)
    return place


def _encode(members: object) -> bytes:
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_14_the_insider_s_hostile_records_are_signed_and_only_the_outside_tells(scene: Scene, poisoned: Place) -> None:
    export = poisoned.export()
    scene.uncaught(export)
    assert scene.judge(export, older=scene.early).code == 5


def test_14_in_csv_each_is_one_row_and_no_cell_is_a_formula(poisoned: Place) -> None:
    text = _exported(poisoned, Format.CSV).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == len(insider.leaves_of(poisoned))
    for number, hostile in enumerate(HOSTILE.values()):
        row = rows[FIRST + number]
        assert row["study"].removeprefix("'") == hostile
        assert row["index"] == str(FIRST + number)
    for row in rows:
        assert None not in row
        assert None not in row.values()
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) for cell in row.values())


def test_14_in_fhir_each_is_one_json_object_on_one_line(poisoned: Place) -> None:
    lines = _exported(poisoned, Format.FHIR).split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == len(insider.leaves_of(poisoned))
    for number, hostile in enumerate(HOSTILE.values()):
        resource = json.loads(lines[FIRST + number])
        assert resource["resourceType"] == "AuditEvent"
        assert hostile in set(_strings(resource))


def _strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def test_14_in_dicom_each_is_one_document_with_its_own_elements_and_no_more(poisoned: Place) -> None:
    lines = _exported(poisoned, Format.DICOM).split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == len(insider.leaves_of(poisoned))
    shape = _shape(ElementTree.fromstring(lines[FIRST + len(HOSTILE)]))
    for number, hostile in enumerate(HOSTILE.values()):
        assert b"<!" not in lines[FIRST + number]
        document = ElementTree.fromstring(lines[FIRST + number])
        assert _shape(document) <= shape | {"ParticipantObjectDescription"}
        carried = [base64.b64decode(one.get("value", "")).decode() for one in document.iter("ParticipantObjectDetail")]
        assert hostile in carried, "base64 carries it whole"


def _shape(document: ElementTree.Element) -> set[str]:
    return {one.tag for one in document.iter()}


@ONCE
def test_14_in_syslog_each_is_one_frame_of_the_length_that_it_says(poisoned: Place) -> None:
    frames = b""
    records = insider.leaves_of(poisoned)[FIRST : FIRST + len(HOSTILE)]
    for leaf in records:
        event = facts.read(leaf, merkle.leaf_hash(leaf), "stepwedge/audit")
        frames += syslog.frame(event, "host\n<0>1 forged", 1)
    count = 0
    while frames:
        length, _, rest = frames.partition(b" ")
        assert re.fullmatch(rb"[1-9][0-9]*", length)
        body, frames = rest[: int(length)], rest[int(length) :]
        assert body.startswith(b"<85>1 ")
        assert b"\n" not in body
        count += 1
    assert count == len(records)


def _exported(place: Place, form: Format) -> bytes:
    out = Path(place.folder / f"export.{form}")
    write_export(place.url, out, form)
    return out.read_bytes()
