"""The witness over HTTP/1.1, with or without TLS: one method, two paths."""

import re
import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus

from shared import web
from shared.transparency.add_checkpoint import MAX_BODY
from shared.web import IDLE_SECONDS, LIFE_SECONDS, MAX_CONNECTIONS, Answer

__all__ = ["IDLE_SECONDS", "LIFE_SECONDS", "MAX_CONNECTIONS", "Handler", "Server"]

_LENGTH = re.compile(r"[0-9]{1,9}")


class Handler(web.Handler):
    """One connection, which may bring many requests."""

    server_version = "stepwedge-witness"
    server: "Server"

    def do_POST(self) -> None:  # noqa: N802 - http.server's name
        """Answer add-checkpoint and add-rotation."""
        body = self._body()
        if body is None:
            return
        answers = self.server.answers.get(self.path)
        if answers is None:
            self.answer(Answer(HTTPStatus.NOT_FOUND, self._only()))
        else:
            self.answer(answers(body))

    def _only(self) -> str:
        return f"there is only POST {' and '.join(self.server.answers)} here\n"

    def _other(self) -> None:
        self.close_connection = True
        known = self.path in self.server.answers
        status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
        headers = {"Allow": "POST"} if known else {}
        self.answer(Answer(status, self._only(), headers=headers))

    do_GET = do_HEAD = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = _other  # noqa: N815 - http.server's names

    def _body(self) -> bytes | None:
        """The body; None where it was refused or broke off, and then the connection ends."""
        lengths = self.headers.get_all("Content-Length", [])
        refusal = None
        if "Transfer-Encoding" in self.headers or len(lengths) != 1:
            refusal = Answer(HTTPStatus.LENGTH_REQUIRED, "a request states its length, once\n")
        elif not _LENGTH.fullmatch(lengths[0]):
            refusal = Answer(HTTPStatus.BAD_REQUEST, "the length is not a number\n")
        elif int(lengths[0]) > MAX_BODY:
            refusal = Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too long\n")
        if refusal is not None:
            self.close_connection = True
            self.answer(refusal)
            return None
        body: bytes = self.rfile.read(int(lengths[0]))
        if len(body) < int(lengths[0]):
            self.close_connection = True
            return None
        return body


class Server(web.Server):
    """Listens for requests to cosign."""

    def __init__(
        self,
        host: str,
        port: int,
        answers: Mapping[str, Callable[[bytes], Answer]],
        *,
        tls: ssl.SSLContext | None = None,
        life_seconds: float = LIFE_SECONDS,
    ) -> None:
        self.answers = answers
        super().__init__(host, port, Handler, tls=tls, life_seconds=life_seconds)
