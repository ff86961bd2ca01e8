"""What the clock of this machine is worth: whether anything keeps it, and how far off it may be (adjtimex, Linux)."""

import ctypes
import sys
from typing import TypedDict

# linux/timex.h
_STA_UNSYNC = 0x0040
_STA_NANO = 0x2000
_LARGEST = 2**53 - 1  # what JSON holds exactly


class ClockState(TypedDict):
    """The kernel's word on its clock."""

    source: str
    """"SYNCHRONIZED" (a time service such as NTP or PTP keeps it), "UNSYNCHRONIZED" or "UNKNOWN"."""
    offset_us: int
    """Offset that is still to be slewed away, microseconds."""
    max_error_us: int
    """Largest error by the kernel's reckoning, microseconds; it grows while nothing keeps the clock."""


class _Timex(ctypes.Structure):
    """struct timex, as far as it is read; the rest is room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def _adjtimex() -> "ctypes._NamedFuncPointer | None":
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).adjtimex
    except (OSError, AttributeError):
        return None


_read = _adjtimex()


def state() -> ClockState:
    """Ask the kernel; changes nothing, needs no right, and never fails. Takes a few microseconds."""
    timex = _Timex()  # modes 0: only read
    if _read is None or _read(ctypes.byref(timex)) < 0:
        return {"source": "UNKNOWN", "offset_us": 0, "max_error_us": 0}
    return judged(timex.status, timex.offset, timex.maxerror)


def judged(status: int, offset: int, max_error: int) -> ClockState:
    """What the members of struct timex say; `offset` is in nanoseconds where the status says so."""
    return {
        "source": "UNSYNCHRONIZED" if status & _STA_UNSYNC else "SYNCHRONIZED",
        "offset_us": int(offset / 1000) if status & _STA_NANO else offset,
        "max_error_us": min(max(0, max_error), _LARGEST),
    }
