"""How the C library holds this process's memory, where it is glibc; elsewhere nothing happens (mallopt(3))."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_SETTINGS: Final = {_ARENA_MAX: 1, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}


def keep_one() -> None:
    """Have one heap for all threads, which keeps what an image leaves free for the next.

    Left to itself the library gives every thread a heap of its own, each as large as its largest image. Told to give
    each large buffer back at once, it spends 70 ms of the processor on an image of 5 megapixels to get the pages anew.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for parameter, value in _SETTINGS.items():
            library.mallopt(parameter, value)


def give_back() -> None:
    """Give back what is free."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
