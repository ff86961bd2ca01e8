"""The object store as a folder for each zone: `<zone>/<first two digits>/<sha256>`.

A write goes to a temporary file in the same zone, is fsynced, linked to its final name (a link never replaces what is
there), and the folder is fsynced; only then has it happened. A crash at any point leaves at most a temporary file,
which the next start sweeps once it is an hour old. With `place` and `settle` the name comes before the fsync: a power
cut between the two can leave a name with other bytes under it, which `get` tells by the digest and the next write of
the same object mends.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shared.errors import ErrorCode, StepwedgeError
from shared.objects import Space, Stored, Zone, corrupt, is_digest, not_found, not_opened, sweep, validated

_TEMPORARY = "incoming"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FLUSHERS = 8


class DirectoryStore:
    """An `ObjectStore` in the file system.

    Parameters
    ----------
    places
        Folder of each zone that is open; made where absent. On a file system that is mounted read-only, as redaction
        has the originals in a container, it is only read.
    low_water_bytes
        Bytes that must stay free for `check` to pass.
    """

    def __init__(self, places: Mapping[Zone, Path], *, low_water_bytes: int = 0) -> None:
        self._places = dict(places)
        self._low_water_bytes = low_water_bytes
        self._flushers = ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="flusher")
        for place in self._places.values():
            with _translated():
                try:
                    _prepare(place)
                    sweep(place / _TEMPORARY)
                except OSError as error:
                    if error.errno != errno.EROFS or not place.is_dir():
                        raise

    def put(self, zone: Zone, data: bytes | memoryview) -> Stored:
        """See `ObjectStore.put`."""
        sha256 = hashlib.sha256(data).hexdigest()
        with _translated():
            final = self._final(zone, sha256)
            if self._is_whole(final, len(data), sha256):
                # Whoever gave it the name may not have come to this, or be only just about to.
                _fsync(final)
                _fsync_folder(final.parent)
                return Stored(sha256, len(data), created=False)
            temporary = self.new_temporary(zone)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    _make_durable(file)
                return Stored(sha256, len(data), created=self._publish(temporary, final, len(data), sha256))
            finally:
                temporary.unlink(missing_ok=True)

    def put_file(self, zone: Zone, path: Path, sha256: str = "") -> Stored:
        """See `ObjectStore.put_file`."""
        if path.parent != self._place(zone) / _TEMPORARY:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the file was not named by new_temporary")
        with _translated():
            try:
                with path.open("r+b") as file:
                    digest = validated(sha256) if sha256 else hashlib.file_digest(file, "sha256").hexdigest()
                    size = os.fstat(file.fileno()).st_size
                    _make_durable(file)
                final = self._final(zone, digest)
                return Stored(digest, size, created=self._publish(path, final, size, digest))
            finally:
                path.unlink(missing_ok=True)

    def place(self, zone: Zone, path: Path, sha256: str) -> Stored:
        """See `ObjectStore.place`."""
        if path.parent != self._place(zone) / _TEMPORARY:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "the file was not named by new_temporary")
        with _translated():
            try:
                size = path.stat().st_size
                return Stored(sha256, size, created=self._name(path, self._final(zone, sha256), size, sha256))
            finally:
                path.unlink(missing_ok=True)

    def settle(self, zone: Zone, sha256: str) -> None:
        """See `ObjectStore.settle`; file and folder side by side: a disk makes two durable at the cost of one."""
        final = self._final(zone, sha256)
        with _translated():
            folder = self._flushers.submit(_fsync_folder, final.parent)
            try:
                _fsync(final)
            except FileNotFoundError:
                raise not_found(zone) from None
            finally:
                folder.result()

    def new_temporary(self, zone: Zone) -> Path:
        """See `ObjectStore.new_temporary`."""
        return self._place(zone) / _TEMPORARY / secrets.token_hex(16)

    def get(self, zone: Zone, sha256: str) -> bytes:
        """See `ObjectStore.get`."""
        path = self._final(zone, sha256)
        with _translated():
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                raise not_found(zone) from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise corrupt(zone)
        return data

    def exists(self, zone: Zone, sha256: str) -> bool:
        """See `ObjectStore.exists`."""
        path = self._final(zone, sha256)
        with _translated():
            return path.is_file()

    def check(self, zone: Zone) -> None:
        """See `ObjectStore.check`."""
        space = self.space(zone)
        with _translated():
            if not os.access(self._place(zone) / _TEMPORARY, os.W_OK | os.X_OK):
                raise PermissionError
        if space.free < space.reserve:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_STORAGE_FULL, f"the zone {zone.value} is below its low-water mark"
            )

    def space(self, zone: Zone) -> Space:
        """See `ObjectStore.space`."""
        with _translated():
            found = os.statvfs(self._place(zone) / _TEMPORARY)
        return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, self._low_water_bytes)

    def inventory(self, zone: Zone) -> Iterator[tuple[str, int]]:
        """See `ObjectStore.inventory`."""
        place = self._place(zone)
        for number in range(256):
            folder = place / f"{number:02x}"
            with _translated():
                found = [
                    (path.name, path.stat().st_size)
                    for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
                    if is_digest(path.name)
                ]
            yield from found

    def _place(self, zone: Zone) -> Path:
        try:
            return self._places[zone]
        except KeyError:
            raise not_opened(zone) from None

    def _final(self, zone: Zone, sha256: str) -> Path:
        return self._place(zone) / validated(sha256)[:2] / sha256

    @staticmethod
    def _is_whole(final: Path, size: int, sha256: str) -> bool:
        """Say whether the object is there with its right bytes; a damaged one is as good as absent."""
        try:
            with final.open("rb") as file:
                return (
                    os.fstat(file.fileno()).st_size == size
                    and hashlib.file_digest(file, "sha256").hexdigest() == sha256
                )
        except FileNotFoundError:
            return False

    def _publish(self, temporary: Path, final: Path, size: int, sha256: str) -> bool:
        """Give the durable temporary file its name, durably; return whether the name is new."""
        created = self._name(temporary, final, size, sha256)
        if not created:
            _fsync(final)  # whoever gave it the name may be only about to
        _fsync_folder(final.parent)
        return created

    def _name(self, temporary: Path, final: Path, size: int, sha256: str) -> bool:
        """Give the temporary file its name; return whether the name is new."""
        temporary.chmod(0o440)
        created = True
        try:
            os.link(temporary, final)
        except FileExistsError:
            created = False
            if not self._is_whole(final, size, sha256):
                # The bytes under this name are damaged, and we hold the right ones: mend it in one step.
                temporary.replace(final)
                created = True
        return created


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the file system's errors into ours; paths stay out of the words."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StepwedgeError(ErrorCode.ERROR_CODE_STORAGE_FULL, "no space is left in the object store") from error
        name = errno.errorcode.get(error.errno or 0, "error")
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, f"the object store does not answer ({name})"
        ) from error


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prepare(place: Path) -> None:
    """Make the folder of a zone with all that it needs, durably, so that a write makes no folder.

    A name is durable once its own folder is fsynced; this is done even where nothing had to be made, since another
    process may be making it at this moment.
    """
    for folder in reversed((place, *place.parents)):
        if not folder.is_dir():
            folder.mkdir(mode=0o750, exist_ok=True)
            _fsync_folder(folder.parent)
    for name in (_TEMPORARY, *(f"{number:02x}" for number in range(256))):
        if not (place / name).is_dir():
            (place / name).mkdir(mode=0o750, exist_ok=True)
    _fsync_folder(place)
