"""Checkpoints stamped by a real authority: OpenSSL's, behind HTTP on this machine."""

import http.server
import json
import shutil
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.audit import store
from services.audit.__main__ import write_export
from services.audit.log import Log
from services.audit.stamping import Stamper
from shared import stamps
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Stamping
from shared.stamps import StampError
from shared.transparency.note import Signer
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import KEY, ORIGIN, close, fill, open_log
from tests.unit.verifier import forging
from verifier import verify

VKEY = str(Signer(ORIGIN, KEY).key)
CONFIGURATION = """
[ tsa ]
default_tsa = here
[ here ]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
tsa_name = yes
"""


class Authority:
    """A certificate authority with a time-stamping certificate, both of OpenSSL's making."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        (folder / "serial").write_text("01\n")
        (folder / "tsa.cnf").write_text(CONFIGURATION.format(folder=folder))
        (folder / "ext").write_text("extendedKeyUsage=critical,timeStamping\nkeyUsage=critical,digitalSignature\n")
        self._run(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=Test root",
            "-keyout", "root.key", "-out", "root.pem",
        )  # fmt: skip
        self._run(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Test TSA", "-keyout", "tsa.key", "-out", "tsa.csr"
        )
        self._run(
            "x509", "-req", "-in", "tsa.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-days", "30",
            "-extfile", "ext", "-out", "tsa.pem",
        )  # fmt: skip
        self.root = folder / "root.pem"

    def _run(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def answer(self, query: bytes) -> bytes:
        (self.folder / "query.tsq").write_bytes(query)
        self._run(
            "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query.tsq", "-signer", "tsa.pem",
            "-inkey", "tsa.key", "-out", "reply.tsr",
        )  # fmt: skip
        return (self.folder / "reply.tsr").read_bytes()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    return Authority(tmp_path_factory.mktemp("tsa") / "authority")


@contextmanager
def serving(answer: Callable[[bytes], bytes], status: int = 200) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/tsa"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = open_log(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path)
    yield made
    close(made)


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def kept(log: Log) -> list[store.Stamp]:
    with log.store.reading() as connection:
        return store.stamps(connection, 2**62)


def kinds(log: Log) -> list[bytes]:
    with log.store.reading() as connection:
        return [row.leaf for row in store.leaves(connection, 0, 2**40)]


@pytest.fixture
def stamped(log: Log, authority: Authority, tmp_path: Path) -> Path:
    """The export of a log with two stamps."""
    with serving(authority.answer) as url:
        settings = Stamping(url=url, certificates=authority.root, interval_seconds=0.05)
        fill(log, 5)
        stamper = Stamper(log, settings)
        stamper.start()
        until(lambda: len(kept(log)) == 1)
        fill(log, 5, first=5)
        until(lambda: len(kept(log)) == 2)
        stamper.close()
    fill(log, 3, first=10)
    write_export(f"sqlite:///{tmp_path / 'audit.db'}", tmp_path / "log.zip")
    return tmp_path / "log.zip"


def test_stamps_are_kept_exported_held_to_the_log_and_verified_by_openssl(
    stamped: Path, authority: Authority, tmp_path: Path
) -> None:
    report = verify.verify(str(stamped), key=VKEY)
    assert (report.code, [one["size"] for one in report.stamps]) == (verify.PROVED, [5, 10]), report.problems
    words = verify.summary(report)
    command = words.partition("openssl ts")[2].splitlines()[0].replace("tsa.pem", str(authority.root))
    with zipfile.ZipFile(stamped) as archive:
        archive.extractall(tmp_path / "export")
    done = subprocess.run(
        ["openssl", "ts", *command.split()], cwd=tmp_path / "export", capture_output=True, text=True, check=False
    )
    assert "Verification: OK" in done.stdout + done.stderr
    moment = stamps.verify(
        (tmp_path / "export/stamps/10.tsr").read_bytes(),
        (tmp_path / "export/stamps/10.checkpoint").read_bytes(),
        authority.root.read_bytes(),
    )
    assert moment.strftime("%Y-%m-%dT%H:%M:%S") == report.stamps[1]["time"].rstrip("Z").partition(".")[0]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("swapped", verify.ALTERED),
        ("of other bytes", verify.ALTERED),
        ("cut short", verify.MALFORMED),
        ("without its checkpoint", verify.ALTERED),
    ],
)
def test_a_stamp_that_is_not_of_its_checkpoint_is_noticed(
    change: str, code: int, stamped: Path, authority: Authority, tmp_path: Path
) -> None:
    files = forging.read(stamped)
    if change == "swapped":
        files["stamps/5.tsr"], files["stamps/10.tsr"] = files["stamps/10.tsr"], files["stamps/5.tsr"]
    elif change == "of other bytes":
        with serving(authority.answer) as url:
            files["stamps/5.tsr"] = stamps.request(url, b"else", authority.root.read_bytes(), timeout=10)[0]
    elif change == "cut short":
        files["stamps/5.tsr"] = files["stamps/5.tsr"][:-100]
    else:
        del files["stamps/5.checkpoint"]
    forged = forging.write(tmp_path / "forged.zip", forging.with_manifest(files))
    assert verify.verify(str(forged), key=VKEY).code == code


def test_a_log_rewritten_under_its_key_does_not_have_what_was_stamped(stamped: Path, tmp_path: Path) -> None:
    files = forging.read(stamped)
    records = forging.leaves(files)
    records[2] = forging.changed(records[2], lambda record: record.update(outcome="MINOR_FAILURE"))
    forged = forging.rebuilt(files, records, Signer(ORIGIN, KEY))
    assert verify.verify(str(forging.write(tmp_path / "forged.zip", forged)), key=VKEY).code == verify.FORKED


def test_a_stamp_of_another_authority_does_not_verify(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with serving(authority.answer) as url:
        with pytest.raises(StampError):
            stamps.request(url, b"data", other.root.read_bytes(), timeout=10)
        token, _ = stamps.request(url, b"data", authority.root.read_bytes(), timeout=10)
    with pytest.raises(StampError):
        stamps.verify(token, b"other data", authority.root.read_bytes())
    with pytest.raises(StampError):
        stamps.verify(token, b"data", authority.root.read_bytes(), nonce=12345)


def test_an_answer_to_an_earlier_question_is_refused(authority: Authority) -> None:
    """A replayed answer stamps the same bytes, but bears another nonce."""
    first: list[bytes] = []

    def replay(query: bytes) -> bytes:
        if not first:
            first.append(authority.answer(query))
        return first[0]

    with serving(replay) as url:
        stamps.request(url, b"data", authority.root.read_bytes(), timeout=10)
        with pytest.raises(StampError):
            stamps.request(url, b"data", authority.root.read_bytes(), timeout=10)


def test_an_authority_that_fails_hinders_nothing_and_is_told_of(log: Log, authority: Authority) -> None:
    with serving(lambda query: b"no", status=500) as url:
        settings = Stamping(url=url, certificates=authority.root, interval_seconds=0.05, alert_seconds=0.2)
        stamper = Stamper(log, settings, retry_seconds=0.05)
        fill(log, 5)
        stamper.start()
        fill(log, 5, first=5)
        until(lambda: any(b"STAMP_MISSED" in leaf for leaf in kinds(log)))
        stamper.close()
    assert sum(b"STAMP_MISSED" in leaf for leaf in kinds(log)) == 1
    assert kept(log) == []


def test_without_the_authoritys_certificates_it_does_not_start(log: Log, tmp_path: Path) -> None:
    with pytest.raises(StepwedgeError) as refused:
        Stamper(log, Stamping(url="http://127.0.0.1:1", certificates=tmp_path / "none.pem"))
    assert refused.value.code == ErrorCode.ERROR_CODE_CONFIGURATION
    assert audit_pb2.ALERT_CODE_STAMP_MISSED == 6
    assert json.dumps(str(refused.value))
