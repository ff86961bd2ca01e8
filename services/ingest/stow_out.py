"""Sends objects to a DICOMweb peer by STOW-RS (PS3.18 10.5), each in a request of its own over one connection.

One object a request, so that each is noted before the next is sent, as with C-STORE. The file goes out as it lies in
the store. Whether a failure may pass is read from the status (PS3.18 Table 10.5.3-1) and, where the object itself was
refused, from the Failure Reason (0008,1197).
"""

import http.client
import json
import secrets
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from services.ingest.dicom_tls import client_context
from services.ingest.dicomweb import multipart
from services.ingest.outgoing import Delivered, Outgoing, acknowledged, failed, passes
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone
from shared.settings import Destination

_SECONDS: Final = 60.0
"""For which a peer may say nothing."""
_WHOLE_SECONDS: Final = 900.0
"""For one object, whatever the peer says meanwhile: one that trickles must not hold a delivery for ever."""
_SLOWEST: Final = 100_000
"""Bytes a second that a line takes at least; a longer object has so much longer."""
_LONGEST_ANSWER: Final = 1 << 20
_JSON: Final = "application/dicom+json"
_FAILED_SOP_SEQUENCE, _REFERENCED_SOP_SEQUENCE, _FAILURE_REASON = "00081198", "00081199", "00081197"

_PASSING: Final = frozenset({401, 403, 408, 425, 429, 500, 502, 503, 504, 507})
"""Statuses after which another try may do: the peer is busy or away, or the token is replaced meanwhile."""
_STORED: Final = frozenset({200, 201, 204})
_SOME_STORED: Final = 202
"""Accepted with warnings or failures (Table 10.5.3-1): only the answer says which."""


class StowSender:
    """The way of STOW-RS."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def send(self, destination: Destination, objects: Sequence[Outgoing], delivered: Delivered) -> None:
        """See `outgoing.Way.send`."""
        connection = _connection(destination)
        headers = _headers(destination)
        path = f"{urlsplit(destination.url).path.rstrip('/')}/studies"
        try:
            for one in objects:
                status, answer = self._post(connection, path, headers, one)
                _judge(one, status, answer)
                delivered(one)
        finally:
            connection.close()

    def _post(
        self, connection: http.client.HTTPConnection, path: str, headers: dict[str, str], one: Outgoing
    ) -> tuple[int, Any]:
        data = self._objects.get(Zone.ORIGINAL, one.sha256)
        boundary = secrets.token_hex(24)
        head = multipart.opening(boundary, "application/dicom").removeprefix(b"\r\n")  # nothing stands before it
        tail = multipart.closing(boundary)
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        length = str(len(head) + len(data) + len(tail))
        late = threading.Event()
        cut = threading.Timer(_WHOLE_SECONDS + len(data) / _SLOWEST, _cut, (connection, late))
        cut.daemon = True
        cut.start()
        try:
            connection.request(
                "POST", path, iter((head, data, tail)), {**headers, "Content-Type": kind, "Content-Length": length}
            )
            response = connection.getresponse()
            text = response.read(_LONGEST_ANSWER + 1)
        except (OSError, http.client.HTTPException):
            # Of TLS too: a certificate that is not trusted today may be renewed tomorrow.
            raise failed("the peer does not answer over HTTP", permanent=False) from None
        finally:
            cut.cancel()
        if late.is_set():
            raise failed("the peer does not come to the end of its answer", permanent=False)
        if len(text) > _LONGEST_ANSWER or response.will_close:
            connection.close()  # the next request opens another
        answer: Any = None
        with suppress(ValueError, RecursionError):
            answer = json.loads(text)
        return response.status, answer


def _cut(connection: http.client.HTTPConnection, late: threading.Event) -> None:
    """End a connection that another thread waits on."""
    late.set()
    with suppress(OSError, TypeError):  # there may be none yet
        # Not TLS's own, which would take away under the other thread what it reads with.
        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _judge(one: Outgoing, status: int, answer: Any) -> None:
    """Return where the peer has the object; raise what its answer means where it has not."""
    reason = _failure_reason(answer, one.sop_instance_uid)
    if reason is not None:
        if acknowledged(one, reason):
            return
        raise failed("the peer did not store an object", permanent=not passes(reason))
    if status in _STORED or (status == _SOME_STORED and _is_referenced(answer, one.sop_instance_uid)):
        return
    if status == _SOME_STORED:
        raise failed("the peer does not say that it stored the object", permanent=False)
    if status == 409:
        raise failed("the peer refuses an object and does not say why", permanent=True)
    raise failed(f"the peer answers with HTTP status {status}", permanent=status not in _PASSING)


def _failure_reason(answer: Any, uid: str) -> int | None:
    """Failure Reason of the object in a Store Instances Response (PS3.18 10.5.3.2); None where it names none."""
    with suppress(AttributeError, KeyError, IndexError, TypeError, ValueError):
        items = answer.get(_FAILED_SOP_SEQUENCE, {}).get("Value", [])
        for item in items:
            named = item.get("00081155", {}).get("Value", [uid])
            if named[0] == uid:
                return int(item[_FAILURE_REASON]["Value"][0])
    return None


def _is_referenced(answer: Any, uid: str) -> bool:
    """Whether a Store Instances Response names the object among those that were stored."""
    with suppress(AttributeError, KeyError, IndexError, TypeError):
        items = answer[_REFERENCED_SOP_SEQUENCE]["Value"]
        return any(item["00081155"]["Value"][0] == uid for item in items)
    return False


def _connection(destination: Destination) -> http.client.HTTPConnection:
    place = urlsplit(destination.url)
    host = place.hostname or ""
    if place.scheme == "http":
        return http.client.HTTPConnection(host, place.port, timeout=_SECONDS)
    context = client_context(ca=destination.tls_ca, certificate=destination.tls_certificate, key=destination.tls_key)
    return _Https(host, place.port, context, destination.tls_name or host)


class _Https(http.client.HTTPSConnection):
    """HTTPS to a peer whose certificate may bear another name than the one that it is reached by."""

    def __init__(self, host: str, port: int | None, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, timeout=_SECONDS, context=context)
        self._secure, self._name = context, name

    def connect(self) -> None:
        """Connect, and hold the certificate against the name."""
        http.client.HTTPConnection.connect(self)
        self.sock = self._secure.wrap_socket(self.sock, server_hostname=self._name)


def _headers(destination: Destination) -> dict[str, str]:
    headers = {"Accept": _JSON, "User-Agent": "stepwedge"}
    if destination.token_file != Path():
        try:
            token = destination.token_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_CONFIGURATION, "the token of a destination cannot be read", permanent=False
            ) from None
        if not token or not token.isprintable():
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_CONFIGURATION, "the token of a destination is none", permanent=False
            )
        headers["Authorization"] = f"Bearer {token}"
    return headers
