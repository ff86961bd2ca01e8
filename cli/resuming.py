"""Handing files in over gRPC, each from where the last attempt was cut; a cluster that restarts is waited for."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from cli import connect
from cli.send import Sent
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from stepwedge.ingest.v1 import ingest_pb2, ingest_pb2_grpc

if TYPE_CHECKING:
    from shared.settings import Settings

CHUNK_BYTES = 1 << 20
"""As large as one piece of `SubmitInstanceRequest` may be."""
SUBMIT_SECONDS = 600.0
PATIENCE_SECONDS = 60.0
"""For so long a cluster that answered once is waited for when it does not."""
RESUMED_BYTES = 1 << 22
"""Shorter files are sent anew as a whole, which is sooner done than asking."""
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0

AWAY = frozenset(
    {
        ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE,
        ErrorCode.ERROR_CODE_OVERLOADED,
        ErrorCode.ERROR_CODE_AUDIT_UNAVAILABLE,
    }
)
"""What is worth another attempt."""
ENDS_ALL = frozenset({ErrorCode.ERROR_CODE_PERMISSION_DENIED, ErrorCode.ERROR_CODE_UNAUTHENTICATED})
"""What no other file would fare better with."""


class Submitter:
    """A way to ingest in the name of an identity; a context manager.

    Parameters
    ----------
    patience
        Seconds for which a cluster that answered before is waited for.
    """

    def __init__(self, settings: Settings, identity: Identity, *, patience: float = PATIENCE_SECONDS) -> None:
        self._settings = settings
        self._identity = identity
        self._patience = patience
        self._links = ExitStack()
        self._stub: ingest_pb2_grpc.IngestServiceStub | None = None
        self._reached = False
        self.resumed_bytes = 0
        """Bytes that were not sent again."""

    def __enter__(self) -> Submitter:
        return self

    def __exit__(self, *_: object) -> None:
        self._links.close()

    def submit(self, path: Path) -> Sent:
        """Hand in one file. A failure of the connection, and not of the file, is raised once patience is at its end.

        Raises
        ------
        StepwedgeError
            DEPENDENCY_UNAVAILABLE, PERMISSION_DENIED, UNAUTHENTICATED.
        """
        started = time.monotonic()
        try:
            with path.open("rb") as file:
                digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
            answer = self._until_done(path, digest, size)
        except StepwedgeError as error:
            if error.code in ENDS_ALL or error.code == ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE:
                raise
            return Sent(path, False, error.name, error.message)
        except OSError as error:
            return Sent(path, False, "FILE", (error.strerror or "cannot be read").lower())
        words = "stored; known already" if answer.duplicate else "stored"
        if answer.conflict:
            words = "stored; its SOP Instance UID is known with other content"
        return Sent(path, True, "OK", words, answer.sop_instance_uid, time.monotonic() - started)

    def _until_done(self, path: Path, digest: str, size: int) -> ingest_pb2.SubmitInstanceResponse:
        deadline, pause = time.monotonic() + self._patience, _FIRST_PAUSE_SECONDS
        while True:
            try:
                answer = self._attempt(path, digest, size)
                self._reached = True
                return answer
            except grpc.RpcError as raised:
                error = connect.in_our_words(raised, "ingest", self._settings.ingest.address)
                taken_over = error.code == ErrorCode.ERROR_CODE_WRONG_STATE  # or less is held than was: asked anew
                if error.code != ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE:
                    self._reached = True
                if (error.code not in AWAY and not taken_over) or not self._reached or time.monotonic() > deadline:
                    raise error from None
            self._links.close()  # a channel that failed waits for up to two minutes before it connects again
            self._stub = None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _attempt(self, path: Path, digest: str, size: int) -> ingest_pb2.SubmitInstanceResponse:
        stub = self._connected()
        if size < RESUMED_BYTES:
            return stub.SubmitInstance(_chunks(path, digest), timeout=SUBMIT_SECONDS)
        # The digest is the name of the upload, so that the command resumes what another run of it began.
        offset = stub.GetUpload(ingest_pb2.GetUploadRequest(upload_id=digest), timeout=10).offset
        self._reached = True
        self.resumed_bytes += offset
        return stub.SubmitInstance(_chunks(path, digest, upload=digest, offset=offset), timeout=SUBMIT_SECONDS)

    def _connected(self) -> ingest_pb2_grpc.IngestServiceStub:
        if self._stub is None:
            link = self._links.enter_context(connect.channel(self._settings, "ingest", self._identity))
            self._stub = ingest_pb2_grpc.IngestServiceStub(link)
        return self._stub


def _chunks(
    path: Path, digest: str, *, upload: str = "", offset: int = 0
) -> Iterator[ingest_pb2.SubmitInstanceRequest]:
    with path.open("rb") as stream:
        stream.seek(offset)
        first = ingest_pb2.SubmitInstanceRequest(upload_id=upload, offset=offset, sha256=digest)
        first.chunk = stream.read(CHUNK_BYTES)
        yield first
        while piece := stream.read(CHUNK_BYTES):
            yield ingest_pb2.SubmitInstanceRequest(chunk=piece)
