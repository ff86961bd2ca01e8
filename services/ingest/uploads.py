"""Uploads that are resumed where they were cut: half a file that stays for a while, and how much of it is durable.

Half files lie where all files lie that come in, so that every process over one directory can go on with them; over an
S3-compatible store, each machine has its own, and on another machine an upload begins anew. One process at a time
writes (a lock on the file), and within a process the newest call.
"""

import fcntl
import hashlib
import os
import re
import struct
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from services.ingest.incoming import Incoming
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone

NAME: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
EXPIRY: Final = timedelta(hours=1)
"""After so long without a byte an upload is forgotten; not longer than `shared.objects.sweep` leaves files."""
MOST: Final = 256
"""Half files of one caller at one time; the oldest that nobody writes goes first, and never another caller's."""

_SYNC_BYTES: Final = 8 << 20
_PREFIX: Final = "upload-"
_LENGTH: Final = struct.Struct(">Q")


class Upload(Incoming):
    """A file that is being received, and stays where its stream is cut."""

    def __init__(self, objects: ObjectStore, path: Path, offset: int, *, max_bytes: int) -> None:
        self._guard = threading.Lock()
        self._ended = False
        self._note = _locked(_note_of(path))
        try:
            if offset > _noted(self._note, path):
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "so much of the upload is not here")
            os.pwrite(self._note, _LENGTH.pack(offset), 0)  # before the file is cut, and other bytes take their place
            os.fdatasync(self._note)
            super().__init__(objects, max_bytes=max_bytes, resumed=(path, offset))
        except BaseException:
            os.close(self._note)
            raise
        self._synced = offset

    def write(self, piece: bytes | memoryview) -> None:
        """Append a piece. Raises as `Incoming.write`, and WRONG_STATE where another call has taken the upload over."""
        with self._guard:
            if self._ended:
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "another call goes on with this upload")
            super().write(piece)
            if self.size - self._synced >= _SYNC_BYTES:
                self._sync()

    def close(self) -> Path:
        """End the writing; what is done with the file now is done for good."""
        with self._guard:
            if self._ended:
                raise StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "another call goes on with this upload")
            return super().close()

    def park(self) -> None:
        """The stream was cut: let what came stay, durably."""
        with self._guard:
            if not self._ended:
                self._ended = True
                try:
                    self._sync()
                finally:
                    super().close()
                    os.close(self._note)

    def discard(self) -> None:
        """Remove the file; harmless where it is gone, or was parked."""
        with self._guard:
            if not self._ended:
                self._ended = True
                super().discard()
                _note_of(self.path).unlink(missing_ok=True)
                os.close(self._note)

    def _sync(self) -> None:
        self._file.flush()
        os.fdatasync(self._file.fileno())
        os.pwrite(self._note, _LENGTH.pack(self.size), 0)
        os.fdatasync(self._note)
        self._synced = self.size


class Uploads:
    """The half files of all callers. All methods block.

    Parameters
    ----------
    max_bytes
        Largest object taken.
    """

    def __init__(self, objects: ObjectStore, *, max_bytes: int) -> None:
        self._objects = objects
        self._max_bytes = max_bytes
        self._folder = objects.new_temporary(Zone.ORIGINAL).parent
        self._live: dict[Path, Upload] = {}
        self._guard = threading.Lock()

    def held(self, caller: str, name: str) -> tuple[int, datetime | None]:
        """How much of an upload is durably here, and when it will be forgotten."""
        path = self._path(caller, name)
        try:
            size = _noted_in(_note_of(path), path)
            return size, datetime.fromtimestamp(path.stat().st_mtime, UTC) + EXPIRY if size else None
        except FileNotFoundError:
            return 0, None

    def open(self, caller: str, name: str, offset: int) -> Upload:
        """Go on with an upload, or begin it; whoever had it in this process has it no more.

        Raises
        ------
        StepwedgeError
            INVALID_REQUEST for a name that is none, WRONG_STATE where less is here than `offset`, OVERLOADED while
            another process writes it, and as `Incoming`.
        """
        path = self._path(caller, name)
        with self._guard:
            before = self._live.pop(path, None)
            if before is not None:
                before.park()
            self._make_room(caller)
            upload = self._live[path] = Upload(self._objects, path, offset, max_bytes=self._max_bytes)
            return upload

    def sweep(self) -> None:
        """Forget what nobody went on with."""
        oldest = time.time() - EXPIRY.total_seconds()
        for path in self._parked():
            with suppress(OSError):
                if path.stat().st_mtime < oldest:
                    _forget(path)

    def _path(self, caller: str, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_INVALID_REQUEST, "the name of an upload has 16 to 64 letters, digits, - and _"
            )
        return self._folder / f"{_prefix_of(caller)}{_short(f'{caller}/{name}', 32)}"

    def _parked(self, prefix: str = _PREFIX) -> list[Path]:
        return [path for path in self._folder.glob(f"{prefix}*") if path.suffix != ".held"]

    def _make_room(self, caller: str) -> None:
        self._live = {path: upload for path, upload in self._live.items() if not upload._ended}
        parked = self._parked(_prefix_of(caller))
        if len(parked) < MOST:
            return
        for path in sorted(parked, key=_age)[: len(parked) - MOST + 1]:
            _forget(path)


def _prefix_of(caller: str) -> str:
    return f"{_PREFIX}{_short(caller, 8)}-"


def _short(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _note_of(path: Path) -> Path:
    """Where stands how much of a half file is durable."""
    return path.with_name(f"{path.name}.held")


def _locked(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink == 0:  # whoever had the lock removed the file just now
            raise BlockingIOError
    except BlockingIOError:
        os.close(descriptor)
        raise StepwedgeError(ErrorCode.ERROR_CODE_OVERLOADED, "another process is writing this upload") from None
    return descriptor


def _noted(descriptor: int, path: Path) -> int:
    written = os.pread(descriptor, _LENGTH.size, 0)
    if len(written) < _LENGTH.size or not path.is_file():
        return 0
    return min(int(_LENGTH.unpack(written)[0]), path.stat().st_size)


def _noted_in(note: Path, path: Path) -> int:
    descriptor = os.open(note, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _noted(descriptor, path)
    finally:
        os.close(descriptor)


def _forget(path: Path) -> None:
    """Remove a half file that nobody writes."""
    with suppress(StepwedgeError):
        descriptor = _locked(_note_of(path))
        try:
            path.unlink(missing_ok=True)
            _note_of(path).unlink(missing_ok=True)
        finally:
            os.close(descriptor)
