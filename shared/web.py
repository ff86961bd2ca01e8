"""A small HTTP/1.1 server, with or without TLS, that is bounded in length, time and number of connections."""

import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from shared import logs

IDLE_SECONDS = 10.0
"""How long a connection may say nothing."""
LIFE_SECONDS = 60.0
"""How long a connection may last, whatever it does: one that trickles is cut off."""
MAX_CONNECTIONS = 32
"""Connections that are open at once; one more is closed unanswered."""
TEXT = "text/plain; charset=utf-8"

_logger = logs.get_logger(__name__)


class Answer(NamedTuple):
    """What goes back over HTTP."""

    status: HTTPStatus
    body: str
    content_type: str = TEXT
    headers: Mapping[str, str] = {}
    data: bytes = b""
    """The body, where it is no text."""


class Handler(BaseHTTPRequestHandler):
    """One connection, which may bring many requests. Whoever derives from it gives it its `do_` methods."""

    protocol_version = "HTTP/1.1"
    server_version = "stepwedge"
    sys_version = ""
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    server: "Server"

    def setup(self) -> None:
        """Bound the connection's life, and shake hands in its own thread."""
        self._cut = threading.Timer(self.server.life_seconds, self.server.cut, (self.request,))
        self._cut.daemon = True
        self._cut.start()
        self.request.settimeout(self.timeout)
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def finish(self) -> None:
        """Close."""
        self._cut.cancel()
        with contextlib.suppress(OSError):
            super().finish()

    def answer(self, answer: Answer) -> None:
        """Send an answer."""
        body = answer.data or answer.body.encode()
        self.close_connection = self.close_connection or self.server.stopping
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is not HTTP, without quoting it."""
        self.close_connection = True
        if self.request_version != "HTTP/0.9":
            self.command = self.command or ""
            self.answer(Answer(HTTPStatus(code), "not a request that is understood here\n", TEXT))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what is asked is logged where it is answered, in words of ours."""


class Server(ThreadingHTTPServer):
    """Listens, and gives each connection a thread while there are threads to give."""

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS
    allow_reuse_address = True

    def __init__(
        self,
        host: str,
        port: int,
        handler: type[Handler],
        *,
        tls: ssl.SSLContext | None = None,
        life_seconds: float = LIFE_SECONDS,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.life_seconds = life_seconds
        self.stopping = False
        self._tls = tls
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._open: set[socket.socket] = set()
        self._guard = threading.Condition()
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """Bind, without asking the name service for our own name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        """Accept; the handshake of TLS is left to the connection's thread."""
        connection, address = super().get_request()
        if self._tls is not None:
            wrapped = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return wrapped, address
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread, or close the connection where there are too many."""
        if not self._free.acquire(blocking=False):
            self.cut(request)
            request.close()
            return
        with self._guard:
            self._open.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._released(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._released(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the other side's affair; a defect of ours is logged without its words."""
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            _logger.error("a request could not be answered", **logs.describe(error))

    def cut(self, connection: socket.socket) -> None:
        """End a connection, whoever uses it. Not SSLSocket.shutdown: that would take TLS away from under a writer."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def drain(self, seconds: float) -> None:
        """Take nothing new, let what is being answered be answered, then close."""
        self.stopping = True
        self.shutdown()
        self.server_close()
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RD)  # those that wait for a request end
            self._guard.wait_for(lambda: not self._open, seconds)
            for connection in self._open:
                self.cut(connection)

    def server_close(self) -> None:
        """Close the listening socket; threads are waited for in `drain`."""
        self.socket.close()

    def _released(self, request: Any) -> None:
        with self._guard:
            if request in self._open:
                self._open.discard(request)
                self._free.release()
                self._guard.notify_all()
