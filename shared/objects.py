"""The content-addressed store of objects, in two zones; a service reaches only those that it opened."""

import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

from shared.errors import ErrorCode, StepwedgeError
from shared.settings import Objects

_SWEPT_AFTER_SECONDS = 3600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Zone(StrEnum):
    """The two halves of the store."""

    ORIGINAL = "original"
    """Byte for byte as received; holds identity. Ingest and redaction."""
    DEIDENTIFIED = "deidentified"
    """After redaction, and what was derived from it. Inference too."""


class Stored(NamedTuple):
    """What became of a write."""

    sha256: str
    """Digest of the bytes, 64 lower-case hexadecimal digits."""
    size: int
    """Bytes."""
    created: bool
    """Whether this call made it; False where the same bytes were there already."""


@dataclass(frozen=True, slots=True)
class Space:
    """Room of a zone in bytes. reserve: below so much free nothing is taken in."""

    total: int
    free: int
    reserve: int


class ObjectStore(Protocol):
    """Bytes by their SHA-256. All calls block; from a coroutine go through `asyncio.to_thread`.

    Every method raises StepwedgeError: PERMISSION_DENIED for a zone that was not opened, INVALID_REQUEST for a digest
    that is none, STORAGE_FULL, DEPENDENCY_UNAVAILABLE where the store does not answer.
    """

    def put(self, zone: Zone, data: bytes | memoryview) -> Stored:
        """Store `data` durably; the same bytes again are the same success."""
        ...

    def put_file(self, zone: Zone, path: Path, sha256: str = "") -> Stored:
        """Store the file that `new_temporary` named, durably, and remove it; the caller has closed it.

        `sha256`: the digest of the file, where the caller took it while writing, so that it need not be read again.
        """
        ...

    def place(self, zone: Zone, path: Path, sha256: str) -> Stored:
        """The first half of `put_file`: whoever dies as a process loses nothing, a power cut may; see `settle`."""
        ...

    def settle(self, zone: Zone, sha256: str) -> None:
        """The second half: make durable what has been placed; OBJECT_NOT_FOUND where nothing was."""
        ...

    def new_temporary(self, zone: Zone) -> Path:
        """Name a file, not yet there, that the caller writes and hands to `put_file` (or unlinks)."""
        ...

    def get(self, zone: Zone, sha256: str) -> bytes:
        """Return the object's bytes, verified against the digest; OBJECT_NOT_FOUND, OBJECT_CORRUPT."""
        ...

    def exists(self, zone: Zone, sha256: str) -> bool:
        """Say whether the zone holds the object; does not read it."""
        ...

    def check(self, zone: Zone) -> None:
        """Return where the zone can take an object in; else raise STORAGE_FULL or DEPENDENCY_UNAVAILABLE."""
        ...

    def space(self, zone: Zone) -> Space | None:
        """How much room there is; None where the store does not say."""
        ...

    def inventory(self, zone: Zone) -> Iterator[tuple[str, int]]:
        """Digest and size of every object of the zone, as they are listed, in the order of digests; none is read."""
        ...


def open_store(settings: Objects, zones: Collection[Zone]) -> ObjectStore:
    """Open the store that the settings name, with `zones` and no other."""
    # Imported here: the directory store serves without the S3 library installed, and that one is slow to load.
    opened = frozenset(zones)
    if settings.kind == "directory":
        from shared.directory_store import DirectoryStore

        places = {zone: Path(getattr(settings, zone.value)) for zone in opened}
        return DirectoryStore(places, low_water_bytes=settings.low_water_bytes)
    try:
        from shared.s3_store import S3Store
    except ModuleNotFoundError:
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_CONFIGURATION, "objects.kind is s3, which needs the extra s3 to be installed"
        ) from None

    return S3Store(
        {zone: str(getattr(settings, zone.value)) for zone in opened},
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        ca=settings.s3_ca,
        scratch=settings.scratch,
    )


def is_digest(name: str) -> bool:
    """Whether a name is a digest in its one spelling."""
    return _DIGEST.fullmatch(name) is not None


def validated(sha256: str) -> str:
    """Return `sha256` where it is a digest in its one spelling; else raise INVALID_REQUEST, as it is part of a path."""
    if not _DIGEST.fullmatch(sha256):
        raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "a digest is 64 lower-case hexadecimal digits")
    return sha256


def not_opened(zone: Zone) -> StepwedgeError:
    """Return the error for a zone that this process did not open."""
    return StepwedgeError(ErrorCode.ERROR_CODE_PERMISSION_DENIED, f"the zone {zone.value} is not open to this process")


def not_found(zone: Zone) -> StepwedgeError:
    """Return the error for an object that the zone does not hold."""
    return StepwedgeError(ErrorCode.ERROR_CODE_OBJECT_NOT_FOUND, f"no object with this digest in the zone {zone.value}")


def corrupt(zone: Zone) -> StepwedgeError:
    """Return the error for stored bytes that no longer match their digest."""
    return StepwedgeError(
        ErrorCode.ERROR_CODE_OBJECT_CORRUPT, f"an object in the zone {zone.value} does not match its digest"
    )


def sweep(folder: Path) -> None:
    """Remove the temporary files in `folder` that are an hour old, which no living writer can still own."""
    oldest = time.time() - _SWEPT_AFTER_SECONDS
    for path in folder.iterdir():
        with suppress(FileNotFoundError, PermissionError):
            if path.stat().st_mtime < oldest:
                path.unlink()
