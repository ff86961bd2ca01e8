"""Storage commitment, DICOM TLS and who is let in, with pynetdicom and DCMTK as the peers."""

import queue
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt

from services.ingest.storage_commitment import PUSH_MODEL, WELL_KNOWN_INSTANCE
from shared import pki
from shared.identity import Identity
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from tests.wire.cluster import eventually
from tests.wire.ingest_house import DX, House, dx, house, part10
from tests.wire.ports import port

EXPLICIT = str(ExplicitVRLittleEndian)
needs_dcmtk = pytest.mark.skipif(shutil.which("echoscu") is None, reason="needs DCMTK: apt-get install dcmtk")


TLS, PEER = port(), port()


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for all tests of this file; its door has a second, secure entrance."""
    folder = tmp_path_factory.mktemp("peers")
    certificates = folder / "data" / "pki"
    settings = f"""
dimse_tls = "127.0.0.1:{TLS}"
dimse_tls_certificate = "{certificates / "ingest.crt"}"
dimse_tls_key = "{certificates / "ingest.key"}"
dimse_tls_ca = "{certificates / "ca.crt"}"
check_called_ae_title = true
other_ae_titles = ["ALSO_US"]
calling_networks = {{ FAR_AWAY = ["10.1.0.0/16"], NEAR = ["10.1.0.0/16", "127.0.0.0/8"] }}
commitment_peers = [{{ ae_title = "MODALITY", host = "127.0.0.1", port = {PEER} }}]
"""
    with house(folder, port, settings) as made:
        yield made


def stored(at_home: House, count: int = 1) -> list[Dataset]:
    objects = [dx(seed=number) for number in range(count)]
    with Peer(at_home, called="STEPWEDGE") as one:
        assert [one.store(ds) for ds in objects] == [0] * count
    return objects


class Peer:
    """A modality that stores, asks for commitment, and listens for the report on the association that asked."""

    def __init__(self, at_home: House, title: str = "MODALITY", called: str = "STEPWEDGE", **more: Any) -> None:
        self.reports: queue.Queue[tuple[int, Dataset]] = queue.Queue()
        self.answer = 0x0000
        ae = AE(title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
        ae.add_requested_context(DX, EXPLICIT)
        ae.add_requested_context(PUSH_MODEL)
        ae.add_requested_context("1.2.840.10008.1.1")
        address = more.pop("address", at_home.dimse)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._took)]
        self.association = ae.associate(*address, ae_title=called, evt_handlers=handlers, **more)

    def _took(self, event: evt.Event) -> tuple[int, None]:
        self.reports.put((event.event_type, event.event_information))
        return self.answer, None

    def __enter__(self) -> "Peer":
        assert self.association.is_established, "no association"
        return self

    def __exit__(self, *_: object) -> None:
        if self.association.is_established:
            self.association.release()

    def store(self, ds: Dataset) -> int:
        return int(self.association.send_c_store(ds).Status)

    def commit(self, references: list[tuple[str, str]], transaction: str = "", **other: Any) -> int:
        information = Dataset()
        information.TransactionUID = transaction or generate_uid(None)
        information.ReferencedSOPSequence = []
        for sop_class, instance in references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
            information.ReferencedSOPSequence.append(item)
        action = other.get("action", 1)
        instance_uid = other.get("instance", WELL_KNOWN_INSTANCE)
        status, _ = self.association.send_n_action(information, action, PUSH_MODEL, instance_uid)
        return int(status.Status)


def failures(report: Dataset) -> dict[str, int]:
    return {str(item.ReferencedSOPInstanceUID): int(item.FailureReason) for item in report.get("FailedSOPSequence", [])}


def committed(report: Dataset) -> set[str]:
    return {str(item.ReferencedSOPInstanceUID) for item in report.get("ReferencedSOPSequence", [])}


def test_commitment_is_reported_on_the_association_that_asked(at_home: House):
    objects = [dx(seed=number) for number in range(3)]
    transaction = generate_uid(None)
    with Peer(at_home) as one:
        # Asked for at once behind the success of the last object, which by then must be durable and recorded.
        assert [one.store(ds) for ds in objects] == [0, 0, 0]
        assert one.commit([(DX, ds.SOPInstanceUID) for ds in objects], transaction) == 0
        event_type, report = one.reports.get(timeout=20)
    assert event_type == 1
    assert report.TransactionUID == transaction
    assert committed(report) == {ds.SOPInstanceUID for ds in objects}
    assert "FailedSOPSequence" not in report


def outcomes(at_home: House) -> list[audit_pb2.CommittedEvent]:
    """What the log says was told of storage commitments."""
    return [record.committed for record in at_home.entries() if record.WhichOneof("event") == "committed"]


def test_the_outcome_is_in_the_log_before_it_is_reported(at_home: House):
    objects = stored(at_home, 2)
    before = len(outcomes(at_home))
    with Peer(at_home) as one:
        assert one.commit([*((DX, str(ds.SOPInstanceUID)) for ds in objects), (DX, generate_uid(None))]) == 0
        one.reports.get(timeout=20)
        (said,) = outcomes(at_home)[before:]
    assert (said.held, said.missing) == (2, 1)
    log = audit_pb2_grpc.AuditServiceStub(at_home.channel("audit", Identity.AUDITOR))
    requests = [audit_pb2.GetEntryRequest(index=index) for index in said.received_indexes]
    received = [log.GetEntry(request, timeout=10).entry.record for request in requests]
    names = {at_home.redaction.pseudonyms.uid(str(ds.SOPInstanceUID)) for ds in objects}
    assert {record.instance for record in received} == names
    assert {record.WhichOneof("event") for record in received} == {"received"}


def test_a_report_that_a_kill_came_before_goes_out_once_afterwards(at_home: House):
    (ds,) = stored(at_home)
    transaction = generate_uid(None)
    before = len(outcomes(at_home))
    with listening(lambda: 0x0000) as reports:
        # The log stands still, so that the request is durable and answered while its outcome cannot be told yet.
        at_home.processes["audit"].send_signal(signal.SIGSTOP)
        try:
            one = Peer(at_home)
            assert one.commit([(DX, ds.SOPInstanceUID)], transaction) == 0
            at_home.stop("ingest", signal.SIGKILL)
            assert one.reports.empty()
            one.association.abort()
        finally:
            at_home.processes["audit"].send_signal(signal.SIGCONT)
        assert len(outcomes(at_home)) == before
        at_home.start("ingest")
        at_home.wait_serving("audit")
        event_type, report = reports.get(timeout=60)
        assert (event_type, report.TransactionUID, committed(report)) == (1, transaction, {ds.SOPInstanceUID})

        def settled() -> bool:
            with sqlite3.connect(f"file:{at_home.settings.cluster.data / 'ingest.db'}?mode=ro", uri=True) as rows:
                query = "SELECT reported_at IS NOT NULL AND next_attempt_at IS NULL FROM commitments"
                return rows.execute(f"{query} WHERE transaction_uid = ?", [transaction]).fetchone() == (1,)

        eventually(settled, 20, what="a commitment that is reported for good")
        assert reports.empty(), "once"
    assert len(outcomes(at_home)) == before + 1


def test_what_is_not_held_and_what_bears_another_class_fail_with_their_reasons(at_home: House):
    (ds,) = stored(at_home)
    (other,) = stored(at_home)
    unknown = generate_uid(None)
    with Peer(at_home) as one:
        asked = [(DX, ds.SOPInstanceUID), (DX, unknown), ("1.2.840.10008.5.1.4.1.1.2", other.SOPInstanceUID)]
        assert one.commit(asked) == 0
        event_type, report = one.reports.get(timeout=20)
    assert event_type == 2
    assert committed(report) == {ds.SOPInstanceUID}
    assert failures(report) == {unknown: 0x0112, other.SOPInstanceUID: 0x0119}


def test_an_object_whose_bytes_are_gone_is_not_committed(at_home: House):
    ds, lost = stored(at_home, 2)
    study = at_home.study(lost.StudyInstanceUID)
    assert study is not None
    digest = study.instances[0].sha256
    (Path(at_home.settings.objects.original) / digest[:2] / digest).unlink()
    with Peer(at_home) as one:
        assert one.commit([(DX, ds.SOPInstanceUID), (DX, lost.SOPInstanceUID)]) == 0
        _, report = one.reports.get(timeout=20)
    assert (committed(report), failures(report)) == ({ds.SOPInstanceUID}, {lost.SOPInstanceUID: 0x0112})


def test_the_same_transaction_again_is_reported_again(at_home: House):
    (ds,) = stored(at_home)
    transaction = generate_uid(None)
    for _ in range(2):
        with Peer(at_home) as one:
            assert one.commit([(DX, ds.SOPInstanceUID)], transaction) == 0
            event_type, report = one.reports.get(timeout=20)
        assert (event_type, report.TransactionUID) == (1, transaction)


@pytest.mark.parametrize(
    ("status", "references", "other"),
    [
        (0x0112, [(DX, "1.2.3")], {"instance": "1.2.3.4"}),
        (0x0123, [(DX, "1.2.3")], {"action": 2}),
        (0x0115, [], {}),
        (0x0115, [(DX, "1.2.3")], {"transaction": "not a UID"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_request_that_is_none_is_refused_with_its_status(
    at_home: House, status: int, references: list[tuple[str, str]], other: dict[str, Any]
):
    with Peer(at_home) as one:
        assert one.commit(references, **other) == status
        assert one.association.send_c_echo().Status == 0, "the association goes on"


@contextmanager
def listening(answer: Callable[[], int]) -> Iterator["queue.Queue[tuple[int, Dataset]]"]:
    """The modality's own server, to which a report comes on an association of ours."""
    reports: queue.Queue[tuple[int, Dataset]] = queue.Queue()

    def took(event: evt.Event) -> tuple[int, None]:
        reports.put((event.event_type, event.event_information))
        return answer(), None

    ae = AE("MODALITY")
    ae.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
    server = ae.start_server(("127.0.0.1", PEER), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, took)])
    try:
        yield reports
    finally:
        server.shutdown()


def test_a_peer_that_hung_up_gets_the_report_on_a_new_association_until_it_takes_it(at_home: House):
    (ds,) = stored(at_home)
    transaction = generate_uid(None)
    answers = iter([0x0110, 0x0000])
    with listening(lambda: next(answers)) as reports:
        one = Peer(at_home)
        one.answer = 0x0110  # if the report comes before the line goes, it is not taken there
        assert one.commit([(DX, ds.SOPInstanceUID)], transaction) == 0
        one.association.abort()
        for _ in range(2):
            event_type, report = reports.get(timeout=30)
            assert (event_type, report.TransactionUID) == (1, transaction)
            assert committed(report) == {ds.SOPInstanceUID}


def client_context(certificates: Path, identity: str = "operator") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates / "ca.crt")
    context.load_cert_chain(certificates / f"{identity}.crt", certificates / f"{identity}.key")
    return context


def test_an_object_comes_in_over_mutual_tls(at_home: House):
    tls = (client_context(at_home.settings.cluster.pki), "localhost")
    ds = dx()
    with Peer(at_home, address=("127.0.0.1", TLS), tls_args=tls) as one:
        assert one.store(ds) == 0
        assert one.commit([(DX, ds.SOPInstanceUID)]) == 0
        assert one.reports.get(timeout=20)[0] == 1


def handshake(context: ssl.SSLContext) -> str:
    """Version of the session, once the server has answered behind it; raises OSError where it does not let us in."""
    with (
        socket.create_connection(("127.0.0.1", TLS), timeout=15) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as secure,
    ):
        version = secure.version() or ""
        secure.sendall(b"\x07\0\0\0\0\x04\0\0\0\0")  # an A-ABORT: whoever got here may hang up
        if secure.recv(1) != b"":
            raise AssertionError("an answer to an abort")
        return version


def test_tls_asks_for_a_certificate_of_the_sites_ca_and_for_no_old_suites(at_home: House, tmp_path: Path):
    ours = at_home.settings.cluster.pki
    assert handshake(client_context(ours)) == "TLSv1.3"
    older = client_context(ours)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(older) == "TLSv1.2"

    nobody = ssl.create_default_context(cafile=ours / "ca.crt")
    with pytest.raises(OSError, match="certificate"):
        handshake(nobody)
    pki.create(tmp_path, [Identity.OPERATOR], development=True)
    stranger = client_context(ours)
    stranger.load_cert_chain(tmp_path / "operator.crt", tmp_path / "operator.key")
    with pytest.raises(OSError):  # noqa: PT011 - as an alert or as a reset, as the timing has it
        handshake(stranger)
    without_aead = client_context(ours)
    without_aead.maximum_version = ssl.TLSVersion.TLSv1_2
    without_aead.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA:AES128-SHA")
    with pytest.raises(OSError):  # noqa: PT011
        handshake(without_aead)


def test_a_connection_that_stalls_in_the_handshake_keeps_nobody_out(at_home: House):
    with socket.create_connection(("127.0.0.1", TLS), timeout=10):
        tls = (client_context(at_home.settings.cluster.pki), "localhost")
        with Peer(at_home, address=("127.0.0.1", TLS), tls_args=tls) as one:
            assert one.association.send_c_echo().Status == 0


def test_the_called_title_must_be_one_of_ours(at_home: House):
    for called, let_in in (("STEPWEDGE", True), ("ALSO_US", True), ("SOMEBODY", False)):
        one = Peer(at_home, called=called)
        assert one.association.is_established == let_in, called
        if let_in:
            one.association.release()
        else:
            assert one.association.is_rejected
            assert one.association.acceptor.primitive.diagnostic == 0x07


def test_a_calling_title_is_let_in_only_from_its_networks(at_home: House):
    for title, let_in in (("NEAR", True), ("FAR_AWAY", False), ("NOT_NAMED", True)):
        one = Peer(at_home, title=title)
        assert one.association.is_established == let_in, title
        if let_in:
            one.association.release()
        else:
            assert one.association.acceptor.primitive.diagnostic == 0x03


@needs_dcmtk
def test_dcmtk_echoes_and_stores_over_mutual_tls(at_home: House, tmp_path: Path):
    certificates = at_home.settings.cluster.pki
    path = tmp_path / "object.dcm"
    ds = dx()
    path.write_bytes(part10(ds))
    tls = ["+tls", str(certificates / "operator.key"), str(certificates / "operator.crt")]
    tls += ["+cf", str(certificates / "ca.crt"), "-aet", "MODALITY", "-aec", "STEPWEDGE", "localhost", str(TLS)]
    subprocess.run(["/usr/bin/echoscu", *tls], check=True, timeout=30, capture_output=True)
    subprocess.run(["/usr/bin/storescu", *tls, str(path)], check=True, timeout=30, capture_output=True)
    assert at_home.study(ds.StudyInstanceUID) is not None


def test_readiness_is_what_an_echo_says(at_home: House):
    # Last: the log goes away and comes back.
    at_home.stop("audit")

    def status() -> int:
        with Peer(at_home) as one:
            return int(one.association.send_c_echo().Status)

    eventually(lambda: status() == 0x0110, 20, what="an echo that says no")
    with Peer(at_home) as one:
        assert one.store(dx()) == 0xA700
    at_home.start("audit")
    eventually(lambda: status() == 0, 20, what="an echo that says yes")
