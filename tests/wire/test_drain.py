"""What a SIGTERM does to the DICOM door: who was let in is served to the end, and nothing else is waited for."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.pdus import EXPLICIT, VERIFICATION, associate, command, framed, value
from tests.wire.cluster import eventually
from tests.wire.ingest_house import DX, House, Sender, dx, house
from tests.wire.ports import port

ACCEPTED, RELEASED = 2, 6
"""Types of A-ASSOCIATE-AC and A-RELEASE-RP (PS3.8 9.3)."""


@pytest.fixture
def at_home(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path, port) as made:
        yield made


def no_longer_listening(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return True
    return False


def said(connection: socket.socket, pdu: bytes) -> int:
    """Say a PDU, read one; its type."""
    connection.sendall(pdu)
    header = connection.recv(6, socket.MSG_WAITALL)
    assert len(header) == 6, "the connection was ended"
    connection.recv(int.from_bytes(header[2:6], "big"), socket.MSG_WAITALL)
    return header[0]


def test_associations_in_negotiation_at_a_sigterm_are_served(at_home: House):
    ingest = at_home.processes["ingest"]
    with socket.create_connection(at_home.dimse, timeout=20) as asked_before:
        assert said(asked_before, associate()) == ACCEPTED
        # So that what comes now was accepted by the system alone when the signal is heard.
        ingest.send_signal(signal.SIGSTOP)
        waiting = [socket.create_connection(at_home.dimse, timeout=20) for _ in range(6)]
        waiting[0].sendall(associate())
        waiting[1].sendall(associate()[:20])
        ingest.send_signal(signal.SIGTERM)
        ingest.send_signal(signal.SIGCONT)
        eventually(lambda: no_longer_listening(at_home.dimse), 10, what="no new connection")
        rest = [b"", associate()[20:], *[associate()] * 4]
        for connection, pdu in zip(waiting, rest, strict=True):
            assert said(connection, pdu) == ACCEPTED
        for connection in (asked_before, *waiting):
            assert said(connection, framed(4, value(3, 3, command(VERIFICATION, 0x30, "", with_data=False)))) == 4
            assert said(connection, framed(5, bytes(4))) == RELEASED
            connection.close()
    assert ingest.wait(10) == 0
    at_home.processes.pop("ingest")


def test_an_association_that_is_open_at_a_sigterm_goes_on_to_its_release(at_home: House):
    ingest = at_home.processes["ingest"]
    with Sender(at_home.dimse, [(DX, EXPLICIT)]) as one:
        assert one.store(dx()).Status == 0
        ingest.send_signal(signal.SIGTERM)
        eventually(lambda: no_longer_listening(at_home.dimse), 10, what="no new connection")
        assert one.store(dx()).Status == 0
    assert one.association.is_released
    assert ingest.wait(10) == 0
    at_home.processes.pop("ingest")
    assert at_home.incoming_files() == []


def test_a_door_without_associations_drains_at_once(at_home: House):
    with Sender(at_home.dimse, [(DX, EXPLICIT)]) as one:
        assert one.store(dx()).Status == 0
    with socket.create_connection(at_home.dimse, timeout=5):
        pass  # as a probe does that looks whether somebody listens
    began = time.monotonic()
    at_home.stop("ingest")
    assert time.monotonic() - began < 6, "no timeout is waited for; the rest is for a busy machine"
