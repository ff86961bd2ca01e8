"""What the answer of a STOW-RS peer means: an object counts as delivered only where the peer says that it has it."""

import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.ingest import stow_out
from services.ingest.outgoing import Outgoing
from services.ingest.stow_out import StowSender, _judge
from shared.directory_store import DirectoryStore
from shared.errors import StepwedgeError
from shared.objects import Zone
from shared.settings import Destination

UID = "1.2.3"
ONE = Outgoing("1.2.840.10008.5.1.4.1.1.1.1", UID, "1.2.840.10008.1.2.1", "0" * 64)


def item(uid: str, reason: int | None = None) -> dict[str, Any]:
    named: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    return named if reason is None else {**named, "00081197": {"vr": "US", "Value": [reason]}}


STORED = {"00081199": {"vr": "SQ", "Value": [item(UID)]}}


def test_what_is_stored_with_a_warning_is_delivered():
    _judge(ONE, 202, {"00081199": {"vr": "SQ", "Value": [item(UID, 0xB000)]}})
    _judge(ONE, 202, STORED)
    _judge(ONE, 200, None)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [],
        {"0008119A": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA900]}}]}},
        {"00081199": {"vr": "SQ", "Value": [item("1.2.4")]}},
        {"00081199": {"vr": "SQ", "Value": [7]}},
    ],
)
def test_accepted_with_failures_is_no_delivery_of_what_the_answer_does_not_name(answer: Any):
    with pytest.raises(StepwedgeError) as caught:
        _judge(ONE, 202, answer)
    assert not caught.value.permanent


def test_a_failure_that_the_answer_names_stands_whatever_the_status():
    for status in (200, 202, 409):
        with pytest.raises(StepwedgeError) as caught:
            _judge(ONE, status, {"00081198": {"vr": "SQ", "Value": [item(UID, 0xA900)]}})
        assert caught.value.permanent


@pytest.mark.parametrize("said", [b"HTTP/1.1 100 Continue\r\n\r\n", b""])
def test_a_peer_that_goes_on_without_an_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes):
    monkeypatch.setattr(stow_out, "_WHOLE_SECONDS", 0.5)
    monkeypatch.setattr(stow_out, "_SECONDS", 10.0)
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def trickle() -> None:
        line, _ = listener.accept()
        with line, suppress(OSError):
            line.recv(1 << 16)
            if not said:
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not over.wait(0.05):
                line.sendall(said or b" ")

    peer = threading.Thread(target=trickle, daemon=True)
    peer.start()
    objects = DirectoryStore({Zone.ORIGINAL: tmp_path})
    one = replace(ONE, sha256=objects.put(Zone.ORIGINAL, b"an object").sha256)
    delivered: list[Outgoing] = []
    began = time.monotonic()
    try:
        to = Destination(name="web", url=f"http://127.0.0.1:{listener.getsockname()[1]}/dicom-web")
        with pytest.raises(StepwedgeError) as caught:
            StowSender(objects).send(to, [one], delivered.append)
    finally:
        over.set()
        listener.close()
        peer.join(5)
    assert not caught.value.permanent
    assert delivered == []
    assert time.monotonic() - began < 8
