"""A reader who is too slow holds neither a place nor an object for ever; over real sockets."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.ingest.dicomweb.app import Admission
from services.ingest.dicomweb.pace import Pace

_LONG = 64 << 20
_ASK = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


async def _answer(_: Request) -> Response:
    return Response(bytes(_LONG))


@contextmanager
def _served(patience: float, rate: float) -> Iterator[tuple[str, int]]:
    app = Starlette(routes=[Route("/", _answer)])
    app.add_middleware(Admission, most=1, pace=partial(Pace, patience=patience, rate=rate))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http="h11", lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def _asked(address: tuple[str, int]) -> socket.socket:
    made = socket.create_connection(address, timeout=10)
    made.sendall(_ASK)
    return made


def _status(connection: socket.socket) -> int:
    return int(connection.recv(64).split()[1])


def _all_of(connection: socket.socket) -> int:
    taken = 0
    with suppress(TimeoutError, ConnectionError):
        while piece := connection.recv(1 << 20):
            taken += len(piece)
    return taken


def test_who_reads_nothing_is_broken_off_and_gives_the_place_back() -> None:
    with _served(0.3, rate=1 << 30) as address, _asked(address) as idle:
        assert _status(idle) == 200
        deadline = time.monotonic() + 10
        while True:
            with _asked(address) as other:
                if _status(other) == 200:
                    break
            assert time.monotonic() < deadline, "the place was never given back"
            time.sleep(0.05)
        assert _all_of(idle) < _LONG, "the answer was not broken off"


def test_who_reads_with_pauses_gets_the_whole_answer() -> None:
    with _served(3, rate=1 << 20) as address, _asked(address) as reader:
        time.sleep(0.5)  # a pause is what is tested
        taken = 0
        while taken < _LONG:
            piece = reader.recv(1 << 20)
            assert piece, "the answer ended early"
            taken += len(piece)
