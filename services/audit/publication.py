"""The log as C2SP tlog-tiles over HTTPS: checkpoint, hash tiles and entry bundles, to read and nothing else.

Only a certificate of the cluster that names an auditor or an operator reads, unless the settings open it to anyone.
What is served is what the newest published checkpoint needs: nothing beyond its tree.
"""

import gzip
import ssl
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from services.audit import store, tiles
from services.audit.log import Log
from services.audit.reading import checkpoint_of, newest
from services.audit.reads import Read
from services.audit.state import unavailable
from services.audit.store import Head, Store
from services.audit.tiles import ENTRIES, Tile
from shared import logs, web
from shared.errors import StepwedgeError
from shared.identity import TRUST_DOMAIN, Identity
from shared.pki import Credentials
from shared.transparency import merkle
from shared.web import Answer
from stepwedge.audit.v1 import audit_pb2

READERS = frozenset({Identity.AUDITOR, Identity.OPERATOR})
"""Whose certificates are let in."""

CHECKPOINT_CACHE = "max-age=1"
TILE_CACHE = "private, max-age=31536000, immutable"
"""Tiles never change, so whoever reads may keep them; no cache on the way may, since entries hold pseudonyms."""
ENTRIES_CACHE = "private, max-age=3600"
"""A bundle changes when entries of it are pruned."""

EVERY_SECONDS = 60.0
"""Who reads entries on and on is recorded so often."""

_RECORD_SECONDS = 10.0
_OCTETS = "application/octet-stream"
_logger = logs.get_logger(__name__)


class Publication:
    """What is answered for a path. Any thread may ask."""

    def __init__(self, the_store: Store, *, cosigned: bool = False) -> None:
        self._store = the_store
        self._cosigned = cosigned

    def get(self, path: str) -> Answer:
        """The resource at a path: 200; 404 for what is none, or is beyond the published tree; 500, 503."""
        try:
            if path == "/checkpoint":
                return self._checkpoint()
            tile = tiles.parse_path(path.removeprefix("/")) if path.startswith("/tile/") else None
        except ValueError:
            tile = None
        except StepwedgeError as error:
            return _unavailable(error)
        if tile is None:
            return _nothing()
        try:
            data = self._tile(tile)
        except StepwedgeError as error:
            return _unavailable(error)
        if data is None:
            return _nothing()
        cache = ENTRIES_CACHE if tile.level == ENTRIES else TILE_CACHE
        return Answer(HTTPStatus.OK, "", _OCTETS, {"Cache-Control": cache}, data)

    def _head(self) -> Head:
        with self._store.reading() as connection:
            head = newest(connection)
            return (store.cosigned(connection) or head) if self._cosigned else head

    def _checkpoint(self) -> Answer:
        return Answer(HTTPStatus.OK, self._head().note, web.TEXT, {"Cache-Control": CHECKPOINT_CACHE})

    def _tile(self, tile: Tile) -> bytes | None:
        with self._store.reading() as connection:
            size = checkpoint_of(newest(connection)).size
            there = size >> 8 * max(tile.level, 0)
            first = tile.index * tiles.WIDTH
            if there < first + tile.width:
                return None
            if tile.level == ENTRIES:
                rows = store.leaves(connection, first, first + tile.width)
                data = tiles.encode_bundle([row.leaf for row in rows])
                whole = len(rows) == tile.width
            else:
                data = store.tile(connection, tile.level, tile.index)[: tile.width * merkle.HASH_SIZE]
                whole = len(data) == tile.width * merkle.HASH_SIZE
        if not whole:
            _logger.error("the stored log lacks a part of a tile", index=tile.index)
            return None
        return data


def _nothing() -> Answer:
    return Answer(HTTPStatus.NOT_FOUND, "there is no such tile in the log\n", headers={"Cache-Control": "no-store"})


def _unavailable(error: StepwedgeError) -> Answer:
    _logger.error("a tile could not be read", code=error.name)
    headers = {"Cache-Control": "no-store", "Retry-After": "1"}
    return Answer(HTTPStatus.SERVICE_UNAVAILABLE, "the log cannot be read now\n", headers=headers)


class Handler(web.Handler):
    """One connection of a reader."""

    server_version = "stepwedge-log"
    server: "Server"

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        """Answer for the path, to whoever may read."""
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            self.close_connection = True  # a body that nobody reads must not be taken for the next request
        if not self._may_read():
            self.answer(Answer(HTTPStatus.FORBIDDEN, "only auditors and operators of this cluster read the log\n"))
            return
        path = self.requestline.split(" ")[1]  # as it was asked for: http.server joins slashes in its own
        if path.startswith("/tile/entries/"):
            try:
                self.server.on_read(reader(self.request))
            except StepwedgeError as error:
                self.answer(_unavailable(error))
                return
        self.answer(self._packed(self.server.publication.get(path)))

    do_HEAD = do_GET  # noqa: N815

    def _other(self) -> None:
        self.close_connection = True
        headers = {"Allow": "GET, HEAD"}
        self.answer(Answer(HTTPStatus.METHOD_NOT_ALLOWED, "the log is only read here\n", headers=headers))

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _other  # noqa: N815

    def _may_read(self) -> bool:
        return self.server.open_to_anyone or reader(self.request) in READERS

    def _packed(self, answer: Answer) -> Answer:
        """Entry bundles go compressed to whoever takes that (tlog-tiles, Log entries)."""
        takes = {part.partition(";")[0].strip() for part in self.headers.get("Accept-Encoding", "").split(",")}
        if not self.path.startswith("/tile/entries/") or answer.status != HTTPStatus.OK:
            return answer
        headers = {**answer.headers, "Vary": "Accept-Encoding"}
        if "gzip" not in takes:
            return answer._replace(headers=headers)
        packed = gzip.compress(answer.data, compresslevel=1, mtime=0)
        return answer._replace(headers={**headers, "Content-Encoding": "gzip"}, data=packed)


def reader(connection: object) -> Identity | None:
    """Whom the certificate of a connection names; None where there is none, or it names nobody of the cluster."""
    if not isinstance(connection, ssl.SSLSocket):
        return None
    certificate = connection.getpeercert() or {}
    names: Any = certificate.get("subjectAltName", ())  # pairs of kind and value
    uris = [value for kind, value in names if kind == "URI" and value.startswith(TRUST_DOMAIN)]
    try:
        return Identity(uris[0].removeprefix(TRUST_DOMAIN)) if len(uris) == 1 else None
    except ValueError:
        return None


class Server(web.Server):
    """Listens for readers."""

    def __init__(
        self,
        host: str,
        port: int,
        publication: Publication,
        tls: ssl.SSLContext,
        *,
        open_to_anyone: bool = False,
        on_read: Callable[[Identity | None], None] = lambda who: None,
    ) -> None:
        self.publication = publication
        self.open_to_anyone = open_to_anyone
        self.on_read = on_read
        super().__init__(host, port, Handler, tls=tls)

    def start(self) -> None:
        """Serve in a thread of its own."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.1,), name="publication", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 2.0) -> None:
        """Let what is being answered be answered, then close."""
        self.drain(seconds)


def context(credentials: Credentials, *, open_to_anyone: bool) -> ssl.SSLContext:
    """TLS with the service's own certificate; a certificate of the cluster's CA is asked of readers."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(credentials.certificate, credentials.key)
    if not open_to_anyone:
        made.load_verify_locations(credentials.ca)
        made.verify_mode = ssl.CERT_REQUIRED
    return made


class Reads:
    """Records who read entries here, once a minute: a record for each bundle would make the log grow by reading it."""

    def __init__(self, log: Log, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._recorded: dict[str, float] = {}
        self._guard = threading.Lock()

    def count(self, who: Identity | None) -> None:
        """One bundle is about to be read. Raises StepwedgeError where that cannot be recorded and has to be.

        The first of a minute is recorded, durably, with the entries of those bundles that were read since the record
        before it.
        """
        name = "" if who is None else who.value
        with self._guard:
            self._counts[name] = self._counts.get(name, 0) + tiles.WIDTH
            now = self._clock()
            if now - self._recorded.get(name, -EVERY_SECONDS) < EVERY_SECONDS:
                return
            entries = self._counts[name]
            event = audit_pb2.ReadEvent(reader=name, method="Tiles", entries=entries)
            try:
                self._log.perform(Read(event, {})).result(_RECORD_SECONDS)
            except TimeoutError:
                raise unavailable("the read could not be recorded in time") from None
            self._recorded[name] = now
            self._counts[name] -= entries
