"""Malformed STOW-RS requests without number: `python -m tests.faults.stow_fuzz --count 50000 [--first NUMBER]`.

Each is made from a valid one by a seeded mutation of the HTTP message, of the multipart framing or of the DICOM objects
inside. Ingest must answer each within `PATIENCE_SECONDS` with a status of the standard (or hang up on what is no HTTP),
grow by no more than `GROWTH_BYTES`, leave no half received file, log no defect, and take a good object at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from tests.wire.cluster import eventually
from tests.wire.dicomweb_house import BOUNDARY, STOW_TYPE, Web, dicomweb_house, multipart
from tests.wire.ingest_house import dx, part10
from tests.wire.ports import port

PATIENCE_SECONDS: Final = 20.0
GROWTH_BYTES: Final = 256 << 20
"""Beyond what the process takes once it has warmed up."""
STATUSES: Final = frozenset({200, 202, 400, 401, 403, 404, 405, 406, 408, 409, 411, 413, 415, 431, 501, 503})
_HUNG_UP: Final = 0
_THREADS: Final = 3
_TELL_EVERY: Final = 1000


@dataclass
class Request:
    """A request as it goes over the line."""

    method: str = "POST"
    path: str = "/dicom-web/studies"
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    chunked: bool = False
    length: int | None = None

    def message(self) -> bytes:
        """The bytes of it."""
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in _pieces(self.body, 700)) + b"0\r\n\r\n"
        else:
            lines.append(f"Content-Length: {len(self.body) if self.length is None else self.length}")
            body = self.body
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _somewhere(chance: random.Random, data: bytes) -> tuple[int, int]:
    first = chance.randrange(len(data) + 1)
    return first, min(len(data), first + chance.choice((1, 2, 4, 16, 200)))


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut, doubled, moved or put in, one to eight times."""
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        first, last = _somewhere(chance, data)
        match chance.randrange(6):
            case 0:
                data = data[:first] + chance.randbytes(last - first) + data[last:]
            case 1:
                data = data[:first] + data[last:]
            case 2:
                data = data[:last] + data[first:]
            case 3:
                data = data[:first]
            case 4:
                to = chance.randrange(len(data) + 1)
                data = data[:to] + data[first:last] + data[to:]
            case _:
                word = chance.choice(
                    (b"\r\n", b"--", b"\r\n--" + BOUNDARY.encode(), b"\0", b"\xff\xff\xff\xff", b":", b'"')
                )
                data = data[:first] + word + data[first:]
    return data


def _framing(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    one.body = mutated(chance, one.body)


def _inside(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    one.body = multipart([mutated(chance, chance.choice(objects)) for _ in range(chance.randint(1, 3))])


def _lengths(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    data = bytearray(chance.choice(objects))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(132, len(data) - 4)
        data[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\xfe\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\0\0"))
    one.body = multipart([bytes(data)])


def _part_headers(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    head = mutated(
        chance, b"Content-Type: application/dicom\r\nContent-Location: /a\r\nX: " + b"y" * chance.choice((1, 9000))
    )
    one.body = (
        b"--" + BOUNDARY.encode() + b"\r\n" + head + b"\r\n\r\n" + objects[0] + b"\r\n--" + BOUNDARY.encode() + b"--"
    )


def _many_parts(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    one.body = multipart([chance.randbytes(chance.randrange(40)) for _ in range(chance.choice((10, 60)))])


def _content_type(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    kind = mutated(chance, STOW_TYPE.encode()).decode("latin-1")
    one.headers = [(name, kind if name == "Content-Type" else value) for name, value in one.headers]


def _length(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    one.length = chance.randrange(len(one.body) + 1)


def _path(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    one.path = "/dicom-web/studies/" + mutated(chance, b"1.2.840.1").hex("%" if chance.random() < 0.5 else ".")


def _accept(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    one.headers.append(("Accept", mutated(chance, b"application/dicom+json, */*;q=0.1").decode("latin-1")))


def _token(chance: random.Random, one: Request, objects: Sequence[bytes]) -> None:
    one.headers = [
        (name, mutated(chance, value.encode()).decode("latin-1") if name == "Authorization" else value)
        for name, value in one.headers
    ]


Mutation = Callable[[random.Random, Request, Sequence[bytes]], None]
MUTATIONS: Final[Sequence[tuple[int, Mutation]]] = (
    (30, _framing),
    (30, _inside),
    (15, _lengths),
    (8, _part_headers),
    (3, _many_parts),
    (5, _content_type),
    (3, _length),
    (2, _path),
    (2, _accept),
    (2, _token),
)


def malformed(chance: random.Random, objects: Sequence[bytes], token: str) -> tuple[str, bytes]:
    """Name of the mutation, and the message."""
    one = Request(
        headers=[("Authorization", f"Bearer {token}"), ("Content-Type", STOW_TYPE)],
        body=multipart([chance.choice(objects)]),
        chunked=chance.random() < 0.3,
    )
    (mutation,) = chance.choices([made for _, made in MUTATIONS], [weight for weight, _ in MUTATIONS])
    mutation(chance, one, objects)
    message = one.message()
    if chance.random() < 0.02:
        return "http", mutated(chance, message)
    # A line's end in a header would make another request of it.
    one.headers = [(name, re.sub(r"[\r\n]", "", value)) for name, value in one.headers]
    one.path = re.sub(r"[\x00-\x20\x7f-\xff]", "", one.path)
    return mutation.__name__.strip("_"), one.message()


def ask(address: tuple[str, int], message: bytes, *, end: bool) -> int:
    """Send, and return the status; 0 where the other end hung up without one. Raises TimeoutError.

    end: close our side behind it, where the message may say that more comes.
    """
    with socket.create_connection(address, timeout=PATIENCE_SECONDS) as line:
        try:
            line.sendall(message)
            if end:
                line.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer = b""
        try:
            while b"\r\n" not in answer:
                piece = line.recv(65536)
                if not piece:
                    break
                answer += piece
        except ConnectionError:
            pass
    found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", answer)
    return int(found[1]) if found else _HUNG_UP


@dataclass
class Report:
    """What came of it."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    growth_bytes: int = 0
    seconds: float = 0.0


def run(web: Web, count: int, seed: int, first: int = 0) -> Report:
    """Send `count` malformed requests from number `first` on; the report's `wrong` is empty where all went well."""
    report, lock = Report(), threading.Lock()
    objects = [part10(dx(seed=number)) for number in range(4)]
    process = psutil.Process(web.house.processes["ingest"].pid)
    warm = min(count // 10, 1000)
    numbers = iter(range(first, first + count))
    after_warming: list[int] = []
    began = time.monotonic()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
                if number == first + warm:
                    after_warming.append(process.memory_info().rss)
            if number is None:
                return
            if number % _TELL_EVERY == 0:
                print(f"{number}: {len(report.wrong)} wrong so far", file=sys.stderr, flush=True)
            name, message = malformed(random.Random(f"{seed}/{number}"), objects, web.token)
            start = time.monotonic()
            try:
                status = ask(web.address, message, end=name == "http")
            except OSError as error:
                status = -1
                words = type(error).__name__
            else:
                words = str(status)
            with lock:
                report.slowest_seconds = max(report.slowest_seconds, time.monotonic() - start)
                report.statuses[f"{name} {status}"] += 1
                if status not in STATUSES and not (status == _HUNG_UP and name == "http"):
                    report.wrong.append(f"{seed}/{number} {name}: {words}")

    threads = [threading.Thread(target=work) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.seconds = time.monotonic() - began
    report.growth_bytes = process.memory_info().rss - (after_warming or [0])[0]
    if report.growth_bytes > GROWTH_BYTES:
        report.wrong.append(f"grew by {report.growth_bytes} bytes")
    if web.house.processes["ingest"].poll() is not None:
        report.wrong.append("ingest ended")
    eventually(lambda: not web.house.incoming_files(), 30, what="no half received file")
    if web.stow([part10(dx())]).status != 200:
        report.wrong.append("a good object is not taken any more")
    words = ("a part could not be kept", "a request could not be answered", "Traceback")
    defects = [line for line in web.house.log_text().splitlines() if any(word in line for word in words)]
    report.wrong += defects[:10]
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run by hand; prints the report as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.stow_fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first request, to go on where a run ended")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, dicomweb_house(Path(folder), port, tls=False) as web:
        report = run(web, given.count, given.seed, given.first)
    print(
        json.dumps(
            {**vars(report), "wrong": report.wrong[:50], "statuses": dict(sorted(report.statuses.items()))}, indent=1
        )
    )
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
