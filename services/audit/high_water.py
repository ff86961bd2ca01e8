"""How far the log once came, kept outside its database, so that a database put back to yesterday is noticed."""

import base64
import contextlib
import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from shared.errors import ErrorCode, StepwedgeError

_SLOT = 256


class Mark(NamedTuple):
    """A tree that was acknowledged."""

    size: int
    root: bytes
    """32 bytes."""


class HighWater:
    """A file of two slots, written in turn and synchronised, so that a torn write leaves the other one whole.

    Its length never changes after the first write: a full disk does not hinder it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0
        self._file: int | None = None

    def read(self) -> Mark | None:
        """The newest mark; None where there never was one.

        Raises
        ------
        StepwedgeError
            LOG_INCONSISTENT where the file holds no mark that is whole; DEPENDENCY_UNAVAILABLE where it cannot be read.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            raise _unavailable() from None
        if not data.strip(b" \0"):
            return None  # it was made, and whoever made it was stopped before the first mark
        marks = [(mark, slot) for slot in (0, 1) if (mark := _decode(data[slot * _SLOT : (slot + 1) * _SLOT]))]
        if not marks:
            raise StepwedgeError(ErrorCode.ERROR_CODE_LOG_INCONSISTENT, "the high-water file is damaged")
        newest, slot = max(marks, key=lambda one: one[0].size)
        self._next = 1 - slot
        return newest

    def write(self, mark: Mark) -> None:
        """Make the mark durable. Raises DEPENDENCY_UNAVAILABLE where that fails."""
        try:
            if self._file is None:
                self._file = self._open()
            os.pwrite(self._file, _encode(mark), self._next * _SLOT)
            os.fdatasync(self._file)
        except OSError:
            self.close()
            raise _unavailable() from None
        self._next = 1 - self._next

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            if os.fstat(file).st_size < 2 * _SLOT:
                os.pwrite(file, b" " * (2 * _SLOT), 0)
                os.fsync(file)
                folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except BaseException:
            os.close(file)
            raise
        return file


def _unavailable() -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "the high-water file cannot be used")


def _encode(mark: Mark) -> bytes:
    text = f"{mark.size} {base64.b64encode(mark.root).decode()}"
    return f"{text} {sha256(text.encode()).hexdigest()}".ljust(_SLOT - 1).encode() + b"\n"


def _decode(slot: bytes) -> Mark | None:
    try:
        size, root, check = slot.decode("ascii").split()
        if sha256(f"{size} {root}".encode()).hexdigest() != check:
            return None
        return Mark(int(size), base64.b64decode(root, validate=True))
    except ValueError:
        return None
