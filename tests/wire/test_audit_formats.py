"""The log out of the door in other formats: over gRPC, from the command line, and to a syslog receiver over TLS.

The receiver below was written from RFC 5424 and RFC 5425, and shares nothing with the sender.
"""

import asyncio
import base64
import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from services.audit.__main__ import build, write_export
from services.audit.formats.stream import Format
from services.audit.forward import Cursor, Forwarder, Position, Receiver
from services.audit.log import Log
from shared import keys
from shared.errors import ErrorCode, StepwedgeError, from_rpc
from shared.health import Health
from shared.identity import Identity
from shared.pki import Credentials
from shared.rpc import Server, channel
from shared.settings import Forward, Settings
from stepwedge.audit.v1 import audit_pb2, audit_pb2_grpc
from tests.unit.audit.making import Producer, close, fill, open_log

etree = pytest.importorskip("lxml.etree", reason="needs the package lxml")
audit_events = pytest.importorskip("fhir.resources.R4B.auditevent", reason="needs the package fhir.resources")

ROOT = Path(__file__).parents[2]
GRAMMAR = etree.RelaxNG(etree.parse(ROOT / "tests" / "unit" / "audit" / "test_formats_message.rng"))

# RFC 5424 6: HEADER SP STRUCTURED-DATA SP MSG, for the fixed words of PS3.15 A.6.
SYSLOG = re.compile(
    rb"<85>1 (?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z) (?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48})"
    rb" (?P<process>[!-~]{1,128}) DICOM\+RFC3881 - \xef\xbb\xbf(?P<message>.+)",
    re.DOTALL,
)


class Arr:
    """An audit record repository: takes frames (RFC 5425 4.3) and keeps the messages, a list for each session."""

    def __init__(self, credentials: Credentials, port: int = 0) -> None:
        self.sessions: list[list[bytes]] = []
        self.dies_after: int | None = None
        """Octets after which the next session ends without a word."""
        self.answers = True
        """Whether the end of a session is answered."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(credentials.certificate, credentials.key)
        self._context.load_verify_locations(credentials.ca)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            plain.settimeout(10)
            try:
                with self._context.wrap_socket(plain, server_side=True) as session:
                    self._session(session)
            except OSError:
                pass

    def _session(self, session: ssl.SSLSocket) -> None:
        messages: list[bytes] = []
        self.sessions.append(messages)
        left, self.dies_after = self.dies_after, None
        kept = b""
        while left is None or left > 0:
            data = session.recv(65536 if left is None else min(left, 65536))
            if not data:
                assert not kept, "a session ended inside a frame"
                if self.answers:
                    session.unwrap()
                return
            left = left if left is None else left - len(data)
            kept += data
            while (counted := re.match(rb"([1-9][0-9]*) ", kept)) and len(kept) >= (
                end := counted.end() + int(counted[1])
            ):
                messages.append(kept[counted.end() : end])
                kept = kept[end:]
        # Killed: what is in hand is gone, and the peer gets a reset.
        session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def indexes(self) -> list[list[int]]:
        """The records of each session, in the order in which they came."""
        return [[index_of(message) for message in session] for session in self.sessions]


def details(message: bytes) -> dict[str, str]:
    """The facts in a syslog message, after every check that a repository could make."""
    read = SYSLOG.fullmatch(message)
    assert read is not None
    message.decode("utf-8")
    tree = etree.fromstring(read["message"])
    GRAMMAR.assertValid(tree)
    return {
        one.get("type"): base64.b64decode(one.get("value")).decode() for one in tree.iter("ParticipantObjectDetail")
    }


def index_of(message: bytes) -> int:
    return int(details(message)["index"])


@pytest.fixture
def arr(credentials: Callable[[Identity], Credentials]) -> Iterator[Arr]:
    made = Arr(credentials(Identity.CONSOLE))
    yield made
    made.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = open_log(f"sqlite:///{tmp_path / 'log.db'}", tmp_path)
    yield made
    close(made)


@pytest.fixture
def forwarder(
    log: Log, arr: Arr, tmp_path: Path, credentials: Callable[[Identity], Credentials]
) -> Iterator[Callable[..., Forwarder]]:
    cursors: list[Cursor] = []

    def make(port: int = arr.port, **section: object) -> Forwarder:
        for one in cursors:
            one.close()
        cursors[:] = [Cursor(tmp_path / "forwarded")]
        own = credentials(Identity.AUDIT)
        made = Forward(receiver=f"127.0.0.1:{port}", ca=own.ca, timeout_seconds=5, **section)  # type: ignore[arg-type]
        receiver = Receiver(made, own.certificate, own.key)
        return Forwarder(log.store, cursors[0], receiver.take, made)

    yield make
    for one in cursors:
        one.close()


def everything(forwarder: Forwarder) -> None:
    while forwarder.step():
        pass


def test_a_repository_gets_every_record_once_in_order_as_a_valid_message(
    log: Log, arr: Arr, forwarder: Callable[..., Forwarder]
) -> None:
    fill(log, 70)
    everything(forwarder(batch=32))
    assert arr.indexes() == [list(range(32)), list(range(32, 64)), list(range(64, 70))]
    fill(log, 2, first=100)
    everything(forwarder(batch=32))
    assert arr.indexes()[3:] == [[70, 71]]
    assert forwarder().step() == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_the_tls_of_another_house_takes_and_confirms_the_frames(
    log: Log,
    forwarder: Callable[..., Forwarder],
    free_port: Callable[[], int],
    tmp_path: Path,
    pki_folder: Path,
    version: str,
) -> None:
    fill(log, 30)
    port, out = free_port(), tmp_path / "out"
    own = ["-cert", str(pki_folder / "console.crt"), "-key", str(pki_folder / "console.key")]
    trust = ["-CAfile", str(pki_folder / "ca.crt"), "-Verify", "2", "-verify_return_error"]
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", *own, *trust, "-quiet", version]
    with out.open("wb") as stream:
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port))
        assert [forwarder(port, batch=20).step() for _ in range(3)] == [20, 10, 0]
        wait_until(lambda: len(split(out.read_bytes())) == 30)
        messages = split(out.read_bytes())
        assert [index_of(message) for message in messages] == list(range(30))
    finally:
        server.kill()
        server.communicate()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def split(data: bytes) -> list[bytes]:
    """The messages of a stream of frames (RFC 5425 4.3), as far as they are whole."""
    messages = []
    while (counted := re.match(rb"([1-9][0-9]*) ", data)) and len(data) >= (end := counted.end() + int(counted[1])):
        messages.append(data[counted.end() : end])
        data = data[end:]
    return messages


def test_a_repository_that_dies_inside_a_frame_loses_nothing(
    log: Log, arr: Arr, forwarder: Callable[..., Forwarder]
) -> None:
    fill(log, 60)
    sender = forwarder(batch=20)
    assert sender.step() == 20
    for octets in (1, 3, 2000, 30_000):
        arr.dies_after = octets
        with pytest.raises(OSError):  # noqa: PT011 - reset, broken pipe or an end without close_notify
            sender.step()
    everything(forwarder(batch=20))
    sessions = arr.indexes()
    assert sessions[0] == list(range(20))
    assert [session[:1] for session in sessions[1:5]] == [[], [], [], [20]]
    assert all(session == list(range(20, 20 + len(session))) for session in sessions[1:5])
    assert sessions[5:] == [list(range(20, 40)), list(range(40, 60))]


def test_what_a_repository_read_and_did_not_confirm_is_sent_again(
    log: Log, arr: Arr, forwarder: Callable[..., Forwarder]
) -> None:
    fill(log, 5)
    sender = forwarder()
    arr.answers = False
    with pytest.raises(OSError):  # noqa: PT011
        sender.step()
    arr.answers = True
    assert sender.step() == 5
    assert arr.indexes() == [list(range(5)), list(range(5))]


def test_records_wait_for_a_repository_that_is_away(
    log: Log,
    arr: Arr,
    forwarder: Callable[..., Forwarder],
    free_port: Callable[[], int],
    credentials: Callable[[Identity], Credentials],
) -> None:
    fill(log, 3)
    port = free_port()
    sender = forwarder(port)
    with pytest.raises(ConnectionRefusedError):
        sender.step()
    late = Arr(credentials(Identity.CONSOLE), port)
    try:
        assert sender.step() == 3
        assert late.indexes() == [[0, 1, 2]]
    finally:
        late.close()


def test_a_message_over_32768_octets_arrives_whole_where_the_receiver_takes_it(
    log: Log, arr: Arr, forwarder: Callable[..., Forwarder], tmp_path: Path
) -> None:
    producer = Producer()
    log.submit([producer.prepared(producer.decided(1, instances=120))]).result(10)
    everything(forwarder(max_octets=0))
    (whole,) = arr.sessions[0]
    assert len(whole) > 32_768
    assert "event.instances.119.verdict" in details(whole)
    (tmp_path / "forwarded").unlink()
    everything(forwarder())
    (short,) = arr.sessions[1]
    assert len(short) <= 32_768
    assert int(details(short)["omitted"]) > 119


def test_nothing_is_sent_to_a_repository_that_cannot_name_itself(
    log: Log, arr: Arr, forwarder: Callable[..., Forwarder]
) -> None:
    fill(log, 3)
    with pytest.raises(ssl.SSLCertVerificationError):
        forwarder(server_name="arr.example.org").step()
    assert arr.sessions == []


def test_another_log_is_not_forwarded_in_the_place_of_the_first(
    log: Log, forwarder: Callable[..., Forwarder], tmp_path: Path
) -> None:
    fill(log, 3)
    everything(forwarder())
    forwarder()  # lets the first cursor go
    for position in (Position(3, "ab" * 32), Position(4, "ab" * 32)):
        (tmp_path / "forwarded").write_text(json.dumps(position._asdict()))
        with pytest.raises(StepwedgeError) as raised:
            forwarder().step()
        assert raised.value.code == ErrorCode.ERROR_CODE_LOG_INCONSISTENT


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"next":-1,"last":""}', b'{"next":1,"last":""}', b"\xff"])
def test_a_damaged_cursor_is_not_taken_for_the_start(
    forwarder: Callable[..., Forwarder], tmp_path: Path, damage: bytes
) -> None:
    sender = forwarder()
    (tmp_path / "forwarded").write_bytes(damage)
    with pytest.raises(StepwedgeError) as raised:
        sender.step()
    assert raised.value.code == ErrorCode.ERROR_CODE_FILE


def test_two_forwarders_do_not_share_a_cursor(tmp_path: Path) -> None:
    first = Cursor(tmp_path / "forwarded")
    with pytest.raises(StepwedgeError) as raised:
        Cursor(tmp_path / "forwarded")
    assert raised.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    first.close()
    Cursor(tmp_path / "forwarded").close()


def settings_file(folder: Path, pki: Path, receiver: str) -> Path:
    file = folder / "forward.toml"
    file.write_text(
        f'[cluster]\npki = "{pki}"\ndata = "{folder}"\n[audit]\ndatabase = "sqlite:///{folder / "log.db"}"\n'
        f'[audit.forward]\nreceiver = "{receiver}"\nca = "{pki / "ca.crt"}"\nbatch = 7\npoll_seconds = 0.02\n'
    )
    return file


def start_forwarding(file: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "services.audit", "forward"],
        cwd=ROOT,
        env={**os.environ, "STEPWEDGE_CONFIG": str(file)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_forwarder_that_is_killed_goes_on_where_the_repository_last_confirmed(
    log: Log, arr: Arr, tmp_path: Path, pki_folder: Path
) -> None:
    fill(log, 200)
    file = settings_file(tmp_path, pki_folder, f"localhost:{arr.port}")
    process = start_forwarding(file)
    wait_until(lambda: len(arr.sessions) > 3)
    process.kill()
    process.communicate(timeout=10)
    again = start_forwarding(file)
    wait_until(lambda: bool(arr.sessions) and bool(arr.sessions[-1]) and index_of(arr.sessions[-1][-1]) == 199)
    again.send_signal(signal.SIGTERM)
    _, errors = again.communicate(timeout=10)
    assert again.returncode == 0, errors
    came: list[int] = []
    for session in arr.indexes():
        if session:
            assert session == list(range(session[0], session[0] + len(session)))
            assert session[0] <= len(came), "a record was passed over"
            came = came[: session[0]] + session
    assert came == list(range(200))


def test_forwarding_is_off_until_a_receiver_is_named(tmp_path: Path, pki_folder: Path) -> None:
    process = start_forwarding(settings_file(tmp_path, pki_folder, ""))
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 78
    assert "audit.forward.receiver is not set" in errors


@pytest.fixture
async def audit(
    make_settings: Callable[[str], Settings], credentials: Callable[[Identity], Credentials], tmp_path: Path
) -> AsyncIterator[tuple[str, Settings]]:
    """A server of the log with 300 records: its address, and its settings."""
    settings = make_settings("")
    settings.audit.database = f"sqlite:///{tmp_path / 'log.db'}"
    keys.create(settings.cluster.keys, origin=settings.audit.origin, development=True)
    health = Health()
    server = Server(Identity.AUDIT, settings, health)
    hooks = await build(settings, health, server)
    ready = asyncio.Event()
    task = asyncio.create_task(server.run(on_ready=ready.set))
    await asyncio.wait_for(ready.wait(), 20)
    producer = Producer()
    async with channel(server.address, credentials(Identity.INGEST), server=Identity.AUDIT) as link:
        records = [producer.received(number) for number in range(256)]
        stub = audit_pb2_grpc.AuditServiceStub(link)
        await stub.Append(audit_pb2.AppendRequest(records=records), timeout=20)
    yield server.address, settings
    server.stop()
    await task
    closing: Callable[[], Awaitable[None]] | None = hooks.on_stopped
    assert closing is not None
    await closing()


_WIRE = ("csv", "fhir", "dicom")


async def test_an_export_in_each_format_is_the_same_over_grpc_and_offline(
    audit: tuple[str, Settings], credentials: Callable[[Identity], Credentials], tmp_path: Path
) -> None:
    address, settings = audit
    files: dict[str, bytes] = {}
    async with channel(address, credentials(Identity.AUDITOR), server=Identity.AUDIT) as link:
        stub = audit_pb2_grpc.AuditServiceStub(link)
        for exported, form in enumerate(Format):
            offline = tmp_path / f"offline.{form}"
            # Each export over gRPC is a read, recorded behind what it exports; one without the service is not.
            assert await asyncio.to_thread(write_export, settings.audit.database, offline, form) == 256 + exported
            number = audit_pb2.ExportFormat.Value(f"EXPORT_FORMAT_{form.name}")
            call = stub.Export(audit_pb2.ExportRequest(format=number), timeout=20)
            files[form] = b"".join([piece.chunk async for piece in call])
            assert offline.read_bytes() == files[form]
        short = stub.Export(audit_pb2.ExportRequest(size=5, format=audit_pb2.EXPORT_FORMAT_CSV), timeout=20)
        head = b"".join([piece.chunk async for piece in short])
        assert files["csv"].startswith(head)
        assert head.count(b"\r\n") == 6
        for number in (5, 99, -1):
            with pytest.raises(grpc.RpcError) as raised:
                await stub.Export(audit_pb2.ExportRequest(format=number), timeout=20).read()  # type: ignore[arg-type]
            assert from_rpc(raised.value).code == ErrorCode.ERROR_CODE_INVALID_REQUEST
    rows = list(csv.DictReader(io.StringIO(files["csv"].decode(), newline=""), strict=True))
    assert [int(row["index"]) for row in rows[:256]] == list(range(256))
    events = [audit_events.AuditEvent.model_validate_json(line) for line in files["fhir"].splitlines()]
    assert [event.id for event in events[:256]] == [row["id"] for row in rows[:256]]
    messages = [etree.fromstring(line) for line in files["dicom"].splitlines()]
    assert all(GRAMMAR.validate(message) for message in messages)
    assert (len(rows), len(events), len(messages)) == tuple(256 + list(Format).index(Format(f)) for f in _WIRE)
    assert {row["kind"] for row in rows[256:]} <= {"READ"}


async def test_the_command_writes_each_format(audit: tuple[str, Settings], tmp_path: Path) -> None:
    address, settings = audit
    config = tmp_path / "client.toml"
    config.write_text(f'[cluster]\npki = "{settings.cluster.pki}"\n[audit]\nlisten = "{address}"\n')
    for form, start in (
        ("csv", b"index,id,"),
        ("fhir", b'{"resourceType":"AuditEvent"'),
        ("dicom", b"<?xml"),
        ("", b"PK"),
    ):
        out = tmp_path / f"out.{form}"
        options = ["--format", form] if form else []
        command = [
            sys.executable,
            "-m",
            "cli",
            "export",
            str(out),
            *options,
            "--config",
            str(config),
            "--as",
            "auditor",
        ]
        done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert out.read_bytes().startswith(start)
