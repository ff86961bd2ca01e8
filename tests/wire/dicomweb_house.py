"""A house whose ingest has its DICOMweb door open, and a plain HTTP client that can be as wrong as a test wants."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.identity import Identity
from stepwedge.ingest.v1 import tokens_pb2, tokens_pb2_grpc
from tests.wire.ingest_house import House, house

BOUNDARY = "part-of-a-study"
STOW_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
JSON = "application/dicom+json"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Web:
    """A client of the door."""

    def __init__(self, at_home: House, address: tuple[str, int], *, tls: bool = True) -> None:
        self.house = at_home
        self.address = address
        self.tls = tls
        self.root = f"{'https' if tls else 'http'}://localhost:{address[1]}/dicom-web"
        self.token = ""

    @property
    def context(self) -> ssl.SSLContext:
        """Trusts the cluster's CA."""
        return ssl.create_default_context(cafile=self.house.settings.cluster.pki / "ca.crt")

    def connect(self) -> http.client.HTTPConnection:
        """A connection of its own."""
        if self.tls:
            return http.client.HTTPSConnection("localhost", self.address[1], timeout=60, context=self.context)
        return http.client.HTTPConnection("localhost", self.address[1], timeout=60)

    def call(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        """One request below the root; a header of None is left out."""
        named = {"Authorization": f"Bearer {self.token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection = self.connect()
        try:
            connection.request(
                method, f"/dicom-web{path}", body, {name: value for name, value in named.items() if value is not None}
            )
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, accept: str | None = JSON, **headers: str | None) -> Answer:
        """GET."""
        return self.call("GET", path, Accept=accept, **headers)

    def stow(self, parts: Sequence[bytes], study: str = "", **headers: str | None) -> Answer:
        """Store Part 10 files."""
        headers = {"Content_Type": STOW_TYPE, "Accept": JSON, **headers}
        return self.call("POST", f"/studies/{study}" if study else "/studies", multipart(parts), **headers)

    def mint(self, *scopes: str, client: str = "pacs-1", days: int = 1) -> tokens_pb2.CreateTokenResponse:
        """A new token."""
        numbers = [tokens_pb2.TokenScope.Value(f"TOKEN_SCOPE_{scope.upper()}") for scope in scopes]
        request = tokens_pb2.CreateTokenRequest(client=client, scopes=numbers, days=days)
        return self.tokens.CreateToken(request, timeout=10)

    @property
    def tokens(self) -> tokens_pb2_grpc.TokenServiceStub:
        """The tokens as an operator calls them."""
        return tokens_pb2_grpc.TokenServiceStub(self.house.channel("ingest", Identity.OPERATOR))


def multipart(parts: Sequence[bytes], boundary: str = BOUNDARY, content_type: str = "application/dicom") -> bytes:
    """A body of Part 10 files."""
    body = b"".join(f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode() + part + b"\r\n" for part in parts)
    return body + f"--{boundary}--\r\n".encode()


def parts_of(answer: Answer) -> list[tuple[dict[str, str], bytes]]:
    """Headers and content of each part of an answer that has several."""
    from email.parser import BytesHeaderParser

    kind = BytesHeaderParser().parsebytes(b"Content-Type: " + answer.headers["content-type"].encode() + b"\r\n\r\n")
    boundary = str(kind.get_param("boundary")).encode()
    found = []
    for piece in (b"\r\n" + answer.body).split(b"\r\n--" + boundary)[1:-1]:
        head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        lines = (line.split(": ", 1) for line in head.decode().split("\r\n"))
        found.append(({name.lower(): value for name, value in lines}, content))
    return found


@contextmanager
def dicomweb_house(
    folder: Path, ports: Callable[[], int], *, tls: bool = True, toml: str = "", ingest: str = ""
) -> Iterator[Web]:
    """A house with the door open and a token for everything; `toml` is added to [ingest.dicomweb]."""
    port = ports()
    section = f"""
{ingest}
[ingest.dicomweb]
listen = "127.0.0.1:{port}"
url = "{"https" if tls else "http"}://localhost:{port}/dicom-web"
tls = {str(tls).lower()}
{toml}
"""
    with house(folder, ports, section) as at_home:
        web = Web(at_home, ("127.0.0.1", port), tls=tls)
        web.token = web.mint("store", "read").bearer
        yield web
