"""Preamble and file meta information (PS3.10 7.1): what is put around a data set that came without, and the digest of
an object that does not depend on what others put around it.
"""

import hashlib
import mmap
import struct
from typing import Final

from shared import dicom_encoding

# Constant over versions: these stand in the file meta information, and so in the digests of what is stored.
IMPLEMENTATION_CLASS_UID: Final = "2.25.219318437153370129845962184113450937652"
IMPLEMENTATION_VERSION_NAME: Final = "STEPWEDGE"


def file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Preamble, prefix and file meta information (PS3.10 7.1) around a data set that came without.

    Made of the association alone, and of nothing that changes between two receptions of the same data set.
    """

    def element(number: int, vr: bytes, value: bytes) -> bytes:
        value += (b" " if vr == b"SH" else b"\0") * (len(value) & 1)
        return struct.pack("<HH2sH", 0x0002, number, vr, len(value)) + value

    rest = b"".join(
        (
            struct.pack("<HH2sHI", 0x0002, 0x0001, b"OB", 0, 2) + b"\x00\x01",
            element(0x0002, b"UI", sop_class_uid.encode("ascii", "replace")),
            element(0x0003, b"UI", sop_instance_uid.encode("ascii", "replace")),
            element(0x0010, b"UI", transfer_syntax_uid.encode("ascii", "replace")),
            element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
            element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode()),
        )
    )
    return bytes(128) + b"DICM" + element(0x0000, b"UL", struct.pack("<I", len(rest))) + rest


def content_sha256(data: bytes | mmap.mmap, whole_sha256: str, preface: bytes) -> str:
    """The digest that an object has in our wrapping, `preface`, whatever stands around its data set now.

    `whole_sha256`: digest of `data`, which is the answer where it is in our wrapping already, as all that C-STORE
    brings: it need not be read again.
    """
    begins = data_set_offset(data)
    if data[:begins] == preface:
        return whole_sha256
    view = memoryview(data)
    try:
        digest = hashlib.sha256(preface)
        digest.update(view[begins:])
    finally:
        view.release()
    return digest.hexdigest()


def data_set_offset(data: bytes | mmap.mmap) -> int:
    """Where the data set begins: behind preamble and file meta information (PS3.10 7.1), by walking group 0002.

    0 where the group does not walk, so that two such files are the same only where all their bytes are.
    """
    pos = 132 if data[128:132] == b"DICM" else 0
    end = len(data)
    while data[pos : pos + 2] == b"\x02\x00":
        if end - pos < 12:
            return 0
        vr = bytes(data[pos + 4 : pos + 6]).decode("latin-1")
        if vr in dicom_encoding.SHORT_VRS:
            pos += 8 + int.from_bytes(data[pos + 6 : pos + 8], "little")
        elif vr in dicom_encoding.LONG_VRS:
            pos += 12 + int.from_bytes(data[pos + 8 : pos + 12], "little")
        else:  # some writers make it implicit
            pos += 8 + int.from_bytes(data[pos + 4 : pos + 8], "little")
        if pos > end:
            return 0
    return pos
