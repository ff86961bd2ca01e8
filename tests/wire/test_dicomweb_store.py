"""STOW-RS: what comes in by HTTP is kept and recorded as what comes in by every other door, part by part."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pydicom.uid import generate_uid

from shared.paths import ROOT
from stepwedge.ingest.v1 import tokens_pb2
from tests.wire.cluster import eventually
from tests.wire.dicomweb_house import JSON, STOW_TYPE, Web, dicomweb_house, multipart
from tests.wire.ingest_house import DX, dx, part10
from tests.wire.ports import port


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with dicomweb_house(
        tmp_path_factory.mktemp("stow"), port, toml="max_request_bytes = 3000000", ingest="max_object_bytes = 100000"
    ) as made:
        yield made


def referenced(answer: object) -> list[str]:
    return [item["00081155"]["Value"][0] for item in answer.json.get("00081199", {}).get("Value", [])]


def failed(answer: object) -> dict[str, int]:
    items = answer.json.get("00081198", {}).get("Value", [])
    return {item.get("00081155", {}).get("Value", [""])[0]: item["00081197"]["Value"][0] for item in items}


def test_what_is_stored_is_kept_byte_for_byte_recorded_and_named_in_the_answer(web: Web):
    study = generate_uid(None)
    objects = [dx(study=study, seed=number) for number in range(3)]
    answer = web.stow([part10(ds) for ds in objects])
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    assert referenced(answer) == [str(ds.SOPInstanceUID) for ds in objects]
    item = answer.json["00081199"]["Value"][0]
    assert item["00081150"] == {"vr": "UI", "Value": [DX]}
    assert item["00081190"]["Value"][0] == (
        f"{web.root}/studies/{study}/series/{objects[0].SeriesInstanceUID}/instances/{objects[0].SOPInstanceUID}"
    )
    assert answer.json["00081190"]["Value"] == [f"{web.root}/studies/{study}"]
    # Law 2: at the moment of the answer.
    kept = set(web.house.stored().values())
    assert {part10(ds) for ds in objects} <= kept
    found = web.house.study(study)
    assert found is not None
    assert len(found.instances) == 3
    received = [one for one in web.house.entries() if one.HasField("received") and one.study == found.pseudonym]
    assert [one.received.channel for one in received] == ["STOW"] * 3
    web.house.in_state(study, "DONE")


def test_the_same_object_again_is_the_same_success(web: Web):
    ds = dx()
    for _ in range(2):
        answer = web.stow([part10(ds)])
        assert (answer.status, referenced(answer)) == (200, [ds.SOPInstanceUID])
    found = web.house.study(ds.StudyInstanceUID)
    assert found is not None
    assert len(found.instances) == 1


def test_one_bad_part_does_not_sink_the_rest(web: Web):
    good, other = dx(seed=1), dx(seed=2)
    cut = part10(dx(seed=3))[:-40]
    lies = dx(seed=4)
    lies.Modality = "CT"
    huge = dx(seed=5)
    huge.PixelData = bytes(120_000)
    answer = web.stow([part10(good), b"not DICOM at all", cut, part10(lies), part10(huge), b"", part10(other)])
    assert answer.status == 202
    assert referenced(answer) == [good.SOPInstanceUID, other.SOPInstanceUID]
    reasons = sorted(item["00081197"]["Value"][0] for item in answer.json["00081198"]["Value"])
    assert reasons == sorted([0xC010, 0xC000, 0xA900, 0xC020, 0xC010])
    assert failed(answer)[lies.SOPInstanceUID] == 0xA900
    assert web.house.incoming_files() == []


def test_an_object_of_another_study_than_the_address_says_is_refused_alone(web: Web):
    ours, other = dx(), dx()
    answer = web.stow([part10(ours), part10(other)], study=ours.StudyInstanceUID)
    assert answer.status == 202
    assert (referenced(answer), failed(answer)) == ([ours.SOPInstanceUID], {other.SOPInstanceUID: 0xA900})
    assert web.house.study(other.StudyInstanceUID) is None
    alone = web.stow([part10(other)], study=ours.StudyInstanceUID)
    assert (alone.status, failed(alone)) == (409, {other.SOPInstanceUID: 0xA900})


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (415, {"Content_Type": "application/dicom"}, b"x"),
        (415, {"Content_Type": None}, b"x"),
        (415, {"Content_Type": STOW_TYPE.replace("application/dicom", JSON)}, b"x"),
        (415, {"Content_Encoding": "gzip"}, b"x"),
        (400, {"Content_Type": 'multipart/related; type="application/dicom"'}, b"x"),
        (400, {"Content_Type": 'multipart/related; type="application/dicom"; boundary="a'}, b"x"),
        (400, {}, b""),
        (400, {}, b"--part-of-a-study--\r\n"),
        (400, {}, b"no boundary in sight"),
        (406, {"Accept": "text/html"}, b"x"),
        (413, {}, bytes(3_000_001)),
    ],
)
def test_a_request_that_is_none_is_refused_with_its_status(web: Web, status: int, headers: dict[str, str], body: bytes):
    answer = web.call("POST", "/studies", body, **{"Content_Type": STOW_TYPE, "Accept": JSON, **headers})
    assert answer.status == status, answer.body
    assert web.house.incoming_files() == []


def test_the_limit_holds_too_where_the_length_is_not_said_and_what_came_whole_before_it_is_kept(web: Web):
    ds = dx()
    body = multipart([part10(ds)]).removesuffix(b"--part-of-a-study--\r\n")
    chunks = iter([body + b"--part-of-a-study\r\n\r\n", *[bytes(100_000)] * 40])
    answer = web.call("POST", "/studies", chunks, Content_Type=STOW_TYPE, Accept=JSON)
    assert answer.status == 413
    eventually(lambda: web.house.study(ds.StudyInstanceUID), 10, what="the whole part")
    assert web.house.incoming_files() == []


def test_a_body_that_ends_too_early_says_what_of_it_is_stored(web: Web):
    good, cut = dx(seed=1), dx(seed=2)
    body = multipart([part10(good), part10(cut)])[:-60]
    answer = web.call("POST", "/studies", body, Content_Type=STOW_TYPE, Accept=JSON)
    assert answer.status == 400
    assert referenced(answer) == [good.SOPInstanceUID]
    assert failed(answer) == {"": 0xC000}
    assert web.house.study(cut.StudyInstanceUID) is None
    assert web.house.incoming_files() == []


def test_a_client_that_hangs_up_in_the_middle_leaves_no_file(web: Web):
    ds = dx()
    connection = web.connect()
    head = multipart([part10(ds)])
    connection.putrequest("POST", "/dicom-web/studies")
    for name, value in (("Authorization", f"Bearer {web.token}"), ("Content-Type", STOW_TYPE)):
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(2_900_000))
    connection.endheaders(head[:-100])
    connection.send(bytes(1 << 20))
    connection.close()
    eventually(lambda: not web.house.incoming_files(), 20, what="no half received file")
    assert web.house.study(ds.StudyInstanceUID) is None


def test_the_answer_comes_as_xml_where_it_is_asked_for(web: Web):
    ds = dx()
    answer = web.stow([part10(ds)], Accept="application/dicom+xml")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/dicom+xml")
    root = ElementTree.fromstring(answer.body)
    assert root.tag == "{http://dicom.nema.org/PS3.19/models/NativeDICOM}NativeDicomModel"
    values = {node.get("keyword"): [value.text for value in node] for node in root.iter() if node.get("keyword")}
    assert values["ReferencedSOPInstanceUID"] == [ds.SOPInstanceUID]


@pytest.mark.parametrize("boundary", ["x", "a b'()+_,-./:=?", "0" * 73, "----=_Part_1_2.3"])
def test_every_boundary_that_the_rfc_allows_is_one_and_orthancs_too(web: Web, boundary: str):
    ds = dx()
    body = b"this is a preamble\r\n" + multipart([part10(ds)], boundary) + b"and this an epilogue"
    body = body.replace(f"--{boundary}\r\n".encode(), f"--{boundary} \t\r\n".encode())
    kind = f'Multipart/Related; Type="application/dicom"; start="<1>"; boundary="{boundary}"'
    answer = web.call("POST", "/studies", body, Content_Type=kind)
    assert (answer.status, referenced(answer)) == (200, [ds.SOPInstanceUID])


def test_who_has_no_good_token_is_refused_and_the_refusal_is_recorded(web: Web):
    ds = part10(dx())
    read_only, other = web.mint("read", client="viewer"), web.mint("store", client="modality-7")
    public, private = other.bearer.rsplit("_", 1)[0], other.bearer.rsplit("_", 1)[1]
    for bearer in ("", "sw_0000000000000000_" + "A" * 43, f"{public}_{'A' * 43}", private, other.bearer + "A"):
        answer = web.stow([ds], Authorization=f"Bearer {bearer}")
        assert answer.status == 401, bearer
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert web.stow([ds], Authorization=None).status == 401
    assert web.stow([ds], Authorization=f"Bearer {read_only.bearer}").status == 403
    assert web.stow([ds], Authorization=f"Bearer {other.bearer}").status == 200
    web.tokens.RevokeToken(tokens_pb2.RevokeTokenRequest(id=other.token.id), timeout=10)
    assert web.stow([ds], Authorization=f"Bearer {other.bearer}").status == 401

    def recorded() -> bool:
        found = [one.refused_call for one in web.house.entries() if one.HasField("refused_call")]
        mine = {(one.method, one.error) for one in found if one.method == "stepwedge.ingest.v1.DicomWeb/Store"}
        return {error for _, error in mine} == {3, 4}

    eventually(recorded, 15, what="the records of the refused calls")
    made = [one.authenticated for one in web.house.entries() if one.HasField("authenticated")]
    acts = [(one.person, one.act, one.by, one.method) for one in made]
    assert ("modality-7", "token_created", "operator", "bearer") in acts
    assert acts[-1] == ("modality-7", "token_revoked", "operator", "bearer")


def test_an_operator_makes_lists_and_revokes_tokens_at_the_command_line(web: Web):
    def command(*words: str) -> str:
        line = [sys.executable, "-m", "cli", "token", *words, "--config", str(web.house.config)]
        return subprocess.run(line, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60).stdout

    bearer = command("create", "viewer-3", "--scope", "store", "--scope", "read", "--days", "30").strip()
    assert web.stow([part10(dx())], Authorization=f"Bearer {bearer}").status == 200
    listed = [json.loads(line) for line in command("list", "--json").splitlines()]
    (made,) = (one for one in listed if one["client"] == "viewer-3")
    assert (made["scopes"], made["revoked_at"]) == (["read", "store"], None)
    assert "revoked" in command("revoke", made["id"])
    assert web.stow([part10(dx())], Authorization=f"Bearer {bearer}").status == 401


def test_plain_http_is_not_spoken_where_tls_is(web: Web):
    with socket.create_connection(web.address, timeout=10) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not line.recv(100).startswith(b"HTTP")
    old = web.context
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("ECDHE-ECDSA-AES128-SHA256:AES128-SHA")
    with socket.create_connection(web.address, timeout=10) as line, pytest.raises(OSError):  # noqa: PT011
        old.wrap_socket(line, server_hostname="localhost")


def test_those_who_have_no_token_do_not_hold_the_places_of_those_who_have(web: Web):
    asked = b"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with ExitStack() as open_ones:
        for _ in range(web.house.settings.ingest.dicomweb.max_requests + 4):
            line = socket.create_connection(web.address, timeout=10)
            secured = open_ones.enter_context(web.context.wrap_socket(line, server_hostname="localhost"))
            secured.sendall(asked)
        assert web.get("/studies").status in (200, 204)


def test_no_token_is_kept_or_logged(web: Web):
    bearer = web.mint("store").bearer
    assert web.stow([part10(dx())], Authorization=f"Bearer {bearer}").status == 200
    assert web.stow([b""], Authorization=f"Bearer {bearer}x").status == 401
    private = bearer.rsplit("_", 1)[1]
    listed = web.tokens.ListTokens(tokens_pb2.ListTokensRequest(), timeout=10)
    assert private not in str(listed)
    for file in web.house.folder.rglob("*"):
        if file.is_file():
            assert private.encode() not in file.read_bytes(), file.name


def test_while_the_log_is_away_nothing_is_taken_and_the_client_is_told_when_to_come_back(web: Web):
    # Last: the log goes away and comes back.
    web.house.stop("audit")
    ds = dx()

    def refused() -> bool:
        answer = web.stow([part10(ds)])
        return answer.status == 503 and "retry-after" in answer.headers and failed(answer) != {}

    eventually(refused, 30, what="a refusal that says to come back")
    assert web.house.incoming_files() == []
    web.house.start("audit")
    eventually(lambda: web.stow([part10(ds)]).status == 200, 30, what="a success")


def test_the_house_is_left_as_it_was(web: Web, tmp_path: Path):
    assert "Traceback" not in web.house.log_text()
