"""Asks witnesses (C2SP tlog-witness) to cosign the newest checkpoint, beside the sequencer and never in its way."""

import http.client
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from services.audit import meters, proofs, store
from services.audit.log import Log
from services.audit.store import Head
from shared import logs
from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Audit
from shared.transparency import merkle
from shared.transparency.add_checkpoint import PATH, ROTATION_PATH, SIZE_TYPE, encode
from shared.transparency.cosignature import WitnessKey
from shared.transparency.note import BadSignatureError, MalformedNoteError, Note, Signature, parse_signature
from stepwedge.audit.v1 import audit_pb2

_MAX_ANSWER = 64 * 1024
_KEEP_SECONDS = 30.0  # for the sequencer to write a cosigned checkpoint
_GRACE_SECONDS = 0.2  # for the others, when the quorum is there

Prove = Callable[[int], list[bytes]]
"""`prove(size)`: the consistency proof from the tree of that size to the one that is submitted."""


class Change(NamedTuple):
    """A change of the log's key, for a witness that does not know it."""

    head: Head
    """The checkpoint that both keys signed."""
    proof: str
    """The tlog-proof of its last entry, which names the new key."""
    prove: Prove


_logger = logs.get_logger(__name__)


class Away(Exception):  # noqa: N818 - it is no error of ours
    """A witness did not answer, or not as the specification says."""


class Refused(Exception):  # noqa: N818
    """A witness holds something that the log does not continue."""


class _Said(NamedTuple):
    status: int
    body: bytes
    content_type: str = ""


class Client:
    """One witness; used by one thread at a time."""

    def __init__(self, url: str, key: WitnessKey, *, ca: Path | None = None, timeout: float = 5.0) -> None:
        parts = urlsplit(url)
        self.key = key
        self.about = f"witness-{key.id.hex()}"
        self._prefix = parts.path.rstrip("/")
        self._timeout = timeout
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = ssl.create_default_context(cafile=str(ca) if ca else None) if parts.scheme == "https" else None
        self._link: http.client.HTTPConnection | None = None
        self._held = 0

    def ask(self, head: Head, prove: Prove, changes: Callable[[], Iterable[Change]] = tuple) -> Signature:
        """The witness's cosignature on a checkpoint. Raises Away or Refused.

        Where it does not know who signed (403), it is told of `changes` of the log's key, and asked again.
        """
        said = self._settled(head, prove)
        if said.status == http.HTTPStatus.FORBIDDEN and self._tell(changes()):
            said = self._settled(head, prove)
        contradicts = said.status == http.HTTPStatus.CONFLICT and said.content_type != SIZE_TYPE
        if contradicts or said.status == http.HTTPStatus.UNPROCESSABLE_ENTITY:
            raise Refused(f"what it cosigned at {self._held} entries is not what the log holds")
        if said.status != http.HTTPStatus.OK:
            raise Away(f"status {said.status}")
        cosignature = self._cosignature(said.body, head)
        self._held = head.size
        return cosignature

    def _tell(self, changes: Iterable[Change]) -> bool:
        """Hand over the changes of the key, the oldest first, each after its checkpoint; whether one was taken."""
        taken = False
        for change in changes:
            try:
                if self._settled(change.head, change.prove).status != http.HTTPStatus.OK:
                    continue
            except Refused:
                continue  # it is beyond this one
            self._held = change.head.size
            taken |= self._sent(ROTATION_PATH, change.proof.encode()).status == http.HTTPStatus.OK
        return taken

    def _settled(self, head: Head, prove: Prove) -> _Said:
        """The answer once the size that the witness holds is known."""
        said = self._submit(head, prove)
        if said.status == http.HTTPStatus.CONFLICT and said.content_type == SIZE_TYPE:
            self._held = self._size(said.body)
            if self._held > head.size:
                raise Refused(f"it cosigned {self._held} entries, the log has {head.size}")
            said = self._submit(head, prove)
        return said

    def close(self) -> None:
        """Let go of the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _submit(self, head: Head, prove: Prove) -> _Said:
        if self._held > head.size:
            self._held = 0  # of another log's end than this one; 409 tells
        return self._sent(PATH, encode(self._held, prove(self._held), head.note))

    def _sent(self, path: str, body: bytes) -> _Said:
        try:
            return self._post(path, body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Away(type(error).__name__) from None

    def _post(self, path: str, body: bytes) -> _Said:
        if self._link is not None:
            try:
                return self._exchange(self._link, path, body)
            except (ConnectionError, http.client.HTTPException, ssl.SSLError):
                self.close()  # it closed a connection that was idle: once more on a new one
        if self._tls is not None:
            self._link = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=self._tls)
        else:
            self._link = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        return self._exchange(self._link, path, body)

    def _exchange(self, link: http.client.HTTPConnection, path: str, body: bytes) -> _Said:
        link.request("POST", self._prefix + path, body=body, headers={"Content-Type": "text/plain; charset=utf-8"})
        answer = link.getresponse()
        said = _Said(answer.status, answer.read(_MAX_ANSWER + 1), answer.headers.get_content_type())
        if len(said.body) > _MAX_ANSWER:
            raise http.client.HTTPException
        return said

    def _size(self, body: bytes) -> int:
        text = body.decode("ascii", errors="replace")
        if not text.endswith("\n") or not text[:-1].isdecimal() or len(text) > 20:
            raise Away("an answer 409 without a size")
        return int(text)

    def _cosignature(self, body: bytes, head: Head) -> Signature:
        """The line of the answer that is this witness's; lines of other keys are ignored, as the specification says."""
        try:
            lines = body.decode("utf-8").removesuffix("\n").split("\n")
            text = Note.parse(head.note.encode()).text
            for signature in map(parse_signature, lines):
                if (signature.name, signature.key_id) == (self.key.name, self.key.id):
                    self.key.time_of(text, signature)
                    return signature
        except (UnicodeDecodeError, MalformedNoteError, BadSignatureError):
            raise Away("an answer 200 without a cosignature that verifies") from None
        raise Away("an answer 200 without its cosignature")


@dataclass
class _Standing:
    """What is known of one witness."""

    client: Client
    busy: bool = False
    refused: bool = False
    """It refused, and that is recorded."""


class Witnesses:
    """Asks all witnesses again and again, and gives the log the checkpoints that enough of them cosigned."""

    def __init__(self, log: Log, clients: Sequence[Client], settings: Audit) -> None:
        if any(client.key.public == log.key.public for client in clients):
            message = "a witness has the key of the log: tlog-cosignature forbids one key for two signers"
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)
        self._log = log
        self._standings = [_Standing(client) for client in clients]
        self._quorum = settings.quorum
        self._interval = settings.witness_interval_seconds
        self._timeout = settings.witness_timeout_seconds
        self._alert_after = settings.quorum_alert_seconds
        self._now = threading.Event()
        self._news = threading.Condition()
        self._closing = False
        self._cosigned_size = -1
        self._missing_since: float | None = None
        self._alerted = False
        self._thread = threading.Thread(target=self._run, name="witnesses", daemon=True)

    @property
    def keys(self) -> list[WitnessKey]:
        """The witnesses' verification keys."""
        return [standing.client.key for standing in self._standings]

    def start(self) -> None:
        """Begin to ask."""
        with self._log.store.reading() as connection:
            found = store.cosigned(connection)
        self._cosigned_size = -1 if found is None else found.size
        self._thread.start()

    def close(self) -> None:
        """Ask once more for what is newest, and stop. The log must still be open."""
        self._closing = True
        self._now.set()
        self._thread.join(2 * self._timeout + _KEEP_SECONDS)
        for standing in self._standings:
            if not standing.busy:
                standing.client.close()

    def wait_for(self, size: int) -> bool:
        """Ask at once, and wait as long as a witness may take; whether so many entries are cosigned."""
        if self._cosigned_size < size:
            self._now.set()
        with self._news:
            return self._news.wait_for(lambda: self._cosigned_size >= size, self._timeout)

    def _run(self) -> None:
        while True:
            self._now.wait(self._interval)
            self._now.clear()
            closing = self._closing
            try:
                self._round()
            except Exception as error:  # noqa: BLE001 - the log goes on without witnesses, and this thread lives
                _logger.error("witnesses could not be asked", **logs.describe(error))
            if closing:
                return

    def _round(self) -> None:
        head = self._log.head
        if head is None or head.size == 0:
            return
        if head.size > self._cosigned_size:
            self._ask(head)
        self._watch(head)

    def _ask(self, head: Head) -> None:
        asked: list[tuple[_Standing, Future[Signature]]] = []
        done = threading.Condition()
        for standing in self._standings:
            if not standing.busy:
                standing.busy = True
                asked.append((standing, self._begin(standing, head, done)))
        deadline = time.monotonic() + 2 * self._timeout

        def settled() -> bool:
            return all(future.done() for _, future in asked)

        def enough() -> bool:
            return len(_cosignatures(asked)) >= self._quorum

        with done:
            done.wait_for(lambda: settled() or enough(), deadline - time.monotonic())
            done.wait_for(settled, min(_GRACE_SECONDS, max(0.0, deadline - time.monotonic())))
        self._record_refusals(asked)
        cosignatures = _cosignatures(asked)
        if len(cosignatures) >= self._quorum:
            self._keep(head, cosignatures)

    def _begin(self, standing: _Standing, head: Head, done: threading.Condition) -> "Future[Signature]":
        future: Future[Signature] = Future()

        def ask() -> None:
            try:
                future.set_result(standing.client.ask(head, self._prover(head.size), self._changes))
                meters.witnessed(standing.client.key.name, "cosigned")
            except Exception as error:  # noqa: BLE001 - whatever a witness does is its own affair
                meters.witnessed(standing.client.key.name, "refused" if isinstance(error, Refused) else "away")
                future.set_exception(error)
            standing.busy = False
            with done:
                done.notify_all()

        threading.Thread(target=ask, name="witness", daemon=True).start()
        return future

    def _prover(self, to_size: int) -> Prove:
        def prove(size: int) -> list[bytes]:
            if size == 0:
                return []
            with self._log.store.reading() as connection:
                return merkle.consistency_proof(size, to_size, store.node_reader(connection))

        return prove

    def _changes(self) -> list[Change]:
        """What a witness has to be told that knows only the log's first key."""
        with self._log.store.reading() as connection:
            known = [(key.from_size, key.note) for key in store.keys(connection) if key.note is not None]
        return [
            Change(Head(size, note, 0), str(proofs.proof_of(self._log.store, size - 1, size)), self._prover(size))
            for size, note in known
        ]

    def _record_refusals(self, asked: Sequence[tuple[_Standing, "Future[Signature]"]]) -> None:
        for standing, future in asked:
            if not future.done():
                continue
            refused = isinstance(future.exception(), Refused)
            if refused and not standing.refused:
                _logger.critical("a witness holds another history of this log", peer=standing.client.about)
                alert = audit_pb2.AlertEvent(code=audit_pb2.ALERT_CODE_WITNESS_REFUSED, about=standing.client.about)
                self._log.alert(alert)
            standing.refused = refused

    def _keep(self, head: Head, cosignatures: Sequence[Signature]) -> None:
        note = Note.parse(head.note.encode())
        cosigned = Note(note.text, (*note.signatures, *cosignatures))
        try:
            self._log.keep_cosigned(Head(head.size, str(cosigned), head.signed_us)).result(_KEEP_SECONDS)
        except (StepwedgeError, TimeoutError):
            return  # the log could not write; it is asked again
        with self._news:
            self._cosigned_size = head.size
            self._news.notify_all()
        meters.COSIGNED.set(head.size)

    def _watch(self, head: Head) -> None:
        """Record once that the quorum has been missing for too long."""
        now = time.monotonic()
        if self._cosigned_size >= head.size:
            self._missing_since, self._alerted = None, False
        elif self._missing_since is None:
            self._missing_since = now
        missing = 0.0 if self._missing_since is None else now - self._missing_since
        meters.UNCOSIGNED.set(missing)
        if missing > self._alert_after and not self._alerted:
            self._alerted = True
            _logger.error("too few witnesses cosigned for too long", seconds=int(missing))
            self._log.alert(audit_pb2.AlertEvent(code=audit_pb2.ALERT_CODE_QUORUM_MISSED))


def _cosignatures(asked: Sequence[tuple[_Standing, "Future[Signature]"]]) -> list[Signature]:
    """One of each witness that cosigned; a key counts once."""
    found = {
        standing.client.key.public: future.result()
        for standing, future in asked
        if future.done() and future.exception() is None
    }
    return list(found.values())


def clients(settings: Audit) -> list[Client]:
    """The witnesses of these settings; none where no quorum is asked for. Raises OSError for a CA that is none."""
    if not settings.quorum:
        return []
    return [
        Client(
            witness.url,
            WitnessKey.parse(witness.vkey),
            ca=Path(witness.ca) if witness.ca else None,
            timeout=settings.witness_timeout_seconds,
        )
        for witness in settings.witnesses
    ]
