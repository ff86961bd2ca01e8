"""Malformed PDUs by the thousand at the DICOM door: `python -m tests.faults.pdus --count 50000 --seed 1`.

Each case is a connection that begins as PS3.8 wants it, for a random part of a conversation (association, C-ECHO,
C-STORE in fragments, release), then sends one PDU that is broken in one of many ways, half-closes, and reads until the
other side ends the connection. Asserted: the other side always ends it in time; no process dies or is replaced; no half
object is left; the memory of every process stays within a bound; an echo and a store succeed in between and at the end;
nothing is kept but whole objects.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.wire.cluster import eventually
from tests.wire.ingest_house import DX, House, Sender, data_set, dx, house
from tests.wire.ports import port

EXPLICIT: Final = "1.2.840.10008.1.2.1"
VERIFICATION: Final = "1.2.840.10008.1.1"
SECONDS: Final = 30.0
"""Patience with the end of a connection whose sender has said that nothing more comes."""
GROWTH: Final = 48 << 20
"""Bytes by which the memory of a process may grow."""

Pdu = bytes


def item(kind: int, content: bytes) -> bytes:
    """An item of an A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
    return struct.pack(">BBH", kind, 0, len(content)) + content


def framed(kind: int, body: bytes) -> Pdu:
    """A PDU."""
    return struct.pack(">BBI", kind, 0, len(body)) + body


def associate() -> Pdu:
    """An A-ASSOCIATE-RQ for a radiograph in context 1 and an echo in context 3."""
    contexts = b"".join(
        item(0x20, bytes([number, 0, 0, 0]) + item(0x30, name.encode()) + item(0x40, EXPLICIT.encode()))
        for number, name in ((1, DX), (3, VERIFICATION))
    )
    user = item(0x50, item(0x51, struct.pack(">I", 16384)) + item(0x52, b"1.2.3"))
    titles = b"ANY-SCP".ljust(16) + b"BAD-SCU".ljust(16) + bytes(32)
    return framed(1, struct.pack(">HH", 1, 0) + titles + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user)


def command(sop_class: str, field: int, instance: str, with_data: bool) -> bytes:
    """A command set (PS3.7 6.3.1), implicit little endian."""

    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) & 1)
        return struct.pack("<HHI", 0, number, len(value)) + value

    rest = (
        element(0x0002, sop_class.encode())
        + element(0x0100, struct.pack("<H", field))
        + element(0x0110, struct.pack("<H", 7))
        + element(0x0700, struct.pack("<H", 0))
        + element(0x0800, struct.pack("<H", 0 if with_data else 0x0101))
        + (element(0x1000, instance.encode()) if instance else b"")
    )
    return element(0x0000, struct.pack("<I", len(rest))) + rest


def value(context: int, control: int, content: bytes) -> bytes:
    """A presentation data value (PS3.8 9.3.5.1)."""
    return struct.pack(">IBB", len(content) + 2, context, control) + content


def conversation(uid: str, content: bytes) -> list[Pdu]:
    """What a well-behaved sender says."""
    pieces = [content[at : at + 400] for at in range(0, len(content), 400)]
    return [
        associate(),
        framed(4, value(3, 3, command(VERIFICATION, 0x30, "", with_data=False))),
        framed(4, value(1, 3, command(DX, 0x01, uid, with_data=True))),
        *(framed(4, value(1, 2 if at == len(pieces) - 1 else 0, piece)) for at, piece in enumerate(pieces)),
        framed(5, bytes(4)),
    ]


def _flipped(rng: random.Random, pdu: Pdu) -> Pdu:
    broken = bytearray(pdu)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    return bytes(broken)


def _spliced(rng: random.Random, pdu: Pdu) -> Pdu:
    at, other = rng.randrange(len(pdu)), rng.randrange(len(pdu))
    return pdu[:at] + pdu[other:]


def _numbers(rng: random.Random, pdu: Pdu) -> Pdu:
    """A field of four, two or one bytes set to a number at an edge."""
    form = rng.choice((">I", ">H", ">B"))
    edge = {">I": (0, 1, 2**31 - 1, 2**31, 2**32 - 1), ">H": (0, 1, 2**15, 2**16 - 1), ">B": (0, 127, 128, 255)}[form]
    at = rng.randrange(max(1, len(pdu) - 4))
    found = struct.pack(form, rng.choice(edge))
    return pdu[:at] + found + pdu[at + len(found) :]


def _reframed(rng: random.Random, pdu: Pdu) -> Pdu:
    """The right length around a body that is broken, so that it is read to its end."""
    body = _BREAKERS[rng.choice(("flipped", "spliced", "numbers"))](rng, pdu[6:] or b"\0")
    return framed(pdu[0], body)


_BREAKERS: Final[dict[str, Callable[[random.Random, Pdu], Pdu]]] = {
    "flipped": _flipped,
    "spliced": _spliced,
    "numbers": _numbers,
    "reframed": _reframed,
    "cut": lambda rng, pdu: pdu[: rng.randrange(len(pdu))],
    "length": lambda rng, pdu: pdu[:2] + struct.pack(">I", rng.choice((0, 1, 5, 2**20, 2**32 - 1))) + pdu[6:],
    "kind": lambda rng, pdu: bytes([rng.randrange(256)]) + pdu[1:],
    "noise": lambda rng, pdu: rng.randbytes(rng.choice((1, 6, 7, 100, 5000))),
    "framed noise": lambda rng, pdu: framed(rng.randrange(10), rng.randbytes(rng.randrange(2000))),
    "values": lambda rng, pdu: framed(
        4, b"".join(value(rng.randrange(256), rng.randrange(256), rng.randbytes(rng.randrange(99))) for _ in range(9))
    ),
    "command": lambda rng, pdu: framed(
        4, value(1, 3, _flipped(rng, command(DX, rng.choice((1, 0x30, 0x8001, 0x130, 0xFFF)), "1.2.3", with_data=True)))
    ),
    "twice": lambda rng, pdu: pdu + pdu,
}


class Campaign:
    """So many malformed PDUs, from several threads."""

    def __init__(self, home: House, count: int, seed: int, threads: int) -> None:
        self._home = home
        self._count = count
        self._seed = seed
        self._threads = threads
        self._taken = 0
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, tell: Callable[[str], None] = lambda line: None) -> None:
        """All of it; raises AssertionError on the first thing that is not as it should be."""
        before = self.memory()
        assert len(before) >= 2, "ingest and its workers"
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._threads)]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            for worker in workers:
                worker.join(5.0)
            self.well()
            tell(f"{sum(self.done.values())} PDUs, memory {[size >> 20 for size in self.memory().values()]} MiB")
            if self.problems:
                break
        for worker in workers:
            worker.join()
        assert not self.problems, self.problems[:5]
        self.well()
        eventually(lambda: self._home.incoming_files() == [], 30, what="no half-received file")
        after = self.memory()
        assert set(after) == set(before), "a process ended"
        grown = {pid: after[pid] - before[pid] for pid in after}
        assert max(grown.values()) < GROWTH, grown

    def memory(self) -> dict[int, int]:
        """Resident bytes of ingest and its workers."""
        found, pids = {}, [self._home.processes["ingest"].pid]
        while pids:
            pid = pids.pop()
            found[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(FileNotFoundError):  # a thread that has ended since
                    pids += [int(child) for child in (task / "children").read_text().split()]
        return found

    def well(self) -> None:
        """An echo and a store succeed."""
        with Sender(self._home.dimse, [(DX, EXPLICIT), (VERIFICATION, "1.2.840.10008.1.2")]) as one:
            assert one.association.send_c_echo().Status == 0
            assert one.store(dx()).Status == 0

    def _work(self) -> None:
        while not self.problems:
            with self._lock:
                number, self._taken = self._taken, self._taken + 1
            if number >= self._count:
                return
            rng = random.Random(f"{self._seed}/{number}")
            name = rng.choice(sorted(_BREAKERS))
            try:
                self._case(rng, name)
            except Exception as error:
                self.problems.append(f"case {number} ({name}): {type(error).__name__} {error}")
            with self._lock:
                self.done[name] += 1

    def _case(self, rng: random.Random, name: str) -> None:
        ds = dx()
        whole = conversation(str(ds.SOPInstanceUID), data_set(ds))
        at = rng.randrange(len(whole))
        said = [*whole[:at], _BREAKERS[name](rng, whole[at])]
        with socket.create_connection(self._home.dimse, timeout=SECONDS) as connection:
            try:
                connection.sendall(b"".join(said))
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                return  # it was ended already, which is right
            self._until_the_end(connection)

    @staticmethod
    def _until_the_end(connection: socket.socket) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                if not connection.recv(65536):
                    return
            except ConnectionError:
                return
        raise TimeoutError("the connection was not ended")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a campaign and say how it went."""
    parser = argparse.ArgumentParser(description="Malformed PDUs at the DICOM door.")
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, house(Path(name), port, "max_associations = 64") as home:
        campaign = Campaign(home, options.count, options.seed, options.threads)
        try:
            campaign.run(lambda line: print(line, flush=True))
        finally:
            print(dict(sorted(campaign.done.items())), "problems:", campaign.problems[:5], flush=True)
    print(f"{sum(campaign.done.values())} malformed PDUs: no crash, no hang, nothing left behind", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
