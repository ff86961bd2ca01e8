"""The witness as a process of its own: HTTP and TLS, kills, floods; and the attacks that only a witness can catch."""

import itertools
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from services.witness.server import MAX_CONNECTIONS, Server
from services.witness.witness import Answer
from shared.paths import ROOT
from shared.pki import Credentials
from shared.transparency.add_checkpoint import MAX_BODY, encode
from shared.transparency.cosignature import WitnessKey
from shared.transparency.note import parse_signature
from tests.unit.witness.making import FORKED, HONEST, Tree, entries
from tests.wire.witness_house import House, Said, inode, running, say

VKEY = str(HONEST.signer.key)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with running(House(tmp_path / "witness", "witness.example/one", [VKEY])) as made:
        yield made


def test_every_status_of_the_specification_comes_over_http(house: House) -> None:
    answers = {
        200: HONEST.asks(0, 20),
        400: b"old 00\n\n" + HONEST.checkpoint(7).encode(),
        403: HONEST.asks(20, 30).replace(b"\xe2\x80\x94 test.example/log", b"\xe2\x80\x94 test.example/log2"),
        404: Tree(entries(5), origin="other.example/log").asks(0, 5),
        409: HONEST.asks(7, 9),
        422: FORKED.asks(20, 30),
    }
    said = {status: house.ask(body) for status, body in answers.items()}
    assert {status: answer.status for status, answer in said.items()} == {status: status for status in answers}
    text = HONEST.checkpoint(20).rpartition("\n\n")[0] + "\n"
    key = WitnessKey.parse(house.vkey)
    assert abs(key.time_of(text, parse_signature(said[200].body[:-1])) - time.time()) < 60
    assert (said[409].body, said[409].headers["Content-Type"]) == ("20\n", "text/x.tlog.size")


def test_a_connection_serves_many_requests(house: House) -> None:
    link = house.connection()
    try:
        sizes = [0, 1, 5, 9, 100, 300]
        for older, newer in itertools.pairwise(sizes):
            assert say(link, HONEST.asks(older, newer)).status == 200
        local = link.sock.getsockname()
        assert say(link, HONEST.asks(0, 5)).status == 409
        assert link.sock.getsockname() == local
    finally:
        link.close()


def test_what_is_not_add_checkpoint_is_refused(house: House) -> None:
    assert house.ask(b"", method="GET").status == 405
    assert house.ask(b"", method="GET").headers["Allow"] == "POST"
    assert house.ask(b"", method="GET", path="/").status == 404
    assert house.ask(HONEST.asks(0, 5), path="/add-checkpoint/").status == 404
    assert house.ask(HONEST.asks(0, 5), path="/").status == 404


def raw(house: House, data: bytes) -> bytes:
    host, _, port = house.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as link:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        got = b""
        while piece := link.recv(65536):
            got += piece
        return got


HEAD = b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\n"


NOT_PLAIN = [
    (HEAD + b"\r\n", b"411"),
    (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
    (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nold 0", b"411"),
    (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nold 0", b"411"),
    (HEAD + b"Content-Length: -5\r\n\r\n", b"400"),
    (HEAD + b"Content-Length: +5\r\n\r\nold 0", b"400"),
    (HEAD + b"Content-Length: " + str(MAX_BODY + 1).encode() + b"\r\n\r\n", b"413"),
    (HEAD + b"Content-Length: 50\r\n\r\nold 0", b""),
    (b"POST " + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
    (HEAD + b"X: y\r\n" * 500 + b"\r\n", b"431"),
    (b"\x16\x03\x01\x02\x00", b""),
    (b"BREW /add-checkpoint HTTP/1.1\r\n\r\n", b"501"),
]


def test_what_is_not_a_plain_request_is_refused_and_the_witness_lives(house: House) -> None:
    for data, status in NOT_PLAIN:
        first = raw(house, data).split(b"\r\n", 1)[0]
        assert first.split(b" ")[1:2] == ([status] if status else []), first
    assert house.ask(HONEST.asks(0, 5)).status == 200


def test_a_flood_of_silent_connections_is_bounded_and_passes(house: House) -> None:
    host, _, port = house.address.rpartition(":")
    held = [socket.create_connection((host, int(port)), timeout=20) for _ in range(MAX_CONNECTIONS + 8)]
    try:
        assert [link.recv(1) for link in held[-8:]] == [b""] * 8, "one more than there may be was kept"
    finally:
        for link in held:
            link.close()
    deadline = time.monotonic() + 20
    while True:
        try:
            assert house.ask(HONEST.asks(0, 5)).status == 200
            break
        except OSError:
            assert time.monotonic() < deadline


def test_a_connection_that_trickles_is_cut_off() -> None:
    server = Server("127.0.0.1", 0, {"/": lambda body: Answer(HTTPStatus.OK, "")}, life_seconds=0.5)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as link:
            link.settimeout(0.05)
            deadline = time.monotonic() + 15
            link.sendall(HEAD + b"Content-Length: 60000\r\n\r\n")
            while True:
                assert time.monotonic() < deadline, "it lives on"
                try:
                    link.sendall(b"x")
                    if link.recv(1) == b"":
                        break
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
    finally:
        server.drain(1.0)
        thread.join()


def test_it_drains_at_sigterm_though_connections_are_open(house: House) -> None:
    link = house.connection()
    assert say(link, HONEST.asks(0, 5)).status == 200
    began = time.monotonic()
    assert house.stop() == 0
    assert time.monotonic() - began < 5
    link.close()
    house.start()
    assert house.ask(HONEST.asks(0, 5)).body == "5\n"


def test_over_tls_it_shows_its_certificate(tmp_path: Path, pki_folder: Path) -> None:
    from shared.identity import Identity

    own = Credentials.load(pki_folder, Identity.AUDIT)
    files = ("--certificate", str(own.certificate), "--certificate-key", str(own.key))
    with running(House(tmp_path / "witness", "witness.example/one", [VKEY], *files)) as house:
        trusting = ssl.create_default_context(cafile=str(own.ca))
        assert say(house.connection(trusting), HONEST.asks(0, 5)).status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            say(house.connection(ssl.create_default_context()), HONEST.asks(5, 6))
        assert say(house.connection(trusting), HONEST.asks(5, 6)).status == 200


def test_killed_between_remembering_and_answering_it_has_not_forgotten(tmp_path: Path) -> None:
    house = House(tmp_path / "witness", "witness.example/one", [VKEY])
    unanswered = 0
    held = 0
    for attempt in range(1, 25):
        with running(house):
            if held:
                assert house.ask(HONEST.asks(0, 1)).body == f"{held}\n"
                # The checkpoint that was remembered and perhaps never answered: no other of its size is cosigned.
                assert house.ask(FORKED.asks(held, held)).status == (409 if held > 5 else 200)
            newer = held + 6
            answers: list[Said] = []

            def ask(older: int = held, newer: int = newer, answers: list[Said] = answers) -> None:
                try:
                    answers.append(house.ask(HONEST.asks(older, newer)))
                except OSError:
                    pass
                except Exception:  # the connection broke inside the answer
                    pass

            before = inode(house.folder / "state")
            thread = threading.Thread(target=ask)
            thread.start()
            deadline = time.monotonic() + 20
            while inode(house.folder / "state") == before:
                assert time.monotonic() < deadline
            house.stop(signal.SIGKILL)
            thread.join()
            held = newer
            unanswered += not answers
        if unanswered >= 2 and attempt >= 3:
            break
    assert unanswered >= 1, "the kill never came before the answer"
    with running(house):
        assert house.ask(HONEST.asks(held, held + 1)).status == 200


def test_a_witness_is_made_once_and_never_over_another(tmp_path: Path) -> None:
    house = House(tmp_path / "witness", "witness.example/one", [VKEY])
    assert (house.folder / "key").stat().st_mode & 0o777 == 0o600
    assert str(WitnessKey.parse(house.vkey)) == house.vkey
    again = house.command("--init", "--name", "witness.example/one")
    assert (again.returncode, "is there already" in again.stderr) == (78, True)
    assert house.command("--init").returncode == 2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "state").unlink(), "has no state"),
        (lambda folder: (folder / "state").write_text("{}"), "damaged"),
        (lambda folder: (folder / "key").unlink(), "cannot be read"),
        (lambda folder: (folder / "key").chmod(0o644), "0600"),
        (lambda folder: (folder / "key").write_text("PRIVATE+KEY+x"), "damaged"),
    ],
)
def test_a_witness_that_lost_what_it_needs_does_not_start(spoil: object, words: str, tmp_path: Path) -> None:
    house = House(tmp_path / "witness", "witness.example/one", [VKEY])
    spoil(house.folder)  # type: ignore[operator]
    refused = house.command("--listen", "127.0.0.1:0", "--log", VKEY)
    assert (refused.returncode, words in refused.stderr) == (78, True), refused.stderr
    assert "Traceback" not in refused.stderr


def test_it_does_not_start_without_a_log_that_it_knows(tmp_path: Path) -> None:
    house = House(tmp_path / "witness", "witness.example/one", [])
    assert house.command("--listen", "127.0.0.1:0").returncode == 78
    assert house.command("--listen", "127.0.0.1:0", "--log", house.vkey).returncode == 78


def test_the_command_stepwedge_witness_does_the_same_from_a_file_of_settings(tmp_path: Path) -> None:
    (tmp_path / "witness.toml").write_text(f'listen = "127.0.0.1:0"\nlogs = ["{VKEY}"]\nkey = "k"\nstate = "s"\n')
    command = [sys.executable, "-m", "cli", "witness", "--config", str(tmp_path / "witness.toml")]
    made = subprocess.run(
        [*command, "--init", "--name", "w.example/1"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert WitnessKey.parse(made.stdout).name == "w.example/1"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=20) as link:
            body = encode(0, [], HONEST.checkpoint(5))
            link.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert link.recv(1000).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()  # type: ignore[union-attr]
