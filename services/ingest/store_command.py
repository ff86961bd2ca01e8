"""The command sets of C-STORE (PS3.7 9.3.1) as bytes: what is usual is read and answered without a data set for each.

Whatever is out of the ordinary is left to pynetdicom, which reads every command set there is.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

_ELEMENT: Final = struct.Struct("<HHI")
_US: Final = struct.Struct("<H")
_UL: Final = struct.Struct("<I")
_UID: Final = re.compile(rb"([0-9][0-9.]{0,63})[\0 ]?")

_GROUP_LENGTH, _CLASS, _FIELD, _MESSAGE_ID, _RESPONDED_TO = 0x0000, 0x0002, 0x0100, 0x0110, 0x0120
_PRIORITY, _DATA_SET_TYPE, _STATUS, _COMMENT, _INSTANCE = 0x0700, 0x0800, 0x0900, 0x0902, 0x1000
_MOVE_ORIGINATOR: Final = frozenset({0x1030, 0x1031})  # who asked for a C-MOVE; of no use here
_KNOWN: Final = _MOVE_ORIGINATOR | {
    *(_GROUP_LENGTH, _CLASS, _FIELD, _MESSAGE_ID, _PRIORITY, _DATA_SET_TYPE, _INSTANCE),
}
_C_STORE_RQ, _C_STORE_RSP, _NO_DATA_SET = 0x0001, 0x8001, 0x0101
_P_DATA_TF: Final = 0x04
_COMMAND, _LAST = 0x01, 0x02  # of the message control header (PS3.8 E.2)


@dataclass(slots=True)
class StoreRequest:
    """A C-STORE-RQ that is as it should be."""

    message_id: int
    sop_class: str
    sop_instance: str
    context_id: int = 0
    reception: Any = None
    """Where its data set goes."""


def read(command: bytes | bytearray) -> StoreRequest | None:
    """The request that a command set is; None where it is another one, or not quite in order."""
    found: dict[int, bytes] = {}
    pos, last = 0, -1
    while pos < len(command):
        if len(command) - pos < _ELEMENT.size:
            return None
        group, element, length = _ELEMENT.unpack_from(command, pos)
        pos += _ELEMENT.size + length
        if group or element not in _KNOWN or element <= last or pos > len(command):
            return None
        found[element] = bytes(command[pos - length : pos])
        last = element
    try:
        (field,), (message_id,), (priority,), (kind,) = (
            _US.unpack(found[number]) for number in (_FIELD, _MESSAGE_ID, _PRIORITY, _DATA_SET_TYPE)
        )
        sop_class, sop_instance = (_UID.fullmatch(found[number]) for number in (_CLASS, _INSTANCE))
    except (KeyError, struct.error):
        return None
    if (field, kind == _NO_DATA_SET, priority > 2) != (_C_STORE_RQ, False, False) or not sop_class or not sop_instance:
        return None
    return StoreRequest(message_id, sop_class[1].decode(), sop_instance[1].decode())


def answer(request: StoreRequest, status: int, comment: str = "") -> bytes:
    """The command set of the response; `comment` is the Error Comment, 64 characters at most."""

    def element(number: int, value: bytes, padding: bytes = b"\0") -> bytes:
        value += padding * (len(value) & 1)
        return _ELEMENT.pack(0, number, len(value)) + value

    body = (
        element(_CLASS, request.sop_class.encode())
        + element(_FIELD, _US.pack(_C_STORE_RSP))
        + element(_RESPONDED_TO, _US.pack(request.message_id))
        + element(_DATA_SET_TYPE, _US.pack(_NO_DATA_SET))
        + element(_STATUS, _US.pack(status))
        + (element(_COMMENT, comment[:64].encode("ascii", "replace"), b" ") if comment else b"")
        + element(_INSTANCE, request.sop_instance.encode())
    )
    return element(_GROUP_LENGTH, _UL.pack(len(body))) + body


def values(command: bytes, longest_pdu: int) -> Iterator[bytes]:
    """A command set as presentation data values, control header first, for PDUs of at most so many bytes (0: any)."""
    size = max(1, longest_pdu - 6) if longest_pdu else len(command)
    for first in range(0, len(command), size):
        yield bytes([_COMMAND | (_LAST if first + size >= len(command) else 0)]) + command[first : first + size]


def pdu(context_id: int, value: bytes) -> bytes:
    """A P-DATA-TF PDU with one presentation data value (PS3.8 9.3.5)."""
    return struct.pack(">BxIIB", _P_DATA_TF, len(value) + 5, len(value) + 1, context_id) + value
