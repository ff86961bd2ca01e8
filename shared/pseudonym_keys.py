"""The life of a pseudonym key: put into use, rotated out, destroyed. One file, changed whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from shared.errors import ErrorCode, StepwedgeError
from shared.pseudonyms import DESTROYED, KEY_BYTES, Pseudonyms, key_id_of, read_keys


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a file, by its id. state: `in use` issues pseudonyms; `retired` knows those that it issued again, and
    issues more where it is asked for by its id; `destroyed` is no more than its id. since: of a destroyed one."""

    id: str
    state: Literal["in use", "retired", "destroyed"]
    since: str = ""


def listed(path: Path, project: str = "") -> list[Key]:
    """The keys of a file by the ids that they have in a project. Raises CONFIGURATION as `read_keys`.

    What was destroyed is listed by its id outside projects only: nobody can compute the others any more.
    """
    keys = [Pseudonyms(key).project(project).key_id for key in read_keys(path)]
    found = [Key(key, "retired" if place else "in use") for place, key in enumerate(keys)]
    gone = [line.split() for line in path.read_text("ascii").splitlines() if line.startswith(DESTROYED)]
    return found + [Key(words[1], "destroyed", words[2] if len(words) > 2 else "") for words in gone if len(words) > 1]


def rotate(path: Path) -> str:
    """Put a new random key into use; the others are kept behind it. Returns its id.

    Services read the file at their start: restart ingest and redaction together.
    """
    with _locked(path):
        read_keys(path)  # refuses a file that is none
        key = secrets.token_bytes(KEY_BYTES)
        _replace(path, [key.hex(), *_lines(path)])
    return key_id_of(key)


def destroy(path: Path, key_id: str) -> None:
    """Forget a retired key for good: no pseudonym, date or commitment of it can be made or recognised any more.

    The old file's blocks are overwritten, which reaches neither backups nor what a disk keeps of its own accord.
    Raises INVALID_REQUEST where the key is in use (rotate first) or the file has none of that id.
    """
    with _locked(path):
        place = next((n for n, key in enumerate(read_keys(path)) if key_id_of(key) == key_id), None)
        if place is None:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the file has no pseudonym key of that id")
        if place == 0:
            words = "the key is in use: rotate first, so that another takes its place"
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, words)
        kept = [line for line in _lines(path) if _id_in(line) != key_id]
        _replace(path, [*kept, f"{DESTROYED}{key_id} {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"])


def _id_in(line: str) -> str:
    text = line.split("#")[0].strip()
    return key_id_of(bytes.fromhex(text)) if text and not text.startswith(DESTROYED) else ""


def _lines(path: Path) -> list[str]:
    return path.read_text("ascii").splitlines()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One at a time changes the files of a folder."""
    try:
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, "the folder of the pseudonym key cannot be read") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except OSError as error:
        words = f"the pseudonym key cannot be changed: {(error.strerror or 'error').lower()}"
        raise StepwedgeError(ErrorCode.ERROR_CODE_FILE, words) from None
    finally:
        os.close(descriptor)


def _replace(path: Path, lines: list[str]) -> None:
    """The file with these lines in place of the old one, durably; then the old one's blocks overwritten.

    The old content is overwritten only once the new file has its name on disk: a crash leaves one or the other.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with path.open("r+b") as old:
        before = os.fstat(old.fileno())
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as new:
                new.write("".join(f"{line}\n" for line in lines).encode("ascii"))
                if hasattr(os, "geteuid") and os.geteuid() == 0:
                    os.fchown(new.fileno(), before.st_uid, before.st_gid)
                os.fchmod(new.fileno(), before.st_mode & 0o770)
                new.flush()
                os.fsync(new.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
        if before.st_nlink == 1:  # else the content has another name, which is not ours to empty
            old.write(b"\0" * before.st_size)
            old.flush()
            os.fsync(old.fileno())
