"""The log as tiles over HTTPS: what is served to whom, in which form, and everything else refused."""

import gzip
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from services.audit import publication, store, tiles
from services.audit.log import Log
from services.audit.tiles import Tile
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.pki import Credentials
from shared.transparency import merkle
from shared.transparency.note import open_checkpoint
from stepwedge.audit.v1 import audit_pb2
from tests.unit.audit.making import ORIGIN, close, fill, open_log

SIZE = 256 * 3 + 19


class Said(NamedTuple):
    status: int
    body: bytes
    headers: dict[str, str]


class House:
    """A log, and its publication."""

    def __init__(self, folder: Path, pki: Path, *, anyone: bool = False) -> None:
        self.pki = pki
        self.log: Log = open_log(f"sqlite:///{folder / 'audit.db'}", folder)
        fill(self.log, SIZE)
        tls = publication.context(Credentials.load(pki, Identity.AUDIT), open_to_anyone=anyone)
        resources = publication.Publication(self.log.store)
        reads = publication.Reads(self.log)
        self.server = publication.Server("127.0.0.1", 0, resources, tls, open_to_anyone=anyone, on_read=reads.count)
        self.server.start()

    def tls(self, who: Identity | None) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        if who is not None:
            made.load_cert_chain(self.pki / f"{who.value}.crt", self.pki / f"{who.value}.key")
        return made

    def get(self, path: str, *, who: Identity | None = Identity.AUDITOR, method: str = "GET", **headers: str) -> Said:
        link = http.client.HTTPSConnection("localhost", self.server.server_port, timeout=20, context=self.tls(who))
        try:
            link.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers.items():
                link.putheader(name.replace("_", "-"), value)
            link.endheaders()
            answer = link.getresponse()
            return Said(answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()})
        finally:
            link.close()

    def close(self) -> None:
        self.server.stop()
        close(self.log)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, pki_folder: Path) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("log"), pki_folder)
    yield made
    made.close()


@pytest.fixture
def fresh(tmp_path: Path, pki_folder: Path) -> Iterator[House]:
    """A log that nobody has read yet."""
    made = House(tmp_path, pki_folder)
    yield made
    made.close()


def test_the_whole_tree_is_rebuilt_from_what_is_served(house: House) -> None:
    said = house.get("/checkpoint")
    assert (said.status, said.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert said.headers["cache-control"] == "max-age=1"
    head = open_checkpoint(said.body, [house.log.key], ORIGIN)
    size = head.size  # those that were put there, and perhaps records of reading them
    assert SIZE <= size < SIZE + 5
    compact = merkle.CompactRange()
    for bundle in tiles.bundles_of(size):
        said = house.get(f"/{bundle.path}")
        assert (said.status, said.headers["content-type"]) == (200, "application/octet-stream")
        hashes = house.get("/" + Tile(0, bundle.index, bundle.width).path)
        assert hashes.headers["cache-control"] == "private, max-age=31536000, immutable"
        leaves = [merkle.leaf_hash(entry) for entry in tiles.decode_bundle(said.body)]
        assert b"".join(leaves) == hashes.body
        for leaf in leaves:
            compact.append(leaf)
    assert compact.root() == head.root
    top = house.get("/tile/1/000.p/3").body
    assert top == b"".join(
        merkle.perfect_root([house.get(f"/tile/0/00{n}").body[i : i + 32] for i in range(0, 8192, 32)])
        for n in range(3)
    )


def test_every_narrower_partial_tile_is_served_and_no_wider_one(house: House) -> None:
    whole = house.get("/tile/0/003.p/19").body
    assert house.get("/tile/0/003.p/1").body == whole[:32]
    assert house.get("/tile/0/001.p/7").body == house.get("/tile/0/001").body[: 7 * 32]
    grown = SIZE + 1 - 256 * 3  # reading entries recorded that, so the log has grown by it
    assert house.get("/tile/entries/003.p/1").status == 200
    for beyond in ("/tile/0/003", f"/tile/0/003.p/{grown + 9}", "/tile/0/004.p/1", "/tile/2/000.p/1", "/tile/63/000"):
        assert house.get(beyond).status == 404, beyond


PATHS = [
    "/",
    "//checkpoint",
    "/checkpoint/",
    "/checkpoint?x=1",
    "/tile/0/000?",
    "/tile/0/0",
    "/tile/0/x000/000",
    "/tile/00/000",
    "/tile/64/000",
    "/tile/-1/000",
    "/tile/0/000.p/0",
    "/tile/0/000.p/256",
    "/tile/0/000.p/01",
    "/tile/0/000.p/7/",
    "/tile/0/../0/000",
    "/tile/0/%30%30%30",
    "/tile/entries/../../checkpoint",
    "/tile/0/x000",
    "/tile/0/000/001",
    "/tile/0/x999/x999/x999/x999/x999/x999/x999/999",
    "/tile/entries/000\x7f",
    "/../etc/passwd",
    "/tile/0/000#x",
    "/.well-known/x",
    "/tile/0/" + "x001/" * 3000 + "001",
]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_a_path_that_is_none_is_not_found(path: str, house: House) -> None:
    link = socket.create_connection(("127.0.0.1", house.server.server_port), timeout=20)
    with house.tls(Identity.AUDITOR).wrap_socket(link, server_hostname="localhost") as secured:
        secured.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1"))
        status = int(secured.recv(64).split()[1])
    assert status in (400, 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_but_reading_is_done(method: str, house: House) -> None:
    said = house.get("/checkpoint", method=method)
    assert (said.status, said.headers["allow"]) == (405, "GET, HEAD")


def test_head_says_what_get_would_without_the_body(house: House) -> None:
    said = house.get("/tile/0/000", method="HEAD")
    assert (said.status, said.body, said.headers["content-length"]) == (200, b"", "8192")


def test_bundles_go_compressed_to_whoever_takes_that(house: House) -> None:
    plain = house.get("/tile/entries/000")
    packed = house.get("/tile/entries/000", Accept_Encoding="br;q=1.0, gzip;q=0.8")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in plain.headers


@pytest.mark.parametrize("who", [Identity.INGEST, Identity.REDACTION, Identity.INFERENCE, Identity.PACS])
def test_a_certificate_of_somebody_else_is_forbidden(who: Identity, house: House) -> None:
    assert house.get("/checkpoint", who=who).status == 403
    assert house.get("/checkpoint", who=Identity.OPERATOR).status == 200


def test_without_a_certificate_there_is_no_connection(house: House) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        house.get("/checkpoint", who=None)


def test_opened_to_anyone_by_the_settings_it_asks_for_none(tmp_path: Path, pki_folder: Path) -> None:
    house = House(tmp_path, pki_folder, anyone=True)
    try:
        assert house.get("/checkpoint", who=None).status == 200
        assert house.get("/tile/entries/000", who=None).status == 200
    finally:
        house.close()


def test_who_reads_entries_is_recorded_once_a_minute_before_they_are_handed_out(fresh: House) -> None:
    for _ in range(5):
        assert fresh.get("/tile/entries/000").status == 200
    fresh.get("/tile/0/000")
    assert fresh.log.head is not None
    assert fresh.log.head.size == SIZE + 1
    with fresh.log.store.reading() as connection:
        (row,) = store.leaves(connection, SIZE, SIZE + 1)
    assert b'"kind":"READ"' in row.leaf
    assert b'"reader":"auditor"' in row.leaf


def test_what_cannot_be_recorded_is_not_read(fresh: House) -> None:
    def refuse(_: Identity | None) -> None:
        raise StepwedgeError(ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE, "the log is away")

    fresh.server.on_read = refuse
    said = fresh.get("/tile/entries/000")
    assert (said.status, said.headers["retry-after"]) == (503, "1")
    assert fresh.get("/tile/0/000").status == 200


def test_a_body_with_a_request_is_not_taken_for_the_next_one(house: House) -> None:
    link = socket.create_connection(("127.0.0.1", house.server.server_port), timeout=20)
    with house.tls(Identity.AUDITOR).wrap_socket(link, server_hostname="localhost") as secured:
        inner = b"GET /checkpoint HTTP/1.1\r\nHost: x\r\n\r\n"
        head = b"GET /tile/0/000.p/1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner)
        secured.sendall(head + inner)
        said = b""
        while piece := secured.recv(65536):
            said += piece
    assert said.count(b"HTTP/1.1 ") == 1


def test_an_entry_too_long_for_a_bundle_never_gets_into_the_log() -> None:
    with pytest.raises(OverflowError):
        tiles.encode_bundle([bytes(65536)])
    assert tiles.decode_bundle(tiles.encode_bundle([bytes(65535), b""])) == [bytes(65535), b""]
    assert audit_pb2.RECORD_KIND_READ == 9
