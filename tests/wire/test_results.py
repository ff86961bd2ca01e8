"""Results at real peers: what Orthanc and DCMTK receive is what we made, and says of the study what it should."""

import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import highdicom as hd
import numpy as np
import pytest
from PIL import Image as Picture
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from services.ingest.door import data_set_offset
from services.ingest.results.workshop import DCIODVFY
from shared.objects import Zone
from stepwedge.common.v1 import common_pb2
from stepwedge.inference.v1 import inference_pb2
from stepwedge.ingest.v1 import ingest_pb2
from tests.wire.cluster import eventually
from tests.wire.ingest_house import DX, House, Sender, data_set, dx, house, part10
from tests.wire.orthanc import Orthanc, needs_orthanc_dicomweb, running_orthanc
from tests.wire.ports import port

EXPLICIT = "1.2.840.10008.1.2.1"
SEG, SR, PDF = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.104.1"
SECONDS = 90.0
"""For a study with results on a machine that does much else: the process that makes them starts with the first."""
needs_storescp = pytest.mark.skipif(shutil.which("storescp") is None, reason="needs DCMTK: apt-get install dcmtk")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), title="PACS") as made:
        yield made


@pytest.fixture(scope="module")
def web_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("web"), title="WEB") as made:
        yield made


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc, web_orthanc: Orthanc) -> Iterator[House]:
    """Everything goes to the one Orthanc by C-STORE; what is rejected, to the other by STOW-RS."""
    toml = f"""
max_attempts = 2
[[ingest.destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {orthanc.dimse[1]}
verdicts = ["ACCEPT", "REVIEW", "REJECT"]
send = ["original", "seg", "sr", "pdf"]
[[ingest.destinations]]
name = "web"
url = "{web_orthanc.dicomweb}"
[[ingest.routes]]
name = "rejected"
destinations = ["web"]
verdicts = ["REJECT"]
modalities = ["DX"]
send = ["sr", "seg"]
"""
    with house(tmp_path_factory.mktemp("results"), port, toml) as made:
        yield made


ROWS, COLUMNS = 24, 40


def radiograph(**more: Any) -> Dataset:
    """A radiograph whose sides differ, so that what is turned or cropped shows."""
    ds = dx(**more)
    ds.Rows, ds.Columns = ROWS, COLUMNS
    ds.PatientName = "Müller^Jörg"
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientOrientation = ["L", "F"]
    ds.StudyDate, ds.StudyTime, ds.StudyID = "20260203", "101112", "S-1"
    ds.PixelData = np.random.default_rng(7).integers(0, 4096, (ROWS, COLUMNS), dtype=np.uint16).tobytes()
    return ds


def outlines() -> dict[int, Any]:
    masks = {number: np.zeros((ROWS, COLUMNS), bool) for number in (1, 2, 3, 4)}
    masks[1][3:20, 4:15] = True
    masks[2][3:18, 22:33] = True
    masks[3][10:22, 15:27] = True
    masks[4][2:22, 3:35] = True
    return masks


def assessed_with_outlines(at_home: House, outcome: int = common_pb2.OUTCOME_FAIL) -> Callable[[Any], Any]:
    """What inference answers: four outlines, a finding with a place, an interval and a threshold."""

    def answer(_: Any) -> inference_pb2.AssessInstanceResponse:
        found = inference_pb2.Assessment(rows=ROWS, columns=COLUMNS, confidence=0.93)
        finding = found.findings.add(
            code=common_pb2.REASON_LUNG_MARGIN_TOP, outcome=outcome, detail="2.5 mm – too near.", threshold=5.0
        )
        measurement = common_pb2.Measurement(name="lung_margin_top", value=2.5, unit="mm", low=1.5, high=4.0)
        finding.measurement.CopyFrom(measurement)
        finding.boxes.add(left=3, top=0, width=32, height=2)
        found.measurements.append(measurement)
        found.measurements.add(name="heart_area", value=144.0, unit="mm2")
        for structure, mask in outlines().items():
            buffer = BytesIO()
            Picture.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
            stored = at_home.inference.objects.put(Zone.DEIDENTIFIED, buffer.getvalue())
            reference = common_pb2.ObjectReference(zone=2, sha256=stored.sha256, size_bytes=stored.size)
            found.masks.add(structure=structure, png=reference)
        found.model.name, found.model.version, found.model.sha256 = "chest-student", "0.2.0", "ab" * 32
        return inference_pb2.AssessInstanceResponse(assessment=found, record_index=2)

    return answer


@pytest.fixture
def rejecting(at_home: House) -> Iterator[None]:
    at_home.inference.answers["*"] = assessed_with_outlines(at_home)
    yield
    at_home.inference.answers.clear()


def sent(at_home: House, *objects: Dataset) -> None:
    with Sender(at_home.dimse, [(DX, EXPLICIT)]) as sender:
        for ds in objects:
            assert sender.store(ds).Status == 0


def results(at_home: House, study: str) -> dict[str, list[bytes]]:
    """What ingest made of the study, by SOP Class: its own files, newest last."""
    from services.ingest.store import StudyStore
    from shared import database

    engine = database.create_engine(at_home.settings.ingest.database)
    try:
        from datetime import timedelta

        found: dict[str, list[bytes]] = {}
        stored = at_home.stored()
        for one in StudyStore(engine, quiet=timedelta(seconds=1)).results_of(study):
            found.setdefault(one.sop_class_uid, []).append(stored[one.sha256])
        return found
    finally:
        engine.dispose()


def at_peer(peer: Orthanc, made: bytes) -> bytes:
    uid = str(dcmread(BytesIO(made), stop_before_pixels=True).SOPInstanceUID)
    (name,) = peer.find("Instance", SOPInstanceUID=uid)
    return peer.file(name)


def content(part10: bytes) -> bytes:
    return part10[data_set_offset(part10) :]


def complaints(file: Path) -> list[str]:
    program = Path(sys.prefix) / "bin" / DCIODVFY
    done = subprocess.run([str(program), "-new", str(file)], capture_output=True, text=True)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


@needs_orthanc_dicomweb
def test_orthanc_gives_our_seg_sr_and_pdf_back_unchanged_by_both_ways(
    at_home: House, orthanc: Orthanc, web_orthanc: Orthanc, rejecting: None, tmp_path: Path
):
    ds = radiograph()
    study = str(ds.StudyInstanceUID)
    sent(at_home, ds)
    at_home.in_state(study, "DONE", SECONDS)
    made = results(at_home, study)
    assert {kind: len(files) for kind, files in made.items()} == {SEG: 1, SR: 1, PDF: 1}
    for kind, files in made.items():
        for peer in (orthanc, web_orthanc) if kind != PDF else (orthanc,):
            assert content(at_peer(peer, files[0])) == content(files[0]), kind
        (tmp_path / kind).write_bytes(files[0])
        assert complaints(tmp_path / kind) == []
    (original,) = orthanc.find("Instance", SOPInstanceUID=str(ds.SOPInstanceUID))
    assert content(orthanc.file(original)) == data_set(ds)
    assert web_orthanc.find("Instance", SOPInstanceUID=str(ds.SOPInstanceUID)) == [], "no rule sends originals there"
    assert len(orthanc.find("Study", StudyInstanceUID=study)) == 1, "results lie in the study of the image"
    deliveries = {one.delivered.destination: one.delivered for one in at_home.entries() if one.HasField("delivered")}
    assert list(deliveries["pacs"].contents) == ["ORIGINAL", "SEG", "SR", "PDF"]
    assert deliveries["pacs"].objects == 4
    assert not list(deliveries["pacs"].routes)
    assert list(deliveries["web"].contents) == ["SEG", "SR"]
    assert list(deliveries["web"].routes) == ["rejected"]
    request = ingest_pb2.ExplainStudyRequest(study=ingest_pb2.StudyKey(study_instance_uid=study))
    said = " ".join(step.what for step in at_home.ingest().ExplainStudy(request, timeout=10).steps)
    assert "delivered to web (SEG, SR) by the rule rejected" in said
    assert "delivered to pacs (ORIGINAL, SEG, SR, PDF)." in said


@needs_orthanc_dicomweb
def test_the_segments_lie_on_the_image_where_they_were_drawn(at_home: House, rejecting: None):
    ds = radiograph()
    sent(at_home, ds)
    at_home.in_state(str(ds.StudyInstanceUID), "DONE", SECONDS)
    seg = hd.seg.segread(BytesIO(results(at_home, str(ds.StudyInstanceUID))[SEG][0]))
    frames = seg.pixel_array
    for number, mask in outlines().items():
        assert np.array_equal(frames[number - 1] > 0, mask)
    types = [(one.segment_label, one.segmented_property_type.value) for one in seg.SegmentSequence]
    assert types == [
        ("Right lung field", "39607008"),
        ("Left lung field", "39607008"),
        ("Heart", "80891009"),
        ("Lungs in full", "39607008"),
    ]
    segment = seg.SegmentSequence[0]
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("chest-student", "0.2.0")
    assert "ab" * 32 in algorithm.AlgorithmParameters
    assert segment.TrackingID == "Right lung field"
    assert segment.TrackingUID.startswith("2.25.")
    source = seg.PerFrameFunctionalGroupsSequence[0].get("DerivationImageSequence") or (
        seg.SharedFunctionalGroupsSequence[0].DerivationImageSequence
    )
    assert source[0].SourceImageSequence[0].ReferencedSOPInstanceUID == ds.SOPInstanceUID
    assert str(seg.PatientName) == "Müller^Jörg"
    assert (seg.StudyDate, seg.StudyID, seg.PatientOrientation) == ("20260203", "S-1", ["L", "F"])
    assert "FrameOfReferenceUID" not in seg


@needs_orthanc_dicomweb
def test_the_report_says_what_was_found_and_where_its_proof_stands(at_home: House, rejecting: None):
    ds = radiograph()
    study = str(ds.StudyInstanceUID)
    sent(at_home, ds)
    done = at_home.in_state(study, "DONE", SECONDS)
    report = hd.sr.srread(BytesIO(results(at_home, study)[SR][0]))
    whole, image = report.content.get_image_measurement_groups()
    texts = {item.name.value: item.value for item in whole[0].ContentSequence if item.ValueType == "TEXT"}
    assert texts["RECORD-INDEX"] == str(done.decisions[-1].record_index)
    assert texts["DECISION"] == f"decided/{done.pseudonym}/1"
    assert texts["LOG-ORIGIN"] == at_home.settings.audit.origin
    record = next(one for one in at_home.entries() if one.HasField("decided") and one.study == done.pseudonym)
    assert record.idempotency_key == texts["DECISION"]
    assert next((one.name.meaning, one.value.meaning) for one in whole.get_qualitative_evaluations()) == (
        "Quality Assessment",
        "Reject: repeat while the patient is there",
    )
    (margin,) = [one for one in image.get_measurements() if one.name.value == "M-005"]
    assert (margin.value, margin.unit.value) == (2.5, "mm")
    around = {item.name.value: float(item.value) for item in margin[0].ContentSequence}
    assert around == {"371885007": 1.0, "371886008": 1.5, "THRESHOLD": 5.0}
    segments = report.content.get_planar_roi_measurement_groups()
    assert len(segments) == 4
    seg = dcmread(BytesIO(results(at_home, study)[SEG][0]))
    assert [one.tracking_uid for one in segments] == [one.TrackingUID for one in seg.SegmentSequence]
    referenced = {uid for _, _, uid, _ in report.get_evidence()}
    assert referenced == {ds.SOPInstanceUID, seg.SOPInstanceUID}


@needs_orthanc_dicomweb
def test_the_report_of_a_late_image_names_the_one_before_and_outlines_are_not_sent_again(
    at_home: House, orthanc: Orthanc, rejecting: None
):
    first = radiograph()
    study, series = str(first.StudyInstanceUID), str(first.SeriesInstanceUID)
    sent(at_home, first)
    at_home.in_state(study, "DONE", SECONDS)
    sent(at_home, radiograph(study=study, series=series, seed=5))
    at_home.in_state(study, "DONE", SECONDS, revision=2)
    made = results(at_home, study)
    assert {kind: len(files) for kind, files in made.items()} == {SEG: 2, SR: 2, PDF: 2}
    before, after = (dcmread(BytesIO(one)) for one in made[SR])
    (document,) = after.PredecessorDocumentsSequence
    (of_series,) = document.ReferencedSeriesSequence
    assert of_series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in before
    assert len(orthanc.find("Instance", StudyInstanceUID=study)) == 2 + 2 + 2 + 2
    objects = [one.delivered.objects for one in at_home.entries() if one.idempotency_key.endswith("/2/pacs")]
    assert objects[-1] == 4, "the second image, its outlines, report and page"
    segments = hd.sr.srread(BytesIO(made[SR][1])).content.get_planar_roi_measurement_groups()
    assert len(segments) == 8


@needs_orthanc_dicomweb
def test_results_that_a_peer_sends_back_do_not_go_round_for_ever(at_home: House, orthanc: Orthanc, rejecting: None):
    ds = radiograph()
    study = str(ds.StudyInstanceUID)
    sent(at_home, ds)
    at_home.in_state(study, "DONE", SECONDS)
    before = results(at_home, study)
    with Sender(at_home.dimse, [(SR, EXPLICIT)]) as sender:
        assert sender.store(dcmread(BytesIO(before[SR][0]))).Status == 0
    after = at_home.in_state(study, "DONE", SECONDS, revision=2)
    assert [one.verdict for one in after.decisions] == [common_pb2.VERDICT_REJECT] * 2
    assert [one.instances for one in after.decisions] == [1, 1]
    assert results(at_home, study) == before


@needs_orthanc_dicomweb
def test_a_study_without_anything_assessable_gets_a_report_that_says_so(at_home: House):
    from shared.errors import ErrorCode, StepwedgeError

    at_home.redaction.answers["*"] = StepwedgeError(ErrorCode.ERROR_CODE_NOT_REDACTABLE, "no")
    try:
        ds = radiograph()
        sent(at_home, ds)
        at_home.in_state(str(ds.StudyInstanceUID), "DONE", SECONDS)
    finally:
        at_home.redaction.answers.clear()
    made = results(at_home, str(ds.StudyInstanceUID))
    assert set(made) == {SR, PDF}
    _, image = hd.sr.srread(BytesIO(made[SR][0])).content.get_image_measurement_groups()
    assert ("Identity cannot be removed", "Not assessable") in {
        (one.name.meaning, one.value.meaning) for one in image.get_qualitative_evaluations()
    }


class _Stow(BaseHTTPRequestHandler):
    """A DICOMweb peer that answers as told, over TLS, to those who bear its token."""

    answers: ClassVar[list[int]] = []
    token = ""
    received: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        told = self.answers.pop(0) if self.answers else 200
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            told = 401
        answer = b""
        if told == 409:
            answer = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [43264]}}]}}'
        elif told == 200:
            self.received.append(body)
        self.send_response(told)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def stow(tmp_path: Path) -> Iterator[tuple[int, Path, type[_Stow]]]:
    """A peer with a certificate of a CA of its own: port, CA, and what it does."""
    from shared import pki
    from shared.identity import Identity

    pki.create(tmp_path / "pki", [Identity.AUDIT], development=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pki" / "audit.crt", tmp_path / "pki" / "audit.key")
    handler = type("Handler", (_Stow,), {"answers": [], "received": [], "token": "first"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port, tmp_path / "pki" / "ca.crt", handler
    server.shutdown()
    server.server_close()


def test_stow_goes_over_tls_with_a_token_and_is_tried_again_by_the_class_of_the_answer(
    tmp_path: Path, stow: tuple[int, Path, type[_Stow]]
):
    from services.ingest.outgoing import Outgoing
    from services.ingest.stow_out import StowSender
    from shared.errors import StepwedgeError
    from shared.objects import open_store
    from shared.settings import Destination, Objects

    number, ca, peer = stow
    objects = open_store(Objects(original=str(tmp_path / "o"), deidentified=str(tmp_path / "d")), {Zone.ORIGINAL})
    data = part10(radiograph())
    one = Outgoing(DX, "1.2.3", EXPLICIT, objects.put(Zone.ORIGINAL, data).sha256)
    (tmp_path / "token").write_text("first\n")
    destination = Destination(
        name="web", url=f"https://localhost:{number}/dicom-web", tls_ca=ca, token_file=tmp_path / "token"
    )
    delivered: list[Outgoing] = []

    def outcome(*answers: int, to: Destination = destination) -> bool | None:
        """True for a failure for good, False for one that passes, None for none."""
        peer.answers[:] = answers
        try:
            StowSender(objects).send(to, [one, one], delivered.append)
        except StepwedgeError as error:
            return error.permanent
        return None

    assert outcome(200, 200) is None
    assert [content(body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]) for body in peer.received] == [
        content(data)
    ] * 2
    assert len(delivered) == 2
    assert [outcome(200, status) for status in (503, 500, 429, 507)] == [False] * 4
    assert len(delivered) == 6, "what was stored before is noted"
    assert [outcome(status) for status in (400, 404, 413, 415, 409)] == [True] * 5
    (tmp_path / "token").write_text("wrong")
    assert outcome() is False, "the token may be replaced"
    peer.token = "wrong"
    assert outcome() is None
    untrusted = destination.model_copy(update={"tls_ca": Path()})
    assert outcome(to=untrusted) is False, "a peer that nobody vouches for gets nothing"
    named = destination.model_copy(update={"tls_name": "elsewhere.example"})
    assert outcome(to=named) is False


@needs_storescp
@pytest.mark.timeout(300)
def test_storescp_gets_results_over_mutual_tls_and_a_killed_ingest_sends_none_twice(tmp_path: Path):
    from shared import pki
    from shared.identity import Identity

    inbox, secure, count = tmp_path / "inbox", tmp_path / "theirs", 3
    inbox.mkdir()
    (tmp_path / "house").mkdir()
    pki.create(secure, [Identity.AUDIT, Identity.INGEST], development=True)
    listening = port()
    peer = subprocess.Popen(
        [
            *("storescp", "-aet", "TLSPACS", "+xa", "-od", str(inbox), "--fork"),
            *("+tls", str(secure / "audit.key"), str(secure / "audit.crt"), "+cf", str(secure / "ca.crt")),
            *("--require-peer-cert", str(listening)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    toml = f"""
[[ingest.destinations]]
name = "tls-pacs"
ae_title = "TLSPACS"
host = "127.0.0.1"
port = {listening}
tls = true
tls_ca = "{secure / "ca.crt"}"
tls_certificate = "{secure / "ingest.crt"}"
tls_key = "{secure / "ingest.key"}"
verdicts = ["ACCEPT", "REVIEW", "REJECT"]
send = ["seg", "sr"]
"""
    try:
        with house(tmp_path / "house", port, toml) as made:
            made.inference.answers["*"] = assessed_with_outlines(made)
            objects = [radiograph() for _ in range(count)]
            sent(made, *objects)
            eventually(lambda: list(inbox.iterdir()), SECONDS, what="a first result")
            made.stop("ingest", signal.SIGKILL)
            made.start("ingest")
            for ds in objects:
                made.in_state(str(ds.StudyInstanceUID), "DONE", SECONDS)
            mine = [
                one for ds in objects for files in results(made, str(ds.StudyInstanceUID)).values() for one in files
            ]
            keys = [key for key in made.record_keys() if key.startswith("delivered/")]
        assert len(keys) == len(set(keys)) == count
        theirs = {hashlib.sha256(content(one.read_bytes())).hexdigest() for one in inbox.iterdir()}
        assert theirs == {hashlib.sha256(content(one)).hexdigest() for one in mine}
        assert len(mine) == 2 * count
    finally:
        peer.terminate()
        peer.wait(10)


def test_in_shadow_nothing_is_sent_and_record_and_explanation_say_so(tmp_path: Path):
    nobody = port()
    toml = f"""
shadow = true
[[ingest.destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {nobody}
verdicts = ["ACCEPT", "REVIEW", "REJECT"]
send = ["original", "sr"]
"""
    with socket.create_server(("127.0.0.1", nobody)) as listener, house(tmp_path, port, toml) as made:
        listener.setblocking(False)
        ds = radiograph()
        sent(made, ds)
        made.in_state(str(ds.StudyInstanceUID), "DONE", SECONDS)
        (record,) = [one for one in made.entries() if one.HasField("delivered")]
        assert (record.delivered.shadow, record.delivered.objects) == (True, 2)
        request = ingest_pb2.ExplainStudyRequest(study=ingest_pb2.StudyKey(study_instance_uid=ds.StudyInstanceUID))
        said = " ".join(step.what for step in made.ingest().ExplainStudy(request, timeout=10).steps)
        assert "2 objects would have gone to pacs (ORIGINAL, SR); in shadow mode nothing was sent" in said
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_result_that_fails_a_check_is_never_sent_and_the_images_are(tmp_path: Path, orthanc: Orthanc):
    """A mask of another size than its image: nothing right can be made of it."""
    toml = f"""
[[ingest.destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {orthanc.dimse[1]}
verdicts = ["ACCEPT", "REVIEW", "REJECT"]
send = ["original", "seg", "sr"]
"""
    with house(tmp_path, port, toml) as made:
        whole = assessed_with_outlines(made)

        def broken(success: Any) -> Any:
            answer = whole(success)
            buffer = BytesIO()
            Picture.fromarray(np.zeros((ROWS, COLUMNS + 1), np.uint8)).save(buffer, "PNG")
            answer.assessment.masks[0].png.sha256 = made.inference.objects.put(
                Zone.DEIDENTIFIED, buffer.getvalue()
            ).sha256
            return answer

        made.inference.answers["*"] = broken
        ds = radiograph(study=str(generate_uid(None)))
        study = str(ds.StudyInstanceUID)
        sent(made, ds)
        dead = made.in_state(study, "DEAD_LETTER", SECONDS)
        assert common_pb2.ErrorCode.Name(dead.last_error) == "ERROR_CODE_RESULT_INVALID"
        assert results(made, study) == {}
        held = orthanc.find("Instance", StudyInstanceUID=study)
        assert len(held) == 1, "the image as received, and nothing else"
        failures = [one.failed for one in made.entries() if one.HasField("failed")]
        assert {(one.step, one.permanent) for one in failures} == {("results", True), ("deliver", True)}


def test_ingest_starts_no_slower_for_results_and_loads_highdicom_with_the_first(tmp_path: Path):
    code = "import sys, services.ingest.__main__; print('highdicom' in sys.modules, 'reportlab' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, check=True)
    assert done.stdout.split() == ["False", "False"]
