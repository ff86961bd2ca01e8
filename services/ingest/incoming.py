"""An object that comes in: a bounded file while it is received, then what names it, and what speaks against it.

Imports no database and no RPC, so that the processes that receive are small (`services.ingest.dimse_worker`).
"""

import errno
import hashlib
import mmap
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final

from pydicom.uid import UID

from services.ingest.wrapping import content_sha256, file_meta
from services.ingest.wrapping import data_set_offset as data_set_offset
from shared import dicom, dicom_encoding
from shared.dicom_encoding import PIXEL_TAGS, Encoded
from shared.errors import ErrorCode, StepwedgeError
from shared.objects import ObjectStore, Zone

_CHECK_EVERY_BYTES: Final = 64 << 20  # the low-water mark is looked at again while a large object comes in
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

_CLASS: Final = 0x00020002  # Media Storage SOP Class UID
_CONTENT_SEQUENCE: Final = 0x0040A730
_ENCAPSULATED_DOCUMENT: Final = 0x00420011

# PS3.3 A.1.4: the Modality that the IOD of an image storage SOP class stands for. Neighbours that vendors mix (film
# radiography and digital; hybrid scanners; angiography and fluoroscopy) share one entry.
_RADIOGRAPHY: Final = frozenset({"CR", "DX", "RG", "IO", "PX", "MG", "RF", "XA", "OT"})
_TOMOGRAPHY: Final = frozenset({"CT", "PT", "NM", "XA", "OT"})
_MAGNETIC: Final = frozenset({"MR", "OT"})
_ULTRASOUND: Final = frozenset({"US", "IVUS", "BDUS", "OT"})
MODALITIES: Final[Mapping[str, frozenset[str]]] = {
    "1.2.840.10008.5.1.4.1.1.1": _RADIOGRAPHY,  # Computed Radiography Image Storage
    "1.2.840.10008.5.1.4.1.1.1.1": _RADIOGRAPHY,  # Digital X-Ray Image Storage - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1": _RADIOGRAPHY,  # Digital X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.1.2": _RADIOGRAPHY,  # Digital Mammography X-Ray Image Storage - For Presentation
    "1.2.840.10008.5.1.4.1.1.1.2.1": _RADIOGRAPHY,  # Digital Mammography X-Ray Image Storage - For Processing
    "1.2.840.10008.5.1.4.1.1.2": _TOMOGRAPHY,  # CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.1": _TOMOGRAPHY,  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.4": _MAGNETIC,  # MR Image Storage
    "1.2.840.10008.5.1.4.1.1.4.1": _MAGNETIC,  # Enhanced MR Image Storage
    "1.2.840.10008.5.1.4.1.1.6.1": _ULTRASOUND,  # Ultrasound Image Storage
    "1.2.840.10008.5.1.4.1.1.3.1": _ULTRASOUND,  # Ultrasound Multi-frame Image Storage
    "1.2.840.10008.5.1.4.1.1.20": _TOMOGRAPHY,  # Nuclear Medicine Image Storage
    "1.2.840.10008.5.1.4.1.1.128": _TOMOGRAPHY,  # Positron Emission Tomography Image Storage
}
"""Modalities that do not contradict a SOP class; a class that is not here is contradicted by none."""

_KNOWN_MODALITIES: Final = frozenset().union(*MODALITIES.values()) | {"SR", "PR", "KO", "SEG", "DOC", "ECG"}
"""Modalities that say something definite; any other code contradicts nothing."""
_NAMES: Final = {uid: UID(uid).name for uid in dicom.STORAGE_SOP_CLASSES}
_IMAGES: Final = frozenset(uid for uid, name in _NAMES.items() if "Image Storage" in name)
_DOCUMENTS: Final = frozenset(uid for uid, name in _NAMES.items() if " SR Storage" in name or "Encapsulated" in name)


@dataclass(frozen=True, slots=True)
class Announced:
    """What the sender said it would send (PS3.7 9.3.1.1), to which the data set must keep."""

    sop_class_uid: str
    sop_instance_uid: str


class Incoming:
    """A file in the zone `original` that is being received; bounded in size, and gone unless it is kept."""

    def __init__(self, objects: ObjectStore, *, max_bytes: int, resumed: tuple[Path, int] | None = None) -> None:
        self._objects = objects
        self._max_bytes = max_bytes
        self._left_to_check = _CHECK_EVERY_BYTES
        self._digest = hashlib.sha256()
        self.size = 0
        objects.check(Zone.ORIGINAL)
        self.path: Path = objects.new_temporary(Zone.ORIGINAL) if resumed is None else resumed[0]
        with _our_errors():
            if resumed is not None:
                self._take_over(resumed[1])
            # What is written comes in pieces as large as PDUs; a buffer would only copy them once more.
            self._file: FileIO = self.path.open("xb" if resumed is None else "ab", buffering=0)

    def _take_over(self, size: int) -> None:
        """Go on behind the first `size` bytes of a file that a call before this one began."""
        with self.path.open("a+b") as file:
            file.truncate(size)
            file.seek(0)
            while piece := file.read(1 << 20):
                self._digest.update(piece)
        self.size = size

    @property
    def sha256(self) -> str:
        """Digest of what was written, hexadecimal."""
        return self._digest.hexdigest()

    def write(self, piece: bytes | memoryview) -> None:
        """Append a piece. Raises OBJECT_TOO_LARGE, STORAGE_FULL; the caller then discards."""
        self.size += len(piece)
        if self.size > self._max_bytes:
            raise StepwedgeError(
                ErrorCode.ERROR_CODE_OBJECT_TOO_LARGE, f"an object over {self._max_bytes} bytes is not taken"
            )
        self._left_to_check -= len(piece)
        if self._left_to_check < 0:
            self._objects.check(Zone.ORIGINAL)
            self._left_to_check = _CHECK_EVERY_BYTES
        with _our_errors():
            left = memoryview(piece)
            while left:
                left = left[self._file.write(left) :]
        self._digest.update(piece)

    def close(self) -> Path:
        """End the writing; return where the file lies."""
        with _our_errors():
            self._file.close()
        return self.path

    def discard(self) -> None:
        """Remove the file; harmless where it is gone already."""
        with suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


def examine(path: Path, announced: Announced | None, sha256: str = "") -> tuple[dicom.Uids, str, dicom.Equipment]:
    """Read what names an object, and check what can be checked at the door.

    `sha256`: digest of the file, where it is known, so that an object in our own wrapping is not read again.
    Returns the UIDs, the digest of the object in our wrapping (`content_sha256`), and the device. Memory stays bounded:
    the file is mapped, not read. Raises NOT_DICOM, MALFORMED_DICOM, INVALID_UID, SOP_CLASS_MISMATCH.
    """
    if path.stat().st_size == 0:
        raise dicom_encoding.not_dicom()
    with path.open("rb") as file, _mapped(file) as data:
        encoded = dicom_encoding.parse(data)  # type: ignore[arg-type]  # slices of a mapping are bytes
        uids = dicom.uids_of(encoded)
        _refuse_mismatch(encoded, uids, announced)
        _refuse_contradictions(uids, {element.tag for element in encoded.data_set})
        equipment = dicom.equipment(encoded)
        uids = replace(uids, belonging=dicom.belonging(encoded))
        del encoded
        whole = sha256 or hashlib.file_digest(file, "sha256").hexdigest()
        preface = file_meta(uids.sop_class, uids.sop_instance, uids.transfer_syntax)
        return uids, content_sha256(data, whole, preface), equipment


def _refuse_mismatch(encoded: Encoded, uids: dicom.Uids, announced: Announced | None) -> None:
    """The command set (PS3.7 9.3.1.1), the file meta information (PS3.10 7.1) and the data set name one object."""
    # Of the file meta information only the class is held against the data set: files whose instance UID there was
    # left behind by an editor are common, and the data set is what counts.
    said = [bytes(element.value).rstrip(b"\0 ").decode("latin-1") for element in encoded.meta if element.tag == _CLASS]
    claims = [(claimed, uids.sop_class) for claimed in said if claimed]
    if announced is not None:
        claims += [(announced.sop_class_uid, uids.sop_class), (announced.sop_instance_uid, uids.sop_instance)]
    if any(claimed != real for claimed, real in claims):
        raise _mismatch("the data set is not the object that was announced")


def _refuse_contradictions(uids: dicom.Uids, tags: Set[int]) -> None:
    """An SOP class that lies about its content. What is merely incomplete is let in and found not assessable later."""
    modalities = MODALITIES.get(uids.sop_class)
    if modalities and uids.modality in _KNOWN_MODALITIES and uids.modality not in modalities:
        raise _mismatch("the modality is not one of the SOP class")
    pixels = not tags.isdisjoint(PIXEL_TAGS)
    document = _CONTENT_SEQUENCE in tags or _ENCAPSULATED_DOCUMENT in tags
    if uids.sop_class in _IMAGES and document and not pixels:
        raise _mismatch("an image SOP class holds a document")
    if uids.sop_class in _DOCUMENTS and pixels:
        raise _mismatch("a document SOP class holds pixel data")


def _mismatch(words: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_SOP_CLASS_MISMATCH, words)


@contextmanager
def _mapped(file: BinaryIO) -> Iterator[mmap.mmap]:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        yield data
    finally:
        # Views that an exception's frames still hold keep the mapping alive; it goes with them.
        with suppress(BufferError):
            data.close()


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StepwedgeError(ErrorCode.ERROR_CODE_STORAGE_FULL, "no space is left for what is received") from None
        raise StepwedgeError(
            ErrorCode.ERROR_CODE_DEPENDENCY_UNAVAILABLE, "what is received cannot be written"
        ) from None
